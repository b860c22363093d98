"""The log as it is told: its records page by page, each with what its reader needs to make sense of it."""

from msgspec import Struct

from outbox.domain.errors import CorruptError
from outbox.domain.records import AttemptRecorded, Record, decode
from outbox.store.protocol import LogRow, Reader


class Entry(Struct, frozen=True):
    """One record of the log.

    `record` is None if it cannot be read, `trouble` then says why. `event` is the id of the event that an attempt is
    about, empty where it is not known.
    """

    seq: int
    digest: bytes
    record: Record | None
    event: bytes = b""
    trouble: str = ""


async def read_entries(reader: Reader, after: int, limit: int) -> list[Entry]:
    """Return up to `limit` entries that follow the seq `after`, in order."""
    rows = await reader.log(after, limit)
    entries = [_entry(row) for row in rows]
    about = {entry.record.event for entry in entries if isinstance(entry.record, AttemptRecorded)}
    ids = await reader.event_ids(sorted(about)) if about else {}
    return [_named(entry, ids) for entry in entries]


def _entry(row: LogRow) -> Entry:
    try:
        return Entry(row.seq, row.digest, decode(row.record))
    except CorruptError as error:
        return Entry(row.seq, row.digest, None, trouble=error.detail)


def _named(entry: Entry, ids: dict[int, bytes]) -> Entry:
    if not isinstance(entry.record, AttemptRecorded):
        return entry
    return Entry(entry.seq, entry.digest, entry.record, ids.get(entry.record.event, b""))
