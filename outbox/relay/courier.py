"""One POST: limits on everything that a receiver could stretch, and a name for everything that goes wrong."""

import asyncio
import email.utils
import io
from contextlib import AsyncExitStack
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import aiohttp
from msgspec import Struct
from yarl import URL

from outbox.domain.addresses import OPERATORS_OWN, AddressPolicy
from outbox.domain.retrying import Answer
from outbox.relay.addresses import RefusedAddressError, guarded_sockets

EXCERPT_BYTES = 1024
ANSWER_BYTES = 64 * 1024
BODY_PATIENCE_S = 5.0
LARGE_BODY_BYTES = 512 * 1024
KEEPALIVE_S = 4.0

_REDIRECTS = range(300, 400)
_SUCCESS = range(200, 300)
_fresh: ContextVar[list[bool]] = ContextVar("fresh")


class Parcel(Struct, frozen=True):
    """One POST to make: `url` has no user and password; `trusted` marks the operator's own URL."""

    url: str
    headers: dict[str, str]
    body: bytes
    timeout_s: float
    trusted: bool = False


class _Connector(aiohttp.TCPConnector):
    """Tells the task that asked whether its connection is a fresh one; aiohttp's tracing would cost every request."""

    async def _create_connection(self, *args: Any, **kwargs: Any) -> Any:
        _fresh.get().append(True)
        return await super()._create_connection(*args, **kwargs)


class Courier:
    """Posts parcels. One connector for the operator's own URL, one for everybody else's.

    A pooled connection passes no guard again, so the two policies never share one.
    """

    def __init__(self, policy: AddressPolicy) -> None:
        """Guard the URLs of webhooks by `policy`; sessions are opened by `async with`."""
        self._policy = policy
        self._stack = AsyncExitStack()
        self._sessions: dict[tuple[bool, bool], aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Self:
        """Open the sessions."""
        for trusted, policy in ((False, self._policy), (True, OPERATORS_OWN)):
            for pooled in (True, False):
                self._sessions[trusted, pooled] = await self._stack.enter_async_context(_session(policy, pooled=pooled))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the sessions and their connections."""
        await self._stack.aclose()

    async def post(self, parcel: Parcel) -> Answer:
        """Make one POST and return what came of it; whatever the receiver does, this ends within the timeout."""
        try:
            async with asyncio.timeout(parcel.timeout_s):
                return await self._post(parcel)
        except TimeoutError:
            return Answer(error="timeout", detail=f"no answer within {parcel.timeout_s:g} s")
        except aiohttp.ClientError as error:
            return _named(error)
        except (OSError, ValueError) as error:
            return Answer(error="connection_error", detail=str(error)[:200])

    async def _post(self, parcel: Parcel) -> Answer:
        fresh: list[bool] = []
        _fresh.set(fresh)
        try:
            return await self._once(parcel, pooled=True)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            # The server closed a kept-alive connection just as we sent: nobody's fault, and no answer is lost.
            if fresh:
                raise
            return await self._once(parcel, pooled=False)

    async def _once(self, parcel: Parcel, *, pooled: bool) -> Answer:
        # aiohttp warns of large bytes; a file-like body is sent in pieces and leaves the loop free in between.
        data = parcel.body if len(parcel.body) < LARGE_BODY_BYTES else io.BytesIO(parcel.body)
        session = self._sessions[parcel.trusted, pooled]
        url = URL(parcel.url, encoded=True)
        async with session.post(url, data=data, headers=parcel.headers, allow_redirects=False) as response:
            return await _answer(response)


def _session(policy: AddressPolicy, *, pooled: bool) -> aiohttp.ClientSession:
    guard = guarded_sockets(policy)
    connector = (
        _Connector(limit=0, socket_factory=guard, keepalive_timeout=KEEPALIVE_S)
        if pooled
        else _Connector(limit=0, socket_factory=guard, force_close=True)
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        timeout=aiohttp.ClientTimeout(total=None),  # `post` has the one timeout that counts
    )


async def _answer(response: aiohttp.ClientResponse) -> Answer:
    status = response.status
    if status in _SUCCESS:
        # The status has acknowledged: what follows it is read only so that the connection can serve again.
        _, note = await _read(response)
        return Answer(status=status, detail=note)
    if not 200 <= status <= 599:  # noqa: PLR2004 - the statuses HTTP has for final answers
        response.close()
        return Answer(status=status, error="protocol_error", detail=f"the status {status} is no final answer")
    excerpt, note = await _read(response)
    if status in _REDIRECTS:
        target = response.headers.get("location", "nowhere")[:500]
        note = f"redirected to {target}; set the webhook to {target}"
    return Answer(
        status=status,
        detail=note,
        excerpt=excerpt[:EXCERPT_BYTES],
        retry_after_s=retry_after(response.headers.get("retry-after", "")),
    )


async def _read(response: aiohttp.ClientResponse) -> tuple[bytes, str]:
    """Return the first bytes of the body and a note on how it misbehaved; past the cap the connection is dropped."""
    body = b""
    try:
        async with asyncio.timeout(BODY_PATIENCE_S):
            while not response.content.at_eof():
                chunk = await response.content.readany()
                if not chunk:
                    break
                if len(body) < EXCERPT_BYTES:
                    body += chunk[:EXCERPT_BYTES]
                if response.content.total_bytes > ANSWER_BYTES:
                    response.close()
                    return body, "the answer was longer than 64 KiB and not read to its end"
    except TimeoutError:
        response.close()
        return body, "the answer's body stalled"
    except (aiohttp.ClientError, OSError) as error:
        response.close()
        return body, f"the answer's body broke off ({type(error).__name__})"
    return body, ""


def _named(error: aiohttp.ClientError) -> Answer:
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
        case aiohttp.ClientResponseError() | aiohttp.ClientPayloadError():
            name, detail = "protocol_error", str(error)
        case aiohttp.InvalidURL():
            name, detail = "invalid_url", "the URL cannot be called"
        case _:
            name, detail = "connection_error", type(error).__name__
    return Answer(error=name, detail=detail[:200])


def retry_after(value: str) -> float | None:
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
    return (moment - datetime.now(UTC)).total_seconds()
