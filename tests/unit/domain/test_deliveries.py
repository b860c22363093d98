import pytest

from outbox.domain.deliveries import TRANSITIONS, Effect, State


def test_the_stored_numbers_of_states_are_fixed() -> None:
    """Rows hold these numbers: a new state gets a new number."""
    assert {state.name: state.value for state in State} == {"PENDING": 0, "WAITING": 1, "ACKNOWLEDGED": 2, "DEAD": 3}


def test_the_recorded_numbers_of_effects_are_fixed() -> None:
    """The log holds these numbers: a new effect gets a new number."""
    assert {effect.name: effect.value for effect in Effect} == {
        "LATE": 0,
        "RETRY": 1,
        "ACKNOWLEDGE": 2,
        "BURY": 3,
        "SUSPEND": 4,
    }


@pytest.mark.parametrize(
    ("state", "word", "settled"),
    [
        (State.PENDING, "pending", False),
        (State.WAITING, "waiting", False),
        (State.ACKNOWLEDGED, "acknowledged", True),
        (State.DEAD, "dead", True),
    ],
)
def test_a_state_has_a_word_and_is_an_end_or_not(state: State, word: str, settled: bool) -> None:  # noqa: FBT001
    """Acknowledged and dead are the two ends of a delivery."""
    assert state.word == word
    assert state.settled is settled


@pytest.mark.parametrize(
    ("effect", "after"),
    [(Effect.RETRY, State.PENDING), (Effect.ACKNOWLEDGE, State.ACKNOWLEDGED), (Effect.BURY, State.DEAD)],
)
def test_an_attempts_effect_moves_a_pending_delivery(effect: Effect, after: State) -> None:
    """Only these three effects move anything, each to one state."""
    assert TRANSITIONS[State.PENDING, effect] is after


def test_no_attempt_moves_a_settled_delivery() -> None:
    """An end is an end for every outcome, and a late outcome moves nothing at all."""
    assert not [(state, effect) for state, effect in TRANSITIONS if state.settled or effect is Effect.LATE]
