"""The journal's commands in any order, against a model of a few dictionaries; with restarts and crashes in between.

Whoever adds a command (a replay, for one) adds what it does to `Model`, and a rule here.
"""

import asyncio
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outbox.domain.deliveries import Delivery, Effect
from outbox.domain.errors import ConflictError
from outbox.domain.ids import key_digest
from outbox.domain.webhooks import Address, Order
from outbox.journal import sweeping
from outbox.journal.accepting import Accept, AcceptBatch, Accepted, Key
from outbox.journal.commands import Command
from outbox.journal.setting import DeleteWebhook
from outbox.journal.sweeping import Bury, Convert, Expire
from tests.store.books import PENDING, START_MS, WAITING, Books, an_event
from tests.store.model import Hook, Model

CHUNK = 2
WINDOW_MS = 4000
INSTANCES = st.sampled_from(["shop", "shop", "shop", "mall"])
CHATS = st.sampled_from(["a", "a", "a", "b", ""])
ORDERS: st.SearchStrategy[Order] = st.sampled_from(["chat", "chat", "instance", "none"])
EFFECTS = st.sampled_from([Effect.ACKNOWLEDGE] * 4 + [Effect.BURY, Effect.BURY, Effect.RETRY, Effect.SUSPEND])
OFTEN = st.sampled_from([True] * 5 + [False])


class Journaling(RuleBasedStateMachine):
    """Each rule does the same to a real file and to the model; after each the two are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="outbox-model-"))
        self.runner = asyncio.Runner()
        self.crashes = 0
        self.books = Books(self.folder / "0.db")
        self.model = Model(CHUNK, now_ms=START_MS)
        self.runner.run(self.books.open())

    def teardown(self) -> None:
        """Check that all of it follows from the log."""
        self.runner.run(self.books.check())
        self.runner.run(self.books.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def do(self, *commands: Command[Any]) -> list[Any]:
        """Submit commands in one go; return their answers, refusals as such."""

        async def answers() -> list[Any]:
            submitted = [self.books.journal.submit(command) for command in commands]
            return await asyncio.gather(*submitted, return_exceptions=True)

        return self.runner.run(answers())

    def hook(self, data: st.DataObject, *, deleted: bool = False) -> Hook:
        """Draw a webhook, live or deleted."""
        numbers = [number for number, hook in self.model.hooks.items() if (hook.deleted_ms is not None) == deleted]
        return self.model.hooks[data.draw(st.sampled_from(numbers), label="webhook")]

    # ------------------------------------------------------------------------------------------------------- webhooks

    @initialize(orders=st.tuples(ORDERS, ORDERS))
    def begin(self, orders: tuple[Order, Order]) -> None:
        """Begin with a webhook for each instance, and some events: nothing happens without."""
        self.set_webhook("shop", "", orders[0], enabled=True)
        self.set_webhook("mall", "", orders[1], enabled=True)
        self.accept_batch("shop", ["a", "b", "a", "", "c", "a"], "")

    @rule(instance=INSTANCES, name=st.sampled_from(["", "", "b"]), order=ORDERS, enabled=OFTEN)
    def set_webhook(self, instance: str, name: str, order: Order, *, enabled: bool) -> None:
        """Set a webhook, a new one or one that is there."""
        ((webhook, new),) = self.do(self.books.setting(instance, name=name, order=order, enabled=enabled))
        assert new == (self.model.find(instance, name) is None)
        self.model.set(instance, name, order, enabled=enabled)
        hook = self.model.find(instance, name)
        assert hook is not None
        assert webhook.number == hook.number

    @rule(data=st.data(), order=ORDERS, steps=st.lists(st.sampled_from("cCmme"), min_size=2, max_size=10))
    def change_order(self, data: st.DataObject, order: Order, steps: list[str]) -> None:
        """Change the order of a webhook that is there, and begin to convert it, with much going on in between."""
        hook = self.hook(data)
        self.set_webhook(hook.instance, hook.name, order, enabled=True)
        for step in steps:
            if step == "c":
                self._convert(hook)
            elif step == "C":
                self._convert_phase(hook)
            elif step == "m":
                self.meet(data, ["A", "a", "A"])
            else:
                self.expire(data, 0)
            self.all_is_as_in_the_model()

    @precondition(lambda self: len(self.model.live()) > 1)
    @rule(data=st.data())
    def delete_webhook(self, data: st.DataObject) -> None:
        """Delete a webhook."""
        hook = self.hook(data)
        self.do(DeleteWebhook(Address("instance", hook.instance, hook.name), self.books.now_ms))
        self.model.delete(hook)

    @precondition(lambda self: len(self.model.live()) < len(self.model.hooks))
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        """Bury a chunk of a deleted webhook's deliveries."""
        hook = self.hook(data, deleted=True)
        if hook.buried < 1 << 62:
            (after,) = self.do(Bury(hook.number, hook.buried, self.books.now_ms, "deleted"))
            self.model.bury(hook)
            assert (after or 1 << 62) == hook.buried

    @rule(data=st.data(), opened=st.booleans())
    def move_breaker(self, data: st.DataObject, opened: bool) -> None:  # noqa: FBT001 - hypothesis gives it by its name
        """Open or close a breaker, also of a webhook that is gone."""
        hook = self.hook(data, deleted=len(self.model.live()) < len(self.model.hooks) and data.draw(st.booleans()))
        assert self.do(self.books.moving(hook.number, opened=opened)) == [self.model.move_breaker(hook, opened=opened)]

    # --------------------------------------------------------------------------------------------- events and attempts

    @rule(instance=INSTANCES, chats=st.lists(CHATS, min_size=1, max_size=6), key=st.sampled_from(["", "", "k", "l"]))
    def accept_batch(self, instance: str, chats: list[str], key: str) -> None:
        """Accept a batch, with a key or without."""
        events = [an_event(instance, chat) for chat in chats]
        known = Key(key_digest("batch", key.encode()), request_of(instance, chats), WINDOW_MS) if key else None
        (answer,) = self.do(AcceptBatch(events, self.books.now_ms, known))
        before = self.model.seq
        expected = self.model.accept(instance, chats, f"batch {key}" if key else "", WINDOW_MS)
        if expected == "conflict":
            assert isinstance(answer, ConflictError)
        else:
            assert answer[0] == expected
            assert len(answer[1]) == (len(chats) if self.model.seq > before else 0)

    @rule(data=st.data(), kinds=st.lists(st.sampled_from("aA"), min_size=2, max_size=10))
    def meet(self, data: st.DataObject, kinds: list[str]) -> None:
        """Accept events and record attempts, all in one commit, in any order."""
        made: Counter[tuple[int, int]] = Counter()
        pairs = [self._accept(data) if kind == "a" else self._attempt(data, made) for kind in kinds]
        for answer, (_, check) in zip(self.do(*[command for command, _ in pairs]), pairs, strict=True):
            check(answer)

    def _accept(self, data: st.DataObject) -> tuple[Command[Any], Any]:
        instance, chat = data.draw(INSTANCES), data.draw(CHATS)
        key = data.draw(st.sampled_from(["", "", "", "k", "l"]), label="key")
        event = an_event(instance, chat)
        known = Key(key_digest("events", key.encode()), event.digest, WINDOW_MS) if key else None

        def check(answer: Accepted | Exception) -> None:
            before = self.model.seq
            expected = self.model.accept(instance, [chat], key, WINDOW_MS)
            if expected == "conflict":
                assert isinstance(answer, ConflictError)
            else:
                assert isinstance(answer, Accepted)
                assert (answer.seq, answer.replayed) == (expected, self.model.seq == before)

        return Accept(event, self.books.now_ms, known), check

    def _attempt(self, data: st.DataObject, made: Counter[tuple[int, int]]) -> tuple[Command[Any], Any]:
        """Draw an attempt of any delivery, mostly the next one of one that is pending; count those of this commit."""
        rows = self.model.rows
        states = {PENDING} if data.draw(OFTEN, label="pending") else {PENDING, WAITING}
        # Of the oldest few, so that attempts of one queue meet.
        pairs = [pair for pair, row in rows.items() if row.state in states and pair not in made][:5]
        if not pairs or not data.draw(OFTEN, label="not settled"):
            pairs = [*rows, (1, 999)]
        number, event = data.draw(st.sampled_from(pairs), label="delivery")
        row, hook = self.model.rows.get((number, event)), self.model.hooks[number]
        attempt = (row.attempts if row else 0) + made[number, event]
        attempt += data.draw(st.sampled_from([1] * 10 + [0, 2]), label="attempt")
        made[number, event] += 1
        effect = data.draw(EFFECTS, label="effect")
        revision = hook.revision if data.draw(OFTEN) else hook.revision - 1

        def check(answer: list[Effect]) -> None:
            assert answer == [self.model.attempt(number, event, attempt, effect, revision)]

        return self.books.outcome(number, event, effect, attempt=attempt, charged=attempt, revision=revision), check

    @precondition(lambda self: self.model.rows)
    @rule(data=st.data(), age_ms=st.integers(0, 3000))
    def expire(self, data: st.DataObject, age_ms: int) -> None:
        """Expire some deliveries of a webhook, if they are older than that."""
        number = data.draw(st.sampled_from(sorted({number for number, _ in self.model.rows})), label="webhook")
        own = [event for webhook, event in self.model.rows if webhook == number]
        events = data.draw(st.lists(st.sampled_from(own), max_size=5), label="events")
        cutoff_ms = self.books.now_ms - age_ms
        (expired,) = self.do(Expire(number, events, cutoff_ms, self.books.now_ms, "expired"))
        assert expired == self.model.expire(number, events, cutoff_ms)

    # ------------------------------------------------------------------------------------------------------ everything

    @precondition(lambda self: any(hook.phase for hook in self.model.live()))
    @rule(data=st.data(), chunks=st.integers(1, 3), to_the_end=st.booleans())
    def convert(self, data: st.DataObject, chunks: int, to_the_end: bool) -> None:  # noqa: FBT001 - see move_breaker
        """Convert some chunks of a webhook whose order was changed, or all that is left."""
        numbers = [hook.number for hook in self.model.live() if hook.phase]
        hook = self.model.hooks[data.draw(st.sampled_from(numbers), label="webhook")]
        for _ in range(chunks):
            self._convert(hook)
        if to_the_end:
            self._convert_phase(hook)
            self._convert_phase(hook)

    def _convert_phase(self, hook: Hook) -> None:
        """Convert chunks until the next phase begins."""
        phase = hook.phase
        while phase and hook.phase == phase:
            self._convert(hook)

    def _convert(self, hook: Hook) -> None:
        assert self.do(Convert(hook.number, self.books.now_ms)) == [self.model.convert(hook)]

    @rule(step_ms=st.sampled_from([1, 500, 2000, 10_000, -700]))
    def wait(self, step_ms: int) -> None:
        """Let time pass; sometimes a clock goes back."""
        self.books.now_ms += step_ms
        self.model.now_ms += step_ms

    @rule(crash=st.booleans())
    def reopen(self, crash: bool) -> None:  # noqa: FBT001 - hypothesis gives it by its name
        """Start anew on the same file, after a stop in order or on what a killed process leaves behind."""
        if crash:
            self.crashes += 1
            left = self.books
            self.books = Books(self.folder / f"{self.crashes}.db")
            self.books.now_ms = left.now_ms
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{left.path}{suffix}", f"{self.books.path}{suffix}")
            self.runner.run(left.close())
            self.runner.run(self.books.open())
        else:
            self.runner.run(self.books.reopen())
        self.model.forget()

    @invariant()
    def all_is_as_in_the_model(self) -> None:
        """Compare every projection, and the number of records."""
        model, rows = self.model, self.books.rows
        columns = ", ".join(Delivery._fields)
        assert [Delivery._make(row) for row in rows(f"SELECT {columns} FROM delivery ORDER BY 1, 2")] == (  # noqa: S608
            model.deliveries()
        )
        assert {(webhook, state): n for webhook, state, n in rows("SELECT * FROM counter") if n} == model.counters()
        assert rows("SELECT seq, instance FROM event ORDER BY seq") == [
            (seq, instance) for seq, (instance, _) in model.events.items()
        ]
        assert sorted(rows("SELECT event FROM idempotency")) == sorted((seq,) for seq, _, _ in model.keys.values())
        assert rows("SELECT max(seq) FROM log") == [(model.seq or None,)]
        self._compare_webhooks()
        self.books.check_queues()

    def _compare_webhooks(self) -> None:
        """Compare the rows of webhooks, and what the journal has in memory."""
        stored = self.books.rows(
            "SELECT number, instance, name, created_ms, deleted_ms, suspended_ms, opened_ms, held, phase, position,"
            " until, settings FROM webhook ORDER BY number"
        )
        for (*fields, held, phase, position, until, settings_), hook in zip(
            stored, self.model.hooks.values(), strict=True
        ):
            assert fields == [
                hook.number, hook.instance, hook.name, hook.created_ms, hook.deleted_ms, hook.suspended_ms,
                hook.opened_ms,
            ]  # fmt: skip
            assert tuple(map(tuple, msgspec.msgpack.decode(held))) == hook.held
            assert (phase, position, until) == (hook.phase, hook.position, hook.until)
            chosen = msgspec.msgpack.decode(settings_)
            assert (chosen["order"], chosen["enabled"]) == (hook.order, hook.enabled)
        for hook in self.model.live():
            known = self.books.webhook(hook.number)
            assert (known.suspended_ms, known.opened_ms, known.held) == (hook.suspended_ms, hook.opened_ms, hook.held)
            assert known.conversion == (hook.phase, hook.position, hook.until)
            assert known.revision == hook.revision


def request_of(instance: str, chats: list[str]) -> bytes:
    """Return what stands for a batch's body."""
    return key_digest(instance, "\0".join(chats).encode()) * 2


@pytest.fixture(autouse=True)
def chunks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sweep take many chunks."""
    monkeypatch.setattr(sweeping, "CHUNK", CHUNK)
    monkeypatch.setattr(sweeping, "ROWS_CHUNK", CHUNK)


TestJournaling = Journaling.TestCase
TestJournaling.settings = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
