"""A whole copy of a SQLite file, made beside its service: in short looks, so that nobody waits and nothing is held.

The log and the bodies only ever get longer, so they are copied piece by piece while they do. One last look, at what is
left and at the credentials, makes it a copy of one instant. The projections are not copied: they follow from the log.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from outbox.domain.errors import CannotStartError
from outbox.domain.records import CHECKPOINTS, Checkpoint, decode
from outbox.store.sqlite.connections import check_ours, migrate, translated
from outbox.store.sqlite.drafts import Draft
from outbox.store.sqlite.projections import fold_log

_RECORDS = 5000
_BODIES = 1000
_BODIES_BYTES = 16 * 1024 * 1024

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many records of it are done, and the number of all."""

_LOG = (
    "INSERT INTO main.log SELECT seq, subject, record, digest FROM source.log WHERE seq > ?"
    " ORDER BY seq LIMIT ? RETURNING seq"
)
_SIZES = "SELECT event, length(body) FROM source.body WHERE event > ? AND event <= ? ORDER BY event LIMIT ?"
_CHECKPOINTS = "SELECT record FROM log WHERE subject = ? AND subject <> 0 ORDER BY seq"
_BODY = "INSERT INTO main.body SELECT event, body FROM source.body WHERE event > ? AND event <= ?"


def copy_database(source: Path, draft: Draft, progress: Progress) -> int:
    """Copy `source`, which may be in use, to a draft, and sync it; return how many records it has.

    Raises CorruptError, and StoreRefusedError where the disk does not take it.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(draft.path))}", uri=True, isolation_level=None)) as connection:
            # What is not whole has no name of its own yet, and is thrown away: it needs no journal.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA cache_size = -65536")
            migrate(connection)
            connection.execute("ATTACH ? AS source", (f"file:{quote(str(source))}?mode=ro",))
            copying = _Copying(connection, draft, progress)
            copying.copy()
            records = copying.fold()
    except sqlite3.Error as error:
        raise translated(error) from error
    draft.sync()
    return records


class _Copying:
    """One copy in the making. What is written is synced now and then: the service's own syncs wait for all of it."""

    def __init__(self, connection: sqlite3.Connection, draft: Draft, progress: Progress) -> None:
        self._connection = connection
        self._draft = draft
        self._progress = progress
        self._last = self._body = 0

    def copy(self) -> None:
        while self._copy_until(self._end()) >= _RECORDS:
            pass
        self._connection.execute("BEGIN")
        # From here on all that is read is of one instant.
        self._copy_until(self._end())
        self._connection.execute("INSERT INTO main.secret SELECT id, material FROM source.secret")
        self._connection.execute("COMMIT")
        self._connection.execute("DETACH source")
        self._follow_cuts()

    def _follow_cuts(self) -> None:
        """Take away what was copied before the log was cut behind it."""
        connection, floor = self._connection, 0
        connection.execute("CREATE TEMP TABLE kept (seq INTEGER PRIMARY KEY)")
        for (data,) in connection.execute(_CHECKPOINTS, (CHECKPOINTS,)).fetchall():
            record = decode(data)
            if isinstance(record, Checkpoint):
                connection.execute("DELETE FROM kept WHERE seq BETWEEN ? AND ?", (record.first, record.last))
                connection.executemany("INSERT INTO kept VALUES (?)", [(row.seq,) for row in record.kept])
                floor = record.floor
        connection.execute("DELETE FROM log WHERE seq <= ? AND seq NOT IN (SELECT seq FROM kept)", (floor,))
        connection.execute("DELETE FROM body WHERE event <= ? AND event NOT IN (SELECT seq FROM kept)", (floor,))

    def fold(self) -> int:
        (records,) = self._connection.execute("SELECT count(*) FROM log").fetchone()
        self._connection.execute("BEGIN")
        fold_log(self._connection, lambda folded: self._folded(folded, records))
        self._connection.execute("COMMIT")
        return int(records)

    def _folded(self, folded: int, records: int) -> None:
        self._progress("folding", folded, records)
        self._draft.sync()

    def _end(self) -> int:
        (end,) = self._connection.execute("SELECT coalesce(max(seq), 0) FROM source.log").fetchone()
        return int(end)

    def _copy_until(self, end: int) -> int:
        """Copy what there is up to the seq `end`, or somewhat more; return how many records that was, at most."""
        first = self._last
        while self._last < end:
            rows = self._connection.execute(_LOG, (self._last, _RECORDS)).fetchall()
            self._last = max((seq for (seq,) in rows), default=end)
            self._copy_bodies()
            self._progress("copying", self._last, max(self._last, end))
        return self._last - first

    def _copy_bodies(self) -> None:
        """Copy the bodies of the events copied."""
        while sizes := self._connection.execute(_SIZES, (self._body, self._last, _BODIES)).fetchall():
            room, until = _BODIES_BYTES, 0
            for event, size in sizes:
                if until and size > room:
                    break
                room, until = room - size, event
            self._connection.execute(_BODY, (self._body, until))
            self._body = until
            self._draft.sync()


def copy_file(source: Path, draft: Draft) -> None:
    """Copy the pages of `source`, which nobody writes, to a draft, and bring its schema up to date; sync it.

    Raises CannotStartError.
    """
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as reading,
            closing(sqlite3.connect(draft.path, isolation_level=None)) as writing,
        ):
            check_ours(reading)
            reading.backup(writing)
            # One file, with nothing beside it.
            writing.execute("PRAGMA journal_mode = DELETE")
            migrate(writing)
    except sqlite3.Error as error:
        msg = f"cannot read the backup {source}: {error}"
        raise CannotStartError(msg) from error
    draft.sync()
