"""HTTP/1.1 with patience limits: what uvicorn's own protocol waits for without end is cut off here.

A head must be complete within ten seconds. A body must not pause for ten seconds, and after the first ten seconds must
have come at 64 KiB a second on average. Whoever is slower gets a 408 and loses the connection (RFC 9110, 15.5.9).
Time in which this service was not listening is not the client's.

A client that is refused while it is still sending hears why: closing at once would reset the connection, and the answer
could be lost with it (RFC 9112, 9.6).
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.problems import PROBLEM_JSON, ProblemError, problem_for

HEAD_S = 10.0
BODY_PAUSE_S = 10.0
BODY_BYTES_PER_S = 64 * 1024
LOOK_EVERY_S = 1.0


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol with one timer a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        now = self.loop.time()
        self._waiting_since: float | None = now
        self._body_since = self._last_byte = now
        self._body_bytes = 0
        self._ending = False
        self._looked_at = now
        self._look = self.loop.call_later(LOOK_EVERY_S, self._watch)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Note that something came; after an answer, the first byte begins the next head."""
        self._last_byte = self.loop.time()
        if self._waiting_since is None and self.cycle is not None and self.cycle.response_complete:
            self._waiting_since = self._last_byte
        super().data_received(data)
        self._body_bytes += len(data)

    def on_headers_complete(self) -> None:
        """Stop to wait for a head, and start to measure the body."""
        self._waiting_since = None
        self._body_since, self._body_bytes = self._last_byte, 0
        super().on_headers_complete()

        if not self.cycle.keep_alive:
            self.cycle.transport = _Lingering(self)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        """Close, if all that kept the connection open was a body that nobody wanted."""
        super().on_message_complete()
        if self._ending:
            self.transport.close()

    def end(self) -> None:
        """Close behind an answer; while the client is still sending, close our side only, and read on for a while."""
        cycle: Any = self.cycle
        if not cycle.more_body or self.transport.is_closing():
            self.transport.close()
        elif not self._ending:
            self._ending = True
            self._waiting_since = self.loop.time()
            self.transport.write_eof()

    def _watch(self) -> None:
        now = self.loop.time()
        self._look = self.loop.call_later(LOOK_EVERY_S, self._watch)
        # What came while the loop was held up, or while the application took nothing, has not been read yet; and a
        # request behind one that is not answered has time.
        passed, self._looked_at = now - self._looked_at, now
        self._forgive(passed if self.flow.read_paused or self.pipeline else passed - LOOK_EVERY_S, now)
        if self._waiting_since is not None:
            if now - self._waiting_since > HEAD_S:
                self._cut_off(f"the head of the request was not complete within {HEAD_S:g} s")
        elif self._reading_body() and self._too_slow(now):
            self._cut_off(f"the body came slower than {BODY_BYTES_PER_S // 1024} KiB/s, or paused too long")

    def _forgive(self, seconds: float, now: float) -> None:
        if seconds > LOOK_EVERY_S / 10:
            self._last_byte = min(self._last_byte + seconds, now)
            self._body_since = min(self._body_since + seconds, now)
            if self._waiting_since is not None:
                self._waiting_since = min(self._waiting_since + seconds, now)

    def _reading_body(self) -> bool:
        cycle: Any = self.cycle
        return cycle is not None and cycle.more_body and not cycle.response_complete

    def _too_slow(self, now: float) -> bool:
        took_s = now - self._body_since
        return now - self._last_byte > BODY_PAUSE_S or (
            took_s > BODY_PAUSE_S and self._body_bytes < took_s * BODY_BYTES_PER_S
        )

    def _cut_off(self, detail: str) -> None:
        self._look.cancel()
        if self.transport.is_closing():
            return
        cycle: Any = self.cycle
        # Nobody waits for a 408 in the middle of an answer, or behind one that was given before its body had come.
        if cycle is None or not cycle.response_started or (cycle.response_complete and not cycle.more_body):
            body = problem_for(ProblemError(408, detail)).encode()
            head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


class _Lingering:
    """The transport of a connection that ends with an answer."""

    def __init__(self, protocol: PatientProtocol) -> None:
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol.transport, name)

    def close(self) -> None:
        self._protocol.end()
