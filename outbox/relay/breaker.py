"""When a lane stops posting because its receiver is down, and how it finds out that it is up again.

This is the circuit breaker (Nygard, Release It!, 2007): closed, everything passes; failures in a row open it; open, a
probe at a time passes, more and more rarely, and the first success closes it. Pure: time, chance and answers are
passed in.
"""

from collections.abc import Callable
from enum import Enum
from math import inf

from msgspec.structs import replace

from outbox.domain.retrying import Answer, RetryPolicy, Verdict, classify, delay_s

OPENS_AFTER = 5
PROBE_MIN_S = 0.1
PROBE_MAX_S = 300.0


class Sign(Enum):
    """What an attempt says of the receiver: it answers, it answers with a failure, or it gives no usable answer."""

    WELL = "well"
    FAILING = "failing"
    SILENT = "silent"


def sign_of(answer: Answer, policy: RetryPolicy) -> Sign:
    """Say what the answer to a POST means for the breaker. A status that is not retried is as good as any."""
    verdict = classify(answer, policy)
    if verdict in {Verdict.SUCCESS, Verdict.FINAL, Verdict.GONE}:
        return Sign.WELL
    return Sign.SILENT if verdict is Verdict.THROTTLED or answer.error else Sign.FAILING


class Breaker:
    """The breaker of one lane; `is_open` while it is open.

    It opens after five failures in a row that come from five deliveries, or of which none had a usable answer. One
    delivery that fails again and again, while others succeed or there are no others, is its own trouble.
    """

    __slots__ = ("_due_at", "_failed", "_nudged", "_policy", "_probed", "_random", "_row", "_silent", "is_open")

    def __init__(self, policy: RetryPolicy, random: Callable[[], float], *, is_open: bool = False) -> None:
        """Start closed, or open as it was before a restart: then the first probe is due at once.

        `random` gives numbers from 0 to 1.
        """
        self.is_open = is_open
        self._policy = replace(policy, max_s=min(policy.max_s, PROBE_MAX_S))
        self._random = random
        self._row: set[int] = set()
        self._silent = 0
        self._failed = 0
        self._due_at = -inf
        self._nudged = False
        self._probed: int | None = None

    @property
    def is_nudged(self) -> bool:
        """Whether a probe is to be made at once, be a delivery due or not."""
        return self.is_open and self._nudged

    def wait_s(self, now: float) -> float:
        """Return the seconds until an attempt may begin: 0 while closed, infinite while a probe is under way."""
        if not self.is_open:
            return 0.0
        if self._probed is not None:
            return inf
        return 0.0 if self._nudged else min(max(self._due_at - now, 0.0), PROBE_MAX_S)

    def probe(self, delivery: int) -> None:
        """Count the attempt of that delivery, which begins now, as the probe."""
        self._probed = delivery
        self._nudged = False

    def nudge(self) -> None:
        """Let the next probe be due at once: there is reason to believe that things have changed."""
        self._nudged = True

    def ended(self, delivery: int, now: float, sign: Sign) -> bool:
        """Learn from how the attempt of a delivery ended, and say whether this has opened or closed the breaker.

        While open, the failures of attempts that had begun before mean nothing more; a success of one does.
        """
        probed = delivery == self._probed
        if probed:
            self._probed = None
        if sign is Sign.WELL:
            return self._close()
        if self.is_open:
            if probed:
                self._failed += 1
                self._schedule(now)
            return False
        return self._count(delivery, now, sign)

    def abandoned(self, delivery: int) -> None:
        """Let another attempt be the probe in place of one that came to nothing: cut off, or never posted."""
        if delivery == self._probed:
            self._probed = None

    def _close(self) -> bool:
        was_open, self.is_open = self.is_open, False
        if self._row:
            self._row.clear()
        self._silent = 0
        return was_open

    def _count(self, delivery: int, now: float, sign: Sign) -> bool:
        if len(self._row) < OPENS_AFTER:
            self._row.add(delivery)
        self._silent = self._silent + 1 if sign is Sign.SILENT else 0
        if max(len(self._row), self._silent) < OPENS_AFTER:
            return False
        self.is_open = True
        self._failed = 0
        self._nudged = False
        self._probed = None
        self._schedule(now)
        return True

    def _schedule(self, now: float) -> None:
        """Put the next probe where the schedule has a delivery's next attempt: opening counts as its first failure."""
        # The floor is for a schedule of zeros: a receiver that is down for days would fill the log.
        self._due_at = now + max(delay_s(self._failed + 1, self._policy, self._random), PROBE_MIN_S)
