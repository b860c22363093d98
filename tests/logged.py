"""What stands in the log of a service, running or not, past everything that it would show."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from outbox.domain.records import decode
from outbox.store.sqlite import open_reader

_T = TypeVar("_T")


async def logged(database: Path, kind: type[_T]) -> list[_T]:
    """Return the records of one type, in their order."""
    reader = await open_reader(database)
    try:
        head = await reader.head()
        records = [decode(row.record) for row in await reader.log(0, head.seq)]
    finally:
        await reader.aclose()
    return [record for record in records if isinstance(record, kind)]


def stored(database: Path) -> dict[str, int]:
    """Return the ids of all events in the file, and how many deliveries each has; leave the file as it is."""
    counting = "SELECT id, (SELECT count(*) FROM delivery WHERE event = seq) FROM event"
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return {f"evt_{found.hex()}": deliveries for found, deliveries in connection.execute(counting)}
