"""Receivers that lie, stall, never end or hang: each delivery ends as its status says, and nobody else waits."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.harness import Arrival, Receiver, Service, running
from tests.http.support import RawReceiver, Saying, Shown, answer_bytes, settled

HEAD = b"HTTP/1.1 %d Said\r\n"
OWN_NAMES = {"protocol_error", "connection_closed", "connection_reset", "connection_error"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for all tests here: each has instances of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


async def first_says(service: Service, instance: str, say: Callable[[Any], Awaitable[None]], **settings: Any) -> Shown:
    """Post an event to a receiver whose first answer is `say`'s, all others 200; return it once it is settled."""

    async def saying(count: int, writer: asyncio.StreamWriter) -> None:
        if count == 1:
            await say(writer)
        else:
            writer.write(answer_bytes(200))

    async with RawReceiver(saying) as raw:
        await service.set_webhook(instance, raw.url, **settings)
        return await settled(service, await service.accept(instance=instance))


def endless(start: bytes, more: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """Say `start`, and then `more` again and again until the other side hangs up."""

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(more)
                await writer.drain()

    return say


def then_close(data: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """Say `data` and close the connection in order."""

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return say


def then_hang(data: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    """Say `data` and nothing more."""

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.Event().wait()

    return say


@pytest.mark.parametrize(
    ("name", "say", "noted"),
    [
        ("endless", endless(HEAD % 200 + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nhello\r\n" * 1000), "64 KiB"),
        ("until-closed", endless(HEAD % 200 + b"\r\n", b"x" * 10_000), "64 KiB"),
        ("broken", then_close(HEAD % 200 + b"Content-Length: 100\r\n\r\nhello"), "broke off"),
        ("false-gzip", then_close(HEAD % 200 + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"), None),
        ("no-length", then_close(HEAD % 200 + b"\r\nbye"), None),
        ("stalled", then_hang(HEAD % 200 + b"Content-Length: 100\r\n\r\nhello"), "stalled"),
        ("continued", then_close(b"HTTP/1.1 100 Continue\r\n\r\n" + answer_bytes(202, b"fine")), None),
    ],
)
async def test_body_after_success_changes_nothing(
    service: Service, name: str, say: Callable[[Any], Awaitable[None]], noted: str | None
) -> None:
    """A 2xx acknowledges by its status: a body that never ends, stalls, breaks off or lies is only noted."""
    shown = await first_says(service, f"body-{name}", say, timeout_ms=1000)
    (attempt,) = shown["attempts"]
    assert (attempt["status"] // 100, attempt["error"]) == (2, None)
    assert shown["deliveries"][0]["state"] == "acknowledged"
    assert (noted is None and attempt["detail"] is None) or noted in attempt["detail"]


@pytest.mark.parametrize("status", [400, 500])
async def test_endless_failure_is_cut_off(service: Service, status: int) -> None:
    """Of a failure's answer without end the first KiB is kept, and the status decides."""
    shown = await first_says(service, f"cut{status}", endless(HEAD % status + b"\r\n", b"no, "), timeout_ms=5000)
    assert (shown["attempts"][0]["status"], shown["attempts"][0]["answer"]) == (status, "no, " * 256)
    assert "64 KiB" in shown["attempts"][0]["detail"]
    assert shown["deliveries"][0]["state"] == ("dead" if status == 400 else "acknowledged")


@pytest.mark.parametrize(
    ("name", "say"),
    [
        ("status-101", then_close(HEAD % 101 + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n")),
        ("status-999", then_close(answer_bytes(999))),
        ("no-http", then_close(b"220 smtp.example.test ESMTP\r\n\r\n")),
        ("bad-version", then_close(b"HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n")),
        ("bad-status", then_close(b"HTTP/1.1 2OO OK\r\nContent-Length: 0\r\n\r\n")),
        ("two-lengths", then_close(HEAD % 200 + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n")),
        ("bad-length", then_close(HEAD % 200 + b"Content-Length: -5\r\n\r\n")),
        ("bad-header", then_close(HEAD % 200 + b"no colon here\r\n\r\n")),
        ("endless-header", endless(HEAD % 200 + b"x: ", b"y" * 10_000)),
        ("endless-headers", endless(HEAD % 200, b"x-more: header\r\n" * 100)),
        ("endless-hints", endless(b"", b"HTTP/1.1 103 Hints\r\n\r\n" * 100)),
        ("half-head", then_close(b"HTTP/1.1 200 OK\r\nContent-Le")),
        ("nothing", then_close(b"")),
    ],
)
async def test_answer_that_is_no_http_is_tried_again(
    service: Service, name: str, say: Callable[[Any], Awaitable[None]]
) -> None:
    """What is not an answer in HTTP acknowledges nothing: it has an error of its own name, and is tried again."""
    shown = await first_says(service, f"http-{name}", say, timeout_ms=1500)
    assert shown["deliveries"][0]["state"] == "acknowledged"
    first, second = shown["attempts"]
    assert first["error"] in OWN_NAMES | ({"timeout"} if name.startswith("endless") else set()), first
    assert second["status"] == 200


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_answer_that_never_begins_is_a_timeout(service: Service, start: bytes) -> None:
    """A head that never becomes complete is a timeout, however it began."""
    shown = await first_says(service, f"slow{len(start)}", then_hang(start), timeout_ms=400)
    assert [(attempt["status"], attempt["error"]) for attempt in shown["attempts"]] == [(None, "timeout"), (200, None)]


def after_keeping(last: Callable[[asyncio.StreamWriter], None]) -> Saying:
    """Answer the first POST and keep the connection; at the second do `last`; then answer again."""

    async def say(count: int, writer: asyncio.StreamWriter) -> None:
        if count == 2:
            last(writer)
        else:
            writer.write(answer_bytes(200))

    return say


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_kept_connection_closed_as_we_send_costs_no_attempt(service: Service, how: str) -> None:
    """A kept connection that the server closes as we send: the same attempt goes out again at once, on a fresh one."""
    last = asyncio.StreamWriter.close if how == "close" else lambda writer: writer.transport.abort()
    async with RawReceiver(after_keeping(last)) as raw:
        await service.set_webhook(f"kept-{how}", raw.url)
        for connections in (1, 2):
            shown = await settled(service, await service.accept(instance=f"kept-{how}"))
            assert [(one["attempt"], one["status"]) for one in shown["attempts"]] == [(1, 200)]
            assert raw.connections == connections
        assert len(raw.requests) == 3
        heads, bodies = zip(*(request.split(b"\r\n\r\n") for request in raw.requests[1:]), strict=True)
        assert bodies[0] == bodies[1]
        assert all(b"\r\nx-outbox-attempt: 1\r\n" in head for head in heads)


async def test_half_an_answer_on_a_kept_connection_is_a_failure(service: Service) -> None:
    """Once a byte of an answer has come, a kept connection that closes is a failed attempt like any other."""

    def half(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 20")
        writer.close()

    async with RawReceiver(after_keeping(half)) as raw:
        await service.set_webhook("half", raw.url)
        await settled(service, await service.accept(instance="half"))
        shown = await settled(service, await service.accept(instance="half"))
        assert [(one["attempt"], one["status"]) for one in shown["attempts"]] == [(1, None), (2, 200)]


async def test_retry_does_not_wait_for_a_hanging_neighbour(service: Service) -> None:
    """A delivery is tried again when it is due, while another POST to the same webhook hangs; none is made twice."""
    release = asyncio.Event()

    async def answer(arrival: Arrival) -> int:
        if arrival.json()["data"] == "hang":
            await release.wait()
        return 200 if int(arrival.headers["x-outbox-attempt"]) >= 3 or release.is_set() else 404

    async with Receiver(answer) as receiver:
        await service.set_webhook("neighbour", receiver.url)
        hanging = await service.accept(instance="neighbour", data="hang")
        await receiver.wait_for_count(1)
        # Fewer than make the breaker open; and a 404 says nothing of load, so the hanging one is not left alone.
        others = [await service.accept(instance="neighbour", data=number) for number in range(4)]
        for other in others:
            shown = await settled(service, other, timeout_s=15)
            assert [one["status"] for one in shown["attempts"]] == [404, 404, 200]
        release.set()
        assert [one["status"] for one in (await settled(service, hanging))["attempts"]] == [200]
        made = Counter((arrival.webhook_id, arrival.headers["x-outbox-attempt"]) for arrival in receiver.arrivals)
        assert set(made.values()) == {1}


async def test_one_webhooks_trouble_is_its_own(tmp_path: Path) -> None:
    """While one webhook hangs, one is down and one never ends its answers, the others and ingest go on as ever."""
    release = asyncio.Event()

    async def hang(_arrival: Arrival) -> int:
        await release.wait()
        return 200

    async def chatter(_count: int, writer: asyncio.StreamWriter) -> None:
        await endless(HEAD % 500 + b"\r\n", b"x" * 1000)(writer)

    async with (
        Receiver() as fine,
        Receiver(hang) as hanging,
        RawReceiver(chatter) as chattering,
        running(
            tmp_path,
            WEBHOOK_GLOBAL_ENABLED="true",
            WEBHOOK_GLOBAL_URL=f"{fine.url}/global",
            WEBHOOK_RETRY_INITIAL_DELAY_SECONDS="1",
            WEBHOOK_RETRY_MAX_DELAY_SECONDS="10",
        ) as service,
    ):
        await service.set_webhook("hanging", hanging.url)
        await service.set_webhook("down", "http://127.0.0.1:9/")
        await service.set_webhook("chattering", chattering.url)
        await service.set_webhook("fine", f"{fine.url}/local")
        names = ("hanging", "down", "chattering", "fine")
        ids = {name: [await service.accept(instance=name) for _ in range(80)] for name in names}
        arrivals = await fine.wait_for_count(5 * 80, timeout_s=20)
        assert Counter(arrival.path for arrival in arrivals) == {"/global": 4 * 80, "/local": 80}
        stats = await service.wait_for_stats(lambda stats: stats["deliveries"]["acknowledged"] == 5 * 80)
        assert stats["deliveries"]["pending"] == 3 * 80
        for name in names[:-1]:
            (own,) = [entry for entry in stats["webhooks"] if entry["instance"] == name]
            assert (own["deliveries"]["pending"], own["deliveries"]["acknowledged"]) == (80, 0)
        assert len(hanging.arrivals) <= 32
        failing = {"down", "chattering"}
        await service.wait_for_stats(
            lambda stats: {entry["instance"] for entry in stats["webhooks"] if entry["breaker"] == "open"} == failing
        )
        release.set()
        for event_id in ids["hanging"]:
            assert [one["status"] for one in (await settled(service, event_id))["attempts"]] == [200, 200]
        await service.request("DELETE", "/webhooks/instances/chattering")
