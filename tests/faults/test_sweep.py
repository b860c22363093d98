import json
from contextlib import suppress
from pathlib import Path

import aiohttp
from aiohttp import web

from outbox.domain.records import DeliveriesBuried, decode
from outbox.journal.sweeping import CHUNK
from outbox.store.sqlite import open_reader
from tests.harness import Arrival, Receiver, Service, running

BACKLOG = 2600
LOCAL = "loja01"


def come_back_later(_arrival: Arrival) -> web.Response:
    """Answer what holds the whole lane, so that a backlog stays one."""
    return web.Response(status=503, headers={"retry-after": "3600"})


async def burials(service: Service) -> list[int]:
    """Return how many deliveries each record of a sweep has settled, in the order of the log."""
    reader = await open_reader(service.database)
    try:
        head = await reader.head()
        records = [decode(row.record) for row in await reader.log(0, head.seq)]
    finally:
        await reader.aclose()
    return [record.pending + record.waiting for record in records if isinstance(record, DeliveriesBuried)]


async def post_backlog(service: Service) -> None:
    """Post so many events of the instance that one chunk cannot settle their deliveries."""
    one = json.dumps({"event": "messages.upsert", "instance": LOCAL, "data": {}})
    reply = await service.request("POST", "/events/batch", f"[{','.join([one] * BACKLOG)}]")
    assert reply.status == 202, reply


async def test_a_sweep_goes_in_chunks_and_survives_a_kill_between_them(tmp_path: Path) -> None:
    """Killed after its first chunk, the sweep goes on after the restart; each delivery is settled once, none posted."""
    async with Receiver(come_back_later) as receiver, running(tmp_path) as service:
        await service.set_webhook(LOCAL, f"{receiver.url}/deleted")
        await service.set_webhook(f"{LOCAL}/other", receiver.url)
        await post_backlog(service)
        await service.stop()
        genuine, service.program = service.program, ["-m", "tests.faults.dies_sweeping", "serve"]
        await service.start()
        with suppress(aiohttp.ClientError):  # it may die before it can answer
            await service.request("DELETE", f"/webhooks/instances/{LOCAL}")
        await service.wait()
        assert await burials(service) == [CHUNK]
        service.program = genuine
        posted = len(receiver.arrivals)
        await service.start()
        stats = await service.wait_for_stats(lambda stats: stats["deliveries"]["dead"] == BACKLOG)
        chunks = await burials(service)
        assert (sum(chunks), len(chunks)) == (BACKLOG, 3)
        assert max(chunks) <= CHUNK
        assert stats["deliveries"]["pending"] == BACKLOG
        assert [webhook["name"] for webhook in stats["webhooks"]] == ["other"]
        deleted = [arrival for arrival in receiver.arrivals[posted:] if arrival.path != "/"]
        assert not deleted
        assert (await service.request("GET", f"/webhooks/instances/{LOCAL}")).status == 404
