from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.domain.deliveries import Delivery, Effect, Outcome, State
from outbox.domain.projecting import EVENTS_COUNTER, Changes, EventRow, KeyRow, WebhookRow, project, webhook_row
from outbox.domain.records import (
    AttemptRecorded,
    DeliveriesBuried,
    EventAccepted,
    Record,
    WebhookDeleted,
    WebhookSet,
)
from outbox.domain.webhooks import Settings

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
    row = webhook_row(1, msgspec.structs.replace(webhook_set(0), settings=settings))
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
