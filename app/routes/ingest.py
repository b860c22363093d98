"""Taking events in: a plain ASGI application in front of Litestar.

This is the one path where every microsecond counts, and where the body must reach us unparsed; a handler of the
framework costs about as much as the rest of it together (`docs/decisions/`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Any

import anyio.lowlevel
import msgspec
import structlog

from app.intake import JSON, NDJSON, BodyReader, ClientGoneError, Headers, Intake, Message, Receive, media_type
from app.problems import PROBLEM_JSON, ProblemError, problem_for
from app.security import Keys
from outbox.domain.batches import read_array, read_lines
from outbox.domain.errors import BusyError, InvalidError, OutboxError, TooLargeError
from outbox.domain.events import MAX_HOPS, Event, read_event, read_evolution_event
from outbox.domain.ids import event_text
from outbox.engine import Engine

Scope = Message
Send = Callable[[Message], Awaitable[None]]

BATCH_MAX_EVENTS = 10_000
BATCH_MAX_BYTES = 16 * 1024 * 1024

_OWN_PATHS = frozenset({"/events", "/events/", "/events/batch", "/events/batch/"})
_LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
_KEY_MAX_BYTES = 255
_EVENTS_AT_ONCE = 250

_JSON = [(b"content-type", JSON)]
_REPLAYED = [*_JSON, (b"idempotency-replayed", b"true")]

_encode = msgspec.json.Encoder().encode
_log = structlog.get_logger("http")


class Receipt(msgspec.Struct):
    """The answer to one event."""

    id: str
    seq: int
    deliveries: int


class BatchReceipt(msgspec.Struct):
    """The answer to a batch."""

    accepted: int
    first_seq: int
    last_seq: int
    ids: list[str]


class Ingest:
    """Serves `POST /events`, `POST /events/batch` and `POST /ingest...`."""

    def __init__(self, engine: Engine, keys: Keys, intake: Intake) -> None:
        """Accept into `engine` what `keys` let through, within the bounds of `intake`."""
        self._engine = engine
        self._keys = keys
        self._intake = intake

    @staticmethod
    def serves(scope: Scope) -> bool:
        """Say whether a request is for this application: looking at events is Litestar's."""
        path: str = scope["path"]
        if not path.startswith(("/events", "/ingest")) or scope["type"] != "http":
            return False
        if path in _OWN_PATHS:
            return scope["method"] not in _LOOKING
        return path == "/ingest" or path.startswith("/ingest/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        path = scope["path"].rstrip("/")
        serve = self._event if path == "/events" else self._batch if path == "/events/batch" else self._evolution
        reader = BodyReader(self._intake)
        try:
            receipt, replayed = await serve(scope, headers, reader, receive)
        except ClientGoneError:
            return
        except asyncio.CancelledError:
            # The grace of a stop is over, and this task ends here anyway; a sender that is answered comes back.
            await _refuse(BusyError("the service is stopping", retry_after_s=5), send)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
            if not isinstance(error, OutboxError):
                _log.exception("request.failed", path=path)
            await _refuse(error, send)
            return
        finally:
            reader.close()
        await _answer(send, 202, _REPLAYED if replayed else _JSON, _encode(receipt))

    async def _event(
        self, scope: Scope, headers: Headers, reader: BodyReader, receive: Receive
    ) -> tuple[Receipt, bool]:
        self._keys.check_api_key(headers)
        _check_method(scope)
        key = _idempotency_key(headers)
        media_type(headers)
        event = read_event(await reader.read(headers, receive), _hops(headers))
        accepted = await self._engine.accept(event, key)
        return Receipt(event_text(accepted.id), accepted.seq, accepted.deliveries), accepted.replayed

    async def _batch(
        self, scope: Scope, headers: Headers, reader: BodyReader, receive: Receive
    ) -> tuple[BatchReceipt, bool]:
        self._keys.check_api_key(headers)
        _check_method(scope)
        key = _idempotency_key(headers)
        reader.limit(BATCH_MAX_BYTES)
        read = read_lines if media_type(headers, NDJSON) == NDJSON else read_array
        body = await reader.read(headers, receive)
        events = await _all(read(body, _hops(headers)))
        accepted = await self._engine.accept_batch(events, body, key)
        ids = [event_text(event) for event in accepted.ids]
        receipt = BatchReceipt(len(ids), accepted.first_seq, accepted.first_seq + len(ids) - 1, ids)
        return receipt, accepted.replayed

    async def _evolution(
        self, scope: Scope, headers: Headers, reader: BodyReader, receive: Receive
    ) -> tuple[Receipt, bool]:
        _check_method(scope)
        token = scope["path"].removeprefix("/ingest").lstrip("/").partition("/")[0]
        if not self._keys.is_ingest_token(token.encode()):
            # No token in the path: the first segment is the suffix of a local webhook that shows its key in a header.
            self._keys.check_ingest_key(headers)
        media_type(headers)
        event = read_evolution_event(await reader.read(headers, receive), _hops(headers))
        accepted = await self._engine.accept_repeatable(event)
        return Receipt(event_text(accepted.id), accepted.seq, accepted.deliveries), accepted.replayed


async def _all(events: Iterator[Event]) -> list[Event]:
    """Read all events of a batch, letting others have the loop now and then. Raises InvalidError, TooLargeError."""
    found: list[Event] = []
    while few := list(islice(events, _EVENTS_AT_ONCE)):
        found += few
        if len(found) > BATCH_MAX_EVENTS:
            msg = f"a batch has at most {BATCH_MAX_EVENTS} events"
            raise TooLargeError(msg)
        await anyio.lowlevel.checkpoint()
    if not found:
        msg = "the batch is empty"
        raise InvalidError(msg)
    return found


def _check_method(scope: Scope) -> None:
    if scope["method"] != "POST":
        allowed = "GET, HEAD, OPTIONS, POST" if scope["path"] == "/events" else "POST"
        raise ProblemError(405, "events are posted here", {"allow": allowed})


def _idempotency_key(headers: Headers) -> bytes:
    key = headers.get(b"idempotency-key") or headers.get(b"webhook-id", b"")
    if len(key) > _KEY_MAX_BYTES:
        raise ProblemError(422, f"an idempotency key has at most {_KEY_MAX_BYTES} bytes - at `Idempotency-Key`")
    return key


def _hops(headers: Headers) -> int:
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
