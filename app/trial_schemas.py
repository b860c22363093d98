"""What came of a test event, on the wire."""

from msgspec import Struct

from outbox.engine import Trial


class TrialOut(Struct):
    """What came of a test event; `answer` is the beginning of a failure's answer."""

    url: str
    status: int | None
    error: str | None
    detail: str | None
    ms: int
    answer: str | None


def show_trial(trial: Trial) -> TrialOut:
    """Return what came of a test event."""
    answer = trial.answer
    return TrialOut(
        url=trial.url,
        status=answer.status,
        error=answer.error or None,
        detail=answer.detail or None,
        ms=trial.took_ms,
        answer=answer.excerpt.decode(errors="replace") or None,
    )
