"""Connections: one function runs in one hop of a connection's own thread; SQLite's errors become ours."""

import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import aiosqlite
import anyio

from outbox.domain.errors import CannotStartError, DamagedFileError, OutboxError, StoreRefusedError
from outbox.store.sqlite.files import renew

APPLICATION_ID = 0x45764F42  # "EvOB", in the file's header
MINIMUM_SQLITE = (3, 37, 0)  # STRICT tables

_MIGRATIONS = Path(__file__).parent.parent / "sql" / "sqlite"
_ROWS_AT_ONCE = 512
_ROUND = 32
_COPIED_BYTES = 65_536
_LARGE_BYTES = 1024 * 1024
_DAMAGED = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})

_T = TypeVar("_T")
Row = tuple[Any, ...]


class Hopper(Protocol):
    """A connection whose only use is to run whole functions, each in one hop off the event loop."""

    async def run(self, function: Callable[..., _T], *args: object) -> _T:
        """Run `function(connection, *args)`, one after another; once begun it ends, whatever is cancelled here."""

    async def aside(self, function: Callable[[], _T]) -> _T:
        """Run a function that blocks but needs no connection, beside those that do."""

    def interrupt(self) -> None:
        """Make the statement that runs at this moment, if one does, fail with SQLITE_INTERRUPT."""

    async def aclose(self) -> None:
        """Close the connection."""


Opener = Callable[[str], Awaitable[Hopper]]
"""Opens the connection that an SQLite URI names, without a transaction. Raises sqlite3.Error."""


class ThreadHopper:
    """A connection with a thread of its own."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        """Take over an open connection."""
        self._connection = connection

    async def run(self, function: Callable[..., _T], *args: object) -> _T:
        """See `Hopper.run`.

        aiosqlite has no public call for this; the private one is used here only, and its version is pinned.
        """
        with anyio.CancelScope(shield=True):
            # The sqlite3 connection is passed inside the thread: it may not be touched from this one.
            execute: Callable[..., Awaitable[_T]] = self._connection._execute  # noqa: SLF001
            result = await execute(lambda: function(self._connection._conn, *args))  # noqa: SLF001
        return result  # noqa: RET504 - inside the scope, which might swallow an error, a return may not be reached

    async def aside(self, function: Callable[[], _T]) -> _T:
        """See `Hopper.aside`."""
        return await anyio.to_thread.run_sync(function)

    def interrupt(self) -> None:
        """See `Hopper.interrupt`; this alone may be called from any thread."""
        self._connection._conn.interrupt()  # noqa: SLF001

    async def aclose(self) -> None:
        """Close the connection and end its thread."""
        with anyio.CancelScope(shield=True):
            await self._connection.close()


async def open_thread(uri: str) -> Hopper:
    """Open a connection with a thread of its own: the `Opener` of a service."""
    return ThreadHopper(await aiosqlite.connect(uri, uri=True, isolation_level=None, cached_statements=256))


async def connect(path: Path, *, writing: bool, opener: Opener = open_thread) -> Hopper:
    """Open `path` for the one writer, or read-only. Raises CannotStartError."""
    if writing:
        _prepare(path)
    uri = f"file:{quote(str(path))}?mode={'rwc' if writing else 'ro'}"
    try:
        hopper = await opener(uri)
    except sqlite3.Error as error:
        msg = f"cannot open the database {path}: {error}"
        raise CannotStartError(msg) from error
    try:
        await hopper.run(_configure_writer if writing else _configure_reader)
    except sqlite3.Error as error:
        await hopper.aclose()
        msg = f"cannot open the database {path}: {error}"
        raise CannotStartError(msg) from error
    except BaseException:
        await hopper.aclose()
        raise
    return hopper


def _prepare(path: Path) -> None:
    """Create the file for its owner alone, or settle what a process before us has left unsynced."""
    try:
        # It holds payloads and credentials. SQLite's other files take its mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        renew(path.with_name(path.name + "-wal"))
    except OSError as error:
        msg = f"cannot open the database {path}: {error.strerror}"
        raise CannotStartError(msg) from error


def _configure_writer(connection: sqlite3.Connection) -> None:
    if sqlite3.sqlite_version_info < MINIMUM_SQLITE:
        msg = f"SQLite {sqlite3.sqlite_version} is too old: at least 3.37 is needed"
        raise CannotStartError(msg)
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and application != APPLICATION_ID:
        msg = "the file is a database of something else"
        raise CannotStartError(msg)
    if not tables:
        # Space is given back in small steps, where a whole VACUUM would hold everybody up. To a file that is not new
        # this would be a write that achieves nothing, and on a full disk no start.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    # Checkpoints are run between commits, never inside one.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    # What is erased (credentials that were replaced) must not stay readable in free pages.
    connection.execute("PRAGMA secure_delete = FAST")
    connection.execute("PRAGMA cache_size = -65536")
    connection.execute("PRAGMA foreign_keys = OFF")
    migrate(connection)


def _configure_reader(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only = ON")
    check_ours(connection)
    scripts, version = _versions(connection)
    if version < len(scripts):
        msg = (
            f"the file was written by an earlier release (schema {version}, this one reads {len(scripts)}):"
            " start the service once, it brings the file up to date"
        )
        raise CannotStartError(msg)


def check_ours(connection: sqlite3.Connection) -> None:
    """Raise CannotStartError if the file is a database of something else."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        msg = "the file is not an outbox"
        raise CannotStartError(msg)


def _versions(connection: sqlite3.Connection) -> tuple[list[Path], int]:
    """Return the scripts of all migrations, and how many of them the file has. Raises CannotStartError."""
    scripts = sorted(_MIGRATIONS.glob("*.sql"))
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(scripts):
        msg = f"the file was written by a newer release (schema {version}, this one knows {len(scripts)})"
        raise CannotStartError(msg)
    return scripts, version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date, each numbered migration in a transaction of its own. Raises CannotStartError."""
    scripts, version = _versions(connection)
    for number, script in enumerate(scripts[version:], start=version + 1):
        # executescript() would commit a transaction of ours, so the script brings its own.
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script.read_text()}\n"
            f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {number};\nCOMMIT;"
        )


def insert(
    connection: sqlite3.Connection,
    statement: str,
    rows: Sequence[Row],
    tail: str = "",
    *,
    blobs: Sequence[int] = (),
) -> None:
    """Run `statement` (ending in VALUES) for `rows`, many rows in each step; `blobs` are the columns that hold bytes.

    A step runs without Python's global lock. `executemany` takes and gives it back for every row, and each time the
    writer's thread waits for the busy event loop, or the event loop for it.
    """
    done = 0
    for size in _steps(len(rows)):
        width = len(rows[0])
        values: list[Any] = flat(rows[done : done + size])
        for column in blobs:
            # bytes, unlike bytearray, are first offered to sqlite3's adapters, which costs more than the insert.
            values[column::width] = map(_bound, values[column::width])
        connection.execute(_many(statement, size, width, tail), values)
        done += size


def _steps(count: int) -> list[int]:
    """Split rows into few steps of few different sizes: each size is a statement that stays prepared."""
    whole, rest = divmod(count, _ROWS_AT_ONCE)
    units = rest % _ROUND
    return [_ROWS_AT_ONCE] * whole + [size for size in (rest - units, units) if size]


def _bound(value: bytes) -> bytes | bytearray:
    return bytearray(value) if len(value) < _COPIED_BYTES else value


def insert_bodies(connection: sqlite3.Connection, rows: Sequence[tuple[int, bytes]]) -> None:
    """Insert rows of the table `body`.

    SQLite copies what is bound to a statement twice, and a cached statement keeps its copy until it is used again: a
    large body is written piece by piece instead, and so is in memory once.
    """
    insert(
        connection,
        "INSERT INTO body (event, body) VALUES",
        [row for row in rows if len(row[1]) < _LARGE_BYTES],
        blobs=(1,),
    )
    for event, body in rows:
        if len(body) >= _LARGE_BYTES:
            connection.execute("INSERT INTO body (event, body) VALUES (?, zeroblob(?))", (event, len(body)))
            with connection.blobopen("body", "body", event) as blob:
                for start in range(0, len(body), _LARGE_BYTES):
                    blob.write(body[start : start + _LARGE_BYTES])


@lru_cache(maxsize=256)
def _many(statement: str, count: int, width: int, tail: str) -> str:
    return f"{statement} {groups(count, width)} {tail}"


def groups(count: int, width: int = 0) -> str:
    """Return `count` comma-separated parameter marks, or groups of `width` of them."""
    return ",".join(["(" + ",".join("?" * width) + ")" if width else "?"] * count)


def flat(rows: Iterable[Iterable[object]]) -> list[object]:
    """Return the parameters of several groups as one list."""
    return list(chain.from_iterable(rows))


def translated(error: sqlite3.Error) -> OutboxError:
    """Return the error of ours that says what a caller does about SQLite's `error`."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(tuple(_DAMAGED)):
        return DamagedFileError(f"the database file is damaged ({error}): run verify, restore a backup")
    return StoreRefusedError(f"the database refuses writes ({error})", retry_after_s=5)
