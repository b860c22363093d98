import json
from contextlib import suppress
from pathlib import Path

import aiohttp

from outbox.domain.records import DeliveriesMoved
from outbox.domain.replays import CHUNK
from tests.harness import Receiver, running
from tests.logged import logged

BACKLOG = 2600
LOCAL = "loja01"


async def test_a_replay_killed_half_way_goes_on_after_the_restart(tmp_path: Path) -> None:
    """Its first chunk is kept and its second was never written; in the end each delivery was reopened once."""
    async with Receiver(lambda _arrival: 400) as receiver, running(tmp_path) as service:
        await service.set_webhook(LOCAL, receiver.url)
        one = json.dumps({"event": "messages.upsert", "instance": LOCAL, "data": {}})
        reply = await service.request("POST", "/events/batch", f"[{','.join([one] * BACKLOG)}]")
        assert reply.status == 202, reply
        await service.wait_until_settled()
        await service.stop()
        receiver.answer = lambda _arrival: 200
        genuine, service.program = service.program, ["-m", "tests.faults.dies_replaying", "serve"]
        await service.start()
        with suppress(aiohttp.ClientError):  # it may die before it can answer
            await service.request("POST", "/deliveries/replay", {"state": "dead"})
        await service.wait()
        assert [len(chunk.rows) for chunk in await logged(service.database, DeliveriesMoved)] == [CHUNK]
        service.program = genuine
        await service.start()
        await service.wait_for_stats(lambda stats: stats["deliveries"]["acknowledged"] == BACKLOG)
        (item,) = (await service.request("GET", "/replays")).json()["items"]
        assert (item["deliveries"], item["reopened"], item["skipped"]) == (BACKLOG, BACKLOG, 0)
        assert item["state"] == "finished"
        reopened = [row.event for chunk in await logged(service.database, DeliveriesMoved) for row in chunk.rows]
        assert len(reopened) == len(set(reopened)) == BACKLOG
        posted = [arrival.webhook_id for arrival in receiver.arrivals if arrival.headers["x-outbox-attempt"] == "2"]
        assert len(set(posted)) == BACKLOG
