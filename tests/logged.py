"""What stands in the log of a service, running or not, past everything that it would show."""

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
