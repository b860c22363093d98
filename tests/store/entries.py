"""What the model of a store has in its dictionaries: webhooks, deliveries, events, replays."""

from dataclasses import dataclass
from typing import NamedTuple

from outbox.domain.holding import Interval
from outbox.domain.replays import Place, ReplayFilter
from outbox.domain.webhooks import Order
from tests.store.books import PENDING, WAITING, an_event

START_OF_REPLAYS = Place()


@dataclass
class Hook:
    """A webhook, and how far the change of its order has come."""

    number: int
    instance: str
    name: str
    created_ms: int
    enabled: bool = True
    order: Order = "none"
    revision: int = 0
    deleted_ms: int | None = None
    suspended_ms: int = 0
    opened_ms: int = 0
    held: tuple[Interval, ...] = ()
    phase: int = 0
    position: int = 0
    until: int = 0
    buried: int = 0

    def key(self, chat: str) -> int | None:
        """Return the key of the queue that an event of a chat stands in."""
        if self.order == "none":
            return None
        return an_event(self.instance, chat if self.order == "chat" else "").ordering_key


@dataclass
class Row:
    """A delivery."""

    state: int
    due_ms: int
    queue: int | None
    since_ms: int
    attempts: int = 0
    charged: int = 0

    @property
    def unsettled(self) -> bool:
        """Whether it has not come to its end."""
        return self.state in {PENDING, WAITING}


@dataclass
class Again:
    """A replay: what it is after, and how far it has come."""

    number: int
    wanted: ReplayFilter
    rate: float | None
    updated_ms: int
    place: Place = START_OF_REPLAYS
    replayed: int = 0
    skipped: int = 0
    next_ms: int = 0
    finished: bool = False


class Known(NamedTuple):
    """An event, when it was accepted, and if that was under a key, when that was first used."""

    instance: str
    chat: str
    at_ms: int
    keyed_ms: int | None
