"""The disk of a world: SQLite files whose connections run inline, fail as told, and die with their process."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio

from tests.world.loop import virtual_loop

_T = TypeVar("_T")
_KEPT = ("", "-wal", ".head")
"""The endings of the files that a killed process leaves behind and the next one reads."""


class KilledError(BaseException):
    """The process is dead: whoever gets this no longer exists."""


class Disk:
    """What a world's connections go by. It outlives processes; `Life` opens connections for one."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        self.rng = rng
        self.hop_s = 0.0002
        """The seconds that a function on a connection takes on average."""
        self.refuses = False
        """Whether writes are refused, as by a full disk."""
        self.failing_syncs = 0
        """How many of the next commits end with a failed sync; some of these are kept all the same."""

    def files(self) -> list[Path]:
        """Return the files that a process leaves behind."""
        return [self.path.with_name(self.path.name + ending) for ending in _KEPT]

    def freeze(self) -> Callable[[], None]:
        """Copy the files as they are at this instant; return what puts them back, once every connection is closed."""
        frozen = {path: path.with_name(path.name + ".frozen") for path in self.files() if path.exists()}
        for path, copy in frozen.items():
            shutil.copyfile(path, copy)

        def thaw() -> None:
            for path in [*self.files(), self.path.with_name(self.path.name + "-shm")]:
                path.unlink(missing_ok=True)
            for path, copy in frozen.items():
                copy.replace(path)

        return thaw


class _Connection(sqlite3.Connection):
    """A connection whose commits can fail at their sync. Nothing is really synced: here processes die, no machine."""

    disk: Disk

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.disk.failing_syncs:
            self._fail_sync()
        if sql == "PRAGMA synchronous = FULL":
            sql = "PRAGMA synchronous = OFF"
        return super().execute(sql, parameters)

    def _fail_sync(self) -> None:
        self.disk.failing_syncs -= 1
        super().execute("COMMIT" if self.disk.rng.random() < 0.5 else "ROLLBACK")
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error


class Mortality:
    """Whether a process lives. Connections ask before and after everything they do."""

    def __init__(self, die: Callable[[str], None]) -> None:
        self.dead = False
        self.hops_left: int | None = None
        """After how many functions on the writer's connection the process dies: after this many, exactly."""
        self._die = die

    def check(self) -> None:
        """Go no further if the process is dead."""
        if self.dead:
            raise KilledError

    def count(self) -> None:
        """Count a function on the writer's connection, and die if it was the one to die after."""
        if self.hops_left is not None:
            self.hops_left -= 1
            if self.hops_left <= 0:
                self.hops_left = None
                self._die("after a function on the writer's connection")
        self.check()


class InlineHopper:
    """Implements `Hopper` on the loop's own thread: a function runs in one piece, before or after a short wait.

    What it read may so be out of date when it is told, and what it wrote may be on disk with nobody told, as it is
    with a thread. Functions run in the order they came.
    """

    def __init__(self, connection: sqlite3.Connection, disk: Disk, mortality: Mortality, *, writing: bool) -> None:
        self._connection = connection
        self._disk = disk
        self._mortality = mortality
        self._writing = writing
        self._refusing = False
        self._free_at = 0.0

    async def run(self, function: Callable[..., _T], *args: object) -> _T:
        """See `Hopper.run`."""
        self._mortality.check()
        disk = self._disk
        started, ended = self._turn(disk.hop_s * (0.5 + disk.rng.random()))
        with anyio.CancelScope(shield=True):
            await _until(started if disk.rng.random() < 0.5 else ended)
            self._mortality.check()
            result = self._call(function, *args)
            await _until(ended)
            self._mortality.check()
        return result

    def _turn(self, takes_s: float) -> tuple[float, float]:
        """Return when a function that takes so long begins and ends if it comes now."""
        started = max(virtual_loop().time(), self._free_at)
        self._free_at = started + takes_s
        return started, self._free_at

    def _call(self, function: Callable[..., _T], *args: object) -> _T:
        if self._writing and self._refusing != self._disk.refuses:
            self._refusing = self._disk.refuses
            self._connection.execute(f"PRAGMA query_only = {int(self._refusing)}")
        try:
            return function(self._connection, *args)
        finally:
            if self._writing:
                self._mortality.count()

    async def aside(self, function: Callable[[], _T]) -> _T:
        """See `Hopper.aside`."""
        self._mortality.check()
        return function()

    def interrupt(self) -> None:
        """See `Hopper.interrupt`: here nothing runs while somebody could call this."""

    async def aclose(self) -> None:
        """See `Hopper.aclose`."""
        self._connection.close()


async def _until(at: float) -> None:
    left_s = at - virtual_loop().time()
    if left_s > 0:
        await anyio.sleep(left_s)


async def open_inline(uri: str, disk: Disk, mortality: Mortality) -> InlineHopper:
    """Open the connection that an SQLite URI names, for a process."""
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=256, factory=_Connection)
    connection.disk = disk
    return InlineHopper(connection, disk, mortality, writing="mode=rwc" in uri)
