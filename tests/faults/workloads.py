"""What the service is made to do while its disk is recorded, so that a power cut can be imagined at any moment."""

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from tests.faults.disk import FOREVER, Calls, Disk, Trouble
from tests.faults.judging import Promised
from tests.faults.load import LOCAL, Load
from tests.faults.recording import Said
from tests.harness import Arrival, Receiver, Service

OTHER = f"{LOCAL}/other"
AWAY = "loja02"
"""An instance whose receiver is gone: what is for it is never settled."""

AGE_S = 0.25
"""What is older than that is pruned."""

WAL = "-wal"


class Scene(Struct):
    """A service on a recorded disk with two webhooks, and what its producers heard: the ids of events with a 202.

    Those in `lasting` are never settled, or have a key that counts.
    """

    service: Service
    disk: Disk
    receiver: Receiver
    rng: random.Random
    heard: set[str] = set()
    database: str = "outbox.db"
    keys: dict[str, bytes] = {}
    lasting: set[str] = set()

    def promised(self, said: list[Said]) -> Promised:
        """Return what was promised to those to whom this was said."""
        webhooks = {"/1": 1, "/2": 2, "/3": 3}
        return Promised(said, webhooks, frozenset({2}), self.keys, frozenset(self.lasting), round(AGE_S * 1000))

    async def set_webhooks(self) -> None:
        """Set the two webhooks, the second of which wants the events of each chat in order."""
        await self.service.set_webhook(LOCAL, f"{self.receiver.url}/1")
        await self.service.set_webhook(OTHER, f"{self.receiver.url}/2", order="chat")


Workload = Callable[[Scene], Awaitable[None]]


@asynccontextmanager
async def scene(folder: Path, beside: Path, rng: random.Random, bug: str = "") -> AsyncIterator[Scene]:
    """Prepare a scene, perhaps with a bug planted; nothing is started yet."""
    async with Receiver() as receiver:
        service = Service(folder, FAULT_BUG=bug)
        service.program = ["-m", "tests.faults.planted", "serve"]
        disk = Disk(folder, beside, recorded=True)
        disk.spoils(service)
        yield Scene(service, disk, receiver, rng)


async def first_start(here: Scene) -> None:
    """A first start makes the folder, the keys and the database; a few events follow."""
    service = here.service
    here.database = "data/outbox.db"
    service.settings["OUTBOX_DATABASE_URL"] = f"sqlite:///{service.folder}/{here.database}"
    del service.settings["OUTBOX_API_KEY"], service.settings["OUTBOX_INGEST_TOKEN"]
    await service.start()
    for name in ("data/api-key", "data/ingest-token"):
        here.keys[name] = (service.folder / name).read_bytes()
    key = here.keys["data/api-key"].decode().strip()
    for _ in range(5):
        body = {"event": "messages.upsert", "instance": LOCAL, "data": {}}
        reply = await service.request("POST", "/events", body, {"apikey": key})
        here.heard.add(reply.json()["id"])
    assert await service.stop() == 0


async def ingest(here: Scene) -> None:
    """Events are taken in one by one and in batches, and all wait for receivers that answer nothing."""
    hang = asyncio.Event()

    async def hanging(_arrival: Arrival) -> int:
        await hang.wait()
        return 200

    here.receiver.answer = hanging
    await here.service.start()
    await here.set_webhooks()
    await asyncio.gather(*(_post(here, count) for count in (40, 30, 20)), _post_batches(here, 3))
    await here.service.kill()
    hang.set()


async def relay(here: Scene) -> None:
    """A backlog goes out to receivers that fail in two cases of five; half-way the service is stopped and started."""
    here.receiver.answer = lambda _arrival: 500
    await here.service.start()
    await here.set_webhooks()
    await asyncio.gather(*(_post(here, 20) for _ in range(4)))
    before = len(here.receiver.arrivals)
    here.receiver.answer = lambda _arrival: here.rng.choice((200, 200, 200, 500, 503))
    await here.receiver.wait_for_count(before + 60)
    assert await here.service.stop() == 0
    await here.service.start()
    await here.service.wait_until_settled()
    assert await here.service.stop() == 0


async def restarts(here: Scene) -> None:
    """The service dies as it begins to sync; it dies of a failed sync; producers repeat what got no answer."""
    service, load = here.service, Load(here.rng)
    await service.start()
    await here.set_webhooks()
    await service.stop()
    for passed in (0, 1, 8):
        await service.start()
        await load.repeat(service.address)
        here.disk.lever.spoil(Trouble(Calls.SYNC, after=passed, deadly=True, ending=WAL))
        await load.produce(service.address)
        assert await service.wait() == -signal.SIGKILL
        here.disk.lever.heal()
    for passed, times in ((0, 1), (1, FOREVER), (8, FOREVER)):
        await service.start()
        await load.repeat(service.address)
        here.disk.lever.spoil(Trouble(Calls.SYNC, after=passed, times=times, ending=WAL))
        await load.produce(service.address)
        assert await service.wait() == 1
        here.disk.lever.heal()
    await service.start()
    await load.repeat(service.address, known=50)
    assert await service.stop() == 0
    assert load.ledger.repeated > 20
    here.heard.update(load.ledger.accepted.values())


async def replay(here: Scene) -> None:
    """What is dead, and what was acknowledged, is replayed while events come; the service dies amid that."""
    service = here.service
    here.receiver.answer = lambda arrival: 400 if arrival.path == "/1" else 200
    await service.start()
    await here.set_webhooks()
    await asyncio.gather(_post(here, 20), _post_batches(here, 4))
    await service.wait_until_settled()
    before = len(here.receiver.arrivals)
    here.receiver.answer = lambda _arrival: here.rng.choice((200, 200, 200, 500))
    asked = [await _replay(here, {"state": "dead"})]
    await _post(here, 5)
    asked.append(await _replay(here, {"webhook": "wh_2", "acknowledged": True}))
    await asyncio.gather(_post(here, 10), here.receiver.wait_for_count(before + 60))
    await service.kill()
    await service.start()
    asked.append(await _replay(here, {"instance": LOCAL, "acknowledged": True, "rate": 2000}))
    await _post(here, 5)
    for replay_id in asked:
        await _wait_for(here, f"/replays/{replay_id}", lambda shown: shown["state"] == "finished")
    await service.wait_until_settled()
    assert await service.stop() == 0


async def prune(here: Scene) -> None:
    """What is old and settled is pruned while events come: all of it, up to a kill, and what that has left."""
    service = here.service
    here.receiver.answer = lambda arrival: 410 if arrival.path == "/3" else 200
    await service.start()
    await here.set_webhooks()
    await service.set_webhook(AWAY, f"{here.receiver.url}/3")
    await _grow_old(here, 40, waiting=6)
    begun = await _begin_prune(here)
    while begun["running"]:
        await _post(here, 1)
        begun = (await service.request("GET", "/maintenance/prune")).json()
    assert begun["events"] > 0
    await _grow_old(here, 40, waiting=12)
    await _begin_prune(here)
    await _wait_for(here, "/maintenance/prune", lambda shown: shown["reached"] > 0)
    await service.kill()
    await service.start()
    await _begin_prune(here)
    await _post(here, 10)
    await _wait_for(here, "/maintenance/prune", lambda shown: not shown["running"])
    assert await service.stop() == 0


async def _grow_old(here: Scene, count: int, waiting: int) -> None:
    """Post events of all kinds; once all are settled but so many, post others until those are old."""
    here.lasting.update([await here.service.accept(instance=AWAY) for _ in range(3)])
    batches, *_ = await asyncio.gather(_post_batches(here, 1), _post(here, count), _post(here, count))
    here.lasting |= batches  # for their key still counts
    here.lasting.update([await here.service.accept(instance=AWAY) for _ in range(3)])
    here.heard |= here.lasting
    await here.service.wait_for_stats(lambda stats: _open(stats) == waiting)
    old = time.monotonic() + AGE_S
    while time.monotonic() < old:
        await _post(here, 1)


def _open(stats: Any) -> int:
    return sum(stats["deliveries"][state] for state in ("pending", "waiting", "held"))


async def _begin_prune(here: Scene) -> Any:
    reply = await here.service.request("POST", "/maintenance/prune", {"older_than_s": AGE_S})
    assert reply.status == 202, reply
    return reply.json()


async def _replay(here: Scene, wanted: dict[str, object]) -> str:
    """Ask for a replay; return its id."""
    reply = await here.service.request("POST", "/deliveries/replay", wanted)
    assert reply.status == 202, reply
    assert reply.json()["deliveries"] > 0
    replay_id: str = reply.json()["id"]
    return replay_id


async def _wait_for(here: Scene, path: str, wanted: Callable[[Any], bool]) -> None:
    """Ask for what is shown there until it is `wanted`."""
    async with asyncio.timeout(30):
        while not wanted((await here.service.request("GET", path)).json()):
            pass


async def _post(here: Scene, count: int) -> None:
    for _ in range(count):
        data = {"key": {"remoteJid": here.rng.choice("abcdef")}, "filling": "x" * here.rng.choice((10, 300, 5000))}
        here.heard.add(await here.service.accept(data=data))


async def _post_batches(here: Scene, count: int) -> set[str]:
    """Post batches with a key each, which makes their first record say how many events they are; return their ids."""
    posted: set[str] = set()
    for number in range(count):
        events = [{"event": "messages.upsert", "instance": LOCAL, "data": {"chatId": f"{n}"}} for n in range(20)]
        reply = await here.service.request(
            "POST", "/events/batch", json.dumps(events), {"idempotency-key": f"batch-{number}"}
        )
        posted.update(reply.json()["ids"])
    here.heard |= posted
    return posted


WORKLOADS: Mapping[str, Workload] = {
    "first start": first_start,
    "ingest": ingest,
    "relay": relay,
    "restarts": restarts,
    "replay": replay,
    "prune": prune,
}
