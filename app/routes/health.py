"""Health: is the process alive, and can it take events in. No key is needed."""

from litestar import Response, get

from app.describing import Answer, describe
from outbox.engine import Engine

_Reasons = dict[str, str | list[str]]
_ANSWERS = {200: Answer(_Reasons, description="ready"), 503: Answer(_Reasons, description="not ready, and why")}


@get("/health/live", opt=describe(public=True))
async def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "live"}


@get("/health/ready", opt=describe(public=True, answers=_ANSWERS))
async def ready(engine: Engine) -> Response[_Reasons]:
    """Say whether events are taken in and delivered, and if not, why: 503 with the reasons.

    Warnings are about damage, and about what will be trouble if nobody does anything about it. `file_check` is what
    came of the check of the database file that is made after a stop that was not orderly.
    """
    reasons = engine.troubles
    status = "not ready" if reasons else "ready"
    body: _Reasons = {
        "status": status,
        "reasons": reasons,
        "warnings": engine.warnings,
        "file_check": engine.vitals.file_check,
    }
    return Response(body, status_code=503 if reasons else 200)
