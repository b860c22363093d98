"""A test event is posted right away with a webhook's real settings, shown to whoever asked, and recorded nowhere."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from aiohttp import web

from tests.harness import NO_ANSWER, Arrival, Receiver, Service, running
from tests.http.support import Shown, stats

KEY = "a-shared-secret-of-more-than-32-bytes"
FIELDS = ["url", "status", "error", "detail", "ms", "answer"]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for the tests that need none of their own: each has instances of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


async def tried(service: Service, path: str) -> Shown:
    """Send a test event and return what is shown of it; nothing else may have changed."""
    before = await stats(service)
    reply = await service.request("POST", f"/webhooks/{path}/test")
    assert reply.status == 200, reply
    assert await stats(service) == before
    shown: Shown = reply.json()
    assert list(shown) == FIELDS
    assert 0 <= shown["ms"] < 30_000
    return shown


@pytest.mark.parametrize(
    ("path", "instance"),
    [("global", "test"), ("global/x", "test"), ("instances/Loja%2001", "Loja 01"), ("instances/test/n8n", "test"),
     ("instances/test", "test")],
)  # fmt: skip
async def test_a_test_event_arrives_as_others_do(service: Service, path: str, instance: str) -> None:
    """With suffix, headers, token and our own headers; the webhook may have any scope and name."""
    async with Receiver() as receiver:
        settings = {"url": f"{receiver.url}/w?t=1", "by_events": True, "headers": {"jwt_key": KEY, "x-a": "1"}}
        assert (await service.request("PUT", f"/webhooks/{path}", settings)).status == 201
        shown = await tried(service, path)
        (arrival,) = receiver.arrivals
        url = f"{receiver.url}/w/application-startup?t=1"
        assert shown == {"url": url, "status": 200, "error": None, "detail": None, "ms": shown["ms"], "answer": None}
        assert arrival.path == "/w/application-startup?t=1"
        body = arrival.json()
        assert list(body)[:3] == ["event", "instance", "data"]
        assert (body["event"], body["instance"], body["data"]) == ("application.startup", instance, {"test": True})
        assert (body["destination"], body["date_time"][-1]) == (url, "Z")
        assert arrival.headers["x-a"] == "1"
        assert arrival.webhook_id.startswith("evt_")
        assert arrival.headers["x-outbox-attempt"] == "1"
        token = arrival.headers["authorization"].removeprefix("Bearer ")
        assert jwt.decode(token, KEY, algorithms=["HS256"])["action"] == "webhook"
        assert (await service.request("GET", f"/events/{arrival.webhook_id}")).status == 404
        await service.request("DELETE", f"/webhooks/{path}")


async def test_a_disabled_webhook_can_be_tried(service: Service) -> None:
    """It stays disabled; without a URL there is nothing to try, and without a webhook neither."""
    async with Receiver() as receiver:
        await service.set_webhook("off", receiver.url.replace("//", "//ana:hush@"), enabled=False, events=["CALL"])
        shown = await tried(service, "instances/off")
        assert (shown["status"], shown["url"]) == (200, receiver.url)
        (arrival,) = receiver.arrivals
        assert arrival.headers["authorization"] == "Basic " + base64.b64encode(b"ana:hush").decode()
        assert (await service.request("GET", "/webhooks/instances/off")).json()["enabled"] is False
    await service.set_webhook("off", "", enabled=False)
    reply = await service.request("POST", "/webhooks/instances/off/test")
    assert (reply.status, "URL" in reply.json()["detail"]) == (409, True)
    for path in ("global/nobody", "instances/nobody", "instances/off/nobody"):
        assert (await service.request("POST", f"/webhooks/{path}/test")).status == 404
    assert (await service.request("POST", "/webhooks/instances/off/test", headers={"apikey": "wrong"})).status == 401


async def test_failures_are_shown_as_attempts_show_them(service: Service) -> None:
    """Status and the answer's beginning, or the name of the error; nothing is tried twice."""

    def answer(arrival: Arrival) -> Any:
        status = int(arrival.path.strip("/"))
        return web.Response(status=status, text="no \u00e9" * 1000) if status else NO_ANSWER

    async with Receiver(answer) as receiver:
        for status in (500, 410, 429, 400):
            await service.set_webhook("fails", f"{receiver.url}/{status}")
            shown = await tried(service, "instances/fails")
            assert (shown["status"], shown["error"]) == (status, None)
            assert shown["answer"].startswith("no \u00e9no")
            assert len(shown["answer"].encode()) <= 1030
        assert len(receiver.arrivals) == 4
        await service.set_webhook("fails", f"{receiver.url}/0")
        shown = await tried(service, "instances/fails")
        assert (shown["status"], shown["error"]) == (None, "connection_closed")
    shown = await tried(service, "instances/fails")
    assert (shown["status"], shown["error"]) == (None, "connection_refused")


async def test_a_receiver_that_says_nothing_is_waited_for_as_long_as_set(service: Service) -> None:
    """The webhook's own timeout holds for the test too."""

    async def hang() -> int:
        await receiver.wait_for_count(2, 5)
        return 200

    async with Receiver(lambda _arrival: hang()) as receiver:
        await service.set_webhook("slow", receiver.url, timeout_ms=300)
        shown = await tried(service, "instances/slow")
        assert (shown["status"], shown["error"]) == (None, "timeout")
        assert 300 <= shown["ms"] < 3000


async def test_addresses_are_guarded_for_tests_too(tmp_path: Path) -> None:
    """What is not allowed any more is not called; the environment's own URL is, as its deliveries are."""
    async with Receiver() as receiver:
        async with running(tmp_path) as service:
            await service.set_webhook("loja01", receiver.url)
        settings = {"WEBHOOK_GLOBAL_ENABLED": "true", "WEBHOOK_GLOBAL_URL": f"{receiver.url}/env"}
        async with running(tmp_path, OUTBOX_ALLOWED_NETWORKS="", **settings) as service:
            shown = await tried(service, "instances/loja01")
            assert (shown["status"], shown["error"]) == (None, "address_refused")
            assert receiver.arrivals == []
            assert (await tried(service, "global"))["status"] == 200
            assert [arrival.path for arrival in receiver.arrivals] == ["/env"]
            assert json.dumps(service.log).count("attempt.failed") == 0
