"""How full the write-ahead log is: it is guessed, so that nobody has to ask, and must not be guessed far too low."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from outbox.domain.deliveries import Effect
from tests.store.books import Books

EVENTS, CHATS = 4000, 1500


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


def written(path: Path) -> int:
    """Return the bytes in the write-ahead log."""
    return path.with_name(path.name + "-wal").stat().st_size
