"""Our own REST face for the settings of webhooks."""

from typing import Annotated

from litestar import Request, Response, delete, get, put
from litestar.params import Parameter

from app.routes.bodies import read_struct
from app.webhook_schemas import WebhookIn, WebhookOut, credentials_from, show_webhook
from outbox.domain.errors import NotFoundError
from outbox.domain.events import check_instance
from outbox.domain.webhooks import Credentials, Settings, Webhook, canonical_events
from outbox.engine import Engine

PATH = "/webhooks/instances/{instance:str}"

Instance = Annotated[str, Parameter(description="the instance's name")]


@put(PATH, status_code=200)
async def put_local(request: Request, engine: Engine, instance: Instance) -> Response[WebhookOut]:  # type: ignore[type-arg]
    """Set the webhook of an instance, the whole of it: 201 when it is new."""
    check_instance(instance, where="instance")
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
        )
        return settings, credentials_from(wanted.headers, userinfo, known)

    webhook, new = await engine.set_local(instance, "", wanted.url, settings_for)
    return Response(show_webhook(webhook), status_code=201 if new else 200)


@get(PATH)
async def get_local(engine: Engine, instance: Instance) -> WebhookOut:
    """Show the webhook of an instance."""
    webhook = engine.webhooks.find("instance", instance)
    if webhook is None:
        msg = f"the instance {instance!r} has no webhook"
        raise NotFoundError(msg)
    return show_webhook(webhook)


@delete(PATH, status_code=204)
async def delete_local(engine: Engine, instance: Instance) -> None:
    """Delete the webhook of an instance; what it had pending is settled as dead."""
    await engine.delete_webhook("instance", instance, "")
