"""Reading the bodies of events: how large one may be, and how many bytes all of them together may hold in memory."""

import io
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from app.problems import ProblemError
from outbox.domain.errors import BusyError, TooLargeError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Headers = Mapping[bytes, bytes]

JSON = b"application/json"
NDJSON = b"application/x-ndjson"


class ClientGoneError(Exception):
    """The client closed the connection before its body was complete: there is nobody to answer."""


class Intake:
    """The bounds on bodies: `max_body_bytes` for one, `budget_bytes` for all that are being taken in.

    A body larger than the whole budget is let in alone.
    """

    def __init__(self, max_body_bytes: int, budget_bytes: int) -> None:
        """Start with nothing taken."""
        self.max_body_bytes = max_body_bytes
        self._budget_bytes = budget_bytes
        self._used = 0

    def fits(self, size: int) -> bool:
        """Take `size` bytes if they are free; say whether they were."""
        if self._used and self._used + size > self._budget_bytes:
            return False
        self._used += size
        return True

    def give_back(self, size: int) -> None:
        """Return bytes that were taken."""
        self._used -= size


class BodyReader:
    """Reads one body; the bytes it took from the intake are held until `close`."""

    __slots__ = ("_held", "_intake", "_limit")

    def __init__(self, intake: Intake) -> None:
        """Read within the bounds of `intake`."""
        self._intake = intake
        self._limit = intake.max_body_bytes
        self._held = 0

    def limit(self, size: int) -> None:
        """Read at most `size` bytes, where that is less than the intake allows."""
        self._limit = min(self._limit, size)

    async def read(self, headers: Headers, receive: Receive) -> bytes:
        """Return the whole body. Raises ProblemError, TooLargeError, BusyError, ClientGoneError."""
        if b"content-encoding" in headers:
            raise ProblemError(415, "a body with a Content-Encoding is not taken: send it as it is")
        length = headers.get(b"content-length", b"0")
        if length.isdigit():
            self._hold(int(length))
        message = await receive()
        if not message.get("more_body", False) and message["type"] == "http.request":
            body: bytes = message.get("body", b"")
            self._hold(len(body))
            return body
        return await self._read_on(message, receive)

    async def _read_on(self, message: Message, receive: Receive) -> bytes:
        # BytesIO gives its bytes out without a copy: a body of 100 MB is in memory once.
        collected = io.BytesIO()
        while message["type"] == "http.request":
            collected.write(message.get("body", b""))
            self._hold(collected.tell())
            if not message.get("more_body", False):
                return collected.getvalue()
            message = await receive()
        raise ClientGoneError

    def close(self) -> None:
        """Give back what is held."""
        self._intake.give_back(self._held)
        self._held = 0

    def _hold(self, size: int) -> None:
        """See to it that `size` bytes are held in all."""
        if size > self._limit:
            setting = " (OUTBOX_MAX_BODY_BYTES)" if self._limit == self._intake.max_body_bytes else ""
            msg = f"the body is over the limit of {self._limit} bytes{setting}"
            raise TooLargeError(msg)
        if size > self._held:
            if not self._intake.fits(size - self._held):
                msg = "too many large bodies are being taken in at once (OUTBOX_INGEST_BYTES)"
                raise BusyError(msg)
            self._held = size


def media_type(headers: Headers, *taken: bytes) -> bytes:
    """Return the media type of a body. Raises ProblemError unless it is JSON or one of `taken`."""
    kind = headers.get(b"content-type", JSON).partition(b";")[0].strip().lower()
    if kind in taken:
        return kind
    if kind != JSON and not kind.endswith(b"+json"):
        names = b" or ".join((JSON, *taken)).decode()
        hint = " (with curl: --json)" if kind == b"application/x-www-form-urlencoded" else ""
        raise ProblemError(415, f"the content type is {kind.decode('latin-1')[:80]!r}: send {names}{hint}")
    return JSON
