"""Judges what a power cut has left by what the service had said before: every answer and every POST is a promise."""

import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct, field

from outbox.domain.deliveries import Effect
from outbox.domain.errors import OutboxError
from outbox.domain.ids import event_text
from outbox.domain.records import AttemptRecorded, EventAccepted, decode
from outbox.journal.folding import verify
from outbox.store.sqlite.connections import _configure_writer
from outbox.store.sqlite.files import HeadFile
from outbox.store.sqlite.reading import SqliteReader
from tests.faults.recording import Accepted, Posted, Said

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

    Those in `ordered` get the events of a chat one at a time.
    """

    said: list[Said]
    webhooks: Mapping[str, int]
    ordered: frozenset[int]
    files: Mapping[str, bytes] = {}


class _Found(Struct):
    """What a file holds: events by id and by seq, attempts by event, webhook and number, webhooks.

    `open` has the first event of a chat that a webhook has not acknowledged, by webhook and chat.
    """

    seqs: dict[str, int] = field(default_factory=dict)
    events: dict[int, EventAccepted] = field(default_factory=dict)
    attempts: set[tuple[int, int, int]] = field(default_factory=set)
    settled: set[tuple[int, int]] = field(default_factory=set)
    webhooks: set[int] = field(default_factory=set)
    open: dict[tuple[int, int], int] = field(default_factory=dict)


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
    for seq, text in connection.execute("SELECT seq, record FROM log ORDER BY seq"):
        record = decode(text)
        if isinstance(record, EventAccepted):
            found.events[seq] = record
            found.seqs[event_text(record.id)] = seq
            batched_until = max(batched_until, seq + record.batch - 1)
        elif seq <= batched_until:
            faults.append(f"record {seq}: something else in the middle of a batch")
        if isinstance(record, AttemptRecorded):
            faults += [f"record {seq}: {fault}" for fault in _add(record, found)]
    if batched_until > max(found.events, default=0):
        faults.append(f"the log ends before its last batch, which went on until {batched_until}")
    found.webhooks = {number for (number,) in connection.execute("SELECT number FROM webhook")}
    for seq, event in found.events.items():
        for webhook in event.targets:
            if (seq, webhook) not in found.settled:
                found.open.setdefault((webhook, event.ordering_key), seq)
    return found


def _add(record: AttemptRecorded, found: _Found) -> Iterator[str]:
    """Add an outcome; yield what is wrong with it."""
    event = found.events.get(record.event)
    if event is None or record.webhook not in event.targets:
        yield "an outcome without its event or its delivery"
    found.attempts.add((record.event, record.webhook, record.attempt))
    if record.effect in {Effect.ACKNOWLEDGE, Effect.BURY}:
        found.settled.add((record.event, record.webhook))


def _broken(said: Said, found: _Found, promised: Promised) -> Iterator[str]:
    """Yield what does not hold of what was said."""
    if isinstance(said, Posted):
        yield from _rash(said, found, promised)
    elif isinstance(said, Accepted):
        yield from _lost(said, found)
    elif said.webhook not in found.webhooks:
        yield f"webhook {said.webhook} was answered for and is not there"


def _lost(said: Accepted, found: _Found) -> Iterator[str]:
    """Yield what is missing of events that got a 202."""
    for seq, event_id in enumerate(said.ids, start=said.first_seq):
        there = found.seqs.get(event_id)
        if there is None:
            yield f"{event_id} got a 202 and is not there"
        elif there != seq or said.deliveries not in {None, len(found.events[there].targets)}:
            yield f"{event_id} got a 202 as {seq} with {said.deliveries} deliveries, and is {found.events[there]}"


def _rash(said: Posted, found: _Found, promised: Promised) -> Iterator[str]:
    """Yield what is wrong with a POST that was made: what should have come before it must be on record."""
    webhook, seq = promised.webhooks[said.path], found.seqs.get(said.event_id)
    if seq is None:
        yield f"{said.event_id} was posted and is not there"
        return
    if said.attempt > 1 and (seq, webhook, said.attempt - 1) not in found.attempts:
        yield f"attempt {said.attempt} of {said.event_id} was posted, and the one before is not on record"
    if webhook in promised.ordered and found.open.get((webhook, found.events[seq].ordering_key), seq) < seq:
        yield f"{said.event_id} was posted, and an earlier one of its chat is not settled"
