"""The front door to a database without its engine, for looking into it.

It needs neither relay nor HTTP, so that a command of `scripts/outbox` starts at once.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from outbox.journal.chaining import Report
from outbox.journal.inspecting import Inspector
from outbox.journal.listing import STATES, TOP, DeliveryPage, EventPage, ListedDelivery, ListedEvent, Wanted
from outbox.journal.reading import EventView, Stats, state_word
from outbox.journal.replaying import Replay
from outbox.journal.replays import ReplayPage, ReplayView
from outbox.journal.telling import MOVED_SHOWN, Entry
from outbox.store.protocol import EventFilter, Position
from outbox.store.sqlite import open_reader
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
