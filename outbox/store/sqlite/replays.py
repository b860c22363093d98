"""Replays in a SQLite file: how far each has come, and the deliveries and events that they are after.

What a replay is after comes as one row of JSON, as what lanes read does: a row each would wait for the busy event loop
every time. No step looks at more than so many rows.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

import msgspec

from outbox.domain.projecting import ReplayRow
from outbox.store.protocol import LOOKED_AT_ONCE, EventFilter, FoundEvent, FoundReplay, Span, Stretch
from outbox.store.sqlite.connections import groups
from outbox.store.sqlite.listing import conditions, scalar

_ROWS = "SELECT number, webhook, event, replayed, skipped, next_ms, updated_ms, finished FROM replay ORDER BY number"
_REPLAYS = (
    "SELECT number, webhook, event, replayed, skipped, next_ms, updated_ms, finished, record"
    " FROM replay CROSS JOIN log ON seq = number"
)
_PAGE = f"{_REPLAYS} WHERE number < ? ORDER BY number DESC LIMIT ?"
_RUNNING = f"{_REPLAYS} WHERE finished = 0 ORDER BY number"

# CROSS JOIN keeps the table that is walked as the outer loop; the others are looked up, one row each.
_DELIVERIES = (
    "FROM delivery d CROSS JOIN event e ON e.seq = d.event CROSS JOIN log l ON l.seq = e.seq"
    " WHERE d.webhook = ? AND d.event > ? AND d.event < ? AND d.state IN ({})"
)
_EVENTS = (
    "FROM event e CROSS JOIN log l ON l.seq = e.seq WHERE e.seq > ? AND e.seq < ?"
    " AND NOT EXISTS (SELECT 1 FROM delivery WHERE webhook = ? AND event = e.seq)"
)
_FOUND = "SELECT json_group_array(json_array(seq, hex(record))) FROM (SELECT l.seq, l.record {} ORDER BY {} LIMIT ?)"
_COUNT = "SELECT count(*) {}"
_DELIVERY_CEILING = (
    "SELECT event FROM delivery WHERE webhook = ? AND event > ? AND event < ? ORDER BY event LIMIT 1 OFFSET ?"
)
_EVENT_CEILING = "SELECT seq FROM event WHERE seq > ? AND seq < ? ORDER BY seq LIMIT 1 OFFSET ?"

_DECODER = msgspec.json.Decoder(list[tuple[int, str]])
Query = tuple[str, list[Any]]


def rows(connection: sqlite3.Connection) -> list[ReplayRow]:
    """Return the whole projection."""
    return [ReplayRow._make(row) for row in connection.execute(_ROWS)]


def page(connection: sqlite3.Connection, before: int, limit: int) -> list[FoundReplay]:
    """See `Reader.replays`."""
    return _replays(connection, _PAGE, (before, limit))


def running(connection: sqlite3.Connection) -> list[FoundReplay]:
    """See `Reader.replays_running`."""
    return _replays(connection, _RUNNING, ())


def replayable(
    connection: sqlite3.Connection, span: Span, states: Sequence[int], wanted: EventFilter, limit: int
) -> Stretch:
    """See `Reader.replayable`."""
    ceiling = scalar(connection, _DELIVERY_CEILING, (*span, LOOKED_AT_ONCE - 1))
    text, values = _deliveries(span, ceiling, states, wanted)
    return _stretch(connection, (_FOUND.format(text, "d.event"), [*values, limit]), ceiling, limit)


def addable(
    connection: sqlite3.Connection, span: Span, kinds: Sequence[str], wanted: EventFilter, limit: int
) -> Stretch:
    """See `Reader.addable`."""
    ceiling = scalar(connection, _EVENT_CEILING, (span.after, span.before, LOOKED_AT_ONCE - 1))
    text, values = _events(span, ceiling, kinds, wanted)
    return _stretch(connection, (_FOUND.format(text, "e.seq"), [*values, limit]), ceiling, limit)


def count_replayable(
    connection: sqlite3.Connection, span: Span, states: Sequence[int], wanted: EventFilter
) -> tuple[int, int | None]:
    """See `Reader.count_replayable`."""
    ceiling = scalar(connection, _DELIVERY_CEILING, (*span, LOOKED_AT_ONCE - 1))
    return _counted(connection, _deliveries(span, ceiling, states, wanted), ceiling)


def count_addable(
    connection: sqlite3.Connection, span: Span, kinds: Sequence[str], wanted: EventFilter
) -> tuple[int, int | None]:
    """See `Reader.count_addable`."""
    ceiling = scalar(connection, _EVENT_CEILING, (span.after, span.before, LOOKED_AT_ONCE - 1))
    return _counted(connection, _events(span, ceiling, kinds, wanted), ceiling)


def _deliveries(span: Span, ceiling: int, states: Sequence[int], wanted: EventFilter) -> Query:
    """Return from where to where a step looks; the ceiling itself, where there is one, is its last event."""
    text, values = conditions(wanted)
    before = ceiling + 1 if ceiling else span.before
    return _DELIVERIES.format(groups(len(states))) + text, [span.webhook, span.after, before, *states, *values]


def _events(span: Span, ceiling: int, kinds: Sequence[str], wanted: EventFilter) -> Query:
    text, values = conditions(wanted)
    if kinds:
        text += f" AND e.kind IN ({groups(len(kinds))})"
    return _EVENTS + text, [span.after, ceiling + 1 if ceiling else span.before, span.webhook, *values, *kinds]


def _stretch(connection: sqlite3.Connection, query: Query, ceiling: int, limit: int) -> Stretch:
    (found,) = connection.execute(*query).fetchone()
    events = [FoundEvent(seq, bytes.fromhex(record)) for seq, record in _DECODER.decode(found)]
    return Stretch(events, events[-1].seq if len(events) == limit else ceiling or None)


def _counted(connection: sqlite3.Connection, query: Query, ceiling: int) -> tuple[int, int | None]:
    text, values = query
    return scalar(connection, _COUNT.format(text), values), ceiling or None


def _replays(connection: sqlite3.Connection, query: str, values: Sequence[int]) -> list[FoundReplay]:
    return [FoundReplay(ReplayRow._make(row[:-1]), row[-1]) for row in connection.execute(query, values)]
