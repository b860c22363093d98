# ruff: noqa: T201 - pytest shows what a failed test printed: its seed, its cuts
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.judging import judge
from tests.faults.recording import Accepted, Recording, read_recording
from tests.faults.replaying import Cutter, Loss
from tests.faults.workloads import WORKLOADS, Scene, scene

SEED = 20_261_123
CUTS = {"first start": 80, "ingest": 110, "relay": 110, "restarts": 180, "replay": 50, "prune": 50}
"""How many moments of each workload the power is cut at; each in the four ways of `Loss`."""

RECORDINGS = 3
"""How often a workload with a planted bug is recorded: what a service writes in one go depends on the machine."""

PLANTED = [
    ("answers early", "first start", ["got a 202 and is not there"]),
    ("syncs seldom", "ingest", ["got a 202 and is not there"]),
    ("syncs seldom", "relay", ["and the one before is not on record", "an earlier one of its chat is not settled"]),
    ("keeps the head first", "ingest", ["but the head file remembers record"]),
    ("trusts what it finds", "restarts", ["and is not there"]),
    ("syncs seldom", "replay", ["and no replay of it is on record"]),
    ("prunes before it says so", "prune", ["got a 202 and is not there", "it is stored, but not what the log says"]),
    ("prunes what is young", "prune", ["got a 202 and is not there"]),
]
"""Bugs, the workload that brings each to light, and faults that they lead to."""


@pytest.fixture
def state() -> Iterator[Path]:
    """A folder for what a cut leaves: in memory where that is possible, since nothing here need survive a cut."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder) / "state"


def moments(recording: Recording, count: int, rng: random.Random) -> list[int]:
    """Return entries to cut after: where something was just said, above all after a start, and anywhere."""
    said = sorted({one.at for one in recording.said})
    starts = [entry.at for entry in recording.entries if entry.kind == "X"]
    first = [at for start in starts for at in [at for at in said if at > start][:10]]
    points = {*rng.sample(first, min(count // 3, len(first))), *rng.sample(said, min(count // 3, len(said)))}
    others = [entry.at for entry in recording.entries if entry.at not in points]
    return sorted([*points, *rng.sample(others, count - len(points))])


def faults_of_cuts(here: Scene, recording: Recording, cuts: int, state: Path) -> Iterator[str]:
    """Cut the power here and there, and yield what is wrong with what that leaves."""
    rng = random.Random(SEED)
    points = moments(recording, cuts, rng)
    cutter = Cutter()
    followed = 0
    for point in points:
        for entry in recording.entries[followed : point + 1]:
            cutter.follow(entry)
        followed = point + 1
        promised = here.promised([one for one in recording.said if one.at <= point])
        for loss in Loss:
            shutil.rmtree(state, ignore_errors=True)
            state.mkdir()
            cutter.cut(loss, rng, state)
            for fault in judge(state, here.database, promised):
                yield f"cut after entry {point} of {len(recording.entries)}, {loss.value}: {fault}"


async def recorded(workload: str, tmp_path: Path, bug: str = "") -> tuple[Scene, Recording]:
    """Put the service through a workload, perhaps with a bug planted; return what was recorded."""
    folder = tmp_path / "disk"
    folder.mkdir()
    async with scene(folder, tmp_path, random.Random(SEED), bug) as here:
        await WORKLOADS[workload](here)
    print(f"seed {SEED}, recorded in {here.disk.log}")
    recording = read_recording(here.disk.log)
    # The recording would be worth nothing if answers went past it.
    assert here.heard <= {event_id for one in recording.said if isinstance(one, Accepted) for event_id in one.ids}
    assert here.heard
    return here, recording


@pytest.mark.parametrize("workload", WORKLOADS)
async def test_a_power_cut_at_any_moment_loses_nothing(workload: str, tmp_path: Path, state: Path) -> None:
    """Whatever is left of the unsynced: what was answered is there, what was posted on record, the file is sound."""
    here, recording = await recorded(workload, tmp_path)
    faults = list(faults_of_cuts(here, recording, CUTS[workload], state))
    assert not faults, "\n".join(faults[:20])


@pytest.mark.parametrize(("bug", "workload", "expected"), PLANTED)
async def test_the_cuts_find_a_planted_bug(
    bug: str, workload: str, expected: list[str], tmp_path: Path, state: Path
) -> None:
    """A service that breaks its promises is found out by the same cuts, if not in one recording then in the next."""
    for number in range(RECORDINGS):
        folder = tmp_path / str(number)
        folder.mkdir()
        here, recording = await recorded(workload, folder, bug)
        for fault in faults_of_cuts(here, recording, CUTS[workload], state):
            expected = [words for words in expected if words not in fault]
            if not expected:
                return
    assert not expected
