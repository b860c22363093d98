"""The files beside the database: the lock that makes one process its owner, and the head of the chain."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from outbox.domain.errors import CannotStartError
from outbox.folders import sync_folder
from outbox.store.protocol import Head

_PIECE_BYTES = 1024 * 1024


def renew(path: Path) -> None:
    """Write a file's bytes anew, and return once they and its name are on disk; nothing, if there is none.

    A process that was killed in a commit leaves one that can be read and is not on disk. After a failed sync not even
    another sync would put it there, since the kernel takes the pages for clean: they must be written again. Raises
    OSError.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        while piece := file.read(_PIECE_BYTES):
            file.seek(-len(piece), os.SEEK_CUR)
            file.write(piece)
            file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


class FileLock:
    """An exclusive lock on `<file>.lock`, held while the process lives; the kernel lets go of a dead one's.

    The process's number stands in it, and is taken out when the process ends in order: `left_open` says that it was
    found there.
    """

    def __init__(self, path: Path) -> None:
        """Name the database file; nothing is taken yet."""
        self._path = path.with_name(path.name + ".lock")
        self._descriptor: int | None = None
        self.left_open = False

    def take(self) -> None:
        """Take the lock. Raises CannotStartError if another process has it, naming that process."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            msg = f"cannot open {self._path}: {error.strerror}"
            raise CannotStartError(msg) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 20).decode(errors="replace").strip()
            os.close(descriptor)
            msg = f"process {owner or '?'} already works with this database ({self._path} is locked)"
            raise CannotStartError(msg) from error
        self._descriptor = descriptor
        try:
            self.left_open = os.fstat(descriptor).st_size > 0
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            # Were it lost with the power, this process would seem to have ended in order.
            os.fsync(descriptor)
            sync_folder(self._path.parent)
        except OSError as error:
            self.release()
            msg = f"cannot write {self._path}: {error.strerror}"
            raise CannotStartError(msg) from error

    def release(self, *, orderly: bool | None = None) -> None:
        """Let go of the lock; the file stays, since removing it would race with the next owner.

        `orderly` says whether the next owner need not look if the database is sound; None: as it was found.
        """
        if self._descriptor is not None:
            if orderly or (orderly is None and not self.left_open):
                with suppress(OSError):  # then it is looked at for nothing
                    os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


class _HeadText(msgspec.Struct):
    seq: int
    digest: str


class HeadFile:
    """The chain's head kept outside the database, so that a lost tail of the log is noticed.

    It is replaced atomically, synced, and never ahead of the database. Missing or unreadable is no error.
    """

    def __init__(self, path: Path) -> None:
        """Name the database file that the head belongs to."""
        self.path = path.with_name(path.name + ".head")

    def read(self) -> Head | None:
        """Return the head as last kept, or None."""
        try:
            text = msgspec.json.decode(self.path.read_bytes(), type=_HeadText)
            return Head(text.seq, bytes.fromhex(text.digest))
        except (OSError, ValueError, msgspec.MsgspecError):
            return None

    def write(self, head: Head) -> None:
        """Keep `head`. Raises OSError."""
        draft = self.path.with_name(self.path.name + ".new")
        with draft.open("wb") as file:
            file.write(msgspec.json.encode(_HeadText(head.seq, head.digest.hex())) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
        sync_folder(self.path.parent)

    def set_aside(self) -> Path:
        """Rename a head that the database no longer reaches, so that it stays as evidence; return its new name."""
        aside = self.path.with_name(self.path.name + ".lost")
        self.path.replace(aside)
        return aside
