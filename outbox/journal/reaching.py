"""The way of a replay: webhook after webhook, and in each event after event, in steps that look at so many rows.

Nothing is held open between steps, and nothing but the place is remembered: what a step has found is looked at again in
the commit that changes it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import anyio

from outbox.domain.records import EventAccepted, decode_or_blank
from outbox.domain.replays import END_OF_EVENTS, Place, ReplayFilter, next_webhook
from outbox.domain.routing import Webhooks
from outbox.domain.webhooks import Webhook
from outbox.journal.replaying import Candidate, Replay
from outbox.journal.replays import running_replays
from outbox.store.protocol import EventFilter, Reader, Span

COUNT_S = 5.0

_ANY = EventFilter()


class Found(NamedTuple):
    """An event whose delivery a step has found, by its seq."""

    seq: int
    event: EventAccepted


class Step(NamedTuple):
    """What a step has found for the webhook of `place`, which is where it has come to, and whether that is the end."""

    found: list[Found]
    place: Place
    finished: bool

    @property
    def candidates(self) -> list[Candidate]:
        """What was found, as a commit needs it."""
        return [Candidate(seq, event.instance, event.ordering_key) for seq, event in self.found]


class Ways:
    """Finds the ways of replays, with a reader of its own: what lanes claim never waits for it."""

    def __init__(self, reader: Reader) -> None:
        """Look with `reader`."""
        self._reader = reader

    async def running(self) -> tuple[list[Replay], list[int]]:
        """Return the replays that have not come to their end, the oldest first. Raises CorruptError."""
        return await running_replays(self._reader)

    async def bodies(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the bodies of events by seq; one that is gone is left out."""
        return await self._reader.bodies(seqs)

    async def step(
        self, wanted: ReplayFilter, place: Place, webhooks: Webhooks, *, before: int = END_OF_EVENTS, limit: int
    ) -> Step:
        """Go on from `place` to find up to `limit` events accepted before the seq `before`. Raises CorruptError."""
        webhook = _webhook(wanted, place, webhooks, before)
        if webhook is None:
            return Step([], place, finished=True)
        span, events = _span(wanted, place, webhook, before), _events(wanted, webhook)
        if not wanted.adds:
            found, reached = await self._reader.replayable(span, sorted(wanted.states), events, limit)
        elif (kinds := _kinds(wanted, webhook)) is None:
            found, reached = [], None
        else:
            found, reached = await self._reader.addable(span, kinds, events, limit)
        place = Place(webhook.number, END_OF_EVENTS if reached is None else reached)
        ended = reached is None and next_webhook(wanted, place, webhooks, before) is None
        return Step([Found(seq, decode_or_blank(record)) for seq, record in found], place, ended)

    async def end(self) -> int:
        """Return the seq that comes after the last record."""
        return (await self._reader.head()).seq + 1

    async def count(self, wanted: ReplayFilter, webhooks: Webhooks) -> int | None:
        """Return how many deliveries a replay of all until now would reach; None where counting takes too long."""
        if not wanted.adds and wanted.event is None and _events_alone(wanted) == _ANY:
            counters = await self._reader.counters()
            numbers = [webhook.number for webhook in webhooks if wanted.reaches(webhook)]
            return sum(counters.get((number, state), 0) for number in numbers for state in wanted.states)
        total, place = 0, Place()
        with anyio.move_on_after(COUNT_S):
            while (webhook := _webhook(wanted, place, webhooks, END_OF_EVENTS)) is not None:
                found, reached = await self._count_step(wanted, place, webhook)
                total += found
                place = Place(webhook.number, END_OF_EVENTS if reached is None else reached)
            return total
        return None

    async def _count_step(self, wanted: ReplayFilter, place: Place, webhook: Webhook) -> tuple[int, int | None]:
        span, events = _span(wanted, place, webhook, END_OF_EVENTS), _events(wanted, webhook)
        if not wanted.adds:
            return await self._reader.count_replayable(span, sorted(wanted.states), events)
        kinds = _kinds(wanted, webhook)
        return (0, None) if kinds is None else await self._reader.count_addable(span, kinds, events)


def _webhook(wanted: ReplayFilter, place: Place, webhooks: Webhooks, before: int) -> Webhook | None:
    """Return the webhook that the replay is at, or comes to."""
    known = webhooks.get(place.webhook) if place.event < END_OF_EVENTS else None
    if known is not None and wanted.reaches(known):
        return known
    return next_webhook(wanted, place, webhooks, before)


def _span(wanted: ReplayFilter, place: Place, webhook: Webhook, before: int) -> Span:
    after = place.event if place.webhook == webhook.number else 0
    if wanted.event is not None:
        after, before = max(after, wanted.event - 1), min(before, wanted.event + 1)
    return Span(webhook.number, after, before)


def _events_alone(wanted: ReplayFilter) -> EventFilter:
    return EventFilter(kind=wanted.kind, instance=wanted.instance, since_ms=wanted.since_ms, until_ms=wanted.until_ms)


def _events(wanted: ReplayFilter, webhook: Webhook) -> EventFilter:
    if not wanted.adds or webhook.scope == "global":
        return _events_alone(wanted)
    return EventFilter(kind=wanted.kind, instance=webhook.instance, since_ms=wanted.since_ms, until_ms=wanted.until_ms)


def _kinds(wanted: ReplayFilter, webhook: Webhook) -> tuple[str, ...] | None:
    """Return the kinds that may be added to a webhook, none meaning all; None if it takes none of those wanted."""
    taken = webhook.settings.events
    if wanted.kind is None or not taken:
        return taken
    return () if wanted.kind in taken else None
