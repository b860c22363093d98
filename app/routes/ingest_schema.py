"""What `/schema` says of the routes in front of the framework: those that take events in."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from app.describing import Answer, Operation, Parameter
from app.intake import JSON, NDJSON
from app.openapi import Route
from app.routes.ingest import BATCH_MAX_EVENTS, BatchReceipt, Receipt
from outbox.domain.events import INSTANCE_MAX_LENGTH, MAX_HOPS


class EventIn(Struct):
    """An event; whatever other members it has are kept and delivered as they are."""

    event: Annotated[str, Meta(description="the kind, in any spelling", examples=["messages.upsert"])]
    instance: Annotated[str, Meta(min_length=1, max_length=INSTANCE_MAX_LENGTH)]
    data: Any


class ServerEventIn(Struct):
    """An event as an Evolution API server sends it: the kind may be a newer server's, the instance may be missing."""

    event: Annotated[str, Meta(max_length=64)]
    instance: str | UnsetType | None = UNSET
    data: Any = None


_Batch = Annotated[list[EventIn], Meta(min_length=1, max_length=BATCH_MAX_EVENTS)]
_Lines = Annotated[str, Meta(description="one event per line")]

_KEY = Parameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": 255},
    "a repeat under the same key is answered as the first time and stored once; another body under it is refused",
    "header",
)
_HOPS = Parameter(
    "x-outbox-hops",
    {"type": "integer", "minimum": 0, "maximum": MAX_HOPS - 1},
    "how many relays the event has been through",
    "header",
)
_REPLAYED = {"idempotency-replayed": "`true`: this is a repeat, and nothing was stored"}
_SLOW_OR_CIRCLING = (408, 508)


def _ingest(path: str, name: str, *security: str) -> Route:
    return Route(
        "POST",
        path,
        name,
        "Accept an event from an Evolution API server: 202 once it and its deliveries are on disk.",
        Operation(
            bodies={JSON.decode(): (ServerEventIn,)},
            parameters=(_HOPS,),
            answers={202: Answer(Receipt, description="on disk", headers=_REPLAYED)},
            problems=(401, *_SLOW_OR_CIRCLING),
            security=security,
        ),
    )


ROUTES = [
    Route(
        "POST",
        "/events",
        "accept_event",
        "Accept an event: 202 once it and its deliveries are on disk.",
        Operation(
            bodies={JSON.decode(): (EventIn,)},
            parameters=(_KEY, _HOPS),
            answers={202: Answer(Receipt, description="on disk", headers=_REPLAYED)},
            problems=(409, *_SLOW_OR_CIRCLING),
        ),
    ),
    Route(
        "POST",
        "/events/batch",
        "accept_batch",
        "Accept many events at once: all of them are on disk, or none.",
        Operation(
            bodies={JSON.decode(): (_Batch,), NDJSON.decode(): (_Lines,)},
            parameters=(_KEY, _HOPS),
            answers={202: Answer(BatchReceipt, description="on disk", headers=_REPLAYED)},
            problems=(409, *_SLOW_OR_CIRCLING),
        ),
    ),
    # /ingest/{suffix}, the path of a local webhook, is /ingest/{token} to OpenAPI: a header tells them apart.
    _ingest("/ingest", "ingest", "apikey", "bearer"),
    _ingest("/ingest/{token}", "ingest_token", "", "apikey", "bearer"),
    _ingest("/ingest/{token}/{suffix}", "ingest_token_suffix", "", "apikey", "bearer"),
]
