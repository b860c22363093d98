"""Lists of events and of deliveries, newest first, page by page.

Nothing is indexed for it that ingest would have to pay for. So a page looks at a bounded number of rows, and may be
short, or empty, while there are more below: its `next` says where to go on.
"""

from collections.abc import Callable

from msgspec import Struct

from outbox.domain.deliveries import STORED, Delivery, State
from outbox.domain.projecting import WebhookRow
from outbox.domain.records import EventAccepted
from outbox.journal.ledger import settings_of
from outbox.journal.reading import Homes, is_held, state_word
from outbox.journal.walking import DeadWalk, EventWalk, Match, Walk, WebhookWalk, look_up
from outbox.store.protocol import EventFilter, Position, Reader

TOP = Position(2**63 - 1, 0)

STATES = tuple(STORED)


class Wanted(Struct, frozen=True, kw_only=True):
    """What a list is narrowed to; None means any. `state` is one of STATES, as deliveries read."""

    events: EventFilter = EventFilter()
    webhook: int | None = None
    state: str | None = None


class ListedDelivery(Struct, frozen=True):
    """A delivery with its event and the URL and state it has now."""

    delivery: Delivery
    accepted: EventAccepted
    url: str
    state: str


class ListedEvent(Struct, frozen=True):
    """An event with all its deliveries."""

    seq: int
    accepted: EventAccepted
    deliveries: list[ListedDelivery]


class DeliveryPage(Struct, frozen=True):
    """A page of deliveries, and the cursor of the next one, if there may be more."""

    items: list[ListedDelivery]
    next: Position | None


class EventPage(Struct, frozen=True):
    """A page of events, and the cursor of the next one, if there may be more."""

    items: list[ListedEvent]
    next: Position | None


async def list_deliveries(reader: Reader, wanted: Wanted, limit: int, after: Position = TOP) -> DeliveryPage:
    """Return up to `limit` wanted deliveries that follow the position `after`. Raises CorruptError."""
    webhooks = await _webhooks(reader)
    walk = await _walk(reader, wanted, webhooks)
    matches, reached = await _matches(walk, after, limit + 1, len)
    if len(matches) > limit:
        matches = matches[:limit]
        reached = matches[-1].position
    items = [_listed(match.delivery, match.accepted, webhooks) for match in matches]
    return DeliveryPage(items, await _next(reader, wanted, reached))


async def list_events(reader: Reader, wanted: Wanted, limit: int, after: Position = TOP) -> EventPage:
    """Return up to `limit` wanted events, those with a wanted delivery if one is asked for. Raises CorruptError."""
    webhooks = await _webhooks(reader)
    if wanted.webhook is None and wanted.state is None:
        events, reached = await _events(reader, wanted.events, limit, after)
    else:
        walk = await _walk(reader, wanted, webhooks)
        matches, reached = await _matches(walk, after, limit + 1, lambda found: len({match.seq for match in found}))
        events = {match.seq: match.accepted for match in matches}
    if len(events) > limit:
        events = dict(list(events.items())[:limit])
        reached = Position(next(reversed(events)), 0)
    deliveries = await _deliveries_of(reader, events, webhooks)
    items = [ListedEvent(seq, accepted, deliveries.get(seq, [])) for seq, accepted in events.items()]
    return EventPage(items, await _next(reader, wanted, reached))


async def _webhooks(reader: Reader) -> dict[int, WebhookRow]:
    rows, _ = await reader.webhooks()
    return {row.number: row for row in rows}


async def _events(
    reader: Reader, wanted: EventFilter, limit: int, after: Position
) -> tuple[dict[int, EventAccepted], Position | None]:
    """Return one event more than `limit` if there is one, and where the walk has come to."""
    walk = EventWalk(reader, wanted, lambda _event: (), frozenset())
    events = await walk.events(after.event, limit + 1)
    return dict(events), walk.end


async def _matches(
    walk: Walk | None, after: Position, enough: int, count: Callable[[list[Match]], int]
) -> tuple[list[Match], Position | None]:
    """Walk down until `count` says `enough`, the page has looked at enough, or the end; return where that was."""
    matches: list[Match] = []
    reached: Position | None = None if walk is None else after
    while walk is not None and reached is not None and count(matches) < enough:
        found, reached, spent = await walk.step(reached, enough)
        matches += found
        if spent:
            break
    return matches, reached


async def _walk(reader: Reader, wanted: Wanted, webhooks: dict[int, WebhookRow]) -> Walk | None:
    """Choose the cheapest way to the wanted deliveries; None if the counters say that there are none."""
    states = STORED[wanted.state] if wanted.state else frozenset(State)
    counters = await reader.counters()
    having = {number for (number, state), n in counters.items() if n > 0 and state in states and number in webhooks}
    if wanted.state in {"pending", "waiting", "held"}:
        having = {number for number in having if is_held(webhooks[number]) == (wanted.state == "held")}
    if wanted.webhook is not None:
        having &= {wanted.webhook}
    if not having:
        return None
    if states == {State.DEAD}:
        return DeadWalk(reader, wanted.events, wanted.webhook)
    if len(having) == 1:
        return WebhookWalk(reader, wanted.events, having.pop(), states)
    homes = Homes(webhooks[number] for number in having)
    return EventWalk(reader, wanted.events, homes.of, states)


async def _deliveries_of(
    reader: Reader, events: dict[int, EventAccepted], webhooks: dict[int, WebhookRow]
) -> dict[int, list[ListedDelivery]]:
    homes = Homes(webhooks.values())
    pairs = [(webhook, seq) for seq, accepted in events.items() for webhook in homes.of(accepted)]
    found: dict[int, list[ListedDelivery]] = {}
    for delivery in await look_up(reader, pairs):
        listed = _listed(delivery, events[delivery.event], webhooks)
        found.setdefault(delivery.event, []).append(listed)
    return found


def _listed(delivery: Delivery, accepted: EventAccepted, webhooks: dict[int, WebhookRow]) -> ListedDelivery:
    row = webhooks[delivery.webhook]
    return ListedDelivery(delivery, accepted, settings_of(row).url, state_word(delivery, row))


async def _next(reader: Reader, wanted: Wanted, reached: Position | None) -> Position | None:
    """Return where the next page begins, unless nothing below was accepted late enough to be on it."""
    since_ms = wanted.events.since_ms
    if reached is None or since_ms is None:
        return reached
    return reached if await reader.any_since(since_ms, reached.event + 1) else None
