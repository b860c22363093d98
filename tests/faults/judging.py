"""Judges what a power cut has left by what the service had said before: every answer and every POST is a promise."""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct, field

from outbox.domain.deliveries import Effect, Move
from outbox.domain.errors import OutboxError
from outbox.domain.ids import event_text, parse_event
from outbox.domain.records import (
    AttemptRecorded,
    Checkpoint,
    DeliveriesMoved,
    EventAccepted,
    Record,
    ReplayAdvanced,
    ReplayRequested,
    decode,
)
from outbox.journal.folding import verify
from outbox.store.sqlite.connections import _configure_writer
from outbox.store.sqlite.files import HeadFile
from outbox.store.sqlite.reading import SqliteReader
from tests.faults.recording import Accepted, Posted, Replayed, Said

_T = TypeVar("_T")


class _Direct:
    """A `Hopper` that runs functions at once, in this thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._direct = connection

    async def run(self, function: Callable[..., _T], *args: object) -> _T:
        return function(self._direct, *args)

    async def aside(self, function: Callable[[], _T]) -> _T:
        return function()

    def interrupt(self) -> None:
        pass

    async def aclose(self) -> None:
        self._direct.close()


class Promised(Struct, frozen=True):
    """What must hold: what was said, and files once anything was. Webhooks are numbers, by their paths.

    Those in `ordered` get the events of a chat one at a time. The events in `lasting` may not be pruned: they are never
    settled, or have a key that counts. Others may be, when they are `age_ms` old.
    """

    said: list[Said]
    webhooks: Mapping[str, int]
    ordered: frozenset[int]
    files: Mapping[str, bytes] = {}
    lasting: frozenset[str] = frozenset()
    age_ms: int = 0


class _Found(Struct):
    """What a file holds: events by id and by seq, attempts by event, webhook and number, webhooks.

    `open` has the first event of a chat that a webhook has not acknowledged, by webhook and chat; `settled` has the
    attempts that settled a delivery, by event and webhook, `reopened` how often it was let go again. `replays` has how
    far each replay has come, `moved` how many deliveries it has changed. The log was cut up to `floor`, since `cut_ms`.
    `posted` has the paths that an event has gone to, whether that is on record or not.
    """

    seqs: dict[str, int] = field(default_factory=dict)
    events: dict[int, EventAccepted] = field(default_factory=dict)
    attempts: set[tuple[int, int, int]] = field(default_factory=set)
    settled: defaultdict[tuple[int, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    reopened: Counter[tuple[int, int]] = field(default_factory=Counter)
    replays: dict[int, ReplayRequested | ReplayAdvanced] = field(default_factory=dict)
    moved: Counter[int] = field(default_factory=Counter)
    webhooks: set[int] = field(default_factory=set)
    open: dict[tuple[int, int], int] = field(default_factory=dict)
    floor: int = 0
    cut_ms: int = 0
    posted: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def judge(folder: Path, database: str, promised: Promised) -> list[str]:
    """Return what is wrong with the files in `folder`.

    It begins as the service does: with recovery, migrations and whatever else a start brings.
    """
    path = folder / database
    path.parent.mkdir(exist_ok=True)
    try:
        with closing(sqlite3.connect(path, isolation_level=None, cached_statements=256)) as connection:
            _configure_writer(connection)
            connection.execute("PRAGMA synchronous = OFF")
            faults = _at_once(verify(SqliteReader(_Direct(connection)), HeadFile(path).read())).problems
            found = _found(connection, faults)
    except (sqlite3.Error, OutboxError) as error:
        return [f"the file cannot be used: {error}"]
    for one in promised.said:
        if isinstance(one, Posted):
            found.posted[one.event_id].add(one.path)
    faults += [fault for one in promised.said for fault in _broken(one, found, promised)]
    for name, content in promised.files.items():
        if promised.said and (not (folder / name).exists() or (folder / name).read_bytes() != content):
            faults.append(f"{name} is not there")
    return faults


def _at_once(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Return what a coroutine returns that never really waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: _T = end.value
        return value
    raise AssertionError("it waits")


def _found(connection: sqlite3.Connection, faults: list[str]) -> _Found:
    """Read a sound file; what the log cannot hold is added to `faults`."""
    found = _Found()
    batched_until = 0
    log = [(seq, decode(text)) for seq, text in connection.execute("SELECT seq, record FROM log ORDER BY seq")]
    for _, record in log:
        if isinstance(record, Checkpoint):
            found.floor = record.floor
            # The first chunk of a run begins with the first record: it is decided as soon as the run has begun.
            found.cut_ms = record.at_ms if record.first == 1 else found.cut_ms
    for seq, record in log:
        if isinstance(record, EventAccepted):
            found.events[seq] = record
            found.seqs[event_text(record.id)] = seq
            batched_until = max(batched_until, seq + record.batch - 1)
        elif seq <= batched_until:
            faults.append(f"record {seq}: something else in the middle of a batch")
        faults += [f"record {seq}: {fault}" for fault in _add(seq, record, found)]
    faults += [
        f"replay {number} has come to {replay.replayed} deliveries, and has changed {found.moved[number]}"
        for number, replay in found.replays.items()
        if isinstance(replay, ReplayAdvanced) and replay.replayed != found.moved[number]
    ]
    if batched_until > max(found.events, default=0):
        faults.append(f"the log ends before its last batch, which went on until {batched_until}")
    found.webhooks = {number for (number,) in connection.execute("SELECT number FROM webhook")}
    for seq, event in found.events.items():
        for webhook in event.targets:
            if (seq, webhook) not in found.settled:
                found.open.setdefault((webhook, event.ordering_key), seq)
    return found


def _add(seq: int, record: Record, found: _Found) -> Iterator[str]:
    """Add what happened to deliveries; yield what is wrong with it."""
    match record:
        case AttemptRecorded():
            yield from _add_outcome(record, found)
        case DeliveriesMoved(move=Move.REOPEN):
            found.reopened.update((row.event, record.webhook) for row in record.rows)
            found.moved[record.cause] += len(record.rows)
        case ReplayRequested():
            found.replays[seq] = record
        case ReplayAdvanced():
            if record.replay not in found.replays:
                yield "a replay goes on that nobody has asked for"
            found.replays[record.replay] = record


def _add_outcome(record: AttemptRecorded, found: _Found) -> Iterator[str]:
    event = found.events.get(record.event)
    if event is None and record.event <= found.floor:
        return
    if event is None or record.webhook not in event.targets:
        yield "an outcome without its event or its delivery"
    found.attempts.add((record.event, record.webhook, record.attempt))
    if record.effect in {Effect.ACKNOWLEDGE, Effect.BURY}:
        found.settled[record.event, record.webhook].append(record.attempt)


def _broken(said: Said, found: _Found, promised: Promised) -> Iterator[str]:
    """Yield what does not hold of what was said."""
    if isinstance(said, Posted):
        yield from _rash(said, found, promised)
    elif isinstance(said, Accepted):
        yield from _lost(said, found, promised)
    elif isinstance(said, Replayed):
        if said.replay not in found.replays:
            yield f"replay {said.replay} got a 202 and is not there"
    elif said.webhook not in found.webhooks:
        yield f"webhook {said.webhook} was answered for and is not there"


def _may_be_gone(event_id: str, found: _Found, promised: Promised, deliveries: int = 1) -> bool:
    """Say whether an event may have been pruned: it was old enough, and had gone to everybody."""
    made_ms = int.from_bytes(parse_event(event_id)[:6], "big")
    old = made_ms < found.cut_ms - promised.age_ms
    return old and len(found.posted[event_id]) >= deliveries and event_id not in promised.lasting


def _lost(said: Accepted, found: _Found, promised: Promised) -> Iterator[str]:
    """Yield what is missing of events that got a 202."""
    for seq, event_id in enumerate(said.ids, start=said.first_seq):
        there = found.seqs.get(event_id)
        if there is None:
            gone = _may_be_gone(event_id, found, promised, 1 if said.deliveries is None else said.deliveries)
            if seq > found.floor or seq in found.events or not gone:
                yield f"{event_id} got a 202 and is not there"
        elif there != seq or said.deliveries not in {None, len(found.events[there].targets)}:
            yield f"{event_id} got a 202 as {seq} with {said.deliveries} deliveries, and is {found.events[there]}"


def _rash(said: Posted, found: _Found, promised: Promised) -> Iterator[str]:
    """Yield what is wrong with a POST that was made: what should have come before it must be on record."""
    webhook, seq = promised.webhooks[said.path], found.seqs.get(said.event_id)
    if seq is None:
        if not _may_be_gone(said.event_id, found, promised):
            yield f"{said.event_id} was posted and is not there"
        return
    settled = [attempt for attempt in found.settled.get((seq, webhook), ()) if attempt < said.attempt]
    if len(settled) > found.reopened[seq, webhook]:
        yield f"{said.event_id} was settled and posted again, and no replay of it is on record"
    if said.attempt > 1 and (seq, webhook, said.attempt - 1) not in found.attempts:
        yield f"attempt {said.attempt} of {said.event_id} was posted, and the one before is not on record"
    if webhook in promised.ordered and found.open.get((webhook, found.events[seq].ordering_key), seq) < seq:
        yield f"{said.event_id} was posted, and an earlier one of its chat is not settled"
