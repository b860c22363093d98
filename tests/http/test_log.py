import asyncio
import json
import socket
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from app.routes.log import stream_of
from outbox.engine import Engine
from outbox.inspecting import Entry
from outbox.journal.following import Followers
from tests.harness import API_KEY, Receiver, Service, running

PASSWORD = "canary-password"
TOKEN = "canary-token"
SECRET_APIKEY = "canary-of-the-instance"


async def records(service: Service, after: int = 0, limit: int = 500) -> list[Any]:
    """Return a page of the log."""
    reply = await service.request("GET", f"/log?after={after}&limit={limit}")
    assert reply.status == 200, reply
    items: list[Any] = reply.json()["items"]
    return items


async def with_history(service: Service, receiver: Receiver) -> str:
    """Set a webhook with secrets, have an event need two attempts, delete the webhook; return the event's id."""
    receiver.answer = lambda arrival: 500 if arrival.headers["x-outbox-attempt"] == "1" else 200
    await service.set_webhook("loja01", receiver.url.replace("://", f"://user:{PASSWORD}@"), headers={"x-token": TOKEN})
    event_id = await service.accept(apikey=SECRET_APIKEY)
    await service.wait_until_settled()
    assert (await service.request("DELETE", "/webhooks/instances/loja01")).status == 204
    return event_id


async def test_records_are_shown_by_name(tmp_path: Path) -> None:
    """GET /log shows every record: seq, type, digest, and its fields with public ids; no secret is among them."""
    async with Receiver() as receiver, running(tmp_path) as service:
        event_id = await with_history(service, receiver)
        shown = await records(service)
        text = (await service.request("GET", "/log")).body.decode()
    assert [record["seq"] for record in shown] == [1, 2, 3, 4, 5]
    assert [record["type"] for record in shown] == [
        "WebhookSet", "EventAccepted", "AttemptRecorded", "AttemptRecorded", "WebhookDeleted"
    ]  # fmt: skip
    webhook, event, first, second, deleted = shown
    assert (webhook["webhook"], webhook["instance"], webhook["settings"]["url"]) == ("wh_1", "loja01", receiver.url)
    assert (event["id"], event["kind"], event["targets"]) == (event_id, "MESSAGES_UPSERT", ["wh_1"])
    assert (first["event"], first["delivery"]) == (event_id, f"{event_id.replace('evt', 'dlv')}_1")
    assert [(attempt["attempt"], attempt["status"], attempt["effect"]) for attempt in (first, second)] == [
        (1, 500, "retry"), (2, 200, "acknowledge")
    ]  # fmt: skip
    assert deleted["webhook"] == "wh_1"
    assert all(len(bytes.fromhex(record["digest"])) == 32 for record in shown)
    assert all(record["at"].endswith("Z") for record in shown)
    assert not [secret for secret in (PASSWORD, TOKEN, SECRET_APIKEY) if secret in text]


async def test_pages(tmp_path: Path) -> None:
    """A page begins after `after` and has at most `limit` records; `next` goes on, and is null at the end."""
    async with running(tmp_path) as service:
        for _ in range(5):
            await service.accept()
        first = (await service.request("GET", "/log?limit=3")).json()
        assert [[record["seq"] for record in first["items"]], first["next"]] == [[1, 2, 3], 3]
        second = (await service.request("GET", f"/log?limit=3&after={first['next']}")).json()
        assert [[record["seq"] for record in second["items"]], second["next"]] == [[4, 5], None]
        assert (await service.request("GET", "/log?after=999")).json() == {"items": [], "next": None}


@pytest.mark.parametrize("path", ["/log", "/log/stream"])
async def test_bad_values_name_their_parameter(tmp_path: Path, path: str) -> None:
    """A wrong `after`, `limit` or Last-Event-ID is 422 and named; without the key there is nothing."""
    async with running(tmp_path) as service:
        for query, name in (("after=x", "after"), ("after=-1", "after"), ("limit=0", "limit"), ("bogus=1", "bogus")):
            reply = await service.request("GET", f"{path}?{query}")
            assert reply.status == 422
            assert reply.json()["detail"].endswith(f"at `{name}`")
        if path == "/log/stream":
            reply = await service.request("GET", path, headers={"last-event-id": "first"})
            assert (reply.status, reply.json()["detail"].endswith("at `Last-Event-ID`")) == (422, True)
        assert (await service.request("GET", path, headers={"apikey": "wrong-key"})).status == 401


async def test_a_record_that_cannot_be_read_is_said_to_be(tmp_path: Path) -> None:
    """A damaged record does not keep the others from being shown."""
    service = Service(tmp_path)
    await service.start()
    for _ in range(3):
        await service.accept()
    assert await service.stop() == 0
    with sqlite3.connect(service.database) as connection:
        connection.execute("UPDATE log SET record = x'c1' WHERE seq = 2")
    connection.close()
    await service.start()
    shown = await records(service)
    assert [record["type"] for record in shown] == ["EventAccepted", "unreadable", "EventAccepted"]
    assert "cannot be read" in shown[1]["detail"]
    assert await service.stop() == 0


class Stream:
    """An open stream of server-sent events."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self, timeout_s: float = 20) -> tuple[int, Any]:
        """Return the id and the data of the next event, passing over comments."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(timeout_s):
            while True:
                line = (await self.answer.content.readline()).decode()
                assert line, "the stream has ended"
                name, _, value = line.rstrip("\n").partition(": ")
                if line == "\n" and "data" in fields:
                    return int(fields["id"]), json.loads(fields["data"])
                fields[name] = value

    async def rest(self, timeout_s: float = 20) -> bytes:
        """Return what comes until the stream ends."""
        async with asyncio.timeout(timeout_s):
            return await self.answer.content.read()


@asynccontextmanager
async def stream(service: Service, query: str = "", **headers: str) -> AsyncIterator[Stream]:
    """Open /log/stream."""
    async with (
        aiohttp.ClientSession(headers={"apikey": API_KEY, **headers}) as session,
        session.get(f"{service.address}/log/stream{query}") as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        yield Stream(answer)


async def test_the_stream_sends_what_was_and_what_comes(tmp_path: Path) -> None:
    """A stream begins after `after` and goes on with every commit, soon after it."""
    async with running(tmp_path) as service:
        for _ in range(3):
            await service.accept()
        async with stream(service, "?after=1") as opened:
            assert [(await opened.next())[0] for _ in range(2)] == [2, 3]
            for seq in range(4, 10):
                began = time.monotonic()
                event_id = await service.accept()
                found, record = await opened.next()
                assert (found, record["seq"], record["id"]) == (seq, seq, event_id)
                assert time.monotonic() - began < 5, "no keep-alive is what wakes it"
        assert record in await records(service)


class CommitsWhileRead:
    """An engine in which a commit lands after a look at the log, before whoever looked waits for it."""

    def __init__(self) -> None:
        self.followers = Followers()
        self.inspector = self
        self.looks = 0

    async def log(self, after: int, _limit: int) -> list[Entry]:
        """Return nothing at first, then the record."""
        self.looks += 1
        self.followers.notice(set(), set())
        return [Entry(after + 1, bytes(32), None)] if self.looks == 2 else []


async def test_a_commit_between_looking_and_waiting_is_not_missed() -> None:
    """What is committed just after a look wakes the stream, rather than wait for the next commit."""
    events = stream_of(cast("Engine", CommitsWhileRead()), 0)
    async with asyncio.timeout(5):
        assert [await anext(events), (await anext(events))[:6]] == [b": the log\n\n", b"id: 1\n"]


async def test_the_stream_resumes(tmp_path: Path) -> None:
    """Last-Event-ID goes before `after`: a client that lost its connection misses nothing and sees nothing twice."""
    async with running(tmp_path) as service:
        for _ in range(4):
            await service.accept()
        async with stream(service, "?after=0", **{"Last-Event-ID": "2"}) as opened:
            assert [(await opened.next())[0] for _ in range(2)] == [3, 4]


async def test_a_long_log_comes_whole(tmp_path: Path) -> None:
    """More records than one page come in order, each once, while more are being written."""
    async with running(tmp_path) as service:
        events = [{"event": "call", "instance": "loja01", "data": n} for n in range(1200)]
        async with stream(service) as opened:
            for start in range(0, 1200, 400):
                body = json.dumps(events[start : start + 400])
                assert (await service.request("POST", "/events/batch", body)).status == 202
            assert [(await opened.next())[0] for _ in range(1200)] == list(range(1, 1201))


async def test_streams_end_when_the_service_stops(tmp_path: Path) -> None:
    """SIGTERM ends the streams that wait for commits at once, and the exit status is 0."""
    async with running(tmp_path) as service, stream(service) as first, stream(service, "?after=5") as second:
        await service.accept()
        await first.next()
        began = time.monotonic()
        assert await service.stop() == 0
        assert time.monotonic() - began < 5
        assert await first.rest() == b""
        assert b"data" not in await second.rest()


async def test_a_stream_that_nobody_reads_ends_with_the_grace(tmp_path: Path) -> None:
    """A client that takes nothing more keeps the service from stopping no longer than its grace; the status is 0."""
    service = Service(tmp_path)
    await service.start()
    body = "\n".join([json.dumps({"event": "call", "instance": "loja01", "data": {}})] * 10_000)
    for _ in range(2):
        headers = {"content-type": "application/x-ndjson"}
        assert (await service.request("POST", "/events/batch", body, headers)).status == 202
    host, _, port = service.address.removeprefix("http://").partition(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(f"GET /log/stream HTTP/1.1\r\nhost: outbox\r\napikey: {API_KEY}\r\n\r\n".encode())
        assert await asyncio.to_thread(client.recv, 1)
        await asyncio.sleep(1)  # until all buffers in between are full
        began = time.monotonic()
        assert await service.stop() == 0
        assert time.monotonic() - began < 12


async def test_a_client_that_leaves_is_let_go(tmp_path: Path) -> None:
    """Streams that clients leave behind hold nothing: afterwards the service stops at once."""
    async with running(tmp_path) as service:
        for _ in range(20):
            async with stream(service) as opened:
                await service.accept()
                await opened.next()
        began = time.monotonic()
        assert await service.stop() == 0
        assert time.monotonic() - began < 5
