"""A webhook on the wire of Evolution API's own routes: the bodies that set it, and the row that shows it."""

from msgspec import UNSET, Struct, UnsetType

from app.schemas import rfc3339, webhook_id
from app.webhook_schemas import masked_headers, masked_url
from outbox.domain.webhooks import Webhook


class EvolutionWebhookIn(Struct, rename="camel"):
    """The inner object of Evolution API's v2 body; unknown members are ignored."""

    enabled: bool
    url: str
    headers: dict[str, str] | UnsetType | None = UNSET
    by_events: bool | UnsetType = UNSET
    base64: bool | UnsetType = UNSET
    events: list[str] = []


class EvolutionIn(Struct):
    """Evolution API's v2 body."""

    webhook: EvolutionWebhookIn


class EvolutionOut(Struct, rename="camel"):
    """The row that Evolution API v2 answers with."""

    id: str
    url: str
    headers: dict[str, str] | None
    enabled: bool
    events: list[str]
    webhook_by_events: bool
    webhook_base64: bool
    created_at: str
    updated_at: str
    instance_id: str


def show_evolution(webhook: Webhook) -> EvolutionOut:
    """Return a webhook as Evolution API v2 shows it."""
    settings = webhook.settings
    return EvolutionOut(
        id=webhook_id(webhook.number),
        url=masked_url(webhook),
        headers=masked_headers(webhook) or None,
        enabled=settings.enabled,
        events=list(settings.events),
        webhook_by_events=settings.by_events,
        webhook_base64=settings.base64,
        created_at=rfc3339(webhook.created_ms),
        updated_at=rfc3339(webhook.updated_ms),
        instance_id=webhook.instance,
    )
