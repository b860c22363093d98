"""Suspension: a receiver that answers 410 is gone. Its webhook rests, holding all, until it is set again."""

import asyncio
from pathlib import Path
from typing import Any

from tests.harness import Arrival, Receiver, Service, running
from tests.http.support import Shown, attempted, event_when, states
from tests.http.test_metrics import samples, value

ENVIRONMENT = {"WEBHOOK_GLOBAL_ENABLED": "true"}


async def webhook(service: Service, path: str = "instances/loja01") -> Shown:
    """Return a webhook as our own API shows it."""
    shown: Shown = (await service.request("GET", f"/webhooks/{path}")).json()
    return shown


async def suspended(service: Service, receiver: Receiver, **settings: Any) -> list[str]:
    """Set a webhook, have it answer 410, post two more events; return the three ids once all are held."""
    receiver.answer = lambda _arrival: 410
    await service.set_webhook("loja01", receiver.url, **settings)
    ids = [await service.accept()]
    await attempted(service, ids[0])
    ids += [await service.accept() for _ in range(2)]
    await service.wait_for_stats(lambda stats: stats["deliveries"]["held"] == len(ids))
    return ids


async def test_a_410_suspends_and_a_put_lets_all_go(tmp_path: Path) -> None:
    """Events are still routed to it, and held; it says so wherever it is looked at; any PUT lets them all go."""
    async with Receiver() as receiver, running(tmp_path) as service:
        ids = await suspended(service, receiver)
        shown = await webhook(service)
        assert (shown["state"], shown["enabled"], shown["breaker"]) == ("suspended", True, "closed")
        assert shown["created_at"] < shown["suspended_at"]
        (entry,) = (await service.request("GET", "/stats")).json()["webhooks"]
        assert (entry["state"], entry["enabled"], entry["deliveries"]["held"]) == ("suspended", True, 3)
        assert entry["oldest_pending_s"] >= 0
        held = (await service.request("GET", "/deliveries?state=held")).json()["items"]
        assert [item["event_id"] for item in reversed(held)] == ids
        assert (await service.request("GET", "/deliveries?state=pending")).json()["items"] == []
        found = await samples(service)
        assert value(found, "outbox_deliveries", webhook=shown["id"], state="held") == 3
        assert value(found, "outbox_webhook_suspended", webhook=shown["id"]) == 1
        assert value(found, "outbox_attempts_total", webhook=shown["id"], outcome="suspended") == 1
        first = (await service.request("GET", f"/events/{ids[0]}")).json()
        assert first["deliveries"][0]["state"] == "held"
        assert [(one["attempt"], one["status"], one["reason"]) for one in first["attempts"]] == [(1, 410, None)]
        assert len(receiver.arrivals) == 1
        receiver.answer = lambda _arrival: 200
        await service.set_webhook("loja01", receiver.url)
        for event_id in ids:
            assert await states(service, event_id) == {"acknowledged"}
        shown = await webhook(service)
        assert (shown["state"], shown["suspended_at"]) == ("enabled", None)
        assert value(await samples(service), "outbox_webhook_suspended", webhook=shown["id"]) == 0


async def test_a_suspension_is_said_once_and_recorded(tmp_path: Path) -> None:
    """However many 410s come at a time, there is one record and one line at the level of errors, without the URL."""
    together = asyncio.Event()

    async def gone(arrival: Arrival) -> int:
        if len(receiver.arrivals) >= 3:
            together.set()
        await together.wait()
        return 410 if arrival.headers["x-outbox-attempt"] == "1" else 200

    async with Receiver(gone) as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url.replace("://", "://user:canary-password@"))
        ids = [await service.accept() for _ in range(3)]
        for event_id in ids:
            await attempted(service, event_id)
        records = (await service.request("GET", "/log")).json()["items"]
        (record,) = [record for record in records if record["type"] == "WebhookSuspended"]
        assert (record["webhook"], record["event"] in ids) == ("wh_1", True)
        assert [(one["from"] == record["at"], one["until"]) for one in record["held"]] == [(True, None)]
        said = [line for line in service.log if line["event"] == "webhook.suspended"]
        assert [(line["level"], line["webhook"], line["instance"]) for line in said] == [("error", 1, "loja01")]
        assert not [line for line in service.log if "canary" in str(line) or receiver.url in str(line)]
        await service.set_webhook("loja01", receiver.url)
        for event_id in ids:
            assert await states(service, event_id) == {"acknowledged"}
        attempts = [(await service.request("GET", f"/events/{event_id}")).json()["attempts"] for event_id in ids]
        assert [[one["status"] for one in each] for each in attempts] == [[410, 200]] * 3


async def test_a_suspension_outlives_a_kill(tmp_path: Path) -> None:
    """After kill -9 it is still suspended and nothing is sent; with order, the queues stand as they stood."""
    async with Receiver() as receiver, running(tmp_path) as service:
        ids = await suspended(service, receiver, order="instance")
        before = await webhook(service)
        await service.kill()
        await service.start()
        assert await webhook(service) == before
        ids.append(await service.accept())
        await service.wait_for_stats(lambda stats: stats["deliveries"]["held"] == 4)
        assert len(receiver.arrivals) == 1
        receiver.answer = lambda _arrival: 200
        await service.set_webhook("loja01", receiver.url, order="instance")
        await service.wait_until_settled()
        assert [arrival.webhook_id for arrival in receiver.arrivals] == [ids[0], *ids]


async def test_evolutions_route_ends_a_suspension(tmp_path: Path) -> None:
    """Set in Evolution API's words, it goes on, and keeps the settings that Evolution API has no words for."""
    kept = {"order": "chat", "rate_limit": 99.5, "concurrency": 7, "timeout_ms": 1500, "route_style": "evolution"}
    async with Receiver() as receiver, running(tmp_path) as service:
        ids = await suspended(service, receiver, **kept)
        found = (await service.request("GET", "/webhook/find/loja01")).json()
        assert (found["enabled"], set(found) & {"state", "order", "breaker"}) == (True, set())
        receiver.answer = lambda _arrival: 200
        body = {"webhook": {"enabled": True, "url": receiver.url}}
        reply = await service.request("POST", "/webhook/set/loja01", body)
        assert (reply.status, set(reply.json())) == (201, set(found))
        for event_id in ids:
            assert await states(service, event_id) == {"acknowledged"}
        shown = await webhook(service)
        assert {name: shown[name] for name in kept} == kept
        assert shown["state"] == "enabled"


async def test_the_environments_webhook_goes_on_after_a_restart(tmp_path: Path) -> None:
    """The API may not set what the environment sets: a restart ends its suspension, and says so."""
    async with (
        Receiver(lambda _arrival: 410) as receiver,
        running(tmp_path, WEBHOOK_GLOBAL_URL=receiver.url, **ENVIRONMENT) as service,
    ):
        event_id = await service.accept()
        await event_when(service, event_id, lambda shown: shown["deliveries"][0]["state"] == "held")
        assert (await service.request("PUT", "/webhooks/global", {"url": receiver.url})).status == 409
        said = await service.wait_for_log(lambda line: line["event"] == "webhook.suspended")
        assert said["instance"] is None
        receiver.answer = lambda _arrival: 200
        await service.stop()
        await service.start()
        line = await service.wait_for_log(lambda line: line["event"] == "webhook.set")
        assert (line["source"], line["resumed"]) == ("environment", True)
        assert await states(service, event_id) == {"acknowledged"}
        assert (await webhook(service, "global"))["state"] == "enabled"
        seq = (await service.request("GET", "/stats")).json()["seq"]
        await service.stop()
        await service.start()
        assert (await service.request("GET", "/stats")).json()["seq"] == seq


async def test_a_410_from_before_the_webhook_was_set_counts_for_nothing(tmp_path: Path) -> None:
    """An answer that was under way when the webhook was set anew is the old receiver's: the new one gets the event."""
    came, go = asyncio.Event(), asyncio.Event()

    async def gone(_arrival: Arrival) -> int:
        came.set()
        await go.wait()
        return 410

    async with Receiver(gone) as old, Receiver() as new, running(tmp_path) as service:
        await service.set_webhook("loja01", old.url)
        event_id = await service.accept()
        await came.wait()
        await service.set_webhook("loja01", new.url)
        go.set()
        assert await states(service, event_id) == {"acknowledged"}
        assert (len(old.arrivals), len(new.arrivals)) == (1, 1)
        assert (await webhook(service))["state"] == "enabled"
        records = (await service.request("GET", "/log")).json()["items"]
        assert "WebhookSuspended" not in {record["type"] for record in records}


async def test_suspended_then_disabled_then_deleted(tmp_path: Path) -> None:
    """Disabling ends a suspension and holds on; nothing more is routed to it; deleting buries what was held."""
    async with Receiver() as receiver, running(tmp_path) as service:
        ids = await suspended(service, receiver)
        await service.set_webhook("loja01", receiver.url, enabled=False)
        shown = await webhook(service)
        assert (shown["state"], shown["suspended_at"]) == ("disabled", None)
        await service.accept()
        assert (await service.request("GET", "/stats")).json()["deliveries"]["held"] == 3
        assert (await service.request("DELETE", "/webhooks/instances/loja01")).status == 204
        for event_id in ids:
            assert await states(service, event_id) == {"dead"}
            reply = await service.request("GET", f"/events/{event_id}")
            assert reply.json()["deliveries"][0]["reason"] == "the webhook was deleted"
        assert len(receiver.arrivals) == 1
