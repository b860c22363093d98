"""The inspector: every question that HTTP, the commands and a dashboard may ask of a database, in one place."""

from collections.abc import Callable

from outbox.domain.replays import END_OF_EVENTS
from outbox.domain.routing import Webhooks
from outbox.journal.chaining import Report
from outbox.journal.folding import Progress, verify
from outbox.journal.ledger import load_webhooks
from outbox.journal.listing import TOP, DeliveryPage, EventPage, Wanted, list_deliveries, list_events
from outbox.journal.reading import EventView, Stats, event_ids, gather_stats, view_event
from outbox.journal.replays import ReplayPage, ReplayView, list_replays, view_replay
from outbox.journal.telling import Entry, read_entries
from outbox.store.protocol import Head, Position, Reader


class Inspector:
    """Answers questions about a database, from committed data only; never blocks the writer."""

    def __init__(self, reader: Reader, kept_head: Callable[[], Head | None]) -> None:
        """Read with `reader`; `kept_head` tells the end of the log as it is remembered outside the database."""
        self._reader = reader
        self._kept_head = kept_head

    async def event(self, event_id: str) -> EventView:
        """Return all there is about an event. Raises NotFoundError."""
        return await view_event(self._reader, event_id)

    async def event_ids(self, first: int, count: int) -> list[bytes]:
        """Return the ids of events that were accepted in a row."""
        return await event_ids(self._reader, first, count)

    async def events(self, wanted: Wanted, limit: int, after: Position = TOP) -> EventPage:
        """Return a page of events, newest first."""
        return await list_events(self._reader, wanted, limit, after)

    async def deliveries(self, wanted: Wanted, limit: int, after: Position = TOP) -> DeliveryPage:
        """Return a page of deliveries, those of the newest events first."""
        return await list_deliveries(self._reader, wanted, limit, after)

    async def replays(self, limit: int, before: int = END_OF_EVENTS) -> ReplayPage:
        """Return a page of replays with numbers below `before`, newest first."""
        return await list_replays(self._reader, limit, before)

    async def replay(self, number: int) -> ReplayView:
        """Return a replay and how far it has come. Raises NotFoundError."""
        return await view_replay(self._reader, number)

    async def log(self, after: int, limit: int) -> list[Entry]:
        """Return up to `limit` entries of the log that follow the seq `after`, in order."""
        return await read_entries(self._reader, after, limit)

    async def body(self, seq: int) -> bytes | None:
        """Return the body of the event with that seq, or None if it is gone."""
        return await self._reader.body(seq)

    async def last_seq(self) -> int:
        """Return the seq of the last record, 0 if there is none."""
        return (await self._reader.head()).seq

    async def webhooks(self) -> Webhooks:
        """Return the live webhooks. Raises CorruptError."""
        return load_webhooks(*await self._reader.webhooks())

    async def stats(self) -> Stats:
        """Return the numbers of it all."""
        return await gather_stats(self._reader)

    async def verify(self, progress: Progress) -> Report:
        """Check log, projections, bodies and file, beside a running service or without one."""
        return await verify(self._reader, self._kept_head(), progress)
