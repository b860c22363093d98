"""The log as it is told: its records page by page, each with what its reader needs to make sense of it."""

from msgspec import Struct, structs

from outbox.domain.errors import CorruptError
from outbox.domain.records import AttemptRecorded, DeliveriesMoved, Record, ReplayRequested, WebhookSuspended, decode
from outbox.store.protocol import LogRow, Reader

MOVED_SHOWN = 20
"""The deliveries of a DeliveriesMoved that are told one by one: a page of its like would be too much otherwise."""


class Entry(Struct, frozen=True):
    """One record of the log.

    `record` is None if it cannot be read, `trouble` then says why. `ids` are those of the events that it is about, by
    seq; one that is not known is left out, and so are those of a DeliveriesMoved after the first MOVED_SHOWN.
    """

    seq: int
    digest: bytes
    record: Record | None
    ids: dict[int, bytes] = {}
    trouble: str = ""


async def read_entries(reader: Reader, after: int, limit: int) -> list[Entry]:
    """Return up to `limit` entries that follow the seq `after`, in order."""
    rows = await reader.log(after, limit)
    entries = [_entry(row) for row in rows]
    about = {seq for entry in entries for seq in _about(entry.record)}
    ids = await reader.event_ids(sorted(about)) if about else {}
    return [_named(entry, ids) for entry in entries]


def _entry(row: LogRow) -> Entry:
    try:
        return Entry(row.seq, row.digest, decode(row.record))
    except CorruptError as error:
        return Entry(row.seq, row.digest, None, trouble=error.detail)


def _about(record: Record | None) -> list[int]:
    """Return the seqs of the events that a record is about, but for its own."""
    match record:
        case AttemptRecorded():
            return [record.event] if record.promoted is None else [record.event, record.promoted[0]]
        case WebhookSuspended():
            return [record.event]
        case ReplayRequested():
            return [] if record.wanted.event is None else [record.wanted.event]
        case DeliveriesMoved():
            return [moved.event for moved in record.rows[:MOVED_SHOWN]]
        case _:
            return []


def _named(entry: Entry, ids: dict[int, bytes]) -> Entry:
    about = _about(entry.record)
    return structs.replace(entry, ids={seq: ids[seq] for seq in about if seq in ids}) if about else entry
