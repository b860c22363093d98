"""The bytes of a POST, as a socket receives them, and what becomes of a connection that was answered too early."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import AddrInfoType, SocketFactoryType

from outbox.relay.exchange import LARGE_BODY_BYTES, Wire

HEADERS = {"content-type": "application/json", "X-Caf\u00e9": "caf\u00e9", "accept": "*/*"}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine"
TOO_LARGE = b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Serve every connection that way; give the port."""
    tasks: set[asyncio.Task[None]] = set()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.transport.abort()

    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind((host, 0))
    async with await asyncio.start_server(served, sock=listener):
        yield listener.getsockname()[1]
    await asyncio.gather(*tasks)


def small_socket(address: AddrInfoType) -> socket.socket:
    """Return a socket whose kernel takes little of what nobody reads."""
    family, kind, protocol, *_ = address
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return found


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return head and body of one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(size)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("size", [0, 2, 100_000, LARGE_BODY_BYTES - 1, LARGE_BODY_BYTES, 5_000_000])
async def test_a_post_is_these_bytes(size: int, kept: bool) -> None:  # noqa: FBT001
    """The target as it was given, the host as it is dialled, our headers in their order, and nothing else."""
    seen: list[tuple[int, bytes, bytes]] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        while not reader.at_eof():
            try:
                head, body = await read_request(reader)
            except asyncio.IncompleteReadError:
                break
            seen.append((number, head, body))
            writer.write(OK)

    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with serving(serve) as port, aiohttp.TCPConnector(force_close=not kept) as connector:
        wire = Wire(connector)
        for _ in range(2):
            reply = await wire.exchange(f"http://127.0.0.1:{port}/a%2fb/%C3?q=[1]&r#f", HEADERS, body)
            assert (reply.status, reply.headers["Content-Length"], await reply.content.read()) == (200, "4", b"fine")
            reply.let_go()
    closing = "" if kept else "connection: close\r\n"
    head = (
        f"POST /a%2fb/%C3?q=[1]&r HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{closing}"
        f"content-type: application/json\r\nX-Caf\u00e9: caf\u00e9\r\naccept: */*\r\ncontent-length: {size}\r\n\r\n"
    ).encode()
    assert seen == [(1, head, body), (1 if kept else 2, head, body)]


@pytest.mark.parametrize(
    ("size", "factory"),
    [(LARGE_BODY_BYTES - 1, small_socket), (20_000_000, small_socket), (LARGE_BODY_BYTES, None)],
    ids=["in the transport", "in our hands", "between two pieces"],
)
async def test_an_answer_to_half_a_post_counts_and_ends_its_connection(size: int, factory: SocketFactoryType) -> None:
    """Whoever refuses a body unread is heard at once; what is left of it goes nowhere, not ahead of the next POST."""
    heads: list[bytes] = []
    bodies: list[int] = []
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(TOO_LARGE)
        await over.wait()
        body = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100_000):
                body += len(data)
        bodies.append(body)

    async with asyncio.timeout(10), serving(serve) as port, aiohttp.TCPConnector(socket_factory=factory) as connector:
        wire = Wire(connector)
        for body in (b"x" * size, b"{}"):
            reply = await wire.exchange(f"http://127.0.0.1:{port}/", HEADERS, body)
            assert reply.status == 413
            reply.let_go()
        over.set()
    assert [head.split(b"\r\n")[0] for head in heads] == [b"POST / HTTP/1.1"] * 2
    assert max(bodies) < size


async def test_a_connection_that_breaks_amid_a_large_body_is_an_error() -> None:
    """And nothing of the half-sent body is left running."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async with serving(serve) as port, aiohttp.TCPConnector() as connector:
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await Wire(connector).exchange(f"http://127.0.0.1:{port}/", HEADERS, b"x" * 20_000_000)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("header", [("x", "a\r\nb: c"), ("x", "a\nb"), ("x", "a\rb"), ("x\r\ny", "a"), ("x", "\0")])
async def test_a_header_that_would_be_two_is_never_sent(header: tuple[str, str]) -> None:
    """It is refused where it is set; a way around that does not lead to a receiver."""
    async with aiohttp.TCPConnector() as connector:
        with pytest.raises(ValueError, match="line break or a NUL"):
            await Wire(connector).exchange("http://127.0.0.1:9", {"a": "b", header[0]: header[1]}, b"")


@pytest.mark.parametrize(
    "url",
    ["ftp://host/", "host", "http:///path", "", "http://h/a b", "http://h/a\r\nb: c", "http://h/?a\0", "http://h:x/"],
)
async def test_a_url_that_cannot_be_called_is_an_error(url: str) -> None:
    """Not one of many kinds of ValueError."""
    async with aiohttp.TCPConnector() as connector:
        with pytest.raises(aiohttp.InvalidURL):
            await Wire(connector).exchange(url, HEADERS, b"")


async def test_an_address_of_ipv6_stands_in_brackets() -> None:
    """In `host`, with the port it is dialled at."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0])
        writer.write(OK)

    async with serving(serve, "::1") as port, aiohttp.TCPConnector() as connector:
        reply = await Wire(connector).exchange(f"http://[::1]:{port}/", HEADERS, b"{}")
        assert await reply.content.read() == b"fine"
        reply.let_go()
    assert f"\r\nhost: [::1]:{port}\r\n".encode() in heads[0]
