"""What a record does to the projections: pure, and shared by all stores and by rebuild and verify.

A record holds every decision it stands for, so a projection never has to look at what was there before: each record
yields whole rows (or a range of them), and differences of counters.
"""

from collections import Counter
from typing import NamedTuple, assert_never

import msgspec

from outbox.domain.deliveries import TRANSITIONS, Delivery, Effect, Outcome, State
from outbox.domain.records import (
    AttemptRecorded,
    BreakerMoved,
    Checkpoint,
    DeliveriesBuried,
    DeliveriesMoved,
    EventAccepted,
    OrderConverted,
    Record,
    ReplayAdvanced,
    ReplayRequested,
    WebhookCarried,
    WebhookDeleted,
    WebhookSet,
    WebhookSuspended,
)

EVENTS_COUNTER = (0, -1)
PRUNED_EVENTS = (0, -2)
PRUNED = {State.ACKNOWLEDGED: (0, -3), State.DEAD: (0, -4)}
# Members of enumerations are hashed by Python code, which takes longer than the look-up.
_AFTER = {(int(before), int(effect)): int(after) for (before, effect), after in TRANSITIONS.items()}
NEVER_HELD = msgspec.msgpack.encode(())


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
    """One row of the projection `webhook`; `settings` and `held` are msgpack, `deleted_ms` is None while it lives.

    `suspended_ms` and `opened_ms` are 0 where it is not suspended and its breaker is closed; `phase`, `position` and
    `until` are how far a change of its order has come.
    """

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
    suspended_ms: int = 0
    held: bytes = NEVER_HELD
    opened_ms: int = 0
    phase: int = 0
    position: int = 0
    until: int = 0


class ReplayRow(NamedTuple):
    """One row of the projection `replay`: how far the replay with that number has come, and when that was."""

    number: int
    webhook: int
    event: int
    replayed: int
    skipped: int
    next_ms: int
    updated_ms: int
    finished: int


class Changes:
    """The row changes of a run of records, in an order-free form: every list touches other rows or is applied last.

    `deliveries` are new rows; `outcomes` change rows, in order; `buried` are ranges (webhook, first event, last event);
    `moved` are whole rows, in order. They are applied in this sequence. A new head of a queue is a new row that waits,
    and an outcome that makes it pending: its turn comes where its record stands, when the head before it is settled.
    `marks` are the changes of webhooks' rows: number, and field with its new value; `replays` are whole rows, in order.
    `checkpoints` take rows of a range of events away, and restate those that stay; `carried` are whole rows.
    `counters` maps (webhook, state), or EVENTS_COUNTER, to a difference; what was pruned is counted under PRUNED_EVENTS
    and PRUNED.
    """

    __slots__ = (
        "buried", "carried", "checkpoints", "counters", "deliveries", "events", "keys", "marks", "moved", "outcomes",
        "replays", "webhooks",
    )  # fmt: skip

    def __init__(self) -> None:
        """Start with no change."""
        self.events: list[EventRow] = []
        self.keys: list[KeyRow] = []
        self.deliveries: list[Delivery] = []
        self.outcomes: list[Outcome] = []
        self.buried: list[tuple[int, int, int]] = []
        self.moved: list[Delivery] = []
        self.webhooks: list[WebhookRow] = []
        self.marks: list[tuple[int, dict[str, int | bytes]]] = []
        self.replays: list[ReplayRow] = []
        self.carried: list[WebhookRow] = []
        self.checkpoints: list[Checkpoint] = []
        self.counters: Counter[tuple[int, int]] = Counter()


def stands_alone(record: Record) -> bool:
    """Say whether what came before `record` must be written before it, since it may change the same rows again."""
    return isinstance(record, DeliveriesBuried | DeliveriesMoved | WebhookSet | WebhookCarried | Checkpoint)


def project(seq: int, record: Record, changes: Changes) -> None:
    """Add to `changes` what the record with that `seq` does."""
    match record:
        case EventAccepted():
            _accepted(seq, record, changes)
        case AttemptRecorded():
            _attempted(record, changes)
        case DeliveriesMoved():
            _moved(record, changes)
        case DeliveriesBuried():
            changes.buried.append((record.webhook, record.first, record.last))
            changes.counters[record.webhook, State.PENDING] -= record.pending
            changes.counters[record.webhook, State.WAITING] -= record.waiting
            changes.counters[record.webhook, State.DEAD] += record.pending + record.waiting
        case WebhookSet():
            changes.webhooks.append(webhook_row(seq, record))
        case ReplayRequested() | ReplayAdvanced():
            changes.replays.append(replay_row(seq, record))
        case Checkpoint():
            _cut(record, changes)
        case WebhookCarried():
            changes.carried.append(carried_row(record))
        case _:
            changes.marks.append((record.webhook, _mark(record)))


def _accepted(seq: int, record: EventAccepted, changes: Changes) -> None:
    # A named tuple's own constructor takes three times as long, and these are made for every event.
    at_ms = record.at_ms
    changes.events.append(tuple.__new__(EventRow, (seq, record.id, record.kind, record.instance, at_ms)))
    changes.counters[EVENTS_COUNTER] += 1
    if record.idempotency:
        changes.keys.append(KeyRow(record.idempotency, seq))
    if record.queued:
        _queued(seq, record, changes)
        return
    for webhook in record.targets:
        changes.deliveries.append(tuple.__new__(Delivery, (webhook, seq, 0, at_ms, 0, 0, None, at_ms)))
        changes.counters[webhook, 0] += 1


def _queued(seq: int, record: EventAccepted, changes: Changes) -> None:
    queued = {webhook: (queue, waits) for webhook, queue, waits in record.queued}
    at_ms = record.at_ms
    for webhook in record.targets:
        queue, waits = queued.get(webhook, (None, False))
        first = int(State.PENDING if queue is None else State.WAITING)
        changes.deliveries.append(Delivery(webhook, seq, first, at_ms, 0, 0, queue, at_ms))
        if queue is not None and not waits:
            changes.outcomes.append(Outcome(webhook, seq, int(State.PENDING), at_ms, 0, 0))
        changes.counters[webhook, int(State.WAITING if waits else State.PENDING)] += 1


def _attempted(record: AttemptRecorded, changes: Changes) -> None:
    if record.effect is Effect.LATE:
        return
    before = int(record.waiting)
    after = _AFTER[before, int(record.effect)]
    webhook = record.webhook
    changes.outcomes.append(
        tuple.__new__(Outcome, (webhook, record.event, after, record.due_ms, record.attempt, record.charged))
    )
    if after != before:
        changes.counters[webhook, before] -= 1
        changes.counters[webhook, after] += 1
    if record.promoted is not None:
        event, attempts, charged = record.promoted
        due_ms = record.at_ms + record.took_ms
        changes.outcomes.append(Outcome(webhook, event, int(State.PENDING), due_ms, attempts, charged))
        changes.counters[webhook, int(State.WAITING)] -= 1
        changes.counters[webhook, int(State.PENDING)] += 1


def _moved(record: DeliveriesMoved, changes: Changes) -> None:
    for row in record.rows:
        changes.moved.append(Delivery(record.webhook, row.event, int(row.state), *row[3:]))
        if row.before is not None:
            changes.counters[record.webhook, int(row.before)] -= 1
        changes.counters[record.webhook, int(row.state)] += 1


def _cut(record: Checkpoint, changes: Changes) -> None:
    changes.checkpoints.append(record)
    if record.events:
        changes.counters[EVENTS_COUNTER] -= record.events
        changes.counters[PRUNED_EVENTS] += record.events
    for webhook, state, n in record.pruned:
        changes.counters[webhook, state] -= n
        changes.counters[PRUNED[State(state)]] += n


def contributions(seq: int, record: Record) -> Counter[tuple[int, int]]:
    """Return what a record of the chain adds to the counters, for those who fold without it from now on."""
    changes = Changes()
    project(seq, record, changes)
    if isinstance(record, Checkpoint):
        begin(record, changes)
    return changes.counters


def begin(record: Checkpoint, changes: Changes) -> None:
    """Add what had been counted before a checkpoint, for a fold that begins behind what it has cut away."""
    for webhook, state, n in record.counters:
        changes.counters[webhook, state] += n


def webhook_row(seq: int, record: WebhookSet | WebhookCarried) -> WebhookRow:
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
        suspended_ms=0,
        held=msgspec.msgpack.encode(record.held),
        opened_ms=record.opened_ms,
        phase=record.conversion.phase,
        position=record.conversion.position,
        until=record.conversion.until,
    )


def carried_row(record: WebhookCarried) -> WebhookRow:
    """Return the whole row that a WebhookCarried stands for, with what later records had made of it."""
    return webhook_row(record.webhook, record)._replace(
        created_ms=record.created_ms,
        updated_ms=record.updated_ms,
        deleted_ms=record.deleted_ms or None,
        suspended_ms=record.suspended_ms,
    )


def replay_row(seq: int, record: ReplayRequested | ReplayAdvanced) -> ReplayRow:
    """Return the row that a record of a replay, with that `seq`, stands for."""
    if isinstance(record, ReplayRequested):
        return ReplayRow(seq, 0, 0, 0, 0, 0, record.at_ms, 0)
    return ReplayRow(
        number=record.replay,
        webhook=record.webhook,
        event=record.event,
        replayed=record.replayed,
        skipped=record.skipped,
        next_ms=record.next_ms,
        updated_ms=record.at_ms,
        finished=int(record.finished),
    )


def _mark(record: WebhookDeleted | WebhookSuspended | BreakerMoved | OrderConverted) -> dict[str, int | bytes]:
    match record:
        case WebhookDeleted():
            return {"deleted_ms": record.at_ms}
        case WebhookSuspended():
            return {"suspended_ms": record.at_ms, "held": msgspec.msgpack.encode(record.held)}
        case BreakerMoved():
            return {"opened_ms": record.at_ms if record.opened else 0}
        case OrderConverted():
            return record.conversion._asdict()
        case _:
            assert_never(record)
