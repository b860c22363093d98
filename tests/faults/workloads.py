"""What the service is made to do while its disk is recorded, so that a power cut can be imagined at any moment."""

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from msgspec import Struct

from tests.faults.disk import FOREVER, Calls, Disk, Trouble
from tests.faults.judging import Promised
from tests.faults.load import LOCAL, Load
from tests.faults.recording import Said
from tests.harness import Arrival, Receiver, Service

OTHER = f"{LOCAL}/other"
WAL = "-wal"


class Scene(Struct):
    """A service on a recorded disk with two webhooks, and what its producers heard: the ids of events with a 202."""

    service: Service
    disk: Disk
    receiver: Receiver
    rng: random.Random
    heard: set[str] = set()
    database: str = "outbox.db"
    keys: dict[str, bytes] = {}

    def promised(self, said: list[Said]) -> Promised:
        """Return what was promised to those to whom this was said."""
        return Promised(said, {"/1": 1, "/2": 2}, frozenset({2}), self.keys)

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


async def _post(here: Scene, count: int) -> None:
    for _ in range(count):
        data = {"key": {"remoteJid": here.rng.choice("abcdef")}, "filling": "x" * here.rng.choice((10, 300, 5000))}
        here.heard.add(await here.service.accept(data=data))


async def _post_batches(here: Scene, count: int) -> None:
    """Post batches with a key each, which makes their first record say how many events they are."""
    for number in range(count):
        events = [{"event": "messages.upsert", "instance": LOCAL, "data": {"n": n}} for n in range(20)]
        reply = await here.service.request(
            "POST", "/events/batch", json.dumps(events), {"idempotency-key": f"batch-{number}"}
        )
        here.heard.update(reply.json()["ids"])


# Replay and prune have their place here once they are there.
WORKLOADS: Mapping[str, Workload] = {
    "first start": first_start,
    "ingest": ingest,
    "relay": relay,
    "restarts": restarts,
}
