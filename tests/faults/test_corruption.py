# ruff: noqa: S608 - the queries are put together by tests
"""Bits are flipped in the file of a service that is not running: what is sound is served, and the rest is told of."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from outbox.inspecting import open_inspector
from tests.harness import Receiver, Service
from tests.service.damage import ask, change, flip, flip_on_disk

CHATS = ("anna", "bruno", "carla")
PATHS = {"plain": "/webhooks/instances/loja01", "queue": "/webhooks/instances/loja01/queue"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that is gone, until it is told to work."""
    async with Receiver(lambda _arrival: 410) as started:
        yield started


@pytest.fixture
async def service(tmp_path: Path, receiver: Receiver) -> AsyncIterator[Service]:
    """A service that was stopped in order: six events, two a chat, wait for two webhooks, of which one keeps order."""
    service = Service(tmp_path)
    await service.start()
    await set_webhooks(service, receiver)
    await service.accept(data={"key": {"remoteJid": "first"}})
    await service.wait_for_log(lambda line: line["event"] == "webhook.suspended" and line["webhook"] == 2)
    await service.wait_for_log(lambda line: line["event"] == "webhook.suspended" and line["webhook"] == 1)
    for number in range(2):
        for chat in CHATS:
            body = {"event": "messages.upsert", "instance": "loja01", "data": {"key": {"remoteJid": chat}, "n": number}}
            key = {"idempotency-key": f"{chat} {number}"}
            assert (await service.request("POST", "/events", body, key)).status == 202
    assert await service.stop() == 0
    receiver.arrivals.clear()
    receiver.answer = lambda _arrival: 200
    yield service
    if service.process.returncode is None:
        assert await service.stop() == 0
    assert not [line for line in service.log if line["event"] in {"text", "lane.broken", "replay.broken"}]


async def set_webhooks(service: Service, receiver: Receiver, **more: Any) -> None:
    """Set both webhooks, which lets what they hold go."""
    for name, path in PATHS.items():
        settings = {"url": f"{receiver.url}/{name}", "order": "chat" if name == "queue" else "none", **more}
        assert (await service.request("PUT", path, settings)).status in {200, 201}


async def start_and_deliver(service: Service, receiver: Receiver) -> None:
    """Start the service, and see that all its deliveries arrive, each once."""
    await service.start()
    await set_webhooks(service, receiver)
    stats = await service.wait_until_settled()
    assert stats["deliveries"]["acknowledged"] == len(receiver.arrivals) == 14


def event_of(service: Service, chat: str, number: int) -> tuple[int, str, bytes]:
    """Return the seq, the id and the encoded record of an event."""
    place = 2 + CHATS.index(chat) + len(CHATS) * number
    query = f"SELECT seq, id, record FROM event JOIN log USING (seq) ORDER BY seq LIMIT 1 OFFSET {place - 1}"
    ((seq, event_id, record),) = ask(service.database, query)
    assert isinstance(seq, int)
    assert isinstance(event_id, bytes)
    assert isinstance(record, bytes)
    return seq, f"evt_{event_id.hex()}", record


async def problems(service: Service) -> str:
    """Return what `verify` says."""
    async with open_inspector(service.database) as inspector:
        return "\n".join((await inspector.verify(lambda _done, _all: None)).problems)


async def metric(service: Service, name: str) -> float:
    """Return the value of a metric, named with its labels."""
    lines = (await service.request("GET", "/metrics")).body.decode().splitlines()
    (found,) = [line for line in lines if line.startswith(f"{name} ")]
    return float(found.split()[-1])


async def health(service: Service) -> Any:
    """Return what readiness says."""
    return (await service.request("GET", "/health/ready")).json()


def told(service: Service, part: str) -> list[dict[str, Any]]:
    """Return the log's lines on damage of a kind."""
    return [line for line in service.log if line["event"] == "damage.found" and line["part"] == part]


@pytest.mark.parametrize("at", [0, 5, -1], ids=["it cannot be read", "it reads as another event", "its last byte"])
async def test_a_damaged_record_of_an_event_buries_its_deliveries_alone(
    service: Service, receiver: Receiver, at: int
) -> None:
    """Nothing of it is posted, its deliveries are dead with the reason; all others go out, those behind it too."""
    seq, event_id, record = event_of(service, "bruno", 0)
    flip_on_disk(service.database, record, at)
    await service.start()
    await set_webhooks(service, receiver)
    stats = await service.wait_until_settled()
    assert (stats["deliveries"]["dead"], stats["deliveries"]["acknowledged"]) == (2, 12)
    assert event_id not in {arrival.webhook_id for arrival in receiver.arrivals}
    assert len(receiver.arrivals) == 12
    event = (await service.request("GET", f"/events/{event_id}")).json()
    assert [(attempt["error"], attempt["status"]) for attempt in event["attempts"]] == [("corrupt_record", None)] * 2
    assert {delivery["state"] for delivery in event["deliveries"]} == {"dead"}
    assert (event["id"], event["instance"]) == (event_id, "loja01") or at == 5
    ready = await health(service)
    assert ready["status"] == "ready"
    assert event_id in ready["warnings"][0]
    assert await metric(service, 'outbox_damage_total{part="record"}') == len(told(service, "record")) == 2
    for path in ("/events", "/deliveries", "/deliveries?state=dead", "/log"):
        page = await service.request("GET", path)
        assert (page.status, bool(page.json()["items"])) == (200, True)
    assert f"record {seq} " in await problems(service)


async def test_a_damaged_record_cannot_be_replayed_to_life(service: Service, receiver: Receiver) -> None:
    """A replay or a copy of what cannot be sent ends as the delivery did; those beside it are replayed."""
    _, event_id, record = event_of(service, "bruno", 0)
    flip_on_disk(service.database, record, 0)
    await service.start()
    await set_webhooks(service, receiver)
    await service.wait_until_settled()
    posts = len(receiver.arrivals)
    number = (await service.request("GET", f"/events/{event_id}")).json()["deliveries"][0]["id"]
    copy = await service.request("POST", f"/deliveries/{number}/replay", {"to": receiver.url})
    assert copy.json()["error"] == "corrupt_record"
    wanted = {"instance": "loja01", "acknowledged": True}
    assert (await service.request("POST", "/deliveries/replay", wanted)).status == 202
    await service.wait_for_log(lambda line: line["event"] == "replay.finished")
    await receiver.wait_for_count(posts + 12)
    stats = await service.wait_until_settled()
    assert stats["deliveries"]["dead"] == 2
    assert len(told(service, "record")) == 4


async def test_a_change_of_order_passes_a_damaged_record(service: Service, receiver: Receiver) -> None:
    """It is converted with the others, and dies when it is its turn."""
    _, event_id, record = event_of(service, "anna", 0)
    flip_on_disk(service.database, record, 0)
    await service.start()
    settings = {"url": receiver.url, "order": "instance"}
    assert (await service.request("PUT", PATHS["plain"], settings)).status == 200
    assert (await service.request("PUT", PATHS["queue"], {"url": receiver.url})).status == 200
    stats = await service.wait_until_settled()
    assert (stats["deliveries"]["dead"], stats["deliveries"]["acknowledged"]) == (2, 12)
    assert event_id not in {arrival.webhook_id for arrival in receiver.arrivals}


async def test_an_event_whose_record_is_damaged_can_be_sent_again(service: Service, receiver: Receiver) -> None:
    """Its idempotency key stands for nothing that could be delivered, and does not keep a repeat out."""
    _, event_id, record = event_of(service, "carla", 1)
    flip_on_disk(service.database, record, 0)
    await service.start()
    await set_webhooks(service, receiver)
    body = {"event": "messages.upsert", "instance": "loja01", "data": {"key": {"remoteJid": "carla"}, "n": 1}}
    again = await service.request("POST", "/events", body, {"idempotency-key": "carla 1"})
    assert (again.status, again.headers.get("idempotency-replayed")) == (202, None)
    assert again.json()["id"] != event_id
    stats = await service.wait_until_settled()
    assert stats["deliveries"]["acknowledged"] == 14
    assert again.json()["id"] in {arrival.webhook_id for arrival in receiver.arrivals}


@pytest.mark.parametrize("beside", [0, -1], ids=["its own", "the one before"])
async def test_a_damaged_digest_costs_no_event(service: Service, receiver: Receiver, beside: int) -> None:
    """A record is sound if its neighbours say so: the digests of the chain are not what is delivered."""
    seq, _, _ = event_of(service, "bruno", 0)
    ((digest,),) = ask(service.database, f"SELECT digest FROM log WHERE seq = {seq + beside}")
    assert isinstance(digest, bytes)
    flip_on_disk(service.database, digest, 7)
    await start_and_deliver(service, receiver)
    assert f"record {seq + beside} does not continue" in await problems(service)


async def test_a_damaged_record_of_an_attempt_hides_no_other(service: Service, receiver: Receiver) -> None:
    """The event is shown with what can be read of it, and delivered."""
    rows = ask(
        service.database, "SELECT seq, record FROM log WHERE subject = (SELECT min(seq) FROM event) ORDER BY seq"
    )
    (seq, record), *others = rows
    assert isinstance(record, bytes)
    flip_on_disk(service.database, record, 0)
    await start_and_deliver(service, receiver)
    first = (await service.request("GET", "/events?limit=50")).json()["items"][-1]["id"]
    shown = (await service.request("GET", f"/events/{first}")).json()
    assert len(shown["attempts"]) == len(others) + 2
    assert f"record {seq} " in await problems(service)


async def test_damaged_settings_in_the_log_stop_a_rebuild_alone(service: Service, receiver: Receiver) -> None:
    """The service goes by its tables; a rebuild from a log that is not what was written changes nothing."""
    ((seq, record),) = ask(service.database, "SELECT seq, record FROM log ORDER BY seq LIMIT 1")
    assert isinstance(record, bytes)
    flip_on_disk(service.database, record, -20)
    status, _, errors = await service.command("rebuild")
    assert (status, f"the record {seq} of the log does not continue the chain" in errors) == (1, True)
    await start_and_deliver(service, receiver)
    assert f"record {seq} " in await problems(service)


async def test_a_damaged_record_of_a_replay_stops_that_replay_alone(service: Service, receiver: Receiver) -> None:
    """One that cannot be read does not go on after a start; others can be asked for."""
    await service.start()
    await set_webhooks(service, receiver)
    await service.wait_until_settled()
    wanted = {"instance": "loja01", "acknowledged": True, "rate": 0.01}
    number = (await service.request("POST", "/deliveries/replay", wanted)).json()["id"]
    assert await service.stop() == 0
    flip(service.database, "log", "record", f"seq = {number.removeprefix('rpl_')}", 0)
    await service.start()
    await service.wait_for_log(lambda line: line["event"] == "damage.found")
    assert number in told(service, "record")[0]["detail"]
    assert (await service.request("GET", "/replays")).json()["items"] == []
    assert (await service.request("GET", f"/replays/{number}")).status == 500
    posts = len(receiver.arrivals)
    assert (await service.request("POST", "/deliveries/replay", {**wanted, "rate": None})).status == 202
    await receiver.wait_for_count(posts + 14)


@pytest.mark.parametrize("lost", [False, True], ids=["a bit is flipped", "they are gone"])
async def test_damaged_credentials_hold_their_webhook_alone(
    service: Service, receiver: Receiver, *, lost: bool
) -> None:
    """Nothing goes out without them, what comes in waits, and once the webhook is set anew it all goes out."""
    await service.start()
    await set_webhooks(service, receiver, headers={"x-key": "one"})
    await service.wait_until_settled()
    assert await service.stop() == 0
    receiver.arrivals.clear()
    ((number, secret, material),) = ask(
        service.database,
        "SELECT number, id, material FROM webhook JOIN secret ON secret = id WHERE name = 'queue'",
    )
    assert isinstance(material, bytes)
    assert isinstance(secret, bytes)
    if lost:
        change(service.database, f"DELETE FROM secret WHERE id = x'{secret.hex()}'")
    else:
        flip_on_disk(service.database, material, -1)
    assert f"the credentials of webhook {number} are missing" in await problems(service)
    for _ in range(2):
        await service.start()
        await service.accept(data={"key": {"remoteJid": "anna"}})
        await service.wait_for_stats(lambda stats: stats["deliveries"]["acknowledged"] >= len(receiver.arrivals) > 0)
        assert {arrival.path for arrival in receiver.arrivals} == {"/plain"}
        assert f"the credentials of webhook {number}" in (await health(service))["warnings"][0]
        assert (
            await metric(service, 'outbox_damage_total{part="credentials"}') == len(told(service, "credentials")) == 1
        )
        shown = (await service.request("GET", PATHS["queue"])).json()
        assert (shown["state"], shown["headers"]) == ("suspended", {})
        assert (await service.request("POST", PATHS["queue"] + "/test")).status == 409
        assert await service.stop() == 0
    await service.start()
    masked = {"url": receiver.url, "headers": {"x-key": "***"}}
    assert (await service.request("PUT", PATHS["queue"], masked)).status == 422
    assert {arrival.path for arrival in receiver.arrivals} == {"/plain"}
    await set_webhooks(service, receiver, headers={"x-key": "two"})
    stats = await service.wait_until_settled()
    assert stats["deliveries"]["acknowledged"] == 14 + 4
    late = [arrival for arrival in receiver.arrivals if arrival.path == "/queue"]
    assert [arrival.headers["x-key"] for arrival in late] == ["two", "two"]
    assert (await health(service))["warnings"] == []
    suspensions = [
        record
        for record in (await service.request("GET", "/log?limit=500")).json()["items"]
        if record["type"] == "WebhookSuspended" and record["event"] is None
    ]
    assert len(suspensions) == 1
    assert await problems(service) == ""


async def test_what_evolution_leaves_out_is_not_guessed(service: Service, receiver: Receiver) -> None:
    """Its route keeps headers that are not sent; where they are damaged there is nothing to keep, and it says so."""
    await service.start()
    await set_webhooks(service, receiver, headers={"x-key": "one"})
    assert await service.stop() == 0
    change(service.database, "DELETE FROM secret")
    await service.start()
    body = {"webhook": {"enabled": True, "url": receiver.url}}
    refused = await service.request("POST", "/webhook/set/loja01", body)
    assert (refused.status, "damaged" in refused.body.decode()) == (409, True)
    assert (await service.request("DELETE", PATHS["plain"])).status == 204
    assert (await service.request("POST", "/webhook/set/loja01", body)).status == 201


async def test_a_row_of_settings_beyond_reading_is_mended_by_a_rebuild(service: Service, receiver: Receiver) -> None:
    """Without settings nobody could say what is for whom: the start says what to do, and that helps."""
    flip(service.database, "webhook", "settings", "number = 1", 0)
    assert "webhook 1: its row is not what the log says" in await problems(service)
    await service.launch()
    line = await service.wait_for_log(lambda line: line["event"] == "service.failed")
    assert "the row of webhook 1 cannot be read" in line["reason"]
    assert "run rebuild" in line["reason"]
    assert await service.wait() == 1
    assert (await service.command("rebuild"))[0] == 0
    await service.start()
    await set_webhooks(service, receiver)
    assert (await service.wait_until_settled())["deliveries"]["acknowledged"] == 14
