from itertools import count
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from outbox.domain.retrying import Answer, RetryPolicy
from outbox.relay.breaker import Breaker, Sign, sign_of

POLICY = RetryPolicy(jitter=0.0)
HOUR_S = 3600.0


def half() -> float:
    """A chance that jitters nothing."""
    return 0.5


def opened(policy: RetryPolicy = POLICY) -> Breaker:
    """A breaker that has opened at time 0."""
    breaker = Breaker(policy, half)
    assert [breaker.ended(number, 0.0, Sign.SILENT) for number in range(5)] == [False] * 4 + [True]
    return breaker


def probe(breaker: Breaker, now: float, sign: Sign, delivery: int = 100) -> bool:
    """Make a probe that ends at once."""
    assert breaker.wait_s(now) == 0
    breaker.probe(delivery)
    return breaker.ended(delivery, now, sign)


@pytest.mark.parametrize(
    ("answer", "sign"),
    [
        (Answer(200), Sign.WELL),
        (Answer(400), Sign.WELL),
        (Answer(413), Sign.WELL),
        (Answer(422), Sign.WELL),
        (Answer(404), Sign.FAILING),
        (Answer(410), Sign.WELL),
        (Answer(302), Sign.FAILING),
        (Answer(500), Sign.FAILING),
        (Answer(501), Sign.FAILING),
        (Answer(429), Sign.SILENT),
        (Answer(502), Sign.SILENT),
        (Answer(503, retry_after_s=60), Sign.SILENT),
        (Answer(504), Sign.SILENT),
        (Answer(error="timeout"), Sign.SILENT),
        (Answer(error="tls_error"), Sign.SILENT),
        (Answer(error="connection_refused"), Sign.SILENT),
        (Answer(999, "protocol_error"), Sign.SILENT),
    ],
)
def test_an_answer_is_a_sign_of_the_receivers_health(answer: Answer, sign: Sign) -> None:
    """A status that is not retried is an answer; 429 and what gateways say for a dead server are none."""
    assert sign_of(answer, POLICY) is sign


def test_which_statuses_are_answers_is_a_setting() -> None:
    """The same policy as for retries."""
    assert sign_of(Answer(503), RetryPolicy(non_retryable=frozenset({503}))) is Sign.WELL
    assert sign_of(Answer(422), RetryPolicy(non_retryable=frozenset())) is Sign.FAILING


def test_five_deliveries_that_fail_in_a_row_open_it() -> None:
    """Whatever they fail with, and however often in between."""
    breaker = Breaker(POLICY, half)
    row = [(1, Sign.FAILING), (2, Sign.SILENT), (1, Sign.FAILING), (3, Sign.FAILING), (4, Sign.FAILING)]
    assert not any(breaker.ended(delivery, 0.0, sign) for delivery, sign in row)
    assert not breaker.is_open
    assert breaker.ended(5, 0.0, Sign.FAILING)
    assert breaker.is_open


def test_five_times_no_usable_answer_in_a_row_opens_it() -> None:
    """Even for one delivery; a usable one in between is a new start."""
    breaker = Breaker(POLICY, half)
    row = [Sign.SILENT] * 4 + [Sign.FAILING] + [Sign.SILENT] * 4
    assert not any(breaker.ended(1, 0.0, sign) for sign in row)
    assert breaker.ended(1, 0.0, Sign.SILENT)


def test_a_poison_event_opens_nothing() -> None:
    """One delivery may get 500 again and again; so may four, among successes of others or alone."""
    breaker = Breaker(POLICY, half)
    assert not any(breaker.ended(number % 4, 0.0, Sign.FAILING) for number in range(1000))
    for number in range(100):
        assert not breaker.ended(number, 0.0, Sign.FAILING)
        assert not breaker.ended(number, 0.0, Sign.FAILING)
        if number % 4 == 3:
            assert not breaker.ended(1000, 0.0, Sign.WELL)


def test_probes_follow_the_schedule_of_retries_up_to_five_minutes() -> None:
    """Opening counts as the first failure; a probe at a time."""
    breaker, now, waits = opened(), 0.0, []
    for _ in range(9):
        waits.append(breaker.wait_s(now))
        now += waits[-1]
        breaker.probe(7)
        assert breaker.wait_s(now) == breaker.wait_s(now + HOUR_S) == inf
        assert not breaker.ended(7, now, Sign.SILENT)
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_three_days_cost_about_twelve_probes_an_hour() -> None:
    """With jitter, so that lanes of one receiver do not knock together; never rarer than every five minutes."""
    chances = (number * 0.61803 % 1 for number in count())
    breaker, now, probes = Breaker(RetryPolicy(), lambda: next(chances), is_open=True), 0.0, 0
    waits = set()
    while now < 72 * HOUR_S:
        waits.add(breaker.wait_s(now))
        now += breaker.wait_s(now)
        probe(breaker, now, Sign.SILENT)
        probes += 1
    assert 12 <= probes / 72 <= 14
    assert max(waits) == 300
    assert len([wait_s for wait_s in waits if 240 <= wait_s < 300]) > 100


@pytest.mark.parametrize("answer", [Answer(204), Answer(422)])
def test_any_answer_closes_it(answer: Answer) -> None:
    """And the next failures count from the beginning, as does the schedule when it opens again."""
    breaker = opened()
    probe(breaker, 5.0, Sign.SILENT)
    assert probe(breaker, 15.0, sign_of(answer, POLICY))
    assert not breaker.is_open
    assert breaker.wait_s(15.0) == 0
    assert [breaker.ended(number, 20.0, Sign.SILENT) for number in range(5)] == [False] * 4 + [True]
    assert breaker.wait_s(20.0) == 5


def test_what_began_before_it_opened_is_no_probe() -> None:
    """Its failures change nothing, not while a probe is under way either; a success closes it."""
    breaker = opened()
    for number in range(5, 40):
        assert not breaker.ended(number, 1.0, Sign.SILENT)
    assert breaker.wait_s(1.0) == 4
    breaker.probe(100)
    assert not breaker.ended(40, 5.0, Sign.SILENT)
    assert breaker.wait_s(5.0) == inf
    assert breaker.ended(41, 5.0, Sign.WELL)
    assert breaker.wait_s(5.0) == 0


def test_a_probe_that_ends_after_it_was_closed_is_an_attempt_like_any_other() -> None:
    """Its failure is the first of a row, and does not bar the way for the next probe."""
    breaker = opened()
    breaker.probe(100)
    assert breaker.ended(41, 5.0, Sign.WELL)
    assert not breaker.ended(100, 6.0, Sign.SILENT)
    assert [breaker.ended(number, 7.0, Sign.SILENT) for number in range(4)] == [False] * 3 + [True]
    assert breaker.wait_s(7.0) == 5


def test_a_probe_that_is_still_out_when_it_opens_anew_is_none() -> None:
    """The way is free for a new one, and the failure of the old one does not lengthen the schedule."""
    breaker = opened()
    breaker.probe(100)
    breaker.ended(41, 5.0, Sign.WELL)
    for number in range(5):
        breaker.ended(number, 6.0, Sign.SILENT)
    assert breaker.wait_s(6.0) == 5
    assert not breaker.ended(100, 7.0, Sign.SILENT)
    assert breaker.wait_s(7.0) == 4


def test_a_nudge_makes_the_next_probe_due_at_once() -> None:
    """Once; a probe that is under way may have begun before things changed, and another one follows it."""
    breaker = opened()
    breaker.nudge()
    assert breaker.wait_s(0.0) == 0
    breaker.probe(100)
    breaker.nudge()
    assert breaker.wait_s(0.0) == inf
    assert not breaker.ended(100, 0.0, Sign.SILENT)
    probe(breaker, 0.0, Sign.SILENT)
    assert breaker.wait_s(0.0) == 20


def test_a_nudge_while_it_is_closed_is_no_probe_in_advance() -> None:
    """When it opens later, the first probe has its time."""
    breaker = Breaker(POLICY, half)
    breaker.nudge()
    for number in range(5):
        breaker.ended(number, 0.0, Sign.SILENT)
    assert breaker.wait_s(0.0) == 5


def test_after_a_restart_it_may_be_open_and_probes_at_once() -> None:
    """Then by the schedule, from its beginning."""
    breaker = Breaker(POLICY, half, is_open=True)
    assert not probe(breaker, 1e9, Sign.FAILING)
    assert breaker.is_open
    assert breaker.wait_s(1e9) == 10


def test_a_probe_that_comes_to_nothing_makes_room_for_another() -> None:
    """It was neither a failure nor a success; others change nothing."""
    breaker = opened()
    breaker.probe(100)
    breaker.abandoned(41)
    assert breaker.wait_s(5.0) == inf
    breaker.abandoned(100)
    assert breaker.wait_s(5.0) == 0
    assert not probe(breaker, 5.0, Sign.SILENT)
    assert breaker.wait_s(5.0) == 10


def test_a_schedule_of_zeros_does_not_flood_the_log() -> None:
    """Ten probes a second at most."""
    assert opened(RetryPolicy(initial_s=0.0)).wait_s(0.0) == 0.1


def test_a_clock_that_steps_back_delays_no_probe_beyond_the_longest_wait() -> None:
    """Five minutes, whatever the clock said before."""
    assert opened().wait_s(-1e6) == 300


class BreakerAgainstHistory(RuleBasedStateMachine):
    """Any order of attempts and outcomes, against a model that keeps all of them and looks back."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(POLICY, half)
        self.now = 0.0
        self.flying: set[int] = set()
        self.probe: int | None = None
        self.row: list[tuple[int, Sign]] = []
        self.failed_probes = 0
        self.due_at: float | None = None
        self.nudged = False

    @property
    def expected_open(self) -> bool:
        return self.due_at is not None

    def broken(self) -> bool:
        last = self.row[-5:]
        return len({delivery for delivery, _ in self.row}) >= 5 or [sign for _, sign in last] == [Sign.SILENT] * 5

    @rule(passed_s=st.sampled_from([0.0, 1.0, 5.0, 60.0, 300.0]))
    def time_passes(self, passed_s: float) -> None:
        self.now += passed_s

    @rule(delivery=st.integers(0, 9))
    def begin(self, delivery: int) -> None:
        if delivery in self.flying or self.breaker.wait_s(self.now):
            return
        if self.breaker.is_open:
            self.breaker.probe(delivery)
            self.probe, self.nudged = delivery, False
        self.flying.add(delivery)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 9), sign=st.sampled_from([Sign.WELL, *[Sign.FAILING] * 3, *[Sign.SILENT] * 3]))
    def end(self, which: int, sign: Sign) -> None:
        delivery = sorted(self.flying)[which % len(self.flying)]
        self.flying.remove(delivery)
        probed = delivery == self.probe
        was_open = self.expected_open
        if probed:
            self.probe = None
        if sign is Sign.WELL:
            self.row, self.due_at, self.failed_probes, self.probe, self.nudged = [], None, 0, None, False
        elif was_open and probed:
            self.failed_probes += 1
        elif not was_open:
            self.row.append((delivery, sign))
        if (probed and was_open and sign is not Sign.WELL) or (not was_open and self.broken()):
            self.due_at = self.now + min(5.0 * 2**self.failed_probes, 300.0)
        assert self.breaker.ended(delivery, self.now, sign) is (self.expected_open != was_open)

    @precondition(lambda self: self.expected_open)
    @rule()
    def nudge(self) -> None:
        self.breaker.nudge()
        self.nudged = True

    @invariant()
    def agree(self) -> None:
        assert self.breaker.is_open is self.expected_open
        if self.due_at is None:
            assert self.breaker.wait_s(self.now) == 0
        elif self.probe is not None:
            assert self.breaker.wait_s(self.now) == inf
        else:
            assert self.breaker.wait_s(self.now) == (0 if self.nudged else max(self.due_at - self.now, 0))


TestBreakerAgainstHistory = BreakerAgainstHistory.TestCase
TestBreakerAgainstHistory.settings = settings(max_examples=25, stateful_step_count=50)
