"""Order: whose deliveries go one at a time, through failures, deaths, kills, and changes of the setting itself."""

import asyncio
import json
import random
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.harness import NO_ANSWER, Arrival, Receiver, Service, running
from tests.http.support import event_when, settled, states

# Not 429 and 503: after those a lane slows down for longer than a test should last.
FAILURES = (500, 502, 404, NO_ANSWER)
QUICK = {"WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "0.01", "WEBHOOK_RETRY_MAX_DELAY_SECONDS": "0.05"}


def event(instance: str, chat: str, number: int) -> dict[str, Any]:
    """Return an event of a chat, with its number."""
    data = {"key": {"remoteJid": chat}, "number": number}
    return {"event": "messages.upsert", "instance": instance, "data": data}


async def post_all(service: Service, events: list[dict[str, Any]]) -> list[str]:
    """Post events in one batch; return their ids."""
    reply = await service.request("POST", "/events/batch", json.dumps(events))
    assert reply.status == 202, reply
    ids: list[str] = reply.json()["ids"]
    return ids


def key_of(arrival: Arrival, order: str) -> tuple[str, ...]:
    """Return whose turn an arrival is under `order`."""
    body = arrival.json()
    return (body["instance"], body["data"]["key"]["remoteJid"]) if order == "chat" else (body["instance"],)


def number_of(arrival: Arrival) -> int:
    """Return the number of the event that arrived."""
    return int(arrival.json()["data"]["number"])


class Turns:
    """Answers at random, and notes when a delivery comes before the one ahead of it in its queue was answered."""

    def __init__(self, order: str, failing: float) -> None:
        """Fail that share of all attempts."""
        self.early: list[Arrival] = []
        self._order = order
        self._failing = failing
        self._random = random.Random(7)
        self._busy: set[tuple[str, ...]] = set()

    async def __call__(self, arrival: Arrival) -> int:
        """Answer after a moment, so that whoever does not wait is caught."""
        key = key_of(arrival, self._order)
        if key in self._busy:
            self.early.append(arrival)
        self._busy.add(key)
        await asyncio.sleep(0.002)
        self._busy.discard(key)
        return self._random.choice(FAILURES) if self._random.random() < self._failing else 200


def assert_in_order(arrivals: list[Arrival], order: str) -> None:
    """Assert that in every queue the numbers of what arrived only rise; an attempt that failed comes again."""
    queues = defaultdict(list)
    for arrival in arrivals:
        queues[key_of(arrival, order)].append(number_of(arrival))
    for key, numbers in queues.items():
        assert all(one <= other for one, other in pairwise(numbers)), (key, numbers)


@pytest.mark.parametrize("order", ["chat", "instance"])
async def test_a_queue_goes_one_at_a_time_through_failures(tmp_path: Path, order: str) -> None:
    """Whatever a receiver answers, no event overtakes an earlier one of its chat or instance, and all arrive."""
    turns = Turns(order, failing=0.3)
    async with Receiver(turns) as receiver, running(tmp_path, **QUICK) as service:
        reply = await service.request("PUT", "/webhooks/global", {"url": receiver.url, "order": order})
        assert (reply.status, reply.json()["order"]) == (201, order)
        # The same chat in two instances is two chats.
        names = [(instance, chat) for instance in ("loja01", "loja02") for chat in ("ana", "rui", "eva")]
        ids = []
        for first in range(0, 12, 4):
            ids += await post_all(service, [event(*name, n) for n in range(first, first + 4) for name in names])
        await service.wait_until_settled()
        assert turns.early == []
        assert_in_order(receiver.arrivals, order)
        assert {arrival.webhook_id for arrival in receiver.arrivals} == set(ids)
        assert (await service.wait_until_settled())["deliveries"]["acknowledged"] == len(ids)


async def test_a_chat_that_fails_stops_no_other(tmp_path: Path) -> None:
    """While the head of one chat is tried again and again, those behind it wait, and other chats go on."""
    down = True

    def answer(arrival: Arrival) -> int:
        return 500 if down and arrival.json()["data"]["key"]["remoteJid"] == "ana" else 200

    async with Receiver(answer) as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url, order="chat")
        first, *others = await post_all(service, [event("loja01", "ana", n) for n in range(5)])
        for event_id in await post_all(service, [event("loja01", "rui", n) for n in range(10)]):
            assert await states(service, event_id) == {"acknowledged"}
        shown = await event_when(service, first, lambda shown: len(shown["attempts"]) >= 2)
        assert shown["deliveries"][0]["state"] == "pending"
        stats = (await service.request("GET", "/stats")).json()
        assert (stats["deliveries"]["pending"], stats["deliveries"]["waiting"]) == (1, 4)
        waiting = (await service.request("GET", "/deliveries?state=waiting")).json()["items"]
        assert [item["event_id"] for item in reversed(waiting)] == others
        assert {item["attempts"] for item in waiting} == {0}
        down = False
        await service.wait_until_settled()
        assert_in_order(receiver.arrivals, "chat")


async def test_a_head_that_dies_lets_the_next_go(tmp_path: Path) -> None:
    """A head whose attempts are used up, or that is refused for good, is dead, and the next in its queue goes."""

    def answer(arrival: Arrival) -> int:
        return {1: 500, 3: 422}.get(number_of(arrival), 200)

    settings = {"WEBHOOK_RETRY_MAX_ATTEMPTS": "2", "WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "0"}
    async with Receiver(answer) as receiver, running(tmp_path, **settings) as service:
        await service.set_webhook("loja01", receiver.url, order="instance")
        ids = await post_all(service, [event("loja01", f"chat{n}", n) for n in range(5)])
        shown = [await settled(service, event_id) for event_id in ids]
        assert [number_of(arrival) for arrival in receiver.arrivals] == [0, 1, 1, 2, 3, 4]
        found = [one["deliveries"][0]["state"] for one in shown]
        assert found == ["acknowledged", "dead", "acknowledged", "dead", "acknowledged"]
        reasons = [one["deliveries"][0]["reason"] for one in shown]
        assert (reasons[1], reasons[3]) == ("2 attempts failed, the last with status 500", "status 422 is not retried")
        # The record that settles a head names the one that takes its place.
        records = (await service.request("GET", "/log?limit=500")).json()["items"]
        promoted = [record["promoted"] for record in records if record["type"] == "AttemptRecorded"]
        names = [one["deliveries"][0]["id"] for one in shown]
        assert promoted == [names[1], None, names[2], names[3], names[4], None]


@pytest.mark.parametrize(("before", "after"), [("none", "chat"), ("chat", "instance"), ("instance", "none")])
async def test_the_order_of_a_backlog_is_changed(tmp_path: Path, before: str, after: str) -> None:
    """Set while POSTs are under way and a backlog waits, another order holds for all that was not sent yet."""
    go = asyncio.Event()

    async def answer(_arrival: Arrival) -> int:
        await go.wait()
        return 200

    async with Receiver(answer) as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url, order=before, concurrency=3)
        names = [("loja01", chat) for chat in ("ana", "rui", "eva")]
        ids = await post_all(service, [event(*name, n) for n in range(10) for name in names])
        heads = {"none": 3, "chat": 3, "instance": 1}
        await receiver.wait_for_count(heads[before])
        await service.set_webhook("loja01", receiver.url, order=after, concurrency=3)
        ids += await post_all(service, [event(*name, 10) for name in names])
        waiting = 0 if after == "none" else len(ids) - heads[after]
        await service.wait_for_stats(lambda stats: stats["deliveries"]["waiting"] == waiting)
        await service.wait_for_log(lambda line: line["event"] == "webhook.order_converted")
        go.set()
        for event_id in ids:
            assert await states(service, event_id) == {"acknowledged"}
        assert sorted(arrival.webhook_id for arrival in receiver.arrivals) == sorted(ids)
        # What was in flight went by the order before; it was answered before anything else was sent.
        if after != "none":  # then the POSTs of three connections arrive as they come
            assert_in_order(receiver.arrivals, "chat")
        if after == "instance":
            assert [arrival.webhook_id for arrival in receiver.arrivals[3:]] == ids[3:]


async def test_a_kill_disturbs_no_order(tmp_path: Path) -> None:
    """After kill -9 the queues are as they were: what was in flight comes again, and nothing before its turn."""
    turns = Turns("chat", failing=0.2)
    async with Receiver(turns) as receiver, running(tmp_path, **QUICK) as service:
        await service.set_webhook("loja01", receiver.url, order="chat")
        names = [("loja01", chat) for chat in ("ana", "rui", "eva", "gil")]
        ids = await post_all(service, [event(*name, n) for n in range(15) for name in names])
        for count in (12, 30):
            await receiver.wait_for_count(count)
            await service.kill()
            await service.start()
        await service.wait_until_settled()
        assert_in_order(receiver.arrivals, "chat")
        assert {arrival.webhook_id for arrival in receiver.arrivals} == set(ids)


async def test_what_order_takes(tmp_path: Path) -> None:
    """Three words; anything else is 422 at its place. What is absent in a PUT is the default again."""
    async with running(tmp_path) as service:
        url = "https://93.184.215.14/w"
        wrong: tuple[Any, ...] = ("", "Chat", "chats", "event", None, 1, True, ["chat"], {})
        for value in wrong:
            reply = await service.request("PUT", "/webhooks/instances/loja01", {"url": url, "order": value})
            assert (reply.status, "$.order" in reply.json()["detail"]) == (422, True), (value, reply)
        for order in ("none", "instance", "chat"):
            await service.set_webhook("loja01", url, order=order)
            listed = (await service.request("GET", "/webhooks")).json()["items"]
            assert [webhook["order"] for webhook in listed] == [order]
        await service.set_webhook("loja01", url)
        assert (await service.request("GET", "/webhooks/instances/loja01")).json()["order"] == "none"
