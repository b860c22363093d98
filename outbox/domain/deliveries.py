"""A delivery: the duty to get one event to one webhook. Its states, and the tables of legal transitions.

```
              retry                          reopen
             .-----.                 .-----------------------.
             v     |                 v                       |
(accepted) pending +--- acknowledged |                       |
             |  ^  '--- dead --------+-----------------------'
     convert v  | promote
          waiting      (behind an earlier delivery of the same queue, where a webhook asks for order)
```
"""

from enum import IntEnum
from typing import NamedTuple


class State(IntEnum):
    """The stored states. `held` is not one: it is how pending and waiting read while their webhook is off."""

    PENDING = 0
    WAITING = 1
    ACKNOWLEDGED = 2
    DEAD = 3

    @property
    def settled(self) -> bool:
        """Whether the delivery has reached its end."""
        return self >= State.ACKNOWLEDGED

    @property
    def word(self) -> str:
        """The name that API, CLI and log write."""
        return self.name.lower()


class Effect(IntEnum):
    """What an attempt's outcome did to its delivery, as decided inside the commit."""

    LATE = 0
    RETRY = 1
    ACKNOWLEDGE = 2
    BURY = 3
    SUSPEND = 4


class Move(IntEnum):
    """What happens to deliveries without an attempt, chunk by chunk."""

    ADD = 0
    REOPEN = 1
    CONVERT = 2
    PROMOTE = 3
    EXPIRE = 4


TRANSITIONS: dict[tuple[State, Effect], State] = {
    (State.PENDING, Effect.RETRY): State.PENDING,
    (State.PENDING, Effect.ACKNOWLEDGE): State.ACKNOWLEDGED,
    (State.PENDING, Effect.BURY): State.DEAD,
    (State.PENDING, Effect.SUSPEND): State.PENDING,
    # An attempt that was in flight when its delivery was put behind another one.
    (State.WAITING, Effect.RETRY): State.WAITING,
    (State.WAITING, Effect.ACKNOWLEDGE): State.ACKNOWLEDGED,
    (State.WAITING, Effect.BURY): State.DEAD,
    (State.WAITING, Effect.SUSPEND): State.WAITING,
}

EXPIRED = "expired"
"""The reason of deliveries that have become too old."""

_UNSETTLED = frozenset({State.PENDING, State.WAITING})
_ANY = frozenset(State)

STORED: dict[str, frozenset[State]] = {
    "pending": frozenset({State.PENDING}),
    "waiting": frozenset({State.WAITING}),
    "held": _UNSETTLED,
    "acknowledged": frozenset({State.ACKNOWLEDGED}),
    "dead": frozenset({State.DEAD}),
}
"""The stored states of deliveries by the words that they read as; pending and waiting read as held where they are."""

MOVES: dict[Move, tuple[frozenset[State], frozenset[State]]] = {
    Move.ADD: (frozenset(), _UNSETTLED),
    Move.REOPEN: (_ANY, _UNSETTLED),
    Move.CONVERT: (_UNSETTLED, _UNSETTLED),
    Move.PROMOTE: (frozenset({State.WAITING}), frozenset({State.PENDING})),
    Move.EXPIRE: (_UNSETTLED, frozenset({State.DEAD, State.PENDING})),
}
"""From which states a move may take a delivery, and to which. One that expires may let the next of its queue go."""


class Delivery(NamedTuple):
    """One row of the projection `delivery`.

    `event` is the seq of the event's record, `webhook` the webhook's number; `due_ms` (since the epoch, UTC) is when a
    pending one may be attempted; `attempts` counts the POSTs made, `charged` those that use up the budget of attempts.
    `queue` is the 64-bit key of those that go one at a time, in order of `event`; None where there is no order.
    `since_ms` is from when its age counts: its acceptance, or its last replay.
    """

    webhook: int
    event: int
    state: int
    due_ms: int
    attempts: int
    charged: int
    queue: int | None = None
    since_ms: int = 0


class Outcome(NamedTuple):
    """What changes in a row of `delivery` when an attempt has come to its end; the rest of the row stays."""

    webhook: int
    event: int
    state: int
    due_ms: int
    attempts: int
    charged: int
