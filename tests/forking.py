"""Processes of the service that start at once, since `tests.forker` has imported it for all of them."""

import asyncio
import atexit
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Protocol

import msgspec

from tests.forker import Request

ROOT = Path(__file__).resolve().parent.parent


class Process(Protocol):
    """What tests need of a process; `asyncio.subprocess.Process` has it too."""

    stdout: asyncio.StreamReader | None
    stderr: asyncio.StreamReader | None

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, or the number of the signal that ended it, negative; None while it runs."""

    async def wait(self) -> int:
        """Return that once it has ended."""

    def send_signal(self, signal: int) -> None:
        """Send it a signal."""

    def kill(self) -> None:
        """End it as a crash would."""


class Forked:
    """A process that was forked off."""

    def __init__(self, report: IO[bytes], stdout: asyncio.StreamReader, stderr: asyncio.StreamReader) -> None:
        """Read its number, and its status later, from `report`."""
        self.stdout: asyncio.StreamReader | None = stdout
        self.stderr: asyncio.StreamReader | None = stderr
        number = report.readline()
        assert number, "the forker has ended: its standard error says why"
        self.pid = int(number)
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._report = report
        asyncio.get_running_loop().add_reader(report, self._note)

    def _note(self) -> None:
        asyncio.get_running_loop().remove_reader(self._report)
        with self._report:
            self.returncode = int(self._report.readline())
        self._ended.set()

    async def wait(self) -> int:
        """Return its status once it has ended."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signal: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):  # it has, and the news is on its way
                os.kill(self.pid, signal)

    def kill(self) -> None:
        """End it as a crash would."""
        self.send_signal(signal.SIGKILL)


async def fork(arguments: list[str], folder: Path, environment: dict[str, str]) -> Forked:
    """Run `python` with such arguments, the first being -m, as a process of its own."""
    request = msgspec.json.encode(Request(arguments, str(folder), environment))
    pipes = [os.pipe() for _ in range(3)]
    try:
        socket.send_fds(_forker(), [request], [writing for _, writing in pipes])
    finally:
        for _, writing in pipes:
            os.close(writing)
    report, stdout, stderr = (os.fdopen(reading, "rb") for reading, _ in pipes)
    return Forked(report, await _stream(stdout), await _stream(stderr))


async def _stream(file: IO[bytes]) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    return reader


@cache
def _forker() -> socket.socket:
    """Start the forker of this process and return the socket it is asked over; without that it ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # A session of its own: Ctrl-C is for the tests, which end what they have started.
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forker", str(theirs.fileno())],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, pass_fds=[theirs.fileno()], start_new_session=True,
    )  # fmt: skip
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours
