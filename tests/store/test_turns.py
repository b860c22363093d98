"""Long chores leave time to everybody else: as much as they take themselves."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from outbox.journal.replaying import AdvanceReplay
from outbox.journal.sweeping import Bury
from outbox.journal.writer import Journal
from outbox.relay.sweeping import bury
from tests.store.books import DEAD, PENDING, Books
from tests.store.replays import Clock, Replays, settle

CHORES = (AdvanceReplay, Bury)


@pytest.fixture
def busy_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds that each command of a chore takes, from its submission to its answer."""
    found: list[float] = []
    submit = Journal.submit

    def timed(journal: Journal, command: Any) -> "asyncio.Future[Any]":
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = submit(journal, command)
        if isinstance(command, CHORES):
            answer.add_done_callback(lambda _answer: found.append(loop.time() - began))
        return answer

    monkeypatch.setattr(Journal, "submit", timed)
    return found


async def seconds(work: Awaitable[object]) -> float:
    """Return how long work takes."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await work
    return loop.time() - began


async def test_a_burial_leaves_half_of_the_time(books: Books, small_chunks: None, busy_s: list[float]) -> None:
    """Between its chunks, however fast the disk is."""
    webhook = await books.set("shop")
    await books.accept_batch("shop", ["a"] * 60)
    await books.delete("shop")
    took_s = await seconds(bury(books.journal, Clock(books), webhook))
    assert set(books.states(webhook)) == {DEAD}
    assert len(busy_s) > 20
    assert took_s >= 1.9 * sum(busy_s)


async def test_a_replay_leaves_half_of_the_time(
    books: Books, monkeypatch: pytest.MonkeyPatch, busy_s: list[float]
) -> None:
    """Between its chunks, for however many replays there are."""
    monkeypatch.setattr("outbox.relay.replaying.chunk_size", lambda _rate: 3)
    webhook = await books.set("shop")
    await settle(books, webhook, await books.accept_batch("shop", ["a"] * 60), DEAD)
    replays = Replays(books)
    replay = await replays.ask(webhook=webhook, state="dead")
    running = asyncio.create_task(replays.replayer.run())
    took_s = await seconds(replays.finished(replay.row.number))
    replays.replayer.stop()
    await running
    assert set(books.states(webhook)) == {PENDING}
    assert len(busy_s) >= 20
    assert took_s >= 1.9 * sum(busy_s)
