import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.relay.rates import Bucket, LearnedRate

RATES = st.floats(0.05, 5000)
BURSTS = st.sampled_from([0.0, 0.005, 1.0])
PAUSES = st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.5, 3.0, 100.0]) | st.floats(0, 10), min_size=1, max_size=40)
INSTANT_S = 1e-6


def burst_of(rate: float, burst_s: float) -> float:
    """The tokens of a full bucket."""
    return max(rate * burst_s, 1.0)


@given(RATES, BURSTS, PAUSES)
def test_a_bucket_gives_what_a_naive_count_of_tokens_would(rate: float, burst_s: float, pauses: list[float]) -> None:
    """Fill up with time, stop when full, take one if there is one."""
    bucket, full = Bucket(rate, burst_s), burst_of(rate, burst_s)
    now, tokens = 1000.0, full
    for pause_s in pauses:
        now += pause_s
        tokens = min(tokens + pause_s * rate, full)
        for _ in range(3):
            missing_s = (1 - tokens) / rate
            wait_s = bucket.take(now)
            assert wait_s == pytest.approx(max(missing_s, 0), abs=2 * INSTANT_S)
            tokens -= not wait_s


@given(BURSTS, st.lists(st.tuples(st.floats(0, 2), RATES | st.none()), min_size=1, max_size=40))
def test_no_stretch_of_time_has_too_many(burst_s: float, steps: list[tuple[float, float | None]]) -> None:
    """Between any two takes there are at most those of the time, and a burst, however the rate is changed."""
    bucket, now = Bucket(1.0, burst_s), 0.0
    taken: list[float] = []
    rates = [1.0]
    for pause_s, rate in steps:
        now += pause_s
        if rate is not None:
            bucket.set(rate)
            rates.append(rate)
        taken += [now for _ in range(5) if not bucket.take(now)]
    rate, burst = max(rates), max(burst_of(rate, burst_s) for rate in rates)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= (taken[last] - start + INSTANT_S) * rate + burst + INSTANT_S


@given(RATES, BURSTS, st.lists(st.floats(-1e9, 1e9), max_size=10), st.integers(1, 50))
def test_nobody_starves_whatever_the_clock_does(rate: float, burst_s: float, clock: list[float], debts: int) -> None:
    """A wait is never longer than a token takes to come, and who waited so long gets one."""
    bucket = Bucket(rate, burst_s)
    for now in [0.0, *clock]:
        for _ in range(debts):
            bucket.spend(now)
        wait_s = bucket.take(now)
        assert 0 <= wait_s <= (1 / rate) * 1.000001 + INSTANT_S
        if wait_s:
            assert bucket.take(now + wait_s + INSTANT_S) == 0


def test_a_bucket_that_takes_a_step_back_in_time_gives_no_second_burst() -> None:
    """It counts as empty: a token must come first."""
    bucket = Bucket(10, 1.0)
    assert [bucket.take(1e6) for _ in range(10)] == [0] * 10
    assert bucket.take(5.0) == pytest.approx(0.1)


def test_a_fifth_of_a_post_a_second_is_one_in_five_seconds() -> None:
    """A rate below one has a burst of one."""
    bucket = Bucket(0.2, 1.0)
    assert [bucket.take(now) for now in (0.0, 0.0, 4.0, 5.0, 5.0)] == [0, 5, 1, 0, 5]


def acknowledge(learned: LearnedRate, start: float, end: float, per_s: float) -> None:
    """Let good answers come at an even rate."""
    for step in range(round((end - start) * per_s)):
        now = start + (step + 1) / per_s
        learned.grow(now, learned.acknowledged(now))


def rate_of(learned: LearnedRate) -> float:
    """The rate that must be there."""
    assert learned.bucket is not None
    return learned.bucket.rate


def test_no_rate_is_learned_without_a_refusal() -> None:
    """However much is acknowledged."""
    learned = LearnedRate()
    acknowledge(learned, 0, 10, 1000)
    assert learned.bucket is None


def test_the_first_rate_is_near_what_was_acknowledged_lately() -> None:
    """A little below; and some attempts a second in any case, since a quiet lane proves nothing."""
    learned, quiet = LearnedRate(), LearnedRate()
    acknowledge(learned, 0, 10, 50)
    learned.refused(10)
    quiet.refused(10)
    assert 45 <= rate_of(learned) <= 50
    assert rate_of(quiet) == 4


def test_a_guess_grows_quickly_and_what_was_refused_slowly() -> None:
    """A guess by half within a second, where answers keep up; a rate that was refused by a twentieth within eight."""
    learned = LearnedRate()
    acknowledge(learned, 0, 10, 50)
    learned.refused(10)
    acknowledge(learned, 10, 11, 50)
    assert rate_of(learned) > 1.4 * 47
    learned.refused(11)
    refused = rate_of(learned)
    acknowledge(learned, 11, 13, 50)
    assert rate_of(learned) < 1.01 * refused
    acknowledge(learned, 13, 19, 50)
    assert 1.04 * refused < rate_of(learned) < 1.06 * refused


def test_a_refusal_lowers_a_known_rate_by_a_little_or_towards_what_is_acknowledged() -> None:
    """A twentieth where it was right so far, three tenths where nothing comes back any more."""
    learned = LearnedRate()
    acknowledge(learned, 0, 10, 50)
    learned.refused(10)
    before = rate_of(learned)
    learned.refused(10)
    assert rate_of(learned) == pytest.approx(0.95 * before)
    before = rate_of(learned)
    learned.refused(20)
    assert rate_of(learned) == pytest.approx(0.7 * before)
    for now in range(20, 100):
        learned.refused(now)
    assert rate_of(learned) == pytest.approx(0.1)


def test_a_rate_that_no_longer_matters_is_forgotten() -> None:
    """After half a minute in which the lane stayed far below it."""
    learned = LearnedRate()
    acknowledge(learned, 0, 10, 100)
    learned.refused(10)
    acknowledge(learned, 10, 39, 20)
    assert learned.bucket is not None
    acknowledge(learned, 39, 42, 20)
    assert learned.bucket is None


PASSING = st.sampled_from([0.0, 0.02, 1.0, -1.0, -1e6, 1e6]) | st.floats(-100, 100)


@given(st.booleans(), st.lists(st.tuples(PASSING, st.booleans()), max_size=60))
def test_a_learned_rate_stays_one_whatever_happens(known: bool, steps: list[tuple[float, bool]]) -> None:  # noqa: FBT001
    """Never below one in ten seconds; good answers never lower it, refusals never raise it, even if time goes back."""
    learned, now = LearnedRate(), 10.0
    if known:
        acknowledge(learned, 0, 10, 50)
        learned.refused(10)
        learned.refused(10)
    for passed_s, good in steps:
        now += passed_s
        before = learned.bucket.rate if learned.bucket is not None else None
        if good:
            learned.grow(now, learned.acknowledged(now))
        else:
            learned.refused(now)
        if learned.bucket is None:
            continue
        assert 0.1 <= learned.bucket.rate < 1e6
        if before is not None and good:
            assert before <= learned.bucket.rate <= 1.1 * before
        elif before is not None:
            assert learned.bucket.rate <= before


@given(st.lists(PASSING, min_size=1, max_size=5))
def test_a_clock_that_steps_back_lowers_no_rate(steps: list[float]) -> None:
    """What was refused in a future that has not come yet lets the rate stay where it is until then."""
    learned, now = LearnedRate(), 10.0
    acknowledge(learned, 0, 10, 50)
    learned.refused(10)
    learned.refused(10)
    for passed_s in steps:
        now += passed_s
        before = rate_of(learned)
        for _ in range(3):
            learned.grow(now, learned.acknowledged(now))
            now += 0.02
        assert rate_of(learned) >= before
