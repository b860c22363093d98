"""Copies on the wire: what came of one, and how far a run of them has come."""

from urllib.parse import urlsplit

from app.replay_schemas import ReplayOut, ReplayReceipt, show_filter
from app.schemas import rfc3339
from outbox.domain.retrying import Answer
from outbox.engine import Copies


def receipt_of_copy(answer: Answer) -> ReplayReceipt:
    """Return the answer to a request for a copy of one delivery."""
    return ReplayReceipt(None, 1, answer.status, answer.error or None)


def show_copies(copies: Copies) -> ReplayOut:
    """Return a run of copies as we show it; of its URL only the origin, since the rest may hold a token."""
    url = urlsplit(copies.target.url)
    return ReplayOut(
        id=copies.id,
        requested_at=rfc3339(copies.at_ms),
        filter=show_filter(copies.wanted),
        rate=copies.rate,
        to=f"{url.scheme}://{url.netloc}",
        state="finished" if copies.finished_ms else "running",
        deliveries=copies.matched,
        copied=copies.copied,
        failed=copies.failed,
        error=copies.error or None,
        finished_at=rfc3339(copies.finished_ms) if copies.finished_ms else None,
    )
