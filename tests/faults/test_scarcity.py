import asyncio
import io
import json
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.faults.disk import Calls, Disk, Trouble
from tests.harness import API_KEY, ROOT, Receiver, Service

BIG_BYTES = 100 * 1024 * 1024
SYNC_S = 0.2
PAUSE_S = 2.0
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver."""
    async with Receiver() as made:
        yield made


def service_for(receiver: Receiver, folder: Path) -> Service:
    """Return a service, not started, whose global webhook is the receiver."""
    return Service(folder, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=receiver.url)


async def post_big(service: Service) -> tuple[int, str]:
    """Post an event of 100 MB, always the same one; return the status and what is said."""
    body = io.BytesIO(json.dumps({"event": "messages.upsert", "instance": "a", "data": "x" * BIG_BYTES}).encode())
    headers = {"apikey": API_KEY, "content-type": "application/json", "idempotency-key": "big"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{service.address}/events", data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


def limit_memory(process: int, spare_bytes: int) -> None:
    """Let a process have so much more memory than it has now."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare_bytes
    resource.prlimit(process, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def limit_descriptors(process: int, spare: int) -> None:
    """Let a process open so many more files than it has open now."""
    limit = len(list(Path(f"/proc/{process}/fd").iterdir())) + spare
    resource.prlimit(process, resource.RLIMIT_NOFILE, (limit, 4096))


def assert_each_once(receiver: Receiver, ids: list[str]) -> None:
    """See that every event came exactly once."""
    assert Counter(arrival.webhook_id for arrival in receiver.arrivals) == Counter(ids)


async def test_too_little_memory_for_a_large_event(receiver: Receiver, tmp_path: Path) -> None:
    """100 MB are refused for now, small events go in, and the service stays."""
    service = service_for(receiver, tmp_path)
    await service.start()
    await service.accept()
    await service.wait_until_settled()
    limit_memory(service.process.pid, BIG_BYTES // 2)
    status, text = await post_big(service)
    assert (status, "not enough memory" in text) == (503, True)
    await service.accept()
    assert (await service.request("GET", "/health/live")).status == 200
    resource.prlimit(service.process.pid, resource.RLIMIT_AS, UNLIMITED)
    assert (await post_big(service))[0] == 202
    stats = await service.wait_until_settled(90)
    assert stats["deliveries"]["acknowledged"] == stats["events"] == 3
    assert len(max(receiver.arrivals, key=lambda arrival: len(arrival.body)).body) > BIG_BYTES
    assert await service.stop() == 0
    await service.verify()


async def test_too_little_memory_never_ends_the_process() -> None:
    """However much is missing, what is done to a large body says so."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.short_of_memory", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert int(output) > 3


async def test_too_few_file_descriptors(receiver: Receiver, tmp_path: Path) -> None:
    """Connections beyond the limit are closed and POSTs fail for now; events that get in are delivered afterwards."""
    service = service_for(receiver, tmp_path)
    await service.start()
    ids = [await service.accept()]  # the client has its connection
    await service.wait_until_settled()
    limit_descriptors(service.process.pid, 3)
    host, _, port = service.address.removeprefix("http://").partition(":")
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
    await asyncio.wait([asyncio.create_task(reader.read()) for reader, _ in idle], return_when=asyncio.FIRST_COMPLETED)
    ids += [await service.accept() for _ in range(10)]
    for _, writer in idle:
        writer.close()
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    await service.wait_until_settled()
    assert_each_once(receiver, ids)
    assert await service.stop() == 0
    await service.verify()


async def test_a_pause_of_the_process(receiver: Receiver, tmp_path: Path) -> None:
    """Stopped and continued (SIGSTOP) under load it goes on: nobody is cut off, nothing is lost or posted twice."""
    service = service_for(receiver, tmp_path)
    await service.start()
    await service.set_webhook("loja02", receiver.url)
    posts = [asyncio.create_task(service.accept(instance="loja01")) for _ in range(300)]
    await receiver.wait_for_count(20)
    service.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(PAUSE_S)
    service.process.send_signal(signal.SIGCONT)
    ids = await asyncio.gather(*posts)
    await service.wait_until_settled()
    assert_each_once(receiver, ids)
    assert await service.stop() == 0
    await service.verify()


async def test_a_slow_disk(receiver: Receiver, tmp_path: Path) -> None:
    """When a sync takes 0.2 s a commit takes many events, the service answers meanwhile, and no POST is made twice."""
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder, tmp_path)
    service = service_for(receiver, folder)
    disk.spoils(service)
    await service.start()
    await service.accept()
    await service.wait_until_settled()
    receiver.arrivals.clear()
    disk.lever.spoil(Trouble(Calls.SYNC, 0, delay_s=SYNC_S, ending="-wal"))
    began = time.monotonic()
    posts = [asyncio.create_task(service.accept()) for _ in range(60)]
    looks = 0
    while not all(posted.done() for posted in posts):
        look = time.monotonic()
        assert (await service.request("GET", "/health/live")).status == 200
        looks += time.monotonic() - look < SYNC_S / 2
        await asyncio.sleep(0.02)
    took_s = time.monotonic() - began
    ids = [posted.result() for posted in posts]
    await service.wait_until_settled()
    disk.lever.heal()
    assert SYNC_S < took_s < 60 * SYNC_S / 3
    assert looks > took_s / SYNC_S
    assert_each_once(receiver, ids)
    assert await service.stop() == 0
    await service.verify()
