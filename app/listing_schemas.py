"""Lists on the wire: pages of events and of deliveries."""

from msgspec import Struct

from app.filters import cursor_text
from app.schemas import DeliveryOut, rfc3339, webhook_id
from outbox.domain.ids import delivery_text, event_text
from outbox.inspecting import DeliveryPage, EventPage, ListedDelivery, ListedEvent


class EventItem(Struct):
    """An event in a list: without its payload and its attempts."""

    id: str
    seq: int
    event: str
    instance: str | None
    accepted_at: str
    bytes: int
    deliveries: list[DeliveryOut]


class EventsOut(Struct):
    """A page of events, newest first; `next` is the cursor of the page after it."""

    items: list[EventItem]
    next: str | None


class DeliveryItem(Struct):
    """A delivery in a list, with what it delivers."""

    id: str
    event_id: str
    event: str
    instance: str | None
    accepted_at: str
    webhook: str
    url: str
    state: str
    attempts: int
    due_at: str


class DeliveriesOut(Struct):
    """A page of deliveries, those of the newest events first; `next` is the cursor of the page after it."""

    items: list[DeliveryItem]
    next: str | None


def show_events(page: EventPage) -> EventsOut:
    """Return a page of events as we show it."""
    return EventsOut([_event(entry) for entry in page.items], cursor_text(page.next))


def show_deliveries(page: DeliveryPage) -> DeliveriesOut:
    """Return a page of deliveries as we show it."""
    return DeliveriesOut([_delivery(entry) for entry in page.items], cursor_text(page.next))


def _event(entry: ListedEvent) -> EventItem:
    accepted = entry.accepted
    return EventItem(
        id=event_text(accepted.id),
        seq=entry.seq,
        event=accepted.kind,
        instance=accepted.instance or None,
        accepted_at=rfc3339(accepted.at_ms),
        bytes=accepted.size,
        deliveries=[
            DeliveryOut(
                id=delivery_text(accepted.id, listed.delivery.webhook),
                webhook=webhook_id(listed.delivery.webhook),
                url=listed.url,
                state=listed.state,
                attempts=listed.delivery.attempts,
                due_at=rfc3339(listed.delivery.due_ms),
            )
            for listed in entry.deliveries
        ],
    )


def _delivery(entry: ListedDelivery) -> DeliveryItem:
    accepted, delivery = entry.accepted, entry.delivery
    return DeliveryItem(
        id=delivery_text(accepted.id, delivery.webhook),
        event_id=event_text(accepted.id),
        event=accepted.kind,
        instance=accepted.instance or None,
        accepted_at=rfc3339(accepted.at_ms),
        webhook=webhook_id(delivery.webhook),
        url=entry.url,
        state=entry.state,
        attempts=delivery.attempts,
        due_at=rfc3339(delivery.due_ms),
    )
