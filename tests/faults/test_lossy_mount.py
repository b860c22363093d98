# ruff: noqa: T201 - pytest shows what a failed test printed: its seed, its cuts
"""Power cuts of a file system of our own (`lossy.py`), which keeps what was synced and little else."""

import asyncio
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outbox.folders import sync_folder
from outbox.inspecting import open_inspector
from tests.conftest import NOT_ALLOWED
from tests.faults.load import Load, faults_of_delivery, misbehaving
from tests.harness import ROOT, Receiver, Service
from tests.logged import stored

CUTS = 8
MOST_CUTS = 40
"""As many for a service with a bug planted: one of them finds it, as a rule one of the first."""

SEED = 20_261_125
SHARES = (0.0, 0.2, 0.8)
"""How much of what is written goes to the disk unasked, from one cut to the next."""

TROUBLED = {
    "WEBHOOK_GLOBAL_ENABLED": "true",
    "WEBHOOK_REQUEST_TIMEOUT_MS": "300",
    "WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "0.02",
}
"""Short timeouts and delays, so that outcomes of many attempts are among what is written."""

Daemon = subprocess.Popen[str]


class Disk:
    """A lossy file system: what survives of it is kept beside the folder it is mounted on."""

    def __init__(self, folder: Path) -> None:
        """Prepare an empty one in `folder`. Nothing is mounted yet."""
        self.mountpoint = folder / "mounted"
        self._surviving = folder / "surviving"
        self.mountpoint.mkdir()
        self._surviving.mkdir()

    @contextmanager
    def mounted(self, share: float = 0.0, seed: int = 0) -> Iterator[Daemon]:
        """Mount what has survived; in the end what was not synced is lost, if it was not `cut` before.

        `share` of the pages written go to the disk at once, drawn with `seed`. Where nothing may be mounted the test
        is skipped.
        """
        daemon = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.lossy", self.mountpoint, self._surviving, str(share), str(seed)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "FUSE_LIBRARY_NAME": "fuse3"},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert daemon.stdout is not None
        with daemon:
            said = daemon.stdout.readline()
            if said != "mounted\n":
                said += daemon.stdout.read()
                if "not permitted" in said:
                    pytest.skip(f"{NOT_ALLOWED}mounting a file system of our own")
                pytest.fail(said)
            try:
                yield daemon
            finally:
                cut(daemon)
                # Lazily: a test that fails may leave a service that has files open.
                subprocess.run(["fusermount3", "-u", "-z", self.mountpoint], check=True)
            assert daemon.stdout.read() == ""


def cut(daemon: Daemon) -> None:
    """Let the file system lose what it has not synced, and be gone."""
    daemon.kill()
    daemon.wait()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Return an empty lossy file system; where a machine knows none of its kind, the test is skipped."""
    if not shutil.which("fusermount3"):
        pytest.skip("there is no fusermount3: apt-get install fuse3")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError:
        pytest.skip(f"{NOT_ALLOWED}mounting a file system of our own")
    return Disk(tmp_path)


def write(path: Path, content: bytes, *, synced: bool = True) -> None:
    """Make `content` what a file holds, without its folder's being synced."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def contents(folder: Path) -> dict[str, bytes]:
    """Return what the files in a folder hold, by their names."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_of_a_file_what_was_synced_survives_and_nothing_else(disk: Disk) -> None:
    """Bytes and lengths are as they were when it was last synced."""
    folder = disk.mountpoint
    with disk.mounted():
        for name in ("grown", "changed", "shortened", "emptied", "never synced"):
            write(folder / name, name.encode() * 1000, synced=name != "never synced")
        sync_folder(folder)
        with (folder / "grown").open("ab") as file:
            file.write(b"more")
        with (folder / "changed").open("r+b") as file:
            file.write(b"CHANGED")
        os.truncate(folder / "shortened", 5)
        write(folder / "emptied", b"", synced=False)
        assert [len(contents(folder)[name]) for name in ("grown", "shortened", "emptied")] == [5004, 5, 0]
    with disk.mounted():
        found = contents(folder)
        assert found.pop("never synced") == b""
        assert found == {name: name.encode() * 1000 for name in ("grown", "changed", "shortened", "emptied")}
        with (folder / "grown").open("r+b") as file:
            file.truncate(3)
            file.truncate(4100)
            os.fsync(file.fileno())
    with disk.mounted():
        assert contents(folder)["grown"] == b"gro" + bytes(4097)


def test_names_survive_once_their_folder_was_synced(disk: Disk) -> None:
    """Until then a file that is new, renamed or removed is as if it were not, though its bytes were synced."""
    folder = disk.mountpoint
    with disk.mounted():
        for name in ("old", "removed"):
            write(folder / name, name.encode())
        sync_folder(folder)
        write(folder / "new", b"new")
        (folder / "new").replace(folder / "old")
        with (folder / "removed").open("rb") as file:
            (folder / "removed").unlink()
            assert file.read() == b"removed"
        write(folder / "nameless", b"nameless")
        assert contents(folder) == {"old": b"new", "nameless": b"nameless"}
    with disk.mounted():
        assert contents(folder) == {"old": b"old", "removed": b"removed"}
        write(folder / "new", b"2")
        (folder / "new").replace(folder / "old")
        with (folder / "removed").open("rb"):
            (folder / "removed").unlink()
            (folder / "other").hardlink_to(folder / "old")
            sync_folder(folder)
    with disk.mounted():
        assert contents(folder) == {"old": b"2", "other": b"2"}


def test_some_pages_go_to_the_disk_unasked(disk: Disk) -> None:
    """As many as were asked for, roughly, later ones without earlier ones."""
    with disk.mounted(share=0.5, seed=1):
        write(disk.mountpoint / "file", b"", synced=False)
        sync_folder(disk.mountpoint)
        write(disk.mountpoint / "file", b"x" * 4096 * 100, synced=False)
    with disk.mounted():
        found = (disk.mountpoint / "file").read_bytes()
        assert 20 < found.count(b"x" * 4096) < 80
        assert bytes(4096) in found


def test_what_one_process_maps_another_one_sees(disk: Disk) -> None:
    """As SQLite's `-shm` needs it; and what is flushed is on disk."""
    path = disk.mountpoint / "shared"
    writes = f"import mmap; file = open({str(path)!r}, 'r+b'); mmap.mmap(file.fileno(), 0)[5000:5003] = b'yes'"
    with disk.mounted():
        write(path, bytes(8192))
        sync_folder(disk.mountpoint)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            subprocess.run([sys.executable, "-c", writes], check=True)
            assert mapped[5000:5003] == b"yes"
            mapped[0:5] = b"early"
            mapped.flush()
            mapped[0:5] = b"later"
    with disk.mounted():
        assert path.read_bytes().strip(b"\0").startswith(b"early")
        assert path.read_bytes()[5000:5003] == b"yes"


async def test_what_got_a_202_survives_power_cuts_of_a_file_system_that_keeps_little(disk: Disk) -> None:
    """After each cut all that was answered or posted is there, and sound; in the end it has arrived."""
    assert not await faults_of_cuts(disk, CUTS)


@pytest.mark.parametrize("bug", ["syncs seldom", "answers early", "keeps the head first"])
async def test_the_cuts_find_a_planted_bug(disk: Disk, bug: str) -> None:
    """A service that breaks its promises is found out by the same cuts."""
    assert await faults_of_cuts(disk, MOST_CUTS, bug)


async def faults_of_cuts(disk: Disk, cuts: int, bug: str = "") -> list[str]:
    """Cut the power again and again, and return what is wrong with what the first cut that shows it has left.

    Every answer counts, however late it was read: a sync that this file system says is done is done.
    """
    rng = random.Random(SEED)
    load = Load(rng)
    async with Receiver(misbehaving(rng, 1.0)) as receiver:
        service = Service(disk.mountpoint, WEBHOOK_GLOBAL_URL=receiver.url, FAULT_BUG=bug, **TROUBLED)
        service.program = ["-m", "tests.faults.planted", "serve"]
        for number in range(cuts):
            with disk.mounted(SHARES[number % len(SHARES)], number) as daemon:
                if faults := await started(service, load, receiver):
                    return faults
                more, after_s = rng.randrange(20, 120), rng.uniform(0.0, 0.03)
                print(
                    f"cut {number} of seed {SEED}: {len(load.ledger.accepted)} accepted; {more} more, {after_s:.3f} s"
                )
                producing = asyncio.create_task(load.produce(service.address))
                await load.wait_for(len(load.ledger.accepted) + more)
                await asyncio.sleep(after_s)  # the moment is what is random here
                cut(daemon)
                await service.kill()
                await producing
        with disk.mounted():
            if faults := await started(service, load, receiver):
                return faults
            receiver.answer = lambda _arrival: 200
            await service.wait_until_settled()
            assert await service.stop() == 0
            await service.verify()
    return faults_of_delivery(load.ledger, receiver.arrivals, lambda _instance: True)


async def started(service: Service, load: Load, receiver: Receiver) -> list[str]:
    """Start the service and repeat what got no answer; if something is wrong with what is left, only say so."""
    known = [*load.ledger.accepted.values(), *(arrival.webhook_id for arrival in receiver.arrivals)]
    if known and (faults := await faults_of_file(service.database, known)):
        return faults
    await service.start()
    await load.repeat(service.address)
    return []


async def faults_of_file(database: Path, known: Iterable[str]) -> list[str]:
    """Return what is wrong with what a cut has left; `known` are the ids that were answered or posted."""
    try:
        there = stored(database)
    except sqlite3.DatabaseError as error:
        return [f"the file cannot be read: {error}"]
    faults = [f"{event_id} is not there" for event_id in known if event_id not in there]
    faults += [f"{event_id} has {count} deliveries" for event_id, count in there.items() if count != 1]
    async with open_inspector(database) as inspector:
        report = await inspector.verify(lambda _done, _all: None)
    return faults + [str(problem) for problem in report.problems]
