"""What lists can be narrowed by, read from text: the same for the parameters of a URL and the options of a command."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from app.paging import read_limit
from outbox.domain import catalogue
from outbox.domain.errors import InvalidError
from outbox.domain.events import check_instance
from outbox.inspecting import STATES, TOP, EventFilter, Position, Wanted

_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)
_WEBHOOK = re.compile(r"wh_([1-9][0-9]{0,17})", re.ASCII)
_CURSOR = re.compile(r"([0-9]{1,18})_([0-9]{1,18})", re.ASCII)
_EPOCH_S = re.compile(r"[0-9]{1,11}(?:\.[0-9]{1,9})?", re.ASCII)
# In a URL a + that is not escaped has become a space.
_OFFSET = re.compile(r" ([0-9]{2}:[0-9]{2})$", re.ASCII)


class Asked(msgspec.Struct, frozen=True):
    """A list as it was asked for: what is wanted, how many at most, and where to begin."""

    wanted: Wanted
    limit: int
    after: Position


def read_listing(given: Mapping[str, str]) -> Asked:
    """Read the parameters of a list; absent ones narrow nothing. Raises InvalidError, naming the parameter."""
    cursor = given.get("cursor")
    return Asked(read_wanted(given), read_limit(given.get("limit")), TOP if cursor is None else _cursor(cursor))


def read_wanted(given: Mapping[str, str], at: str = "") -> Wanted:
    """Read the filters of a list or a replay. Raises InvalidError, naming the one that is wrong, `at` before it."""
    instance = given.get("instance")
    if instance is not None:
        check_instance(instance, slashes=True, where=f"{at}instance")
    return Wanted(
        events=EventFilter(
            kind=_kind(given["event"], f"{at}event") if "event" in given else None,
            instance=instance,
            since_ms=_moment_ms(given["since"], f"{at}since") if "since" in given else None,
            until_ms=_moment_ms(given["until"], f"{at}until") if "until" in given else None,
        ),
        webhook=_webhook(given["webhook"], f"{at}webhook") if "webhook" in given else None,
        state=_state(given["state"], f"{at}state") if "state" in given else None,
    )


def read_seq(text: str, where: str = "after") -> int:
    """Read the seq of a record, 0 being before the first. Raises InvalidError."""
    if not _NUMBER.fullmatch(text):
        msg = f"`{where}` is the seq of a record, or 0"
        raise InvalidError(msg, where)
    return int(text)


def cursor_text(position: Position | None) -> str | None:
    """Return the cursor that stands for a position."""
    return None if position is None else f"{position.event}_{position.webhook}"


def _kind(text: str, where: str) -> str:
    kind = catalogue.find(text)
    if kind is None:
        msg = f"there is no kind {text[:80]!r}; the nearest is {catalogue.nearest(text)}"
        raise InvalidError(msg, where)
    return kind.name


def _webhook(text: str, where: str) -> int:
    found = _WEBHOOK.fullmatch(text)
    if found is None:
        msg = "a webhook's id is wh_ and a number"
        raise InvalidError(msg, where)
    return int(found[1])


def _state(text: str, where: str) -> str:
    if text not in STATES:
        msg = f"a delivery's state is one of {', '.join(STATES)}"
        raise InvalidError(msg, where)
    return text


def _cursor(text: str) -> Position:
    found = _CURSOR.fullmatch(text)
    if found is None:
        msg = "a cursor is what a page said in `next`"
        raise InvalidError(msg, "cursor")
    return Position(int(found[1]), int(found[2]))


def _moment_ms(text: str, where: str) -> int:
    """Return a moment in milliseconds since the epoch; what is before the epoch is the epoch."""
    if _EPOCH_S.fullmatch(text):
        return int(float(text) * 1000)
    try:
        moment = msgspec.convert(_OFFSET.sub(r"+\1", text), datetime)
    except msgspec.ValidationError:
        moment = None
    if moment is None or moment.tzinfo is None:
        msg = f"`{where}` is a moment as RFC 3339 has it, such as 2025-11-30T12:00:00Z, or seconds since the epoch"
        raise InvalidError(msg, where)
    return max(round((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000), 0)
