"""Setting webhooks over both faces, and that what was set is what receivers get."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from tests.harness import Arrival, Receiver, Reply, Service, running
from tests.http.support import CATALOGUE, RawReceiver, Shown, answer_bytes, event_when, settled, stats

MASK = "***"
ROW = {
    "id", "url", "headers", "enabled", "events", "webhookByEvents", "webhookBase64",
    "createdAt", "updatedAt", "instanceId",
}  # fmt: skip

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="receiver")
async def running_receiver() -> AsyncIterator[Receiver]:
    """A receiver for all tests here: each looks at paths of its own."""
    async with Receiver() as receiver:
        yield receiver


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> AsyncIterator[Service]:
    """A service for all tests here: each has an instance of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


async def set_v2(service: Service, instance: str, **webhook: Any) -> Shown:
    """Set a webhook as Evolution API v2 takes it, and return the row that comes back."""
    reply = await service.request("POST", f"/webhook/set/{instance}", {"webhook": webhook})
    assert reply.status == 201, reply
    found = await service.request("GET", f"/webhook/find/{instance}")
    assert (found.status, found.json()) == (200, reply.json())
    row: Shown = reply.json()
    return row


async def put(service: Service, instance: str, status: int, **settings: Any) -> Shown:
    """Set a webhook over our own face and return what it shows, the same as GET shows."""
    reply = await service.request("PUT", f"/webhooks/instances/{instance}", settings)
    assert reply.status == status, reply
    assert (await service.request("GET", f"/webhooks/instances/{instance}")).body == reply.body
    shown: Shown = reply.json()
    return shown


async def arrival_of(service: Service, receiver: Receiver, instance: str) -> Arrival:
    """Post an event of an instance and return the one copy that arrives."""
    event_id = await service.accept(instance=instance)
    await settled(service, event_id)
    (arrival,) = [arrival for arrival in receiver.arrivals if arrival.webhook_id == event_id]
    return arrival


async def test_v2_body_keeps_what_it_omits(service: Service, receiver: Receiver) -> None:
    """Omitted headers, byEvents and base64 keep their values (new: null, false, false); url and events are replaced."""
    row = await set_v2(service, "v2", enabled=True, url=f"{receiver.url}/v2")
    assert set(row) == ROW
    assert row["instanceId"] == "v2"
    assert (row["url"], row["enabled"], row["events"]) == (f"{receiver.url}/v2", True, [])
    assert (row["headers"], row["webhookByEvents"], row["webhookBase64"]) == (None, False, False)
    extras = {"byEvents": True, "base64": True, "headers": {"x-a": "one", "content-type": "text/html"}}
    row = await set_v2(service, "v2", enabled=True, url=f"{receiver.url}/v2", events=["CALL"], **extras)
    assert (row["headers"], row["webhookByEvents"], row["webhookBase64"]) == ({"x-a": MASK}, True, True)
    assert row["events"] == ["CALL"]
    again = await set_v2(service, "v2", enabled=True, url=f"{receiver.url}/w2")
    kept = ("headers", "webhookByEvents", "webhookBase64", "id", "createdAt")
    assert [again[name] for name in kept] == [row[name] for name in kept]
    assert (again["url"], again["events"]) == (f"{receiver.url}/w2", [])
    arrival = await arrival_of(service, receiver, "v2")
    assert (arrival.path, arrival.headers["x-a"]) == ("/w2/messages-upsert", "one")
    assert arrival.headers["content-type"] == "application/json"
    nothings: list[Shown | None] = [{}, None]
    for nothing in nothings:
        row = await set_v2(service, "v2", enabled=True, url=f"{receiver.url}/w2", headers=nothing, byEvents=False)
        assert (row["headers"], row["webhookByEvents"], row["webhookBase64"]) == (None, False, True)


async def test_v2_body_ignores_what_it_does_not_know(service: Service) -> None:
    """Unknown keys are ignored outside and inside; a url may be empty while the webhook is disabled, not otherwise."""
    body = {"webhook": {"enabled": False, "url": "", "webhookBase64": True, "x": [1]}, "other": {"url": 7}}
    reply = await service.request("POST", "/webhook/set/empty", body)
    assert reply.status == 201
    assert (reply.json()["url"], reply.json()["enabled"], reply.json()["webhookBase64"]) == ("", False, False)
    before = await stats(service)
    reply = await service.request("POST", "/webhook/set/empty", {"webhook": {"enabled": True, "url": ""}})
    assert (reply.status, reply.json()["error"]) == (422, "Unprocessable Entity")
    assert reply.json()["response"]["message"] == [[reply.json()["detail"]]]
    assert await stats(service) == before
    assert (await service.request("GET", "/webhook/find/nobody")).body == b"null"


async def test_put_replaces_the_whole(service: Service) -> None:
    """PUT answers 201, then 200; what it leaves out gets its default; the webhook stays the same one."""
    first = await put(
        service, "whole", 201, url="http://127.0.0.1:9/a?b=c", enabled=False, by_events=True, events=["CALL"],
        base64=False, headers={"x-a": "1"}, route_style="evolution", concurrency=7, timeout_ms=1234,
        order="chat", rate_limit=2.5,
    )  # fmt: skip
    wanted = {
        "id": first["id"], "scope": "instance", "instance": "whole", "name": "", "url": "http://127.0.0.1:9/a?b=c",
        "enabled": False, "by_events": True, "events": ["CALL"], "base64": False, "headers": {"x-a": MASK},
        "route_style": "evolution", "concurrency": 7, "timeout_ms": 1234, "order": "chat", "rate_limit": 2.5,
        "secret": None, "previous_secret_until": None,
        "state": "disabled", "suspended_at": None, "breaker": "closed", "breaker_since": None,
        "created_at": first["created_at"], "updated_at": first["created_at"],
    }  # fmt: skip
    assert first == wanted
    second = await put(service, "whole", 200, url="http://127.0.0.1:9/b")
    assert second == {
        **wanted, "url": "http://127.0.0.1:9/b", "enabled": True, "by_events": False, "events": [], "base64": True,
        "headers": {}, "route_style": None, "concurrency": 32, "timeout_ms": None, "order": "none", "rate_limit": None,
        "state": "enabled", "updated_at": second["updated_at"],
    }  # fmt: skip
    assert second["updated_at"] >= first["updated_at"]


async def test_masked_values_sent_back_are_kept(service: Service, receiver: Receiver) -> None:
    """What is shown masked may be sent back over either face: receivers go on getting the real values."""
    headers = {"X-Token": "s3cret-one", "authorization": "Bearer s3cret-two"}
    shown = await put(service, "masked", 201, url=f"{receiver.url}/masked", headers=headers)
    assert shown["headers"] == dict.fromkeys(headers, MASK)
    names = ("url", "enabled", "by_events", "events", "base64", "headers", "route_style", "concurrency", "timeout_ms")
    await put(service, "masked", 200, **{name: shown[name] for name in names})
    row = await set_v2(service, "masked", enabled=True, url=shown["url"], headers=shown["headers"] | {"x-new": "n"})
    assert row["headers"] == dict.fromkeys([*headers, "x-new"], MASK)
    arrival = await arrival_of(service, receiver, "masked")
    assert arrival.headers["x-token"] == "s3cret-one"
    assert arrival.headers["authorization"] == "Bearer s3cret-two"
    assert arrival.headers["x-new"] == "n"
    await put(service, "masked", 200, url=shown["url"], headers={"X-Token": "changed"})
    arrival = await arrival_of(service, receiver, "masked")
    assert arrival.headers["x-token"] == "changed"
    assert not {"authorization", "x-new"} & set(arrival.headers)


async def test_deleted_webhook_is_gone(service: Service, receiver: Receiver) -> None:
    """DELETE settles what was pending as dead, with a reason; the same instance set again has a new webhook."""
    first = await put(service, "gone", 201, url="http://127.0.0.1:9/down")
    event_id = await service.accept(instance="gone")
    reply = await service.request("DELETE", "/webhooks/instances/gone")
    assert (reply.status, reply.body) == (204, b"")
    assert (await service.request("GET", "/webhook/find/gone")).body == b"null"
    for method in ("GET", "DELETE"):
        assert (await service.request(method, "/webhooks/instances/gone")).status == 404
    dead = await settled(service, event_id)
    assert [delivery["state"] for delivery in dead["deliveries"]] == ["dead"]
    second = await put(service, "gone", 201, url=f"{receiver.url}/back")
    assert second["id"] != first["id"]
    assert (await arrival_of(service, receiver, "gone")).path == "/back"


async def test_disabled_webhook_gets_nothing(service: Service, receiver: Receiver) -> None:
    """Nothing is routed to a disabled webhook; what was pending is held, and delivered once it is enabled again."""
    await put(service, "off", 201, url="http://127.0.0.1:9/down")
    pending = await service.accept(instance="off")
    await put(service, "off", 200, url=f"{receiver.url}/off", enabled=False)
    reply = await service.request("POST", "/events", {"event": "call", "instance": "off", "data": {}})
    assert reply.json()["deliveries"] == 0
    await event_when(service, pending, lambda shown: shown["deliveries"][0]["state"] == "held")
    await put(service, "off", 200, url=f"{receiver.url}/off")
    assert (await settled(service, pending))["deliveries"][0]["state"] == "acknowledged"
    assert [arrival.webhook_id for arrival in receiver.arrivals if arrival.path == "/off"] == [pending]


async def test_events_choose_what_arrives(service: Service, receiver: Receiver) -> None:
    """Kinds are taken in any spelling and shown by their names; only events of those kinds are routed."""
    spelled = ["call", "/send-messages", "GROUP_UPDATE", "NEW_TOKEN", "Message.Upsert", "groups-participants-update"]
    names = ["MESSAGES_UPSERT", "SEND_MESSAGE", "GROUPS_UPDATE", "GROUP_PARTICIPANTS_UPDATE", "NEW_TOKEN", "CALL"]
    row = await set_v2(service, "chosen", enabled=True, url=f"{receiver.url}/chosen", events=[*spelled, "call"])
    assert row["events"] == names
    shown = await put(service, "chosen", 200, url=f"{receiver.url}/chosen", events=[*spelled, "send.message"])
    assert shown["events"] == names
    for entry in CATALOGUE:
        body = {"event": entry["evolution_event"], "instance": "chosen", "data": {}}
        reply = await service.request("POST", "/events", body)
        assert reply.json()["deliveries"] == (entry["name"] in names), entry
    await service.wait_until_settled()
    arrived = {arrival.json()["event"] for arrival in receiver.arrivals if arrival.path == "/chosen"}
    assert arrived == {entry["evolution_event"] for entry in CATALOGUE if entry["name"] in names}


async def test_names_of_instances_are_taken_as_they_are(service: Service, receiver: Receiver) -> None:
    """A webhook gets the events of its own instance only, whatever characters the name has."""
    names = ["n", "N", "Loja São João", "\U0001f6d2", "a%2Fb", "a?b#c&d", "'\"<script>", "x" * 255, "n ", "..."]
    for at, name in enumerate(names):
        await put(service, quote(name, safe=""), 201, url=f"{receiver.url}/named{at}")
    for at, name in enumerate(names):
        arrival = await arrival_of(service, receiver, name)
        assert (arrival.path, arrival.json()["instance"]) == (f"/named{at}", name)


async def test_password_becomes_basic_auth_and_is_never_shown(service: Service, receiver: Receiver) -> None:
    """User and password of a URL arrive as Basic auth, not in `destination`; no answer and no log line shows them."""
    replies: list[Reply] = []
    host = receiver.url.removeprefix("http://")
    for path, url, user in [
        ("put", f"http://ana:s3cr%40t%C3%A9@{host}/basic", "ana:s3cr@té"),
        ("put", f"http://ana:***@{host}/basic?x=1", "ana:s3cr@té"),
        ("set", f"http://ana:s3cr%40t%C3%A9@{host}/basic", "ana:s3cr@té"),
        ("set", f"http://ana:***@{host}/basic?x=1", "ana:s3cr@té"),
    ]:
        if path == "put":
            replies.append(await service.request("PUT", "/webhooks/instances/basic", {"url": url}))
        else:
            body = {"webhook": {"url": url, "enabled": True}}
            replies.append(await service.request("POST", "/webhook/set/basic", body))
        assert replies[-1].status in {200, 201}
        assert replies[-1].json()["url"].startswith(f"http://ana:{MASK}@{host}/basic")
        arrival = await arrival_of(service, receiver, "basic")
        assert arrival.headers["authorization"] == "Basic " + base64.b64encode(user.encode()).decode()
        assert arrival.json()["destination"] == receiver.url + arrival.path
        replies.append(await service.request("GET", f"/events/{arrival.webhook_id}"))
    looks = ("/stats", "/webhook/find/basic", "/webhooks/instances/basic")
    replies += [await service.request("GET", path) for path in looks]
    down = {"url": "http://ana:s3cr%40t@127.0.0.1:9/basic"}
    replies.append(await service.request("PUT", "/webhooks/instances/basic", down))
    failed = await service.accept(instance="basic")
    await event_when(service, failed, lambda shown: bool(shown["attempts"]))
    replies.append(await service.request("GET", f"/events/{failed}"))
    for wrong in ("http://ana:s3cr%40t@[::1/", "http://ana:s3cr%40t@10.0.0.1/", "ftp://ana:s3cr%40t@h.test/"):
        replies.append(await service.request("PUT", "/webhooks/instances/basic", {"url": wrong}))
        assert replies[-1].status == 422
    shown = b"".join(reply.body for reply in replies).decode() + json.dumps(service.log, ensure_ascii=False)
    assert "s3cr" not in shown
    assert "YW5h" not in shown


async def test_user_without_password(service: Service, receiver: Receiver) -> None:
    """A user without a password is Basic auth with an empty one: the colon is always there (RFC 7617)."""
    await put(service, "user", 201, url=receiver.url.replace("//", "//ana@"))
    arrival = await arrival_of(service, receiver, "user")
    assert arrival.headers["authorization"] == "Basic " + base64.b64encode(b"ana:").decode()


async def test_own_headers_are_sent_once(service: Service) -> None:
    """A webhook's header takes the place of ours of the same name, in whatever case it is written."""

    async def say(_count: int, writer: Any) -> None:
        writer.write(answer_bytes(200))

    async with RawReceiver(say) as raw:
        headers = {"User-Agent": "mine/1", "ACCEPT": "a/b", "x-Empty": "", "X-Odd!#$%&'*+.^_`|~": 'a  b"\\'}
        await put(service, "own", 201, url=raw.url, headers=headers)
        await settled(service, await service.accept(instance="own"))
        (head,) = [request.partition(b"\r\n\r\n")[0].decode() for request in raw.requests]
        lines = [line.partition(":") for line in head.split("\r\n")[1:]]
        sent = [(name.lower(), value.strip()) for name, _, value in lines]
        assert len({name for name, _ in sent}) == len(sent), sent
        assert {name.lower(): value for name, value in headers.items()}.items() <= dict(sent).items()
