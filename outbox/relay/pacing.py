"""How fast a lane may post: how many attempts at a time, and how many a second. Pure: time and answers are passed in.

How many at a time is TCP's congestion control (Jacobson, 1988; RFC 5681): slow start, which doubles the limit with
every round of answers until there is trouble, then additive increase and multiplicative decrease (AIMD). As CUBIC
does (RFC 9438), it remembers where the trouble was and lingers below before it tries again; as Vegas does (Brakmo,
1994), it stops growing while answers take longer than they used to.

How many a second is a token bucket where the webhook has a rate limit (`outbox.relay.rates`), and a rate learned from
refusals. The two are learned apart, since one attempt at a time to a receiver that answers within a millisecond is a
thousand a second. A refusal is put down to what was raised last: to concurrency where more attempts were allowed
than had been fine before, else to the rate. Refusals in a row are answered by exponential back-off (Karn, 1987).
"""

from enum import Enum
from math import inf

from outbox.domain.retrying import Answer
from outbox.relay.rates import Bucket, LearnedRate

START = 4
BURST_S = 1.0
"""The seconds' worth of a rate limit that may go at once."""
SETTLED_ANSWERS = 64
SETTLED_S = 8.0
"""So much has to go well before more is tried than what was refused."""
PROVEN_ROUNDS = 8
CAREFUL_ANSWERS = 16
"""And so much, before more is tried than where it failed otherwise: failures may have nothing to do with load."""
DOUBTS = 3
BACK_OFF_S = 0.05
BACK_OFFS = 5
SMOOTHED_ANSWERS = 32
SLOWER = 2.0
SLOWER_S = 0.05
"""Answers are slower if they take so many times as long as lately, and so many seconds longer."""
RECENT_S = 30.0

TOO_MANY_REQUESTS = 429
"""The one status that speaks of a rate (RFC 6585, section 4); a 503 may as well come from one request out of five."""

_LONGEST_BACK_OFF_S = BACK_OFF_S * 2.0**BACK_OFFS


class Load(Enum):
    """What an answer says of the receiver's load: well, nothing, in trouble, or refusing because it is too much."""

    GOOD = "good"
    PLAIN = "plain"
    STRAINED = "strained"
    REFUSED = "refused"


def load_of(answer: Answer) -> Load:
    """Say what an answer means for the pace. A connection that failed says nothing of load; a timeout does."""
    status = answer.status
    if status is None or answer.error:
        return Load.STRAINED if answer.error == "timeout" else Load.PLAIN
    if 200 <= status <= 299:  # noqa: PLR2004 - the 2xx class, RFC 9110 section 15.3
        return Load.GOOD
    if status == TOO_MANY_REQUESTS:
        return Load.REFUSED
    return Load.STRAINED if status >= 500 else Load.PLAIN  # noqa: PLR2004 - the 5xx class, section 15.6


class Pacer:
    """The pace of one lane. An attempt may begin while `in_flight` is below `limit` and `wait_s` is 0.

    Times are seconds of any one clock that does not jump; the calls cost a few microseconds together. Every `began` is
    followed by one `ended`; an attempt that was cut off ends as `Load.PLAIN`.
    """

    __slots__ = (
        "_ceiling", "_credit", "_cut_at", "_doubts", "_firm", "_fixed", "_grown", "_learned", "_most",
        "_not_before", "_refusals", "_times", "in_flight", "limit",
    )  # fmt: skip

    def __init__(self, most: int, rate_limit: float | None = None) -> None:
        """Start with a few attempts at a time; see `set` for the arguments."""
        self.limit = min(START, most)
        self.in_flight = 0
        self._most = most
        self._fixed = None if rate_limit is None else Bucket(rate_limit, BURST_S)
        self._learned = LearnedRate()
        self._times = _AnswerTimes()
        self._ceiling = inf  # the limit up to which all was well; infinite before the first trouble
        self._firm = False  # whether it was refusals that the ceiling was learned from
        self._credit = 0  # good answers towards a higher limit
        self._grown = True  # since it was last cut
        self._cut_at = -inf
        self._doubts = 0
        self._refusals = 0  # in a row, as far as they are counted
        self._not_before = -inf

    def set(self, most: int, rate_limit: float | None) -> None:
        """Take other settings: at most `most` attempts at a time and `rate_limit` a second, None for any number."""
        self._most = most
        self.limit = min(self.limit, most)
        if rate_limit is None or self._fixed is None:
            self._fixed = None if rate_limit is None else Bucket(rate_limit, BURST_S)
        else:
            self._fixed.set(rate_limit)

    def wait_s(self, now: float) -> float:
        """Return the seconds until the rates let another attempt begin, 0 if now; `limit` is not looked at."""
        if now >= self._not_before and self._fixed is None and self._learned.bucket is None:
            return 0.0
        wait_s = min(max(self._not_before - now, 0.0), _LONGEST_BACK_OFF_S)
        if self._fixed is not None:
            wait_s = max(wait_s, self._fixed.wait_s(now))
        if self._learned.bucket is not None:
            wait_s = max(wait_s, self._learned.bucket.wait_s(now))
        return wait_s

    def began(self, now: float) -> None:
        """Count an attempt that begins now."""
        self.in_flight += 1
        if self._fixed is not None:
            self._fixed.spend(now)
        if self._learned.bucket is not None:
            self._learned.bucket.spend(now)

    def ended(self, began_at: float, now: float, load: Load) -> None:
        """Learn from how an attempt ended.

        What began before the limit was last cut was sent at the old pace, and says nothing of the new one.
        """
        used = self.in_flight
        self.in_flight -= 1
        self._cut_at = min(self._cut_at, now)
        news = began_at >= self._cut_at
        if load is Load.GOOD:
            self._times.add(now - began_at, now)
            passed_s = self._learned.acknowledged(now)
            if news:
                self._refusals = 0
                self._learned.grow(now, passed_s)
                self._grow(used, now)
        elif news and load is not Load.PLAIN:
            self._cut(now, load)

    def _grow(self, used: int, now: float) -> None:
        """Raise the limit by one if it was in use, answers are not slowing down, and enough of them were good."""
        limit, ceiling = self.limit, self._ceiling
        if limit > ceiling:
            self._prove()
            return
        slow_start = 2 * limit < ceiling
        if limit >= self._most or self._times.slower or not self._in_use(used, now, slow_start=slow_start):
            return
        self._credit += 1
        if slow_start or self._credit >= self._price(now):
            self.limit, self._credit, self._grown = limit + 1, 0, True

    def _in_use(self, used: int, now: float, *, slow_start: bool) -> bool:
        """Say whether it is the limit that holds the lane back; in slow start it doubles before it is filled."""
        if self.limit == 1:
            return not self.wait_s(now)
        return 2 * used > self.limit if slow_start else used >= self.limit

    def _price(self, now: float) -> float:
        """Return how many good answers one more at a time costs: a round of them, at the ceiling more."""
        if self.limit < self._ceiling:
            return self.limit
        if not self._firm:
            return max(CAREFUL_ANSWERS, self.limit)
        return max(SETTLED_ANSWERS, self.limit**2) if now - self._cut_at >= SETTLED_S else inf

    def _prove(self) -> None:
        """Give up a ceiling that has been exceeded for a while without trouble."""
        self._credit += 1
        if not self._firm or self._credit >= max(SETTLED_ANSWERS, PROVEN_ROUNDS * self.limit):
            self._ceiling, self._credit = 2 * self.limit, 0

    def _cut(self, now: float, load: Load) -> None:
        """Halve the limit, and lower what is to blame: the ceiling or the rate."""
        if load is Load.REFUSED:
            self._blame(now)
            self._back_off(now)
        elif self._grown and not self._firm:
            self._ceiling = max(self.limit - 1, 1)
        self.limit, self._credit, self._grown = max(self.limit // 2, 1), 0, False
        self._cut_at = now

    def _blame(self, now: float) -> None:
        """Put a refusal down to the limit if it was above a firm ceiling, or there is none; else to the rate."""
        too_many = not self._firm or self.limit > self._ceiling
        if not too_many:
            too_many = self._doubtful()
            if not self._refusals or self._learned.bucket is None:
                self._learned.refused(now)
        if too_many and self._grown:
            self._ceiling, self._firm, self._doubts = max(self.limit - 1, 1), True, 0

    def _doubtful(self) -> bool:
        """Say whether a refusal that is put down to the rate may be for concurrency after all."""
        if self._learned.bucket is None:
            return True
        self._doubts += self._grown
        return self._doubts >= DOUBTS

    def _back_off(self, now: float) -> None:
        """Wait longer and longer while one refusal follows another: whatever the reason, it takes its time to pass."""
        if self._refusals:
            self._not_before = now + BACK_OFF_S * 2.0**self._refusals
        self._refusals = min(self._refusals + 1, BACK_OFFS)


class _AnswerTimes:
    """How long good answers take, smoothed, and the least that this was within the last `RECENT_S` or twice that."""

    __slots__ = ("_count", "_least_s", "_next_least_s", "_turn_at", "smoothed_s")

    def __init__(self) -> None:
        self.smoothed_s = 0.0
        self._count = 0
        self._least_s = self._next_least_s = inf
        self._turn_at = -inf

    def add(self, took_s: float, now: float) -> None:
        """Count one; single answers vary too much to be compared, so the least is one of smoothed times."""
        if self._count < SMOOTHED_ANSWERS:
            self._count += 1
        self.smoothed_s = smoothed_s = self.smoothed_s + (max(took_s, 0.0) - self.smoothed_s) / self._count
        if self._count < SMOOTHED_ANSWERS:
            return
        if now >= self._turn_at:
            self._turn_at = now + RECENT_S
            self._least_s, self._next_least_s = self._next_least_s, smoothed_s
        self._next_least_s = min(self._next_least_s, smoothed_s)
        self._least_s = min(self._least_s, smoothed_s)

    @property
    def slower(self) -> bool:
        """Whether answers take clearly longer than they did not long ago."""
        return self.smoothed_s > SLOWER * self._least_s + SLOWER_S
