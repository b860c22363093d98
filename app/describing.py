"""What a route says of itself to `/schema`: parameters, body, answers. It stands beside it, as `opt=describe(...)`.

What is not said is worked out by `app.openapi`: path parameters, the body of the usual answer, and the problems that
any route may answer with.
"""

from typing import Any

from msgspec import Struct

JSON = "application/json"
DESCRIPTION = "description"
PUBLIC = ("",)


class ProblemOut(Struct):
    """An error (RFC 9457); `detail` says what is wrong and where."""

    type: str
    title: str
    status: int
    detail: str


class Parameter(Struct, frozen=True):
    """One parameter of a query, or one header: its JSON Schema and what it is for."""

    name: str
    schema: dict[str, Any]
    description: str
    place: str = "query"
    required: bool = False


class Answer(Struct, frozen=True):
    """One answer that is no problem: the type of its body (None: there is none), its media type, its headers."""

    body: Any
    media: str = JSON
    description: str = "as asked"
    headers: dict[str, str] = {}


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one path.

    `bodies` are the types that its body may have, by media type, and `body_optional` says that it may be left out;
    `answers` and `problems` go by status; `security` names the schemes of which one is needed, "" meaning that it works
    without.
    """

    bodies: dict[str, tuple[Any, ...]] = {}
    body_optional: bool = False
    parameters: tuple[Parameter, ...] = ()
    answers: dict[int, Answer] = {}
    problems: tuple[int, ...] = ()
    problem: type | None = None
    security: tuple[str, ...] = ("apikey", "bearer")


def describe(*, public: bool = False, **members: Any) -> dict[str, Any]:
    """Return the `opt` of a route: whether it needs no key, and what it says of itself."""
    if public:
        members["security"] = PUBLIC
    return {"public": public, DESCRIPTION: Operation(**members)}
