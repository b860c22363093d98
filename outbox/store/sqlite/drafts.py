"""Drafts: files that get their name when they are whole, and the file that one takes the place of."""

import fcntl
import os
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from outbox.domain.errors import CannotStartError, StoreRefusedError
from outbox.folders import sync_folder
from outbox.store.sqlite.files import renew


class Draft:
    """A file in the making, for its owner alone. It gets its name when it is whole; until then it has another.

    One program at a time makes it: what another one, which was killed, has left is thrown away.
    """

    def __init__(self, path: Path) -> None:
        """Begin it under that name. Raises CannotStartError."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            msg = f"cannot write {path}: {error.strerror}"
            raise CannotStartError(msg) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._named:  # another program was at it until just now, and it has its name
                raise BlockingIOError
            os.ftruncate(self._file, 0)
            os.fchmod(self._file, 0o600)
        except OSError as error:
            os.close(self._file)
            why = "another program is at it" if isinstance(error, BlockingIOError) else error.strerror
            msg = f"cannot write {path}: {why}"
            raise CannotStartError(msg) from error

    def sync(self) -> None:
        """Return once all that was written is on disk. Raises StoreRefusedError."""
        try:
            os.fsync(self._file)
        except OSError as error:
            msg = f"the disk does not take {self.path}: {error.strerror}"
            raise StoreRefusedError(msg) from error

    def finish(self, path: Path) -> None:
        """Give it its name, and return once that is on disk. Raises OSError."""
        self.path.replace(path)
        sync_folder(path.parent)

    def close(self) -> None:
        """Let go of it, and throw it away if it has not got its name."""
        if self._named:
            self.path.unlink()
        os.close(self._file)

    @property
    def _named(self) -> bool:
        """Whether it still has the name that it was begun under."""
        with suppress(FileNotFoundError):
            return os.path.samestat(self.path.stat(), os.fstat(self._file))
        return False


def set_aside(path: Path, mark: str) -> Path | None:
    """Give a database that nobody has open a second name, `<file>.<mark>`, and leave it whole under the first.

    Nothing is beside it afterwards that would spoil another file in its place. Return the second name, or None where
    there is no database. Raises CannotStartError and OSError.
    """
    for earlier in path.parent.glob(f"{path.name}.replaced-*"):
        if path.exists() and earlier.samefile(path):
            earlier.unlink()  # somebody was killed before the file was replaced
    if not path.exists():
        return None
    aside = path.with_name(f"{path.name}.{mark}")
    _empty_log(path, aside)
    head = path.with_name(path.name + ".head")
    if head.exists():
        # Before the file it belongs to: a head alone is no matter, one that is ahead of the file is an alarm.
        head.replace(aside.with_name(aside.name + ".head"))
    try:
        os.link(path, aside)
    except OSError:  # some file systems know one name a file
        shutil.copyfile(path, aside)
        aside.chmod(0o600)
        renew(aside)
    sync_folder(path.parent)
    return aside


def _empty_log(path: Path, aside: Path) -> None:
    """Move the write-ahead log into the file; if the file is too damaged for that, put the log aside too."""
    log = path.with_name(path.name + "-wal")
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            msg = f"another program reads the database {path}: end it, and begin again"
            raise CannotStartError(msg)
        log.unlink(missing_ok=True)
    except sqlite3.Error:
        if log.exists():
            log.replace(aside.with_name(aside.name + "-wal"))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
