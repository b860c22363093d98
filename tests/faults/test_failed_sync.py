import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from tests.faults.disk import FOREVER, Calls, Disk, Trouble
from tests.harness import Receiver, Reply, Service

KEYS = [f"key-{number}" for number in range(12)]


async def post(service: Service, key: str) -> Reply:
    """Post an event under a key."""
    body = {"event": "messages.upsert", "instance": "loja01", "data": {"key": key}}
    return await service.request("POST", "/events", body, {"idempotency-key": key})


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """A disk that can fail."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return Disk(folder, tmp_path)


def service_on(disk: Disk, receiver: Receiver) -> Service:
    """Return a service on the disk, whose global webhook is the receiver."""
    folder = Path(disk.environment["DISK_FOLDER"])
    service = Service(folder, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=receiver.url)
    disk.spoils(service)
    return service


def assert_stopped_with_a_reason(service: Service, status: int) -> None:
    """See that the service has ended itself, in words and not in traces."""
    assert status == 1
    failed = [line for line in service.log if line["event"] == "service.failed"]
    assert failed
    assert all("the disk fails" in line["reason"] for line in failed)
    assert not [line for line in service.log if line["event"] == "text" or "exception" in line]


@pytest.mark.parametrize("times", [1, FOREVER])
async def test_a_failed_sync_of_a_commit_stops_the_service(times: int, disk: Disk) -> None:
    """What it was about is neither stored nor lost: 503; repeated with its key after the restart it is there once."""
    async with Receiver() as receiver:
        service = service_on(disk, receiver)
        await service.start()
        known = {key: (await post(service, key)).json()["id"] for key in KEYS[:4]}
        await service.wait_until_settled()
        disk.lever.spoil(Trouble(Calls.SYNC, times=times, ending="-wal"))
        # Who comes too late to be answered finds nobody there.
        found = await asyncio.gather(*(post(service, key) for key in KEYS[4:]), return_exceptions=True)
        replies = [reply for reply in found if not isinstance(reply, BaseException)]
        assert all(isinstance(reply, Reply | aiohttp.ClientError) for reply in found)
        assert {reply.status for reply in replies} == {503}
        assert all(int(reply.headers["retry-after"]) > 0 for reply in replies)
        assert any("outcome is unknown" in reply.json()["detail"] for reply in replies)
        assert_stopped_with_a_reason(service, await service.wait())
        disk.lever.heal()
        await service.start()
        ids = {key: (await post(service, key)).json()["id"] for key in KEYS}
        stats = await service.wait_until_settled()
        assert await service.stop() == 0
        await service.verify()
    assert {key: ids[key] for key in known} == known
    assert stats["events"] == len(set(ids.values())) == len(KEYS)
    assert {arrival.webhook_id for arrival in receiver.arrivals} == set(ids.values())
    assert max(Counter(arrival.webhook_id for arrival in receiver.arrivals).values()) <= 2


async def test_a_failed_sync_of_the_database_stops_the_service(disk: Disk) -> None:
    """It may come long after the commits: what is in the write-ahead log is there after the restart."""
    async with Receiver() as receiver:
        service = service_on(disk, receiver)
        service.program = ["-m", "tests.faults.planted", "serve"]  # whose write-ahead log is moved soon
        await service.start()
        disk.lever.spoil(Trouble(Calls.SYNC, ending="outbox.db"))
        ids: list[str] = []
        with suppress(aiohttp.ClientError):  # it may be gone before the next request
            while (reply := await post(service, f"more-{len(ids)}")).status == 202:
                ids.append(reply.json()["id"])
        assert_stopped_with_a_reason(service, await service.wait())
        disk.lever.heal()
        await service.start()
        stats = await service.wait_until_settled()
        assert await service.stop() == 0
        await service.verify()
    assert len(ids) > 5
    assert stats["events"] >= len(ids)
    assert {arrival.webhook_id for arrival in receiver.arrivals} >= set(ids)


async def test_a_failed_sync_of_a_rebuild_stops_the_service(disk: Disk) -> None:
    """Nobody commits anything then, and it must stop all the same."""
    async with Receiver() as receiver:
        service = service_on(disk, receiver)
        await service.start()
        for key in KEYS:
            await post(service, key)
        await service.wait_until_settled()
        disk.lever.spoil(Trouble(Calls.SYNC, ending="-wal"))
        assert (await service.request("POST", "/maintenance/rebuild")).status == 503
        assert_stopped_with_a_reason(service, await service.wait())
        disk.lever.heal()
        await service.start()
        assert await service.stop() == 0
        assert (await service.verify())["events"] == len(KEYS)
