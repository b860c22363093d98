"""How many attempts a second: a rate that was set, and one learned from a receiver's refusals. Pure: time is passed in.

`Bucket` is the token bucket (Turner, 1986), kept as the generic cell rate algorithm of ATM networks keeps it (ITU-T
I.371): one number, the time at which the bucket would be full again, in place of a count and a timer.

`LearnedRate` does to a rate what TCP does to its window: up a little while all is well, down by a share on trouble
(AIMD: Jacobson, 1988). How much it goes up is taken from CUBIC (RFC 9438): hardly anything soon after a refusal, more
and more later. A steady receiver is seldom pushed too far, and a changed one is found out within a minute.
"""

from math import exp, inf

CATCH_UP_S = 0.005
"""A learned rate spaces attempts evenly, since some receivers take no burst at all; this much lateness is made up."""
LATELY_S = 1.0
FIRST_RATE = 4.0
LEAST_RATE = 0.1
CUT = 0.95
DEEPEST_CUT = 0.7
QUICK_PER_ANSWER = 0.05
QUICK_PER_S = 0.7
STEADY_PER_ANSWER = 3e-5
STEADY_PER_S2 = 0.0015
AHEAD = 1.5
STALE_ANSWERS = 256
STALE_S = 30.0

_INSTANT_S = 1e-6  # shorter waits are rounding errors; at a clock that has counted years they would never end


class Bucket:
    """Gives `rate` tokens a second, and keeps those of `burst_s` seconds, or a single one, for whoever comes later.

    In any `w` seconds at most `rate * w + max(rate * burst_s, 1)` tokens are taken; nobody waits longer for one than
    it takes to come, whatever the clock does.
    """

    __slots__ = ("_burst_s", "_fill_s", "_full_at", "_token_s", "rate")

    def __init__(self, rate: float, burst_s: float) -> None:
        """Start full; `rate` is above 0."""
        self._burst_s = burst_s
        self._full_at = -inf
        self.set(rate)

    def set(self, rate: float) -> None:
        """Go on at another rate."""
        self.rate = rate
        self._token_s = 1 / rate
        self._fill_s = max(self._burst_s, self._token_s)

    def wait_s(self, now: float) -> float:
        """Return the seconds until there is a token, 0 if there is one."""
        missing_s = self._full_at - now
        if missing_s <= 0:
            return 0.0
        if missing_s > self._fill_s:
            # No bucket is emptier than empty: the clock was set back, or the rate up.
            missing_s = self._fill_s
            self._full_at = now + missing_s
        wait_s = missing_s + self._token_s - self._fill_s
        return wait_s if wait_s > _INSTANT_S else 0.0

    def spend(self, now: float) -> None:
        """Take a token, even if there is none."""
        self._full_at = max(self._full_at, now) + self._token_s

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        wait_s = self.wait_s(now)
        if not wait_s:
            self.spend(now)
        return wait_s


class LearnedRate:
    """The rate that a receiver seems to take; `bucket` is None while nothing says that it minds any.

    The first rate is a guess from what was acknowledged lately, and grows quickly until it is refused too. From then
    on the rate is roughly known, and grows with care. One that has not mattered for a while is forgotten.
    """

    __slots__ = ("_answered_at", "_calm", "_guessed", "_lately", "_lowered_at", "bucket")

    def __init__(self) -> None:
        """Start without a rate."""
        self.bucket: Bucket | None = None
        self._guessed = False
        self._calm = 0
        self._lowered_at = 0.0
        self._lately = 0.0
        self._answered_at = 0.0

    def acknowledged(self, now: float) -> float:
        """Count an acknowledgement, and return the seconds since the one before."""
        passed_s = max(now - self._answered_at, 0.0)
        self._lately = self._lately * exp(-passed_s / LATELY_S) + 1.0
        self._answered_at = now
        return passed_s

    def grow(self, now: float, passed_s: float) -> None:
        """Allow a little more after an acknowledgement that came `passed_s` seconds after the one before."""
        bucket = self.bucket
        if bucket is None:
            return
        self._calm += 1
        calm_s = max(now - self._lowered_at, 0.0)
        if bucket.rate < AHEAD * self._lately / LATELY_S:
            if self._guessed:
                share = min(QUICK_PER_ANSWER, QUICK_PER_S * passed_s)
            else:
                share = min(STEADY_PER_ANSWER * self._calm, STEADY_PER_S2 * calm_s * passed_s)
            bucket.set(bucket.rate * (1 + share))
        elif self._calm >= STALE_ANSWERS and calm_s >= STALE_S:
            self.bucket = None

    def refused(self, now: float) -> None:
        """Go below the rate that was refused, and not far above what was acknowledged lately."""
        lately = self._lately * exp(-max(now - self._answered_at, 0.0) / LATELY_S) / LATELY_S
        bucket = self.bucket
        self._guessed = bucket is None
        if bucket is None:
            self.bucket = Bucket(max(CUT * lately, FIRST_RATE), CATCH_UP_S)
            self.bucket.spend(now)
        else:
            # At low rates a second or two may well hold one acknowledgement too few.
            bucket.set(max(min(CUT * bucket.rate, lately + 1), DEEPEST_CUT * bucket.rate, LEAST_RATE))
        self._calm = 0
        self._lowered_at = now
