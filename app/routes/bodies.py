"""Reading the JSON bodies of settings: small, decoded by us, so that every fault is named with its place."""

from typing import Any, TypeVar

import msgspec
from litestar import Request

from app.problems import ProblemError
from outbox.domain.bodies import check_text, decode_json

_T = TypeVar("_T")


async def read_body(request: Request[Any, Any, Any]) -> bytes:
    """Return the bytes of a body that is JSON text. Raises ProblemError, MalformedError."""
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json" or "content-encoding" in request.headers:
        raise ProblemError(415, "settings are sent as application/json, without a Content-Encoding")
    body = await request.body()
    check_text(body)
    return body


async def read_struct(request: Request[Any, Any, Any], kind: type[_T], *, optional: bool = False) -> _T:
    """Return the body as a `kind`; one that is `optional` and left out is an empty object.

    Raises ProblemError, MalformedError, InvalidError.
    """
    body = await read_body(request)
    return decode_json(msgspec.json.Decoder(kind), body or b"{}" if optional else body)
