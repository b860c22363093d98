"""A webhook on the wire of our own API: how it is set, how it is shown, and what of it is masked."""

import secrets
from typing import Annotated, Final

from msgspec import Meta, Struct, structs

from app.schemas import Breaker, breaker_word, rfc3339, webhook_id
from app.settings import MASK
from outbox.domain.catalogue import RouteStyle
from outbox.domain.errors import InvalidError
from outbox.domain.rotating import OVERLAP_MAX_S, read_secret, rotated, secrets_at, write_secret
from outbox.domain.webhooks import RATE_LIMIT_MAX, Credentials, Order, Settings, Webhook, WebhookState

GENERATE: Final = "generate"
"""What asks for a new secret in the place of one."""

_DEFAULTS = Settings(url="")
_OVERLAP_S = 86_400
_GENERATED_BYTES = 32
_ORDER = "whose events go one at a time, in the order in which they came: nobody's, those of an instance, or of a chat"
_RATE_LIMIT = f"the most POSTs a second, more than 0 and at most {RATE_LIMIT_MAX:g}; null: as many as go"
_SECRET = (
    f"`whsec_…` signs every POST (Standard Webhooks), `{GENERATE}` makes a new one, `{MASK}` keeps the one there is"
)
_OVERLAP = f"seconds for which a secret that is replaced signs too, 0 to {OVERLAP_MAX_S}"
_SHOWN_SECRET = f"masked, but in the answer to `{GENERATE}`, which is the only one that shows it"
_UNTIL = "until when the secret before this one signs too"


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
    order: Annotated[Order, Meta(description=_ORDER)] = _DEFAULTS.order
    rate_limit: Annotated[float | None, Meta(description=_RATE_LIMIT)] = None
    secret: Annotated[str | None, Meta(description=_SECRET)] = None
    secret_overlap_s: Annotated[int, Meta(description=_OVERLAP)] = _OVERLAP_S


class WebhookOut(Struct, kw_only=True):
    """A webhook as we show it; values of headers, the password of its URL, and its secret are masked.

    `state` is `suspended` after a 410, or when its credentials were lost, until the webhook is set again; `breaker` is
    open while its receiver fails, and only tried now and then.
    """

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
    order: Order
    rate_limit: float | None
    secret: Annotated[str | None, Meta(description=_SHOWN_SECRET)]
    previous_secret_until: Annotated[str | None, Meta(description=_UNTIL)]
    state: WebhookState
    suspended_at: str | None
    breaker: Breaker
    breaker_since: str | None
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
    """Return credentials in which what was sent back masked is what it was; the secret is the known one.

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
    unmasked = {name: _unmasked(name, value, values) for name, value in headers.items()}
    return structs.replace(old, headers=unmasked, userinfo=userinfo)


def _unmasked(name: str, value: str, old: dict[str, str]) -> str:
    if value != MASK:
        return value
    if name.lower() not in old:
        msg = f"{MASK} stands for the value that was set, but this header has none"
        raise InvalidError(msg, f"$.headers.{name}")
    return old[name.lower()]


def with_secret(credentials: Credentials, wanted: WebhookIn, now_ms: int) -> Credentials:
    """Return `credentials`, which hold the secret known so far, with the one that is wanted. Raises InvalidError."""
    return rotated(credentials, _secret(wanted.secret, credentials.secret), wanted.secret_overlap_s, now_ms)


def _secret(wanted: str | None, old: bytes) -> bytes:
    if wanted is None:
        return b""
    if wanted == GENERATE:
        return secrets.token_bytes(_GENERATED_BYTES)
    if wanted != MASK:
        return read_secret(wanted)
    if not old:
        msg = f"{MASK} stands for the secret that was set, but there is none"
        raise InvalidError(msg, "$.secret")
    return old


def show_webhook(webhook: Webhook, now_ms: int, *, generated: bool = False) -> WebhookOut:
    """Return a webhook as our own API shows it at `now_ms`; its secret in clear only if it has just been generated."""
    settings, credentials = webhook.settings, webhook.credentials
    rotating = len(secrets_at(credentials, now_ms)) > 1
    secret = write_secret(credentials.secret) if generated else MASK
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
        order=settings.order,
        rate_limit=settings.rate_limit,
        secret=secret if credentials.secret else None,
        previous_secret_until=rfc3339(credentials.previous_until_ms) if rotating else None,
        state=webhook.state,
        suspended_at=rfc3339(webhook.suspended_ms) if webhook.suspended_ms else None,
        breaker=breaker_word(webhook.opened_ms),
        breaker_since=rfc3339(webhook.opened_ms) if webhook.opened_ms else None,
        created_at=rfc3339(webhook.created_ms),
        updated_at=rfc3339(webhook.updated_ms),
    )
