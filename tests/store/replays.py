"""Replays at work on the books of a test, and what they have moved."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from outbox.domain.deliveries import Effect
from outbox.domain.ids import delivery_text
from outbox.domain.records import AttemptRecorded, DeliveriesMoved, EventAccepted
from outbox.domain.replays import CHUNK, ReplayFilter
from outbox.journal.damage import Damage
from outbox.journal.reaching import Ways
from outbox.journal.recording import Outcome, RecordAttempts
from outbox.journal.replaying import AdvanceReplay, Replay
from outbox.journal.replays import view_replay
from outbox.journal.requesting import Requests
from outbox.relay.replaying import Replayer
from tests.store.books import ACKNOWLEDGED, DEAD, Books

ENDS = {ACKNOWLEDGED: Effect.ACKNOWLEDGE, DEAD: Effect.BURY}
SHOP, OTHER = "shop", "other"


class Clock:
    """The time of the books."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def now_ms(self) -> int:
        """See `outbox.relay.clock.Clock`."""
        return self._books.now_ms


class Replays:
    """Asks for replays, and carries them out while it is open."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.ways = Ways(books.reader)
        self.requests = Requests(books.journal, books.reader, Clock(books).now_ms)
        self.replayer = Replayer(books.journal, self.ways, Clock(books), Damage())

    async def ask(self, rate: float | None = None, **wanted: Any) -> Replay:
        """Ask for a replay, and begin it."""
        return self.begun(await self.requests.many(ReplayFilter(**wanted), rate))

    def begun(self, replay: Replay) -> Replay:
        """Begin a replay that was recorded."""
        self.replayer.begin(replay)
        return replay

    async def until(self, number: int, wanted: Callable[[Replay], bool]) -> Replay:
        """Return a replay once it is as wanted."""
        with anyio.fail_after(30):
            while True:
                replay = (await view_replay(self.books.reader, number)).replay
                if wanted(replay):
                    return replay
                await anyio.sleep(0.005)

    async def finished(self, number: int) -> Replay:
        """Return a replay once it has come to its end."""
        return await self.until(number, lambda replay: bool(replay.row.finished))

    async def done(self, rate: float | None = None, **wanted: Any) -> Replay:
        """Ask for a replay, and return it once it has come to its end."""
        return await self.finished((await self.ask(rate, **wanted)).row.number)

    async def advance(self, replay: Replay, limit: int = CHUNK) -> AdvanceReplay:
        """Return the command for the next chunk of a replay."""
        request, row = replay.request, replay.row
        step = await self.ways.step(
            request.wanted, replay.place, self.books.journal.webhooks, before=row.number, limit=limit
        )
        return AdvanceReplay(replay, step.candidates, step.place, step.finished, self.books.now_ms)


@asynccontextmanager
async def replaying(books: Books) -> AsyncIterator[Replays]:
    """Carry out replays in the background."""
    opened = Replays(books)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(opened.replayer.run)
        try:
            yield opened
        finally:
            opened.replayer.stop()


async def settle(books: Books, webhook: int, seqs: Iterable[int], state: int) -> None:
    """Record, one after the other, an attempt at each of those deliveries that brings it to that end."""
    known = {event: (attempts, charged) for event, attempts, charged in books.rows(
        "SELECT event, attempts, charged FROM delivery WHERE webhook = ?", webhook
    )}  # fmt: skip
    outcomes = [
        Outcome(
            AttemptRecorded(
                seq, webhook, known[seq][0] + 1, books.now_ms, 5, 200, "", "", b"", ENDS[state], known[seq][1] + 1,
                books.now_ms, "because",
            )
        )
        for seq in seqs
    ]  # fmt: skip
    (effects,) = await books.do(RecordAttempts(outcomes))
    assert set(effects) <= {ENDS[state]}


def moves(books: Books) -> list[DeliveriesMoved]:
    """Return the records of deliveries that were moved."""
    return [record for record in books.records() if isinstance(record, DeliveriesMoved)]


def moved(books: Books) -> list[int]:
    """Return the events of the deliveries that were moved, in order."""
    return [row.event for record in moves(books) for row in record.rows]


def id_of(books: Books, webhook: int, seq: int) -> str:
    """Return the id of a delivery."""
    record = books.records()[seq - 1]
    assert isinstance(record, EventAccepted)
    return delivery_text(record.id, webhook)
