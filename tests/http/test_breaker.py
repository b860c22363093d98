"""The circuit breaker: a receiver that is down is only tried now and then, and costs no event."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.harness import NO_ANSWER, Arrival, Receiver, Service, running
from tests.http.support import Shown, array, attempted, event_when, numbered, post_batch, settled, states
from tests.http.test_metrics import samples, value

SELDOM = {"WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "600", "WEBHOOK_RETRY_MAX_DELAY_SECONDS": "600"}


async def webhook(service: Service) -> Shown:
    """Return the webhook as our own API shows it."""
    shown: Shown = (await service.request("GET", "/webhooks/instances/loja01")).json()
    return shown


async def wait_for_breaker(service: Service, word: str) -> None:
    """Return once the breaker of the only webhook is `word`."""
    await service.wait_for_stats(lambda stats: stats["webhooks"][0]["breaker"] == word)


async def moves(service: Service) -> list[tuple[str, str]]:
    """Return what the log says of the breaker: to what it moved, and why."""
    items = (await service.request("GET", "/log?limit=500")).json()["items"]
    return [(item["breaker"], item["reason"]) for item in items if item["type"] == "BreakerMoved"]


async def test_a_receiver_that_refuses_connections(tmp_path: Path) -> None:
    """After five failures the breaker is open, wherever one looks, across a kill too; once it is back, all arrive."""
    receiver = Receiver()
    async with running(tmp_path, WEBHOOK_RETRY_MAX_ATTEMPTS="6") as service:
        async with receiver:
            await service.set_webhook("loja01", receiver.url)
        ids = [await service.accept() for _ in range(2)]
        await wait_for_breaker(service, "open")
        shown = await webhook(service)
        assert (shown["state"], shown["breaker"]) == ("enabled", "open")
        assert shown["updated_at"] < shown["breaker_since"]
        assert value(await samples(service), "outbox_webhook_breaker_open", webhook="wh_1") == 1
        assert await moves(service) == [("open", "connection_refused")]
        said = await service.wait_for_log(lambda line: line["event"] == "breaker.opened")
        assert (said["webhook"], said["cause"]) == (1, "connection_refused")
        await service.kill()
        await service.start()
        assert await webhook(service) == shown
        # Probes cost no attempts: more of them than a delivery has leave it pending.
        probed = await attempted(service, ids[0], 8)
        assert probed["deliveries"][0]["state"] == "pending"
        async with receiver:
            for event_id in ids:
                assert await states(service, event_id) == {"acknowledged"}
        assert {arrival.webhook_id for arrival in receiver.arrivals} == set(ids)
        shown = await webhook(service)
        assert (shown["breaker"], shown["breaker_since"]) == ("closed", None)
        assert value(await samples(service), "outbox_webhook_breaker_open", webhook="wh_1") == 0
        assert await moves(service) == [("open", "connection_refused"), ("closed", "")]
        await service.wait_for_log(lambda line: line["event"] == "breaker.closed")


async def test_five_events_that_fail_open_it_whatever_the_failure(tmp_path: Path) -> None:
    """Statuses open it too, once five different deliveries got them in a row; then one at a time is tried, rarely."""
    async with Receiver(lambda _arrival: 500) as receiver, running(tmp_path, **SELDOM) as service:
        await service.set_webhook("loja01", receiver.url, concurrency=1)
        ids = [await service.accept() for _ in range(20)]
        await wait_for_breaker(service, "open")
        assert await moves(service) == [("open", "status 500")]
        assert len(receiver.arrivals) == 5
        # Set again, it is tried at once, by one attempt.
        await service.set_webhook("loja01", receiver.url, concurrency=1)
        await receiver.wait_for_count(6)
        receiver.answer = lambda _arrival: 200
        assert (await webhook(service))["breaker"] == "open"
        # So it is when a test event is sent; what succeeds lets all go that is due.
        assert (await service.request("POST", "/webhooks/instances/loja01/test")).json()["status"] == 200
        for event_id in ids[6:]:
            assert await states(service, event_id) == {"acknowledged"}
        await wait_for_breaker(service, "closed")


async def test_a_probe_that_succeeds_waits_for_nobody(tmp_path: Path) -> None:
    """It lets all go at once, though a POST from before the breaker opened still hangs."""
    down, release = True, asyncio.Event()

    async def answer(arrival: Arrival) -> int:
        if arrival.json()["data"] == "hang":
            await release.wait()
        return 404 if down else 200

    async with Receiver(answer) as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        hanging = await service.accept(data="hang")
        await receiver.wait_for_count(1)
        ids = [await service.accept() for _ in range(10)]
        await wait_for_breaker(service, "open")
        down = False
        for event_id in ids:
            assert (await settled(service, event_id, timeout_s=10))["deliveries"][0]["state"] == "acknowledged"
        assert len((await service.request("GET", f"/events/{hanging}")).json()["attempts"]) == 0
        release.set()
        assert await states(service, hanging) == {"acknowledged"}


async def test_a_poison_event_does_not_open_it(tmp_path: Path) -> None:
    """One event that always fails is its own trouble, among others that succeed and all alone."""

    def answer(arrival: Arrival) -> int:
        return 500 if arrival.json()["data"] == "poison" else 200

    async with Receiver(answer) as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        poison = await service.accept(data="poison")
        alone = await attempted(service, poison, 8)
        assert {one["status"] for one in alone["attempts"]} == {500}
        for _ in range(20):
            assert await states(service, await service.accept(data="fine")) == {"acknowledged"}
        assert (await webhook(service))["breaker"] == "closed"
        assert await moves(service) == []


async def test_refusals_do_not_open_it(tmp_path: Path) -> None:
    """A status that is not retried is an answer: the receiver is there."""
    async with Receiver(lambda _arrival: 422) as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        reply = await service.request(
            "POST", "/events/batch", json.dumps([{"event": "call", "instance": "loja01", "data": n} for n in range(20)])
        )
        for event_id in reply.json()["ids"]:
            assert await states(service, event_id) == {"dead"}
        assert await moves(service) == []
        assert len(receiver.arrivals) == 20


async def test_one_delivery_without_usable_answers_opens_it(tmp_path: Path) -> None:
    """Five attempts in a row that nobody answered say that the receiver is down, be they for a single event."""
    async with Receiver(lambda _arrival: NO_ANSWER) as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        event_id = await service.accept()
        await wait_for_breaker(service, "open")
        shown = await event_when(service, event_id, lambda shown: len(shown["attempts"]) >= 5)
        assert {one["status"] for one in shown["attempts"]} == {None}
        receiver.answer = lambda _arrival: 200
        shown = await settled(service, event_id)
        assert shown["deliveries"][0]["state"] == "acknowledged"
        await wait_for_breaker(service, "closed")


@pytest.mark.parametrize("how", ["set", "enabled", "tested", "replayed"])
async def test_a_probe_at_once_waits_for_no_due_time(tmp_path: Path, how: str) -> None:
    """Who has mended the receiver, and says so, sees what is pending arrive now, though all of it is due much later."""
    receiver = Receiver()
    async with running(tmp_path, **SELDOM) as service:
        async with receiver:
            await service.set_webhook("loja01", receiver.url)
        ids = (await post_batch(service, array(numbered(6)))).json()["ids"]
        for event_id in ids:
            await attempted(service, event_id)
        await wait_for_breaker(service, "open")
        if how == "enabled":
            await service.set_webhook("loja01", receiver.url, enabled=False)
        async with receiver:
            if how in {"set", "enabled"}:
                await service.set_webhook("loja01", receiver.url)
            elif how == "tested":
                assert (await service.request("POST", "/webhooks/instances/loja01/test")).status == 200
            else:
                reply = await service.request("POST", f"/deliveries/{ids[0].replace('evt', 'dlv')}_1/replay")
                assert reply.status == 202
            await receiver.wait_for_count(2 if how == "tested" else 1)
            await wait_for_breaker(service, "closed")


async def test_a_disabled_webhook_keeps_its_breaker(tmp_path: Path) -> None:
    """Set anew it is tried at once, and only a success closes its breaker."""
    receiver = Receiver()
    async with running(tmp_path, **SELDOM) as service:
        async with receiver:
            await service.set_webhook("loja01", receiver.url)
        ids = [await service.accept() for _ in range(6)]
        await wait_for_breaker(service, "open")
        await service.set_webhook("loja01", receiver.url, enabled=False)
        shown = await webhook(service)
        assert (shown["state"], shown["breaker"]) == ("disabled", "open")
        async with receiver:
            await service.set_webhook("loja01", receiver.url)
            await receiver.wait_for_count(1)
            await wait_for_breaker(service, "closed")
            assert receiver.arrivals[0].webhook_id in ids
        assert await moves(service) == [("open", "connection_refused"), ("closed", "")]
