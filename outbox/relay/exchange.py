"""One POST over aiohttp's connector and parser, past its session: `docs/decisions/0026-past-the-session.md` says why.

aiohttp pools, dials, encrypts, and reads the answer. What its session, request and response offer beside that is what
a webhook sender must not do (redirects, cookies, proxies, netrc, decompression), and takes twice as long.
"""

import asyncio
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import aiohttp
from aiohttp import hdrs
from aiohttp.http import HttpProcessingError, StreamWriter
from yarl import URL

LARGE_BODY_BYTES = 512 * 1024
PIECE_BYTES = 64 * 1024

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
"""The whole POST has one deadline (`outbox.relay.deadlines`); a timer for each step would cost more than it tells."""
_NO_TARGET = re.compile(r"[\x00-\x20\x7f]")
_SWITCHING = 101
_FINAL = 200


class _Callee(NamedTuple):
    """Whom to call: what the connector goes by, and how the head of every POST begins."""

    request: aiohttp.ClientRequest
    opening: str


class Wire:
    """The way out over one connector."""

    def __init__(self, connector: aiohttp.BaseConnector) -> None:
        """Go over `connector`, which somebody else closes."""
        self._connector = connector
        self._loop = asyncio.get_running_loop()
        self._callee = lru_cache(maxsize=4096)(self._look_up)

    async def exchange(self, url: str, headers: dict[str, str], body: bytes) -> "Reply":
        """Send one POST and return the reply, its head read; the caller reads on, and then lets it go.

        Raises aiohttp's ClientError, InvalidURL among them, and ValueError for a header that would be two.
        """
        callee = self._callee(url)
        head = _head(callee.opening, headers, len(body))
        try:
            connection = await self._connector.connect(callee.request, traces=[], timeout=_NO_TIMEOUT)
            protocol = connection.protocol
            if protocol is None or not protocol.is_connected():  # closed between two steps of ours
                connection.close()
                raise aiohttp.ServerDisconnectedError
            reply = Reply(connection)
            try:
                protocol.set_response_params(read_until_eof=True, auto_decompress=False)
                reply.send(head, body, self._loop)
                await reply.begin(callee.request.request_info)
            except BaseException:
                reply.close()
                raise
        except OSError as error:
            if isinstance(error, aiohttp.ClientError):
                raise
            raise aiohttp.ClientOSError(*error.args) from error
        return reply

    def _look_up(self, text: str) -> _Callee:
        url = URL(text, encoded=True)  # else yarl would send a/b for a%2Fb
        known = url.scheme in self._connector.allowed_protocol_schema_set
        try:
            if not known or not url.raw_host or _NO_TARGET.search(text):
                raise aiohttp.InvalidURL(text)
            request = aiohttp.ClientRequest(hdrs.METH_POST, url, loop=self._loop)
        except ValueError as error:
            raise aiohttp.InvalidURL(text) from error
        ending = "connection: close\r\n" if self._connector.force_close else ""
        opening = f"POST {url.raw_path_qs} HTTP/1.1\r\nhost: {request.headers[hdrs.HOST]}\r\n{ending}"
        return _Callee(request, opening)


def _head(opening: str, headers: dict[str, str], size: int) -> bytes:
    """Return the head of a POST (RFC 9112, section 3). Raises ValueError for what would end a line too early."""
    lines = "\r\n".join([f"{name}: {value}" for name, value in headers.items()])
    if lines.count("\n") != len(headers) - 1 or lines.count("\r") != len(headers) - 1 or "\0" in lines:
        msg = "a header holds a line break or a NUL"
        raise ValueError(msg)
    return f"{opening}{lines}\r\ncontent-length: {size}\r\n\r\n".encode()


class Reply:
    """What came back: `status`, `headers`, and `content`, which is to be read before the connection is let go."""

    __slots__ = ("_connection", "_pouring", "content", "headers", "status")

    status: int
    headers: Mapping[str, str]
    content: aiohttp.StreamReader

    def __init__(self, connection: "aiohttp.connector.Connection") -> None:
        """Own `connection` until the end."""
        self._connection = connection
        self._pouring: asyncio.Task[None] | None = None

    def send(self, head: bytes, body: bytes, loop: asyncio.AbstractEventLoop) -> None:
        """Send a POST; who is answered before all of it has gone need not wait for the rest."""
        protocol, transport = self._connection.protocol, self._connection.transport
        if protocol is None or transport is None:
            raise aiohttp.ServerDisconnectedError
        if len(body) < LARGE_BODY_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            self._pouring = loop.create_task(_pour(StreamWriter(protocol, loop), body))

    async def begin(self, info: aiohttp.RequestInfo) -> None:
        """Read the head of the answer. Raises aiohttp's ClientError."""
        protocol = self._connection.protocol
        status = 0
        while status < _FINAL and status != _SWITCHING:  # 100 and its like announce the real answer
            if protocol is None:
                raise aiohttp.ServerDisconnectedError
            try:
                message, self.content = await protocol.read()
            except HttpProcessingError as error:
                raise aiohttp.ClientResponseError(info, (), status=error.code, message=error.message) from error
            status = message.code
        self.status, self.headers = status, message.headers

    def let_go(self) -> None:
        """Give the connection back, or close it where there is more to read or to send."""
        transport = self._connection.transport
        unsent = transport is not None and transport.get_write_buffer_size() > 0
        if unsent or (self._pouring is not None and not self._pouring.done()):
            self.close()
        else:
            self._connection.release()

    def close(self) -> None:
        """Close the connection, whatever is under way on it; what is not sent yet is not waited for."""
        if self._connection.transport is not None:
            self._connection.transport.abort()
        self._connection.close()


async def _pour(writer: StreamWriter, body: bytes) -> None:
    """Send a large body piece by piece, as fast as it is taken, and leave the loop free in between."""
    try:
        for start in range(0, len(body), PIECE_BYTES):
            await writer.write(body[start : start + PIECE_BYTES])
            await asyncio.sleep(0)
    except (OSError, aiohttp.ClientError):
        return  # the connection is gone: whoever waits for its answer is told so
