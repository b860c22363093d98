import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from tests.faults.dies_copying import Findings
from tests.faults.disk import Disk
from tests.harness import ROOT


@pytest.mark.parametrize("what", ["backup", "restore", "damaged", "upgrade"])
async def test_killed_at_any_call_it_leaves_nothing_that_only_looks_whole(what: str, tmp_path: Path) -> None:
    """A backup has its name once it is whole; a restore, or a migration, has happened or not, and can be done again."""
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk", tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.dies_copying", what, cwd=ROOT,
        env={**os.environ, **disk.environment, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    found = msgspec.json.decode(output, type=Findings)
    assert not found.faults
    assert found.status == 0
    assert found.deaths > 15
    assert found.new
    assert found.none if what == "backup" else found.old
