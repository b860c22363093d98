"""Replays as people see them, and as a start takes them up again."""

from msgspec import Struct

from outbox.domain.errors import CorruptError, NotFoundError
from outbox.domain.records import ReplayRequested, decode
from outbox.domain.replays import END_OF_EVENTS
from outbox.journal.replaying import Replay
from outbox.store.protocol import FoundReplay, Reader


class ReplayView(Struct, frozen=True):
    """A replay; `event_id` is that of the event, where it is of one delivery."""

    replay: Replay
    event_id: bytes = b""


class ReplayPage(Struct, frozen=True):
    """A page of replays, the newest first, and the number before which the next page goes on, if there may be more."""

    items: list[ReplayView]
    next: int | None


async def list_replays(reader: Reader, limit: int, before: int = END_OF_EVENTS) -> ReplayPage:
    """Return up to `limit` replays with numbers below `before`; one whose record cannot be read is left out."""
    found = await reader.replays(before, limit)
    views = await _views(reader, [_replay(one) for one in found if _readable(one)])
    return ReplayPage(views, found[-1].row.number if len(found) == limit else None)


async def view_replay(reader: Reader, number: int) -> ReplayView:
    """Return a replay. Raises NotFoundError and CorruptError."""
    found = await reader.replays(number + 1, 1)
    if not found or found[0].row.number != number:
        msg = f"there is no replay rpl_{number}"
        raise NotFoundError(msg)
    return (await _views(reader, [_replay(found[0])]))[0]


async def running_replays(reader: Reader) -> tuple[list[Replay], list[int]]:
    """Return the replays that have not come to their end, the oldest first, and the numbers of those beyond reading."""
    found = await reader.replays_running()
    return [_replay(one) for one in found if _readable(one)], [one.row.number for one in found if not _readable(one)]


def _readable(found: FoundReplay) -> bool:
    """Say whether what a replay was asked to do can be read."""
    try:
        _replay(found)
    except CorruptError:
        return False
    return True


async def _views(reader: Reader, replays: list[Replay]) -> list[ReplayView]:
    events = [replay.request.wanted.event or 0 for replay in replays]
    ids = await reader.event_ids(sorted(set(events))) if any(events) else {}
    return [ReplayView(replay, ids.get(event, b"")) for replay, event in zip(replays, events, strict=True)]


def _replay(found: FoundReplay) -> Replay:
    record = decode(found.record)
    if not isinstance(record, ReplayRequested):
        msg = f"the record of the replay {found.row.number} is a {type(record).__name__} in the log"
        raise CorruptError(msg)
    return Replay(record, found.row)
