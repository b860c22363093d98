"""Where the log begins: at its first record, or behind what was pruned."""

from outbox.domain.errors import CorruptError
from outbox.domain.records import Checkpoint, decode
from outbox.store.protocol import Head, Reader


async def beginning(reader: Reader) -> Head:
    """Return where the chain begins: the seq and the digest before its first record. Raises CorruptError."""
    row = await reader.checkpoint()
    if row is None:
        return Head()
    record = decode(row.record)
    if not isinstance(record, Checkpoint):
        msg = f"the record {row.seq} is not the checkpoint that it should be"
        raise CorruptError(msg)
    return Head(record.floor, record.chain)
