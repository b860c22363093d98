import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def test_runtime_lock_is_all_the_service_needs(tmp_path: Path) -> None:
    """A copy of the project with nothing but the runtime lock installed starts every script."""
    copy = tmp_path / "copy"
    unwanted = shutil.ignore_patterns(".venv", ".git", "data", "__pycache__", ".env")
    shutil.copytree(PROJECT, copy, ignore=unwanted)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    for script in ("serve", "outbox", "sink"):
        run = subprocess.run(
            [copy / "scripts" / script, "--help"],
            cwd=tmp_path,
            env=environment | {"PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert "Usage:" in run.stdout


def test_development_lock_extends_the_runtime_lock() -> None:
    """Every version of the runtime lock stands in the development lock too."""
    assert pins("requirements.lock") <= pins("requirements-dev.lock")


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_locks_name_no_index(lock: str) -> None:
    """A lock pins names, versions and hashes; where packages come from is the affair of who installs."""
    lines = (PROJECT / lock).read_text().splitlines()
    assert not [line for line in lines if "://" in line or "index-url" in line or "find-links" in line]


def pins(lock: str) -> set[str]:
    """Read the pinned packages of a lock."""
    lines = (PROJECT / lock).read_text().splitlines()
    return {line.rstrip(" \\") for line in lines if "==" in line and not line.startswith((" ", "#"))}
