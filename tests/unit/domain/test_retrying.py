import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.domain.deliveries import Effect
from outbox.domain.retrying import Answer, Decision, RetryPolicy, Verdict, cause, clamped_retry_after, classify, decide
from outbox.domain.retrying import delay_s as delay_of

TABLE = json.loads((Path(__file__).parents[2] / "vectors" / "retry.json").read_text())
POLICY = RetryPolicy()
STEADY = RetryPolicy(jitter=0.0)
NOW_MS = 1_762_161_342_118
POLICIES = st.builds(
    RetryPolicy,
    initial_s=st.just(0.0) | st.floats(1e-3, 1e4),
    max_s=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
    exponential=st.booleans(),
    max_attempts=st.integers(1, 50),
)
CHANCE = st.floats(0, 1)


def half() -> float:
    """A chance that jitters nothing."""
    return 0.5


def after(answer: Answer, charged: int = 0, policy: RetryPolicy = STEADY) -> Decision:
    """What is decided now, after so many charged attempts."""
    return decide(answer, charged, NOW_MS, policy, half)


def test_the_defaults_are_the_documented_ones() -> None:
    """Five seconds doubled up to six hours, a fifth of jitter, twenty attempts, three final statuses."""
    assert (POLICY.initial_s, POLICY.max_s, POLICY.jitter, POLICY.exponential) == (5, 21_600, 0.2, True)
    assert POLICY.max_attempts == 20
    assert POLICY.non_retryable == {400, 413, 422}


@pytest.mark.parametrize("table", [TABLE, TABLE["evolution_defaults"]], ids=["ours", "evolution"])
def test_the_schedule_is_the_documented_one(table: dict[str, Any]) -> None:
    """From the first failure to the last, the waits are those of the vectors, and then the delivery is dead."""
    policy = RetryPolicy(
        initial_s=table["initial_delay_s"], max_s=table["max_delay_s"], jitter=0, max_attempts=table["max_attempts"]
    )
    waits: list[float] = []
    decision = Decision(Effect.RETRY, 0, NOW_MS)
    while (decision := decide(Answer(500), decision.charged, NOW_MS, policy, half)).effect is Effect.RETRY:
        waits.append((decision.due_ms - NOW_MS) / 1000)
    assert waits == table["delays_s"]
    assert sum(waits) == table["total_s"]
    assert (decision.effect, decision.charged) == (Effect.BURY, policy.max_attempts)


@given(POLICIES, st.integers(1, 100_000), CHANCE)
def test_a_wait_stays_within_its_jitter_and_the_cap(policy: RetryPolicy, failures: int, chance: float) -> None:
    """Never negative, never above the cap, never further from the plain wait than the jitter allows."""
    plain = min(policy.initial_s * (2.0 ** min(failures - 1, 99) if policy.exponential else 1), policy.max_s)
    wait = delay_of(failures, policy, lambda: chance)
    assert 0 <= wait <= policy.max_s
    assert plain * (1 - policy.jitter) * 0.999999 <= wait <= plain * (1 + policy.jitter) * 1.000001


@pytest.mark.parametrize(("chance", "wait"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
def test_jitter_varies_a_wait_both_ways(chance: float, wait: float) -> None:
    """A fifth less to a fifth more."""
    assert delay_of(2, POLICY, lambda: chance) == pytest.approx(wait)


@pytest.mark.parametrize(("initial", "waits"), [(0.25, [0.25, 0.5, 1.0]), (0.0, [0.0, 0.0, 0.0])])
def test_fractions_and_zero_are_legal(initial: float, waits: list[float]) -> None:
    """A quarter of a second means that, and 0 means at once."""
    policy = RetryPolicy(initial_s=initial, jitter=0.2)
    assert [delay_of(failures, policy, half) for failures in (1, 2, 3)] == waits


def test_waits_may_be_told_not_to_grow() -> None:
    """Without exponential backoff every wait is the first one."""
    policy = RetryPolicy(exponential=False, jitter=0)
    assert [delay_of(failures, policy, half) for failures in (1, 2, 19)] == [5, 5, 5]


@pytest.mark.parametrize("status", [None, 199, 300])
def test_nothing_else_acknowledges(status: int | None) -> None:
    """No answer, and an answer of any other class."""
    assert not Answer(status).acknowledges


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 226, 299])
def test_any_2xx_acknowledges(status: int) -> None:
    """The status decides; what became of the body after it does not matter."""
    decision = after(Answer(status, error="body_broken", detail="the body broke off"), charged=3)
    assert classify(Answer(status), POLICY) is Verdict.SUCCESS
    assert Answer(status).acknowledges
    assert decision == Decision(Effect.ACKNOWLEDGE, 4, NOW_MS)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_final_status_is_dead_at_once(status: int) -> None:
    """What the receiver will never take is not offered again; the reason names the status."""
    decision = after(Answer(status, retry_after_s=10))
    assert classify(Answer(status), POLICY) is Verdict.FINAL
    assert decision == Decision(Effect.BURY, 1, NOW_MS, f"status {status} is not retried")


@pytest.mark.parametrize("status", [100, 101, 199, 300, 301, 307, 308, 401, 403, 404, 408, 409, 411, 500, 501, 999])
def test_any_other_status_is_retried(status: int) -> None:
    """A workflow that is off answers 404: it may be on tomorrow. A redirect is no acknowledgement."""
    assert classify(Answer(status), POLICY) is Verdict.RETRY
    assert after(Answer(status, retry_after_s=100)) == Decision(Effect.RETRY, 1, NOW_MS + 5000)


@pytest.mark.parametrize("charged", [0, 19, 500])
def test_what_is_gone_suspends(charged: int) -> None:
    """A 410 says that nobody is there to listen: the delivery waits for the webhook, and no attempt is used up."""
    for policy in (STEADY, RetryPolicy(non_retryable=frozenset({410}))):
        assert classify(Answer(410), policy) is Verdict.GONE
        assert after(Answer(410, retry_after_s=100), charged, policy) == Decision(Effect.SUSPEND, charged, NOW_MS)


@pytest.mark.parametrize("error", ["timeout", "tls_error", "refused"])
def test_no_answer_is_retried(error: str) -> None:
    """A connection that failed says nothing about the event."""
    assert classify(Answer(error=error), POLICY) is Verdict.RETRY
    assert after(Answer(error=error)) == Decision(Effect.RETRY, 1, NOW_MS + 5000)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_overloaded_receiver_is_retried(status: int) -> None:
    """Without a wish of its own, it gets the usual wait, and the attempt counts."""
    assert classify(Answer(status), POLICY) is Verdict.THROTTLED
    assert after(Answer(status), charged=1) == Decision(Effect.RETRY, 2, NOW_MS + 10_000)


def test_final_statuses_are_a_setting() -> None:
    """Only those that are set end a delivery, overload included; a 2xx stays a 2xx."""
    policy = RetryPolicy(non_retryable=frozenset({200, 404, 429}))
    verdicts = [classify(Answer(status), policy) for status in (200, 400, 404, 429)]
    assert verdicts == [Verdict.SUCCESS, Verdict.RETRY, Verdict.FINAL, Verdict.FINAL]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("charged", [0, 19, 500])
def test_a_receiver_that_says_when_uses_up_no_attempt(status: int, charged: int) -> None:
    """A 429 or 503 with Retry-After is waited for, however often it comes."""
    assert after(Answer(status, retry_after_s=60), charged) == Decision(Effect.RETRY, charged, NOW_MS + 60_000)


@pytest.mark.parametrize("status", [502, 504])
@pytest.mark.parametrize(("asked", "wait_ms"), [(2, 5000), (60, 60_000)])
def test_a_gateway_that_says_when_is_waited_for_too(status: int, asked: float, wait_ms: int) -> None:
    """The longer of its wish and the schedule counts, and the attempt is charged."""
    assert after(Answer(status, retry_after_s=asked)) == Decision(Effect.RETRY, 1, NOW_MS + wait_ms)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(("asked", "clamped"), [(-5, 1), (0, 1), (1.5, 1.5), (3600, 3600), (1e300, 3600)])
def test_retry_after_is_kept_within_a_second_and_an_hour(status: int, asked: float, clamped: float) -> None:
    """No receiver can make a lane spin, or stop it for a year."""
    assert clamped_retry_after(Answer(status, retry_after_s=asked)) == clamped


@pytest.mark.parametrize("answer", [Answer(429), Answer(500, retry_after_s=9), Answer(200, retry_after_s=9), Answer()])
def test_only_an_overloaded_receiver_may_ask_for_time(answer: Answer) -> None:
    """Without the header, or with any other status, nothing was asked."""
    assert clamped_retry_after(answer) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(500), "status 500"),
        (Answer(error="timeout"), "timeout"),
        (Answer(101, "protocol_error"), "protocol_error"),
    ],
)
def test_the_last_failure_is_the_reason_of_a_death(answer: Answer, words: str) -> None:
    """The budget counts the first POST; the reason says how many failed, and how the last one did."""
    assert cause(answer) == words
    assert after(answer, charged=18).effect is Effect.RETRY
    assert after(answer, charged=19) == Decision(
        Effect.BURY, 20, NOW_MS, f"20 attempts failed, the last with {words}"
    )  # fmt: skip


@given(POLICIES, st.integers(0, 60), st.integers(100, 999), st.none() | st.floats(-1e9, 1e9), CHANCE)
def test_a_decision_is_consistent(
    policy: RetryPolicy, charged: int, status: int, asked: float | None, chance: float
) -> None:
    """Whatever comes back: one attempt at most is charged, nothing is due in the past, the dead have a reason."""
    decision = decide(Answer(status, retry_after_s=asked), charged, NOW_MS, policy, lambda: chance)
    assert decision.charged - charged in (0, 1)
    assert NOW_MS <= decision.due_ms <= NOW_MS + 1000 * max(policy.max_s, 3600) + 1
    assert bool(decision.reason) is (decision.effect is Effect.BURY)
    assert decision.effect is not Effect.LATE
