"""Receivers with a capacity, and a lane with an endless backlog, in simulated time: no waiting, the same every time."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from math import inf
from typing import NamedTuple

from outbox.relay.pacing import Load, Pacer

REFUSAL_S = 0.001

Receiver = Callable[[float], tuple[float, Load]]
"""Given the time of a POST, how long its answer takes and what it says."""


def always(took_s: float) -> Callable[[], float]:
    """Answer times that do not vary."""
    return lambda: took_s


def varying(mean_s: float) -> Callable[[], float]:
    """Answer times that vary a lot, exponentially distributed."""
    chance = random.Random(7)
    return lambda: chance.expovariate(1 / mean_s)


def places(number: int, times: Callable[[], float]) -> Receiver:
    """A receiver that works on so many at a time, and refuses more."""
    busy: list[float] = []

    def receive(now: float) -> tuple[float, Load]:
        while busy and busy[0] <= now + 1e-9:
            heapq.heappop(busy)
        if len(busy) >= number:
            return REFUSAL_S, Load.REFUSED
        took_s = times()
        heapq.heappush(busy, now + took_s)
        return took_s, Load.GOOD

    return receive


def queue(number: int, took_s: float) -> Receiver:
    """A receiver that works on so many at a time, and lets all others wait."""
    free = [0.0] * number

    def receive(now: float) -> tuple[float, Load]:
        done = max(heapq.heappop(free), now) + took_s
        heapq.heappush(free, done)
        return done - now, Load.GOOD

    return receive


def rate(per_s: float, burst: int, times: Callable[[], float]) -> Receiver:
    """A receiver that takes so many a second, and a burst of so many, and refuses more."""
    tokens, filled_at = float(burst), 0.0

    def receive(now: float) -> tuple[float, Load]:
        nonlocal tokens, filled_at
        tokens, filled_at = min(tokens + (now - filled_at) * per_s, burst), now
        if tokens < 1 - 1e-9:
            return REFUSAL_S, Load.REFUSED
        tokens -= 1
        return times(), Load.GOOD

    return receive


def window(number: int, times: Callable[[], float]) -> Receiver:
    """A receiver that takes so many in each second of the clock, and refuses more."""
    second, taken = -1, 0

    def receive(now: float) -> tuple[float, Load]:
        nonlocal second, taken
        if int(now) != second:
            second, taken = int(now), 0
        if taken >= number:
            return REFUSAL_S, Load.REFUSED
        taken += 1
        return times(), Load.GOOD

    return receive


def then(first: Receiver, until: float, second: Receiver) -> Receiver:
    """A receiver that becomes another one at some time."""
    return lambda now: first(now) if now < until else second(now)


def failing(share: float, receiver: Receiver) -> Receiver:
    """A receiver that fails for such a share of all, whatever the load."""
    chance = random.Random(3)
    return lambda now: (0.005, Load.STRAINED) if chance.random() < share else receiver(now)


def straining(receiver: Receiver) -> Receiver:
    """A receiver that fails where it would refuse."""

    def receive(now: float) -> tuple[float, Load]:
        took_s, load = receiver(now)
        return took_s, Load.STRAINED if load is Load.REFUSED else load

    return receive


class Outcome(NamedTuple):
    """What was acknowledged a second, which shares of all were refused or failed, and the most in flight."""

    throughput: float
    refused: float
    failed: float
    most: int


def deliver(pacer: Pacer, receiver: Receiver, start: float, end: float) -> Outcome:
    """Post from time 0 to `end` as fast as the pacer allows; say what happened from `start` on."""
    now, most, loads = 0.0, 0, Counter[Load]()
    flying: list[tuple[float, int, float, Load]] = []
    numbers = count()
    while now < end:
        wait_s = pacer.wait_s(now) if pacer.in_flight < pacer.limit else inf
        if wait_s == 0:
            pacer.began(now)
            took_s, load = receiver(now)
            heapq.heappush(flying, (now + took_s, next(numbers), now, load))
            most = max(most, pacer.in_flight if now >= start else 0)
        elif flying and flying[0][0] <= now + wait_s:
            now, _, began_at, load = heapq.heappop(flying)
            pacer.ended(began_at, now, load)
            loads[load] += now >= start
        else:
            now += wait_s
    all_ = max(loads.total(), 1)
    return Outcome(loads[Load.GOOD] / (end - start), loads[Load.REFUSED] / all_, loads[Load.STRAINED] / all_, most)
