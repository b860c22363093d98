"""The parameters of a query: read by us, so that every fault is named with its place."""

from typing import Any

from litestar import Request

from app.describing import Parameter
from app.paging import LIMIT, LIMIT_MAX
from outbox.domain.errors import InvalidError
from outbox.domain.events import INSTANCE_MAX_LENGTH
from outbox.inspecting import STATES

_TEXT = {"type": "string"}
_MOMENT = {
    "anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0, "maximum": 99999999999}]
}
_SEQ = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1, "default": 0}

LIMIT_PARAMETER = Parameter(
    "limit", {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT}, "the most items of a page"
)
AFTER = Parameter("after", _SEQ, "the seq of the record before the first one shown; 0: begin with the first")
LISTING = (
    Parameter("instance", _TEXT | {"minLength": 1, "maxLength": INSTANCE_MAX_LENGTH}, "only of this instance"),
    Parameter("event", _TEXT, "only of this kind, in any spelling"),
    Parameter("webhook", _TEXT | {"pattern": "^wh_[1-9][0-9]{0,17}$"}, "only with a delivery to this webhook"),
    Parameter("state", _TEXT | {"enum": list(STATES)}, "only with a delivery in this state"),
    Parameter("since", _MOMENT, "only accepted from this moment on: RFC 3339, or seconds since the epoch"),
    Parameter("until", _MOMENT, "only accepted before this moment"),
    LIMIT_PARAMETER,
    Parameter("cursor", _TEXT | {"pattern": "^[0-9]{1,18}_[0-9]{1,18}$"}, "where to go on: `next` of the page before"),
)


def read_query(request: Request[Any, Any, Any], *parameters: Parameter) -> dict[str, str]:
    """Return the parameters given by name. Raises InvalidError for one that is unknown or given twice.

    A misspelt filter would otherwise narrow nothing, and nobody would notice.
    """
    names = [parameter.name for parameter in parameters]
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
