"""Pages of lists: how many items are shown at once, and where the next page goes on."""

from typing import Annotated

from litestar.params import Parameter

from outbox.domain.errors import InvalidError

LIMIT = 50
LIMIT_MAX = 500

# Read as text and checked here, so that a wrong one is refused like everything else: with 422 and its place. The
# schema then has to be told what it is, and (`one_of`) not to offer text.
Limit = Annotated[
    str | None,
    Parameter(
        description=f"the most items to show, {LIMIT} if not given",
        schema_extra={"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "one_of": None},
    ),
]
Cursor = Annotated[str | None, Parameter(description="where to go on: `next` of the page before")]


def read_limit(text: str | None) -> int:
    """Return how many items a page has. Raises InvalidError."""
    if text is None:
        return LIMIT
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(LIMIT_MAX)) and 1 <= int(text) <= LIMIT_MAX):
        msg = f"a page has 1 to {LIMIT_MAX} items"
        raise InvalidError(msg, "limit")
    return int(text)
