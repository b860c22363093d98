"""What receivers answer, and what becomes of the delivery: the table of answers through the whole service."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from tests.harness import NO_ANSWER, Answering, Arrival, Receiver, Service, running
from tests.http.support import Shown, attempted, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for the tests that need no settings of their own: each has an instance."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


def in_turn(*answers: int | Callable[[], web.Response]) -> Answering:
    """Answer with each of these in turn, then with 200."""
    left = list(answers)

    def answer(_arrival: Arrival) -> web.Response | int:
        following = left.pop(0) if left else 200
        return following if isinstance(following, int) else following()

    return answer


async def outcome(service: Service, instance: str, url: str, **settings: Any) -> Shown:
    """Post one event to a webhook at `url`, and return it once it is settled."""
    await service.set_webhook(instance, url, **settings)
    return await settled(service, await service.accept(instance=instance))


def told(shown: Shown, *names: str) -> list[tuple[Any, ...]]:
    """Return these members of every attempt."""
    return [tuple(attempt[name] for name in names) for attempt in shown["attempts"]]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226, 299])
async def test_success_acknowledges(service: Service, status: int) -> None:
    """Any 2xx status acknowledges at the first attempt."""
    async with Receiver(in_turn(status)) as receiver:
        shown = await outcome(service, f"ok{status}", receiver.url)
        (delivery,) = shown["deliveries"]
        assert (delivery["state"], delivery["attempts"]) == ("acknowledged", 1)
        assert told(shown, "attempt", "status", "error", "answer", "reason") == [(1, status, None, None, None)]
        assert shown["attempts"][0]["webhook"] == delivery["webhook"]
        assert 0 <= shown["attempts"][0]["ms"] < 10_000


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_refusal_is_final(service: Service, status: int) -> None:
    """A status that is not retried makes the delivery dead at once, with a reason and the answer's first KiB."""
    text = "a fault: \u00e9" + "x" * 3000
    async with Receiver(in_turn(lambda: web.Response(status=status, text=text))) as receiver:
        shown = await outcome(service, f"no{status}", receiver.url)
        (delivery,) = shown["deliveries"]
        assert (delivery["state"], delivery["attempts"]) == ("dead", 1)
        (attempt,) = shown["attempts"]
        assert attempt["status"] == status
        assert str(status) in attempt["reason"]
        assert attempt["answer"] == text.encode()[:1024].decode()
        assert len(receiver.arrivals) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 405, 408, 409, 411, 429, 451, 500, 501, 502, 503, 504, 507, 599])
async def test_failure_is_tried_again(service: Service, status: int) -> None:
    """Other statuses are tried again until one succeeds, with the same id and body and a rising number."""
    async with Receiver(in_turn(status, lambda: web.Response(status=status, text="later"))) as receiver:
        shown = await outcome(service, f"again{status}", receiver.url)
        assert shown["deliveries"][0]["state"] == "acknowledged"
        assert told(shown, "attempt", "status", "answer", "reason") == [
            (1, status, None, None),
            (2, status, "later", None),
            (3, 200, None, None),
        ]
        assert [arrival.headers["x-outbox-attempt"] for arrival in receiver.arrivals] == ["1", "2", "3"]
        assert {arrival.webhook_id for arrival in receiver.arrivals} == {shown["id"]}
        assert len({arrival.body for arrival in receiver.arrivals}) == 1


async def test_gone_suspends(service: Service) -> None:
    """After a 410 nothing more is sent, what is accepted is held too, and setting the webhook again lets all go."""
    async with Receiver(in_turn(410)) as receiver:
        await service.set_webhook("gone", receiver.url)
        first = await service.accept(instance="gone")
        shown = await attempted(service, first)
        assert told(shown, "attempt", "status", "reason") == [(1, 410, None)]
        second = await service.accept(instance="gone")
        for event_id in (first, second):
            reply = await service.request("GET", f"/events/{event_id}")
            assert [delivery["state"] for delivery in reply.json()["deliveries"]] == ["held"]
        assert len(receiver.arrivals) == 1
        await service.set_webhook("gone", receiver.url)
        for event_id in (first, second):
            await settled(service, event_id)
        assert [arrival.webhook_id for arrival in receiver.arrivals].count(first) == 2


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308])
async def test_redirect_is_not_followed(service: Service, status: int) -> None:
    """A redirect is no success and is not followed: the failure says where to set the webhook to."""
    async with Receiver() as elsewhere:
        target = f"{elsewhere.url}/new?a=b"
        async with Receiver(
            in_turn(lambda: web.Response(status=status, headers={"location": target}), status)
        ) as receiver:
            shown = await outcome(service, f"moved{status}", receiver.url)
            assert shown["deliveries"][0]["state"] == "acknowledged"
            first, second, _ = told(shown, "status", "detail")
            assert first == (status, f"redirected to {target}; set the webhook to {target}")
            assert second[0] == status
            assert len(receiver.arrivals) == 3
        assert elsewhere.arrivals == []


async def test_broken_connections_are_tried_again(service: Service) -> None:
    """A connection that is closed, reset or refused is a failure with its own name, and tried again.

    Where it was a kept one, closed before a byte of an answer, the same attempt is made again at once.
    """
    receiver = Receiver(in_turn(NO_ANSWER, 500, NO_ANSWER))
    async with receiver:
        shown = await outcome(service, "closed", receiver.url)
        assert shown["deliveries"][0]["state"] == "acknowledged"
        assert [status for (status,) in told(shown, "status")] == [None, 500, 200]
        assert shown["attempts"][0]["error"] in {"connection_closed", "connection_reset"}
        assert [arrival.headers["x-outbox-attempt"] for arrival in receiver.arrivals] == ["1", "2", "3", "3"]
    event_id = await service.accept(instance="closed")
    down = await attempted(service, event_id, 3)
    assert set(told(down, "status", "error")) == {(None, "connection_refused")}
    assert down["deliveries"][0]["state"] == "pending"
    async with receiver:
        shown = await settled(service, event_id)
        assert shown["deliveries"][0]["state"] == "acknowledged"
        assert receiver.arrivals[-1].headers["x-outbox-attempt"] == str(len(shown["attempts"]))


async def test_name_that_does_not_resolve(service: Service) -> None:
    """A name without an address is a failure of its own name."""
    await service.set_webhook("nameless", "http://no-such-name.invalid/w")
    shown = await attempted(service, await service.accept(instance="nameless"))
    assert told(shown, "status", "error")[0] == (None, "dns_error")


async def test_tls_to_a_plain_server(service: Service) -> None:
    """TLS that is answered in plain text is a failure, not a success, and tried again."""
    async with Receiver() as receiver:
        await service.set_webhook("plain", receiver.url.replace("http:", "https:"))
        shown = await attempted(service, await service.accept(instance="plain"), 2)
        assert {(status, error) for status, error in told(shown, "status", "error")} == {(None, "tls_error")}
        assert receiver.arrivals == []


async def test_attempts_are_used_up(tmp_path: Path) -> None:
    """After MAX_ATTEMPTS, the first POST counted, the delivery is dead and says what the last failure was."""
    async with running(tmp_path, WEBHOOK_RETRY_MAX_ATTEMPTS="3") as service:
        async with Receiver(lambda _arrival: 500) as receiver:
            shown = await outcome(service, "tired", receiver.url)
            assert (shown["deliveries"][0]["state"], shown["deliveries"][0]["attempts"]) == ("dead", 3)
            assert told(shown, "attempt", "status") == [(1, 500), (2, 500), (3, 500)]
            assert [bool(reason) for (reason,) in told(shown, "reason")] == [False, False, True]
            assert "3 attempts" in shown["attempts"][-1]["reason"]
            assert "status 500" in shown["attempts"][-1]["reason"]
        shown = await outcome(service, "tired", receiver.url)
        assert (shown["deliveries"][0]["state"], len(shown["attempts"])) == ("dead", 3)
        assert "connection_refused" in shown["attempts"][-1]["reason"]
        assert len(receiver.arrivals) == 3


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_holds_the_lane_and_is_not_charged(tmp_path: Path, status: int) -> None:
    """After a Retry-After, in seconds or as a date, the whole lane waits that long, and no attempt is used up."""

    def asked(value: str) -> Callable[[], web.Response]:
        return lambda: web.Response(status=status, headers={"retry-after": value})

    def dated() -> web.Response:
        return asked(formatdate(at_s + 3, usegmt=True))()

    answers = in_turn(asked("1"), dated, asked("0"))
    async with running(tmp_path, WEBHOOK_RETRY_MAX_ATTEMPTS="1") as service, Receiver(answers) as receiver:
        await service.set_webhook("asked", receiver.url)
        first = await service.accept(instance="asked")
        await attempted(service, first)
        at_s = receiver.arrivals[0].at
        others = [await service.accept(instance="asked") for _ in range(5)]
        # A webhook that nobody asked to wait for is not held.
        async with Receiver() as free:
            assert (await outcome(service, "free", free.url))["deliveries"][0]["state"] == "acknowledged"
        shown = await settled(service, first)
        assert {(await settled(service, other))["deliveries"][0]["state"] for other in others} == {"acknowledged"}
        assert shown["deliveries"][0]["state"] == "acknowledged"
        assert receiver.arrivals[1].at - at_s >= 0.99


async def test_secrets_of_a_payload_are_masked(service: Service) -> None:
    """GET /events/{id} masks apikey, api_key and destination, shows the rest as it came, and receivers get it all."""
    async with Receiver() as receiver:
        await service.set_webhook("secrets", receiver.url)
        body = (
            '{"event":"call","instance":"secrets","apikey":"s3cret1","data":{"apikey":"inner","n":1e400 },'
            '"api_key":"s3cret2","destination":"https://h.test/s3cret3","api\\u006bey":"s3cret4","x":[ 1 ]}'
        )
        reply = await service.request("POST", "/events", body)
        event_id = reply.json()["id"]
        await settled(service, event_id)
        shown = (await service.request("GET", f"/events/{event_id}")).body.decode()
        assert "s3cret" not in shown
        assert '"data":{"apikey":"inner","n":1e400 }' in shown
        assert '"x":[ 1 ]' in shown
        assert all(secret in receiver.arrivals[0].body.decode() for secret in ("s3cret2", "s3cret4"))
        empty = '{"event":"call","instance":"secrets","apikey":null,"api_key":"","data":{}}'
        reply = await service.request("POST", "/events", empty)
        shown = (await service.request("GET", f"/events/{reply.json()['id']}")).body.decode()
        assert '"apikey":null,"api_key":""' in shown


async def test_hang_is_a_timeout_and_tried_again(tmp_path: Path) -> None:
    """A receiver that takes the POST and says nothing is a timeout after WEBHOOK_REQUEST_TIMEOUT_MS, or its own."""
    hanging = asyncio.Event()

    async def hang(arrival: Arrival) -> int:
        if arrival.headers["x-outbox-attempt"] == "1":
            await hanging.wait()
        return 200

    async with running(tmp_path, WEBHOOK_REQUEST_TIMEOUT_MS="300") as service, Receiver(hang) as receiver:
        for settings, least_ms in (({}, 300), ({"timeout_ms": 700}, 700)):
            shown = await outcome(service, f"hang{least_ms}", receiver.url, **settings)
            assert told(shown, "status", "error") == [(None, "timeout"), (200, None)]
            assert least_ms <= shown["attempts"][0]["ms"] < least_ms + 5000
        with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
            await service.set_webhook("deaf", f"http://127.0.0.1:{deaf.getsockname()[1]}")
            shown = await attempted(service, await service.accept(instance="deaf"), 2)
            assert set(told(shown, "status", "error")) == {(None, "timeout")}
        hanging.set()
