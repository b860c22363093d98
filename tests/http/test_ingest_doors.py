"""The doors for Evolution API servers: who is let in how, what counts as a repeat, what odd servers send."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from tests.harness import API_KEY, INGEST_TOKEN, Receiver, Service, running
from tests.http.doors import ROUTES, TOKEN_PATH, event, post
from tests.http.support import event_when, lines, settled, stats

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Here(NamedTuple):
    """What the tests share."""

    service: Service
    receiver: Receiver


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="here")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Here]:
    """A service with a global webhook that takes all kinds."""
    folder = tmp_path_factory.mktemp("service")
    async with (
        Receiver() as receiver,
        running(
            folder, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=f"{receiver.url}/global"
        ) as service,
    ):  # fmt: skip
        yield Here(service, receiver)


@pytest.mark.parametrize(("path", "headers"), ROUTES, ids=[path.replace(INGEST_TOKEN, "token") for path, _ in ROUTES])
async def test_a_repeat_of_the_same_bytes_is_the_same_event(here: Here, path: str, headers: dict[str, str]) -> None:
    """Repeated byte for byte, at once and later, an event keeps its id, says so, and is delivered once."""
    before = await stats(here.service)
    body = event([path, headers], more=time.time())
    replies = await asyncio.gather(*[post(here.service, path, body, headers) for _ in range(5)])
    shown = await settled(here.service, replies[0].json()["id"])
    replies.append(await post(here.service, path, body, headers))
    assert {(reply.status, reply.body) for reply in replies} == {(202, replies[0].body)}
    assert sorted(reply.headers.get("idempotency-replayed", "") for reply in replies) == ["", *["true"] * 5]
    assert len(shown["attempts"]) == 1
    # One byte more is another event: nothing is compared but bytes.
    other = await post(here.service, path, body + b"\n", headers)
    assert (other.status, "idempotency-replayed" in other.headers) == (202, False)
    await settled(here.service, other.json()["id"])
    assert (await stats(here.service))["events"] == before["events"] + 2
    arrived = Counter(arrival.webhook_id for arrival in here.receiver.arrivals)
    assert arrived[shown["id"]] == arrived[other.json()["id"]] == 1


async def test_the_doors_share_their_memory_and_events_have_their_own(here: Here) -> None:
    """A global webhook's copy is a repeat of a local one's; /events takes the same bytes as new ones every time."""
    body = event("shared", more=time.time())
    first, *others = [await post(here.service, path, body, headers) for path, headers in ROUTES]
    assert {reply.body for reply in others} == {first.body}
    key = {"apikey": API_KEY}
    assert (
        len({(await post(here.service, "/events", body, key)).json()["id"] for _ in range(3)} | {first.json()["id"]})
        == 4
    )
    # A key in a header means nothing here: servers send none, and the body is the key.
    replies = [await post(here.service, TOKEN_PATH, body, {"idempotency-key": name}) for name in ("a", "b")]
    assert {reply.body for reply in replies} == {first.body}


async def test_repeats_are_known_after_a_crash_until_the_window_is_over(tmp_path: Path) -> None:
    """A server that repeats an event after our crash repeats nothing; after the window it is a new event."""
    body = event("again")
    async with Receiver() as receiver:
        service = Service(tmp_path, OUTBOX_IDEMPOTENCY_WINDOW="6s")
        await service.start()
        await service.set_webhook("loja01", receiver.url)
        first = await post(service, TOKEN_PATH, body)
        accepted = time.monotonic()
        await service.kill()
        async with running(tmp_path, OUTBOX_IDEMPOTENCY_WINDOW="6s") as service:
            again = await post(service, TOKEN_PATH, body)
            if time.monotonic() - accepted < 5:  # on a machine that starts it in time
                assert (again.body, again.headers["idempotency-replayed"]) == (first.body, "true")
            async with asyncio.timeout(20):
                while "idempotency-replayed" in again.headers:
                    await asyncio.sleep(0.1)
                    again = await post(service, TOKEN_PATH, body)
            assert again.json()["id"] != first.json()["id"]
            await service.wait_until_settled()
            assert {arrival.webhook_id for arrival in receiver.arrivals} == {first.json()["id"], again.json()["id"]}


async def test_many_failed_logins_disturb_nobody(here: Here) -> None:
    """Whoever shows a valid key or token is let in, however many wrong ones came before from the same address."""
    replies = await asyncio.gather(
        *[post(here.service, "/ingest/x", event(1), {"apikey": "wrong"}) for _ in range(200)]
    )
    assert {reply.status for reply in replies} == {401}
    for number, (path, headers) in enumerate(ROUTES):
        assert (await post(here.service, path, event([number, time.time()]), headers)).status == 202


ERROR = {"error": "TypeError", "message": "x", "status": 500, "response": {"message": "y"}}


@pytest.mark.parametrize(
    "members",
    [
        {
            "event": "error",
            "data": ERROR,
            "date_time": "2025-11-03T12:00:00.000Z",
            "api_key": "hush",
            "server_url": "u",
        },
        {"event": "error", "data": ERROR, "instance": None},
        {"event": "messages.upsert", "data": {}, "instance": None},
        {"event": "messages.upsert", "data": {}, "instance": ""},
        {"event": "messages.upsert"},
    ],
)
async def test_an_event_of_no_instance_goes_to_global_webhooks(here: Here, members: dict[str, Any]) -> None:
    """The error hook of servers names no instance: it is taken, byte for byte, and no local webhook gets it."""
    await here.service.set_webhook("null", f"{here.receiver.url}/local")
    body = json.dumps(members | {"salt": time.time()}).encode()
    for path, headers in (ROUTES[1], ROUTES[4]):
        reply = await post(here.service, path, body, headers)
        assert (reply.status, reply.json()["deliveries"]) == (202, 1)
    event_id = reply.json()["id"]
    await here.receiver.wait_for(lambda all_: any(arrival.webhook_id == event_id for arrival in all_))
    (arrival,) = [arrival for arrival in here.receiver.arrivals if arrival.webhook_id == event_id]
    assert arrival.path == "/global"
    assert {name: value for name, value in arrival.json().items() if name not in {"destination", "date_time"}} == {
        name: value for name, value in json.loads(body).items() if name != "date_time"
    }
    shown = await settled(here.service, event_id)
    assert shown["event"] == ("ERROR" if members["event"] == "error" else "MESSAGES_UPSERT")
    assert not shown["instance"]
    assert "hush" not in json.dumps(shown)


async def test_a_newer_servers_kinds_go_to_who_takes_all(here: Here) -> None:
    """A kind that we do not know reaches webhooks without a list of events, and no others; it is no kind on /events."""
    await here.service.set_webhook("all", f"{here.receiver.url}/all")
    await here.service.set_webhook("some", f"{here.receiver.url}/some", events=["MESSAGES_UPSERT"])
    for kind in ("poll.vote-cast", "message_receipt.update", "X9", "a" * 64, "instance.restarted"):
        for instance, deliveries in (("all", 2), ("some", 1)):
            reply = await post(here.service, TOKEN_PATH, event(1, event=kind, instance=instance))
            assert (reply.status, reply.json()["deliveries"]) == (202, deliveries)
        refused = await post(here.service, "/events", event(1, event=kind), {"apikey": API_KEY})
        assert refused.status == 422
    for kind in ("a" * 65, "a..b", ".a", "a-", "a/b", "a b", "\u00e9", ""):
        assert (await post(here.service, TOKEN_PATH, event(1, event=kind))).status == 422, kind


async def test_an_instance_may_have_slashes(here: Here) -> None:
    """Servers out there have such names; they are shown as they are."""
    reply = await post(here.service, TOKEN_PATH, event(1, instance="a/b\\c"))
    assert reply.status == 202
    shown = await event_when(here.service, reply.json()["id"], lambda _shown: True)
    assert shown["instance"] == "a/b\\c"


async def test_what_servers_really_send_is_taken_at_every_door(here: Here) -> None:
    """Every event of the vectors, through every door, with a suffix that says something else."""
    before = (await stats(here.service))["events"]
    bodies = lines("events.jsonl")
    for number, (path, headers) in enumerate(ROUTES):
        some = [body.replace(b"loja01", b"loja-%d" % number) for body in bodies]
        replies = await asyncio.gather(*[post(here.service, path, body, headers) for body in some])
        assert {reply.status for reply in replies} == {202}
    assert (await stats(here.service))["events"] == before + len(ROUTES) * len(bodies)
