"""Errors on the wire: application/problem+json (RFC 9457), from one table."""

from http import HTTPStatus
from typing import Any

import msgspec

from outbox.domain.errors import (
    BusyError,
    ConflictError,
    CorruptError,
    InvalidError,
    MalformedError,
    NotFoundError,
    OutboxError,
    OutcomeUnknownError,
    TooLargeError,
)

PROBLEM_JSON = "application/problem+json"

_STATUS: tuple[tuple[type[OutboxError], int], ...] = (
    (MalformedError, 400),
    (NotFoundError, 404),
    (ConflictError, 409),
    (TooLargeError, 413),
    (InvalidError, 422),
    (BusyError, 503),
    (OutcomeUnknownError, 503),
    (CorruptError, 500),
)


class ProblemError(OutboxError):
    """A fault that only the HTTP face knows: a missing key, a wrong method, a content type."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        """Answer with `status` and, beside the problem, `headers`."""
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}


class Problem(msgspec.Struct, frozen=True):
    """One answer: its status, its headers but for the content type, and its members."""

    status: int
    headers: dict[str, str]
    members: dict[str, Any]

    def encode(self) -> bytes:
        """Return the body."""
        return msgspec.json.encode(self.members)


def problem_for(error: Exception) -> Problem:
    """Return the answer to `error`; what is none of ours is a 500 that says nothing about the inside."""
    headers: dict[str, str] = {}
    detail = "something went wrong inside; the service's log says more"
    status = 500
    if isinstance(error, ProblemError):
        status, headers, detail = error.status, error.headers, error.detail
    elif isinstance(error, MemoryError):
        status, headers, detail = 503, {"retry-after": "5"}, "there is not enough memory for this now"
    elif isinstance(error, OutboxError):
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        detail = str(error) if isinstance(error, InvalidError) else error.detail
    if isinstance(error, BusyError):
        headers = {"retry-after": str(error.retry_after_s)}
    elif isinstance(error, OutcomeUnknownError):
        headers = {"retry-after": "5"}
    title = HTTPStatus(status).phrase
    return Problem(status, headers, {"type": "about:blank", "title": title, "status": status, "detail": detail})


def evolution_shape(problem: Problem) -> Problem:
    """Return the same problem with the members that Evolution API's clients look at."""
    detail = problem.members["detail"]
    message = [[detail]] if problem.status in {400, 422} else [detail]
    extra = {"error": problem.members["title"], "response": {"message": message}}
    return Problem(problem.status, problem.headers, problem.members | extra)
