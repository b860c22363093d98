"""A webhook on the wire of Evolution API's own routes: the three bodies that set it, and the row that shows it.

Each generation of Evolution API has its own body, and clients of all of them are in use. They are told by their shape:
v2 nests everything in `webhook`, 2.0 is flat with names like `webhookByEvents`, v1 flat with names like
`webhook_by_events`. Members that a body does not know are ignored, as Evolution ignores them.
"""

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from app.describing import ProblemOut
from app.schemas import rfc3339, webhook_id
from app.webhook_schemas import masked_headers, masked_url
from outbox.domain.bodies import decode_json
from outbox.domain.errors import InvalidError
from outbox.domain.webhooks import Webhook, canonical_events

Headers = dict[str, str] | UnsetType | None
Switch = bool | UnsetType


class Wanted(Struct, frozen=True):
    """What a body asks for, whichever it was; UNSET means "as it is". `at` is where in the body it stands."""

    at: str
    url: str
    enabled: bool
    events: tuple[str, ...]
    headers: Headers
    by_events: Switch
    base64: Switch


class _Members(Struct, kw_only=True):
    """What all bodies have in common."""

    enabled: Switch = UNSET
    url: str | UnsetType = UNSET
    headers: Headers = UNSET
    events: list[str] = []


class V2Webhook(_Members, rename="camel"):
    """What a v2 body holds."""

    by_events: Switch = UNSET
    base64: Switch = UNSET


class FlatBody(_Members, rename="camel"):
    """The body of 2.0."""

    webhook_by_events: Switch = UNSET
    webhook_base64: Switch = UNSET


class V1Body(_Members):
    """The body of v1."""

    webhook_by_events: Switch = UNSET
    webhook_base64: Switch = UNSET


class _Shape(Struct, rename="camel"):
    webhook: Raw | UnsetType = UNSET
    webhook_by_events: Raw | UnsetType = UNSET
    webhook_base64: Raw | UnsetType = UNSET


class V2Body(Struct):
    """The body of v2."""

    webhook: V2Webhook


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


class EvolutionMessage(Struct):
    """What is wrong, as Evolution API says it: a list for faults of the body, a text for the rest."""

    message: list[str | list[str]]


class EvolutionProblemOut(ProblemOut):
    """An error with the members that Evolution API's clients look at."""

    error: str
    response: EvolutionMessage


def read_wanted(body: bytes) -> Wanted:
    """Return what a body of any generation asks for. Raises MalformedError, InvalidError (with the path)."""
    shape = decode_json(msgspec.json.Decoder(_Shape), body)
    if shape.webhook is not UNSET:
        nested = decode_json(msgspec.json.Decoder(V2Body), body).webhook
        return _wanted(nested, nested.by_events, nested.base64, "$.webhook")
    if shape.webhook_by_events is UNSET and shape.webhook_base64 is UNSET:
        # Without either switch the flat bodies look alike, and v1, the older one, may leave `enabled` out.
        snake = decode_json(msgspec.json.Decoder(V1Body), body)
        snake.enabled = True if snake.enabled is UNSET else snake.enabled
        return _wanted(snake, snake.webhook_by_events, snake.webhook_base64, "$")
    flat = decode_json(msgspec.json.Decoder(FlatBody), body)
    return _wanted(flat, flat.webhook_by_events, flat.webhook_base64, "$")


def _wanted(members: _Members, by_events: Switch, base64: Switch, at: str) -> Wanted:
    nested = at != "$"
    if isinstance(members.enabled, UnsetType):
        msg = f'{"webhook" if nested else "a body with webhookByEvents"} requires property "enabled"'
        raise InvalidError(msg, f"{at}.enabled")
    if isinstance(members.url, UnsetType):
        msg = 'webhook requires property "url"' if nested else 'the body requires property "webhook", or "url" if flat'
        raise InvalidError(msg, f"{at}.url")
    return Wanted(
        at=at,
        url=members.url,
        enabled=members.enabled,
        events=canonical_events(members.events, f"{at}.events"),
        headers=members.headers,
        by_events=by_events,
        base64=base64,
    )


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
