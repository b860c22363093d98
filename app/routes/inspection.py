"""Looking in: one event with all that happened to it, and the numbers."""

from typing import Annotated

from litestar import get
from litestar.params import Parameter

from app.describing import describe
from app.schemas import EventOut, StatsOut, show_event, show_stats
from outbox.engine import Engine


@get("/events/{event_id:str}", opt=describe(problems=(404,)))
async def get_event(
    engine: Engine, event_id: Annotated[str, Parameter(description="evt_ and 32 hex digits")]
) -> EventOut:
    """Show an event: its payload, its deliveries, its attempts."""
    return show_event(await engine.inspector.event(event_id))


@get("/stats")
async def get_stats(engine: Engine) -> StatsOut:
    """Show the numbers: events, deliveries by state, every webhook's share, the age of the oldest pending one."""
    return show_stats(await engine.inspector.stats(), engine.now_ms())
