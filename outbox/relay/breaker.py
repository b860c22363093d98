"""A lane's circuit breaker: while a receiver is down it gets a probe now and then, not its backlog. Pure.

After M. Nygard, "Release It!": closed, everything passes; open, only one probe at a time; one success closes it.
"""

from collections.abc import Callable
from enum import Enum
from math import inf

from msgspec import structs

from outbox.domain.retrying import RetryPolicy, delay_s

OPENS_AFTER = 5
PROBE_MAX_S = 300.0
PROBE_MIN_S = 0.1


class Sign(Enum):
    """What an attempt says of the receiver: it answers, it answers that it failed, it gives no usable answer."""

    WELL = "well"
    FAILING = "failing"
    SILENT = "silent"


class Breaker:
    """Opens after five failures in a row that come from five deliveries, or all had no usable answer."""

    def __init__(self, policy: RetryPolicy, random: Callable[[], float], *, is_open: bool = False) -> None:
        """Start closed, or open as it was before a restart, and then with a probe at once."""
        self.is_open = is_open
        self._policy = structs.replace(policy, max_s=min(policy.max_s, PROBE_MAX_S))
        self._random = random
        self._failing: set[int] = set()
        self._silent = 0
        self._probes = 0
        self._due = -inf
        self._probe: int | None = None

    def wait_s(self, now: float) -> float:
        """Return the seconds until an attempt may begin: 0 while it is closed, for ever while a probe is under way."""
        if not self.is_open:
            return 0.0
        return inf if self._probe is not None else max(self._due - now, 0.0)

    def nudge(self) -> None:
        """Let the next probe begin at once."""
        self._due = -inf

    def probe(self, delivery: int) -> None:
        """Note that the attempt that begins for this delivery is a probe."""
        self._probe = delivery

    def abandoned(self, delivery: int) -> None:
        """Note that an attempt ended without telling anything of the receiver."""
        if self._probe == delivery:
            self._probe = None

    def ended(self, delivery: int, now: float, sign: Sign) -> bool:
        """Learn from what came of an attempt; say whether the breaker has opened or closed by it."""
        probed = self._probe == delivery
        self.abandoned(delivery)
        if sign is Sign.WELL:
            if not self.is_open and not self._failing:
                return False
            self._failing.clear()
            self._silent = self._probes = 0
            changed, self.is_open = self.is_open, False
            return changed
        if self.is_open:
            # What was in flight when it opened is no probe.
            if probed:
                self._probes += 1
                self._schedule(now)
            return False
        self._failing.add(delivery)
        self._silent = self._silent + 1 if sign is Sign.SILENT else 0
        self.is_open = max(len(self._failing), self._silent) >= OPENS_AFTER
        if self.is_open:
            self._schedule(now)
        return self.is_open

    def _schedule(self, now: float) -> None:
        self._due = now + max(delay_s(self._probes + 1, self._policy, self._random), PROBE_MIN_S)
