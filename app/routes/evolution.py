"""Evolution API's own routes for the webhook of an instance, so that its clients and habits work unchanged."""

from typing import Annotated, Any

from litestar import Request, Response, get, post
from litestar.params import Parameter
from msgspec import UNSET

from app.evolution_schemas import EvolutionIn, EvolutionOut, EvolutionWebhookIn, show_evolution
from app.routes.bodies import read_struct
from app.webhook_schemas import credentials_from
from outbox.domain.events import check_instance
from outbox.domain.webhooks import Credentials, Settings, Webhook, canonical_events
from outbox.engine import Engine

Instance = Annotated[str, Parameter(description="the instance's name")]


@post("/webhook/set/{instance:str}", status_code=201)
async def set_webhook(request: Request[Any, Any, Any], engine: Engine, instance: Instance) -> EvolutionOut:
    """Set the webhook of an instance; omitted headers, byEvents and base64 keep their value."""
    check_instance(instance, where="instance")
    wanted = (await read_struct(request, EvolutionIn)).webhook
    events = canonical_events(wanted.events, "$.webhook.events")

    def settings_for(url: str, userinfo: str, known: Webhook | None) -> tuple[Settings, Credentials]:
        return _merged(wanted, events, url, userinfo, known)

    webhook, _ = await engine.set_local(instance, "", wanted.url, settings_for)
    return show_evolution(webhook)


def _merged(
    wanted: EvolutionWebhookIn, events: tuple[str, ...], url: str, userinfo: str, known: Webhook | None
) -> tuple[Settings, Credentials]:
    # A new webhook starts with Evolution's defaults, not with ours.
    old = known.settings if known else Settings(url="", by_events=False, base64=False)
    settings = Settings(
        url=url,
        enabled=wanted.enabled,
        by_events=old.by_events if wanted.by_events is UNSET else wanted.by_events,
        events=events,
        base64=old.base64 if wanted.base64 is UNSET else wanted.base64,
        route_style=old.route_style,
        concurrency=old.concurrency,
        timeout_ms=old.timeout_ms,
    )
    old_headers = known.credentials.headers if known else {}
    headers = old_headers if wanted.headers is UNSET else wanted.headers or {}
    kept = {name: value for name, value in headers.items() if name.lower() != "content-type"}
    return settings, credentials_from(kept, userinfo, known)


@get("/webhook/find/{instance:str}")
async def find_webhook(engine: Engine, instance: Instance) -> Response[EvolutionOut | None]:
    """Show the webhook of an instance, or `null`."""
    webhook = engine.webhooks.find("instance", instance)
    return Response(show_evolution(webhook) if webhook else None, media_type="application/json")
