"""How fast a lane may post: how many attempts at a time, and how many a second. Pure: time and outcomes are passed in.

Concurrency is additive increase, multiplicative decrease with a slow start, as TCP has it (RFC 5681): one more for
every good answer until the first trouble, then one more for every `limit` of them; half on trouble, once per round. The
rate is a token bucket: tokens come at a steady rate, and as many as one second brings may be saved up.
"""

from enum import Enum
from math import inf

from outbox.domain.retrying import Answer

START = 4
SMOOTHING = 16
RECENT_S = 30.0
SLOWER = 2.0
SLOWER_S = 0.05

_REFUSING = frozenset({429, 503})
_SERVER_ERROR = 500


class Load(Enum):
    """What an answer says of the receiver's load: it does well, it says nothing, it strains, it refuses."""

    GOOD = "good"
    PLAIN = "plain"
    STRAINED = "strained"
    REFUSED = "refused"


def load_of(answer: Answer) -> Load:
    """Return what `answer` says of the receiver's load."""
    status = answer.status
    if status is None or answer.error:
        return Load.STRAINED if answer.error == "timeout" else Load.PLAIN
    if 200 <= status <= 299:  # noqa: PLR2004 - the 2xx class, RFC 9110 section 15.3
        return Load.GOOD
    if status in _REFUSING:
        return Load.REFUSED
    return Load.STRAINED if status >= _SERVER_ERROR else Load.PLAIN


class Bucket:
    """A token bucket of `rate` tokens a second that holds what one second brings, and at least one."""

    __slots__ = ("_full_at", "_span_s", "_step_s", "rate")

    def __init__(self, rate: float) -> None:
        """Start full."""
        self._full_at = -inf
        self.set(rate)

    def set(self, rate: float) -> None:
        """Go by another rate from here on."""
        self.rate = rate
        self._step_s = 1 / rate
        self._span_s = max(1.0, self._step_s)

    def wait_s(self, now: float) -> float:
        """Return the seconds until there is a token."""
        # It is full again at `_full_at`; never later than if it were empty now, whatever the clock did.
        self._full_at = min(self._full_at, now + self._span_s)
        return max(self._full_at - now - self._span_s + self._step_s, 0.0)

    def spend(self, now: float) -> None:
        """Take a token, be it there or not."""
        self._full_at = max(self._full_at, now) + self._step_s


class Pacer:
    """`limit` is how many attempts may be in flight: from 1 to the webhook's concurrency."""

    __slots__ = (
        "_bucket", "_credit", "_cut_at", "_least_s", "_most", "_next_least_s", "_slow_start", "_smoothed_s", "_turn_at",
        "in_flight", "limit",
    )  # fmt: skip

    def __init__(self, most: int, rate_limit: float | None = None) -> None:
        """Start low, with no trouble seen yet."""
        self.limit = min(START, most)
        self.in_flight = 0
        self._most = most
        self._bucket = None if rate_limit is None else Bucket(rate_limit)
        self._credit = 0
        self._slow_start = True
        self._cut_at = -inf
        self._smoothed_s = 0.0
        self._least_s = self._next_least_s = inf
        self._turn_at = -inf

    def set(self, most: int, rate_limit: float | None) -> None:
        """Go by other settings from here on."""
        self._most = most
        self.limit = min(self.limit, most)
        if rate_limit is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = Bucket(rate_limit)
        elif self._bucket.rate != rate_limit:
            self._bucket.set(rate_limit)

    def wait_s(self, now: float) -> float:
        """Return the seconds until the rate lets the next attempt begin."""
        return 0.0 if self._bucket is None else self._bucket.wait_s(now)

    def began(self, now: float) -> None:
        """Note that an attempt begins."""
        self.in_flight += 1
        if self._bucket is not None:
            self._bucket.spend(now)

    def abandoned(self) -> None:
        """Note that an attempt ended without an answer, by no fault of the receiver's."""
        self.in_flight -= 1

    def ended(self, began_at: float, now: float, load: Load) -> None:
        """Learn from the answer to an attempt that began at `began_at`."""
        used = self.in_flight
        self.in_flight -= 1
        if load is Load.GOOD:
            self._time(now - began_at, now)
            # An unused limit says nothing of what the receiver could bear.
            if self.limit < self._most and 2 * used > self.limit and not self._slower:
                self._grow()
        elif load is not Load.PLAIN and began_at >= self._cut_at:
            self.limit = max(self.limit // 2, 1)
            self._slow_start = False
            self._credit = 0
            self._cut_at = now

    def _grow(self) -> None:
        self._credit += 1
        if self._slow_start or self._credit >= self.limit:
            self.limit += 1
            self._credit = 0

    def _time(self, took_s: float, now: float) -> None:
        """Keep the smoothed answer time, and the smallest of it in the last half minute or two."""
        known_s = self._smoothed_s or took_s
        smoothed = self._smoothed_s = known_s + (took_s - known_s) / SMOOTHING
        if now >= self._turn_at:
            self._turn_at = now + RECENT_S
            self._least_s, self._next_least_s = self._next_least_s, smoothed
        self._next_least_s = min(self._next_least_s, smoothed)

    @property
    def _slower(self) -> bool:
        """Whether answers take clearly longer than they did: more at a time would only wait longer."""
        return self._smoothed_s > SLOWER * min(self._least_s, self._next_least_s) + SLOWER_S
