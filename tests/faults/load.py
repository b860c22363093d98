"""Producers that post events while the service may die at any moment, and the check of what became of every event."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Callable

import aiohttp
from msgspec import Struct, field

from tests.harness import API_KEY, INGEST_TOKEN, NO_ANSWER, Answering, Arrival, Service

LOCAL = "loja01"
INSTANCES = (LOCAL, "loja02")


class Sending(Struct):
    """One event as a producer sends it: `marker` stands in its data, so that every copy of it can be told."""

    marker: str
    instance: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def repeatable(self) -> bool:
        """Whether it is the same event when it is sent again."""
        return "idempotency-key" in self.headers or self.path.startswith("/ingest/")


class Ledger(Struct):
    """What the producers know: the id of every event that got a 202, and the events that did not get one."""

    accepted: dict[str, str] = field(default_factory=dict)
    sendings: dict[str, Sending] = field(default_factory=dict)
    unanswered: dict[str, Sending] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    repeated: int = 0

    @property
    def repeatable(self) -> list[Sending]:
        """Every event that may be sent again: with its Idempotency-Key, or where its body's digest is the key."""
        return [sending for sending in self.sendings.values() if sending.repeatable]


class Load:
    """Several producers at once; what they learn is kept in `ledger` across rounds."""

    def __init__(self, rng: random.Random) -> None:
        """Draw everything that is random from `rng`."""
        self.ledger = Ledger()
        self._rng = rng
        self._stopped = asyncio.Event()
        self._news = asyncio.Event()

    async def produce(self, address: str, producers: int = 6) -> None:
        """Post to the service at `address` until it is gone, or `stop`."""
        self._stopped = asyncio.Event()
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
            for _ in range(producers):
                tasks.create_task(self._produce(http, address))

    async def wait_for(self, accepted: int) -> None:
        """Return once so many events have got their 202, all rounds taken together."""
        async with asyncio.timeout(60):
            while len(self.ledger.accepted) < accepted:
                self._news.clear()
                await self._news.wait()

    def stop(self) -> None:
        """Let every producer end after the answer it waits for."""
        self._stopped.set()

    async def _produce(self, http: aiohttp.ClientSession, address: str) -> None:
        while not self._stopped.is_set():
            sending = self._next()
            self.ledger.sendings[sending.marker] = sending
            if not await self._post(http, address, sending):
                return

    async def _post(self, http: aiohttp.ClientSession, address: str, sending: Sending) -> bool:
        """Post one event and note its answer; say whether the service is there."""
        try:
            async with http.post(address + sending.path, data=sending.body, headers=sending.headers) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, OSError):
            self.ledger.unanswered[sending.marker] = sending
            return False
        if answer.status != 202:
            self.ledger.refused.append(f"{answer.status} {text}")
            self.ledger.unanswered[sending.marker] = sending
            return True
        self._note(sending, json.loads(text)["id"], replayed=answer.headers.get("idempotency-replayed") == "true")
        return True

    def _note(self, sending: Sending, event_id: str, *, replayed: bool) -> None:
        known = self.ledger.accepted.get(sending.marker)
        assert known in {None, event_id}, f"{sending.marker} was {known}, and repeated with its key it is {event_id}"
        assert known is None or replayed, f"{sending.marker} was repeated with its key and taken for a new event"
        self.ledger.repeated += replayed
        self.ledger.accepted[sending.marker] = event_id
        self._news.set()
        self.ledger.unanswered.pop(sending.marker, None)

    async def repeat(self, address: str, known: int = 20) -> None:
        """Do what a careful producer does: repeat what got no answer; some that got one are added."""
        lost = [sending for sending in self.ledger.unanswered.values() if sending.repeatable]
        sure = [sending for sending in self.ledger.repeatable if sending.marker in self.ledger.accepted]
        async with aiohttp.ClientSession() as http:
            for sending in lost + self._rng.sample(sure, min(known, len(sure))):
                assert await self._post(http, address, sending), "the service is gone"

    def _next(self) -> Sending:
        rng = self._rng
        marker = f"m{len(self.ledger.sendings)}"
        instance = rng.choice(INSTANCES)
        data = {"marker": marker, "filling": "x" * rng.choice((0, 200, 2000, 20_000))}
        body = json.dumps({"event": "messages.upsert", "instance": instance, "data": data}).encode()
        headers = {"content-type": "application/json"}
        path = "/events"
        match rng.randrange(3):
            case 0:
                path = f"/ingest/{INGEST_TOKEN}/messages-upsert"
            case 1:
                headers |= {"apikey": API_KEY, "idempotency-key": f"key-{marker}"}
            case _:
                headers |= {"apikey": API_KEY}
        return Sending(marker, instance, path, headers, body)


def misbehaving(rng: random.Random, hang_s: float) -> Answering:
    """Return the answers of a receiver that fails in every other way for two POSTs in five."""

    async def hang() -> int:
        await asyncio.sleep(hang_s)
        return 200

    answers: list[Callable[[], object]] = [*[lambda: 200] * 6, lambda: 500, lambda: 503, lambda: NO_ANSWER, hang]
    return lambda _arrival: rng.choice(answers)()  # type: ignore[return-value]


def faults_of_delivery(ledger: Ledger, arrivals: list[Arrival], goes_here: Callable[[str], bool]) -> list[str]:
    """Return what is wrong with what one receiver got; `goes_here` says whether events of an instance are for it."""
    ids: dict[str, set[str]] = defaultdict(set)
    markers: dict[str, set[str]] = defaultdict(set)
    for arrival in arrivals:
        marker = arrival.json()["data"]["marker"]
        ids[marker].add(arrival.webhook_id)
        markers[arrival.webhook_id].add(marker)
    faults = [f"the id {one} stands for {several}" for one, several in markers.items() if len(several) > 1]
    faults += [f"the event {one} came under {several}" for one, several in ids.items() if len(several) > 1]
    faults += [
        f"the event {marker} is not for this receiver"
        for marker in ids
        if not goes_here(ledger.sendings[marker].instance)
    ]
    for marker, event_id in ledger.accepted.items():
        if goes_here(ledger.sendings[marker].instance) and event_id not in ids.get(marker, ()):
            faults.append(f"the event {marker} got a 202 as {event_id} and never arrived")
    return faults


async def kill_under(load: Load, service: Service, more: int, after_s: float = 0.0) -> None:
    """Post to the service, and kill it some time after so many more events got a 202.

    By the count, a slow machine has as much to lose as a fast one. Returns when every producer has noticed.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.produce(service.address))
        await load.wait_for(len(load.ledger.accepted) + more)
        await asyncio.sleep(after_s)  # the moment is what is random here
        service.process.kill()
    await service.wait()
