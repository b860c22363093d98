from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.domain.holding import INTERVALS_MAX, Interval, cutoff_ms, expires_ms, held_after

SWITCHES = st.lists(st.tuples(st.integers(-3, 9), st.booleans()), max_size=8)
"""Times of a webhook's settings, as steps from the one before (a clock may go back), and if each holds it."""


def switched(switches: list[tuple[int, bool]], start: int = 20) -> tuple[tuple[Interval, ...], int]:
    """Return the intervals after these settings, and the time of the last one."""
    held: tuple[Interval, ...] = ()
    now = start
    for step, holding in switches:
        now += step
        held = held_after(held, now, holding=holding)
    return held, now


def is_held(held: tuple[Interval, ...], moment: int) -> bool:
    """Say whether a moment, which lasts until the next one, was held."""
    return any(start <= moment and (end == 0 or moment < end) for start, end in held)


def age(held: tuple[Interval, ...], since: int, now: int) -> int:
    """Count the moments from `since` on that were not held."""
    return sum(not is_held(held, moment) for moment in range(since, now))


@given(SWITCHES, st.integers(0, 30), st.integers(0, 40))
def test_what_is_older_than_the_cutoff_has_expired(switches: list[tuple[int, bool]], later: int, age_ms: int) -> None:
    """A moment is at or before the cutoff if, and only if, so many moments since it were not held."""
    held, switched_at = switched(switches)
    now = switched_at + later
    cutoff = cutoff_ms(held, now, age_ms)
    for since in range(-60, now + 1):
        assert (age(held, since, now) >= age_ms) == (since <= cutoff), since


@given(SWITCHES, st.integers(-9, 60), st.integers(0, 40))
def test_it_expires_as_soon_as_it_is_old_enough(switches: list[tuple[int, bool]], since: int, age_ms: int) -> None:
    """At the first moment before which so many were not held; a holding that goes on counts as if it ended at once."""
    held = tuple(interval for interval in switched(switches)[0] if interval[1])
    moment = expires_ms(held, since, age_ms)
    assert age(held, since, moment) == age_ms
    assert age_ms == 0 or age(held, since, moment - 1) == age_ms - 1
    assert expires_ms((*held, (10**6, 0)), since, age_ms) == moment
    assert since <= cutoff_ms(held, moment, age_ms)
    assert age_ms == 0 or since > cutoff_ms(held, moment - 1, age_ms)


@given(st.integers(0, 100), st.integers(0, 100))
def test_without_holding_the_cutoff_is_the_age_ago(now: int, age_ms: int) -> None:
    """Most webhooks are never held."""
    assert cutoff_ms((), now, age_ms) == now - age_ms


def test_while_it_is_held_the_cutoff_stands_still() -> None:
    """However long it lasts, nothing gets older."""
    held = ((1000, 2000), (5000, 0))
    assert {cutoff_ms(held, now, 3500) for now in (5000, 6000, 10**12)} == {500}


def test_a_clock_that_went_back_before_a_holding_expires_nothing_early() -> None:
    """An interval that begins later than now has not been held yet."""
    assert cutoff_ms(((5000, 0),), 4000, 1000) == 3000
    assert cutoff_ms(((5000, 6000),), 4000, 1000) == 3000
    assert cutoff_ms(((3000, 6000),), 4000, 1500) == 1500


@given(SWITCHES)
def test_intervals_say_when_it_was_held(switches: list[tuple[int, bool]]) -> None:
    """The last one is open while it is held; each has a length; settings that change nothing add none."""
    held, _ = switched(switches)
    assert (bool(held) and held[-1][1] == 0) == (bool(switches) and switches[-1][1])
    assert all(end > start for start, end in held if end)
    assert all(after >= end for (_, end), (after, _) in pairwise(held))
    assert len(held) <= sum(holding for _, holding in switches)


def test_holding_twice_is_holding_once() -> None:
    """Since when it is held does not move."""
    held = held_after((), 1000, holding=True)
    assert held == held_after(held, 2000, holding=True) == ((1000, 0),)
    held = held_after(held, 3000, holding=False)
    assert held == held_after(held, 4000, holding=False) == ((1000, 3000),)


@pytest.mark.parametrize("at_ms", [1000, 999, -5])
def test_an_end_comes_after_its_beginning(at_ms: int) -> None:
    """Even if the clock stood still or went back: an end of 0, or before the beginning, would mean something else."""
    assert held_after(((1000, 0),), at_ms, holding=False) == ((1000, 1001),)


@given(st.integers(0, 200))
def test_intervals_are_merged_into_few(count: int) -> None:
    """The oldest become one, which counts as held throughout: nothing dies earlier than without merging."""
    every: list[Interval] = [(10 * at, 10 * at + 5) for at in range(count)]
    held: tuple[Interval, ...] = ()
    for start, end in every:
        held = held_after(held_after(held, start, holding=True), end, holding=False)
    assert len(held) == min(count, INTERVALS_MAX)
    assert held[-INTERVALS_MAX + 1 :] == tuple(every[-INTERVALS_MAX + 1 :])
    for age_ms in (0, 7, 300, 900):
        assert cutoff_ms(held, 2000, age_ms) <= cutoff_ms(tuple(every), 2000, age_ms)
