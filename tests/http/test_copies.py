"""Copies of deliveries that go to another URL: they change nothing of what is copied."""

import base64
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness import Receiver, Service, running
from tests.http.replays import asked, delivered, finished
from tests.http.support import VERSION, stats

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for the tests that need none of their own: each has instances of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


async def test_a_copy_of_one_goes_elsewhere_and_changes_nothing(service: Service) -> None:
    """It has the body with its own destination, and no header of ours; the answer says what came of it."""
    async with Receiver() as receiver, Receiver() as elsewhere:
        await service.set_webhook("copied", receiver.url, headers={"x-own": "1"}, base64=False)
        data = {"n": 1.50, "message": {"base64": "bWVkaWE="}}
        (delivery,) = await delivered(service, "copied", 1, data=data, apikey="k")
        before = await stats(service)
        url = elsewhere.url.replace("//", "//ana:hush@") + "/look?token=1"
        answer = await asked(service, f"/deliveries/{delivery}/replay", {"to": url})
        assert answer == {"id": None, "deliveries": 1, "status": 200, "error": None}
        (copy,) = elsewhere.arrivals
        assert copy.path == "/look?token=1"
        own = {name for name in copy.headers if name.startswith(("x-", "webhook-"))}
        assert own == set()
        assert copy.headers["user-agent"] == f"evolution-outbox/{VERSION}"
        assert copy.headers["content-type"] == "application/json"
        assert copy.headers["authorization"] == "Basic " + base64.b64encode(b"ana:hush").decode()
        assert copy.json()["data"] == {"n": 1.50, "message": {}}
        assert copy.json() == {
            **receiver.arrivals[0].json(), "destination": f"{elsewhere.url}/look?token=1"
        }  # fmt: skip
        elsewhere.answer = lambda _arrival: 410
        answer = await asked(service, f"/deliveries/{delivery}/replay", {"to": url})
        assert (answer["status"], answer["error"]) == (410, None)
        assert await stats(service) == before
        assert len(receiver.arrivals) == 1
    answer = await asked(service, f"/deliveries/{delivery}/replay", {"to": url})
    assert (answer["status"], answer["error"]) == (None, "connection_refused")
    assert await stats(service) == before


async def test_copies_of_many_go_elsewhere_in_the_background(service: Service) -> None:
    """How far they have come is shown, without what may be a token; replays and numbers stay as they are."""
    async with Receiver() as receiver, Receiver() as elsewhere:
        await service.set_webhook("copies", receiver.url)
        await delivered(service, "copies", 5)
        before = await stats(service)
        to = f"{elsewhere.url}/x?token=canary"
        answer = await asked(service, "/deliveries/replay", {"instance": "copies", "to": to})
        assert answer["deliveries"] == 0
        wanted = {"instance": "copies", "acknowledged": True, "to": to}
        answer = await asked(service, "/deliveries/replay", wanted)
        assert answer["id"].startswith("cpy_")
        shown = await finished(service, answer["id"])
        assert (shown["copied"], shown["failed"], shown["deliveries"], shown["reopened"]) == (5, 0, 5, 0)
        assert shown["to"] == elsewhere.url
        assert "canary" not in json.dumps([shown, service.log])
        assert len({arrival.json()["data"] is not None for arrival in elsewhere.arrivals}) == 1
        assert len(elsewhere.arrivals) == 5
        elsewhere.answer = lambda _arrival: 500
        answer = await asked(service, "/deliveries/replay", wanted | {"rate": 100})
        shown = await finished(service, answer["id"])
        assert (shown["copied"], shown["failed"], shown["error"]) == (0, 5, "status 500")
        assert await stats(service) == before
        assert len(receiver.arrivals) == 5


async def test_copies_end_where_nobody_answers(service: Service) -> None:
    """After twenty in a row without an answer the run is given up."""
    async with Receiver() as receiver:
        await service.set_webhook("void", receiver.url)
        batch = [json.dumps({"event": "call", "instance": "void", "data": number}) for number in range(60)]
        await service.request("POST", "/events/batch", f"[{','.join(batch)}]")
        await receiver.wait_for_count(60)
        await service.wait_until_settled()
        gone = receiver.url
    answer = await asked(service, "/deliveries/replay", {"instance": "void", "acknowledged": True, "to": gone})
    shown = await finished(service, answer["id"])
    assert (shown["copied"], shown["error"]) == (0, "connection_refused")
    assert 20 <= shown["failed"] < 30
    wanted = {"instance": "void", "acknowledged": True, "to": gone, "rate": 1}
    answer = await asked(service, "/deliveries/replay", wanted)
    assert (await service.request("DELETE", f"/replays/{answer['id']}")).status == 204
    assert (await finished(service, answer["id"]))["failed"] <= 2


async def test_copies_go_to_no_address_that_is_not_allowed(service: Service) -> None:
    """The URL is judged as a webhook's is."""
    async with Receiver() as receiver:
        await service.set_webhook("guarded", receiver.url)
        (delivery,) = await delivered(service, "guarded", 1)
    for path, body in ((f"/deliveries/{delivery}/replay", {}), ("/deliveries/replay", {"instance": "guarded"})):
        for url in ("http://10.0.0.1/", "http://169.254.169.254/", "http://[::1]/", "ftp://127.0.0.1/", "nonsense", ""):
            reply = await service.request("POST", path, body | {"to": url})
            assert (reply.status, "`$.to`" in reply.json()["detail"]) == (422, True), reply
