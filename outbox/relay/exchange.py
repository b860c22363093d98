"""One POST over aiohttp's connector, past its session: `docs/decisions/0026-past-the-session.md` says why.

The session offers what a webhook sender must not do (redirects, cookies, proxies, netrc, decompression) and spends a
fifth of a POST on finding out that none of it is wanted. What is left of it is here, in its order.
"""

import asyncio

import aiohttp
from aiohttp import hdrs
from yarl import URL

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
"""The whole POST has one deadline (`outbox.relay.deadlines`); a timer for each step would cost more than it tells."""


async def exchange(
    connector: aiohttp.BaseConnector, url: URL, headers: dict[str, str], data: object
) -> aiohttp.ClientResponse:
    """Send one POST and return the response, its head read; the caller reads it and has it `let_go`.

    `data` is bytes, or an asynchronous iterator of them where the headers have their length. Raises aiohttp's
    ClientError, InvalidURL among them.
    """
    if url.scheme not in connector.allowed_protocol_schema_set or not url.raw_host:
        raise aiohttp.InvalidURL(url)
    body = aiohttp.BytesPayload(data) if isinstance(data, bytes) else data  # else aiohttp searches for what fits
    request = aiohttp.ClientRequest(hdrs.METH_POST, url, headers=headers, data=body, loop=asyncio.get_running_loop())
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


async def let_go(response: aiohttp.ClientResponse) -> None:
    """Give the connection back, or close it where there is more to read or to send; one that ended has done so."""
    if not response.closed:
        response.release()
        await response.wait_for_close()
