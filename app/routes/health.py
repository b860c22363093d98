"""Health: is the process alive, and can it take events in. No key is needed."""

from litestar import Response, get

from outbox.engine import Engine


@get("/health/live", opt={"public": True})
async def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "live"}


@get("/health/ready", opt={"public": True})
async def ready(engine: Engine) -> Response[dict[str, str | list[str]]]:
    """Say whether events are taken in and delivered, and if not, why: 503 with the reasons."""
    reasons = engine.troubles
    body: dict[str, str | list[str]] = {"status": "not ready" if reasons else "ready", "reasons": reasons}
    return Response(body, status_code=503 if reasons else 200)
