import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from tests.faults.disk import Disk
from tests.faults.spoiled import TROUBLES, Findings
from tests.harness import ROOT

STOPPING = {
    "a sync fails": {"OutcomeUnknownError"},
    "no sync works": {"OutcomeUnknownError"},
    # The second, if it is the first thing that the relay reads.
    "a read fails": {"DamagedFileError", "StoreRefusedError"},
}
"""What the engine may not go on after, and what it says then."""

FEW = {"no name can be changed", "nothing can be truncated", "nothing can be opened"}
"""Troubles for which a round of work has few occasions."""


async def findings(folder: Path, *program: str) -> Findings:
    """Run a program on a disk that can fail, and return what it has found."""
    (folder / "disk").mkdir()
    disk = Disk(folder / "disk", folder)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *program, cwd=ROOT,
        env={**os.environ, **disk.environment, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return msgspec.json.decode(output, type=Findings)


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_whichever_call_fails_nothing_is_lost_and_work_goes_on(trouble: str, tmp_path: Path) -> None:
    """What was taken is delivered, what was not can be sent again; only failed syncs and reads end the engine."""
    found = await findings(tmp_path, "tests.faults.spoiled", "work", trouble)
    assert not found.faults
    assert bool(found.ended) == (trouble in STOPPING), found
    assert set(found.ended) <= STOPPING.get(trouble, set()), found
    assert found.rounds > (1 if trouble in FEW else 5 if trouble in STOPPING else 30)
    assert found.refused > 0 or trouble in FEW or trouble in STOPPING


@pytest.mark.parametrize("what", ["start", "recover"])
@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_start_succeeds_or_fails_with_a_reason(what: str, trouble: str, tmp_path: Path) -> None:
    """Whichever call of a first start, or of one after a crash, fails: the next one finds everything."""
    found = await findings(tmp_path, "tests.faults.spoiled", what, trouble)
    assert not found.faults
    assert found.rounds > 2
    assert found.ended or trouble in FEW


async def test_a_death_at_any_call_loses_nothing(tmp_path: Path) -> None:
    """Killed as it begins to write, sync, truncate, open or rename, whichever call that is: the next life finds all."""
    found = await findings(tmp_path, "tests.faults.dying")
    assert not found.faults
    assert found.rounds > 50
