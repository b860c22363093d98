"""A replay: deliveries that are made due again, or added, by a filter. Which ones it reaches, and when they are due."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import Struct

from outbox.domain.deliveries import STORED, State
from outbox.domain.webhooks import Webhook

CHUNK = 250
"""The most deliveries that one commit of a replay changes: each is looked up, decided on and written meanwhile."""
SPAN_S = 10.0
"""The time over which a chunk is spread, at most, where a replay has a rate."""
END_OF_EVENTS = 2**63 - 1

_REDONE = frozenset(State) - {State.ACKNOWLEDGED}
_UNSETTLED_WORDS = frozenset({"pending", "waiting", "held"})


class ReplayFilter(Struct, frozen=True, kw_only=True):
    """What a replay is narrowed to; None means any.

    It stands in records, so every field is always written. `webhook` is a number, `event` the seq of one event,
    `state` a word that deliveries read as, `kind` canonical; events were accepted from `since_ms` on and before
    `until_ms`. `acknowledged` says that acknowledged deliveries go out again too. With `adds` it is not deliveries that
    are replayed, but events: the webhook gets those that it takes and has not got.
    """

    webhook: int | None = None
    event: int | None = None
    state: str | None = None
    kind: str | None = None
    instance: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    acknowledged: bool = False
    adds: bool = False

    @property
    def states(self) -> frozenset[State]:
        """The stored states of the deliveries that it may reach."""
        if self.state is not None:
            return STORED[self.state]
        return frozenset(State) if self.acknowledged else _REDONE

    def reaches(self, webhook: Webhook) -> bool:
        """Say whether deliveries of a live webhook, as it stands, may be among those it is after."""
        if self.webhook is not None and self.webhook != webhook.number:
            return False
        if self.instance is not None and webhook.scope == "instance" and webhook.instance != self.instance:
            return False
        return self.state not in _UNSETTLED_WORDS or webhook.holds == (self.state == "held")


class Place(NamedTuple):
    """How far a replay has come: through webhooks by number, and in each through events by seq, up to this one."""

    webhook: int = 0
    event: int = 0


def next_webhook(wanted: ReplayFilter, place: Place, webhooks: Iterable[Webhook], before: int) -> Webhook | None:
    """Return the webhook whose deliveries come after `place`, one with a number below `before`, or None."""
    following = (
        webhook
        for webhook in webhooks
        if Place(webhook.number, END_OF_EVENTS) > place and webhook.number < before and wanted.reaches(webhook)
    )
    return min(following, key=lambda webhook: webhook.number, default=None)


def chunk_size(rate: float | None) -> int:
    """Return how many deliveries a chunk has at most where so many a second become due (None: all at once)."""
    return CHUNK if rate is None else min(max(int(rate * SPAN_S), 1), CHUNK)


def due_times(rate: float | None, next_ms: int, now_ms: int) -> Iterator[int]:
    """Yield, for one delivery after the other, when it is due; with a rate none before `next_ms`."""
    start_ms = now_ms if rate is None else max(next_ms, now_ms)
    step_ms = 0.0 if rate is None else 1000 / rate
    count = 0
    while True:
        yield start_ms + round(count * step_ms)
        count += 1
