"""What an answer means, and when to try again: the retry schedule."""

from collections.abc import Callable
from enum import Enum

from msgspec import Struct

from outbox.domain.deliveries import Effect

GONE = 410
RETRY_AFTER_MIN_S = 1.0
RETRY_AFTER_MAX_S = 3600.0

_THROTTLING = frozenset({429, 502, 503, 504})
_FREE_WITH_RETRY_AFTER = frozenset({429, 503})


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """The schedule, in seconds: `initial_s` doubled after every failure up to `max_s`, each varied by `jitter`.

    `max_attempts` counts the first POST; a delivery older than `max_age_s` is not attempted any more; `non_retryable`
    statuses end one at once.
    """

    initial_s: float = 5.0
    max_s: float = 21_600.0
    jitter: float = 0.2
    exponential: bool = True
    max_attempts: int = 20
    max_age_s: float = 604_800.0
    non_retryable: frozenset[int] = frozenset({400, 413, 422})


class Answer(Struct, frozen=True):
    """What came back from one POST: a status, or the name of the error that came instead.

    `detail` is for people, `excerpt` the first bytes of a failure's body, `retry_after_s` what the receiver asked for.
    """

    status: int | None = None
    error: str = ""
    detail: str = ""
    excerpt: bytes = b""
    retry_after_s: float | None = None

    @property
    def acknowledges(self) -> bool:
        """Whether the status is a 2xx (RFC 9110, section 15.3): an answer's body never changes that."""
        return self.status is not None and 200 <= self.status <= 299  # noqa: PLR2004


class Verdict(Enum):
    """The meaning of an answer."""

    SUCCESS = "success"
    RETRY = "retry"
    THROTTLED = "throttled"
    FINAL = "final"
    GONE = "gone"


class Decision(Struct, frozen=True):
    """What becomes of the delivery: its effect, its charged attempts and due time, and why it is dead if it is."""

    effect: Effect
    charged: int
    due_ms: int
    reason: str = ""


def classify(answer: Answer, policy: RetryPolicy) -> Verdict:
    """Say what `answer` means. Only a 2xx status acknowledges; an answer's body never changes that."""
    status = answer.status
    if status is None:
        return Verdict.RETRY
    if 200 <= status <= 299:  # noqa: PLR2004 - the 2xx class, RFC 9110 section 15.3
        return Verdict.SUCCESS
    if status == GONE:
        return Verdict.GONE
    if status in policy.non_retryable:
        return Verdict.FINAL
    return Verdict.THROTTLED if status in _THROTTLING else Verdict.RETRY


def decide(answer: Answer, charged: int, now_ms: int, policy: RetryPolicy, random: Callable[[], float]) -> Decision:
    """Decide what `answer` does to a delivery that had used up `charged` attempts before this one.

    `random` gives numbers from 0 to 1. A 429 or 503 that says when to come back uses up no attempt.
    """
    verdict = classify(answer, policy)
    if verdict is Verdict.GONE:
        return Decision(Effect.SUSPEND, charged, now_ms)
    if verdict is Verdict.SUCCESS:
        return Decision(Effect.ACKNOWLEDGE, charged + 1, now_ms)
    if verdict is Verdict.FINAL:
        return Decision(Effect.BURY, charged + 1, now_ms, f"status {answer.status} is not retried")
    asked_s = clamped_retry_after(answer) if verdict is Verdict.THROTTLED else None
    if asked_s is not None and answer.status in _FREE_WITH_RETRY_AFTER:
        return Decision(Effect.RETRY, charged, now_ms + round(asked_s * 1000))
    charged += 1
    if charged >= policy.max_attempts:
        return Decision(Effect.BURY, charged, now_ms, f"{charged} attempts failed, the last with {cause(answer)}")
    wait_s = max(delay_s(charged, policy, random), asked_s or 0.0)
    return Decision(Effect.RETRY, charged, now_ms + round(wait_s * 1000))


def delay_s(failures: int, policy: RetryPolicy, random: Callable[[], float]) -> float:
    """Return the seconds to wait after that many `failures` in a row."""
    doublings = min(failures - 1, 64) if policy.exponential else 0
    plain = min(policy.initial_s * 2.0**doublings, policy.max_s)
    return min(plain * (1 + policy.jitter * (2 * random() - 1)), policy.max_s)


def clamped_retry_after(answer: Answer) -> float | None:
    """Return the seconds that a throttling receiver asked for, within 1 s and 1 h, or None if it did not ask."""
    if answer.retry_after_s is None or answer.status not in _THROTTLING:
        return None
    return min(max(answer.retry_after_s, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)


def cause(answer: Answer) -> str:
    """Return a few words for what went wrong: the error's name, or the status."""
    return answer.error or f"status {answer.status}"
