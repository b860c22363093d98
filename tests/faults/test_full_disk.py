import asyncio
import errno
import json
import os
import resource
import sqlite3
import subprocess
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from outbox.config import EngineConfig, GlobalWebhook
from outbox.domain.errors import StoreRefusedError
from outbox.domain.events import read_event
from outbox.engine import open_engine
from outbox.inspecting import open_inspector
from outbox.store.sqlite import SqliteStore
from tests.conftest import NOT_ALLOWED
from tests.faults.disk import Calls, Disk, Trouble
from tests.harness import Arrival, Receiver, Reply, Service

BACKLOG = 60
"""Few enough for the write-ahead log not to be moved: what it once took is space that it still has."""

SMALL_BYTES = 12 * 1024 * 1024


class Filling(ABC):
    """A disk that can be full for a while."""

    def __init__(self, folder: Path) -> None:
        """Have the service's files in `folder`."""
        self.folder = folder

    def prepare(self, service: Service) -> None:  # noqa: B027 - most disks need nothing
        """Put a service that is not running on it."""

    @abstractmethod
    def fill(self, service: Service) -> None:
        """Leave no space for what is written from now on."""

    @abstractmethod
    def free(self, service: Service) -> None:
        """Let there be space again."""


class NoSpace(Filling):
    """Every write does half of its work, and the next one fails with ENOSPC."""

    def prepare(self, service: Service) -> None:
        self._disk = Disk(self.folder, self.folder.parent)
        self._disk.spoils(service)

    def fill(self, service: Service) -> None:
        self._disk.lever.spoil(Trouble(Calls.WRITE, errno.ENOSPC, half=True))

    def free(self, service: Service) -> None:
        self._disk.lever.heal()


class FileSize(Filling):
    """No file may be written beyond its first page: SQLite takes that for an I/O error."""

    def fill(self, service: Service) -> None:
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    def free(self, service: Service) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, unlimited)


class SmallFileSystem(Filling):
    """A file system of some megabytes, with a ballast that takes what is left."""

    def fill(self, service: Service) -> None:
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))

    def free(self, service: Service) -> None:
        (self.folder / "ballast").unlink()


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Mount a small file system on `folder`; that takes root, so elsewhere the test is skipped."""
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "none", str(folder)]
    if os.geteuid() or subprocess.run(mounting, check=False, capture_output=True).returncode:
        pytest.skip(f"{NOT_ALLOWED}mounting a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


WAYS: dict[str, type[Filling]] = {
    "no space is left": NoSpace,
    "files may not grow": FileSize,
    "a small file system is full": SmallFileSystem,
}


@pytest.fixture(params=WAYS)
def filling(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Filling]:
    """A disk that can be full."""
    kind = WAYS[request.param]
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder) if kind is SmallFileSystem else nullcontext():
        yield kind(folder)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver."""
    async with Receiver() as made:
        yield made


def service_on(filling: Filling, receiver: Receiver) -> Service:
    """Return a service on the disk, whose global webhook is the receiver."""
    service = Service(filling.folder, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=receiver.url)
    filling.prepare(service)
    return service


async def post(service: Service, name: str) -> Reply:
    """Post an event under a key of its own."""
    body = {"event": "messages.upsert", "instance": "loja01", "data": {"name": name, "filling": "x" * 10_000}}
    return await service.request("POST", "/events", body, {"idempotency-key": name})


async def wait_until_ready(service: Service) -> None:
    """Return once the service says that it is ready, asking nothing else of it."""
    async with asyncio.timeout(10):
        while (await service.request("GET", "/health/ready")).status != 200:  # noqa: ASYNC110 - it is a process
            await asyncio.sleep(0.05)


def assert_refused(reply: Reply) -> None:
    """See that an event was refused for now, with a reason."""
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) > 0
    assert "refuses writes" in reply.json()["detail"]


async def another_refusal(service: Service) -> None:
    """Return once the store has refused outcomes once more."""

    def count() -> int:
        return sum(line["event"] == "outcomes.refused" for line in service.log)

    before = count()
    await service.wait_for_log(lambda _line: count() > before)


async def test_a_full_disk_loses_nothing_and_passes(filling: Filling, receiver: Receiver) -> None:
    """Events are refused with a reason, no new attempts are made; with space again it all goes on by itself."""
    landing, landing_later = asyncio.Event(), asyncio.Event()

    async def hang(_arrival: Arrival) -> int:
        await (landing_later if landing.is_set() else landing).wait()
        return 200

    receiver.answer = hang
    service = service_on(filling, receiver)
    await service.start()
    ids = {(await post(service, f"before-{n}")).json()["id"] for n in range(BACKLOG)}
    await receiver.wait_for_count(1)
    filling.fill(service)
    assert_refused(await post(service, "refused"))
    landing.set()
    await another_refusal(service)
    landing_later.set()  # what was posted before the refusal
    await another_refusal(service)
    made = len(receiver.arrivals)
    await another_refusal(service)
    await another_refusal(service)
    assert len(receiver.arrivals) == made < BACKLOG
    ready = await service.request("GET", "/health/ready")
    assert ready.status == 503
    assert "refuses writes" in ready.json()["reasons"][0]
    assert (await service.request("GET", "/health/live")).status == 200
    assert b"outbox_ready 0.0" in (await service.request("GET", "/metrics")).body
    assert_refused(await post(service, "refused"))
    filling.free(service)
    await wait_until_ready(service)
    ids.add((await post(service, "refused")).json()["id"])
    await service.wait_until_settled()
    assert len(receiver.arrivals) == BACKLOG + 1
    assert {arrival.webhook_id for arrival in receiver.arrivals} == ids
    assert await service.stop() == 0
    await service.verify()


async def test_readiness_returns_with_nobody_asking(filling: Filling, receiver: Receiver) -> None:
    """A service that got one event while the disk was full is ready again without another one."""
    service = service_on(filling, receiver)
    await service.start()
    assert (await post(service, "before")).status == 202
    await service.wait_until_settled()
    filling.fill(service)
    assert_refused(await post(service, "refused"))
    assert (await service.request("GET", "/health/ready")).status == 503
    # A repeat of what is stored is answered, but proves nothing about the disk.
    assert (await post(service, "before")).status == 202
    assert (await service.request("GET", "/health/ready")).status == 503
    filling.free(service)
    await wait_until_ready(service)
    assert await service.stop() == 0
    await service.verify()


async def test_a_stop_on_a_full_disk_says_what_is_lost(receiver: Receiver, tmp_path: Path) -> None:
    """Outcomes that could not be stored until the end are named, and those attempts are made again."""
    filling = NoSpace(tmp_path)
    service = service_on(filling, receiver)
    await service.start()
    receiver.answer = lambda _arrival: 500
    event_id = (await post(service, "before")).json()["id"]
    await receiver.wait_for_count(1)
    filling.fill(service)
    receiver.answer = lambda _arrival: 200
    await another_refusal(service)
    assert await service.stop() == 0
    lost = [line for line in service.log if line["event"] == "outcomes.lost"]
    assert [(line["level"], line["count"]) for line in lost] == [("error", 1)]
    made = len(receiver.arrivals)
    filling.free(service)
    await service.start()
    await receiver.wait_for_count(made + 1)
    await service.wait_until_settled()
    assert {arrival.webhook_id for arrival in receiver.arrivals} == {event_id}
    assert receiver.arrivals[-1].headers["x-outbox-attempt"] == receiver.arrivals[made - 1].headers["x-outbox-attempt"]
    assert await service.stop() == 0
    await service.verify()


async def test_a_rebuild_on_a_full_disk_changes_nothing(receiver: Receiver, tmp_path: Path) -> None:
    """It is refused as an event would be, and works once there is space."""
    filling = FileSize(tmp_path)
    service = service_on(filling, receiver)
    await service.start()
    for number in range(BACKLOG):
        await post(service, f"before-{number}")
    await service.wait_until_settled()
    filling.fill(service)
    assert_refused(await service.request("POST", "/maintenance/rebuild"))
    filling.free(service)
    assert (await service.request("POST", "/maintenance/rebuild")).status == 200
    assert await service.stop() == 0
    await service.verify()


async def test_a_full_database_takes_events_again_once_it_may_grow(receiver: Receiver, tmp_path: Path) -> None:
    """Whatever SQLite's reason is for taking nothing more: the engine goes on by itself when that has passed."""
    webhook = GlobalWebhook(url=receiver.url, enabled=True, by_events=False)
    config = EngineConfig(database=tmp_path / "outbox.db", global_webhook=webhook)
    event = read_event(json.dumps({"event": "messages.upsert", "instance": "a", "data": "x" * 9000}).encode(), 0)

    def may_grow(pages: int) -> Callable[[sqlite3.Connection], object]:
        return lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    async with open_engine(config) as engine:
        store = engine._store
        assert isinstance(store, SqliteStore)
        await store._writer.run(may_grow(60))
        taken = 0

        async def accept_all() -> None:
            nonlocal taken
            while await engine.accept(event):
                taken += 1

        with pytest.raises(StoreRefusedError, match="full"):
            await accept_all()
        assert engine.troubles
        await store._writer.run(may_grow(1_000_000))
        async with asyncio.timeout(10):
            while engine.troubles:  # noqa: ASYNC110 - it is for the engine to find out
                await asyncio.sleep(0.02)
        await engine.accept(event)
        await receiver.wait_for_count(taken + 1)
    assert taken > 5
    async with open_inspector(config.database) as inspector:
        report = await inspector.verify(lambda _done, _all: None)
    assert (report.events, report.problems) == (taken + 1, [])
