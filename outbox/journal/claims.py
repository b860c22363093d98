"""What the relay reads: deliveries that are due, and the bodies of their events."""

from collections.abc import AsyncIterator, Collection, Sequence

from msgspec import Struct

from outbox.domain.deliveries import State
from outbox.domain.records import GENESIS, UNREADABLE, EventAccepted, chained, decode_or_blank
from outbox.journal.walking import read_events
from outbox.store.protocol import END_OF_TIME_MS, Aged, Due, LogRow, Reader

_UNSETTLED = frozenset({State.PENDING, State.WAITING})


class Claim(Struct, frozen=True):
    """A delivery that may be attempted: its event's seq and record, and the attempts made and charged so far.

    Its age counts from `since_ms` on. Of an event whose record is damaged only what the tables know is there: `sound`
    is False, and nothing may be sent.
    """

    seq: int
    event: EventAccepted
    attempts: int
    charged: int
    since_ms: int

    @property
    def sound(self) -> bool:
        """Whether the event's record is what was written."""
        return bool(self.event.digest)


class Claims:
    """Reads what lanes work on. A lane keeps what it has claimed in memory: one process has them all."""

    def __init__(self, reader: Reader) -> None:
        """Read with a reader of its own, so that looking in never delays a delivery."""
        self._reader = reader

    async def due(self, webhook: int, until_ms: int, limit: int, but: Collection[int] = ()) -> list[Claim]:
        """Return up to `limit` pending deliveries due by `until_ms`, the longest due first, but not of these events."""
        return await self._claims(await self._reader.due(webhook, until_ms, limit, but))

    async def due_after(self, webhook: int, after_ms: int, limit: int, but: Collection[int]) -> list[Claim]:
        """Return up to `limit` pending deliveries due later than `after_ms`, as `due` does."""
        return await self._claims(await self._reader.due(webhook, END_OF_TIME_MS, limit, but, after_ms=after_ms))

    async def _claims(self, rows: list[Due]) -> list[Claim]:
        events = [decode_or_blank(row.record) if _continues(row) else UNREADABLE for row in rows]
        for index, event in enumerate(events):
            if event is UNREADABLE:
                events[index] = await self._second_look(rows[index])
        return [
            Claim(row.event, event, row.attempts, row.charged, row.since_ms)
            for row, event in zip(rows, events, strict=True)
        ]

    async def _second_look(self, row: Due) -> EventAccepted:
        """Return a record that seems damaged if only a digest beside it is, otherwise what the tables know."""
        around = {found.seq: found for found in await self._reader.log(row.event - 3, 4)}
        record = row.record if _is_vouched_for(row.event, around) else b""
        return (await read_events(self._reader, [(row.event, record)]))[row.event]

    async def next_due(self, webhook: int, after_ms: int = -1) -> int | None:
        """Return when the webhook's first pending delivery due later than `after_ms` is due, or None."""
        return await self._reader.next_due(webhook, after_ms)

    async def older(self, webhook: int, cutoff_ms: int, due_ms: int, after: tuple[int, int]) -> AsyncIterator[Aged]:
        """Look, some at a time, at pending deliveries due by `due_ms` that follow (due, event); see `Reader.older`."""
        place: tuple[int, int] | None = after
        while place is not None:
            aged = await self._reader.older(webhook, cutoff_ms, due_ms, place)
            place = aged.reached
            yield aged

    async def bodies(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the bodies of events by seq; one that is gone is left out."""
        return await self._reader.bodies(seqs)

    async def unsettled_webhooks(self) -> set[int]:
        """Return the numbers of the webhooks, deleted ones too, that have unsettled deliveries."""
        counters = await self._reader.counters()
        return {webhook for (webhook, state), n in counters.items() if n and state in _UNSETTLED}


def _continues(row: Due) -> bool:
    """Say whether a record continues the chain; one before which none is there cannot be held against it."""
    unknown = row.previous == GENESIS and row.event > 1
    return unknown or chained(row.previous, row.record) == row.digest


def _is_vouched_for(seq: int, rows: dict[int, LogRow]) -> bool:
    """Say whether the record `seq` is sound though the digests stored with it and before it say otherwise.

    Either the digest before it was damaged, and can be had from the record it is of; or its own was, and the record
    after it still continues the chain.
    """
    digests = {number: row.digest for number, row in rows.items()} | {0: GENESIS}
    own, before, after = rows.get(seq), rows.get(seq - 1), rows.get(seq + 1)
    if own is None:
        return False
    if before is not None and seq - 2 in digests:
        previous = chained(digests[seq - 2], before.record)
        if chained(previous, own.record) == own.digest:
            return True
    if after is None or seq - 1 not in digests:
        return False
    return chained(chained(digests[seq - 1], own.record), after.record) == after.digest
