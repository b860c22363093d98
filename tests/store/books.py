"""A store and its journal on a real file, without a relay: commands go in, and all that is stored can be looked at."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from outbox.domain.deliveries import MOVES, Delivery, Effect, State
from outbox.domain.events import Event, read_event
from outbox.domain.projecting import PRUNED, PRUNED_EVENTS
from outbox.domain.records import AttemptRecorded, DeliveriesMoved, Record, decode
from outbox.domain.webhooks import Address, Credentials, Order, Settings, Webhook
from outbox.journal.accepting import Accept, AcceptBatch
from outbox.journal.commands import Command
from outbox.journal.folding import verify
from outbox.journal.ledger import load_webhooks
from outbox.journal.pruning import Prune, Pruned, Shears
from outbox.journal.recording import Outcome, RecordAttempts
from outbox.journal.setting import DeleteWebhook, MoveBreaker, SetWebhook
from outbox.journal.sweeping import Bury, Convert, Expire
from outbox.journal.writer import Journal
from outbox.store.protocol import Reader
from outbox.store.sqlite import SqliteStore, open_store
from outbox.store.sqlite.files import HeadFile

START_MS = 1_762_161_342_000
QUEUE_BYTES = 1 << 28
PENDING, WAITING, ACKNOWLEDGED, DEAD = map(int, State)
PROJECTIONS = {"event": 1, "delivery": 2, "webhook": 1, "idempotency": 1, "counter": 2, "replay": 1}
"""The tables that follow from the log, each with the width of its key."""


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """Somebody stops half-way."""


class Books:
    """One file, open for writing. `now_ms` is the time of every command, and moves as a test moves it."""

    def __init__(self, path: Path) -> None:
        """Name the file; `open` is the way to open it."""
        self.path = path
        self.now_ms = START_MS
        self._writing: asyncio.Task[None] | None = None

    async def open(self) -> Self:
        """Open the file, as a service does that starts."""
        self.store: SqliteStore = await open_store(self.path)
        self.reader: Reader = await self.store.reader()
        self.journal = Journal(self.store, load_webhooks(*await self.reader.webhooks()), QUEUE_BYTES)
        self._writing = asyncio.create_task(self.journal.run())
        return self

    async def close(self) -> None:
        """Stop the journal and close the file."""
        assert self._writing is not None
        await self.journal.drain()
        await self._writing
        await self.reader.aclose()
        await self.store.aclose()

    async def reopen(self) -> None:
        """Go on with a journal that knows nothing but what is on disk."""
        await self.close()
        await self.open()

    async def do(self, *commands: Command[Any]) -> list[Any]:
        """Submit the commands in one go, so that they meet in one commit if they may; return their answers."""
        return list(await asyncio.gather(*[self.journal.submit(command) for command in commands]))

    # ------------------------------------------------------------------------------------------------------- webhooks

    def setting(self, instance: str, *, enabled: bool = True, order: Order = "none", name: str = "") -> SetWebhook:
        """Return the command that sets the webhook of an instance."""
        settings = Settings(url=f"http://{instance}.test/", enabled=enabled, order=order)
        address = Address("instance", instance, name)
        return SetWebhook(address, "api", self.now_ms, lambda _known: (settings, Credentials()))

    async def set(self, instance: str, *, enabled: bool = True, order: Order = "none") -> int:
        """Set the webhook of an instance; return its number."""
        ((webhook, _),) = await self.do(self.setting(instance, enabled=enabled, order=order))
        return int(webhook.number)

    async def delete(self, instance: str) -> None:
        """Delete the webhook of an instance."""
        await self.do(DeleteWebhook(Address("instance", instance), self.now_ms))

    def webhook(self, number: int) -> Webhook:
        """Return a live webhook as of the last commit."""
        webhook = self.journal.webhooks.get(number)
        assert webhook is not None
        return webhook

    def moving(self, number: int, *, opened: bool) -> MoveBreaker:
        """Return the command that moves the breaker of a webhook's lane."""
        return MoveBreaker(number, opened, "because", self.now_ms)

    async def move_breaker(self, number: int, *, opened: bool) -> bool:
        """Move the breaker of a webhook's lane; say whether that was news."""
        (news,) = await self.do(self.moving(number, opened=opened))
        return bool(news)

    # --------------------------------------------------------------------------------------------------------- events

    def accepting(self, instance: str, chat: str = "a") -> Accept:
        """Return the command that accepts an event of a chat."""
        return Accept(an_event(instance, chat), self.now_ms)

    async def accept(self, instance: str, *chats: str) -> list[int]:
        """Accept an event of each chat, one commit for all; return their seqs."""
        return [answer.seq for answer in await self.do(*[self.accepting(instance, chat) for chat in chats])]

    async def accept_batch(self, instance: str, chats: Sequence[str]) -> list[int]:
        """Accept a batch; return the seqs of its events."""
        ((first, ids),) = await self.do(AcceptBatch([an_event(instance, chat) for chat in chats], self.now_ms))
        return list(range(first, first + len(ids)))

    # ------------------------------------------------------------------------------------------------------- attempts

    def outcome(
        self, webhook: int, event: int, effect: Effect, *, attempt: int = 1, charged: int = 1, revision: int = 0
    ) -> RecordAttempts:
        """Return the command that records an attempt which began now and took 5 ms."""
        record = AttemptRecorded(
            event=event, webhook=webhook, attempt=attempt, at_ms=self.now_ms, took_ms=5, status=200, error="",
            detail="", excerpt=b"", effect=effect, charged=charged, due_ms=self.now_ms + 1000, reason="",
        )  # fmt: skip
        return RecordAttempts([Outcome(record, revision)])

    async def record(self, webhook: int, event: int, effect: Effect, *, attempt: int = 1, revision: int = 0) -> Effect:
        """Record an attempt; return the effect it really had."""
        command = self.outcome(webhook, event, effect, attempt=attempt, revision=revision)
        (((had,)),) = await self.do(command)
        return Effect(had)

    # --------------------------------------------------------------------------------------------------------- sweeps

    async def convert(self, webhook: int, steps: int = 1 << 20) -> bool:
        """Convert at most so many chunks; say whether there is more to convert."""
        more = True
        while more and steps:
            (more,) = await self.do(Convert(webhook, self.now_ms))
            steps -= 1
        return more

    async def bury(self, webhook: int, steps: int = 1 << 20) -> None:
        """Bury at most so many chunks of what a deleted webhook has left."""
        after: int | None = 0
        while after is not None and steps:
            (after,) = await self.do(Bury(webhook, after, self.now_ms, "deleted"))
            steps -= 1

    async def expire(self, webhook: int, events: list[int], cutoff_ms: int) -> int:
        """Expire those of the events' deliveries that are too old; return how many."""
        (expired,) = await self.do(Expire(webhook, events, cutoff_ms, self.now_ms, "expired"))
        return int(expired)

    async def prune(self, cutoff_ms: int, window_ms: int = 0, steps: int = 1 << 20) -> Pruned:
        """Prune what is from before that, at most so many chunks; return what is gone."""
        total, left = Pruned(), steps

        async def submit(command: Prune) -> Pruned:
            nonlocal left
            if not left:
                raise Interrupted
            left -= 1
            gone: Pruned = (await self.do(command))[0]
            total.add(gone)
            return gone

        with suppress(Interrupted):
            shears = Shears(self.reader, window_ms)
            await shears.cut(submit, lambda: self.now_ms, self.now_ms - cutoff_ms, lambda _place, _end, _gone: None)
        return total

    # -------------------------------------------------------------------------------------------------------- looking

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the file something, over a connection of its own."""
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        try:
            return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    def delivery(self, webhook: int, event: int) -> Delivery:
        """Return a delivery as its row has it."""
        columns = ", ".join(Delivery._fields)
        ((row),) = self.rows(f"SELECT {columns} FROM delivery WHERE webhook = ? AND event = ?", webhook, event)  # noqa: S608
        return Delivery._make(row)

    def states(self, webhook: int) -> list[int]:
        """Return the states of a webhook's deliveries in order of events."""
        return [state for (state,) in self.rows("SELECT state FROM delivery WHERE webhook = ? ORDER BY event", webhook)]

    def records(self) -> list[Record]:
        """Return the whole log."""
        return [decode(data) for (data,) in self.rows("SELECT record FROM log ORDER BY seq")]

    def last(self) -> Record:
        """Return the last record."""
        return decode(self.rows("SELECT record FROM log ORDER BY seq DESC LIMIT 1")[0][0])

    def projections(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the projections, row by row; a counter of nothing says the same as none."""
        return {
            table: [
                row
                for row in self.rows(f"SELECT * FROM {table} ORDER BY {','.join(map(str, range(1, width + 1)))}")  # noqa: S608
                if table != "counter" or row[2]
            ]
            for table, width in PROJECTIONS.items()
        }

    async def check(self) -> None:
        """Fail unless everything stored follows from the log, and rebuilding changes nothing."""
        report = await verify(self.reader, HeadFile(self.path).read())
        assert report.problems == []
        before = self.projections()
        await self.store.rebuild()
        assert self.projections() == before
        self.check_counters()
        self.check_moves()
        self.check_queues()

    def check_counters(self) -> None:
        """Fail unless the counters say what counting the rows says."""
        counted = self.rows("SELECT webhook, state, count(*) FROM delivery GROUP BY 1, 2")
        events = self.rows("SELECT 0, -1, count(*) FROM event HAVING count(*)")
        stored = [row for row in self.projections()["counter"] if row[:2] not in {PRUNED_EVENTS, *PRUNED.values()}]
        assert sorted(stored) == sorted([*events, *counted])

    def check_moves(self) -> None:
        """Fail unless every row that was moved without an attempt went from where to where its move may take it."""
        for record in self.records():
            if isinstance(record, DeliveriesMoved):
                before, after = MOVES[record.move]
                assert all(row.before in (before or {None}) and row.state in after for row in record.rows), record

    def check_queues(self) -> None:
        """Fail unless one of each queue is pending, the others waiting: of live webhooks not being converted."""
        for webhook in self.journal.webhooks:
            if webhook.conversion.phase:
                continue
            ordered = webhook.settings.order != "none"
            heads: Counter[int | None] = Counter()
            for queue, state in self.rows(
                "SELECT queue, state FROM delivery WHERE webhook = ? AND state < 2 ORDER BY event", webhook.number
            ):
                assert (queue is not None) == ordered
                assert ordered or state == PENDING
                heads[queue] += state == PENDING
            assert not ordered or set(heads.values()) <= {1}, (webhook.number, heads)


def an_event(instance: str, chat: str) -> Event:
    """Return an event of a chat."""
    return read_event(msgspec.json.encode({"event": "call", "instance": instance, "data": {"id": chat}}))
