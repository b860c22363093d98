"""Pruning: cutting away what is old from the beginning of the log, chunk by chunk, each behind a checkpoint.

What still lives stays where it is: events with deliveries that are not settled or with a key that still counts, and
their attempts. A checkpoint vouches for it, and restates what the records that are gone had said. So the log says the
same before and after each chunk, and whoever is killed half-way begins anew and finds less to do.
"""

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import ClassVar, NamedTuple

import msgspec
from msgspec import Struct

from outbox.domain.deliveries import State
from outbox.domain.holding import Interval
from outbox.domain.projecting import KeyRow, WebhookRow, contributions
from outbox.domain.records import (
    AttemptRecorded,
    BreakerMoved,
    Checkpoint,
    EventAccepted,
    Kept,
    OrderConverted,
    Record,
    WebhookCarried,
    WebhookDeleted,
    WebhookSet,
    WebhookSuspended,
    decode,
)
from outbox.domain.routing import Webhooks
from outbox.domain.webhooks import Conversion
from outbox.journal.beginnings import beginning
from outbox.journal.commands import RECORD_BYTES, Asking
from outbox.journal.ledger import Ledger, settings_of
from outbox.store.protocol import Cut, Head, LogRow, Reader, Wants

CHUNK = 100
CHUNK_BYTES = 4 * 1024 * 1024
"""A chunk has that many records and bytes of bodies at most: all of it is taken away while everybody else waits."""

_ABOUT_WEBHOOKS = (WebhookSet, WebhookDeleted, WebhookSuspended, BreakerMoved, OrderConverted, WebhookCarried)


class Candidate(NamedTuple):
    """A record that is kept if its event is."""

    kept: Kept
    event: int


class Chunk(Struct, frozen=True):
    """A run of records, the oldest that have not been looked at, and what can be known of it beforehand.

    `events` are those accepted in it, `living` those of them that live whatever their deliveries; `begin` is where the
    chain begins afterwards. `counters` is what the records that leave the chain have counted, `webhooks` are those that
    they are about. `keyed_until` is the last event of a batch whose key still counts.
    """

    first: int
    last: int
    begin: Head
    records: int
    candidates: list[Candidate]
    events: list[int]
    living: frozenset[int]
    keys: list[KeyRow]
    counters: Counter[tuple[int, int]]
    webhooks: list[int]
    keyed_until: int


class Pruned(Struct):
    """How many records, events and deliveries are gone."""

    records: int = 0
    events: int = 0
    deliveries: int = 0

    def add(self, other: "Pruned") -> None:
        """Count what another chunk has taken away."""
        self.records += other.records
        self.events += other.events
        self.deliveries += other.deliveries


class Prune(Asking, frozen=True):
    """Cut a chunk away, but for what lives, as its deliveries are now."""

    chunk: Chunk
    now_ms: int

    alone: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """See `Command.size`."""
        return RECORD_BYTES * (1 + len(self.chunk.candidates) // 4)

    def want(self, wants: Wants, _webhooks: Webhooks) -> None:
        """See `Command.want`."""
        wants.span = (self.chunk.first, self.chunk.last)
        wants.webhooks += self.chunk.webhooks
        wants.keys += [row.key for row in self.chunk.keys]

    def decide(self, ledger: Ledger) -> Pruned:
        """See `Command.decide`; return what is gone."""
        chunk, facts = self.chunk, ledger.facts
        living = {row.event for row in facts.span if not State(row.state).settled}
        living |= chunk.living
        kept = tuple(one.kept for one in chunk.candidates if one.event in living or one.event < chunk.first)
        gone = [row for row in facts.span if row.event not in living]
        current = [row for row in chunk.keys if (fact := facts.keys.get(row.key)) and fact.event == row.event]
        for record in [_carried(row, self.now_ms) for row in facts.webhooks]:
            ledger.append(record)
        events = len(set(chunk.events) - living)
        pruned = Counter((row.webhook, row.state) for row in gone)
        ledger.append(
            Checkpoint(
                at_ms=self.now_ms,
                first=chunk.first,
                last=chunk.last,
                floor=chunk.begin.seq,
                chain=chunk.begin.digest,
                kept=kept,
                deliveries=tuple(row for row in facts.span if row.event in living),
                keys=tuple((row.key, row.event) for row in current if row.event in living),
                counters=tuple((*key, n) for key, n in sorted(chunk.counters.items()) if n),
                events=events,
                pruned=tuple((*key, n) for key, n in sorted(pruned.items())),
            )
        )
        forgotten = [row for row in current if row.event not in living]
        ledger.cut(Cut(chunk.first, chunk.last, [one.seq for one in kept], forgotten))
        return Pruned(chunk.records - len(kept), events, len(gone))


class Limits(Struct, frozen=True):
    """What may be pruned: records from before `cutoff_ms`, up to the seq `end`; keys count from `keyed_ms` on."""

    cutoff_ms: int
    end: int
    keyed_ms: int


Progress = Callable[[int, int, Pruned], None]
"""Called with the seq reached, the last one that may be reached, and what is gone so far."""


class Shears:
    """Cuts the log, with a reader of its own: what lanes claim never waits for it."""

    def __init__(self, reader: Reader, window_ms: int) -> None:
        """Look with `reader`; idempotency keys count for `window_ms`."""
        self._reader = reader
        self._window_ms = window_ms

    async def cut(
        self,
        submit: Callable[[Prune], Awaitable[Pruned]],
        now_ms: Callable[[], int],
        older_than_ms: int,
        progress: Progress,
    ) -> Pruned:
        """Take away what is older than that and does not live; return how much that was.

        A record that cannot be read is the end of it. Raises CorruptError, and what `submit` raises.
        """
        limits = await self._limits(now_ms() - older_than_ms, now_ms() - self._window_ms)
        place, keyed_until, total = 0, 0, Pruned()
        while (chunk := await _next_chunk(self._reader, place, keyed_until, limits)) is not None:
            total.add(await submit(Prune(chunk, now_ms())))
            place, keyed_until = chunk.last, chunk.keyed_until
            progress(place, limits.end, total)
        return total

    async def _limits(self, cutoff_ms: int, keyed_ms: int) -> Limits:
        """Return the limits of a run that begins now: it touches no replay that has not come to its end."""
        end = (await self._reader.head()).seq
        running = await self._reader.replays_running()
        return Limits(cutoff_ms, min([end, *(replay.row.number - 1 for replay in running)]), keyed_ms)


async def _next_chunk(reader: Reader, place: int, keyed_until: int, limits: Limits) -> Chunk | None:
    begin = await beginning(reader)
    taken: list[tuple[LogRow, Record]] = []
    room = CHUNK_BYTES
    for row in await reader.log(place, CHUNK):
        record = decode(row.record)
        if row.seq > limits.end or (row.seq > begin.seq and record.at_ms >= limits.cutoff_ms):
            break
        room -= record.size if isinstance(record, EventAccepted) else 0
        if room < 0 and taken:
            break
        taken.append((row, record))
    if not taken:
        return None
    last = taken[-1][0]
    chained = [(row.seq, record) for row, record in taken if row.seq > begin.seq]
    counters: Counter[tuple[int, int]] = Counter()
    for seq, record in chained:
        counters.update(contributions(seq, record))
    events = {row.seq: record for row, record in taken if isinstance(record, EventAccepted)}
    living = set()
    for seq, event in events.items():
        if event.idempotency and event.at_ms >= limits.keyed_ms:
            keyed_until = max(keyed_until, seq + event.batch - 1)
        # One that an earlier run has kept may be younger than what this one is after.
        if seq <= keyed_until or event.at_ms >= limits.cutoff_ms:
            living.add(seq)
    return Chunk(
        first=place + 1,
        last=last.seq,
        begin=Head(last.seq, last.digest) if last.seq > begin.seq else begin,
        records=len(taken),
        candidates=await _candidates(reader, place, taken),
        events=list(events),
        living=frozenset(living),
        keys=[KeyRow(event.idempotency, seq) for seq, event in events.items() if event.idempotency],
        counters=counters,
        webhooks=sorted({_webhook(seq, record) for seq, record in chained if isinstance(record, _ABOUT_WEBHOOKS)}),
        keyed_until=keyed_until,
    )


async def _candidates(reader: Reader, place: int, taken: list[tuple[LogRow, Record]]) -> list[Candidate]:
    """Return the records of events, and of attempts of events that are there."""
    earlier = {record.event for _, record in taken if isinstance(record, AttemptRecorded) and record.event <= place}
    there = await reader.event_ids(sorted(earlier)) if earlier else {}
    found = []
    for row, record in taken:
        if isinstance(record, AttemptRecorded):
            event = record.event
            if event <= place and event not in there:
                continue
        elif isinstance(record, EventAccepted):
            event = row.seq
        else:
            continue
        found.append(Candidate(Kept(row.seq, hashlib.sha256(row.record).digest()), event))
    return found


def _webhook(seq: int, record: Record) -> int:
    return getattr(record, "webhook", 0) or seq


def _carried(row: WebhookRow, now_ms: int) -> WebhookCarried:
    return WebhookCarried(
        webhook=row.number,
        at_ms=now_ms,
        scope="global" if row.scope == "global" else "instance",
        instance=row.instance,
        name=row.name,
        settings=settings_of(row),
        source="environment" if row.source == "environment" else "api",
        secret=row.secret,
        fingerprint=row.fingerprint,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        deleted_ms=row.deleted_ms or 0,
        suspended_ms=row.suspended_ms,
        held=msgspec.msgpack.decode(row.held, type=tuple[Interval, ...]),
        opened_ms=row.opened_ms,
        conversion=Conversion(row.phase, row.position, row.until),
    )
