"""The log over HTTP: page by page, and as a stream of server-sent events."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
from litestar import Request, get
from litestar.response import Stream

from app.describing import Answer, Parameter, describe
from app.filters import read_seq
from app.log_schemas import LogOut, show_entry, show_log
from app.paging import LIMIT_MAX, read_limit
from app.routes.parameters import AFTER, LIMIT_PARAMETER, read_query
from app.schemas import encode
from outbox.engine import Engine
from outbox.inspecting import Entry

KEEP_ALIVE_S = 15.0
GATHER_S = 0.05

_LAST_EVENT_ID = Parameter(
    "Last-Event-ID", AFTER.schema, "what a client sends that resumes: goes before `after`", "header"
)


@get("/log", opt=describe(parameters=(AFTER, LIMIT_PARAMETER)))
async def get_log(request: Request[Any, Any, Any], engine: Engine) -> LogOut:
    """Show the records of the log that follow the seq `after` (0: from the first), oldest first."""
    given = read_query(request, AFTER, LIMIT_PARAMETER)
    limit = read_limit(given.get("limit"))
    return show_log(await engine.inspector.log(read_seq(given.get("after", "0")), limit), limit)


@get(
    "/log/stream",
    opt=describe(
        parameters=(AFTER, _LAST_EVENT_ID),
        answers={200: Answer(str, "text/event-stream", "events whose data is a record as in `/log`")},
    ),
)
async def stream_log(request: Request[Any, Any, Any], engine: Engine) -> Stream:
    """Send the same as server-sent events, and go on as records are committed.

    The id of each is its seq; `Last-Event-ID` resumes after it. The stream ends when the service stops.
    """
    given = read_query(request, AFTER)
    resumed = request.headers.get("last-event-id")
    after = read_seq(given.get("after", "0")) if resumed is None else read_seq(resumed, "Last-Event-ID")
    return Stream(stream_of(engine, after), media_type="text/event-stream", headers={"cache-control": "no-store"})


async def stream_of(engine: Engine, after: int) -> AsyncIterator[bytes]:
    """Yield server-sent events of the records that follow `after`, those of one look together, until the stop."""
    yield b": the log\n\n"  # so that the client knows at once that it is connected
    while not engine.followers.stopping:
        committed = engine.followers.next_commit()
        entries = await engine.inspector.log(after, LIMIT_MAX)
        if entries:
            after = entries[-1].seq
            yield b"".join(map(_event, entries))
        if len(entries) < LIMIT_MAX:
            with anyio.move_on_after(KEEP_ALIVE_S) as waiting:
                await committed.wait()
            if waiting.cancelled_caught:
                yield b": still here\n\n"
            # Where there are many commits, read a few of them together.
            await anyio.sleep(GATHER_S)


def _event(entry: Entry) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (entry.seq, encode(show_entry(entry)))
