"""Clients that send too slowly lose their connection and hear why; a busy service is no slow client."""

import asyncio
import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from app import protocol
from tests.harness import API_KEY, Reply, Service
from tests.http.impatient import PATIENCE_S
from tests.http.support import stats

EVENT = b'{"event":"call","instance":"loja01","data":"%s"}'
LARGE = EVENT % (b"x" * 1_000_000)
HEAD = f"POST /events HTTP/1.1\r\nHost: outbox\r\napikey: {API_KEY}\r\n".encode()

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """The service with little patience."""
    service = Service(tmp_path_factory.mktemp("service"))
    service.program = ["-m", "tests.http.impatient", "serve"]
    await service.start()
    yield service
    assert await service.stop() == 0
    await service.verify()


class Client:
    """A connection that sends what it is told when it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *parts: bytes, every_s: float = 0.0) -> None:
        """Send `parts` with pauses, unless the service has hung up."""
        try:
            for part in parts:
                self._writer.write(part)
                await self._writer.drain()
                await asyncio.sleep(every_s)
        except ConnectionError:
            return

    async def answer(self) -> Reply:
        """Read one answer."""
        async with asyncio.timeout(20):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            first, *rest = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
            body = await self._reader.readexactly(int(headers["content-length"]))
        return Reply(int(first.split()[1]), headers, body)

    async def is_reset(self, data: bytes) -> bool:
        """Send the same again and again; whether the service ends that, and not at once."""
        started = time.monotonic()
        async with asyncio.timeout(20):
            try:
                while True:
                    self._writer.write(data)
                    await self._writer.drain()
                    await asyncio.sleep(PATIENCE_S / 20)
            except ConnectionError:
                return time.monotonic() - started > PATIENCE_S / 2

    async def closed(self) -> bool:
        """Whether the service closes the connection without another byte."""
        async with asyncio.timeout(20):
            try:
                return await self._reader.read() == b""
            except ConnectionError:
                return True

    async def is_cut_off(self, about: str) -> None:
        """Assert that a 408 comes, soon enough, and then the end."""
        started = time.monotonic()
        reply = await self.answer()
        assert (reply.status, reply.headers["connection"]) == (408, "close"), reply
        assert reply.headers["content-type"] == "application/problem+json"
        assert about in reply.json()["detail"]
        assert await self.closed()
        assert time.monotonic() - started < 10 * PATIENCE_S


@asynccontextmanager
async def connected(service: Service) -> AsyncIterator[Client]:
    """A connection of one's own."""
    host, _, port = service.address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def with_length(body: bytes) -> bytes:
    """The head of a request with that body."""
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body)


async def test_the_shipped_patience_is_the_documented_one() -> None:
    """Ten seconds for a head, ten without a byte of a body, 64 KiB a second, looked at every second."""
    assert (protocol.HEAD_S, protocol.BODY_PAUSE_S) == (10, 10)
    assert protocol.BODY_BYTES_PER_S == 65_536
    assert protocol.LOOK_EVERY_S == 1


@pytest.mark.parametrize(
    "start", [b"", b"P", b"POST /events HTTP/1.1\r\nHost: outbox\r\nX: "], ids=["none", "one", "half"]
)
async def test_a_head_must_come(service: Service, start: bytes) -> None:
    """A connection on which no head comes, or half of one, is cut off."""
    async with connected(service) as client:
        await client.send(start)
        await client.is_cut_off("head")


async def test_a_head_must_come_to_its_end(service: Service) -> None:
    """A byte now and then does not help: the whole head has to be there in time."""
    async with connected(service) as client, asyncio.TaskGroup() as tasks:
        tasks.create_task(client.send(HEAD, b"X: ", *[b"x"] * 40, every_s=PATIENCE_S / 10))
        await client.is_cut_off("head")


async def test_a_second_head_must_come_too(service: Service) -> None:
    """On a connection kept alive the time begins with the first byte of the next head."""
    async with connected(service) as client:
        body = EVENT % b"first"
        await client.send(with_length(body) + body)
        assert (await client.answer()).status == 202
        await asyncio.sleep(1.5 * PATIENCE_S)
        await client.send(HEAD)
        await client.is_cut_off("head")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_must_not_pause(service: Service, *, chunked: bool) -> None:
    """A body that stops in the middle, or never starts, is cut off, and nothing of it is stored."""
    before = await stats(service)
    for part in (b"", LARGE[:900_000]):
        head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" if chunked else with_length(LARGE)
        async with connected(service) as client:
            await client.send(head + (b"%x\r\n%s" % (len(part), part) if chunked and part else part))
            await client.is_cut_off("64 KiB/s")
    assert await stats(service) == before


async def test_a_body_must_not_trickle(service: Service) -> None:
    """Pieces without a pause, but below 64 KiB a second, are cut off; a good start does not count for ever."""
    before = await stats(service)
    for start in (b"", LARGE[:100_000]):
        async with connected(service) as client, asyncio.TaskGroup() as tasks:
            await client.send(with_length(LARGE) + start)
            tasks.create_task(client.send(*[b"x" * 4096] * 60, every_s=PATIENCE_S / 8))
            await client.is_cut_off("64 KiB/s")
    assert await stats(service) == before


async def test_who_is_fast_enough_is_heard_to_the_end(service: Service) -> None:
    """A body that takes three times the patience, but comes steadily, is taken; so is one that pauses for less."""
    async with connected(service) as client:
        pieces = [LARGE[at : at + 50_000] for at in range(0, len(LARGE), 50_000)]
        await client.send(with_length(LARGE), *pieces, every_s=PATIENCE_S * 3 / len(pieces))
        assert (await client.answer()).status == 202
        body = EVENT % b"small"
        await client.send(with_length(body), body[:9], body[9:], every_s=PATIENCE_S / 3)
        assert (await client.answer()).status == 202


async def test_a_connection_kept_alive_may_rest(service: Service) -> None:
    """Between requests a client may be silent for longer than a head may take."""
    async with connected(service) as client:
        for n in range(3):
            body = EVENT % b"%d" % n
            await client.send(with_length(body) + body)
            assert (await client.answer()).status == 202
            await asyncio.sleep(1.5 * PATIENCE_S)


async def test_a_service_that_is_slow_itself_cuts_nobody_off(service: Service) -> None:
    """While a commit hangs, longer than any patience, the answer is waited for, also with a next request behind it."""
    async with connected(service) as client:
        locked = sqlite3.connect(service.database, isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        try:
            first, second = EVENT % b"held up", EVENT % b"behind it"
            await client.send(with_length(first) + first, with_length(second) + second[:20])
            await asyncio.sleep(2.5 * PATIENCE_S)
        finally:
            locked.execute("ROLLBACK")
            locked.close()
        assert (await client.answer()).status == 202
        await client.send(second[20:])
        assert (await client.answer()).status == 202


async def test_a_service_that_stood_still_cuts_nobody_off(service: Service) -> None:
    """Time in which the whole process was stopped is not counted, neither for a head nor for the rate of a body."""
    async with connected(service) as halfway, connected(service) as at_head:
        head = with_length(LARGE)
        await halfway.send(head + LARGE[:60_000])
        await at_head.send(head[:20])
        # Both have been heard once a request that came after them is answered.
        await service.accept("call")
        service.process.send_signal(signal.SIGSTOP)
        try:
            await halfway.send(LARGE[60_000:120_000])
            await at_head.send(head[20:40])
            await asyncio.sleep(3 * PATIENCE_S)
        finally:
            service.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.4 * PATIENCE_S)
        await halfway.send(LARGE[120_000:])
        assert (await halfway.answer()).status == 202
        await at_head.send(head[40:] + LARGE)
        assert (await at_head.answer()).status == 202


@pytest.mark.parametrize("connection", [b"", b"Connection: close\r\n"], ids=["kept alive", "to be closed"])
async def test_what_was_refused_early_is_not_read_for_ever(service: Service, connection: bytes) -> None:
    """A body that was refused by its length may go on for a while, is thrown away, and then the connection ends."""
    async with connected(service) as client:
        await client.send(HEAD + connection + b"Content-Length: 5000000000\r\n\r\n")
        assert (await client.answer()).status == 413
        assert await client.is_reset(b"x" * 1000)
