"""Listings of a SQLite file: newest first, filtered in SQL, and never more than so many rows looked at in one go."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from outbox.domain.deliveries import Delivery
from outbox.domain.projecting import EventRow
from outbox.store.protocol import LOOKED_AT_ONCE, EventFilter, FoundDelivery, FoundEvent, Position, Run
from outbox.store.sqlite.connections import groups

_ID_TAIL = bytes(10)

# CROSS JOIN keeps the table that is walked as the outer loop; the others are looked up, one row each.
_EVENTS = "SELECT e.seq, l.record FROM event e CROSS JOIN log l ON l.seq = e.seq WHERE e.seq < ? AND e.seq >= ?"
_DELIVERIES = (
    "SELECT d.webhook, d.event, d.state, d.due_ms, d.attempts, d.charged, d.queue, d.since_ms, l.record FROM delivery d"
    " CROSS JOIN event e ON e.seq = d.event CROSS JOIN log l ON l.seq = d.event"
)
_OF_WEBHOOK = _DELIVERIES + " WHERE d.webhook = ? AND d.event < ? AND d.event >= ? AND d.state IN ({})"
# The index delivery_dead serves this.
_DEAD = _DELIVERIES + " WHERE d.state = 3 AND (d.event, d.webhook) < (?, ?) AND d.event >= ?"
_EVENT_FLOOR = "SELECT seq FROM event WHERE seq < ? ORDER BY seq DESC LIMIT 1 OFFSET ?"
_WEBHOOK_FLOOR = "SELECT event FROM delivery WHERE webhook = ? AND event < ? ORDER BY event DESC LIMIT 1 OFFSET ?"
_DEAD_FLOOR = (
    "SELECT event FROM delivery WHERE state = 3 AND event < ? ORDER BY event DESC, webhook DESC LIMIT 1 OFFSET ?"
)
_SINCE = "SELECT count(*), min(seq) FROM (SELECT seq FROM event WHERE id >= ? ORDER BY id LIMIT ?)"


def event_floor(connection: sqlite3.Connection, before: int) -> int:
    """Return the seq of the last event that a walk down from `before` may look at; 0 when it may see the end."""
    return scalar(connection, _EVENT_FLOOR, (before, LOOKED_AT_ONCE - 1))


def events_between(
    connection: sqlite3.Connection, span: tuple[int, int], wanted: EventFilter, limit: int
) -> list[FoundEvent]:
    """See `Reader.events_between`."""
    narrowed, values = conditions(wanted)
    query = f"{_EVENTS}{narrowed} ORDER BY e.seq DESC LIMIT ?"
    return [FoundEvent._make(row) for row in connection.execute(query, (span[1], span[0], *values, limit))]


def deliveries_below(
    connection: sqlite3.Connection, before: Position, states: Sequence[int], wanted: EventFilter, limit: int
) -> Run:
    """See `Reader.deliveries_below`."""
    event, webhook = before
    floor = scalar(connection, _WEBHOOK_FLOOR, (webhook, event, LOOKED_AT_ONCE - 1))
    narrowed, values = conditions(wanted)
    query = f"{_OF_WEBHOOK.format(groups(len(states)))}{narrowed} ORDER BY d.event DESC LIMIT ?"
    rows = connection.execute(query, (webhook, event, floor, *states, *values, limit))
    return _run([_found(row) for row in rows], floor, limit)


def dead_below(
    connection: sqlite3.Connection, before: Position, webhook: int | None, wanted: EventFilter, limit: int
) -> Run:
    """See `Reader.dead_below`."""
    floor = scalar(connection, _DEAD_FLOOR, (before.event, LOOKED_AT_ONCE - 1))
    narrowed, values = conditions(wanted, webhook)
    query = f"{_DEAD}{narrowed} ORDER BY d.event DESC, d.webhook DESC LIMIT ?"
    rows = connection.execute(query, (*before, floor, *values, limit))
    return _run([_found(row) for row in rows], floor, limit)


def any_since(connection: sqlite3.Connection, since_ms: int, below: int) -> bool:
    """See `Reader.any_since`. An event's id begins with the time it was accepted, and ids have an index."""
    first = since_ms.to_bytes(6, "big") + _ID_TAIL
    count, lowest = connection.execute(_SINCE, (first, LOOKED_AT_ONCE)).fetchone()
    return bool(count) and (lowest < below or count == LOOKED_AT_ONCE)


def event_rows(connection: sqlite3.Connection, seqs: Sequence[int]) -> list[EventRow]:
    """See `Reader.event_rows`."""
    query = f"SELECT seq, id, kind, instance, accepted_ms FROM event WHERE seq IN ({groups(len(seqs))})"  # noqa: S608
    return [EventRow._make(row) for row in connection.execute(query, seqs)]


def event_ids(connection: sqlite3.Connection, seqs: Sequence[int]) -> dict[int, bytes]:
    """See `Reader.event_ids`."""
    query = f"SELECT seq, id FROM event WHERE seq IN ({groups(len(seqs))})"  # noqa: S608 - marks only
    return dict(connection.execute(query, seqs).fetchall())


def conditions(wanted: EventFilter, webhook: int | None = None) -> tuple[str, list[object]]:
    """Return what follows WHERE ..., with the event as `e`, and its parameters.

    The delivery is `d`; the + keeps a walk down the dead from going by the webhook.
    """
    parts = {
        " AND +d.webhook = ?": webhook,
        " AND e.kind = ?": wanted.kind,
        " AND e.instance = ?": wanted.instance,
        " AND e.accepted_ms >= ?": wanted.since_ms,
        " AND e.accepted_ms < ?": wanted.until_ms,
    }
    asked = {text: value for text, value in parts.items() if value is not None}
    return "".join(asked), list(asked.values())


def _found(row: Sequence[Any]) -> FoundDelivery:
    return FoundDelivery(Delivery._make(row[:-1]), row[-1])


def _run(found: list[FoundDelivery], floor: int, limit: int) -> Run:
    if len(found) == limit:
        last = found[-1].delivery
        return Run(found, Position(last.event, last.webhook), spent=False)
    return Run(found, Position(floor, 0) if floor else None, spent=True)


def scalar(connection: sqlite3.Connection, query: str, parameters: Sequence[object]) -> int:
    """Return the one number that a query finds, 0 if it finds nothing."""
    row = connection.execute(query, parameters).fetchone()
    return int(row[0]) if row else 0
