"""Lists of events and deliveries."""

from typing import Any

from litestar import Request, get

from app.describing import describe
from app.filters import read_listing
from app.listing_schemas import DeliveriesOut, EventsOut, show_deliveries, show_events
from app.routes.parameters import LISTING, read_query
from outbox.engine import Engine


@get("/events", opt=describe(parameters=LISTING))
async def list_events(request: Request[Any, Any, Any], engine: Engine) -> EventsOut:
    """List events, newest first. With `webhook` or `state`: those that have such a delivery.

    A page looks at a bounded number of rows: it may be short, or empty, and still have a `next`.
    """
    asked = read_listing(read_query(request, *LISTING))
    return show_events(await engine.inspector.events(asked.wanted, asked.limit, asked.after))


@get("/deliveries", opt=describe(parameters=LISTING))
async def list_deliveries(request: Request[Any, Any, Any], engine: Engine) -> DeliveriesOut:
    """List deliveries, those of the newest events first.

    A page looks at a bounded number of rows: it may be short, or empty, and still have a `next`.
    """
    asked = read_listing(read_query(request, *LISTING))
    return show_deliveries(await engine.inspector.deliveries(asked.wanted, asked.limit, asked.after))
