"""The world with a bug planted into the engine: each must be noticed, or the invariants have become worthless."""

from collections.abc import Callable, Collection
from itertools import count
from typing import Any

import pytest

from outbox.domain import retrying
from outbox.domain.deliveries import Effect, State
from outbox.domain.retrying import Answer, Decision
from outbox.domain.webhooks import Webhook
from outbox.journal import replaying, writer
from outbox.journal.claims import Claims
from outbox.journal.reaching import Ways
from outbox.journal.replaying import Candidate, Replay
from outbox.relay import flight
from outbox.relay.recorder import Recorder
from tests.world.chaos import simulate
from tests.world.playing import BrokenWorldError, play
from tests.world.test_stories import full_disk

SEEDS = 40

Plant = Callable[[pytest.MonkeyPatch], None]


def drop_outcomes(patch: pytest.MonkeyPatch) -> None:
    """Plant a recorder that says of every fifth handful of outcomes that they are recorded, and forgets them."""
    genuine, turns = Recorder._submit, count(1)

    def submit(self: Recorder, outcomes: list[Any]) -> None:
        if next(turns) % 5:
            genuine(self, outcomes)
            return
        for outcome, recorded in outcomes:
            recorded(outcome.attempt.effect)

    patch.setattr(Recorder, "_submit", submit)


def believe_in_success(patch: pytest.MonkeyPatch) -> None:
    """Plant a relay that takes a timeout for an acknowledgement."""
    genuine = retrying.decide

    def decide(answer: Answer, charged: int, now_ms: int, *rest: Any) -> Decision:
        if answer.error == "timeout":
            return Decision(Effect.ACKNOWLEDGE, charged + 1, now_ms)
        return genuine(answer, charged, now_ms, *rest)

    patch.setattr(flight, "decide", decide)


def forget_after_a_crash(patch: pytest.MonkeyPatch) -> None:
    """Plant a relay that does not ask at its start what is unsettled."""

    async def nothing(self: Claims) -> set[int]:
        return set()

    patch.setattr(Claims, "unsettled_webhooks", nothing)


def answer_early(patch: pytest.MonkeyPatch) -> None:
    """Plant a journal that answers what was decided before it is written."""
    genuine = writer._Commit.decide

    def decide(self: writer._Commit, facts: Any) -> Any:
        batch = genuine(self, facts)
        for entry, answer in zip(self.entries, self.answers, strict=True):
            writer._answer(entry.answer, answer)
        return batch

    patch.setattr(writer._Commit, "decide", decide)


def claim_stale(patch: pytest.MonkeyPatch) -> None:
    """Plant a lane that takes what it reads for the truth, though an outcome may have come meanwhile."""
    genuine = Claims.due

    async def due(self: Claims, webhook: int, until_ms: int, limit: int, but: Collection[int] = ()) -> Any:
        found = await genuine(self, webhook, until_ms, limit + len(but))
        return [claim for claim in found if claim.seq not in but][:limit]

    patch.setattr(Claims, "due", due)


def ignore_due_times(patch: pytest.MonkeyPatch) -> None:
    """Plant a lane that claims a minute ahead."""
    genuine = Claims.due

    async def due(self: Claims, webhook: int, until_ms: int, limit: int, but: Collection[int] = ()) -> Any:
        return await genuine(self, webhook, until_ms + 60_000, limit, but)

    patch.setattr(Claims, "due", due)


def route_everything(patch: pytest.MonkeyPatch) -> None:
    """Plant webhooks that take kinds which they are not set to."""
    patch.setattr(Webhook, "takes", lambda self, _kind: self.settings.enabled)


def forget_counters(patch: pytest.MonkeyPatch) -> None:
    """Plant a store that counts nothing that is settled."""
    genuine = writer._Commit.decide

    def decide(self: writer._Commit, facts: Any) -> Any:
        batch = genuine(self, facts)
        for key in [key for key in batch.changes.counters if key[1] == 2]:
            del batch.changes.counters[key]
        return batch

    patch.setattr(writer._Commit, "decide", decide)


def forget_replays(patch: pytest.MonkeyPatch) -> None:
    """Plant a relay that does not ask at its start which replays are under way."""

    async def nothing(self: Ways) -> tuple[list[Replay], list[int]]:
        return [], []

    patch.setattr(Ways, "running", nothing)


def replay_to_the_front(patch: pytest.MonkeyPatch) -> None:
    """Plant a replay that lets what it reopens go at once, whoever stands in its queue."""

    def standing(_ledger: Any, webhook: Webhook, candidate: Candidate, *_: Any) -> tuple[State, int | None]:
        return State.PENDING, candidate.queue(webhook)

    patch.setattr(replaying, "_standing", standing)


def any_seed(first: int) -> None:
    """Play seed after seed."""
    for seed in range(first, first + SEEDS):
        simulate(seed)


@pytest.mark.parametrize(
    ("plant", "first", "noticed"),
    [
        (drop_outcomes, 0, "there was no crash in between"),
        (believe_in_success, 13, "no receiver took it"),
        (forget_after_a_crash, 3, "[1-9][0-9]* deliveries are still unsettled"),
        (answer_early, 2, "the log does not hold it|there is no event|another event now"),
        (claim_stale, 43, "attempts recorded|though it is acknowledged"),
        (ignore_due_times, 0, "ms before it is due"),
        (route_everything, 0, "the event is for webhooks"),
        (forget_counters, 0, "verify: counter"),
        (forget_replays, 3, "[1-9][0-9]* replays unfinished"),
        (replay_to_the_front, 7, "[1-9][0-9]* replays unfinished"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_planted_bug_is_noticed(plant: Plant, first: int, noticed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed breaks, and says what is wrong: the first one here, unless stories have changed since it was chosen."""
    plant(monkeypatch)
    with pytest.raises(BrokenWorldError, match=noticed):
        any_seed(first)


def test_a_recorder_that_gives_up_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes that are not offered again leave deliveries that nobody ever settles."""
    monkeypatch.setattr(Recorder, "_keep", lambda *_: None)
    with pytest.raises(BrokenWorldError, match=r"assert \d+ == 0"):
        play(full_disk)
