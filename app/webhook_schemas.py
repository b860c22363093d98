"""A webhook on the wire of our own API: how it is set, how it is shown, and what of it is masked."""

from msgspec import Struct

from app.schemas import rfc3339, webhook_id
from app.settings import MASK
from outbox.domain.catalogue import RouteStyle
from outbox.domain.errors import InvalidError
from outbox.domain.webhooks import Credentials, Settings, Webhook

_DEFAULTS = Settings(url="")


class WebhookIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """The settings of a webhook as `PUT` takes them: all of them, absent meaning the default."""

    url: str
    enabled: bool = _DEFAULTS.enabled
    by_events: bool = _DEFAULTS.by_events
    events: list[str] = []
    base64: bool = _DEFAULTS.base64
    headers: dict[str, str] = {}
    route_style: RouteStyle | None = None
    concurrency: int = _DEFAULTS.concurrency
    timeout_ms: int | None = None


class WebhookOut(Struct, kw_only=True):
    """A webhook as we show it; values of headers, and the password of its URL, are masked."""

    id: str
    scope: str
    instance: str | None
    name: str
    url: str
    enabled: bool
    by_events: bool
    events: list[str]
    base64: bool
    headers: dict[str, str]
    route_style: RouteStyle | None
    concurrency: int
    timeout_ms: int | None
    created_at: str
    updated_at: str


class WebhooksOut(Struct):
    """A page of webhooks, the oldest first; `next` is the cursor of the page after it."""

    items: list[WebhookOut]
    next: str | None


def masked_url(webhook: Webhook) -> str:
    """Return a webhook's URL with the password masked."""
    user, _, _ = webhook.credentials.userinfo.partition(":")
    return webhook.settings.url.replace("://", f"://{user}:{MASK}@", 1) if user else webhook.settings.url


def masked_headers(webhook: Webhook) -> dict[str, str]:
    """Return a webhook's headers with their values masked."""
    return dict.fromkeys(webhook.credentials.headers, MASK)


def credentials_from(headers: dict[str, str], userinfo: str, known: Webhook | None) -> Credentials:
    """Return credentials in which what was sent back masked is what it was.

    Raises InvalidError where it was nothing.
    """
    old = known.credentials if known else Credentials()
    user, _, password = userinfo.partition(":")
    if password == MASK:
        if old.userinfo.partition(":")[0] != user:
            msg = f"{MASK} stands for the password that was set, but for this user there is none"
            raise InvalidError(msg, "$.url")
        userinfo = old.userinfo
    values = {name.lower(): value for name, value in old.headers.items()}
    return Credentials(
        headers={name: _unmasked(name, value, values) for name, value in headers.items()}, userinfo=userinfo
    )


def _unmasked(name: str, value: str, old: dict[str, str]) -> str:
    if value != MASK:
        return value
    if name.lower() not in old:
        msg = f"{MASK} stands for the value that was set, but this header has none"
        raise InvalidError(msg, f"$.headers.{name}")
    return old[name.lower()]


def show_webhook(webhook: Webhook) -> WebhookOut:
    """Return a webhook as our own API shows it."""
    settings = webhook.settings
    return WebhookOut(
        id=webhook_id(webhook.number),
        scope=webhook.scope,
        instance=webhook.instance or None,
        name=webhook.name,
        url=masked_url(webhook),
        enabled=settings.enabled,
        by_events=settings.by_events,
        events=list(settings.events),
        base64=settings.base64,
        headers=masked_headers(webhook),
        route_style=settings.route_style,
        concurrency=settings.concurrency,
        timeout_ms=settings.timeout_ms,
        created_at=rfc3339(webhook.created_ms),
        updated_at=rfc3339(webhook.updated_ms),
    )
