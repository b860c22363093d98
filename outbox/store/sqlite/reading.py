"""Reading a SQLite file: a read-only connection in a thread of its own. No transaction outlives a call."""

import sqlite3
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from outbox.domain.deliveries import Delivery
from outbox.domain.errors import DamagedFileError, OutboxError
from outbox.domain.projecting import EventRow, KeyRow, WebhookRow
from outbox.domain.records import CHECKPOINTS
from outbox.store.protocol import (
    END_OF_TIME_MS,
    Aged,
    Due,
    EventFilter,
    FoundEvent,
    FoundReplay,
    Head,
    LogRow,
    Position,
    Run,
    Slice,
    Span,
    Stretch,
    Tail,
)
from outbox.store.sqlite import listing, replays
from outbox.store.sqlite.connections import Hopper, Opener, Row, connect, flat, groups, open_thread, translated

_LOG = "SELECT seq, subject, record, digest FROM log"
_DELIVERY = "SELECT webhook, event, state, due_ms, attempts, charged, queue, since_ms FROM delivery"
# CROSS JOIN keeps the wanted rows as the outer loop; with a row value and IN, the whole table would be gone through.
_WANTED = (
    "WITH wanted (w, e) AS (VALUES {}) SELECT webhook, event, state, due_ms, attempts, charged, queue, since_ms"
    " FROM wanted CROSS JOIN delivery ON webhook = w AND event = e"
)
_WEBHOOKS = (
    "SELECT number, scope, instance, name, settings, source, secret, fingerprint, created_ms, updated_ms, deleted_ms,"
    " suspended_ms, held, opened_ms, phase, position, until FROM webhook"
)
_WEBHOOK = f"{_WEBHOOKS} ORDER BY number"
_OLDEST = (
    "SELECT accepted_ms FROM event WHERE seq = (SELECT min(event) FROM delivery {} WHERE webhook = ? AND state = 0)"
)
_FEW_PENDING = 20_000
_LOOKED_AT = 1000
_PROBLEMS = 20
_PENDING = (
    "SELECT due_ms, event, since_ms FROM delivery INDEXED BY delivery_due"
    " WHERE webhook = ? AND state = 0 AND due_ms <= ? AND (due_ms, event) > (?, ?) ORDER BY due_ms, event LIMIT ?"
)
_NEXT_DUE = "SELECT min(due_ms) FROM delivery WHERE webhook = ? AND state = 0 AND due_ms > ?"
_EVENTS = "SELECT seq, id, kind, instance, accepted_ms FROM event WHERE seq BETWEEN ? AND ?"
_KEYS = "SELECT key, event FROM idempotency WHERE event BETWEEN ? AND ?"
_LOG_SLICE = (
    f"{_LOG} WHERE seq BETWEEN ? AND ? UNION {_LOG} WHERE subject <> 0 AND subject BETWEEN ? AND ?"  # noqa: S608 - ours
    f" UNION {_LOG} WHERE seq > ? UNION {_LOG} WHERE seq IN (SELECT value FROM json_each(?))"
)
# The deliveries' key leads with the webhook, so each one's run of events is looked up by itself.
_HOOKS = (
    "WITH RECURSIVE hooks (n) AS (SELECT min(webhook) FROM delivery UNION ALL"
    " SELECT (SELECT min(webhook) FROM delivery WHERE webhook > n) FROM hooks WHERE n IS NOT NULL)"
)
_SPAN = (
    f"{_HOOKS} SELECT webhook, event, state, due_ms, attempts, charged, queue, since_ms"  # noqa: S608 - our own words
    " FROM hooks CROSS JOIN delivery ON webhook = n AND event BETWEEN ? AND ?"
)
_CHECKPOINT = f"{_LOG} WHERE subject = ? AND subject <> 0 ORDER BY seq DESC LIMIT 1"
_NEXT_STORED = (
    f"{_HOOKS} SELECT min(seq) FROM (SELECT min(seq) AS seq FROM log WHERE seq > ?"  # noqa: S608 - ours
    " UNION ALL SELECT min(seq) FROM event WHERE seq > ?"
    " UNION ALL SELECT (SELECT min(event) FROM delivery WHERE webhook = n AND event > ?) FROM hooks)"
)
# CROSS JOIN keeps the index of due deliveries as the outer loop.
_DUE = (
    "SELECT event, due_ms, attempts, charged, since_ms, CAST(record || digest || coalesce("
    "(SELECT digest FROM log WHERE seq = event - 1), zeroblob(32)) AS BLOB) AS bytes"
    " FROM delivery CROSS JOIN log ON seq = event"
    " WHERE webhook = ? AND state = 0 AND due_ms > ? AND due_ms <= ? AND event NOT IN (SELECT value FROM json_each(?))"
    " ORDER BY due_ms, event LIMIT ?"
)
_DUE_NUMBERS = "event, due_ms, attempts, charged, since_ms"
# What lanes read comes as one row: a step gives Python's global lock away and waits for it again, so a row each would
# wait for the busy event loop hundreds of times, and make it wait.
_IN_ONE_ROW = "SELECT json_group_array(json_array({}, length(bytes))), CAST(group_concat(bytes, '') AS BLOB) FROM ({})"

_ROWS = msgspec.json.Decoder(list[list[Any]])
_T = TypeVar("_T")


async def open_reader(
    path: Path, opener: Opener = open_thread, damaged: Callable[[OutboxError], None] | None = None
) -> "SqliteReader":
    """Open `path` read-only; `damaged` is called where the file proves to be. Raises CannotStartError."""
    hopper = await connect(path, writing=False, opener=opener)
    return SqliteReader(hopper) if damaged is None else SqliteReader(hopper, damaged)


def read_head(connection: sqlite3.Connection) -> Head:
    """Return the end of the log."""
    row = connection.execute("SELECT seq, digest FROM log ORDER BY seq DESC LIMIT 1").fetchone()
    return Head(*row) if row else Head()


def last_checkpoint(connection: sqlite3.Connection) -> LogRow | None:
    """Return the last checkpoint, None if nothing was ever pruned."""
    row = connection.execute(_CHECKPOINT, (CHECKPOINTS,)).fetchone()
    return LogRow._make(row) if row else None


class SqliteReader:
    """Implements `Reader`."""

    def __init__(self, hopper: Hopper, damaged: Callable[[OutboxError], None] = lambda _error: None) -> None:
        """Take over an open connection; `damaged` is called where the file proves to be."""
        self._hopper = hopper
        self._damaged = damaged

    async def _run(self, function: Callable[..., _T], *args: object) -> _T:
        try:
            return await self._hopper.run(function, *args)
        except sqlite3.Error as error:
            found = translated(error)
            if isinstance(found, DamagedFileError):
                self._damaged(found)
            raise found from error

    async def head(self) -> Head:
        """See `Reader.head`."""
        return await self._run(read_head)

    async def log(self, after: int, limit: int) -> list[LogRow]:
        """See `Reader.log`."""
        return await self._run(_log, f"{_LOG} WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))

    async def records(self, seqs: Sequence[int]) -> list[LogRow]:
        """See `Reader.records`."""
        return await self._run(_log, f"{_LOG} WHERE seq IN ({groups(len(seqs))})", list(seqs)) if seqs else []

    async def about(self, subject: int, limit: int) -> list[LogRow]:
        """See `Reader.about`."""
        return await self._run(
            _log, f"{_LOG} WHERE subject = ? AND subject <> 0 ORDER BY seq LIMIT ?", (subject, limit)
        )

    async def event_seq(self, event_id: bytes) -> int | None:
        """See `Reader.event_seq`."""
        return await self._run(_scalar, "SELECT seq FROM event WHERE id = ?", (event_id,))

    async def body(self, event: int) -> bytes | None:
        """See `Reader.body`."""
        return (await self.bodies([event])).get(event)

    async def bodies(self, events: Sequence[int]) -> dict[int, bytes]:
        """See `Reader.bodies`."""
        return await self._run(_bodies, events)

    async def deliveries(self, pairs: Sequence[tuple[int, int]]) -> list[Delivery]:
        """See `Reader.deliveries`."""
        return await self._run(_deliveries, pairs)

    async def due(
        self, webhook: int, until_ms: int, limit: int, but: Collection[int] = (), *, after_ms: int = -1
    ) -> list[Due]:
        """See `Reader.due`."""
        return await self._run(_due, webhook, (after_ms, until_ms), msgspec.json.encode(list(but)), limit)

    async def older(self, webhook: int, cutoff_ms: int, due_ms: int, after: tuple[int, int]) -> Aged:
        """See `Reader.older`."""
        return await self._run(_older, webhook, cutoff_ms, due_ms, after)

    async def next_due(self, webhook: int, after_ms: int = -1) -> int | None:
        """See `Reader.next_due`."""
        return await self._run(_scalar, _NEXT_DUE, (webhook, after_ms))

    async def webhooks(self) -> tuple[list[WebhookRow], dict[bytes, bytes]]:
        """See `Reader.webhooks`."""
        return await self._run(_webhooks)

    async def counters(self) -> dict[tuple[int, int], int]:
        """See `Reader.counters`."""
        return await self._run(_counters)

    async def oldest_pending(self, webhook: int, pending: int) -> int | None:
        """See `Reader.oldest_pending`."""
        # Few are all looked at. Of many, the first is likely to be met soon on a walk from the oldest delivery on.
        way = "INDEXED BY delivery_due" if pending <= _FEW_PENDING else "NOT INDEXED"
        return await self._run(_scalar, _OLDEST.format(way), (webhook,))

    async def slice(self, first: int, last: int, since: int, also: Sequence[int] = ()) -> Slice:
        """See `Reader.slice`."""
        return await self._run(_slice, (first, last), since, also)

    async def checkpoint(self) -> LogRow | None:
        """See `Reader.checkpoint`."""
        return await self._run(last_checkpoint)

    async def next_stored(self, after: int) -> int | None:
        """See `Reader.next_stored`."""
        return await self._run(_scalar, _NEXT_STORED, (after, after, after))

    async def tail(self, after: int) -> Tail:
        """See `Reader.tail`."""
        return await self._run(_tail, after)

    async def event_floor(self, before: int) -> int:
        """See `Reader.event_floor`."""
        return await self._run(listing.event_floor, before)

    async def events_between(self, span: tuple[int, int], wanted: EventFilter, limit: int) -> list[FoundEvent]:
        """See `Reader.events_between`."""
        return await self._run(listing.events_between, span, wanted, limit)

    async def deliveries_below(self, before: Position, states: Sequence[int], wanted: EventFilter, limit: int) -> Run:
        """See `Reader.deliveries_below`."""
        return await self._run(listing.deliveries_below, before, states, wanted, limit)

    async def dead_below(self, before: Position, webhook: int | None, wanted: EventFilter, limit: int) -> Run:
        """See `Reader.dead_below`."""
        return await self._run(listing.dead_below, before, webhook, wanted, limit)

    async def any_since(self, since_ms: int, below: int) -> bool:
        """See `Reader.any_since`."""
        return await self._run(listing.any_since, since_ms, below)

    async def replayable(self, span: Span, states: Sequence[int], wanted: EventFilter, limit: int) -> Stretch:
        """See `Reader.replayable`."""
        return await self._run(replays.replayable, span, states, wanted, limit)

    async def addable(self, span: Span, kinds: Sequence[str], wanted: EventFilter, limit: int) -> Stretch:
        """See `Reader.addable`."""
        return await self._run(replays.addable, span, kinds, wanted, limit)

    async def count_replayable(self, span: Span, states: Sequence[int], wanted: EventFilter) -> tuple[int, int | None]:
        """See `Reader.count_replayable`."""
        return await self._run(replays.count_replayable, span, states, wanted)

    async def count_addable(self, span: Span, kinds: Sequence[str], wanted: EventFilter) -> tuple[int, int | None]:
        """See `Reader.count_addable`."""
        return await self._run(replays.count_addable, span, kinds, wanted)

    async def replays(self, before: int, limit: int) -> list[FoundReplay]:
        """See `Reader.replays`."""
        return await self._run(replays.page, before, limit)

    async def replays_running(self) -> list[FoundReplay]:
        """See `Reader.replays_running`."""
        return await self._run(replays.running)

    async def event_rows(self, seqs: Sequence[int]) -> list[EventRow]:
        """See `Reader.event_rows`."""
        return await self._run(listing.event_rows, seqs)

    async def event_ids(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """See `Reader.event_ids`."""
        return await self._run(listing.event_ids, seqs)

    async def check(self) -> list[str]:
        """See `Reader.check`."""
        rows = await self._run(_check)
        return [] if rows == ["ok"] else rows

    async def quick_check(self) -> list[str]:
        """See `Reader.quick_check`."""
        problems = []
        for table in await self._run(_tables):
            rows = await self._run(_quick_check, table)
            problems += [] if rows == ["ok"] else rows
        return problems[:_PROBLEMS]

    def interrupt(self) -> None:
        """See `Reader.interrupt`."""
        self._hopper.interrupt()

    async def aclose(self) -> None:
        """See `Reader.aclose`."""
        await self._hopper.aclose()


def _log(connection: sqlite3.Connection, query: str, parameters: Sequence[object]) -> list[LogRow]:
    return [LogRow._make(row) for row in connection.execute(query, parameters)]


def _scalar(connection: sqlite3.Connection, query: str, parameters: Sequence[object]) -> int | None:
    row = connection.execute(query, parameters).fetchone()
    return row[0] if row else None


def _bodies(connection: sqlite3.Connection, events: Sequence[int]) -> dict[int, bytes]:
    query = f"SELECT event, body AS bytes FROM body WHERE event IN ({groups(len(events))})"  # noqa: S608 - question marks
    if len(events) == 1:  # perhaps a large one, which is copied once less
        return dict(connection.execute(query, events).fetchall())
    return dict(_at_once(connection, query, "event", events))


def _at_once(connection: sqlite3.Connection, query: str, numbers: str, parameters: Sequence[object]) -> list[Row]:
    """Return the rows of a query, which has those columns of numbers and then one called `bytes`, in one step."""
    lengths, joined = connection.execute(_IN_ONE_ROW.format(numbers, query), parameters).fetchone()
    rows, end = [], 0
    for *values, length in _ROWS.decode(lengths):
        rows.append((*values, joined[end : end + length]))
        end += length
    if end != len(joined or b""):  # an old SQLite, which joins up to the first NUL
        return connection.execute(query, parameters).fetchall()
    return rows


def _deliveries(connection: sqlite3.Connection, pairs: Sequence[tuple[int, int]]) -> list[Delivery]:
    query = _WANTED.format(groups(len(pairs), 2))
    return [Delivery._make(row) for row in connection.execute(query, flat(pairs))] if pairs else []


def _due(connection: sqlite3.Connection, webhook: int, between: tuple[int, int], but: bytes, limit: int) -> list[Due]:
    found = _at_once(connection, _DUE, _DUE_NUMBERS, (webhook, *between, but.decode(), limit))
    return [Due._make((*numbers, joined[:-64], joined[-64:-32], joined[-32:])) for *numbers, joined in found]


def _older(connection: sqlite3.Connection, webhook: int, cutoff_ms: int, due_ms: int, after: tuple[int, int]) -> Aged:
    rows = connection.execute(_PENDING, (webhook, due_ms, *after, _LOOKED_AT)).fetchall()
    events = [event for _, event, since_ms in rows if since_ms <= cutoff_ms]
    oldest_ms = min((since_ms for _, _, since_ms in rows if since_ms > cutoff_ms), default=END_OF_TIME_MS)
    return Aged(events, oldest_ms, rows[-1][:2] if len(rows) == _LOOKED_AT else None)


def _webhooks(connection: sqlite3.Connection) -> tuple[list[WebhookRow], dict[bytes, bytes]]:
    connection.execute("BEGIN")
    try:
        rows = [WebhookRow._make(row) for row in connection.execute(_WEBHOOK)]
        return rows, dict(connection.execute("SELECT id, material FROM secret").fetchall())
    finally:
        connection.execute("ROLLBACK")


def webhooks_of(connection: sqlite3.Connection, numbers: Sequence[int]) -> list[WebhookRow]:
    """Return the rows of some webhooks."""
    query = f"{_WEBHOOKS} WHERE number IN ({groups(len(numbers))})"
    return [WebhookRow._make(row) for row in connection.execute(query, numbers)]


def deliveries_of(connection: sqlite3.Connection, span: tuple[int, int]) -> list[Delivery]:
    """Return all deliveries of the events of a span."""
    return [Delivery._make(row) for row in connection.execute(_SPAN, span)]


def _counters(connection: sqlite3.Connection) -> dict[tuple[int, int], int]:
    return {(webhook, state): n for webhook, state, n in connection.execute("SELECT webhook, state, n FROM counter")}


def _slice(connection: sqlite3.Connection, span: tuple[int, int], since: int, also: Sequence[int]) -> Slice:
    connection.execute("BEGIN")
    try:
        return Slice(
            log=_log(connection, _LOG_SLICE, (*span, *span, since, msgspec.json.encode(also).decode())),
            events=[EventRow._make(row) for row in connection.execute(_EVENTS, span)],
            deliveries=deliveries_of(connection, span),
            keys=[KeyRow._make(row) for row in connection.execute(_KEYS, span)],
        )
    finally:
        connection.execute("ROLLBACK")


def _tail(connection: sqlite3.Connection, after: int) -> Tail:
    connection.execute("BEGIN")
    try:
        return Tail(
            log=_log(connection, f"{_LOG} WHERE seq > ? ORDER BY seq", (after,)),
            webhooks=[WebhookRow._make(row) for row in connection.execute(_WEBHOOK)],
            counters=_counters(connection),
            replays=replays.rows(connection),
        )
    finally:
        connection.execute("ROLLBACK")


def _check(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute(f"PRAGMA integrity_check({_PROBLEMS})")]


def _tables(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]


def _quick_check(connection: sqlite3.Connection, table: str) -> list[str]:
    # One table at a time: while it is read, what is committed cannot all be moved out of the write-ahead log.
    try:
        return [text for (text,) in connection.execute(f'PRAGMA quick_check("{table}")')]
    except sqlite3.Error as error:
        if not isinstance(translated(error), DamagedFileError):
            raise
        return [f"{table}: {error}"]  # this is what was asked, and nothing to stop for
