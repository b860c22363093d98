from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from outbox.domain.retrying import Answer
from outbox.relay.pacing import Load, Pacer, load_of
from tests.unit.relay.simulation import (
    Receiver,
    always,
    deliver,
    failing,
    places,
    queue,
    rate,
    straining,
    then,
    varying,
    window,
)

BAD = [Load.STRAINED, Load.REFUSED]
MS = 0.001


def answered(pacer: Pacer, now: float, load: Load = Load.GOOD, took_s: float = 0.01) -> float:
    """Fill the lane up, let one attempt end, and return the time then."""
    while pacer.in_flight < pacer.limit:
        pacer.began(now)
    pacer.ended(now, now + took_s, load)
    return now + took_s


def raised_to(limit: int, most: int = 32) -> tuple[Pacer, float]:
    """A pacer that has come so far, and the time then."""
    pacer, now = Pacer(most), 0.0
    while pacer.limit < limit:
        now = answered(pacer, now)
    return pacer, now


def drained(pacer: Pacer, now: float) -> Pacer:
    """Let all attempts end without a word on the load."""
    while pacer.in_flight:
        pacer.ended(now, now, Load.PLAIN)
    return pacer


@pytest.mark.parametrize(
    ("answer", "load"),
    [
        (Answer(200), Load.GOOD),
        (Answer(204, detail="the answer's body broke off"), Load.GOOD),
        (Answer(429), Load.REFUSED),
        (Answer(503, retry_after_s=5), Load.STRAINED),
        (Answer(500), Load.STRAINED),
        (Answer(502), Load.STRAINED),
        (Answer(504), Load.STRAINED),
        (Answer(error="timeout"), Load.STRAINED),
        (Answer(400), Load.PLAIN),
        (Answer(404), Load.PLAIN),
        (Answer(302), Load.PLAIN),
        (Answer(999, "protocol_error"), Load.PLAIN),
        (Answer(error="connection_refused"), Load.PLAIN),
        (Answer(error="dns_error"), Load.PLAIN),
        (Answer(error="tls_error"), Load.PLAIN),
    ],
)
def test_an_answer_says_how_the_receiver_bears_the_load(answer: Answer, load: Load) -> None:
    """Only 429, 5xx and timeouts speak of too much; a connection that fails is no matter of pace."""
    assert load_of(answer) is load


def test_a_healthy_receiver_gets_all_it_may_within_a_few_answers() -> None:
    """From 4 at a time to 32 in 28 answers, and no further."""
    pacer, now = Pacer(32), 0.0
    assert pacer.limit == 4
    for _ in range(28):
        now = answered(pacer, now)
    assert pacer.limit == 32
    for _ in range(100):
        now = answered(pacer, now)
    assert pacer.limit == 32


@pytest.mark.parametrize("load", BAD)
def test_trouble_halves_the_limit_once_a_round(load: Load) -> None:
    """However many of those in flight fail; one that began after the halving counts again."""
    pacer, now = raised_to(32)
    now = answered(pacer, now, load)
    assert pacer.limit == 16
    for _ in range(31):
        pacer.ended(now - 0.02, now, load)
    assert (pacer.limit, pacer.in_flight) == (16, 0)
    answered(pacer, now, load)
    assert pacer.limit == 8


def test_after_trouble_the_limit_grows_by_one_a_round() -> None:
    """Sixteen good answers bring one more at a time."""
    pacer, now = raised_to(32)
    now = answered(pacer, now, Load.STRAINED)
    limits = []
    for _ in range(16 + 17):
        now = answered(pacer, now)
        limits.append(pacer.limit)
    assert limits == [16] * 15 + [17] * 17 + [18]


def test_where_the_refusals_were_the_limit_lingers_below() -> None:
    """A second try costs many rounds of answers, and eight seconds."""
    pacer, now = raised_to(8)
    now = cut_at = answered(pacer, now, Load.REFUSED, MS)
    good = 0
    while pacer.limit < 8:
        now = answered(pacer, now, took_s=MS)
        good += 1
        assert good < 9000
    assert now - cut_at >= 8
    assert good >= 64


def test_a_place_of_trouble_is_forgotten_once_more_has_gone_well() -> None:
    """From 7 at a time to 32 in a round of answers each, not in the many that a known trouble costs."""
    pacer, now = raised_to(8)
    now = answered(pacer, now, Load.REFUSED)
    good = 0
    while pacer.limit < 32:
        now = answered(pacer, now, took_s=0.1)
        good += 1
        assert good < 1500
    assert good > 500


def test_an_outage_does_not_lower_what_was_known_to_go_well() -> None:
    """Halved down to one by nothing but failures, the limit is half of what it was after as many good answers."""
    pacer, now = raised_to(32)
    for _ in range(6):
        now = answered(pacer, now, Load.STRAINED)
        for _ in range(pacer.in_flight):
            pacer.ended(0.0, now, Load.STRAINED)
    assert pacer.limit == 1
    for _ in range(20):
        now = answered(pacer, now)
    assert pacer.limit >= 16


def test_after_trouble_a_limit_that_is_not_reached_does_not_grow() -> None:
    """Two thirds of it do not show that all of it would go well."""
    pacer, now = raised_to(32)
    now = answered(pacer, now, Load.STRAINED)
    pacer = drained(pacer, now)
    for _ in range(100):
        while pacer.in_flight < 10:
            pacer.began(now)
        now += 0.01
        pacer.ended(now - 0.01, now, Load.GOOD)
    assert pacer.limit == 16


def test_a_single_slow_answer_does_not_stop_the_growth() -> None:
    """Answer times vary; it is the smoothed time that counts."""
    pacer, now = raised_to(40, most=64)
    answered(pacer, now, took_s=1.0)
    assert pacer.limit == 41


def test_refusals_in_a_row_make_the_lane_wait_longer_and_longer() -> None:
    """Up to 1.6 s, however many there are and whatever the clock does; a good answer ends it."""
    pacer, now, waits = Pacer(1), 0.0, []
    for _ in range(2000):
        pacer.began(now)
        pacer.ended(now, now, Load.REFUSED)
        waits.append(pacer.wait_s(now))
        now += 100
    assert waits[0] < 0.1
    assert waits[1:6] == pytest.approx([0.25, 0.25, 0.4, 0.8, 1.6])
    assert max(waits) == pacer.wait_s(-1e6) == pytest.approx(1.6)
    pacer.began(now)
    pacer.ended(now, now, Load.GOOD)
    pacer.began(now)
    pacer.ended(now, now, Load.REFUSED)
    assert pacer.wait_s(now) <= 0.4


def test_a_receiver_that_has_only_ever_refused_is_asked_gently() -> None:
    """The second refusal brings a rate, though nothing is known of what would be right."""
    pacer = Pacer(32)
    for now in (0.0, 10.0):
        pacer.began(now)
        pacer.ended(now, now, Load.REFUSED)
    pacer.began(20.0)
    assert pacer.wait_s(20.0) == pytest.approx(0.25)


def test_a_clock_that_steps_back_stops_no_halving() -> None:
    """What begins and fails after the step counts."""
    pacer, now = raised_to(32)
    answered(pacer, now + 1000, Load.STRAINED)
    drained(pacer, now)
    answered(pacer, now, Load.STRAINED)
    assert pacer.limit == 8


@pytest.mark.parametrize("load", [Load.PLAIN, Load.GOOD])
def test_a_failure_that_says_nothing_of_load_changes_nothing(load: Load) -> None:
    """Neither does a good answer while there is little to do."""
    pacer = Pacer(32)
    pacer.began(0.0)
    for now in range(100):
        pacer.began(now)
        pacer.ended(now, now + MS, load)
    assert (pacer.limit, pacer.in_flight, pacer.wait_s(100.0)) == (4, 1, 0)


def test_settings_hold_at_once() -> None:
    """A lower concurrency cuts the limit, a higher one lets it grow; a rate limit comes and goes."""
    pacer, now = raised_to(32)
    pacer.set(5, 10)
    assert (pacer.limit, pacer.wait_s(now)) == (5, 0)
    for _ in range(10):
        pacer.began(now)
    assert pacer.wait_s(now) == pytest.approx(0.1)
    pacer.set(100, 1)
    assert pacer.wait_s(now) == pytest.approx(1)
    pacer.set(100, None)
    assert (pacer.limit, pacer.wait_s(now)) == (5, 0)
    pacer.ended(now, now, Load.GOOD)
    assert pacer.limit == 6


def test_a_lane_may_be_allowed_a_single_post_at_a_time() -> None:
    """The start is not above what is set."""
    assert Pacer(1).limit == 1


# A capacity in places or a second, met after a minute. Each row: the receiver, and what it takes a second.
STEADY = {
    "1 place": (places(1, always(50 * MS)), 20),
    "1 place, times vary": (places(1, varying(50 * MS)), 20),
    "2 places": (places(2, always(400 * MS)), 5),
    "7 places": (places(7, always(50 * MS)), 140),
    "7 places, times vary": (places(7, varying(50 * MS)), 140),
    "20 places, times vary": (places(20, varying(200 * MS)), 100),
    "30 places at 400 ms": (places(30, always(400 * MS)), 75),
    "50/s at 1 ms": (rate(50, 50, always(MS)), 50),
    "50/s at 1 ms, no burst": (rate(50, 1, always(MS)), 50),
    "50/s at 30 ms": (rate(50, 50, always(30 * MS)), 50),
    "50/s at 30 ms, no burst": (rate(50, 1, always(30 * MS)), 50),
    "50/s at 58 ms": (rate(50, 5, always(58 * MS)), 50),
    "50/s at 58 ms, no burst": (rate(50, 1, always(58 * MS)), 50),
    "50/s, times vary": (rate(50, 50, varying(100 * MS)), 50),
    "50 each second": (window(50, always(20 * MS)), 50),
    "10/s at 1 ms": (rate(10, 10, always(MS)), 10),
    "2/s at 20 ms": (rate(2, 2, always(20 * MS)), 2),
}


@pytest.mark.parametrize(("receiver", "capacity"), STEADY.values(), ids=STEADY)
def test_a_receiver_is_used_well_and_seldom_pushed_too_far(receiver: Receiver, capacity: float) -> None:
    """Whether it bounds how many at a time or how many a second: 0.8 of what it takes, 2 % refused at most."""
    outcome = deliver(Pacer(32), receiver, 60, 60 + max(40, 300 / capacity))
    assert outcome.throughput >= 0.8 * capacity
    assert outcome.refused <= 0.02


@pytest.mark.parametrize(("share", "least"), [(0.01, 180), (0.02, 120), (0.05, 50)])
def test_a_receiver_that_fails_now_and_then_is_not_slowed_to_a_crawl(share: float, least: float) -> None:
    """Failures that have nothing to do with load cost some concurrency; one at a time would be twenty a second."""
    assert deliver(Pacer(32), failing(share, places(100, always(50 * MS))), 30, 60).throughput >= least


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_receiver_that_fails_when_it_is_full_seldom_fails(number: int) -> None:
    """With 500, say, in place of 429: 7 % at most."""
    outcome = deliver(Pacer(32), straining(places(number, always(50 * MS))), 30, 60)
    assert outcome.throughput >= 0.8 * number / 0.05
    assert outcome.failed <= 0.07


CHANGING = {
    "7 places, then 3": (then(places(7, always(50 * MS)), 30, places(3, always(50 * MS))), 60),
    "7 places, then 3, times vary": (then(places(7, varying(50 * MS)), 30, places(3, varying(50 * MS))), 60),
    "3 places, then 30": (then(places(3, always(50 * MS)), 30, places(30, always(50 * MS))), 600),
    "3 places, then 7": (then(places(3, always(50 * MS)), 30, places(7, always(50 * MS))), 140),
    "50/s, then 10/s": (then(rate(50, 50, always(20 * MS)), 30, rate(10, 10, always(20 * MS))), 10),
    "10/s, then 50/s": (then(rate(10, 10, always(20 * MS)), 30, rate(50, 50, always(20 * MS))), 50),
    "50/s, then 7 places": (then(rate(50, 50, always(50 * MS)), 30, places(7, always(50 * MS))), 140),
    "refuses all, then 7 places": (then(lambda _: (1.0, Load.REFUSED), 30, places(7, always(50 * MS))), 140),
    "times out, then 7 places": (then(lambda _: (10.0, Load.STRAINED), 30, places(7, always(50 * MS))), 140),
}


@pytest.mark.parametrize(("receiver", "capacity"), CHANGING.values(), ids=CHANGING)
def test_a_receiver_that_changes_is_found_out(receiver: Receiver, capacity: float) -> None:
    """Within a minute the pace is that of the new one."""
    outcome = deliver(Pacer(32), receiver, 90, 110)
    assert outcome.throughput >= 0.8 * capacity
    assert outcome.refused <= 0.02


def test_a_receiver_that_queues_is_not_buried() -> None:
    """Answers that take longer and longer because of us stop the growth."""
    outcome = deliver(Pacer(1000), queue(7, 50 * MS), 0, 30)
    assert outcome.throughput >= 0.95 * 140
    assert outcome.most < 100


def test_a_receiver_that_has_become_slower_is_not_held_down_for_ever() -> None:
    """The answer times of old are forgotten after a minute."""
    slower = then(places(100, always(10 * MS)), 10, places(100, always(500 * MS)))
    pacer = Pacer(64)
    pacer.set(4, None)
    deliver(pacer, slower, 0, 20)
    pacer.set(64, None)
    assert deliver(pacer, lambda now: slower(now + 20), 0, 30).most == 4
    assert deliver(pacer, lambda now: slower(now + 20), 0, 90).most == 64


@given(st.floats(0.5, 200), st.integers(1, 64), st.floats(0.001, 0.2))
def test_a_rate_limit_is_kept_and_used(rate_limit: float, most: int, took_s: float) -> None:
    """Within a burst of a second, and as far as the receiver's speed allows."""
    outcome = deliver(Pacer(most, rate_limit), places(most, always(took_s)), 2, 7)
    possible = min(rate_limit, most / took_s)
    assert outcome.throughput <= rate_limit + max(rate_limit, 1) / 5
    assert outcome.throughput >= 0.7 * possible - 0.4


class PacerAgainstItsRules(RuleBasedStateMachine):
    """Any order of beginnings and endings: the rules for the limit hold, told by a list of what was ever done."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 32
        self.pacer = Pacer(self.most)
        self.now = 0.0
        self.flying: list[float] = []
        self.cut_at = -inf

    @rule(passed_s=st.sampled_from([0.0, MS, 0.1, 1.0, 10.0]))
    def time_passes(self, passed_s: float) -> None:
        self.now += passed_s

    @rule(number=st.integers(1, 40))
    def begin(self, number: int) -> None:
        for _ in range(number):
            if self.pacer.in_flight < self.pacer.limit and self.pacer.wait_s(self.now) == 0:
                self.pacer.began(self.now)
                self.flying.append(self.now)

    @precondition(lambda self: self.flying)
    @rule(which=st.integers(0, 63), load=st.sampled_from(Load))
    def end(self, which: int, load: Load) -> None:
        self.end_one(self.flying.pop(which % len(self.flying)), load)

    @rule(load=st.sampled_from([Load.GOOD, Load.GOOD, Load.REFUSED]))
    def end_all(self, load: Load) -> None:
        while self.flying:
            self.end_one(self.flying.pop(0), load)

    def end_one(self, began_at: float, load: Load) -> None:
        self.cut_at = min(self.cut_at, self.now)
        before, in_flight = self.pacer.limit, self.pacer.in_flight
        self.pacer.ended(began_at, self.now, load)
        after = self.pacer.limit
        if load in BAD and began_at >= self.cut_at:
            assert after == max(before // 2, 1)
            self.cut_at = self.now
        elif load is Load.GOOD and began_at >= self.cut_at and 2 * in_flight > before and before < self.most:
            assert after in {before, before + 1}
        else:
            assert after == before

    @rule(passed_s=st.sampled_from([MS, 1.0, 1e6]))
    def clock_is_set_back(self, passed_s: float) -> None:
        self.now -= passed_s

    @rule(most=st.integers(1, 64), rate_limit=st.none() | st.floats(0.1, 1e4))
    def set(self, most: int, rate_limit: float | None) -> None:
        before, self.most = self.pacer.limit, most
        self.pacer.set(most, rate_limit)
        assert self.pacer.limit == min(before, most)

    @invariant()
    def bounds(self) -> None:
        assert 1 <= self.pacer.limit <= self.most
        assert self.pacer.in_flight == len(self.flying)
        # The longest wait is for one of the fewest tokens a second there can be.
        assert 0 <= self.pacer.wait_s(self.now) <= 10 + MS


TestPacerAgainstItsRules = PacerAgainstItsRules.TestCase
TestPacerAgainstItsRules.settings = settings(max_examples=20, stateful_step_count=30)
