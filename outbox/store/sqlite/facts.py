"""What a commit must know, read inside its transaction.

Rows of the hot path come as one row of JSON: a step for each would wait for Python's global lock each time. CROSS JOIN
keeps the wanted rows as the outer loop: one look-up by an index each.
"""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from outbox.domain.deliveries import Delivery
from outbox.store.protocol import (
    LOOKED_AT_ONCE,
    Facts,
    FoundDelivery,
    Head,
    KeyFact,
    QueueFact,
    UnsettledRange,
    UnsettledRun,
    Waiting,
    Wants,
)
from outbox.store.sqlite.connections import Row, flat, groups
from outbox.store.sqlite.reading import deliveries_of, webhooks_of

_DELIVERIES = (
    "WITH wanted (w, e) AS (VALUES {}) SELECT json_group_array(json_array("
    "webhook, event, state, due_ms, attempts, charged, queue, since_ms))"
    " FROM wanted CROSS JOIN delivery ON webhook = w AND event = e"
)
_KEYS = (
    "WITH wanted (k) AS (VALUES {}) SELECT key, event, record"
    " FROM wanted CROSS JOIN idempotency ON key = k CROSS JOIN log ON seq = event"
)
# Named, since the planner, which knows no statistics, may think that a walk along all deliveries is as good.
_HEAD = "FROM delivery INDEXED BY delivery_head WHERE state = 0"
_WAITING = "FROM delivery INDEXED BY delivery_waiting WHERE state = 1"
_QUEUES = (
    "WITH wanted (w, q) AS (VALUES {{}}) SELECT json_group_array(json_array(w, q,"  # noqa: S608 - pieces of our own
    f" EXISTS (SELECT 1 {_HEAD} AND webhook = w AND queue = q),"
    " json((SELECT json_group_array(json_array(event, attempts, charged, since_ms)) FROM ("
    f"SELECT event, attempts, charged, since_ms {_WAITING} AND webhook = w AND queue = q"
    " ORDER BY event LIMIT {}))))) FROM wanted"
)
_UNSETTLED = (
    "SELECT min(event), max(event), sum(state = 0), sum(state = 1) FROM ("
    "SELECT event, state FROM delivery WHERE webhook = ? AND event > ? ORDER BY event LIMIT ?)"
)
# What is unsettled has no index in order of events, so the settled ones in between are gone through: a bounded number.
_LAST_LOOKED_AT = (
    "SELECT event FROM delivery WHERE webhook = ? AND event > ? AND event < ? ORDER BY event LIMIT 1 OFFSET ?"
)
_RUN_WITH_RECORDS = (
    "SELECT webhook, event, state, due_ms, attempts, charged, queue, since_ms, record"
    " FROM delivery CROSS JOIN log ON seq = event"
    " WHERE webhook = ? AND event > ? AND event < ? AND state < 2 ORDER BY event LIMIT ?"
)
# The next key is looked up each time, so that a long queue costs no more than a short one.
_HEADLESS = (
    "WITH RECURSIVE keys (q) AS ("  # noqa: S608 - pieces of our own
    f"SELECT min(queue) {_WAITING} AND webhook = :w AND queue >= :after UNION ALL"
    f" SELECT (SELECT min(queue) {_WAITING} AND webhook = :w AND queue > q) FROM keys WHERE q IS NOT NULL) "
    "SELECT webhook, event, state, due_ms, attempts, charged, queue, since_ms"
    f" FROM keys CROSS JOIN delivery ON webhook = :w AND event = (SELECT min(event) {_WAITING} AND webhook = :w"
    f" AND queue = q) WHERE q IS NOT NULL AND NOT EXISTS (SELECT 1 {_HEAD} AND webhook = :w AND queue = q)"
    " LIMIT :limit"
)
_LISTS = msgspec.json.Decoder(list[list[Any]])
_ROWS = msgspec.json.Decoder(list[Delivery])
_FOUND_AT_ONCE = 512
_ROUND = 16

_T = TypeVar("_T")


def find_facts(connection: sqlite3.Connection, wants: Wants, head: Head) -> Facts:
    """Return the facts that `wants` names, as they are in this transaction, in which the log ends with `head`."""
    facts = Facts(head=head, deliveries={}, keys={}, unsettled={}, queues={}, rows={}, headless={})
    facts.deliveries = _deliveries(connection, wants.alone)
    standing = _deliveries(connection, wants.deliveries)
    facts.deliveries |= standing
    settled = Counter((row.webhook, row.queue) for row in standing.values() if row.queue is not None)
    if settled or wants.queues:
        facts.queues = _queues(connection, settled, wants.queues)
    if wants.keys:
        for key, event, record in _find(connection, _KEYS, [(key,) for key in wants.keys], 1):
            facts.keys[key] = KeyFact(event, record)
    for webhook, after, limit in wants.unsettled:
        run = connection.execute(_UNSETTLED, (webhook, after, limit)).fetchone()
        if run[0] is not None:
            facts.unsettled[webhook] = UnsettledRange._make(run)
    for webhook, after, before, limit in wants.rows:
        facts.rows[webhook] = _run(connection, (webhook, after, before), limit)
    for webhook, after, limit in wants.headless:
        parameters = {"w": webhook, "after": after, "limit": limit}
        facts.headless[webhook] = [Delivery._make(row) for row in connection.execute(_HEADLESS, parameters)]
    if wants.span is not None:
        facts.span = deliveries_of(connection, wants.span)
    if wants.webhooks:
        facts.webhooks = webhooks_of(connection, wants.webhooks)
    return facts


def _deliveries(connection: sqlite3.Connection, wanted: Sequence[Row]) -> dict[tuple[int, int], Delivery]:
    return {(row[0], row[1]): row for row in _decoded(connection, _DELIVERIES, wanted, _ROWS)}


def _queues(
    connection: sqlite3.Connection, settled: Counter[tuple[int, int]], entered: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], QueueFact]:
    """Read queues; of those with deliveries that may be settled, one more that waits than the commit could let go."""
    found = {}
    for queues, limit in (list(settled), max(settled.values(), default=0) + 1), (list({*entered} - settled.keys()), 1):
        for webhook, queue, busy, waiting in _decoded(connection, _QUEUES.format(limit), queues, _LISTS):
            first = [Waiting._make(row) for row in waiting]
            found[webhook, queue] = QueueFact(bool(busy), first, len(first) < limit)
    return found


def _run(connection: sqlite3.Connection, span: tuple[int, int, int], limit: int) -> UnsettledRun:
    """Read up to `limit` unsettled deliveries of a webhook after one event and before another."""
    webhook, after, before = span
    last = connection.execute(_LAST_LOOKED_AT, (*span, LOOKED_AT_ONCE - 1)).fetchone()
    before = last[0] + 1 if last else before
    rows = connection.execute(_RUN_WITH_RECORDS, (webhook, after, before, limit)).fetchall()
    found = [FoundDelivery(Delivery._make(row[:-1]), row[-1]) for row in rows]
    if len(found) == limit:
        return UnsettledRun(found, found[-1].delivery.event)
    return UnsettledRun(found, last[0] if last else None)


def _decoded(
    connection: sqlite3.Connection, query: str, wanted: Sequence[Row], decoder: msgspec.json.Decoder[list[_T]]
) -> list[_T]:
    """Return the rows of a query that answers with one row of JSON."""
    return [row for (text,) in _find(connection, query, wanted, 2) for row in decoder.decode(text)]


def _find(connection: sqlite3.Connection, query: str, wanted: Sequence[Row], width: int) -> list[Row]:
    found: list[Row] = []
    for start in range(0, len(wanted), _FOUND_AT_ONCE):
        chunk = list(wanted[start : start + _FOUND_AT_ONCE])
        if len(chunk) > _ROUND:
            # Found twice is found once, and few different sizes are few statements, which stay prepared.
            chunk += chunk[-1:] * (-len(chunk) % _ROUND)
        found += connection.execute(query.format(groups(len(chunk), width)), flat(chunk)).fetchall()
    return found
