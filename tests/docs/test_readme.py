import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Step, section, steps

README = ROOT / "README.md"
PATIENCE_S = 20
QUICK = {"WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "0.2", "WEBHOOK_RETRY_MAX_DELAY_SECONDS": "0.5"}
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(so: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait until something outside this process has become so."""
    deadline = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)


class Terminal:
    """A shell in which one block after the other is run; all that it shows is kept in a file."""

    def __init__(self, folder: Path, output: Path, environment: dict[str, str]) -> None:
        """Start a shell that gives up at the first command that fails."""
        self._output = output
        self._blocks = 0
        self.unread = 0
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                ["bash", "-euo", "pipefail"], cwd=folder, env=environment,
                stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def type(self, text: str) -> None:
        """Type a block, and wait for nothing."""
        assert self.process.stdin is not None
        self.unread = len(self.shown())
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def run(self, text: str) -> None:
        """Type a block and wait until it has ended; fail if one of its commands fails."""
        self._blocks += 1
        mark = f"== block {self._blocks} ended =="
        self.type(f"{text}\nprintf '\\n%s\\n' '{mark}'")
        wait_until(
            lambda: mark in self.shown() or self.process.poll() is not None, lambda: f"does not end: {self.shown()}"
        )
        assert mark in self.shown(), f"{text}\nfailed:\n{self.shown()[self.unread :]}"

    def shown(self) -> str:
        """Return all that it has shown so far."""
        return _ESCAPES.sub("", self._output.read_text(errors="replace"))

    def end(self, number: signal.Signals) -> None:
        """Send a signal to what runs in it, as Ctrl-C does, and see it end."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        self.wait()

    def wait(self) -> None:
        """See what runs in it end."""
        assert self.process.stdin is not None
        self.process.wait(PATIENCE_S)
        self.process.stdin.close()


class Walk:
    """A reader who does what the walk-through says, in a copy of the checkout, with ports that are free here."""

    def __init__(self, folder: Path) -> None:
        """Copy the checkout; its environment is the one that runs this test."""
        self._root = folder / "checkout"
        self._ports = {"8090": str(free_port()), "9000": str(free_port())}
        kept = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("OUTBOX_", "WEBHOOK_", "AUTHENTICATION_", "COV", "PYTHON"))
        }
        shown = {"OUTBOX_LOG_FORMAT": "console", "COLUMNS": "150", "LC_ALL": "C.UTF-8"}  # as on a wide terminal
        self._environment = kept | QUICK | shown | {"OUTBOX_PORT": self._ports["8090"]}
        self._terminals: dict[str, Terminal] = {}
        self._read: dict[str, int] = {}
        self._last = ""
        for name in ("app", "outbox", "scripts"):
            shutil.copytree(ROOT / name, self._root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for lock in ROOT.glob("requirements*.lock"):
            shutil.copy(lock, self._root)
        venv = self._root / ".venv"
        venv.mkdir()
        for name in ("bin", "lib", "pyvenv.cfg"):
            (venv / name).symlink_to(Path(sys.prefix) / name)
        stamp = "source scripts/lib/venv.sh && stamp runtime >.venv/.runtime"
        subprocess.run(["bash", "-euc", stamp], cwd=self._root, check=True)

    def follow(self, step: Step) -> None:
        """Do one step, or see what it says is to be seen."""
        text = self._with_ports(step.text)
        if step.what == "ctrl-c":
            self._terminals[step.terminal].end(signal.SIGINT)
        elif step.what == "text":
            self._see(step.terminal, text)
        elif step.terminal:
            self._start(step.terminal, re.sub(r"^scripts/sink$", f"scripts/sink --port {self._ports['9000']}", text))
        else:
            self._last = text
            self._terminal("").run(text)

    def _with_ports(self, text: str) -> str:
        for named, port in self._ports.items():
            text = text.replace(named, port)
        return text

    def _terminal(self, name: str) -> Terminal:
        if name not in self._terminals:
            output = self._root.parent / f"{name or 'reader'}-{len(self._read)}"
            self._read[name] = 0
            self._terminals[name] = Terminal(self._root, output, self._environment)
        return self._terminals[name]

    def _start(self, name: str, text: str) -> None:
        """Start what goes on running in a terminal of its own; what ran there before must have ended."""
        if name in self._terminals:
            self._terminals.pop(name).wait()
            del self._read[name]
        output = self._root.parent / f"{name}-{time.monotonic_ns()}"
        self._read[name] = 0
        self._terminals[name] = Terminal(self._root, output, self._environment)
        self._terminals[name].type(f"exec env {text.strip()}")

    def _see(self, name: str, expected: str) -> None:
        """Wait until a terminal shows the expected lines, in their order, after those that were expected before."""
        terminal = self._terminal(name)
        wanted = pattern(expected)
        if name:
            wait_until(
                lambda: wanted.search(terminal.shown(), self._read[name]) is not None,
                lambda: f"{expected}\nis not what {name} shows:\n{terminal.shown()[self._read[name] :]}",
            )
            found = wanted.search(terminal.shown(), self._read[name])
            assert found is not None
            self._read[name] = found.end()
            return
        # What is looked at changes: a reader who looks a moment too early looks again.
        deadline = time.monotonic() + PATIENCE_S
        while wanted.search(terminal.shown(), terminal.unread) is None:
            looking = all(line.startswith("scripts/outbox ") for line in self._last.splitlines())
            assert looking, f"{expected}\nis not what is shown:\n{terminal.shown()[terminal.unread :]}"
            assert time.monotonic() < deadline, f"{expected}\nis never shown:\n{terminal.shown()[terminal.unread :]}"
            terminal.run(self._last)

    def close(self) -> None:
        """End all that still runs."""
        for terminal in self._terminals.values():
            terminal.end(signal.SIGKILL)


def pattern(expected: str) -> re.Pattern[str]:
    """Return what finds the expected lines: `…` stands for anything, a line of its own for any lines."""
    lines = []
    for line in expected.splitlines():
        if line == "…":
            lines.append(r"(?:.*\n)*?")
            continue
        parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in re.sub(" +", " ", line).split("…")]
        lines.append(r"[^\n]*?".join(parts) + r"[^\n]*\n" if line.endswith("…") else r"[^\n]*?".join(parts) + r"\s*\n")
    return re.compile("^" + "".join(lines), re.MULTILINE)


@pytest.fixture
def walk(tmp_path: Path) -> Generator[Walk]:
    """A reader in a fresh checkout, who leaves nothing running behind."""
    walk = Walk(tmp_path)
    yield walk
    walk.close()


def test_the_walk_through_works_as_written(walk: Walk) -> None:
    """Every command of the README's walk-through does what the README says."""
    asked = list(steps(section(README, "## A walk-through")))
    assert {step.what for step in asked} == {"sh", "text", "ctrl-c"}
    for step in asked:
        walk.follow(step)


@pytest.mark.parametrize(
    ("expected", "shown", "same"),
    [
        ("a … c\n", "a b c\n", True),
        ("a  b\n", "a b \n", True),
        ("a\n", "ab\n", False),
        ("a…\n", "ab\n", True),
        ("…a\n", "x\nba\n", True),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\nb\n", "a\nx\nb\n", False),
    ],
)
def test_expected_output_is_compared_line_by_line(expected: str, shown: str, same: bool) -> None:  # noqa: FBT001
    """`…` stands for what varies, and nothing else may differ but the number of spaces."""
    assert (pattern(expected).search(shown) is not None) == same


def test_every_script_of_the_readme_exists() -> None:
    """No page names a script that is not there."""
    named = set(re.findall(r"scripts/[a-z]+", README.read_text()))
    assert named
    assert not [name for name in named if not os.access(ROOT / name, os.X_OK)]
