"""Pages of lists: how many items are shown at once, and where the next page goes on."""

from outbox.domain.errors import InvalidError

LIMIT = 50
LIMIT_MAX = 500


def read_limit(text: str | None) -> int:
    """Return how many items a page has. Raises InvalidError."""
    if text is None:
        return LIMIT
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(LIMIT_MAX)) and 1 <= int(text) <= LIMIT_MAX):
        msg = f"a page has 1 to {LIMIT_MAX} items"
        raise InvalidError(msg, "limit")
    return int(text)
