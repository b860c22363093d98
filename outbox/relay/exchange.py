"""One POST over aiohttp's connector, past its session: `docs/decisions/0026-past-the-session.md` says why.

The session offers what a webhook sender must not do (redirects, cookies, proxies, netrc, decompression) and spends a
fifth of a POST on finding out that none of it is wanted. What is left of it is here, in its order.
"""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import hdrs
from yarl import URL

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
"""The whole POST has one deadline (`outbox.relay.deadlines`); a timer for each step would cost more than it tells."""


LARGE_BODY_BYTES = 512 * 1024
PIECE_BYTES = 64 * 1024


async def exchange(
    connector: aiohttp.BaseConnector, url: URL, headers: dict[str, str], body: bytes
) -> aiohttp.ClientResponse:
    """Send one POST and return the response, its head read; the caller reads it and has it `let_go`.

    Raises aiohttp's ClientError, InvalidURL among them.
    """
    if url.scheme not in connector.allowed_protocol_schema_set or not url.raw_host:
        raise aiohttp.InvalidURL(url)
    if len(body) < LARGE_BODY_BYTES:
        data: aiohttp.BytesPayload | AsyncIterator[bytes] = aiohttp.BytesPayload(body)
    else:
        # aiohttp warns of large bytes, and makes a copy of what a BytesIO holds.
        data, headers = _pieces(body), {**headers, "content-length": str(len(body))}
    request = aiohttp.ClientRequest(hdrs.METH_POST, url, headers=headers, data=data, loop=asyncio.get_running_loop())
    try:
        connection = await connector.connect(request, traces=[], timeout=_NO_TIMEOUT)
        protocol = connection.protocol
        if protocol is None:  # closed between two steps of ours
            raise aiohttp.ServerDisconnectedError
        response: aiohttp.ClientResponse | None = None
        try:
            protocol.set_response_params(read_until_eof=True, auto_decompress=False)
            response = await request.send(connection)
            return await response.start(connection)
        except BaseException:
            if response is not None:
                response.close()
            connection.close()
            raise
    except OSError as error:
        if isinstance(error, aiohttp.ClientError):
            raise
        raise aiohttp.ClientOSError(*error.args) from error


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """Yield a large body piece by piece, and leave the loop free in between."""
    for start in range(0, len(body), PIECE_BYTES):
        yield body[start : start + PIECE_BYTES]
        await asyncio.sleep(0)


async def let_go(response: aiohttp.ClientResponse) -> None:
    """Give the connection back, or close it where there is more to read or to send; one that ended has done so."""
    if not response.closed:
        response.release()
        await response.wait_for_close()
