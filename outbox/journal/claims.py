"""What the relay reads: deliveries that are due, and the bodies of their events."""

from collections.abc import AsyncIterator, Collection, Sequence

from msgspec import Struct

from outbox.domain.deliveries import State
from outbox.domain.errors import CorruptError
from outbox.domain.records import EventAccepted, decode
from outbox.store.protocol import Aged, Reader

_UNSETTLED = frozenset({State.PENDING, State.WAITING})


class Claim(Struct, frozen=True):
    """A delivery that may be attempted: its event's seq and record, and the attempts made and charged so far.

    Its age counts from `since_ms` on.
    """

    seq: int
    event: EventAccepted
    attempts: int
    charged: int
    since_ms: int


class Claims:
    """Reads what lanes work on. A lane keeps what it has claimed in memory: one process has them all."""

    def __init__(self, reader: Reader) -> None:
        """Read with a reader of its own, so that looking in never delays a delivery."""
        self._reader = reader

    async def due(self, webhook: int, until_ms: int, limit: int, but: Collection[int] = ()) -> list[Claim]:
        """Return up to `limit` pending deliveries due by `until_ms`, the longest due first, but not of these events.

        Raises CorruptError.
        """
        return [
            Claim(row.event, _accepted(row.record), row.attempts, row.charged, row.since_ms)
            for row in await self._reader.due(webhook, until_ms, limit, but)
        ]

    async def next_due(self, webhook: int, after_ms: int = -1) -> int | None:
        """Return when the webhook's first pending delivery due later than `after_ms` is due, or None."""
        return await self._reader.next_due(webhook, after_ms)

    async def older(self, webhook: int, cutoff_ms: int, due_ms: int, after: tuple[int, int]) -> AsyncIterator[Aged]:
        """Look, some at a time, at pending deliveries due by `due_ms` that follow (due, event); see `Reader.older`."""
        place: tuple[int, int] | None = after
        while place is not None:
            aged = await self._reader.older(webhook, cutoff_ms, due_ms, place)
            place = aged.reached
            yield aged

    async def bodies(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the bodies of events by seq; one that is gone is left out."""
        return await self._reader.bodies(seqs)

    async def unsettled_webhooks(self) -> set[int]:
        """Return the numbers of the webhooks, deleted ones too, that have unsettled deliveries."""
        counters = await self._reader.counters()
        return {webhook for (webhook, state), n in counters.items() if n and state in _UNSETTLED}


def _accepted(data: bytes) -> EventAccepted:
    record = decode(data)
    if not isinstance(record, EventAccepted):
        msg = f"a delivery's event is a {type(record).__name__} in the log"
        raise CorruptError(msg)
    return record
