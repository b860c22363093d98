"""The front door to a database without its engine: looking into it, and folding it again.

It needs neither relay nor HTTP, so that a command of `scripts/outbox` starts at once.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from outbox.domain.errors import CannotStartError
from outbox.journal.folding import Report
from outbox.journal.inspecting import Inspector
from outbox.journal.listing import STATES, TOP, DeliveryPage, EventPage, ListedDelivery, ListedEvent, Wanted
from outbox.journal.reading import EventView, Stats, state_word
from outbox.journal.telling import MOVED_SHOWN, Entry
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
    "Report",
    "Stats",
    "Wanted",
    "open_inspector",
    "rebuild_database",
    "state_word",
]


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
    if not await anyio.Path(path).exists():
        msg = f"there is no database {path}"
        raise CannotStartError(msg)
    store = await open_store(path)
    try:
        return await store.rebuild()
    finally:
        await store.aclose()
