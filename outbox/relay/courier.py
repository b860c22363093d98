"""One POST: limits on everything that a receiver could stretch, and a name for everything that goes wrong."""

import asyncio
import email.utils
from contextlib import AsyncExitStack
from datetime import UTC
from types import TracebackType
from typing import Any, Self

import aiohttp
from msgspec import Struct

from outbox.domain.addresses import OPERATORS_OWN, AddressPolicy
from outbox.domain.retrying import Answer
from outbox.relay.addresses import RefusedAddressError, guarded_sockets
from outbox.relay.clock import Clock
from outbox.relay.deadlines import Deadlines
from outbox.relay.exchange import Reply, Wire

EXCERPT_BYTES = 1024
ANSWER_BYTES = 64 * 1024
BODY_PATIENCE_S = 5.0
KEEPALIVE_S = 4.0

_REDIRECTS = range(300, 400)
_SUCCESS = range(200, 300)


class Parcel(Struct, frozen=True):
    """One POST to make: `url` has no user and password; `trusted` marks the operator's own URL."""

    url: str
    headers: dict[str, str]
    body: bytes
    timeout_s: float
    trusted: bool = False


class _Connector(aiohttp.TCPConnector):
    """Remembers which tasks were given a fresh connection; aiohttp's own tracing would cost every request."""

    def __init__(self, policy: AddressPolicy, **options: Any) -> None:
        super().__init__(limit=0, socket_factory=guarded_sockets(policy), **options)
        self.dialled: set[object] = set()

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        self.dialled.add(asyncio.current_task())
        return await super()._create_connection(*args, **kwargs)


class _Line(Struct, frozen=True):
    """The way out under one address policy; a pooled connection passes no guard again, so policies never share one."""

    pooled: Wire
    fresh: Wire
    dialled: set[object]


class Courier:
    """Posts parcels: over one line to the operator's own URL, over another to everybody else's."""

    def __init__(self, policy: AddressPolicy, clock: Clock) -> None:
        """Guard the URLs of webhooks by `policy`; `async with` opens it."""
        self._policy = policy
        self._clock = clock
        self._stack = AsyncExitStack()
        self._lines: dict[bool, _Line] = {}
        self._deadlines = Deadlines(asyncio.get_running_loop())

    async def __aenter__(self) -> Self:
        """Open the lines."""
        for trusted, policy in ((False, self._policy), (True, OPERATORS_OWN)):
            pooled, fresh = _Connector(policy, keepalive_timeout=KEEPALIVE_S), _Connector(policy, force_close=True)
            await self._stack.enter_async_context(pooled)
            await self._stack.enter_async_context(fresh)
            self._lines[trusted] = _Line(Wire(pooled), Wire(fresh), pooled.dialled)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._stack.aclose()

    async def post(self, parcel: Parcel) -> Answer:
        """Make one POST and return what came of it; whatever the receiver does, this ends within the timeout."""
        line = self._lines[parcel.trusted]
        deadline = self._deadlines.within(parcel.timeout_s)
        try:
            with deadline:
                try:
                    reply = await line.pooled.exchange(parcel.url, parcel.headers, parcel.body)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    # The server closed a kept-alive connection just as we sent: nobody's fault, no answer is lost.
                    if deadline.task in line.dialled or _begun(error):
                        raise
                    reply = await line.fresh.exchange(parcel.url, parcel.headers, parcel.body)
                try:
                    # From here on the deadline costs only the body.
                    return await _answer(reply, self._clock, min(deadline.stop(), BODY_PATIENCE_S))
                finally:
                    reply.let_go()
        except TimeoutError:
            return Answer(error="timeout", detail=f"no answer within {parcel.timeout_s:g} s")
        except aiohttp.ClientError as error:
            return _named(error)
        except (OSError, ValueError) as error:
            return Answer(error="connection_error", detail=str(error)[:200])
        finally:
            line.dialled.discard(deadline.task)


def _begun(error: aiohttp.ClientError) -> bool:
    """Say whether an answer had begun when the connection was closed: aiohttp then gives what there is of its head."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)


async def _answer(reply: Reply, clock: Clock, patience_s: float) -> Answer:
    status = reply.status
    if status in _SUCCESS:
        # The status has acknowledged: what follows it is read only so that the connection can serve again.
        _, note = await _read(reply, patience_s)
        return Answer(status=status, detail=note)
    if not 200 <= status <= 599:  # noqa: PLR2004 - the statuses HTTP has for final answers
        reply.close()
        return Answer(status=status, error="protocol_error", detail=f"the status {status} is no final answer")
    excerpt, note = await _read(reply, patience_s)
    if status in _REDIRECTS:
        target = reply.headers.get("location", "nowhere")[:500]
        note = f"redirected to {target}; set the webhook to {target}"
    return Answer(
        status=status,
        detail=note,
        excerpt=excerpt[:EXCERPT_BYTES],
        retry_after_s=retry_after(reply.headers.get("retry-after", ""), clock.now_ms()),
    )


async def _read(reply: Reply, patience_s: float) -> tuple[bytes, str]:
    """Return the first bytes of the body and a note on how it misbehaved; past the cap the connection is dropped."""
    body = b""
    if reply.content.at_eof():
        return body, ""
    try:
        async with asyncio.timeout(patience_s):
            while not reply.content.at_eof():
                chunk = await reply.content.readany()
                if not chunk:
                    break
                if len(body) < EXCERPT_BYTES:
                    body += chunk[:EXCERPT_BYTES]
                if reply.content.total_bytes > ANSWER_BYTES:
                    reply.close()
                    return body, "the answer was longer than 64 KiB and not read to its end"
    except TimeoutError:
        reply.close()
        return body, "the answer's body stalled"
    except (aiohttp.ClientError, OSError) as error:
        reply.close()
        return body, f"the answer's body broke off ({type(error).__name__})"
    return body, ""


def _named(error: aiohttp.ClientError) -> Answer:  # noqa: C901 - one table of names
    """Give the failure a name that people can search for."""
    cause = getattr(error, "os_error", None)
    match error:
        case aiohttp.ClientConnectorDNSError():
            name, detail = "dns_error", str(error.os_error)
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            name, detail = "tls_error", str(error)
        case aiohttp.ClientConnectorError() if isinstance(cause, RefusedAddressError):
            name, detail = "address_refused", str(cause)
        case aiohttp.ClientConnectorError() if isinstance(cause, ConnectionRefusedError):
            name, detail = "connection_refused", str(cause)
        case aiohttp.ClientConnectorError():
            name, detail = "connection_error", str(cause)
        case aiohttp.ServerDisconnectedError():
            name, detail = "connection_closed", "the receiver closed the connection without an answer"
        case aiohttp.ClientOSError():
            name, detail = "connection_reset", str(error)
        case aiohttp.ClientResponseError():
            # Its text holds the URL, and that may hold a token.
            name, detail = "protocol_error", error.message
        case aiohttp.ClientPayloadError():
            name, detail = "protocol_error", str(error)
        case aiohttp.InvalidURL():
            name, detail = "invalid_url", "the URL cannot be called"
        case _:
            name, detail = "connection_error", type(error).__name__
    return Answer(error=name, detail=detail[:200])


def retry_after(value: str, now_ms: int) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, section 10.2.3), or None where it says nothing."""
    value = value.strip()
    if value.isdecimal() and value.isascii():
        return float(value[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() - now_ms / 1000
