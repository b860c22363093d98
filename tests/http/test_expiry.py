"""Expiry: what has been pending for longer than OUTBOX_MAX_PENDING_AGE is dead, and says so."""

import asyncio
import json
from pathlib import Path

from aiohttp import web

from tests.harness import Arrival, Receiver, running
from tests.http.support import attempted, event_when, settled, states
from tests.http.test_metrics import samples, value

SOON = {"OUTBOX_MAX_PENDING_AGE": "1s"}
AGE_S = 1.0


async def test_what_is_too_old_is_dead(tmp_path: Path) -> None:
    """Its last attempt failed and was to be followed by others: at its age it is dead instead, and tells why."""
    receiver = Receiver()
    async with running(tmp_path, **SOON) as service:
        async with receiver:
            await service.set_webhook("loja01", receiver.url)
        ids = [await service.accept() for _ in range(3)]
        shown = [await settled(service, event_id) for event_id in ids]
        for one in shown:
            (delivery,) = one["deliveries"]
            assert (delivery["state"], delivery["reason"]) == ("dead", "expired")
            assert delivery["attempts"] == len(one["attempts"])
            assert {attempt["reason"] for attempt in one["attempts"]} <= {None}
        records = (await service.request("GET", "/log?limit=500")).json()["items"]
        moved = [record for record in records if record["type"] == "DeliveriesMoved"]
        assert {(record["move"], record["reason"]) for record in moved} == {("expire", "expired")}
        assert sum(record["count"] for record in moved) == 3
        names = {one["deliveries"][0]["id"] for one in shown}
        assert {delivery["delivery"] for record in moved for delivery in record["deliveries"]} == names
        said = [line for line in service.log if line["event"] == "deliveries.expired"]
        assert sum(line["count"] for line in said) == 3
        assert value(await samples(service), "outbox_deliveries_expired_total", webhook="wh_1") == 3
        _, output, _ = await service.command("show", ids[0])
        assert "dead: expired" in output
        # The breaker is open by now. The receiver is back, and what comes now is delivered.
        async with receiver:
            await service.set_webhook("loja01", receiver.url)
            assert await states(service, await service.accept()) == {"acknowledged"}


async def test_those_behind_expire_in_their_turn(tmp_path: Path) -> None:
    """A head that expires lets the next go; what never had its turn dies without an attempt, and tells why too."""
    stuck = asyncio.Event()

    async def answer(_arrival: Arrival) -> web.Response:
        await stuck.wait()
        return web.Response(status=503, headers={"retry-after": "1"})

    async with Receiver(answer) as receiver, running(tmp_path, **SOON) as service:
        await service.set_webhook("loja01", receiver.url, order="instance")
        one = json.dumps({"event": "call", "instance": "loja01", "data": {}})
        ids = (await service.request("POST", "/events/batch", f"[{','.join([one] * 30)}]")).json()["ids"]
        await receiver.wait_for_count(1)
        stuck.set()
        shown = [await settled(service, event_id) for event_id in ids]
        assert {each["deliveries"][0]["reason"] for each in shown} == {"expired"}
        assert [len(each["attempts"]) for each in shown] == [1] + [0] * 29
        assert len(receiver.arrivals) == 1


async def test_time_on_hold_does_not_count(tmp_path: Path) -> None:
    """Held for longer than its age, a delivery goes out once its webhook is enabled again."""
    async with Receiver(lambda _arrival: 500) as receiver, running(tmp_path, **SOON) as service:
        await service.set_webhook("loja01", receiver.url)
        event_id = await service.accept()
        await attempted(service, event_id)
        await service.set_webhook("loja01", receiver.url, enabled=False)
        await event_when(service, event_id, lambda shown: shown["deliveries"][0]["state"] == "held")
        receiver.answer = lambda _arrival: 200
        await asyncio.sleep(AGE_S)  # it is time itself that must not count
        await service.set_webhook("loja01", receiver.url)
        assert await states(service, event_id) == {"acknowledged"}


async def test_the_reason_outlives_the_webhook(tmp_path: Path) -> None:
    """After the webhook is deleted, what had expired before still says so, and what was pending says what happened."""
    async with Receiver(lambda _arrival: 500) as receiver, running(tmp_path, **SOON) as service:
        await service.set_webhook("loja01", receiver.url)
        expired = await service.accept()
        await settled(service, expired)
        pending = await service.accept()
        assert (await service.request("DELETE", "/webhooks/instances/loja01")).status == 204
        shown = [(await settled(service, event_id))["deliveries"][0] for event_id in (expired, pending)]
        assert [delivery["reason"] for delivery in shown] == ["expired", "the webhook was deleted"]
