"""What a record does to the projections: pure, and shared by all stores and by rebuild and verify.

A record holds every decision it stands for, so a projection never has to look at what was there before: each record
yields whole rows (or a range of them), and differences of counters.
"""

from collections import Counter
from typing import NamedTuple, assert_never

import msgspec

from outbox.domain.deliveries import TRANSITIONS, Delivery, Effect, State
from outbox.domain.records import (
    AttemptRecorded,
    DeliveriesBuried,
    EventAccepted,
    Record,
    WebhookDeleted,
    WebhookSet,
)  # fmt: skip

EVENTS_COUNTER = (0, -1)


class EventRow(NamedTuple):
    """One row of the projection `event`."""

    seq: int
    id: bytes
    kind: str
    instance: str
    accepted_ms: int


class KeyRow(NamedTuple):
    """One row of the projection `idempotency`: the latest event that was accepted under a key."""

    key: bytes
    event: int


class WebhookRow(NamedTuple):
    """One row of the projection `webhook`; `settings` is msgpack, `deleted_ms` None while it lives."""

    number: int
    scope: str
    instance: str
    name: str
    settings: bytes
    source: str
    secret: bytes
    fingerprint: bytes
    created_ms: int
    updated_ms: int
    deleted_ms: int | None


class Changes:
    """The row changes of a run of records, in an order-free form: every list touches other rows or is applied last.

    `deliveries` are new rows, `outcomes` replace rows, `buried` are ranges (webhook, first event, last event) applied
    after both; `counters` maps (webhook, state), or EVENTS_COUNTER, to a difference.
    """

    __slots__ = ("buried", "counters", "deleted", "deliveries", "events", "keys", "outcomes", "webhooks")

    def __init__(self) -> None:
        """Start with no change."""
        self.events: list[EventRow] = []
        self.keys: list[KeyRow] = []
        self.deliveries: list[Delivery] = []
        self.outcomes: list[Delivery] = []
        self.buried: list[tuple[int, int, int]] = []
        self.webhooks: list[WebhookRow] = []
        self.deleted: list[tuple[int, int]] = []
        self.counters: Counter[tuple[int, int]] = Counter()


def project(seq: int, record: Record, changes: Changes) -> None:
    """Add to `changes` what the record with that `seq` does."""
    match record:
        case EventAccepted():
            _accepted(seq, record, changes)
        case AttemptRecorded():
            _attempted(record, changes)
        case WebhookSet():
            changes.webhooks.append(webhook_row(seq, record))
        case WebhookDeleted():
            changes.deleted.append((record.webhook, record.at_ms))
        case DeliveriesBuried():
            changes.buried.append((record.webhook, record.first, record.last))
            changes.counters[record.webhook, State.PENDING] -= record.pending
            changes.counters[record.webhook, State.WAITING] -= record.waiting
            changes.counters[record.webhook, State.DEAD] += record.pending + record.waiting
        case _:
            assert_never(record)


def _accepted(seq: int, record: EventAccepted, changes: Changes) -> None:
    # A named tuple's own constructor takes three times as long, and these are made for every event.
    at_ms = record.at_ms
    changes.events.append(tuple.__new__(EventRow, (seq, record.id, record.kind, record.instance, at_ms)))
    changes.counters[EVENTS_COUNTER] += 1
    if record.idempotency:
        changes.keys.append(KeyRow(record.idempotency, seq))
    for webhook in record.targets:
        changes.deliveries.append(tuple.__new__(Delivery, (webhook, seq, 0, at_ms, 0, 0)))
        changes.counters[webhook, 0] += 1


def _attempted(record: AttemptRecorded, changes: Changes) -> None:
    if record.effect is Effect.LATE:
        return
    after = TRANSITIONS[State.PENDING, record.effect]
    changes.outcomes.append(
        Delivery(record.webhook, record.event, int(after), record.due_ms, record.attempt, record.charged)
    )
    if after is not State.PENDING:
        changes.counters[record.webhook, 0] -= 1
        changes.counters[record.webhook, int(after)] += 1


def webhook_row(seq: int, record: WebhookSet) -> WebhookRow:
    """Return the row that a WebhookSet with that `seq` stands for; a store keeps `created_ms` where a row exists."""
    return WebhookRow(
        number=record.webhook or seq,
        scope=record.scope,
        instance=record.instance,
        name=record.name,
        settings=msgspec.msgpack.encode(record.settings),
        source=record.source,
        secret=record.secret,
        fingerprint=record.fingerprint,
        created_ms=record.at_ms,
        updated_ms=record.at_ms,
        deleted_ms=None,
    )
