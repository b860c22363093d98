"""The journal's commands in any order, against a model of a few dictionaries; with restarts and crashes in between.

Whoever adds a command adds what it does to `Model`, and a rule here.
"""

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from outbox.domain.deliveries import Effect
from outbox.domain.errors import ConflictError
from outbox.domain.ids import key_digest
from outbox.domain.replays import ReplayFilter
from outbox.domain.webhooks import Address, Order
from outbox.journal import pruning, sweeping
from outbox.journal.accepting import Accept, AcceptBatch, Accepted, Key
from outbox.journal.commands import Command
from outbox.journal.reaching import Ways
from outbox.journal.replaying import AdvanceReplay, RequestReplay
from outbox.journal.replays import running_replays
from outbox.journal.setting import DeleteWebhook
from outbox.journal.sweeping import Bury, Convert, Expire
from tests.store.books import PENDING, WAITING, an_event
from tests.store.comparing import prunable
from tests.store.entries import Hook
from tests.store.machine import CHUNK, Machine, Pruning

WINDOW_MS = 4000
INSTANCES = st.sampled_from(["shop", "shop", "shop", "mall"])
NOBODY = st.just("nobody")
CHATS = st.sampled_from(["a", "a", "a", "b", ""])
ORDERS: st.SearchStrategy[Order] = st.sampled_from(["chat", "chat", "instance", "none"])
EFFECTS = st.sampled_from([Effect.ACKNOWLEDGE] * 4 + [Effect.BURY, Effect.BURY, Effect.RETRY, Effect.SUSPEND])
STATES = st.sampled_from(["held", "dead", "pending", "waiting", "acknowledged", ""])
AGES = st.sampled_from([-1_000_000, -1_000_000, 0, 2500, 12_000])
RATES = st.sampled_from([None, None, 2.0])
OFTEN = st.sampled_from([True] * 5 + [False])


class Journaling(Machine):
    """The rules, each with what its commands must answer."""

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

    @rule(data=st.data(), order=ORDERS, steps=st.lists(st.sampled_from("cCmmer"), min_size=2, max_size=10))
    def change_order(self, data: st.DataObject, order: Order, steps: list[str]) -> None:
        """Change the order of a webhook that is there, and begin to convert it, with much going on in between."""
        hook = self.hook(data)
        self.set_webhook(hook.instance, hook.name, order, enabled=True)
        for step in steps:
            if hook.deleted_ms is not None:
                return
            if step == "c":
                self._convert(hook)
            elif step == "C":
                self._convert_phase(hook)
            elif step == "m":
                self.meet(data, ["A", "a", "A"])
            elif step == "r":
                self._advance(data, self._request(ReplayFilter(webhook=hook.number, acknowledged=True), None))
            elif self.model.rows:
                self.expire(data, 0)
            self.all_is_as_in_the_model()

    @precondition(lambda self: len(self.model.live()) > 1)
    @rule(data=st.data())
    def delete_webhook(self, data: st.DataObject) -> None:
        """Delete a webhook."""
        self._delete(self.hook(data))

    def _delete(self, hook: Hook) -> None:
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

    @rule(
        instance=st.one_of(INSTANCES, NOBODY),
        chats=st.lists(CHATS, min_size=1, max_size=6),
        key=st.sampled_from(["", "", "k", "l"]),
    )
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

    # --------------------------------------------------------------------------------------------------------- replays

    @rule(data=st.data(), states=st.lists(STATES, min_size=2, max_size=4), rate=RATES)
    def replay(self, data: st.DataObject, states: list[str], rate: float | None) -> None:
        """Ask for replays of deliveries in some states, of which there mostly are some, and mostly begin them."""
        for state in states:
            hook = self.hook(data)
            if data.draw(OFTEN, label="prepared"):
                self._prepare(hook, state)
            wanted = ReplayFilter(
                webhook=data.draw(st.sampled_from([hook.number, None]), label="of"),
                instance=data.draw(st.sampled_from([hook.instance, None]), label="in"),
                state=state or None,
                acknowledged=data.draw(st.booleans(), label="acknowledged"),
            )
            number = self._request(wanted, rate)
            for _ in range(data.draw(st.integers(0, 3), label="chunks")):
                self._advance(data, number)

    @rule(data=st.data(), chats=st.lists(CHATS, min_size=1, max_size=4), rate=RATES, chunks=st.integers(0, 3))
    def add(self, data: st.DataObject, chats: list[str], rate: float | None, chunks: int) -> None:
        """Ask for events to be added that came while their webhook was disabled."""
        hook = self.hook(data)
        self.set_webhook(hook.instance, hook.name, hook.order, enabled=False)
        self.accept_batch(hook.instance, chats, "")
        self.set_webhook(hook.instance, hook.name, hook.order, enabled=True)
        number = self._request(ReplayFilter(webhook=hook.number, adds=True), rate)
        for _ in range(chunks):
            self._advance(data, number)

    def _prepare(self, hook: Hook, state: str) -> None:
        """Have some deliveries of a webhook in a state."""
        if state == "held":
            self.set_webhook(hook.instance, hook.name, hook.order, enabled=False)
        elif state in {"dead", "acknowledged"}:
            own = [event for (number, event), row in self.model.rows.items() if number == hook.number and row.unsettled]
            for event in own[:3]:
                self._settle(hook.number, event, Effect.BURY if state == "dead" else Effect.ACKNOWLEDGE)

    @precondition(lambda self: any(not again.finished for again in self.model.replays.values()))
    @rule(data=st.data(), chunks=st.integers(1, 4))
    def advance_replay(self, data: st.DataObject, chunks: int) -> None:
        """Take a replay on by some chunks; what a step has found may change before its commit."""
        running = [number for number, again in self.model.replays.items() if not again.finished]
        number = data.draw(st.sampled_from(running), label="replay")
        for _ in range(chunks):
            self._advance(data, number)

    def _request(self, wanted: ReplayFilter, rate: float | None) -> int:
        (answer,) = self.do(RequestReplay(wanted, rate, None, self.books.now_ms))
        assert answer.row.number == self.model.request(wanted, rate)
        return answer.row.number  # type: ignore[no-any-return]

    def _advance(self, data: st.DataObject, number: int) -> None:
        again = self.model.replays[number]
        if again.finished:
            return
        running_now, _ = self.runner.run(running_replays(self.books.reader))
        stored = {replay.row.number: replay for replay in running_now}[number]
        webhooks = self.books.journal.webhooks
        step = self.runner.run(
            Ways(self.books.reader).step(again.wanted, stored.place, webhooks, before=number, limit=CHUNK)
        )
        found = [candidate.event for candidate in step.candidates]
        assert (found, step.place, step.finished) == self.model.step(again)
        if bool(found) and data.draw(st.booleans(), label="something comes between"):
            self._come_between(data, self.model.hooks[step.place.webhook], found, adds=again.wanted.adds)
        advance = AdvanceReplay(stored, step.candidates, step.place, step.finished, self.books.now_ms)
        (answer,) = self.do(advance)
        assert (answer is not None) == self.model.advance(again, found, step.place, finished=step.finished)
        self.all_is_as_in_the_model()

    def _come_between(self, data: st.DataObject, hook: Hook, found: list[int], *, adds: bool) -> None:
        """Change what the step of a replay has found before its commit."""
        often = "replay" if adds else "attempt"
        what = data.draw(
            st.sampled_from([often, often, often, "setting", "setting", "deletion", "replay"]), label="what"
        )
        if what == "setting":
            order = data.draw(st.sampled_from([hook.order, hook.order, "chat", "none"]), label="order")
            enabled = data.draw(OFTEN, label="other") is not hook.enabled
            self.set_webhook(hook.instance, hook.name, order, enabled=enabled)
        elif what == "deletion" and len(self.model.live()) > 1:
            self._delete(hook)
        elif what == "replay":
            self._advance(data, self._request(ReplayFilter(webhook=hook.number, adds=adds), None))
        else:
            event = data.draw(st.sampled_from(found), label="event")
            self._settle(hook.number, event, data.draw(EFFECTS, label="effect"))

    def _settle(self, number: int, event: int, effect: Effect) -> None:
        """Record the next attempt of a delivery."""
        row = self.model.rows.get((number, event))
        attempt = row.attempts + 1 if row else 1
        command = self.books.outcome(number, event, effect, attempt=attempt, charged=attempt)
        assert self.do(command) == [[self.model.attempt(number, event, attempt, effect, 0)]]

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

    @rule(data=st.data(), age_ms=AGES, between=st.lists(st.sampled_from(" mesrk."), max_size=4))
    def prune(self, data: st.DataObject, age_ms: int, between: list[str]) -> None:
        """Prune what is older than that; much goes on after a chunk was looked at, and sometimes it ends there."""
        cutoff_ms, keyed_ms = self.books.now_ms - age_ms, self.books.now_ms - WINDOW_MS
        end = prunable(self.books, self.model, cutoff_ms)
        pruning = Pruning(self.books, self.runner.get_loop(), age_ms, WINDOW_MS)
        try:
            reached = self._cut(data, pruning, between, cutoff_ms, keyed_ms)
            assert reached in {None, end}
        finally:
            self.runner.run(pruning.stop())

    def _cut(
        self, data: st.DataObject, pruning: Pruning, between: list[str], cutoff_ms: int, keyed_ms: int
    ) -> int | None:
        """Cut chunk by chunk; return the last record that was reached, None if it was told to stop."""
        reached, steps = 0, iter(between)
        while (command := self.runner.run(pruning.chunk())) is not None:
            if (step := next(steps, " ")) == ".":
                return None
            self._meanwhile(data, step)
            (gone,) = self.runner.run(self.books.do(command))
            first, reached = reached + 1, command.chunk.last
            counts = self.model.cut(first, reached, cutoff_ms, keyed_ms, carried=len(command.chunk.webhooks))
            assert (gone.events, gone.deliveries) == counts
            pruning.go_on(gone)
        return reached

    def _meanwhile(self, data: st.DataObject, step: str) -> None:
        """Have a step of another kind before a chunk is cut that has been looked at."""
        if step == "m":
            self.meet(data, ["A", "a", "A", "A"])
        elif step == "e" and self.model.rows:
            self.expire(data, 0)
        elif step == "s":
            hook = self.hook(data)
            self.set_webhook(hook.instance, hook.name, data.draw(ORDERS), enabled=not hook.enabled)
        elif step == "r":
            self._advance(data, self._request(ReplayFilter(acknowledged=True), None))
        elif step == "k":
            self.accept_batch("shop", ["a", "b"], "k")
        if step != " ":
            self.all_is_as_in_the_model()


def request_of(instance: str, chats: list[str]) -> bytes:
    """Return what stands for a batch's body."""
    return key_digest(instance, "\0".join(chats).encode()) * 2


@pytest.fixture(autouse=True)
def chunks_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every sweep, and every prune, take many chunks."""
    monkeypatch.setattr(sweeping, "CHUNK", CHUNK)
    monkeypatch.setattr(sweeping, "ROWS_CHUNK", CHUNK)
    monkeypatch.setattr(pruning, "CHUNK", 7)


TestJournaling = Journaling.TestCase
TestJournaling.settings = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
)
