"""One POST over aiohttp's connector, past its session: `docs/decisions/0026-past-the-session.md` says why.

The session offers what a webhook sender must not do (redirects, cookies, proxies, netrc, decompression) and spends a
fifth of a POST on finding out that none of it is wanted. What is left of it is here, in its order.
"""

import asyncio

import aiohttp
from aiohttp import hdrs
from multidict import CIMultiDict
from yarl import URL

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
"""The whole POST has one deadline (`outbox.relay.deadlines`); a timer for each step would cost more than it tells."""


async def exchange(
    connector: aiohttp.BaseConnector, url: URL, headers: dict[str, str], data: object
) -> aiohttp.ClientResponse:
    """Send one POST and return the response, its head read; the caller reads and releases it.

    `data` is bytes, or an asynchronous iterator of them where the headers have their length. Raises aiohttp's
    ClientError, InvalidURL among them.
    """
    if url.scheme not in connector.allowed_protocol_schema_set or not url.raw_host:
        raise aiohttp.InvalidURL(url)
    request = aiohttp.ClientRequest(
        hdrs.METH_POST, url, headers=CIMultiDict(headers), data=data, loop=asyncio.get_running_loop()
    )
    try:
        connection = await connector.connect(request, traces=[], timeout=_NO_TIMEOUT)
        try:
            return await _sent(request, connection)
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        if isinstance(error, aiohttp.ClientError):
            raise
        raise aiohttp.ClientOSError(*error.args) from error


async def _sent(request: aiohttp.ClientRequest, connection: "aiohttp.connector.Connection") -> aiohttp.ClientResponse:
    protocol = connection.protocol
    if protocol is None:  # closed between two steps of ours
        raise aiohttp.ServerDisconnectedError
    protocol.set_response_params(read_until_eof=True, auto_decompress=False)
    response = await request.send(connection)
    try:
        return await response.start(connection)
    except BaseException:
        response.close()
        raise
