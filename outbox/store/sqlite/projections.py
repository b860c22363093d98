"""The projections of a SQLite file: writing what records do to them, and folding them from the log."""

import sqlite3
from collections.abc import Callable

import msgspec

from outbox.domain.errors import CorruptError
from outbox.domain.projecting import Changes, EventRow, begin, project, stands_alone
from outbox.domain.records import Checkpoint, EventAccepted, chained, decode, decode_checkpoint
from outbox.store.protocol import Cut, Head
from outbox.store.sqlite.connections import insert
from outbox.store.sqlite.reading import last_checkpoint

PROJECTIONS = ("event", "delivery", "webhook", "idempotency", "counter", "replay")

_PAGE = 2000


def fold_log(
    connection: sqlite3.Connection, progress: Callable[[int], None] = lambda _folded: None, *, strictly: bool = False
) -> int:
    """Make all projections anew from the log, in the caller's transaction; return how many records were folded.

    `progress` is called with the records folded so far. Raises CorruptError where one cannot be read or,
    `strictly`, does not continue the chain.
    """
    for table in PROJECTIONS:
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - a name of ours
    folded, end = 0, _begin(connection)
    while page := _log_page(connection, end.seq):
        if strictly:
            _check_chain(end, page)
        _fold(connection, page)
        folded += len(page)
        end = Head(page[-1][0], page[-1][2])
        progress(folded)
    if last_checkpoint(connection) is not None:
        # Those of events that a checkpoint has kept, and a later one has not.
        connection.execute("DELETE FROM idempotency WHERE NOT EXISTS (SELECT 1 FROM event WHERE seq = event)")
    return folded


def _begin(connection: sqlite3.Connection) -> Head:
    """Write the rows of events that were kept when the log was cut; return where the chain begins."""
    row = last_checkpoint(connection)
    if row is None:
        return Head()
    checkpoint = decode_checkpoint(row.seq, row.record)
    last = 0
    while page := [kept for kept in _log_page(connection, last) if kept[0] <= checkpoint.floor]:
        changes = Changes()
        for seq, data, _ in page:
            record = decode(data)
            if isinstance(record, EventAccepted):
                changes.events.append(EventRow(seq, record.id, record.kind, record.instance, record.at_ms))
        write_changes(connection, changes)
        last = page[-1][0]
    return Head(checkpoint.floor, checkpoint.chain)


def take_away(connection: sqlite3.Connection, cut: Cut) -> None:
    """Delete the records, bodies and idempotency keys that a checkpoint does not keep."""
    span = (cut.first, cut.last, msgspec.json.encode(cut.kept).decode())
    for table, column in (("log", "seq"), ("body", "event")):
        connection.execute(_TAKE_AWAY.format(table, column), span)
    connection.executemany("DELETE FROM idempotency WHERE key = ? AND event = ?", cut.keys)


def _cut(connection: sqlite3.Connection, record: Checkpoint) -> None:
    """Delete the rows of a checkpoint's events, and write those that it keeps, as they were when it was recorded."""
    span = (record.first, record.last)
    kept = msgspec.json.encode([row.seq for row in record.kept]).decode()
    connection.execute(_TAKE_AWAY.format("event", "seq"), (*span, kept))
    connection.execute(_CUT, span)
    connection.execute("DELETE FROM replay WHERE number BETWEEN ? AND ?", span)
    insert(connection, _DELIVERY, record.deliveries, _MOVED)
    insert(connection, "INSERT OR REPLACE INTO idempotency (key, event) VALUES", record.keys, blobs=(0,))


def _log_page(connection: sqlite3.Connection, after: int) -> list[tuple[int, bytes, bytes]]:
    query = "SELECT seq, record, digest FROM log WHERE seq > ? ORDER BY seq LIMIT ?"
    return connection.execute(query, (after, _PAGE)).fetchall()


def _check_chain(end: Head, page: list[tuple[int, bytes, bytes]]) -> None:
    previous = end.digest
    for seq, record, digest in page:
        if chained(previous, record) != digest:
            msg = f"the record {seq} of the log does not continue the chain: nothing was changed; restore a backup"
            raise CorruptError(msg)
        previous = digest


def _fold(connection: sqlite3.Connection, page: list[tuple[int, bytes, bytes]]) -> None:
    """Write what a page of the log does to the projections."""
    changes = Changes()
    for seq, data, _ in page:
        record = decode(data)
        alone = stands_alone(record)
        if alone:
            write_changes(connection, changes)
            changes = Changes()
        project(seq, record, changes)
        if isinstance(record, Checkpoint):
            begin(record, changes)
        if alone:
            write_changes(connection, changes)
            changes = Changes()
    write_changes(connection, changes)


def write_changes(connection: sqlite3.Connection, changes: Changes) -> None:
    """Write what records do to the projections, in the caller's transaction."""
    insert(connection, "INSERT INTO event (seq, id, kind, instance, accepted_ms) VALUES", changes.events, blobs=(1,))
    insert(connection, "INSERT OR REPLACE INTO idempotency (key, event) VALUES", changes.keys, blobs=(0,))
    insert(connection, _DELIVERY, changes.deliveries)
    insert(connection, _ATTEMPTED, changes.outcomes, _OUTCOME)
    for settled in changes.buried:
        connection.execute(_BURY, settled)
    insert(connection, _DELIVERY, changes.moved, _MOVED)
    for row in changes.webhooks:
        connection.execute(_WEBHOOK, row)
    for row in changes.carried:
        connection.execute(_CARRIED, row)
    for record in changes.checkpoints:
        _cut(connection, record)
    for number, fields in changes.marks:
        assigned = ", ".join(f"{name} = ?" for name in fields)
        connection.execute(f"UPDATE webhook SET {assigned} WHERE number = ?", (*fields.values(), number))  # noqa: S608
    insert(connection, _REPLAY, changes.replays)
    counters = [(webhook, state, n) for (webhook, state), n in changes.counters.items() if n]
    insert(connection, "INSERT INTO counter (webhook, state, n) VALUES", counters, _COUNT)


_DELIVERY = "INSERT INTO delivery (webhook, event, state, due_ms, attempts, charged, queue, since_ms) VALUES"
_ATTEMPTED = "INSERT INTO delivery (webhook, event, state, due_ms, attempts, charged) VALUES"
_OUTCOME = (
    "ON CONFLICT (webhook, event) DO UPDATE SET state = excluded.state, due_ms = excluded.due_ms,"
    " attempts = excluded.attempts, charged = excluded.charged"
)
_MOVED = f"{_OUTCOME}, queue = excluded.queue, since_ms = excluded.since_ms"
_BURY = "UPDATE delivery SET state = 3 WHERE webhook = ? AND event BETWEEN ? AND ? AND state < 2"
_WEBHOOK = (
    "INSERT INTO webhook (number, scope, instance, name, settings, source, secret, fingerprint, created_ms, updated_ms,"
    " deleted_ms, suspended_ms, held, opened_ms, phase, position, until)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
    " ON CONFLICT (number) DO UPDATE SET settings = excluded.settings, source = excluded.source,"
    " secret = excluded.secret, fingerprint = excluded.fingerprint, updated_ms = excluded.updated_ms,"
    " suspended_ms = excluded.suspended_ms, held = excluded.held, opened_ms = excluded.opened_ms,"
    " phase = excluded.phase, position = excluded.position, until = excluded.until"
)
_CARRIED = f"INSERT OR REPLACE {_WEBHOOK.removeprefix('INSERT').partition(' ON CONFLICT')[0]}"
_TAKE_AWAY = "DELETE FROM {0} WHERE {1} BETWEEN ? AND ? AND {1} NOT IN (SELECT value FROM json_each(?))"
# The key leads with the webhook: the webhooks are looked up one after the other.
_CUT = (
    "WITH RECURSIVE hooks (n) AS (SELECT min(webhook) FROM delivery UNION ALL"
    " SELECT (SELECT min(webhook) FROM delivery WHERE webhook > n) FROM hooks WHERE n IS NOT NULL)"
    " DELETE FROM delivery WHERE webhook IN (SELECT n FROM hooks) AND event BETWEEN ? AND ?"
)
_REPLAY = (
    "INSERT OR REPLACE INTO replay (number, webhook, event, replayed, skipped, next_ms, updated_ms, finished) VALUES"
)
_COUNT = "ON CONFLICT (webhook, state) DO UPDATE SET n = n + excluded.n"
