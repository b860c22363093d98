import json
from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from outbox.domain.records import DeliveriesBuried
from outbox.domain.webhooks import PROMOTING, QUEUEING
from outbox.inspecting import open_inspector
from outbox.journal.sweeping import CHUNK
from tests.harness import Arrival, Receiver, Service, running
from tests.logged import logged

BACKLOG = 2600
CHATS = 600
LOCAL = "loja01"


def come_back_later(_arrival: Arrival) -> web.Response:
    """Answer what holds the whole lane, so that a backlog stays one."""
    return web.Response(status=503, headers={"retry-after": "3600"})


async def burials(service: Service) -> list[int]:
    """Return how many deliveries each record of a sweep has settled, in the order of the log."""
    burials = await logged(service.database, DeliveriesBuried)
    return [record.pending + record.waiting for record in burials]


async def post_backlog(service: Service) -> None:
    """Post so many events of the instance, of many chats, that one chunk cannot settle or convert their deliveries."""
    events = [
        {"event": "messages.upsert", "instance": LOCAL, "data": {"chatId": f"{number % CHATS}", "number": number}}
        for number in range(BACKLOG)
    ]
    reply = await service.request("POST", "/events/batch", json.dumps(events))
    assert reply.status == 202, reply


async def die_at(service: Service, command: str, chunk: int, *request: Any) -> None:
    """Start the service, make a request, and have it die of what follows, with a chunk decided and not written."""
    genuine, service.program = service.program, ["-m", "tests.faults.dies_sweeping", "serve"]
    service.settings |= {"FAULT_COMMAND": command, "FAULT_TIMES": str(chunk)}
    await service.start()
    with suppress(aiohttp.ClientError):  # it may die before it can answer
        await service.request(*request)
    await service.wait()
    service.program = genuine


async def test_a_sweep_goes_in_chunks_and_survives_a_kill_between_them(tmp_path: Path) -> None:
    """Killed after its first chunk, the sweep goes on after the restart; each delivery is settled once, none posted."""
    async with Receiver(come_back_later) as receiver, running(tmp_path) as service:
        await service.set_webhook(LOCAL, f"{receiver.url}/deleted")
        await service.set_webhook(f"{LOCAL}/other", receiver.url)
        await post_backlog(service)
        await service.stop()
        await die_at(service, "Bury", 2, "DELETE", f"/webhooks/instances/{LOCAL}")
        assert await burials(service) == [CHUNK]
        posted = len(receiver.arrivals)
        await service.start()
        stats = await service.wait_for_stats(lambda stats: stats["deliveries"]["dead"] == BACKLOG)
        chunks = await burials(service)
        assert (sum(chunks), len(chunks)) == (BACKLOG, -(-BACKLOG // CHUNK))
        assert max(chunks) <= CHUNK
        assert stats["deliveries"]["pending"] == BACKLOG
        assert [webhook["name"] for webhook in stats["webhooks"]] == ["other"]
        deleted = [arrival for arrival in receiver.arrivals[posted:] if arrival.path != "/"]
        assert not deleted
        assert (await service.request("GET", f"/webhooks/instances/{LOCAL}")).status == 404


@pytest.mark.parametrize(("chunk", "phase"), [(1, QUEUEING), (4, QUEUEING), (13, PROMOTING)])
async def test_a_change_of_order_survives_a_kill(tmp_path: Path, chunk: int, phase: int) -> None:
    """Killed while queues are filled, or while they let their first go, it goes on after the restart; order holds."""
    async with Receiver(lambda _arrival: 410) as receiver, running(tmp_path) as service:
        await service.set_webhook(LOCAL, receiver.url)
        await service.accept(instance=LOCAL, data={"chatId": "0", "number": -1})
        await service.wait_for_stats(lambda stats: stats["webhooks"][0]["state"] == "suspended")
        await post_backlog(service)
        await service.stop()
        receiver.answer = lambda _arrival: 200
        wanted = {"url": receiver.url, "order": "chat"}
        await die_at(service, "Convert", chunk, "PUT", f"/webhooks/instances/{LOCAL}", wanted)
        async with open_inspector(service.database) as inspector:
            (webhook,) = await inspector.webhooks()
        assert (webhook.settings.order, webhook.conversion.phase, len(receiver.arrivals)) == ("chat", phase, 1)
        await service.verify()
        await service.start()
        stats = await service.wait_until_settled()
        assert stats["deliveries"]["acknowledged"] == BACKLOG + 1
        chats = defaultdict(list)
        for arrival in receiver.arrivals[1:]:
            chats[arrival.json()["data"]["chatId"]].append(arrival.json()["data"]["number"])
        assert len(chats) == CHATS
        assert all(one < other for numbers in chats.values() for one, other in pairwise(numbers))
