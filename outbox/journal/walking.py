"""Walks down the deliveries, newest first: of one webhook, of the dead, or event by event.

Each walk is for one page: it looks at a bounded number of rows and then says that it is spent.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from msgspec import structs

from outbox.domain.deliveries import Delivery, State
from outbox.domain.records import UNREADABLE, EventAccepted, decode_or_blank
from outbox.store.protocol import EventFilter, FoundDelivery, Position, Reader

_EVENTS_AT_ONCE = 1000
_PAIRS_AT_ONCE = 1000
_ANY = EventFilter()


class Match(NamedTuple):
    """A delivery that is wanted, and the record of its event."""

    delivery: Delivery
    accepted: EventAccepted

    @property
    def seq(self) -> int:
        """The seq of its event."""
        return self.delivery.event

    @property
    def position(self) -> Position:
        """Where a walk that has come to it goes on."""
        return Position(self.delivery.event, self.delivery.webhook)


class Step(NamedTuple):
    """What a step found, where it has come to (None: to the end), and whether the walk has looked at enough."""

    found: list[Match]
    reached: Position | None
    spent: bool


class Walk(Protocol):
    """A way down the deliveries."""

    async def step(self, after: Position, rows: int) -> Step:
        """Go on from a position to find about so many `rows`."""


class WebhookWalk:
    """Down the deliveries of one webhook, by their primary key."""

    def __init__(self, reader: Reader, wanted: EventFilter, webhook: int, states: frozenset[State]) -> None:
        """Find those of `webhook` in `states`."""
        self._reader = reader
        self._wanted = wanted
        self._webhook = webhook
        self._states = sorted(states)

    async def step(self, after: Position, rows: int) -> Step:
        """See `Walk.step`."""
        # Of the event itself, a walk that went by all webhooks has seen those with a higher number.
        before = after.event + (self._webhook < after.webhook)
        found, reached, spent = await self._reader.deliveries_below(
            Position(before, self._webhook), self._states, self._wanted, rows
        )
        return Step(await _matches(self._reader, found), reached, spent)


class DeadWalk:
    """Down the dead deliveries, by an index of their own."""

    def __init__(self, reader: Reader, wanted: EventFilter, webhook: int | None) -> None:
        """Find those of `webhook`, or of all."""
        self._reader = reader
        self._wanted = wanted
        self._webhook = webhook

    async def step(self, after: Position, rows: int) -> Step:
        """See `Walk.step`."""
        found, reached, spent = await self._reader.dead_below(after, self._webhook, self._wanted, rows)
        return Step(await _matches(self._reader, found), reached, spent)


class EventWalk:
    """Down the events, looking up the deliveries that they may have."""

    def __init__(
        self,
        reader: Reader,
        wanted: EventFilter,
        webhooks: Callable[[EventAccepted], Iterable[int]],
        states: frozenset[State],
    ) -> None:
        """Find the deliveries in `states`, to those of the `webhooks` that may have one of an event."""
        self._reader = reader
        self._wanted = wanted
        self._webhooks = webhooks
        self._states = states
        self._floor: int | None = None

    @property
    def end(self) -> Position | None:
        """Where the walk is spent; None if it may see the end."""
        return Position(self._floor, 0) if self._floor else None

    async def events(self, before: int, limit: int) -> list[tuple[int, EventAccepted]]:
        """Return up to `limit` wanted events before a seq, none beyond where the walk is spent."""
        if self._floor is None:
            # Where all are wanted, the limit alone bounds what is looked at.
            self._floor = await self._reader.event_floor(before) if self._bounded else 0
        rows = await self._reader.events_between((self._floor, before), self._wanted, limit)
        return list((await read_events(self._reader, rows)).items())

    @property
    def _bounded(self) -> bool:
        return self._wanted != _ANY or bool(self._states)

    async def step(self, after: Position, rows: int) -> Step:
        """See `Walk.step`."""
        limit = rows if self._floor is None else _EVENTS_AT_ONCE
        events = await self.events(after.event + (after.webhook > 0), limit)
        records = dict(events)
        pairs = [
            (webhook, seq) for seq, accepted in events for webhook in self._webhooks(accepted) if (seq, webhook) < after
        ]
        deliveries = await look_up(self._reader, pairs)
        found = [Match(delivery, records[delivery.event]) for delivery in deliveries if delivery.state in self._states]
        found.sort(key=lambda match: match.position, reverse=True)
        if len(events) == limit:
            return Step(found, Position(events[-1][0], 0), spent=False)
        return Step(found, self.end, spent=True)


async def look_up(reader: Reader, pairs: Sequence[tuple[int, int]]) -> list[Delivery]:
    """Return the deliveries with those (webhook, event), however many."""
    found: list[Delivery] = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        found += await reader.deliveries(pairs[start : start + _PAIRS_AT_ONCE])
    return found


async def read_events(reader: Reader, found: Iterable[tuple[int, bytes]]) -> dict[int, EventAccepted]:
    """Return what records of events say, by seq; of those that cannot be read, what the table of events says."""
    events = {seq: decode_or_blank(record) for seq, record in found}
    damaged = [seq for seq, event in events.items() if event is UNREADABLE]
    for row in await reader.event_rows(damaged) if damaged else ():
        known = structs.replace(UNREADABLE, id=row.id, kind=row.kind, instance=row.instance, at_ms=row.accepted_ms)
        events[row.seq] = known
    return events


async def _matches(reader: Reader, found: list[FoundDelivery]) -> list[Match]:
    events = await read_events(reader, [(delivery.event, record) for delivery, record in found])
    return [Match(delivery, events[delivery.event]) for delivery, _ in found]
