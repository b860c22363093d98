# ruff: noqa: T201 - pytest shows what a failed test printed: its cuts
"""Power cuts of a real file system: ext4 is shut down under the service, and its journal recovers it."""

import asyncio
import fcntl
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import NOT_ALLOWED
from tests.faults.load import Load
from tests.harness import Receiver, Service
from tests.logged import stored

CUTS = 6
SEED = 20_261_124
IMAGE_BYTES = 64 * 1024 * 1024
SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, which XFS brought up: what a power cut is to a file system."""

WITHOUT_THE_JOURNAL = 2
"""What is in memory is lost, the file system's own journal too."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a file with an empty ext4; to mount it takes root, so elsewhere the test is skipped."""
    if os.geteuid():
        pytest.skip(f"{NOT_ALLOWED}mounting a file as a file system")
    if not shutil.which("mkfs.ext4"):
        pytest.skip("there is no mkfs.ext4: apt-get install e2fsprogs")
    path = tmp_path / "ext4.img"
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", path], check=True)
    return path


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    """Mount the image on `folder`; where there are no loop devices the test is skipped."""
    if subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True).returncode:
        pytest.skip(f"{NOT_ALLOWED}mounting a file as a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def cut(folder: Path) -> None:
    """Let the file system on `folder` lose what it has not synced, and be gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", WITHOUT_THE_JOURNAL))
    finally:
        os.close(descriptor)


async def test_what_got_a_202_survives_power_cuts_of_a_real_file_system(image: Path, tmp_path: Path) -> None:
    """After each cut and the recovery of the file system every event that had its 202 is there, and all is sound."""
    assert not await lost(image, tmp_path, "")


async def test_the_cuts_find_a_service_that_syncs_seldom(image: Path, tmp_path: Path) -> None:
    """With the bug planted, events that got a 202 are gone."""
    assert await lost(image, tmp_path, "syncs seldom")


async def lost(image: Path, tmp_path: Path, bug: str) -> set[str]:
    """Cut the power again and again; return the ids of events that got a 202 and are gone."""
    folder = tmp_path / "disk"
    folder.mkdir()
    rng = random.Random(SEED)
    load = Load(rng)
    async with Receiver() as receiver:
        for number in range(CUTS):
            with mounted(image, folder):
                service = Service(folder / "outbox", WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=receiver.url)
                service.folder.mkdir(exist_ok=True)
                service.program = ["-m", "tests.faults.planted", "serve"]
                service.settings["FAULT_BUG"] = bug
                await service.start()
                producing = asyncio.create_task(load.produce(service.address))
                await load.wait_for(len(load.ledger.accepted) + 20 + rng.randrange(100))
                # A sync that the cut meets may still be called done: what is answered from here on proves nothing.
                known = set(load.ledger.accepted.values())
                cut(folder)
                await service.kill()
                await producing
            with mounted(image, folder):
                print(f"cut {number}: {len(known)} accepted")
                await service.verify()
                if gone := known - stored(service.database).keys():
                    return gone
    return set()
