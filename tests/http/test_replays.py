"""Replays over HTTP: what goes out again and what does not, and how far it has come."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
from aiohttp import web

from tests.harness import Arrival, Receiver, Reply, Service, running
from tests.http.replays import all_settled, asked, delivered, finished, webhook_of
from tests.http.support import attempted, event_when

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for the tests that need none of their own: each has instances of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


async def test_a_dead_delivery_goes_out_again(service: Service) -> None:
    """Asked for by its id, without a body: posted again with the same id, its attempts counted on."""
    async with Receiver(lambda _arrival: 400) as receiver:
        await service.set_webhook("one", receiver.url)
        (delivery, other) = await delivered(service, "one", 2)
        receiver.answer = lambda _arrival: 200
        answer = await asked(service, f"/deliveries/{delivery}/replay")
        assert answer["deliveries"] == 1
        assert list(answer) == ["id", "deliveries"]
        arrivals = await receiver.wait_for_count(3)
        assert arrivals[2].webhook_id == arrivals[0].webhook_id
        assert arrivals[2].headers["x-outbox-attempt"] == "2"
        assert arrivals[2].body == arrivals[0].body
        shown = await finished(service, answer["id"])
        assert shown["filter"]["delivery"] == delivery
        assert (shown["deliveries"], shown["reopened"], shown["skipped"]) == (1, 1, 0)
        event = await event_when(service, arrivals[0].webhook_id, all_settled)
        assert [entry["state"] for entry in event["deliveries"]] == ["acknowledged"]
        listed = (await service.request("GET", f"/deliveries?webhook={await webhook_of(service, 'one')}")).json()
        assert {item["id"]: item["state"] for item in listed["items"]} == {delivery: "acknowledged", other: "dead"}


async def test_an_acknowledged_delivery_goes_out_again_only_if_told(service: Service) -> None:
    """Without a word about it that is a conflict, and nothing is sent; with it, it is posted a second time."""
    async with Receiver() as receiver:
        await service.set_webhook("told", receiver.url)
        (delivery,) = await delivered(service, "told", 1)
        path = f"/deliveries/{delivery}/replay"
        for body in (None, {}, {"acknowledged": False}):
            reply = await service.request("POST", path, body)
            assert reply.status == 409
            assert '"acknowledged": true' in reply.json()["detail"]
        assert (await asked(service, "/deliveries/replay", {"instance": "told"}))["deliveries"] == 0
        assert len(receiver.arrivals) == 1
        await asked(service, path, {"acknowledged": True})
        event_id = receiver.arrivals[0].webhook_id
        await attempted(service, event_id, 2)
        answer = await asked(service, "/deliveries/replay", {"instance": "told", "state": "acknowledged"})
        assert (await finished(service, answer["id"]))["filter"]["state"] == "acknowledged"
        await attempted(service, event_id, 3)
        await asked(service, "/deliveries/replay", {"instance": "told", "acknowledged": True})
        await attempted(service, event_id, 4)
        assert [arrival.headers["x-outbox-attempt"] for arrival in receiver.arrivals] == ["1", "2", "3", "4"]


async def test_what_matches_goes_out_again(service: Service) -> None:
    """Filters narrow by webhook, state, kind, instance and time; the rest stays as it is."""
    async with Receiver(lambda _arrival: 400) as receiver:
        await service.set_webhook("many", receiver.url)
        await service.set_webhook("many/other", f"{receiver.url}/other")
        await delivered(service, "many", 3)
        await delivered(service, "many", 2, event="call")
        receiver.answer = lambda _arrival: 200
        receiver.arrivals.clear()
        webhook = await webhook_of(service, "many")
        answer = await asked(service, "/deliveries/replay", {"state": "dead", "webhook": webhook, "event": "CALL"})
        assert answer["deliveries"] == 2
        shown = await finished(service, answer["id"])
        assert shown["filter"] == {
            "delivery": None, "webhook": webhook, "state": "dead", "event": "CALL", "instance": None, "since": None,
            "until": None, "acknowledged": False,
        }  # fmt: skip
        assert (shown["reopened"], shown["rate"], shown["to"]) == (2, None, None)
        await receiver.wait_for_count(2)
        assert {arrival.path for arrival in receiver.arrivals} == {"/"}
        nothing = await asked(service, "/deliveries/replay", {"instance": "many", "until": "2020-01-01T00:00:00Z"})
        assert (await finished(service, nothing["id"]))["reopened"] == 0
        rest = await asked(service, "/deliveries/replay", {"instance": "many", "since": 0, "until": 99999999999})
        assert rest["deliveries"] == 8
        assert (await finished(service, rest["id"]))["reopened"] == 8
        await receiver.wait_for_count(10)
        await service.wait_until_settled()


async def test_a_rate_is_kept(service: Service) -> None:
    """Forty at a hundred a second take about four tenths of a second, and not all go at once."""
    async with Receiver(lambda _arrival: 400) as receiver:
        await service.set_webhook("paced", receiver.url)
        batch = [json.dumps({"event": "call", "instance": "paced", "data": number}) for number in range(40)]
        await service.request("POST", "/events/batch", f"[{','.join(batch)}]")
        await receiver.wait_for_count(40)
        await service.wait_until_settled()
        receiver.answer = lambda _arrival: 200
        receiver.arrivals.clear()
        answer = await asked(service, "/deliveries/replay", {"instance": "paced", "rate": 100})
        arrivals = await receiver.wait_for_count(40)
        assert arrivals[-1].at - arrivals[0].at >= 0.35
        assert (await finished(service, answer["id"]))["rate"] == 100


async def test_a_pending_delivery_is_due_now(service: Service) -> None:
    """What waits for its next attempt is tried at once, although its receiver has asked for an hour's rest."""
    async with Receiver() as receiver:
        receiver.answer = lambda _arrival: web.Response(status=503, headers={"retry-after": "3600"})
        await service.set_webhook("patient", receiver.url)
        event_id = await service.accept(instance="patient")
        shown = await event_when(service, event_id, lambda shown: len(shown["attempts"]) == 1)
        receiver.answer = lambda _arrival: 200
        await asked(service, f"/deliveries/{shown['deliveries'][0]['id']}/replay")
        await receiver.wait_for_count(2)
        await event_when(service, event_id, all_settled)


async def test_events_are_added_to_a_webhook_that_was_set_too_late(service: Service) -> None:
    """They are delivered like any other, and shown with their event, beside those it had, from then on."""
    async with Receiver() as receiver:
        await service.set_webhook("late/early", f"{receiver.url}/early")
        events = [await service.accept(instance="late", event=event) for event in ("call", "messages.upsert", "call")]
        await receiver.wait_for_count(3)
        await service.wait_until_settled()
        receiver.arrivals.clear()
        await service.set_webhook("late", receiver.url)
        webhook = await webhook_of(service, "late")
        answer = await asked(service, "/events/replay", {"webhook": webhook, "event": "call"})
        assert answer["deliveries"] == 2
        shown = await finished(service, answer["id"])
        assert (shown["added"], shown["reopened"]) == (2, 0)
        arrivals = await receiver.wait_for_count(2)
        assert sorted(arrival.webhook_id for arrival in arrivals) == sorted([events[0], events[2]])
        for added in (events[0], events[2]):
            event = await event_when(service, added, lambda shown: len(shown["deliveries"]) == 2 and all_settled(shown))
            assert event["deliveries"][1]["webhook"] == webhook
        for path, count in ((f"/events?webhook={webhook}", 2), ("/deliveries?instance=late&state=acknowledged", 5)):
            assert len((await service.request("GET", path)).json()["items"]) == count
        answer = await asked(service, "/events/replay", {"webhook": webhook})
        assert (await finished(service, answer["id"]))["added"] == 1
        await event_when(service, events[1], lambda shown: len(shown["deliveries"]) == 2 and all_settled(shown))


async def test_replays_are_listed_newest_first(tmp_path: Path) -> None:
    """Page by page, each with what was asked for."""
    async with running(tmp_path) as service:
        await service.set_webhook("loja01", "http://127.0.0.1:9", enabled=False)
        webhook = await webhook_of(service, "loja01")
        ids = [(await asked(service, "/deliveries/replay", {"state": state}))["id"] for state in ("dead", "held")]
        ids.append(
            (await asked(service, "/events/replay", {"webhook": webhook, "since": "2020-01-01T00:00:00Z"}))["id"]
        )
        page = (await service.request("GET", "/replays?limit=2")).json()
        rest = (await service.request("GET", f"/replays?cursor={page['next']}")).json()
        assert [item["id"] for item in page["items"] + rest["items"]] == ids[::-1]
        assert (len(page["items"]), rest["next"]) == (2, None)
        assert page["items"][0]["filter"]["since"] == "2020-01-01T00:00:00.000Z"
        await finished(service, ids[-1])
        records = (await service.request("GET", "/log")).json()["items"]
        requested = [record for record in records if record["type"] == "ReplayRequested"]
        assert [record["id"] for record in requested] == ids
        assert requested[2]["wanted"]["webhook"] == webhook
        advanced = [record for record in records if record["type"] == "ReplayAdvanced"]
        assert {record["replay"] for record in advanced} == set(ids)


async def test_a_restart_takes_replays_up(tmp_path: Path) -> None:
    """A slow replay goes on after a stop, at its rate, until it is ended; what is finished stays finished."""
    async with Receiver(lambda _arrival: 400) as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        await delivered(service, "loja01", 6)
        receiver.answer = lambda _arrival: 200
        done = await asked(service, "/deliveries/replay", {"state": "held"})
        ended = await finished(service, done["id"])
        slow = await asked(service, "/deliveries/replay", {"state": "dead", "rate": 0.01})
        await receiver.wait_for_count(7)
        assert await service.stop() == 0
        await service.start()
        shown = (await service.request("GET", f"/replays/{slow['id']}")).json()
        assert (shown["state"], shown["reopened"], shown["finished_at"]) == ("running", 1, None)
        for _ in range(2):
            assert (await service.request("DELETE", f"/replays/{slow['id']}")).status == 204
        shown = (await service.request("GET", f"/replays/{slow['id']}")).json()
        assert (shown["state"], shown["reopened"]) == ("finished", 1)
        assert (await service.request("GET", f"/replays/{done['id']}")).json() == ended


async def test_deleted_webhooks_are_left_alone(service: Service) -> None:
    """Named by an id of its own or of its delivery, it is a conflict; among others, it is passed over."""
    async with Receiver(lambda _arrival: 400) as receiver:
        await service.set_webhook("gone", receiver.url)
        (delivery,) = await delivered(service, "gone", 1)
        webhook = await webhook_of(service, "gone")
        await service.request("DELETE", "/webhooks/instances/gone")
        for path, body in (
            (f"/deliveries/{delivery}/replay", {}),
            (f"/deliveries/{delivery}/replay", {"to": receiver.url}),
            ("/deliveries/replay", {"webhook": webhook}),
            ("/deliveries/replay", {"webhook": webhook, "to": receiver.url}),
            ("/events/replay", {"webhook": webhook}),
        ):
            reply = await service.request("POST", path, body)
            assert (reply.status, "deleted" in reply.json()["detail"]) == (409, True), (path, body, reply)
        answer = await asked(service, "/deliveries/replay", {"instance": "gone"})
        assert (await finished(service, answer["id"]))["deliveries"] == 0
        assert len(receiver.arrivals) == 1


class Bad(NamedTuple):
    """A request that must be refused: with `status`, and a detail that has all of `names`."""

    status: int
    names: tuple[str, ...]
    path: str
    body: str


SOME = "dlv_" + "0" * 32 + "_1"
ONE, MANY, EVENTS = f"/deliveries/{SOME}/replay", "/deliveries/replay", "/events/replay"


def bad_requests() -> Iterator[Bad]:
    """What the routes refuse, each with the place of what is wrong."""
    for path in (ONE, MANY, EVENTS):
        good = '{"webhook":"wh_1"}' if path != ONE else "{}"
        yield Bad(400, ("malformed",), path, good + "]")
        yield Bad(400, ("UTF-8",), path, good.replace("}", ',"x":"\udcff"}'))
        yield Bad(422, ("`$`",), path, "[]")
        yield Bad(422, ("unknown field `nope`",), path, '{"nope":1}')
    yield Bad(400, ("malformed",), MANY, "")
    yield Bad(404, (SOME,), ONE, "")
    yield Bad(404, (SOME,), ONE, '{"to":"http://127.0.0.1/"}')
    yield Bad(404, ("dlv_",), "/deliveries/nonsense/replay", "{}")
    yield Bad(422, ("`$.acknowledged`",), ONE, '{"acknowledged":1}')
    yield Bad(422, ("`$.to`",), ONE, '{"to":1}')
    yield Bad(422, ("nothing says which", "webhook, state"), MANY, "{}")
    yield Bad(422, ("nothing says which",), MANY, '{"acknowledged":true,"rate":5,"state":null}')
    yield Bad(422, ("`$.state`",), MANY, '{"state":"nope"}')
    yield Bad(422, ("`$.state`",), MANY, '{"state":["dead"]}')
    yield Bad(422, ("`$.webhook`",), MANY, '{"webhook":"1"}')
    yield Bad(422, ("`$.webhook`", "no webhook wh_999999"), MANY, '{"webhook":"wh_999999"}')
    yield Bad(422, ("`$.event`", "MESSAGES_UPSERT"), MANY, '{"event":"messages.upzert"}')
    yield Bad(422, ("`$.instance`",), MANY, '{"instance":""}')
    yield Bad(422, ("`$.since`", "RFC 3339"), MANY, '{"since":"yesterday"}')
    yield Bad(422, ("`$.until`",), MANY, '{"until":-1}')
    yield Bad(422, ("`$.until`",), MANY, '{"until":true}')
    for rate in ("0", "-1", "10001", '"5"', "true"):
        yield Bad(422, ("`$.rate`",), MANY, f'{{"state":"dead","rate":{rate}}}')
        yield Bad(422, ("`$.rate`",), EVENTS, f'{{"webhook":"wh_1","rate":{rate}}}')
    yield Bad(422, ("webhook",), EVENTS, "{}")
    yield Bad(422, ("`$.webhook`",), EVENTS, '{"webhook":null}')
    yield Bad(422, ("`$.webhook`", "no webhook wh_999999"), EVENTS, '{"webhook":"wh_999999"}')
    for name in ("state", "acknowledged", "to"):
        yield Bad(422, (f"unknown field `{name}`",), EVENTS, f'{{"webhook":"wh_1","{name}":"dead"}}')


async def test_bad_requests_are_refused_and_nothing_is_recorded(service: Service) -> None:
    """Each gets its own status and a detail that names the place."""
    before = (await service.request("GET", "/replays")).json()
    for bad in bad_requests():
        reply: Reply = await service.request("POST", bad.path, bad.body.encode(errors="surrogateescape"))
        assert reply.status == bad.status, (bad, reply)
        assert reply.headers["content-type"].partition(";")[0] == "application/problem+json"
        assert all(name in reply.json()["detail"] for name in bad.names), (bad, reply)
    for path in ("/replays/rpl_0", "/replays/rpl_999999", "/replays/cpy_0000000000000000", "/replays/nonsense"):
        assert (await service.request("GET", path)).status == 404
        assert (await service.request("DELETE", path)).status == 404
    for path in ("/replays?cursor=5", "/replays?limit=0", "/replays?nope=1"):
        assert (await service.request("GET", path)).status == 422
    for path in (MANY, EVENTS, ONE):
        assert (await service.request("POST", path, "{}", {"apikey": "wrong"})).status == 401
        assert (await service.request("POST", path, "{}", {"content-type": "text/plain"})).status == 415
    assert (await service.request("GET", "/replays")).json() == before


async def test_an_open_breaker_tries_at_once(tmp_path: Path) -> None:
    """A replay is reason to look whether the receiver is back, however long the breaker would have waited.

    All the others go out then, although one POST from before still hangs: that one is left alone.
    """
    slow = {"WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "200", "WEBHOOK_RETRY_MAX_DELAY_SECONDS": "300"}
    released = asyncio.Event()

    async def hang() -> int:
        await released.wait()
        return 200

    def answer(arrival: Arrival) -> Any:
        return hang() if arrival.json()["data"] == 0 else status

    status = 404
    async with Receiver(answer) as receiver, running(tmp_path, **slow) as service:
        await service.set_webhook("loja01", receiver.url)
        for number in range(7):
            await service.accept(instance="loja01", data=number)
        await service.wait_for_log(lambda line: line["event"] == "breaker.opened")
        status = 200
        replay = await asked(service, "/deliveries/replay", {"state": "pending"})
        assert (await finished(service, replay["id"]))["reopened"] == 7
        await service.wait_for_stats(lambda stats: stats["deliveries"]["acknowledged"] == 6, 10)
        assert sum(arrival.json()["data"] == 0 for arrival in receiver.arrivals) == 1
        released.set()
        await service.wait_until_settled()
