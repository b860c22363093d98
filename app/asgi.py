"""The ASGI application: Litestar, and in front of it the hot path of ingest."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, cast

import structlog
from litestar import Litestar, Request, Response
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException

from app.intake import Intake, Receive
from app.problems import PROBLEM_JSON, ProblemError, evolution_shape, problem_for
from app.routes import evolution, health, inspection, listing, log, maintenance, metrics, replays, schema, webhooks
from app.routes.ingest import Ingest, Scope, Send
from app.security import Keys, api_key_guard
from app.settings import Settings
from outbox.domain.errors import OutboxError
from outbox.engine import Engine

SETTINGS_BODY_BYTES = 1024 * 1024

_log = structlog.get_logger("http")


def create_app(engine: Engine, settings: Settings) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Return the service as an ASGI application around an open engine."""
    keys = Keys(settings.api_key, settings.ingest_token)
    framework = create_framework(engine, keys)
    ingest = Ingest(engine, keys, Intake(settings["OUTBOX_MAX_BODY_BYTES"], settings["OUTBOX_INGEST_BYTES"]))

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        if ingest.serves(scope):
            await ingest(scope, receive, send)
        else:
            await framework(cast("Any", scope), cast("Any", receive), cast("Any", send))

    return front


def create_framework(engine: Engine, keys: Keys) -> Litestar:
    """Return the framework with all routes but those of ingest."""
    return Litestar(
        route_handlers=[
            webhooks.list_webhooks,
            webhooks.put_webhook,
            webhooks.get_webhook,
            webhooks.delete_webhook,
            webhooks.test_webhook,
            webhooks.put_test,
            evolution.set_webhook,
            evolution.find_webhook,
            listing.list_events,
            listing.list_deliveries,
            replays.replay_delivery,
            replays.replay_deliveries,
            replays.replay_events,
            replays.list_replays,
            replays.get_replay,
            replays.cancel_replay,
            inspection.get_event,
            inspection.get_stats,
            maintenance.rebuild,
            maintenance.prune,
            maintenance.get_prune,
            log.get_log,
            log.stream_log,
            metrics.get_metrics,
            schema.get_schema,
            health.live,
            health.ready,
        ],
        guards=[api_key_guard],
        dependencies={"engine": Provide(lambda: engine, sync_to_thread=False)},
        exception_handlers={Exception: _problem},
        request_max_body_size=SETTINGS_BODY_BYTES,
        state=State({"keys": keys}),
        openapi_config=None,
        logging_config=None,
        signature_types=[Engine],
    )


def _problem(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    if isinstance(error, HTTPException):
        error = ProblemError(error.status_code, _detail(request, error), dict(error.headers or {}))
    elif not isinstance(error, OutboxError):
        _log.error("request.failed", path=request.url.path, exc_info=error)
    problem = problem_for(error)
    if request.url.path.startswith("/webhook/"):
        problem = evolution_shape(problem)
    return Response(problem.encode(), status_code=problem.status, headers=problem.headers, media_type=PROBLEM_JSON)


def _detail(request: Request[Any, Any, Any], error: HTTPException) -> str:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return f"there is nothing at {request.method} {request.url.path}"
    return error.detail
