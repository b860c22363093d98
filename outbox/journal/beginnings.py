"""Where the log begins: at its first record, or behind what was pruned."""

from outbox.domain.records import decode_checkpoint
from outbox.store.protocol import Head, Reader


async def beginning(reader: Reader) -> Head:
    """Return where the chain begins: the seq and the digest before its first record. Raises CorruptError."""
    row = await reader.checkpoint()
    if row is None:
        return Head()
    record = decode_checkpoint(row.seq, row.record)
    return Head(record.floor, record.chain)
