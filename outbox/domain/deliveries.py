"""A delivery: the duty to get one event to one webhook. Its states, and the one table of legal transitions.

```
              retry                          replay
             .-----.                 .-----------------------.
             v     |                 v                       |
(accepted) pending +--- acknowledged |                       |
             |     '--- dead --------+-----------------------'
             ^
          waiting      (behind an earlier delivery of the same key, where a webhook asks for order)
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


TRANSITIONS: dict[tuple[State, Effect], State] = {
    (State.PENDING, Effect.RETRY): State.PENDING,
    (State.PENDING, Effect.ACKNOWLEDGE): State.ACKNOWLEDGED,
    (State.PENDING, Effect.BURY): State.DEAD,
}


class Delivery(NamedTuple):
    """One row of the projection `delivery`.

    `event` is the seq of the event's record, `webhook` the webhook's number; `due_ms` (since the epoch, UTC) is when a
    pending one may be attempted; `attempts` counts the POSTs made, `charged` those that use up the budget of attempts.
    """

    webhook: int
    event: int
    state: int
    due_ms: int
    attempts: int
    charged: int
