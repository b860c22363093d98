import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "requirements-dev.lock"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, whose environment has the packages of the runtime lock and nothing else.

    They are those that are installed here, from the development lock; that it has the same ones has a test of its own.
    """
    copy = tmp_path_factory.mktemp("locks") / "copy"
    unwanted = shutil.ignore_patterns(".venv", ".git", "data", "__pycache__", ".env")
    shutil.copytree(PROJECT, copy, ignore=unwanted)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", copy / ".venv"], check=True)
    (packages,) = (copy / ".venv" / "lib").glob("python*/site-packages")
    for requirement in entries("requirements.lock"):
        link(requirement, packages)
    stamp = "source scripts/lib/venv.sh && stamp runtime >.venv/.runtime"
    subprocess.run(["bash", "-euc", stamp], cwd=copy, check=True)
    return copy


def link(requirement: str, packages: Path) -> None:
    """Have another environment's `packages` hold what is installed here of a requirement."""
    try:
        found = distribution(requirement.partition("==")[0])
    except PackageNotFoundError:
        assert "sys_platform == 'win32'" in requirement
        return
    for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        (packages / name).symlink_to(Path(str(found.locate_file(name))))


@pytest.mark.parametrize("script", ["serve", "outbox", "sink"])
def test_runtime_lock_is_all_the_service_needs(copy: Path, script: str) -> None:
    """With nothing but the packages of the runtime lock, every script starts, and finds nothing to install."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    run = subprocess.run(
        [copy / "scripts" / script, "--help"],
        cwd=copy.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "Usage:" in run.stdout


def test_development_lock_extends_the_runtime_lock() -> None:
    """Every version of the runtime lock stands in the development lock too, for the same systems, with its hashes."""
    development = entries("requirements-dev.lock")
    differing = {name for name, hashes in entries("requirements.lock").items() if development.get(name) != hashes}
    assert differing == set()


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_of_a_lock_has_hashes(lock: str) -> None:
    """No entry of a lock may be filled by whatever an index offers under its name."""
    assert [name for name, hashes in entries(lock).items() if not hashes] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_no_index(lock: str) -> None:
    """A lock pins names, versions and hashes; where packages come from is the affair of who installs."""
    lines = (PROJECT / lock).read_text().splitlines()
    assert not [line for line in lines if "://" in line or "index-url" in line or "find-links" in line]


def entries(lock: str) -> dict[str, set[str]]:
    """Return the requirements of a lock, `name==version` and for which systems, with their hashes."""
    found: dict[str, set[str]] = {}
    last = ""
    for line in (PROJECT / lock).read_text().splitlines():
        text = line.strip().removesuffix("\\").strip()
        if text.startswith("--hash="):
            found[last].add(text)
        elif text and not text.startswith("#"):
            last = text
            assert "==" in text
            found[last] = set()
    return found
