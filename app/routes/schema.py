"""The OpenAPI document."""

from typing import Any

from litestar import Request, Response, get

from app.describing import Answer, describe
from app.openapi import document
from app.routes.ingest_schema import ROUTES


@get("/schema", opt=describe(answers={200: Answer(dict[str, Any])}))
async def get_schema(request: Request[Any, Any, Any]) -> Response[dict[str, Any]]:
    """Show this document: every route of the service, what it takes and what it answers."""
    return Response(document(request.app, ROUTES), media_type="application/json")
