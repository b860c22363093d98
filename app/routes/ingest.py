"""Taking events in: a plain ASGI application in front of Litestar.

This is the one path where every microsecond counts, and where the body must reach us unparsed; a handler of the
framework costs about as much as the rest of it together (`docs/decisions/`).
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import msgspec

from app.problems import PROBLEM_JSON, ProblemError, problem_for
from app.security import Keys
from outbox.domain.errors import OutboxError, TooLargeError
from outbox.domain.events import MAX_HOPS, read_event, read_evolution_event
from outbox.domain.ids import event_text
from outbox.engine import Engine

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_JSON = [(b"content-type", b"application/json")]
_REPLAYED = [*_JSON, (b"idempotency-replayed", b"true")]
_KEY_MAX_BYTES = 255
_LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})


class _Receipt(msgspec.Struct):
    id: str
    seq: int
    deliveries: int


class ClientGoneError(Exception):
    """The client closed the connection before its body was complete: there is nobody to answer."""


class Ingest:
    """Serves `POST /events` and `POST /ingest...`."""

    def __init__(self, engine: Engine, keys: Keys, max_body_bytes: int) -> None:
        """Accept into `engine` what `keys` let through, up to `max_body_bytes` each."""
        self._engine = engine
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._encode = msgspec.json.Encoder().encode

    @staticmethod
    def serves(scope: Scope) -> bool:
        """Say whether a request is for this application."""
        path: str = scope["path"]
        if not path.startswith(("/events", "/ingest")) or scope["type"] != "http":
            return False
        if path == "/events":
            return scope["method"] not in _LOOKING
        return path == "/ingest" or path.startswith("/ingest/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        try:
            if scope["path"] == "/events":
                receipt, answer_headers = await self._events(scope, headers, receive)
            else:
                receipt, answer_headers = await self._evolution(scope, headers, receive)
        except ClientGoneError:
            return
        except (OutboxError, ExceptionGroup) as error:
            await _refuse(error, send)
            return
        await _answer(send, 202, answer_headers, self._encode(receipt))

    async def _events(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive
    ) -> tuple[_Receipt, list[Any]]:
        self._keys.check_api_key(headers)
        _check_method(scope)
        key = headers.get(b"idempotency-key", b"")
        if len(key) > _KEY_MAX_BYTES:
            raise ProblemError(422, f"an idempotency key has at most {_KEY_MAX_BYTES} bytes - at `Idempotency-Key`")
        body = await self._body(headers, receive)
        accepted = await self._engine.accept(read_event(body, _hops(headers)), key)
        receipt = _Receipt(event_text(accepted.id), accepted.seq, accepted.deliveries)
        return receipt, _REPLAYED if accepted.replayed else _JSON

    async def _evolution(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive
    ) -> tuple[_Receipt, list[Any]]:
        _check_method(scope)
        token = scope["path"].removeprefix("/ingest").lstrip("/").partition("/")[0]
        if not self._keys.is_ingest_token(token.encode()):
            # No token in the path: the first segment is the suffix of a local webhook that shows its key in a header.
            self._keys.check_ingest_key(headers)
        body = await self._body(headers, receive)
        accepted = await self._engine.accept(read_evolution_event(body, _hops(headers)))
        return _Receipt(event_text(accepted.id), accepted.seq, accepted.deliveries), _JSON

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Return the whole body. Raises ProblemError, TooLargeError, ClientGoneError."""
        _check_content(headers)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        message = await receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False) and message["type"] == "http.request":
            return self._measured(body)
        parts, size = [body], len(body)
        while message.get("more_body", False):
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                raise self._too_large()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        return b"".join(parts)

    def _measured(self, body: bytes) -> bytes:
        if len(body) > self._max_body_bytes:
            raise self._too_large()
        return body

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the body is over the limit of {self._max_body_bytes} bytes (OUTBOX_MAX_BODY_BYTES)")


def _check_method(scope: Scope) -> None:
    if scope["method"] != "POST":
        raise ProblemError(405, "events are posted here", {"allow": "POST"})


def _check_content(headers: Mapping[bytes, bytes]) -> None:
    if b"content-encoding" in headers:
        raise ProblemError(415, "a body with a Content-Encoding is not taken: send it as it is")
    kind = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        shown = kind.decode("latin-1")[:80]
        raise ProblemError(415, f"the content type is {shown!r}: send application/json", {"accept": "application/json"})


def _hops(headers: Mapping[bytes, bytes]) -> int:
    """Return how many relays an event has been through. Raises ProblemError when it goes in circles."""
    text = headers.get(b"x-outbox-hops", b"0")
    hops = int(text) if text.isdigit() and len(text) < 10 else 0  # noqa: PLR2004 - far more than any chain of relays
    if hops >= MAX_HOPS:
        raise ProblemError(508, f"this event has been through {hops} relays: a webhook points back at this service")
    return hops


async def _refuse(error: Exception, send: Send) -> None:
    problem = problem_for(error)
    headers = [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    await _answer(send, problem.status, [(b"content-type", PROBLEM_JSON.encode()), *headers], problem.encode())


async def _answer(send: Send, status: int, headers: list[Any], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
