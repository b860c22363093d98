"""The parameters of a query: read by us, so that every fault is named with its place."""

from typing import Any

from litestar import Request

from outbox.domain.errors import InvalidError

LISTING = ("instance", "event", "webhook", "state", "since", "until", "limit", "cursor")


def read_query(request: Request[Any, Any, Any], *names: str) -> dict[str, str]:
    """Return the parameters by name. Raises InvalidError for one that is not among `names` or is given twice.

    A misspelt filter would otherwise narrow nothing, and nobody would notice.
    """
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            msg = f"there is no parameter {name[:80]!r} here; there are {', '.join(names)}"
            raise InvalidError(msg, name[:80])
        if name in given:
            msg = f"the parameter `{name}` is given twice"
            raise InvalidError(msg, name)
        given[name] = value
    return given
