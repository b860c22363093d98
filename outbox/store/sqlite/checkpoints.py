"""Checkpoints: the write-ahead log is moved into the database between commits, never inside one, small and often.

Somebody who reads an old state (another program with an open transaction) keeps newer pages from being moved. The log
then grows without end, so that is said aloud.
"""

import sqlite3
import time

import anyio
import structlog

from outbox.domain.errors import DamagedFileError, OutboxError, OutcomeUnknownError
from outbox.store.sqlite.connections import Hopper, translated

FRAMES, FEWEST_FRAMES = 1000, 100
PATIENCE_S = 0.02
"""About so long a commit may wait while frames are moved; how many that are depends on the disk, and how scattered."""
LARGE_BYTES = 256 * 1024 * 1024

_FRAME_BYTES = 4096 + 24
_BEFORE_SYNC = {"SQLITE_IOERR_READ", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_TRUNCATE"}

_log = structlog.get_logger("store")


class Checkpoints:
    """Counts what was written to the write-ahead log, and moves it when that is enough."""

    def __init__(self, writer: Hopper) -> None:
        """Move with the writer's connection, between its commits."""
        self._writer = writer
        self._frames = 0
        self._left_bytes = 0
        self._stride = self._due_at = FRAMES
        self._due = anyio.Event()
        self._doubt: OutboxError | None = None
        self._said_at = 0

    @property
    def unmoved_bytes(self) -> int:
        """About how much of the write-ahead log waits to be moved."""
        return self._frames * _FRAME_BYTES

    @property
    def warning(self) -> str:
        """What is wrong if far too much could not be moved; nothing, if all is well."""
        if self._left_bytes < LARGE_BYTES:
            return ""
        size = f"{self._left_bytes / 1024**2:.0f} MiB"
        return f"the write-ahead log holds {size}: another program keeps a transaction open in the database"

    def wrote(self, frames: int) -> None:
        """Count what a commit has written; called in the writer's thread."""
        self._frames += frames

    def look(self) -> None:
        """Have it moved if that is due; called on the event loop."""
        if self._frames >= self._due_at:
            self._due.set()

    def doubt(self, error: OutboxError) -> None:
        """End `run` with a failed sync, or damage, that nobody else ends the service for."""
        self._doubt = error
        self._due.set()

    async def run(self) -> None:
        """Move the write-ahead log whenever it is due. Raises OutcomeUnknownError and DamagedFileError."""
        while True:
            await self._due.wait()
            self._due = anyio.Event()
            if self._doubt is not None:
                raise self._doubt
            try:
                await self._writer.run(self._move, "PASSIVE")
            except sqlite3.Error as error:
                if in_doubt(error):
                    msg = f"the write-ahead log could not be moved into the database ({error}): the disk fails"
                    raise OutcomeUnknownError(msg) from error
                if isinstance(damage := translated(error), DamagedFileError):
                    raise damage from error
                # Nothing is lost: what is committed stays in the write-ahead log, and a later commit asks again.
                _log.warning("checkpoint.refused", reason=str(error))
            self._due_at = self._frames + self._stride
            self._tell()

    async def move_all(self) -> None:
        """Move everything and empty the write-ahead log, if that is possible."""
        if not self._frames:
            return
        try:
            await self._writer.run(self._move, "TRUNCATE")
        except sqlite3.Error as error:
            _log.warning("checkpoint.refused", reason=str(error))

    def _move(self, connection: sqlite3.Connection, mode: str) -> None:
        began = time.monotonic()
        _, frames, moved = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        slower = min(max((time.monotonic() - began) / PATIENCE_S, 0.8), 4.0)
        self._stride = min(max(round(self._stride / slower), FEWEST_FRAMES), FRAMES)
        self._frames = max(frames - moved, 0)
        self._left_bytes = self.unmoved_bytes

    def _tell(self) -> None:
        """Say that too much is left: once, and again whenever it has doubled."""
        if not self.warning:
            self._said_at = 0
        elif self._left_bytes >= 2 * self._said_at:
            self._said_at = self._left_bytes
            _log.warning("checkpoint.hindered", bytes=self._left_bytes, reason=self.warning)


def in_doubt(error: sqlite3.Error) -> bool:
    """Say whether nobody knows what is on disk after `error`: a sync has failed, or something that may follow one."""
    name = getattr(error, "sqlite_errorname", "")
    return name.startswith("SQLITE_IOERR") and name not in _BEFORE_SYNC
