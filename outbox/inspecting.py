"""The front door to a database without its engine: looking into it, folding it again, asking for replays.

It needs neither relay nor HTTP, so that a command of `scripts/outbox` starts at once.
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from outbox.domain.errors import CannotStartError, OutboxError
from outbox.domain.replays import ReplayFilter
from outbox.journal.chaining import Report
from outbox.journal.inspecting import Inspector
from outbox.journal.ledger import load_webhooks
from outbox.journal.listing import STATES, TOP, DeliveryPage, EventPage, ListedDelivery, ListedEvent, Wanted
from outbox.journal.reading import EventView, Stats, state_word
from outbox.journal.replaying import Replay
from outbox.journal.replays import ReplayPage, ReplayView
from outbox.journal.requesting import Requests
from outbox.journal.telling import MOVED_SHOWN, Entry
from outbox.journal.writer import Journal
from outbox.store.protocol import EventFilter, Position
from outbox.store.sqlite import open_reader, open_store
from outbox.store.sqlite.files import HeadFile

__all__ = [
    "MOVED_SHOWN",
    "STATES",
    "TOP",
    "DeliveryPage",
    "Entry",
    "EventFilter",
    "EventPage",
    "EventView",
    "Inspector",
    "ListedDelivery",
    "ListedEvent",
    "Position",
    "Replay",
    "ReplayPage",
    "ReplayView",
    "Report",
    "Stats",
    "Wanted",
    "open_inspector",
    "rebuild_database",
    "request_replay",
    "state_word",
]

_QUEUE_BYTES = 1024 * 1024


@asynccontextmanager
async def open_inspector(database: Path) -> AsyncIterator[Inspector]:
    """Open a database for looking only, beside a running service or without one. Raises CannotStartError."""
    reader = await open_reader(database)
    try:
        yield Inspector(reader, HeadFile(database).read)
    finally:
        await reader.aclose()


async def rebuild_database(path: Path) -> int:
    """Rebuild the projections of a database that no service has open. Raises CannotStartError."""
    await _check_there(path)
    store = await open_store(path)
    try:
        return await store.rebuild()
    finally:
        await store.aclose()


async def _check_there(path: Path) -> None:
    if not await anyio.Path(path).exists():
        msg = f"there is no database {path}"
        raise CannotStartError(msg)


async def request_replay(path: Path, wanted: ReplayFilter | str, rate: float | None, *, acknowledged: bool) -> Replay:
    """Record a request for a replay, of a filter or of one delivery, in a database that no service has open.

    The service carries it out when it is started. Raises CannotStartError, NotFoundError, InvalidError, ConflictError.
    """
    await _check_there(path)
    async with AsyncExitStack() as stack:
        store = await open_store(path)
        stack.push_async_callback(store.aclose)
        reader = await store.reader()
        stack.push_async_callback(reader.aclose)
        journal = Journal(store, load_webhooks(*await reader.webhooks()), _QUEUE_BYTES)
        requests = Requests(journal, reader, lambda: time.time_ns() // 1_000_000)
        if isinstance(wanted, str):
            asking = requests.one(wanted, acknowledged=acknowledged)
        else:
            asking = requests.many(wanted, rate)
        refused: OutboxError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.run)
            try:
                replay = await asking
            except OutboxError as error:  # as it is, not as one of a group
                refused = error
            await journal.drain()
    if refused is not None:
        raise refused
    return replay
