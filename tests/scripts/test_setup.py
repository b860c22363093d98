import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
STUB = """
import json, os, sys
import tiny

print(json.dumps({
    "tiny": tiny.version, "arguments": sys.argv[1:], "cwd": os.getcwd(), "pid": os.getpid(),
    "prefix": sys.prefix, "app": __file__,
}))
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of the scripts around a stub of the service that needs one tiny package: set up in seconds, offline."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> "Checkout":
        """Copy the scripts to a new folder."""
        shutil.copytree(PROJECT / "scripts", root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("app/__init__.py", "app/__main__.py"):
            path = root / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(STUB if "main" in name else "")
        checkout = cls(root)
        checkout.lock("1")
        return checkout

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def lock(self, version: str) -> None:
        """Ask for that version of the tiny package."""
        wheel = self.root / f"tiny-{version}-py3-none-any.whl"
        about = f"tiny-{version}.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("tiny.py", f"version = {version!r}")
            archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n")
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{about}/RECORD", f"tiny.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        (self.root / "requirements.lock").write_text(f"tiny @ {wheel.as_uri()} --hash=sha256:{digest}\n")

    def start(self, *arguments: str, script: Path | None = None, **settings: Any) -> "subprocess.Popen[str]":
        """Start scripts/serve, from another folder unless told where."""
        settings.setdefault("cwd", self.root.parent)
        settings["env"] = clean_environment() | settings.get("env", {})
        command: list[str | Path] = [script or self.root / "scripts" / "serve", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)

    def serve(self, *arguments: str, **settings: Any) -> "Ran":
        """Run scripts/serve to its end."""
        return Ran.finish(self.start(*arguments, **settings))


@dataclass(frozen=True)
class Ran:
    """A finished start: its exit code, what it wrote, and what the stub saw."""

    code: int
    stderr: str
    saw: dict[str, Any]
    pid: int

    @classmethod
    def finish(cls, process: "subprocess.Popen[str]") -> "Ran":
        """Wait for a start to end."""
        stdout, stderr = process.communicate(timeout=120)
        return cls(process.returncode, stderr, json.loads(stdout or "{}"), process.pid)


def clean_environment() -> dict[str, str]:
    """Build the environment of a person's shell: nothing of the running test, and no package index."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    return environment | {"PYTHON": sys.executable, "PIP_NO_INDEX": "1"}


def fake_python(folder: Path, *, body: str) -> str:
    """Write a program that passes for Python."""
    program = folder / "fake-python"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture(scope="module")
def first_starts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, list[Ran]]:
    """A checkout that was started twice at the same time. Its folder's name has a space, as people's folders do."""
    checkout = Checkout.make(tmp_path_factory.mktemp("setup") / "my outbox")
    both = [checkout.start(), checkout.start()]
    return checkout, [Ran.finish(process) for process in both]


@pytest.fixture(scope="module")
def ready(first_starts: tuple[Checkout, list[Ran]]) -> Checkout:
    """A checkout whose environment is there."""
    checkout, runs = first_starts
    assert [run.code for run in runs] == [0, 0], runs
    return checkout


@pytest.fixture
def fresh(tmp_path: Path) -> Checkout:
    """A checkout that was never started."""
    return Checkout.make(tmp_path / "outbox")


@pytest.fixture
def log_unchanged(ready: Checkout) -> Generator[None]:
    """Show that pip, whose words go to a log, has not run meanwhile."""
    log = ready.venv / "setup.log"
    before = log.stat().st_mtime_ns
    yield
    assert log.stat().st_mtime_ns == before


def test_first_starts_at_once_share_one_setup(first_starts: tuple[Checkout, list[Ran]]) -> None:
    """Of two first starts at the same time one sets up and says so, the other waits for it; both run."""
    _, runs = first_starts
    assert [(run.code, run.saw["tiny"]) for run in runs] == [(0, "1"), (0, "1")]
    said = [run.stderr for run in runs]
    assert said.count("serve: setting up .venv (first run, about a minute)\n") == 1
    assert {"", "serve: waiting for another start that sets up .venv\n"} & set(said)


@pytest.mark.usefixtures("log_unchanged")
def test_second_start_installs_nothing(ready: Checkout) -> None:
    """Once .venv is there a start says nothing and runs no pip; the started process becomes the service."""
    run = ready.serve("--port", "1 2")
    assert (run.code, run.stderr) == (0, "")
    assert run.saw["arguments"] == ["serve", "--port", "1 2"]
    assert run.saw["pid"] == run.pid
    assert run.saw["prefix"] == str(ready.venv)


@pytest.mark.usefixtures("log_unchanged")
def test_starts_from_anywhere(ready: Checkout, tmp_path: Path) -> None:
    """The caller's folder stays the working directory; its own app and tiny do not stand in for ours."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text("raise SystemExit('the wrong app')")
    (tmp_path / "tiny.py").write_text("version = 'the wrong one'")
    run = ready.serve(cwd=tmp_path)
    assert (run.code, run.saw["cwd"], run.saw["tiny"]) == (0, str(tmp_path), "1")
    assert run.saw["app"] == str(ready.root / "app" / "__main__.py")


@pytest.mark.usefixtures("log_unchanged")
def test_starts_through_links(ready: Checkout, tmp_path: Path) -> None:
    """A symbolic link to a script, or to the whole checkout, finds the project."""
    (tmp_path / "outbox-serve").symlink_to(ready.root / "scripts" / "serve")
    (tmp_path / "linked").symlink_to(ready.root)
    for script in (tmp_path / "outbox-serve", tmp_path / "linked" / "scripts" / "serve"):
        run = ready.serve(script=script)
        assert (run.code, run.stderr) == (0, "")


def test_changed_lock_is_installed(ready: Checkout) -> None:
    """A lock newer than .venv is installed into it before the service starts."""
    ready.lock("2")
    run = ready.serve()
    assert run.stderr == "serve: bringing .venv up to date with its lock\n"
    assert run.saw["tiny"] == "2"
    assert ready.serve().stderr == ""


def test_failed_install_shows_why_and_is_repaired(ready: Checkout) -> None:
    """When pip fails its words are shown and nothing starts; the half-made .venv is built again from nothing."""
    lock = ready.root / "requirements.lock"
    good = lock.read_text()
    lock.write_text(good.replace("sha256:", "sha256:0")[:-2] + "\n")
    failed = ready.serve()
    assert (failed.code, failed.saw) == (1, {})
    assert "DO NOT MATCH THE HASHES" in failed.stderr
    assert failed.stderr.endswith("serve: pip could not install the locked packages, see above\n")
    lock.write_text(good)
    (ready.venv / "bin" / "python").unlink()
    repaired = ready.serve()
    assert (repaired.code, repaired.stderr) == (0, "serve: setting up .venv (first run, about a minute)\n")
    assert ready.serve().stderr == ""


def test_moved_checkout_is_set_up_again(ready: Checkout, tmp_path: Path) -> None:
    """A .venv that came along with a copied or moved folder, or whose Python is gone, is built again."""
    moved = Checkout(tmp_path / "moved")
    shutil.copytree(ready.root, moved.root, symlinks=True)
    (moved.venv / "bin" / "python").unlink()
    (moved.venv / "bin" / "python").symlink_to("/gone/python3")
    run = moved.serve()
    assert run.code == 0, run.stderr
    assert run.saw["prefix"] == str(moved.venv)


def test_missing_venv_module_names_the_cure(fresh: Checkout, tmp_path: Path) -> None:
    """A Python without venv, as Debian ships it, ends the start with 1 and the command that helps."""
    body = f'case "$2" in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"'
    run = fresh.serve(env={"PYTHON": fake_python(tmp_path, body=body)})
    assert run.code == 1
    assert "has no venv module; on Debian and Ubuntu: apt install python3-venv" in run.stderr


@pytest.mark.parametrize("python", ["/gone/python3", "false"])
def test_unfit_python_is_named(fresh: Checkout, python: str) -> None:
    """A PYTHON that is missing or too old ends the start with 1 and its name."""
    run = fresh.serve(env={"PYTHON": python})
    assert (run.code, run.stderr) == (1, f"serve: PYTHON={python} is no Python 3.11 or newer\n")


def test_no_python_at_all(fresh: Checkout, tmp_path: Path) -> None:
    """Without any Python the message says what is needed and how to name one."""
    for tool in ("bash", "basename", "cat", "dirname", "flock", "mkdir", "readlink", "sha256sum"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    run = fresh.serve(env={"PYTHON": "", "PATH": str(tmp_path)})
    assert run.code == 1
    assert "needs Python 3.11 or newer, found none" in run.stderr


def test_touches_only_the_venv(ready: Checkout) -> None:
    """Setting up leaves nothing beside .venv (Python's own caches aside)."""
    wheels = {path.name for path in ready.root.glob("*.whl")}
    assert {path.name for path in ready.root.iterdir()} - wheels == {"app", "scripts", "requirements.lock", ".venv"}
