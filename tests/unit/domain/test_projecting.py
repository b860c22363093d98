from collections import Counter
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from outbox.domain.deliveries import TRANSITIONS, Delivery, Effect, Move, Outcome, State
from outbox.domain.projecting import (
    EVENTS_COUNTER,
    PRUNED,
    PRUNED_EVENTS,
    Changes,
    EventRow,
    KeyRow,
    ReplayRow,
    WebhookRow,
    contributions,
    project,
    stands_alone,
    webhook_row,
)
from outbox.domain.records import (
    AttemptRecorded,
    BreakerMoved,
    Checkpoint,
    DeliveriesBuried,
    DeliveriesMoved,
    EventAccepted,
    MovedDelivery,
    OrderConverted,
    Record,
    ReplayAdvanced,
    ReplayRequested,
    WebhookCarried,
    WebhookDeleted,
    WebhookSet,
    WebhookSuspended,
)
from outbox.domain.replays import ReplayFilter
from outbox.domain.webhooks import Conversion, Settings

ID, DIGEST, KEY = b"i" * 16, b"d" * 32, b"k" * 16
ENDS = {Effect.ACKNOWLEDGE: State.ACKNOWLEDGED, Effect.BURY: State.DEAD, Effect.RETRY: State.PENDING}


def accepted(targets: tuple[int, ...] = (), idempotency: bytes = b"") -> EventAccepted:
    """An event at 1000 ms."""
    return EventAccepted(
        id=ID, at_ms=1000, kind="CALL", instance="shop", digest=DIGEST, size=2, ordering_key=-1, targets=targets,
        dated=True, hops=0, idempotency=idempotency,
    )  # fmt: skip


def attempted(effect: Effect, event: int = 5, webhook: int = 3) -> AttemptRecorded:
    """The fourth attempt, due again at 7000 ms."""
    return AttemptRecorded(
        event=event, webhook=webhook, attempt=4, at_ms=2000, took_ms=9, status=None, error="timeout", detail="",
        excerpt=b"", effect=effect, charged=2, due_ms=7000, reason="",
    )  # fmt: skip


def webhook_set(number: int) -> WebhookSet:
    """A setting at 1000 ms, the first one where the number is 0."""
    return WebhookSet(
        webhook=number, at_ms=1000, scope="instance", instance="shop", name="n8n", settings=Settings(url="http://h"),
        source="environment", secret=b"s", fingerprint=b"f",
    )  # fmt: skip


def changes_of(*records: tuple[int, Record]) -> dict[str, object]:
    """Everything that changed: what is left out of an expectation would be a change too many."""
    changes = Changes()
    for seq, record in records:
        project(seq, record, changes)
    return {name: found for name in Changes.__slots__ if (found := getattr(changes, name))}


def test_no_record_changes_nothing() -> None:
    """Changes start empty."""
    assert changes_of() == {}


def test_an_accepted_event_is_a_row_and_a_count() -> None:
    """An event that reaches nobody is an event all the same."""
    assert changes_of((8, accepted())) == {
        "events": [EventRow(seq=8, id=ID, kind="CALL", instance="shop", accepted_ms=1000)],
        "counters": Counter({EVENTS_COUNTER: 1}),
    }


def test_an_accepted_event_is_pending_for_each_of_its_targets() -> None:
    """Each delivery is due at once, with no attempt made."""
    changes = changes_of((8, accepted((3, 7))))
    assert changes["deliveries"] == [
        Delivery(webhook=number, event=8, state=State.PENDING, due_ms=1000, attempts=0, charged=0, since_ms=1000)
        for number in (3, 7)
    ]
    assert changes["counters"] == Counter({EVENTS_COUNTER: 1, (3, State.PENDING): 1, (7, State.PENDING): 1})


def test_a_key_leads_to_its_event() -> None:
    """An idempotency key is kept with the seq of the event that was accepted under it."""
    assert changes_of((8, accepted(idempotency=KEY)))["keys"] == [KeyRow(key=KEY, event=8)]


def test_a_retry_moves_the_due_time() -> None:
    """The delivery stays pending: no counter changes."""
    assert changes_of((9, attempted(Effect.RETRY))) == {
        "outcomes": [Outcome(webhook=3, event=5, state=State.PENDING, due_ms=7000, attempts=4, charged=2)]
    }


@pytest.mark.parametrize("effect", [Effect.ACKNOWLEDGE, Effect.BURY])
def test_an_end_moves_one_delivery_between_counters(effect: Effect) -> None:
    """From pending to its end, with what the attempt recorded."""
    assert changes_of((9, attempted(effect))) == {
        "outcomes": [Outcome(webhook=3, event=5, state=ENDS[effect], due_ms=7000, attempts=4, charged=2)],
        "counters": Counter({(3, State.PENDING): -1, (3, ENDS[effect]): 1}),
    }


def test_a_late_outcome_changes_nothing() -> None:
    """It is a fact of the log alone."""
    assert changes_of((9, attempted(Effect.LATE))) == {}


@pytest.mark.parametrize(("number", "row_number"), [(0, 8), (3, 3)])
def test_a_webhooks_row_is_what_was_set(number: int, row_number: int) -> None:
    """The first record gives the number by its own seq; later ones name it."""
    row = WebhookRow(
        number=row_number, scope="instance", instance="shop", name="n8n",
        settings=msgspec.msgpack.encode(Settings(url="http://h")), source="environment", secret=b"s", fingerprint=b"f",
        created_ms=1000, updated_ms=1000, deleted_ms=None,
    )  # fmt: skip
    assert webhook_row(8, webhook_set(number)) == row
    assert changes_of((8, webhook_set(number))) == {"webhooks": [row]}


@given(st.builds(Settings, url=st.text(), events=st.lists(st.text()).map(tuple), concurrency=st.integers(1, 1000)))
def test_settings_come_back_from_their_row(settings: Settings) -> None:
    """The row keeps them whole."""
    row = webhook_row(1, structs.replace(webhook_set(0), settings=settings))
    assert msgspec.msgpack.decode(row.settings, type=Settings) == settings


def test_a_deletion_is_dated() -> None:
    """The row of the webhook stays, as a tombstone."""
    assert changes_of((9, WebhookDeleted(webhook=3, at_ms=4000))) == {"marks": [(3, {"deleted_ms": 4000})]}


def test_a_burial_is_a_range_and_counts() -> None:
    """What was pending or waiting is dead."""
    buried = DeliveriesBuried(webhook=3, first=1, last=900, at_ms=4000, reason="deleted", pending=5, waiting=2)
    assert changes_of((9, buried)) == {
        "buried": [(3, 1, 900)],
        "counters": Counter({(3, State.PENDING): -5, (3, State.WAITING): -2, (3, State.DEAD): 7}),
    }


def test_a_head_is_a_row_that_waits_until_its_record_has_its_turn() -> None:
    """The head before it may be settled by an earlier outcome: row by row, no queue ever has two."""
    record = structs.replace(accepted((3, 7, 9)), queued=((7, -5, True), (9, 6, False)))
    assert changes_of((8, record)) == {
        "events": [EventRow(seq=8, id=ID, kind="CALL", instance="shop", accepted_ms=1000)],
        "deliveries": [
            Delivery(webhook=3, event=8, state=State.PENDING, due_ms=1000, attempts=0, charged=0, since_ms=1000),
            Delivery(7, 8, State.WAITING, 1000, 0, 0, queue=-5, since_ms=1000),
            Delivery(9, 8, State.WAITING, 1000, 0, 0, queue=6, since_ms=1000),
        ],
        "outcomes": [Outcome(webhook=9, event=8, state=State.PENDING, due_ms=1000, attempts=0, charged=0)],
        "counters": Counter({EVENTS_COUNTER: 1, (3, State.PENDING): 1, (7, State.WAITING): 1, (9, State.PENDING): 1}),
    }


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("effect", [effect for effect in Effect if effect is not Effect.LATE])
def test_an_outcome_goes_by_the_transitions(effect: Effect, waiting: bool) -> None:  # noqa: FBT001
    """From pending or waiting; the counters move only if the state does."""
    before = State.WAITING if waiting else State.PENDING
    after = TRANSITIONS[before, effect]
    changes = changes_of((9, structs.replace(attempted(effect), waiting=waiting)))
    assert changes["outcomes"] == [Outcome(3, 5, after, 7000, 4, 2)]
    moved = Counter({(3, before): -1, (3, after): 1}) if after is not before else None
    assert changes.get("counters") == moved


def test_the_next_of_a_queue_goes_when_its_head_is_settled() -> None:
    """After the head's own outcome; it is due when the attempt had ended, and its attempts go on counting."""
    record = structs.replace(attempted(Effect.ACKNOWLEDGE), promoted=(6, 12, 3))
    assert changes_of((9, record)) == {
        "outcomes": [Outcome(3, 5, State.ACKNOWLEDGED, 7000, 4, 2), Outcome(3, 6, State.PENDING, 2009, 12, 3)],
        "counters": Counter({(3, State.PENDING): 0, (3, State.ACKNOWLEDGED): 1, (3, State.WAITING): -1}),
    }


def test_moved_rows_are_whole() -> None:
    """A new one adds to a counter, the others move between two."""
    rows = (
        MovedDelivery(5, State.PENDING, State.WAITING, 7000, 4, 2, -9, 500),
        MovedDelivery(6, State.WAITING, State.PENDING, 7001, 0, 0, None, 501),
        MovedDelivery(7, State.PENDING, State.DEAD, 7002, 1, 1, None, 502),
        MovedDelivery(8, None, State.PENDING, 7003, 0, 0, None, 503),
    )
    assert changes_of((9, DeliveriesMoved(3, 4000, Move.CONVERT, rows))) == {
        "moved": [
            Delivery(3, 5, State.WAITING, 7000, 4, 2, -9, 500),
            Delivery(3, 6, State.PENDING, 7001, 0, 0, None, 501),
            Delivery(3, 7, State.DEAD, 7002, 1, 1, None, 502),
            Delivery(3, 8, State.PENDING, 7003, 0, 0, None, 503),
        ],
        "counters": Counter({(3, State.PENDING): 0, (3, State.WAITING): 0, (3, State.DEAD): 1}),
    }


def test_a_setting_says_how_things_stand_after_it() -> None:
    """Held times, breaker and conversion are the record's; a suspension is over."""
    record = structs.replace(webhook_set(3), held=((1, 2), (5, 0)), opened_ms=77, conversion=Conversion(1, 40, 50))
    row = webhook_row(8, record)
    assert msgspec.msgpack.decode(row.held) == [[1, 2], [5, 0]]
    assert (row.suspended_ms, row.opened_ms, row.phase, row.position, row.until) == (0, 77, 1, 40, 50)


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (WebhookDeleted(3, 4000), {"deleted_ms": 4000}),
        (
            WebhookSuspended(3, 4000, 5, ((1, 2), (4000, 0))),
            {"suspended_ms": 4000, "held": msgspec.msgpack.encode(((1, 2), (4000, 0)))},
        ),
        (BreakerMoved(3, 4000, opened=True, reason="why"), {"opened_ms": 4000}),
        (BreakerMoved(3, 4000, opened=False, reason="why"), {"opened_ms": 0}),
        (OrderConverted(3, 4000, Conversion(2, -7, 50)), {"phase": 2, "position": -7, "until": 50}),
    ],
    ids=["deleted", "suspended", "opened", "closed", "converted"],
)
def test_a_mark_changes_fields_of_a_webhooks_row(record: Record, fields: dict[str, object]) -> None:
    """And nothing else: settings, counters and deliveries stay."""
    assert changes_of((9, record)) == {"marks": [(3, fields)]}
    assert fields.keys() <= set(WebhookRow._fields)


def test_only_rows_that_others_change_too_stand_alone() -> None:
    """What is applied after all outcomes of a page, or keeps a row's creation, is not mixed with what comes before."""
    alone = {kind for kind in get_args(Record) if stands_alone(kind(*[None] * len(kind.__struct_fields__)))}
    assert alone == {Checkpoint, DeliveriesBuried, DeliveriesMoved, WebhookCarried, WebhookSet}


def test_a_replay_is_a_row_that_says_how_far_it_has_come() -> None:
    """Every record of it gives the whole row; the number is the seq of the request."""
    requested = ReplayRequested(1000, ReplayFilter(state="dead"), None, 9)
    advanced = ReplayAdvanced(12, 2000, 3, 5, replayed=4, skipped=1, next_ms=3000, finished=True)
    assert changes_of((12, requested), (14, advanced)) == {
        "replays": [ReplayRow(12, 0, 0, 0, 0, 0, 1000, 0), ReplayRow(12, 3, 5, 4, 1, 3000, 2000, 1)]
    }


def test_a_carried_webhook_is_a_whole_row() -> None:
    """As it stood: what later records had made of the setting is in it too."""
    carried = WebhookCarried(
        webhook=3, at_ms=9000, scope="instance", instance="shop", name="n8n", settings=Settings(url="http://h"),
        source="environment", secret=b"s", fingerprint=b"f", created_ms=1000, updated_ms=2000, deleted_ms=0,
        suspended_ms=4000, held=((4000, 0),), opened_ms=77, conversion=Conversion(1, 40, 50),
    )  # fmt: skip
    row = webhook_row(3, webhook_set(3))._replace(
        created_ms=1000, updated_ms=2000, suspended_ms=4000, held=msgspec.msgpack.encode(((4000, 0),)), opened_ms=77,
        phase=1, position=40, until=50,
    )  # fmt: skip
    assert changes_of((9, carried)) == {"carried": [row]}
    assert changes_of((9, structs.replace(carried, deleted_ms=5000))) == {"carried": [row._replace(deleted_ms=5000)]}


CUT = Checkpoint(
    at_ms=9000, first=1, last=8, floor=6, chain=DIGEST, kept=(), deliveries=(), keys=(), events=2,
    counters=((*EVENTS_COUNTER, 5), (3, State.DEAD, 4)),
    pruned=((3, State.ACKNOWLEDGED, 2), (4, State.DEAD, 1)),
)  # fmt: skip
GONE = {
    EVENTS_COUNTER: -2, PRUNED_EVENTS: 2,
    (3, State.ACKNOWLEDGED): -2, PRUNED[State.ACKNOWLEDGED]: 2, (4, State.DEAD): -1, PRUNED[State.DEAD]: 1,
}  # fmt: skip


def test_a_checkpoint_counts_what_is_gone() -> None:
    """Where it lived no longer, and among what was pruned; one that takes no event away counts nothing."""
    assert changes_of((9, CUT)) == {"checkpoints": [CUT], "counters": Counter(GONE)}
    bare = structs.replace(CUT, events=0, pruned=())
    assert changes_of((9, bare)) == {"checkpoints": [bare]}


def test_a_fold_without_a_checkpoints_record_begins_with_its_counters() -> None:
    """What it says had been counted before comes on top of what it changes; any other record gives what it changes."""
    assert contributions(9, CUT) == Counter({**GONE, EVENTS_COUNTER: 3, (3, State.DEAD): 4})
    assert contributions(9, accepted((3,))) == Counter({EVENTS_COUNTER: 1, (3, State.PENDING): 1})


@given(
    st.lists(st.sets(st.integers(1, 4)), max_size=6),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4), st.sampled_from(Effect)), max_size=20),
)
def test_counters_count_the_rows(targets: list[set[int]], attempts: list[tuple[int, int, Effect]]) -> None:
    """After any run of events and outcomes, the counters equal a count of the deliveries in each state."""
    changes = Changes()
    states: dict[tuple[int, int], State] = {}
    for seq, webhooks in enumerate(targets, 1):
        project(seq, accepted(tuple(sorted(webhooks))), changes)
        states |= {(webhook, seq): State.PENDING for webhook in webhooks}
    for event, webhook, effect in attempts:
        if states.get((webhook, event)) is State.PENDING:
            project(99, attempted(effect, event, webhook), changes)
            states[webhook, event] = ENDS.get(effect, State.PENDING)
    expected = Counter((webhook, int(state)) for (webhook, _), state in states.items())
    expected[EVENTS_COUNTER] = len(targets)
    assert +changes.counters == +expected
    assert min(changes.counters.values(), default=0) >= 0
    rows = {(row.webhook, row.event): row.state for row in changes.deliveries}
    rows |= {(row.webhook, row.event): row.state for row in changes.outcomes}
    assert rows == states
