import pytest

from outbox.domain.deliveries import MOVES, TRANSITIONS, Effect, Move, State

UNSETTLED, SETTLED = {State.PENDING, State.WAITING}, {State.ACKNOWLEDGED, State.DEAD}


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


def test_the_recorded_numbers_of_moves_are_fixed() -> None:
    """The log holds these numbers: a new move gets a new number."""
    assert {move.name: move.value for move in Move} == {
        "ADD": 0,
        "REOPEN": 1,
        "CONVERT": 2,
        "PROMOTE": 3,
        "EXPIRE": 4,
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


@pytest.mark.parametrize("state", sorted(UNSETTLED))
@pytest.mark.parametrize("effect", [effect for effect in Effect if effect is not Effect.LATE])
def test_an_attempts_effect_moves_an_unsettled_delivery(state: State, effect: Effect) -> None:
    """A success and a burial are ends, whether it was pending or waiting; anything else leaves it where it is."""
    ends = {Effect.ACKNOWLEDGE: State.ACKNOWLEDGED, Effect.BURY: State.DEAD}
    assert TRANSITIONS[state, effect] is ends.get(effect, state)


def test_no_attempt_moves_a_settled_delivery() -> None:
    """An end is an end for every outcome, and a late outcome moves nothing at all."""
    assert not [(state, effect) for state, effect in TRANSITIONS if state.settled or effect is Effect.LATE]


def test_every_move_says_from_where_to_where() -> None:
    """Only a replay leaves an end, and only an expiry leads to one, to death: success is for attempts."""
    assert MOVES.keys() == set(Move)
    assert {move for move, (before, _) in MOVES.items() if before & SETTLED} == {Move.REOPEN}
    assert {move: after & SETTLED for move, (_, after) in MOVES.items() if after & SETTLED} == {
        Move.EXPIRE: {State.DEAD}
    }
    assert [move for move, (before, _) in MOVES.items() if not before] == [Move.ADD]
    assert all(after & UNSETTLED for _, after in MOVES.values())
