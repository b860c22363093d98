"""Our own REST face for the settings of webhooks: global ones and those of instances, with a name or without."""

import re
from typing import Any

from litestar import Request, Response, delete, get, post, put
from litestar.di import Provide

from app.describing import JSON, Answer, Parameter, describe
from app.paging import read_limit
from app.routes.bodies import read_struct
from app.routes.parameters import LIMIT_PARAMETER, read_query
from app.trial_schemas import TrialOut, show_trial
from app.webhook_schemas import (
    GENERATE,
    WebhookIn,
    WebhookOut,
    WebhooksOut,
    credentials_from,
    show_webhook,
    with_secret,
)
from outbox.domain.errors import InvalidError, NotFoundError
from outbox.domain.webhooks import Address, Credentials, Settings, Webhook, canonical_events, check_name
from outbox.engine import Engine

_PATHS = [
    "/webhooks/global",
    "/webhooks/global/{name:str}",
    "/webhooks/instances/{instance:str}",
    "/webhooks/instances/{instance:str}/{name:str}",
]
_TEST_PATHS = [f"{path}/test" for path in _PATHS]
_CURSOR = re.compile(r"wh_([0-9]{1,18})", re.ASCII)
_CURSOR_PARAMETER = Parameter(
    "cursor", {"type": "string", "pattern": "^wh_[0-9]{1,18}$"}, "where to go on: `next` of the page before"
)
_UNNAMED_TEST_PATHS = [path for path in _TEST_PATHS if "{name" not in path]


def _address(request: Request[Any, Any, Any]) -> Address:
    """Return which webhook a path names. Raises InvalidError."""
    if b"%2f" in request.scope["raw_path"].lower():
        # It arrives here as a slash, and would pass for the one before a webhook's name.
        msg = "an instance's name has no / or \\"
        raise InvalidError(msg, "instance")
    found = request.path_params
    if "instance" in found:
        return Address("instance", found["instance"], found.get("name", ""))
    return Address("global", "", found.get("name", ""))


_PUT = {200: Answer(WebhookOut, description="replaced"), 201: Answer(WebhookOut, description="new")}
_ADDRESS = {"address": Provide(_address, sync_to_thread=False)}


@put(
    _PATHS,
    status_code=200,
    dependencies=_ADDRESS,
    opt=describe(bodies={JSON: (WebhookIn,)}, answers=_PUT, problems=(409,)),
)
async def put_webhook(request: Request[Any, Any, Any], engine: Engine, address: Address) -> Response[WebhookOut]:
    """Set a webhook, the whole of it: 201 when it is new."""
    wanted = await read_struct(request, WebhookIn)
    events = canonical_events(wanted.events)

    def settings_for(url: str, userinfo: str, known: Webhook | None) -> tuple[Settings, Credentials]:
        settings = Settings(
            url=url,
            enabled=wanted.enabled,
            by_events=wanted.by_events,
            events=events,
            base64=wanted.base64,
            route_style=wanted.route_style,
            concurrency=wanted.concurrency,
            timeout_ms=wanted.timeout_ms,
            order=wanted.order,
            rate_limit=wanted.rate_limit,
        )
        credentials = credentials_from(wanted.headers, userinfo, known)
        return settings, with_secret(credentials, wanted, engine.now_ms())

    webhook, new = await engine.set_webhook(address, wanted.url, settings_for)
    shown = show_webhook(webhook, engine.now_ms(), generated=wanted.secret == GENERATE)
    return Response(shown, status_code=201 if new else 200)


@put(_UNNAMED_TEST_PATHS, include_in_schema=False)
async def put_test() -> None:
    """Say why no webhook can be set here."""
    check_name("test")


@get(_PATHS, dependencies=_ADDRESS, opt=describe(problems=(404, 422)))
async def get_webhook(engine: Engine, address: Address) -> WebhookOut:
    """Show a webhook."""
    webhook = engine.webhooks.find(*address)
    if webhook is None:
        raise NotFoundError(address.missing)
    return show_webhook(webhook, engine.now_ms())


@delete(_PATHS, status_code=204, dependencies=_ADDRESS, opt=describe(problems=(404, 409, 422)))
async def delete_webhook(engine: Engine, address: Address) -> None:
    """Delete a webhook; what it had pending is settled as dead."""
    await engine.delete_webhook(address)


@post(_TEST_PATHS, status_code=200, dependencies=_ADDRESS, opt=describe(problems=(404, 409, 422)))
async def test_webhook(engine: Engine, address: Address) -> TrialOut:
    """Post a test event to a webhook now, enabled or not, and show what came of it; nothing of it is recorded."""
    return show_trial(await engine.try_webhook(address))


@get("/webhooks", opt=describe(parameters=(LIMIT_PARAMETER, _CURSOR_PARAMETER)))
async def list_webhooks(request: Request[Any, Any, Any], engine: Engine) -> WebhooksOut:
    """Show all live webhooks, the oldest first."""
    given = read_query(request, LIMIT_PARAMETER, _CURSOR_PARAMETER)
    size, after = read_limit(given.get("limit")), _after(given.get("cursor"))
    webhooks = sorted((webhook for webhook in engine.webhooks if webhook.number > after), key=_number)
    page = [show_webhook(webhook, engine.now_ms()) for webhook in webhooks[:size]]
    return WebhooksOut(page, page[-1].id if len(webhooks) > size else None)


def _number(webhook: Webhook) -> int:
    return webhook.number


def _after(cursor: str | None) -> int:
    """Return the number of the last webhook shown so far, which is what the cursor names. Raises InvalidError."""
    if cursor is None:
        return 0
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        msg = "a cursor is what `next` of the page before said"
        raise InvalidError(msg, "cursor")
    return int(found[1])
