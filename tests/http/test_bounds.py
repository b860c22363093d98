# ruff: noqa: T201 - the memory that was measured is worth a look
"""Memory is bounded: what is being read, what waits for a commit, what is in flight; large media go through intact."""

import asyncio
import hashlib
import io
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.harness import API_KEY, INGEST_TOKEN, Receiver, Reply, Service, running
from tests.http.support import request_bytes, stats, talk

KEY = f"apikey: {API_KEY}".encode()
MIB = 1024 * 1024
BUDGET = 1_000_000
MEDIA_BYTES = 100_000_000
PEAK_BYTES = 450 * MIB
HEAD, TAIL = b'{"event":"messages.upsert","instance":"loja01","data":{"message":{"base64":"', b'"}}}'


def of_size(size: int) -> bytes:
    """A message with media, of exactly so many bytes."""
    room = size - len(HEAD) - len(TAIL)
    return HEAD + (b"QUJD" * (room // 4 + 1))[:room] + TAIL


async def post(service: Service, body: bytes, path: str = "/events") -> Reply:
    """Post these bytes on a connection of their own, which gets an answer."""
    reply = await talk(service, request_bytes("POST", path, body, KEY))
    assert reply is not None
    return reply


class Upload:
    """A request whose head is sent at once, and whose body when it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        """Send more of it."""
        self._writer.write(data)

    async def status(self) -> int:
        """Return the status of the answer."""
        async with asyncio.timeout(20):
            return int((await self._reader.readline()).split()[1])


@asynccontextmanager
async def uploading(service: Service, size: int | None) -> AsyncIterator[Upload]:
    """Send the head of a request with a body of that size, or a chunked one, until the service has asked for more."""
    host, _, port = service.address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    length = b"Transfer-Encoding: chunked" if size is None else b"Content-Length: %d" % size
    writer.write(
        b"\r\n".join([b"POST /events HTTP/1.1", b"Host: outbox", KEY, b"Expect: 100-continue", length, b"", b""])
    )
    async with asyncio.timeout(20):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    try:
        yield Upload(reader, writer)
    finally:
        writer.close()


def refused_for_now(reply: Reply, reason: str) -> bool:
    """Whether an answer says to come back later, when, and why."""
    assert reply.status == 503, reply
    assert reply.headers["content-type"] == "application/problem+json"
    assert int(reply.headers["retry-after"]) >= 1
    return reason in reply.json()["detail"]


async def test_bodies_being_read_share_a_budget(tmp_path: Path) -> None:
    """Past OUTBOX_INGEST_BYTES further bodies are 503 by their length alone; small ones fit in; nothing leaks."""
    async with running(tmp_path, OUTBOX_INGEST_BYTES=str(BUDGET)) as service:
        first, second = of_size(600_000), of_size(300_000)
        async with uploading(service, len(first)) as one, uploading(service, len(second)) as other:
            for path in ("/events", f"/ingest/{INGEST_TOKEN}", "/ingest"):
                assert refused_for_now(await post(service, of_size(100_001), path), "OUTBOX_INGEST_BYTES")
            assert refused_for_now(
                await post(service, b"[%s]" % of_size(200_000), "/events/batch"), "OUTBOX_INGEST_BYTES"
            )
            assert (await post(service, of_size(100_000))).status == 202
            other.send(second)
            assert await other.status() == 202
            assert (await post(service, of_size(400_000))).status == 202
            assert refused_for_now(await post(service, of_size(400_001)), "OUTBOX_INGEST_BYTES")
            one.send(first)
            assert await one.status() == 202
        assert (await post(service, of_size(BUDGET))).status == 202
        assert (await stats(service))["events"] == 5


async def test_chunked_bodies_count_as_they_come(tmp_path: Path) -> None:
    """A body without a length takes what it has sent so far: of two that together are too much, one is refused."""
    async with running(tmp_path, OUTBOX_INGEST_BYTES=str(BUDGET)) as service:
        body = of_size(700_000)
        async with uploading(service, None) as one, uploading(service, None) as other:
            answers = {}
            for upload in (one, other):
                upload.send(b"%x\r\n%s\r\n" % (600_000, body[:600_000]))
                answers[asyncio.create_task(upload.status())] = upload
            (refused,), (waiting,) = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            assert refused.result() == 503
            answers[waiting].send(b"%x\r\n%s\r\n0\r\n\r\n" % (100_000, body[600_000:]))
            assert await waiting == 202
        assert (await post(service, of_size(BUDGET))).status == 202


async def test_a_budget_smaller_than_a_body_admits_one_alone(tmp_path: Path) -> None:
    """One large body goes in by itself, however small the budget; a second one waits its turn with a 503."""
    async with running(tmp_path, OUTBOX_INGEST_BYTES="1000") as service:
        body = of_size(200_000)
        async with uploading(service, len(body)) as one:
            assert refused_for_now(await post(service, body), "OUTBOX_INGEST_BYTES")
            assert refused_for_now(await post(service, of_size(100)), "OUTBOX_INGEST_BYTES")
            one.send(body)
            assert await one.status() == 202
        assert (await post(service, body)).status == 202
        assert (await stats(service))["events"] == 2


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_who_is_refused_while_sending_hears_why(tmp_path: Path, connection: str) -> None:
    """A body that is refused by its length is read and thrown away for a while, so that the answer is not lost."""
    async with running(tmp_path, OUTBOX_MAX_BODY_BYTES="1000") as service:
        for _ in range(10):
            body = io.BytesIO(of_size(5_000_000))
            reply = await service.request("POST", "/events", body, {"connection": connection})  # type: ignore[arg-type]
            assert reply.status == 413
            assert "OUTBOX_MAX_BODY_BYTES" in reply.json()["detail"]
        assert (await service.request("POST", "/events", of_size(1000), {"connection": connection})).status == 202


async def test_nothing_leaks_whatever_ends_a_request(tmp_path: Path) -> None:
    """Refused, broken off, malformed, repeated and conflicting bodies give back every byte they took."""
    async with running(tmp_path, OUTBOX_INGEST_BYTES=str(BUDGET), OUTBOX_MAX_BODY_BYTES=str(BUDGET)) as service:
        sound = of_size(50_000)
        key = b"idempotency-key: k"
        for _ in range(3):
            for body, headers, status in [
                (sound, [KEY], 202), (sound[:-1], [KEY], 400), (b"[%s]" % sound, [KEY], 422), (sound, [], 401),
                (sound, [KEY, key], 202), (sound + b" ", [KEY, key], 409), (of_size(BUDGET + 1), [KEY], 413),
                (sound, [KEY, b"content-encoding: gzip"], 415), (sound, [KEY, b"x-outbox-hops: 5"], 508),
            ]:  # fmt: skip
                reply = await talk(service, request_bytes("POST", "/events", body, *headers))
                assert reply is not None
                assert reply.status == status
            whole = request_bytes("POST", "/events", sound, KEY)
            assert await talk(service, whole[:-1], then_leave=True) is None
            async with uploading(service, 400_000) as one, uploading(service, None) as other:
                one.send(sound)
                other.send(b"%x\r\n%s\r\n" % (len(sound), sound))
        async with asyncio.timeout(20):  # the service hears a little later that the last ones have gone
            while (await post(service, of_size(BUDGET))).status != 202:  # noqa: ASYNC110 - it is a process
                await asyncio.sleep(0.01)


@contextmanager
def commits_held_up(service: Service) -> Iterator[None]:
    """Let no commit through for a while."""
    connection = sqlite3.connect(service.database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


async def test_the_queue_of_the_journal_is_bounded(tmp_path: Path) -> None:
    """While commits hang, more than OUTBOX_QUEUE_BYTES of events are 503; what was let in is committed afterwards."""
    async with running(tmp_path, OUTBOX_QUEUE_BYTES="100000") as service:
        with commits_held_up(service):
            posting = [asyncio.create_task(post(service, of_size(30_000))) for _ in range(12)]
            async with asyncio.timeout(20):
                while not (refused := [task for task in posting if task.done()]):  # noqa: ASYNC110 - it is a process
                    await asyncio.sleep(0.01)
            assert refused_for_now(refused[0].result(), "queue is full")
        replies = await asyncio.gather(*posting)
        accepted = [reply for reply in replies if reply.status == 202]
        assert all(refused_for_now(reply, "queue is full") for reply in replies if reply.status != 202)
        # Three events fit in; if they did not come all at once, a commit is under way with the first of them.
        assert 3 <= len(accepted) < 12
        assert (await stats(service))["events"] == len(accepted)
        # An event larger than the whole queue goes in when nothing else waits.
        assert (await post(service, of_size(200_000))).status == 202


def peak_bytes(service: Service) -> int:
    """The most memory that the service has had resident so far."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@pytest.mark.parametrize("budget", ["256MiB", "1000"])
async def test_large_media_arrive_intact(tmp_path: Path, budget: str) -> None:
    """A message with 100 MB of media arrives as it was sent, and is in memory less than five times at its peak."""
    async with Receiver() as receiver, running(tmp_path, OUTBOX_DELIVERY_BYTES=budget) as service:
        await service.set_webhook("loja01", receiver.url)
        body = of_size(MEDIA_BYTES)
        before = peak_bytes(service)
        assert (await post(service, body)).status == 202
        (arrival,) = await receiver.wait_for_count(1)
        media = arrival.json()["data"]["message"]["base64"].encode()
        assert hashlib.sha256(media).digest() == hashlib.sha256(body[len(HEAD) : -len(TAIL)]).digest()
        await service.wait_until_settled()
        peak = peak_bytes(service)
        print(f"peak: {peak / 1e6:.0f} MB, {before / 1e6:.0f} MB of them before the message")
        assert peak < PEAK_BYTES


async def test_the_default_limit_is_that_of_evolution(tmp_path: Path) -> None:
    """A body of 136 MiB is taken; of one byte more it is refused by its length, before any of it is sent."""
    async with running(tmp_path) as service:
        limit = 136 * MIB
        for path in ("/events", f"/ingest/{INGEST_TOKEN}"):
            head = request_bytes("POST", path, b"", KEY).replace(
                b"Content-Length: 0", b"Content-Length: %d" % (limit + 1)
            )
            reply = await talk(service, head)
            assert reply is not None
            assert reply.status == 413
            assert f"{limit} bytes (OUTBOX_MAX_BODY_BYTES)" in reply.json()["detail"]
        assert (await post(service, of_size(limit))).status == 202
        assert (await stats(service))["events"] == 1
        assert peak_bytes(service) < PEAK_BYTES
