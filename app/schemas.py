"""What goes over the wire: requests and answers. The wire is not the log, so these are their own structs."""

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from app.settings import MASK
from outbox.domain.bodies import masked
from outbox.domain.ids import body_digest, delivery_text, event_text
from outbox.domain.records import AttemptRecorded, EventAccepted
from outbox.domain.webhooks import WebhookState
from outbox.inspecting import EventView, Stats, state_word

Breaker = Literal["closed", "open"]

_LAST_MS = 253_402_300_799_999
_MASKED_MEMBERS = frozenset({"apikey", "api_key", "destination"})


class DeliveryOut(Struct):
    """A delivery as we show it."""

    id: str
    webhook: str
    url: str
    state: str
    attempts: int
    due_at: str


class EventDeliveryOut(DeliveryOut):
    """A delivery of one event, with the reason why it is dead, if it is and that is known."""

    reason: str | None


class AttemptOut(Struct):
    """An attempt as we show it; `answer` is the beginning of a failure's answer."""

    webhook: str
    attempt: int
    at: str
    ms: int
    status: int | None
    error: str | None
    detail: str | None
    answer: str | None
    reason: str | None


class EventOut(Struct):
    """An event as we show it; secrets in its payload are masked, and a payload that is gone or damaged is null."""

    id: str
    seq: int
    event: str
    instance: str | None
    accepted_at: str
    bytes: int
    payload: Raw | None
    deliveries: list[EventDeliveryOut]
    attempts: list[AttemptOut]


class WebhookStatsOut(Struct):
    """The numbers of one webhook."""

    id: str
    scope: str
    instance: str | None
    name: str
    enabled: bool
    state: WebhookState
    breaker: Breaker
    deliveries: dict[str, int]
    oldest_pending_s: float | None


class StatsOut(Struct):
    """All numbers at one glance."""

    events: int
    deliveries: dict[str, int]
    webhooks: list[WebhookStatsOut]
    oldest_pending_s: float | None
    seq: int
    pruned: dict[str, int]


def rfc3339(ms: int) -> str:
    """Return a moment, given in milliseconds since the epoch, as RFC 3339 in UTC, which ends with the year 9999."""
    moment = datetime.fromtimestamp(min(ms, _LAST_MS) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def webhook_id(number: int) -> str:
    """Return the public form of a webhook's number."""
    return f"wh_{number}"


def breaker_word(opened_ms: int) -> Breaker:
    """Return how a webhook's breaker stands that is open since then (0: it is closed)."""
    return "open" if opened_ms else "closed"


def show_event(view: EventView) -> EventOut:
    """Return an event with its deliveries and attempts."""
    accepted = view.accepted
    return EventOut(
        id=event_text(accepted.id),
        seq=view.seq,
        event=accepted.kind,
        instance=accepted.instance or None,
        accepted_at=rfc3339(accepted.at_ms),
        bytes=accepted.size,
        payload=show_payload(accepted, view.body),
        deliveries=[
            EventDeliveryOut(
                id=delivery_text(accepted.id, delivery.webhook),
                webhook=webhook_id(delivery.webhook),
                url=view.url(delivery.webhook),
                state=state_word(delivery, view.webhooks[delivery.webhook]),
                attempts=delivery.attempts,
                due_at=rfc3339(delivery.due_ms),
                reason=view.reasons.get(delivery.webhook) or None,
            )
            for delivery in view.deliveries
        ],
        attempts=[_show_attempt(attempt) for attempt in view.attempts],
    )


def show_payload(accepted: EventAccepted, body: bytes | None) -> Raw | None:
    """Return the body of an event with its secrets masked; None if it is gone, or not the one that was accepted."""
    if body is None or body_digest(body) != accepted.digest:
        return None
    return Raw(masked(body, _MASKED_MEMBERS, f'"{MASK}"'.encode()))


def _show_attempt(attempt: AttemptRecorded) -> AttemptOut:
    return AttemptOut(
        webhook=webhook_id(attempt.webhook),
        attempt=attempt.attempt,
        at=rfc3339(attempt.at_ms),
        ms=attempt.took_ms,
        status=attempt.status,
        error=attempt.error or None,
        detail=attempt.detail or None,
        answer=attempt.excerpt.decode(errors="replace") or None,
        reason=attempt.reason or None,
    )


def show_stats(stats: Stats, now_ms: int) -> StatsOut:
    """Return the numbers; ages are as of `now_ms`."""

    def age_s(since_ms: int | None) -> float | None:
        return None if since_ms is None else max(now_ms - since_ms, 0) / 1000

    return StatsOut(
        events=stats.events,
        deliveries=stats.deliveries,
        webhooks=[
            WebhookStatsOut(
                id=webhook_id(entry.webhook.number),
                scope=entry.webhook.scope,
                instance=entry.webhook.instance or None,
                name=entry.webhook.name,
                enabled=entry.enabled,
                state=entry.state,
                breaker=breaker_word(entry.webhook.opened_ms),
                deliveries=entry.deliveries,
                oldest_pending_s=age_s(entry.oldest_ms),
            )
            for entry in stats.webhooks
        ],
        oldest_pending_s=age_s(stats.oldest_ms),
        seq=stats.seq,
        pruned=stats.pruned,
    )


def encode(answer: Any) -> bytes:
    """Return the JSON of an answer."""
    return msgspec.json.encode(answer)
