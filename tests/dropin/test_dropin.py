"""The service in front of an unmodified Evolution API server: one changed line there, and no event is lost."""

import asyncio
import json
import signal
import sqlite3
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest

from tests.dropin.evolution_sender import FINAL_STATUSES, EvolutionServer, LocalWebhook, Retry
from tests.harness import INGEST_TOKEN, ROOT, Arrival, Receiver, Service

EVENTS: list[dict[str, Any]] = [
    json.loads(line) for line in (ROOT / "tests" / "vectors" / "events.jsonl").read_text().splitlines()
]
LOCAL, OTHER = "loja01", "loja02"
KEPT = ("event", "instance", "data", "date_time", "sender", "server_url", "apikey")
EVERY_KIND = frozenset(event["event"].translate(str.maketrans(".-", "__")).upper() for event in EVENTS)
"""What a server would send that had mended its faults: GROUPS_UPDATE matches no switch of a real one."""


class Emitted(NamedTuple):
    """One event of the server; its `date_time` is unique, and so tells all copies of it."""

    instance: str
    event: dict[str, Any]
    date_time: str


class Outbox:
    """The service under test, started anew on the port it had, with a receiver for each of its two webhooks."""

    def __init__(self, folder: Path, everywhere: Receiver, local: Receiver, **settings: str) -> None:
        """Deliver to `everywhere` what comes, and to `local` what comes of one instance."""
        self.service = Service(
            folder, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=f"{everywhere.url}/all", **settings
        )
        self.everywhere = everywhere
        self.local = local

    async def start(self) -> None:
        """Start it for the first time, and set the local webhook with the body that the server's clients use."""
        await self.service.start()
        self.service.settings["OUTBOX_PORT"] = self.service.address.rpartition(":")[2]
        webhook = {"enabled": True, "url": f"{self.local.url}/local", "byEvents": True, "base64": True, "events": []}
        reply = await self.service.request("POST", f"/webhook/set/{LOCAL}", {"webhook": webhook})
        assert reply.status == 201, reply

    def server(self, by_events: bool, **more: Any) -> EvolutionServer:  # noqa: FBT001
        """A server whose one line was changed; one instance's own webhook comes here too, with a signed token."""
        local = LocalWebhook(f"{self.service.address}/ingest", by_events, {"jwt_key": INGEST_TOKEN, "x-shop": "1"})
        return EvolutionServer(
            global_url=f"{self.service.address}/ingest/{INGEST_TOKEN}",
            global_by_events=by_events,
            local_webhooks={LOCAL: local},
            **more,
        )

    def assert_all_arrived(self, emitted: list[Emitted]) -> None:
        """Assert that each event came to each receiver it is for, as one event, with all that the server said."""
        for receiver, wanted in (
            (self.everywhere, emitted), (self.local, [one for one in emitted if one.instance == LOCAL])
        ):  # fmt: skip
            copies: dict[str, list[Arrival]] = defaultdict(list)
            for arrival in receiver.arrivals:
                copies[arrival.json()["date_time"]].append(arrival)
            assert set(copies) == {one.date_time for one in wanted}
            for one in wanted:
                ids = {arrival.webhook_id for arrival in copies[one.date_time]}
                assert len(ids) == 1, (one, ids)
                got = copies[one.date_time][0].json()
                assert (got["event"], got["instance"], got["data"]) == (
                    one.event["event"],
                    one.instance,
                    one.event["data"],
                )
                assert set(got) >= set(KEPT)


@asynccontextmanager
async def outbox(folder: Path, **settings: str) -> AsyncIterator[Outbox]:
    """Run the service with its receivers; afterwards it stops in order and all it stored is verified."""
    async with Receiver() as everywhere, Receiver() as local:
        found = Outbox(folder, everywhere, local, **settings)
        await found.start()
        yield found
        assert await found.service.stop() == 0
        await found.service.verify()


def events_of(rounds: int, **data: Any) -> list[Emitted]:
    """Every event of the vectors for both instances, so many times, each with a time of its own."""
    found: list[Emitted] = []
    for number in range(rounds):
        for event in EVENTS:
            for instance in (LOCAL, OTHER):
                more = {**event["data"], **data} if data and isinstance(event["data"], dict) else event["data"]
                at = f"2025-11-03T09:{number:02}:{len(found) // 1000:02}.{len(found) % 1000:03}Z"
                found.append(Emitted(instance, {**event, "data": more}, at))
    return found


async def emit(server: EvolutionServer, emitted: list[Emitted], every_s: float = 0.0) -> None:
    """Let the server emit them one after another and wait for none, as it does; return when all have come to an end."""
    async with asyncio.TaskGroup() as tasks:
        for one in emitted:
            extra = {name: value for name, value in one.event.items() if name in {"isLatest", "progress"}}
            tasks.create_task(server.emit(one.instance, one.event["event"], one.event["data"], one.date_time, **extra))
            await asyncio.sleep(every_s)


@pytest.mark.parametrize("by_events", [True, False], ids=["by-events", "plain"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_every_event_arrives_through_a_restart(tmp_path: Path, end: signal.Signals, *, by_events: bool) -> None:
    """Killed or stopped in the middle and started again, the service loses and doubles nothing of what was sent."""
    async with outbox(tmp_path) as here:
        emitted = events_of(3)
        server = here.server(by_events, local_events=EVERY_KIND, global_events=EVERY_KIND)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(emit(server, emitted, every_s=0.005))
            await here.everywhere.wait_for_count(len(emitted) // 4)
            here.service.process.send_signal(end)
            await here.service.wait()
            assert len(server.delivered) < len(emitted)
            await here.service.start()
        assert not server.dropped
        assert not FINAL_STATUSES & set(server.heard)
        # Two copies of what concerns the one instance, one of the rest: the bytes are the same, and so is the event.
        assert len(server.delivered) == len(emitted) * 3 // 2
        assert any(isinstance(answer, str) for answer in server.heard)
        await here.service.wait_until_settled()
        here.assert_all_arrived(emitted)
        assert (await here.service.request("GET", "/stats")).json()["events"] == len(emitted)
        if end == signal.SIGTERM:  # after a crash a POST that was in flight is made again, with the same id
            assert len(here.everywhere.arrivals) == len(emitted)
            assert len(here.local.arrivals) == len(emitted) // 2


async def test_no_overload_makes_the_server_drop_an_event(tmp_path: Path) -> None:
    """With hardly any room, and commits that hang, the server hears 503 at worst, and gets all through by repeating."""
    async with outbox(tmp_path, OUTBOX_INGEST_BYTES="30000", OUTBOX_QUEUE_BYTES="30000") as here:
        emitted = events_of(1, base64="QUJD" * 5000)
        server = here.server(by_events=False, local_events=EVERY_KIND, global_events=EVERY_KIND)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(emit(server, emitted))
            for _ in range(2):
                locked = sqlite3.connect(here.service.database, isolation_level=None, timeout=20)
                locked.execute("BEGIN IMMEDIATE")
                await asyncio.sleep(0.4)
                locked.execute("ROLLBACK")
                locked.close()
                await asyncio.sleep(0.1)
        assert not server.dropped
        assert {answer for answer in server.heard if isinstance(answer, int)} == {202, 503}
        await here.service.wait_until_settled(60)
        here.assert_all_arrived(emitted)


async def test_a_receiver_that_is_off_costs_no_event(tmp_path: Path) -> None:
    """What made the server drop events for good, a 404 of a workflow that is off, is retried here until it is on."""
    async with outbox(tmp_path) as here:
        here.everywhere.answer = lambda _arrival: 404
        emitted = events_of(1)
        server = here.server(by_events=True, local_events=EVERY_KIND, global_events=EVERY_KIND)
        await emit(server, emitted)
        assert set(server.heard) == {202}
        await here.everywhere.wait_for_count(len(emitted))
        refused = Counter(arrival.webhook_id for arrival in here.everywhere.arrivals)
        assert len(refused) <= len(emitted)
        here.everywhere.arrivals.clear()
        here.everywhere.answer = lambda _arrival: 200
        await here.service.wait_until_settled()
        here.assert_all_arrived(emitted)


async def test_the_same_receiver_without_the_outbox_loses_them(tmp_path: Path) -> None:
    """The imitation has the server's faults: pointed at the receiver itself, it drops everything on a 404."""
    async with Receiver(lambda _arrival: 404) as receiver:
        server = EvolutionServer(global_url=receiver.url, retry=Retry(initial_s=0.01, max_s=0.02))
        emitted = events_of(1)
        await emit(server, emitted)
        assert set(server.heard) == {404}
        assert len(server.dropped) == len(receiver.arrivals) < len(emitted)
        receiver.answer = lambda _arrival: 500
        server.heard.clear()
        await server.emit(LOCAL, "call", {}, "2025-11-03T10:00:00.000Z")
        assert server.heard == {500: 10}
        assert "groups.update" not in {copy.event for copy in server.dropped}


async def test_the_imitation_sends_what_servers_send() -> None:
    """Order of members, paths and tokens are those of the real server; a local webhook goes before the global one."""
    async with Receiver() as receiver:
        local = LocalWebhook(f"{receiver.url}/l?t=1", True, {"jwt_key": "k" * 32, "x-a": "b"})  # noqa: FBT003
        server = EvolutionServer(f"{receiver.url}/g", global_by_events=True, local_webhooks={LOCAL: local})
        await server.emit(LOCAL, "group-participants.update", {"id": 1}, "2025-11-03T10:00:00.000Z", isLatest=True)
        first, second = receiver.arrivals
        assert (first.path, second.path) == ("/l?t=1/group-participants-update", "/g/group-participants-update")
        assert first.body == second.body
        names = ["isLatest", "event", "instance", "data", "destination", *KEPT[3:]]
        assert list(first.json()) == names
        assert first.json()["destination"] == local.url
        claims = jwt.decode(first.headers["authorization"].removeprefix("Bearer "), "k" * 32, algorithms=["HS256"])
        assert (claims["exp"] - claims["iat"], claims["app"], claims["action"]) == (600, "evolution", "webhook")
        assert (first.headers["x-a"], "authorization" in second.headers) == ("b", False)
