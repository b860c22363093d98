"""The service with a short write-ahead log, and with a bug planted (FAULT_BUG, if any) that a harness must notice.

The log is moved into the database every 150 pages or so instead of every thousand: a small recording has much of that.
It counts as large at two megabytes. Replays and prunes go in smaller chunks, for the same reason.
"""

import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from app.__main__ import main
from outbox.domain import replays
from outbox.journal import pruning
from outbox.store.protocol import Batch
from outbox.store.sqlite import checkpoints, connections, writing
from outbox.store.sqlite.projections import take_away
from outbox.store.sqlite.reading import read_head
from outbox.store.sqlite.writing import SqliteStore
from tests.faults import answers_early

CHECKPOINT_FRAMES = 150
LARGE_BYTES = 2 * 1024 * 1024
REPLAY_CHUNK = 40
PRUNE_CHUNK = 60


def sync_seldom() -> None:
    """Sync at checkpoints only, not at every commit."""
    genuine = connections._configure_writer

    def configure(connection: sqlite3.Connection) -> None:
        genuine(connection)
        connection.execute("PRAGMA synchronous = NORMAL")

    connections._configure_writer = configure


def trust_what_is_found() -> None:
    """Take it for stored what a process before left unsynced."""

    def renew(path: Path) -> None:
        """Do nothing."""

    connections.renew = renew  # type: ignore[attr-defined]


def keep_the_head_first() -> None:
    """Write down outside of the database where its log ends, before it does."""
    genuine = SqliteStore._end

    def end(self: SqliteStore, connection: sqlite3.Connection) -> None:
        self._head_file.write(read_head(connection))
        genuine(self, connection)

    def write_head(self: SqliteStore) -> bool:
        return True

    SqliteStore._end = end  # type: ignore[method-assign]
    SqliteStore._write_head = write_head  # type: ignore[method-assign]


def prune_in_two_steps() -> None:
    """Take away in one commit what the checkpoint of the next one says is gone."""
    genuine = writing._write

    def write(connection: sqlite3.Connection, batch: Batch) -> None:
        if batch.cut is not None:
            take_away(connection, batch.cut)
            connection.execute("COMMIT")
            connection.execute("BEGIN IMMEDIATE")
        genuine(connection, batch)

    writing._write = write


def prune_what_is_young() -> None:
    """Prune whatever its age, not only what is as old as was asked for."""
    genuine = pruning.Shears._limits

    async def limits(self: pruning.Shears, cutoff_ms: int, keyed_ms: int) -> pruning.Limits:
        return await genuine(self, cutoff_ms + 1_000_000, keyed_ms)

    pruning.Shears._limits = limits  # type: ignore[method-assign]


BUGS: Mapping[str, Callable[[], None]] = {
    "": lambda: None,
    "answers early": answers_early.plant,
    "syncs seldom": sync_seldom,
    "trusts what it finds": trust_what_is_found,
    "keeps the head first": keep_the_head_first,
    "prunes before it says so": prune_in_two_steps,
    "prunes what is young": prune_what_is_young,
}


if __name__ == "__main__":
    checkpoints.FRAMES = CHECKPOINT_FRAMES
    checkpoints.LARGE_BYTES = LARGE_BYTES
    replays.CHUNK = REPLAY_CHUNK
    pruning.CHUNK = PRUNE_CHUNK
    BUGS[os.environ.get("FAULT_BUG", "")]()
    main()
