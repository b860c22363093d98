"""Our own face for webhooks of both scopes: fan-out by name, the list, and what belongs to the environment."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.harness import Receiver, Service, running
from tests.http.support import Shown, event_when, settled, stats

URL = "https://93.184.215.14/w"
GLOBAL = {"WEBHOOK_GLOBAL_ENABLED": "true"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for the tests that need none of their own: each has instances of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


async def put(service: Service, path: str, status: int, url: str = URL, **settings: Any) -> Shown:
    """Set a webhook and return what it shows, the same as GET shows."""
    reply = await service.request("PUT", f"/webhooks/{path}", {"url": url, **settings})
    assert reply.status == status, reply
    assert (await service.request("GET", f"/webhooks/{path}")).body == reply.body
    shown: Shown = reply.json()
    return shown


async def listed(service: Service, query: str = "") -> tuple[list[Shown], str | None]:
    """Return a page of the list, and the cursor of the next one."""
    reply = await service.request("GET", f"/webhooks{query}")
    assert reply.status == 200, reply
    assert list(reply.json()) == ["items", "next"]
    return reply.json()["items"], reply.json()["next"]


async def test_names_fan_an_event_out(tmp_path: Path) -> None:
    """Every global webhook and every one of the instance, named or not, gets a copy; deleting one leaves the others."""
    paths = ["global", "global/crm", "instances/loja01", "instances/loja01/n8n", "instances/loja01/A_b-9"]
    async with Receiver() as receiver, running(tmp_path) as service:
        for path in [*paths, "instances/loja02/n8n"]:
            shown = await put(service, path, 201, f"{receiver.url}/{path}")
            where = [shown[name] for name in ("scope", "instance", "name") if shown[name]]
            assert "/".join(where).replace("instance/", "instances/") == path
        shown = await settled(service, await service.accept())
        assert sorted(arrival.path for arrival in receiver.arrivals) == sorted(f"/{path}" for path in paths)
        assert {delivery["state"] for delivery in shown["deliveries"]} == {"acknowledged"}
        assert (await service.request("GET", "/webhook/find/loja01")).json()["url"] == f"{receiver.url}/{paths[2]}"
        assert (await service.request("GET", "/webhook/find/loja02")).body == b"null"
        receiver.arrivals.clear()
        for path in ("global", "instances/loja01/n8n"):
            assert (await service.request("DELETE", f"/webhooks/{path}")).status == 204
        await settled(service, await service.accept())
        left = ["/global/crm", "/instances/loja01", "/instances/loja01/A_b-9"]
        assert sorted(arrival.path for arrival in receiver.arrivals) == sorted(left)


async def test_a_webhook_of_any_scope_is_a_whole(service: Service) -> None:
    """201, then 200; PUT replaces all of it; DELETE is 204, then 404; set again it is a new one."""
    for path in ("global", "global/x", "instances/whole", "instances/whole/x"):
        missing = await service.request("GET", f"/webhooks/{path}")
        assert (missing.status, missing.json()["title"]) == (404, "Not Found")
        first = await put(service, path, 201, base64=False, headers={"x-a": "1"}, events=["CALL"], enabled=False)
        second = await put(service, path, 200, enabled=False)
        assert second == first | {
            "base64": True, "headers": {}, "events": [], "updated_at": second["updated_at"],
        }  # fmt: skip
        assert (await service.request("DELETE", f"/webhooks/{path}")).status == 204
        assert (await service.request("DELETE", f"/webhooks/{path}")).status == 404
        assert (await put(service, path, 201, enabled=False))["id"] != first["id"]


async def test_a_name_has_to_fit_into_a_path(service: Service) -> None:
    """Letters, digits, - and _; `test` is where test events are sent; a hidden slash makes no name."""
    before = await stats(service)
    for path in ("global/a.b", "global/%20", "instances/i/caf%C3%A9", "instances/i/" + "x" * 65, "global/test"):
        reply = await service.request("PUT", f"/webhooks/{path}", {"url": URL})
        assert (reply.status, "`name`" in reply.json()["detail"]) == (422, True), (path, reply)
    reply = await service.request("PUT", "/webhooks/instances/i/test", {"url": URL})
    assert (reply.status, "test event" in reply.json()["detail"]) == (422, True), reply
    for path in ("instances/a%2Fb", "instances/a%2fb/c", "global/a%2Fb"):
        for method in ("PUT", "GET", "DELETE"):
            reply = await service.request(method, f"/webhooks/{path}", {"url": URL})
            assert reply.status in {404, 422}, (method, path, reply)
    assert await stats(service) == before
    assert (await service.request("GET", "/webhooks/global/nobody")).status == 404


async def test_webhooks_are_listed_page_by_page(tmp_path: Path) -> None:
    """All live ones, the oldest first, masked, each exactly as GET shows it; changing one does not move it."""
    paths = [f"instances/i{number}" for number in range(4)] + ["global", "global/x", "instances/i0/y"]
    async with running(tmp_path) as service:
        assert await listed(service) == ([], None)
        shown = [await put(service, path, 201, headers={"x-key": "hush"}) for path in paths]
        assert await listed(service) == (shown, None)
        assert "hush" not in str(shown)
        shown[1] = await put(service, paths[1], 200, f"{URL}2")
        await service.request("DELETE", f"/webhooks/{paths[2]}")
        del shown[2]
        found: list[Shown] = []
        query, pages = "?limit=2", 0
        while query:
            items, cursor = await listed(service, query)
            assert 1 <= len(items) <= 2
            found += items
            query, pages = (f"?limit=2&cursor={cursor}", pages + 1) if cursor else ("", pages + 1)
        assert (found, pages) == (shown, 3)
        assert await listed(service, "?limit=6") == (shown, None)
        assert await listed(service, "?cursor=wh_999999") == ([], None)
        for query in ("limit=0", "limit=501", "limit=x", "limit=", "limit=-1", "cursor=x", "cursor=", "cursor=wh_"):
            reply = await service.request("GET", f"/webhooks?{query}")
            assert (reply.status, f"`{query.partition('=')[0]}`" in reply.json()["detail"]) == (422, True), query
        await service.stop()
        await service.start()
        assert await listed(service) == (shown, None)


async def test_the_environments_webhook_is_its_own(tmp_path: Path) -> None:
    """While the environment sets the unnamed global webhook, PUT and DELETE are 409; others of the scope are free."""
    settings = {**GLOBAL, "WEBHOOK_GLOBAL_URL": "http://ana:hush@127.0.0.1:9/env"}
    async with running(tmp_path, OUTBOX_ALLOWED_NETWORKS="", **settings) as service:
        before = await service.request("GET", "/webhooks/global")
        assert before.json()["url"] == "http://ana:***@127.0.0.1:9/env"
        for method, body in (("PUT", {"url": URL}), ("PUT", before.json()), ("DELETE", None)):
            wanted = {name: body[name] for name in ("url", "enabled") if name in body} if body else None
            reply = await service.request(method, "/webhooks/global", wanted)
            assert (reply.status, "WEBHOOK_GLOBAL_URL" in reply.json()["detail"]) == (409, True), reply
        assert (await service.request("GET", "/webhooks/global")).body == before.body
        await put(service, "global/mine", 201)
        assert (await service.request("DELETE", "/webhooks/global/mine")).status == 204


async def restarted(service: Service, **settings: str) -> None:
    """Stop it, and start it with these variables for the global webhook and no others."""
    await service.stop()
    for name in ("WEBHOOK_GLOBAL_ENABLED", "WEBHOOK_GLOBAL_URL"):
        service.settings.pop(name, None)
    service.settings |= settings
    await service.start()


@pytest.mark.parametrize("enabled", ["true", "false"])
async def test_what_left_the_environment_is_the_apis(tmp_path: Path, enabled: str) -> None:
    """Removed from the environment, the webhook is disabled and kept, be it on or off there; the API may change it."""
    async with running(tmp_path, WEBHOOK_GLOBAL_ENABLED=enabled, WEBHOOK_GLOBAL_URL="http://127.0.0.1:9/e") as service:
        first = (await service.request("GET", "/webhooks/global")).json()
        assert first["enabled"] is (enabled == "true")
        await restarted(service)
        left = (await service.request("GET", "/webhooks/global")).json()
        assert left == first | {"enabled": False, "state": "disabled", "updated_at": left["updated_at"]}
        changed = await put(service, "global", 200, f"{URL}/mine")
        assert changed["id"] == first["id"]


async def test_the_environment_takes_the_global_webhook_over(tmp_path: Path) -> None:
    """What the API set gives way to the environment, as the same webhook; once that is silent it can be deleted."""
    async with running(tmp_path) as service:
        first = await put(service, "global", 201, headers={"x-a": "1"}, concurrency=7)
        await restarted(service, **GLOBAL, WEBHOOK_GLOBAL_URL="http://127.0.0.1:9/env")
        taken = (await service.request("GET", "/webhooks/global")).json()
        assert (taken["id"], taken["url"], taken["headers"]) == (first["id"], "http://127.0.0.1:9/env", {})
        assert (await service.request("DELETE", "/webhooks/global")).status == 409
        await restarted(service)
        assert (await service.request("DELETE", "/webhooks/global")).status == 204
        assert (await service.request("GET", "/webhooks/global")).status == 404


async def test_a_disabled_global_webhook_holds_what_was_pending(tmp_path: Path) -> None:
    """Disabled by API it gets nothing new, what was pending reads as held, across a restart; enabled it goes out."""
    async with Receiver(lambda _arrival: 503) as receiver, running(tmp_path) as service:
        await put(service, "global/g", 201, receiver.url)
        pending = await service.accept()
        await receiver.wait_for_count(1)
        await put(service, "global/g", 200, receiver.url, enabled=False)
        reply = await service.request("POST", "/events", {"event": "call", "instance": "loja01", "data": {}})
        assert reply.json()["deliveries"] == 0
        await service.stop()
        await service.start()
        await event_when(service, pending, lambda shown: shown["deliveries"][0]["state"] == "held")
        numbers = (await service.request("GET", "/stats")).json()["deliveries"]
        assert (numbers["held"], numbers["pending"]) == (1, 0)
        tried = len(receiver.arrivals)
        receiver.answer = lambda _arrival: 200
        await put(service, "global/g", 200, receiver.url)
        assert (await settled(service, pending))["deliveries"][0]["state"] == "acknowledged"
        assert [arrival.webhook_id for arrival in receiver.arrivals[tried:]] == [pending]
