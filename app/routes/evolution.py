"""Evolution API's own routes for the webhook of an instance, so that its clients and habits work unchanged."""

from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.params import Parameter
from msgspec import UNSET, structs

from app.describing import JSON, describe
from app.evolution_schemas import (
    EvolutionOut,
    EvolutionProblemOut,
    FlatBody,
    V1Body,
    V2Body,
    Wanted,
    read_wanted,
    show_evolution,
)
from app.routes.bodies import read_body
from app.webhook_schemas import credentials_from
from outbox.domain.errors import ConflictError, InvalidError
from outbox.domain.webhooks import Address, Credentials, Settings, Webhook
from outbox.engine import Engine

_BODIES = (V2Body, FlatBody, V1Body)

Instance = Annotated[str, Parameter(description="the instance's name")]


@post(
    "/webhook/set/{instance:str}",
    status_code=201,
    opt=describe(bodies={JSON: _BODIES}, problems=(409,), problem=EvolutionProblemOut),
)
async def set_webhook(request: Request[Any, Any, Any], engine: Engine, instance: Instance) -> EvolutionOut:
    """Set the webhook of an instance; omitted headers, byEvents and base64 keep their value."""
    wanted = read_wanted(await read_body(request))

    def settings_for(url: str, userinfo: str, known: Webhook | None) -> tuple[Settings, Credentials]:
        return _merged(wanted, url, userinfo, known)

    try:
        webhook, _ = await engine.set_webhook(Address("instance", instance), wanted.url, settings_for)
    except InvalidError as error:
        # The engine names places in settings; in the nested body these stand one level deeper.
        if error.where.startswith("$"):
            raise InvalidError(error.problem, wanted.at + error.where.removeprefix("$")) from error
        raise
    return show_evolution(webhook)


def _merged(wanted: Wanted, url: str, userinfo: str, known: Webhook | None) -> tuple[Settings, Credentials]:
    if known is not None and known.damaged:
        msg = (
            "the credentials of this webhook were damaged, and with them what this request leaves as it was: delete the"
            " webhook, or set it anew with PUT /webhooks/instances/{instance}"
        )
        raise ConflictError(msg)
    # A new webhook starts with Evolution's defaults, not with ours.
    old = known.settings if known else Settings(url="", by_events=False, base64=False)
    settings = structs.replace(
        old,
        url=url,
        enabled=wanted.enabled,
        events=wanted.events,
        by_events=old.by_events if wanted.by_events is UNSET else wanted.by_events,
        base64=old.base64 if wanted.base64 is UNSET else wanted.base64,
    )
    old_headers = known.credentials.headers if known else {}
    headers = old_headers if wanted.headers is UNSET else wanted.headers or {}
    kept = {name: value for name, value in headers.items() if name.lower() != "content-type"}
    return settings, credentials_from(kept, userinfo, known)


@get("/webhook/find/{instance:str}", opt=describe(problem=EvolutionProblemOut))
async def find_webhook(engine: Engine, instance: Instance) -> Response[EvolutionOut | None]:
    """Show the webhook of an instance, or `null`."""
    webhook = engine.webhooks.find("instance", instance)
    return Response(show_evolution(webhook) if webhook else None, media_type="application/json")
