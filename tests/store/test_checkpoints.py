"""How full the write-ahead log is: it is guessed, so that nobody has to ask, and must not be guessed far too low."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from outbox.domain.deliveries import Effect
from outbox.store.sqlite import checkpoints
from outbox.store.sqlite.checkpoints import FEWEST_FRAMES, FRAMES
from tests.store.books import Books

EVENTS, CHATS = 4000, 1500
PAGE_BYTES = 4096


async def accept(books: Books, webhook: int) -> None:
    """Accept a batch, and what follows one by one."""
    await books.accept_batch("a", [str(number % CHATS) for number in range(EVENTS)])
    await books.accept("a", *map(str, range(200)))
    assert webhook


async def acknowledge(books: Books, webhook: int) -> None:
    """Record many outcomes in one commit."""
    await accept(books, webhook)
    deliveries = await books.reader.due(webhook, 1 << 62, 500)
    await books.do(*[books.outcome(webhook, row.event, Effect.ACKNOWLEDGE) for row in deliveries])


async def convert(books: Books, webhook: int) -> None:
    """Change the order while a backlog waits."""
    await accept(books, webhook)
    await books.set("a", order="chat")
    await books.convert(webhook)


async def bury(books: Books, webhook: int) -> None:
    """Delete the webhook while a backlog waits."""
    await accept(books, webhook)
    await books.delete("a")
    await books.bury(webhook)


async def bury_queues(books: Books, webhook: int) -> None:
    """Delete the webhook while its queues wait."""
    await convert(books, webhook)
    await books.delete("a")
    await books.bury(webhook)


@pytest.mark.parametrize("deed", [accept, acknowledge, convert, bury, bury_queues])
async def test_the_log_is_not_much_fuller_than_thought(
    books: Books, deed: Callable[[Books, int], Awaitable[None]]
) -> None:
    """Nothing is moved here, so the file has every page that was written: at most twice of what is counted."""
    before = written(books.path), books.store.unmoved_bytes
    await deed(books, await books.set("a"))
    assert written(books.path) - before[0] <= 2 * (books.store.unmoved_bytes - before[1])


@pytest.mark.parametrize(
    ("patience_s", "fewest", "most"),
    [(1e-9, 0, 2 * FEWEST_FRAMES), (1e9, FRAMES // 2, 2 * FRAMES)],
    ids=["slow", "fast"],
)
async def test_so_much_is_moved_at_a_time_as_a_commit_may_wait_for(
    books: Books, monkeypatch: pytest.MonkeyPatch, patience_s: float, fewest: int, most: int
) -> None:
    """Where moving takes longer than a commit should wait less is moved, more often; the disk decides."""
    monkeypatch.setattr(checkpoints, "PATIENCE_S", patience_s)
    keeping = asyncio.create_task(books.store.run())
    full = []
    for number in range(500):
        await books.accept("a", str(number))
        full.append(books.store.unmoved_bytes // PAGE_BYTES)
    keeping.cancel()
    assert fewest <= max(full[250:]) <= most


def written(path: Path) -> int:
    """Return the bytes in the write-ahead log."""
    return path.with_name(path.name + "-wal").stat().st_size
