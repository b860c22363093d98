"""The one writer of a SQLite file."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import anyio
import structlog

from outbox.domain.deliveries import State
from outbox.domain.errors import CannotStartError, DamagedFileError, OutboxError, OutcomeUnknownError
from outbox.folders import make_folder
from outbox.store.protocol import Batch, Decide, Head, Wants
from outbox.store.sqlite.checkpoints import FRAMES, Checkpoints, in_doubt
from outbox.store.sqlite.connections import (
    Hopper,
    Opener,
    connect,
    groups,
    insert,
    insert_bodies,
    open_thread,
    translated,
)
from outbox.store.sqlite.facts import find_facts
from outbox.store.sqlite.files import FileLock, HeadFile
from outbox.store.sqlite.projections import fold_log, take_away, write_changes
from outbox.store.sqlite.reading import SqliteReader, open_reader, read_head

_HEAD_INTERVAL_S = 1.0
_PAGE_BYTES = 4096
_SHRUNK_PAGES = 64

_log = structlog.get_logger("store")


async def open_store(path: Path, opener: Opener = open_thread) -> "SqliteStore":
    """Take the file's lock, open it, bring its schema up to date. Raises CannotStartError."""
    try:
        make_folder(path.parent)
    except OSError as error:
        msg = f"cannot create the directory {path.parent}: {error.strerror}"
        raise CannotStartError(msg) from error
    lock = FileLock(path)
    lock.take()
    try:
        return SqliteStore(path, await connect(path, writing=True, opener=opener), lock, opener)
    except BaseException:
        lock.release()
        raise


class SqliteStore:
    """Implements `Store` on one SQLite file that this process owns."""

    def __init__(self, path: Path, writer: Hopper, lock: FileLock, opener: Opener) -> None:
        """Take over an open connection and the lock; `open_store` is the way to make one."""
        self.path = path
        self._opener = opener
        self._writer = writer
        self._lock = lock
        self._checkpoints = Checkpoints(writer)
        self._head = Head()
        self._known: Head | None = None
        self._head_file = HeadFile(path)
        self._head_moved = anyio.Event()
        self.unchecked = lock.left_open
        """See `Store.unchecked`."""

    async def commit(self, wants: Wants, decide: Decide, written: Callable[[], None] | None = None) -> Head:
        """See `Store.commit`."""
        try:
            self._head = await self._writer.run(self._commit, wants, decide, written)
        except (OutcomeUnknownError, DamagedFileError):
            self.unchecked = True
            raise
        self._head_moved.set()
        self._checkpoints.look()
        return self._head

    @property
    def unmoved_bytes(self) -> int:
        """See `Store.unmoved_bytes`."""
        return self._checkpoints.unmoved_bytes

    @property
    def warning(self) -> str:
        """See `Store.warning`."""
        return self._checkpoints.warning

    def settle(self) -> None:
        """See `Store.settle`."""
        self.unchecked = False

    def _doubt(self, error: OutboxError) -> None:
        """End the service for something that nobody else would end it for."""
        self.unchecked = True
        self._checkpoints.doubt(error)

    async def run(self) -> None:
        """See `Store.run`."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._checkpoints.run)
            tasks.start_soon(self._keep_head)

    async def _keep_head(self) -> None:
        while True:
            await self._head_moved.wait()
            self._head_moved = anyio.Event()
            if not await self._writer.aside(self._write_head):
                self._head_moved.set()
            await anyio.sleep(_HEAD_INTERVAL_S)

    def _write_head(self) -> bool:
        """Keep the head; say whether that worked. A full disk is no reason to stop delivering."""
        try:
            self._head_file.write(self._head)
        except OSError as error:
            _log.warning("head.not_kept", file=str(self._head_file.path), reason=error.strerror)
            return False
        return True

    async def prove(self) -> None:
        """See `Store.prove`."""
        await self._writer.run(self._prove)

    async def rebuild(self) -> int:
        """See `Store.rebuild`."""
        try:
            folded = await self._writer.run(self._rebuild)
        except OutcomeUnknownError as error:
            self._doubt(error)
            raise
        self._checkpoints.look()
        return folded

    async def shrink(self) -> None:
        """See `Store.shrink`."""
        while await self._writer.run(self._shrink):
            self._checkpoints.look()

    async def reader(self) -> SqliteReader:
        """Return a reader with a read-only connection of its own."""
        return await open_reader(self.path, self._opener, self._doubt)

    async def aclose(self) -> None:
        """Checkpoint, close, give the lock back."""
        orderly = False
        try:
            await self._checkpoints.move_all()
            if self._head.seq:
                self._write_head()
            orderly = not self.unchecked
        finally:
            try:
                await self._writer.aclose()
            finally:
                self._lock.release(orderly=orderly)

    def _commit(
        self, connection: sqlite3.Connection, wants: Wants, decide: Decide, written: Callable[[], None] | None
    ) -> Head:
        try:
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.total_changes
            # Nobody else may write; if somebody did, the next seq would be there already, and the commit would fail.
            head, self._known = self._known or read_head(connection), None
            batch = decide(find_facts(connection, wants, head))
            _write(connection, batch)
            if batch.log:
                head = Head(batch.log[-1].seq, batch.log[-1].digest)
            if written is not None:
                written()
        except sqlite3.Error as error:
            _roll_back(connection)
            raise translated(error) from error
        except BaseException:
            _roll_back(connection)
            raise
        self._end(connection)
        self._checkpoints.wrote(_frames(batch, connection.total_changes - rows))
        self._known = head
        return head

    def _end(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(connection)
            raise _doubted(error) from error

    def _prove(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute(f"PRAGMA user_version = {version}")  # writes a page, even if it says what it said
        except sqlite3.Error as error:
            _roll_back(connection)
            raise translated(error) from error
        self._end(connection)

    def _shrink(self, connection: sqlite3.Connection) -> bool:
        """Give some free pages back; say whether it may go on."""
        (before,) = connection.execute("PRAGMA freelist_count").fetchone()
        if not before:
            return False
        try:
            # As a script, since the pragma takes a step for each page, and execute() takes one only.
            connection.executescript(f"BEGIN IMMEDIATE; PRAGMA incremental_vacuum({_SHRUNK_PAGES}); COMMIT")
        except sqlite3.Error as error:
            _roll_back(connection)
            raise _doubted(error) from error
        (left,) = connection.execute("PRAGMA freelist_count").fetchone()
        self._checkpoints.wrote(2 * (before - left))
        return bool(0 < left < before)

    def _rebuild(self, connection: sqlite3.Connection) -> int:
        self._known = None
        try:
            connection.execute("BEGIN IMMEDIATE")
            folded = fold_log(connection, strictly=True)
        except sqlite3.Error as error:
            _roll_back(connection)
            raise translated(error) from error
        except BaseException:
            _roll_back(connection)
            raise
        self._end(connection)
        self._checkpoints.wrote(FRAMES)
        self._head = read_head(connection)
        return folded


def _doubted(error: sqlite3.Error) -> OutboxError:
    """Return what a failed commit means."""
    if in_doubt(error):
        # After a failed sync the kernel may drop the pages and call them clean: asking again would lie.
        return OutcomeUnknownError(f"a commit's outcome is unknown ({error}): the disk fails")
    return translated(error)


def _roll_back(connection: sqlite3.Connection) -> None:
    # Some errors have rolled back already; asking twice is an error of its own.
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _frames(batch: Batch, rows: int) -> int:
    """Guess how many pages a commit that changed so many `rows` put into the write-ahead log."""
    bodies = sum(len(body) for _, body in batch.bodies)
    changes = batch.changes
    # The index of those that wait is in order of queues, where each may have a page of its own.
    scattered = len(changes.moved) - sum(
        n for (_, state), n in changes.counters.items() if state == State.WAITING and n < 0
    )
    return 8 + (bodies + 256 * rows) // _PAGE_BYTES + scattered


def _write(connection: sqlite3.Connection, batch: Batch) -> None:
    if batch.cut is not None:
        take_away(connection, batch.cut)
    insert(connection, "INSERT INTO log (seq, subject, record, digest) VALUES", batch.log, blobs=(2, 3))
    insert_bodies(connection, batch.bodies)
    insert(connection, "INSERT INTO secret (id, material) VALUES", batch.secrets, blobs=(0, 1))
    if batch.erased:
        connection.execute(f"DELETE FROM secret WHERE id IN ({groups(len(batch.erased))})", batch.erased)  # noqa: S608
    write_changes(connection, batch.changes)
