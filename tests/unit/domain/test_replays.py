from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from outbox.domain.deliveries import STORED, State
from outbox.domain.replays import (
    CHUNK,
    END_OF_EVENTS,
    SPAN_S,
    Place,
    ReplayFilter,
    chunk_size,
    due_times,
    next_webhook,
)
from outbox.domain.webhooks import Credentials, Settings, Webhook

PENDING, WAITING, ACKNOWLEDGED, DEAD = State


def webhook(number: int = 3, instance: str = "shop", *, enabled: bool = True) -> Webhook:
    """A webhook of an instance, or a global one."""
    return Webhook(
        number, "instance" if instance else "global", instance, "", Settings(url="http://h", enabled=enabled),
        Credentials(), "api", 0, 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "states"),
    [
        ({}, {PENDING, WAITING, DEAD}),
        ({"acknowledged": True}, {PENDING, WAITING, DEAD, ACKNOWLEDGED}),
        ({"state": "acknowledged"}, {ACKNOWLEDGED}),
        ({"state": "dead", "acknowledged": True}, {DEAD}),
        ({"state": "pending"}, {PENDING}),
        ({"state": "waiting"}, {WAITING}),
        ({"state": "held"}, {PENDING, WAITING}),
    ],
)
def test_acknowledged_deliveries_are_reached_only_if_told(wanted: dict[str, Any], states: set[State]) -> None:
    """Either by that word as the state, or by saying so."""
    assert ReplayFilter(**wanted).states == states


def test_every_word_for_a_state_has_stored_states() -> None:
    """And each stored state reads as a word of its own."""
    assert set(STORED) == {"pending", "waiting", "held", "acknowledged", "dead"}
    assert all(STORED[state.word] == {state} for state in State)


@pytest.mark.parametrize(
    ("wanted", "reached"),
    [
        (ReplayFilter(), True),
        (ReplayFilter(webhook=3), True),
        (ReplayFilter(webhook=4), False),
        (ReplayFilter(instance="shop"), True),
        (ReplayFilter(instance="other"), False),
        (ReplayFilter(state="pending"), True),
        (ReplayFilter(state="waiting"), True),
        (ReplayFilter(state="held"), False),
        (ReplayFilter(state="dead"), True),
    ],
)
def test_a_filter_reaches_a_webhook_or_does_not(wanted: ReplayFilter, *, reached: bool) -> None:
    """By its number, its instance, and whether it holds what is wanted."""
    assert wanted.reaches(webhook()) is reached
    unsettled = wanted.state in {"pending", "waiting", "held"}
    assert wanted.reaches(webhook(enabled=False)) is (reached is not unsettled)
    assert wanted.reaches(replace(webhook(), suspended_ms=1)) is (reached is not unsettled)


def test_a_global_webhook_may_have_events_of_any_instance() -> None:
    """So a filter on an instance reaches it."""
    assert ReplayFilter(instance="other").reaches(webhook(instance=""))


def test_a_replay_goes_from_webhook_to_webhook_by_number() -> None:
    """It stays at one until its events are at their end, passes over those it does not reach, and later ones."""
    webhooks = [webhook(9), webhook(3), webhook(5, enabled=False), webhook(7)]
    wanted = ReplayFilter(state="pending")

    def following(place: Place) -> int | None:
        found = next_webhook(wanted, place, webhooks, before=9)
        return None if found is None else found.number

    assert following(Place()) == 3
    assert following(Place(3, 17)) == 3
    assert following(Place(3, END_OF_EVENTS)) == 7
    assert following(Place(4, 17)) == 7
    assert following(Place(7, END_OF_EVENTS)) is None


@given(st.floats(0.001, 10_000))
def test_a_chunk_covers_ten_seconds_at_most(rate: float) -> None:
    """Or is a single delivery, where these come more seldom."""
    size = chunk_size(rate)
    assert 1 <= size <= CHUNK
    assert size == 1 or size / rate <= SPAN_S


def test_without_a_rate_chunks_are_full() -> None:
    """All at once, as fast as they can be recorded."""
    assert chunk_size(None) == CHUNK


@pytest.mark.parametrize(
    ("rate", "next_ms", "expected"),
    [
        (None, 9000, [1000, 1000, 1000]),
        (2.0, 0, [1000, 1500, 2000]),
        (2.0, 1200, [1200, 1700, 2200]),
        (1000.0, 0, [1000, 1001, 1002]),
        (3.0, 0, [1000, 1333, 1667]),
    ],
)
def test_due_times_are_spaced_by_the_rate(rate: float | None, next_ms: int, expected: list[int]) -> None:
    """They begin now, or where the chunk before ended."""
    assert list(islice(due_times(rate, next_ms, 1000), 3)) == expected
