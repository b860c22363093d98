"""Replays on the wire: what can be asked for, and how they are shown."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from app.filters import read_wanted
from app.schemas import rfc3339, webhook_id
from outbox.domain.errors import InvalidError
from outbox.domain.ids import delivery_text
from outbox.domain.replays import ReplayFilter
from outbox.inspecting import Replay, ReplayPage, ReplayView

RATE_MAX = 10_000
NARROWING = ("webhook", "state", "event", "instance", "since", "until")

Rate = Annotated[float, Meta(gt=0, le=RATE_MAX, description="how many become due a second; all at once if absent")]
Moment = Annotated[str | float, Meta(description="RFC 3339, or seconds since the epoch")]
WebhookId = Annotated[str, Meta(pattern="^wh_[1-9][0-9]{0,17}$")]
_State = Literal["pending", "waiting", "held", "acknowledged", "dead"]
_Copy = Annotated[str, Meta(description="a URL that gets copies instead; nothing else changes")]


class DeliveryReplayIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """How one delivery is to be replayed."""

    acknowledged: Annotated[bool, Meta(description="also if it was acknowledged")] = False
    to: _Copy | None = None


class ReplayIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which deliveries are to be replayed: at least one member must narrow them."""

    webhook: WebhookId | None = None
    state: _State | None = None
    event: Annotated[str, Meta(description="a kind, in any spelling")] | None = None
    instance: str | None = None
    since: Moment | None = None
    until: Moment | None = None
    acknowledged: Annotated[bool, Meta(description="acknowledged ones too")] = False
    rate: Rate | None = None
    to: _Copy | None = None


class EventsReplayIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """Which events are to be added to a webhook that has not got them."""

    webhook: WebhookId
    event: Annotated[str, Meta(description="a kind, in any spelling")] | None = None
    instance: str | None = None
    since: Moment | None = None
    until: Moment | None = None
    rate: Rate | None = None


class ReplayReceipt(Struct):
    """The answer to a request: the replay's id, and how many deliveries matched at that moment, if that is known.

    A copy of one delivery has no id: `status` and `error` are what came of it.
    """

    id: str | None
    deliveries: int | None
    status: int | UnsetType | None = UNSET
    error: str | UnsetType | None = UNSET


class FilterOut(Struct):
    """What a replay is narrowed to; `delivery` where it is of one."""

    delivery: str | None
    webhook: str | None
    state: str | None
    event: str | None
    instance: str | None
    since: str | None
    until: str | None
    acknowledged: bool


class ReplayOut(Struct, kw_only=True):
    """A replay and how far it has come.

    `deliveries` matched when it was requested, if that is known; since then so many were `reopened`, or `added` (events
    for a webhook that had not got them), or `skipped`: they had become something else by then. A run of copies names
    whom it goes `to`, and has `copied` and `failed` instead, with what went wrong last.
    """

    id: str
    requested_at: str
    filter: FilterOut
    rate: float | None
    to: str | None = None
    state: str
    deliveries: int | None
    reopened: int = 0
    added: int = 0
    skipped: int = 0
    copied: int = 0
    failed: int = 0
    error: str | None = None
    finished_at: str | None


class ReplaysOut(Struct):
    """A page of replays, the newest first; `next` is the cursor of the page after it."""

    items: list[ReplayOut]
    next: str | None


def replay_id(number: int) -> str:
    """Return the public form of a replay's number."""
    return f"rpl_{number}"


def read_replay(body: ReplayIn) -> ReplayFilter:
    """Return the filter that a body stands for. Raises InvalidError."""
    wanted = _read(body)
    if wanted == ReplayFilter(acknowledged=body.acknowledged):
        msg = f"nothing says which deliveries: give one of {', '.join(NARROWING)}"
        raise InvalidError(msg)
    return wanted


def read_events_replay(body: EventsReplayIn) -> ReplayFilter:
    """Return the filter that a body stands for. Raises InvalidError."""
    return _read(body)


def _read(body: ReplayIn | EventsReplayIn) -> ReplayFilter:
    given = {name: getattr(body, name, None) for name in NARROWING}
    wanted = read_wanted({name: str(value) for name, value in given.items() if value is not None}, "$.")
    return ReplayFilter(
        webhook=wanted.webhook,
        state=wanted.state,
        kind=wanted.events.kind,
        instance=wanted.events.instance,
        since_ms=wanted.events.since_ms,
        until_ms=wanted.events.until_ms,
        acknowledged=isinstance(body, ReplayIn) and body.acknowledged,
        adds=isinstance(body, EventsReplayIn),
    )


def receipt_of(replay: Replay) -> ReplayReceipt:
    """Return the answer to a request that was recorded."""
    return ReplayReceipt(replay_id(replay.row.number), replay.request.matched)


def show_replays(page: ReplayPage) -> ReplaysOut:
    """Return a page of replays as we show it."""
    items = [show_replay(view) for view in page.items]
    return ReplaysOut(items, None if page.next is None else replay_id(page.next))


def show_replay(view: ReplayView) -> ReplayOut:
    """Return a replay as we show it."""
    request, row = view.replay.request, view.replay.row
    return ReplayOut(
        id=replay_id(row.number),
        requested_at=rfc3339(request.at_ms),
        filter=show_filter(request.wanted, view.event_id),
        rate=request.rate,
        state="finished" if row.finished else "running",
        deliveries=request.matched,
        reopened=0 if request.wanted.adds else row.replayed,
        added=row.replayed if request.wanted.adds else 0,
        skipped=row.skipped,
        finished_at=rfc3339(row.updated_ms) if row.finished else None,
    )


def show_filter(wanted: ReplayFilter, event_id: bytes = b"") -> FilterOut:
    """Return a filter as we show it; `event_id` is that of the event, where it is of one."""
    one = event_id and wanted.webhook
    return FilterOut(
        delivery=delivery_text(event_id, one) if one else None,
        webhook=None if wanted.webhook is None else webhook_id(wanted.webhook),
        state=wanted.state,
        event=wanted.kind,
        instance=wanted.instance,
        since=_moment(wanted.since_ms),
        until=_moment(wanted.until_ms),
        acknowledged=wanted.acknowledged,
    )


def _moment(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)
