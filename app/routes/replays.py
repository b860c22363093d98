"""Replays: asking for them, and seeing how far they have come."""

import re
from typing import Annotated, Any

from litestar import Request, delete, get, post
from litestar.params import Parameter as PathParameter

from app.copy_schemas import receipt_of_copy, show_copies
from app.describing import JSON, Answer, Parameter, describe
from app.paging import read_limit
from app.replay_schemas import (
    DeliveryReplayIn,
    EventsReplayIn,
    ReplayIn,
    ReplayOut,
    ReplayReceipt,
    ReplaysOut,
    read_events_replay,
    read_replay,
    receipt_of,
    show_replay,
    show_replays,
)
from app.routes.bodies import read_struct
from app.routes.parameters import LIMIT_PARAMETER, read_query
from outbox.domain.errors import InvalidError, NotFoundError
from outbox.domain.replays import END_OF_EVENTS
from outbox.engine import Engine

_REPLAY = re.compile(r"rpl_([0-9]{1,18})", re.ASCII)
_COPIES = "cpy_"
_CURSOR = Parameter(
    "cursor", {"type": "string", "pattern": "^rpl_[0-9]{1,18}$"}, "where to go on: `next` of the page before"
)
_DeliveryId = Annotated[str, PathParameter(description="dlv_, 32 hex digits, _ and a webhook's number")]
_ReplayId = Annotated[str, PathParameter(description="rpl_ and a number, or cpy_ and 16 hex digits")]
_RECORDED = {202: Answer(ReplayReceipt, description="recorded: it goes on by itself")}


@post(
    "/deliveries/{delivery_id:str}/replay",
    status_code=202,
    opt=describe(bodies={JSON: (DeliveryReplayIn,)}, body_optional=True, answers=_RECORDED, problems=(404, 409)),
)
async def replay_delivery(request: Request[Any, Any, Any], engine: Engine, delivery_id: _DeliveryId) -> ReplayReceipt:
    """Replay one delivery: it is due now, and its age and attempts are counted anew.

    One that was acknowledged is refused unless told otherwise. With `to` a copy goes to that URL instead, without our
    own headers, and nothing changes; the answer says what came of it.
    """
    asked = await read_struct(request, DeliveryReplayIn, optional=True)
    if asked.to is not None:
        return receipt_of_copy(await engine.copy_delivery(delivery_id, asked.to))
    return receipt_of(await engine.replay_delivery(delivery_id, acknowledged=asked.acknowledged))


@post(
    "/deliveries/replay",
    status_code=202,
    opt=describe(bodies={JSON: (ReplayIn,)}, answers=_RECORDED, problems=(409,)),
)
async def replay_deliveries(request: Request[Any, Any, Any], engine: Engine) -> ReplayReceipt:
    """Replay all deliveries that match, but for acknowledged ones if these are not asked for.

    They become due in chunks, at a rate if one is given. With `to`, copies of them go to that URL instead, without our
    own headers, and nothing changes.
    """
    asked = await read_struct(request, ReplayIn)
    wanted = read_replay(asked)
    if asked.to is not None:
        copies = await engine.copy(wanted, asked.to, asked.rate)
        return ReplayReceipt(copies.id, copies.matched)
    return receipt_of(await engine.replay(wanted, asked.rate))


@post(
    "/events/replay",
    status_code=202,
    opt=describe(bodies={JSON: (EventsReplayIn,)}, answers=_RECORDED, problems=(409,)),
)
async def replay_events(request: Request[Any, Any, Any], engine: Engine) -> ReplayReceipt:
    """Add deliveries to a webhook that was set too late: of the events that it takes, those it has not got."""
    asked = await read_struct(request, EventsReplayIn)
    return receipt_of(await engine.replay(read_events_replay(asked), asked.rate))


@get("/replays", opt=describe(parameters=(LIMIT_PARAMETER, _CURSOR)))
async def list_replays(request: Request[Any, Any, Any], engine: Engine) -> ReplaysOut:
    """Show all replays, the newest first, and how far each has come; runs of copies are not among them."""
    given = read_query(request, LIMIT_PARAMETER, _CURSOR)
    return show_replays(await engine.inspector.replays(read_limit(given.get("limit")), _before(given.get("cursor"))))


@get("/replays/{replay_id:str}", opt=describe(problems=(404,)))
async def get_replay(engine: Engine, replay_id: _ReplayId) -> ReplayOut:
    """Show how far a replay, or a run of copies, has come."""
    if replay_id.startswith(_COPIES):
        return show_copies(engine.copies(replay_id))
    return show_replay(await engine.inspector.replay(_number(replay_id)))


@delete("/replays/{replay_id:str}", status_code=204, opt=describe(problems=(404,)))
async def cancel_replay(engine: Engine, replay_id: _ReplayId) -> None:
    """End a replay, or a run of copies, where it is; what it has done stays done."""
    if replay_id.startswith(_COPIES):
        engine.cancel_copies(replay_id)
    else:
        await engine.cancel_replay(_number(replay_id))


def _number(replay_id: str) -> int:
    """Return the number of a replay. Raises NotFoundError."""
    found = _REPLAY.fullmatch(replay_id)
    if found is None:
        msg = f"there is no replay {replay_id!r}: a replay's id is rpl_ and a number"
        raise NotFoundError(msg)
    return int(found[1])


def _before(cursor: str | None) -> int:
    """Return the number before which a page begins. Raises InvalidError."""
    if cursor is None:
        return END_OF_EVENTS
    found = _REPLAY.fullmatch(cursor)
    if found is None:
        msg = "a cursor is what `next` of the page before said"
        raise InvalidError(msg, "cursor")
    return int(found[1])
