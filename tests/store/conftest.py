import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outbox.journal import sweeping
from tests.store.books import Books
from tests.store.replays import Replays


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    """Open books, and check at the end of the test that everything stored follows from the log."""
    opened = await Books(tmp_path / "outbox.db").open()
    try:
        yield opened
        await opened.check()
    finally:
        await opened.close()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chunks be of three deliveries."""
    monkeypatch.setattr(sweeping, "CHUNK", 3)
    monkeypatch.setattr(sweeping, "ROWS_CHUNK", 3)


@pytest.fixture(name="replays")
async def replays_at_work(books: Books) -> AsyncIterator[Replays]:
    """Give replays that are carried out."""
    opened = Replays(books)
    # A fixture's two halves may run in different tasks, which a task group would not survive.
    task = asyncio.create_task(opened.replayer.run())
    yield opened
    opened.replayer.stop()
    await task
