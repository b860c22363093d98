"""The service with a short write-ahead log, and with a bug planted (FAULT_BUG, if any) that a harness must notice.

The log is moved into the database every 150 pages or so instead of every thousand: a small recording has much of that.
It counts as large at two megabytes.
"""

import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from app.__main__ import main
from outbox.store.sqlite import checkpoints, connections
from outbox.store.sqlite.reading import read_head
from outbox.store.sqlite.writing import SqliteStore
from tests.faults import answers_early

CHECKPOINT_FRAMES = 150
LARGE_BYTES = 2 * 1024 * 1024


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


BUGS: Mapping[str, Callable[[], None]] = {
    "": lambda: None,
    "answers early": answers_early.plant,
    "syncs seldom": sync_seldom,
    "trusts what it finds": trust_what_is_found,
    "keeps the head first": keep_the_head_first,
}


if __name__ == "__main__":
    checkpoints.FRAMES = CHECKPOINT_FRAMES
    checkpoints.LARGE_BYTES = LARGE_BYTES
    BUGS[os.environ.get("FAULT_BUG", "")]()
    main()
