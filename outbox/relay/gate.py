"""What holds a lane back: a receiver's Retry-After, its pacing, its circuit breaker. Pure: the time is passed in.

Times are seconds of the event loop's clock, which no change of the wall clock moves.
"""

from collections.abc import Callable
from math import inf

from outbox.domain.retrying import Answer, RetryPolicy, cause, clamped_retry_after
from outbox.domain.webhooks import Webhook
from outbox.relay.breaker import Breaker, Sign, sign_of
from outbox.relay.pacing import Load, Pacer, load_of


class Gate:
    """Says how many attempts may be in flight, when the next may begin, and learns from what came of each."""

    def __init__(self, webhook: Webhook, policy: RetryPolicy, random: Callable[[], float]) -> None:
        """Start as the webhook's settings ask, with its breaker as the log has it."""
        self.reason = ""
        self._policy = policy
        self._pacer = Pacer(webhook.settings.concurrency, webhook.settings.rate_limit)
        self._breaker = Breaker(policy, random, is_open=webhook.opened_ms > 0)
        self._paused_until = -inf

    @property
    def is_open(self) -> bool:
        """Whether the breaker is open: then there are only probes, one at a time."""
        return self._breaker.is_open

    @property
    def is_nudged(self) -> bool:
        """Whether a probe is to be made at once, be a delivery due or not."""
        return self._breaker.is_nudged

    def turn(self, webhook: Webhook) -> None:
        """Go by other settings from here on."""
        self._pacer.set(webhook.settings.concurrency, webhook.settings.rate_limit)

    def nudge(self) -> None:
        """Try at once: the webhook was set, tested or replayed."""
        self._paused_until = -inf
        self._breaker.nudge()

    def limit(self, now: float) -> int:
        """Return how many attempts may be in flight, probes aside."""
        return 0 if self._breaker.is_open or now < self._paused_until else self._pacer.limit

    def wait_s(self, now: float) -> float:
        """Return the seconds until the pacing lets the next attempt begin."""
        return self._pacer.wait_s(now)

    def pause_s(self, now: float) -> float:
        """Return the seconds until the lane may make any attempt: 0, or what a Retry-After or the breaker asks for."""
        return max(self._paused_until - now, self._breaker.wait_s(now), 0.0)

    def began(self, now: float) -> None:
        """Note that an attempt begins."""
        self._pacer.began(now)

    def probe(self, delivery: int) -> None:
        """Note that the attempt that begins for this delivery is the probe of an open breaker."""
        self._breaker.probe(delivery)

    def abandoned(self, delivery: int, now: float) -> None:
        """Note that an attempt ended without telling anything of the receiver."""
        self._pacer.ended(now, now, Load.PLAIN)
        self._breaker.abandoned(delivery)

    def ended(self, delivery: int, began: float, now: float, answer: Answer) -> None:
        """Learn from what came of an attempt."""
        if answer.acknowledges:
            self._pacer.ended(began, now, Load.GOOD)
            if self._breaker.ended(delivery, now, Sign.WELL):
                self.reason = ""
            return
        asked_s = clamped_retry_after(answer)
        if asked_s is not None:
            self._paused_until = max(self._paused_until, now + asked_s)
        self._pacer.ended(began, now, load_of(answer))
        if self._breaker.ended(delivery, now, sign_of(answer, self._policy)):
            self.reason = cause(answer) if self._breaker.is_open else ""

    def retry_s(self, now: float) -> float:
        """Return the seconds until the breaker's next probe."""
        return self._breaker.wait_s(now)
