import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.harness import Receiver, Service, running


class Scene:
    """A service with some history, and the ids that questions about it need."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.events: dict[str, str] = {}
        self.webhooks: dict[str, str] = {}

    async def set_webhook(self, instance: str, url: str, **settings: Any) -> None:
        """Set a webhook and remember its id under the instance's name."""
        await self.service.set_webhook(instance, url, **settings)
        reply = await self.service.request("GET", f"/webhooks/instances/{instance}")
        self.webhooks[instance] = reply.json()["id"]

    async def items(self, path: str, **filters: str | int) -> list[Any]:
        """Return all items of a list, by its cursors."""
        items: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await self.page(path, **filters, **({"cursor": cursor} if cursor else {}))
            items += page["items"]
            cursor = page["next"]
        return items

    async def page(self, path: str, **filters: str | int) -> Any:
        """Return one page."""
        reply = await self.service.request("GET", f"{path}?{urlencode(filters)}")
        assert reply.status == 200, reply
        return reply.json()

    async def names(self, path: str, **filters: str | int) -> list[str]:
        """Return what the listed events, or those of the listed deliveries, are called here."""
        called = {event_id: name for name, event_id in self.events.items()}
        return [called[item.get("event_id", item["id"])] for item in await self.items(path, **filters)]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """Events in every state: acknowledged (loja01), dead (bad), pending (down), held (off), and one for nobody."""
    statuses = {"/bad": 400, "/down": 500}
    async with (
        Receiver(lambda arrival: statuses.get(arrival.path, 200)) as receiver,
        running(tmp_path, WEBHOOK_RETRY_INITIAL_DELAY_SECONDS="60", WEBHOOK_RETRY_MAX_DELAY_SECONDS="60") as service,
    ):
        scene = Scene(service)
        for instance in ("loja01", "bad", "down", "off"):
            await scene.set_webhook(instance, f"{receiver.url}/{instance}")
        for instance in ("loja01", "bad", "down", "nobody"):
            scene.events[instance] = await service.accept(instance=instance)
        scene.events["call"] = await service.accept("call", "loja01")
        await service.set_webhook("off", f"{receiver.url}/down")
        scene.events["off"] = await service.accept(instance="off")
        await service.wait_for_stats(
            lambda stats: (
                stats["deliveries"]["acknowledged"] == 2
                and stats["deliveries"]["dead"] == 1
                and len(receiver.arrivals) >= 5
            )
        )
        await service.set_webhook("off", f"{receiver.url}/down", enabled=False)
        yield scene


NEWEST_FIRST = ["off", "call", "nobody", "down", "bad", "loja01"]


async def test_events_are_listed_newest_first(scene: Scene) -> None:
    """GET /events shows every event with its deliveries, the newest one first."""
    items = await scene.items("/events")
    assert await scene.names("/events") == NEWEST_FIRST
    assert [item["seq"] for item in items] == sorted((item["seq"] for item in items), reverse=True)
    newest = items[0]
    assert (newest["event"], newest["instance"]) == ("MESSAGES_UPSERT", "off")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", newest["accepted_at"])
    (delivery,) = newest["deliveries"]
    assert (delivery["webhook"], delivery["state"]) == (scene.webhooks["off"], "held")
    assert items[2]["deliveries"] == []


async def test_an_event_in_a_list_is_what_is_shown_of_it_alone(scene: Scene) -> None:
    """A listed event has the members that GET /events/{id} shows, but for payload, attempts and reasons of the dead."""
    for item in await scene.items("/events"):
        alone = (await scene.service.request("GET", f"/events/{item['id']}")).json()
        for delivery in alone["deliveries"]:
            assert bool(delivery.pop("reason")) == (delivery["state"] == "dead")
        assert item == {name: value for name, value in alone.items() if name not in {"payload", "attempts"}}


async def test_deliveries_are_listed_newest_first(scene: Scene) -> None:
    """GET /deliveries shows every delivery with its event."""
    items = await scene.items("/deliveries")
    assert await scene.names("/deliveries") == ["off", "call", "down", "bad", "loja01"]
    states = {item["instance"]: item["state"] for item in items}
    assert states == {"off": "held", "down": "pending", "bad": "dead", "loja01": "acknowledged"}
    dead = items[3]
    assert dead["id"] == f"{scene.events['bad'].replace('evt', 'dlv')}_{scene.webhooks['bad'].removeprefix('wh_')}"
    assert (dead["event"], dead["webhook"], dead["attempts"]) == ("MESSAGES_UPSERT", scene.webhooks["bad"], 1)
    assert dead["url"].endswith("/bad")


FILTERS: list[tuple[dict[str, str], list[str]]] = [
    ({"instance": "loja01"}, ["call", "loja01"]),
    ({"instance": "unheard-of"}, []),
    ({"event": "CALL"}, ["call"]),
    ({"event": "message.upsert", "instance": "loja01"}, ["loja01"]),
    ({"event": "/MESSAGES-upsert", "instance": "off"}, ["off"]),
    ({"webhook": "loja01"}, ["call", "loja01"]),
    ({"webhook": "loja01", "event": "call"}, ["call"]),
    ({"webhook": "wh_999999"}, []),
    ({"state": "acknowledged"}, ["call", "loja01"]),
    ({"state": "dead"}, ["bad"]),
    ({"state": "dead", "webhook": "bad"}, ["bad"]),
    ({"state": "dead", "webhook": "down"}, []),
    ({"state": "dead", "instance": "down"}, []),
    ({"state": "pending"}, ["down"]),
    ({"state": "held"}, ["off"]),
    ({"state": "held", "webhook": "off"}, ["off"]),
    ({"state": "pending", "webhook": "off"}, []),
    ({"state": "waiting"}, []),
]


async def test_filters(scene: Scene) -> None:
    """Each filter, and several together, narrow both lists to the same events, whatever the size of a page."""
    for filters, expected in FILTERS:
        webhook = (
            {"webhook": scene.webhooks.get(filters["webhook"], filters["webhook"])} if "webhook" in filters else {}
        )
        for path in ("/events", "/deliveries"):
            for limit in (1, 50):
                assert await scene.names(path, **{**filters, **webhook}, limit=limit) == expected, (
                    path,
                    filters,
                    limit,
                )


async def test_times(scene: Scene) -> None:
    """`since` begins with its moment and `until` ends before its own; both take RFC 3339 and seconds."""
    items = dict(zip(NEWEST_FIRST, await scene.items("/events"), strict=True))
    middle = items["nobody"]["accepted_at"]
    assert await scene.names("/events", since=middle) == NEWEST_FIRST[:3]
    assert await scene.names("/events", until=middle) == NEWEST_FIRST[3:]
    assert await scene.names("/events", since=middle, until=items["call"]["accepted_at"]) == ["nobody"]
    assert await scene.names("/deliveries", since=middle, state="acknowledged") == ["call"]
    assert await scene.names("/events", since=middle.replace("Z", "+00:00")) == NEWEST_FIRST[:3]
    assert await scene.names("/events", since="0", until="9999999999") == NEWEST_FIRST
    assert await scene.names("/events", since="9999999999.5") == []
    unescaped = await scene.service.request("GET", f"/events?since={middle.replace('Z', '+00:00')}")
    assert len(unescaped.json()["items"]) == 3


async def test_pages(scene: Scene) -> None:
    """A page has as many items as were asked for; `next` goes on behind it, and is null at the end."""
    first = await scene.page("/events", limit=4)
    assert len(first["items"]) == 4
    second = await scene.page("/events", limit=4, cursor=first["next"])
    assert [len(second["items"]), second["next"]] == [2, None]
    whole = await scene.page("/events", limit=6)
    assert whole["next"] is None
    # Attempts go on in between: an event is the same by its id.
    assert [item["id"] for item in whole["items"]] == [item["id"] for item in first["items"] + second["items"]]
    deliveries = await scene.page("/deliveries", limit=5)
    assert (len(deliveries["items"]), deliveries["next"]) == (5, None)


async def test_an_event_of_several_webhooks_is_listed_once(scene: Scene) -> None:
    """An event with several deliveries is one event and several deliveries, also across pages."""
    for name in ("second", "third"):
        reply = await scene.service.request(
            "PUT", f"/webhooks/instances/loja01/{name}", {"url": "http://127.0.0.1:1/", "enabled": True}
        )
        assert reply.status == 201
    scene.events["many"] = await scene.service.accept(instance="loja01")
    assert (await scene.names("/events", state="pending", limit=1))[0] == "many"
    assert (await scene.names("/events", state="pending")).count("many") == 1
    for limit in (1, 2, 50):
        deliveries = [item["id"] for item in await scene.items("/deliveries", limit=limit)]
        assert len(deliveries) == len(set(deliveries)) == 8
        assert await scene.names("/events", limit=limit) == ["many", *NEWEST_FIRST]


async def test_deliveries_of_a_deleted_webhook_are_listed(scene: Scene) -> None:
    """What a deleted webhook had is dead and can still be asked for, under its own id."""
    deleted = await scene.service.request("DELETE", "/webhooks/instances/off")
    assert deleted.status == 204
    await scene.service.wait_for_stats(lambda stats: stats["deliveries"]["dead"] == 2)
    assert await scene.names("/deliveries", webhook=scene.webhooks["off"]) == ["off"]
    assert await scene.names("/deliveries", state="dead") == ["off", "bad"]


BAD_VALUES = [
    *[("limit", value) for value in ("0", "501", "ten", "-1", "", "٣")],
    *[("cursor", value) for value in ("x", "1", "1_", "9" * 19 + "_0")],
    *[("event", value) for value in ("no.such.kind", "")],
    *[("instance", value) for value in ("", "x" * 256, "a\x00b")],
    *[("webhook", value) for value in ("1", "wh_0", "wh_x", "wh_" + "9" * 19)],
    *[("state", value) for value in ("DEAD", "nope", "")],
    *[("since", value) for value in ("yesterday", "2025-01-01", "2025-01-01T00:00:00", "-1")],
    *[("until", value) for value in ("1e9", "2025-13-01T00:00:00Z", "", "9" * 30)],
    ("statee", "dead"),
]


async def test_bad_values_name_their_parameter(tmp_path: Path) -> None:
    """A value that no list knows, and a parameter that there is not, are 422 and say which parameter it is."""
    async with running(tmp_path) as service:
        for path in ("/events", "/deliveries"):
            for name, value in BAD_VALUES:
                reply = await service.request("GET", f"{path}?{urlencode({name: value})}")
                assert (reply.status, reply.headers["content-type"]) == (422, "application/problem+json"), (name, value)
                assert reply.json()["detail"].endswith(f"at `{name}`")
            twice = await service.request("GET", f"{path}?state=dead&state=held")
            assert (twice.status, twice.json()["detail"]) == (422, "the parameter `state` is given twice - at `state`")


@pytest.mark.parametrize("path", ["/events", "/deliveries"])
async def test_lists_need_the_key(tmp_path: Path, path: str) -> None:
    """Without the API key nothing is listed; with it, an outbox without events lists none."""
    async with running(tmp_path) as service:
        assert (await service.request("GET", path, headers={"apikey": "wrong-key"})).status == 401
        assert (await service.request("GET", path)).json() == {"items": [], "next": None}
