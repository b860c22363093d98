"""Every event of the vectors, through every route, to global and local webhooks under both route styles."""

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.harness import INGEST_TOKEN, Arrival, Receiver, Service, running
from tests.http.support import CATALOGUE, VERSION, ingest_routes, lines

EVENTS = lines("events.jsonl")
BY_EVENT = {entry["evolution_event"]: entry for entry in CATALOGUE}
SENT_DESTINATION = b'"destination":"https://hooks.example.test/wa"'
HEADERS = {
    "accept",
    "accept-encoding",
    "host", "content-length", "content-type", "user-agent",
    "webhook-id", "webhook-timestamp", "x-outbox-attempt", "x-outbox-hops",
}  # fmt: skip
# One instance per route; between them they hold every setting that decides a path.
LOCALS: list[dict[str, Any]] = [
    {"by_events": True},
    {"by_events": False},
    {"by_events": True, "route_style": "documented"},
    {"by_events": True, "route_style": "evolution"},
    {"by_events": False, "route_style": "evolution"},
]


class Posted(NamedTuple):
    """One event as it was posted, and the id it got."""

    id: str
    entry: dict[str, Any]
    route: int
    body: bytes


def suffix_in(entry: dict[str, Any], style: str) -> str:
    """The route suffix that the catalogue has for a kind."""
    return str(entry["suffix" if style == "documented" else "evolution_suffix"])


async def post(service: Service, line: bytes, route: int) -> Posted:
    """Post a line of the vectors through one of the five routes, each with an instance of its own."""
    entry = BY_EVENT[json.loads(line)["event"]]
    path, headers = ingest_routes(suffix_in(entry, "evolution"))[route]
    body = line.replace(b'"instance":"loja01"', b'"instance":"loja%d"' % route, 1)
    reply = await service.request("POST", path, body, headers)
    assert reply.status == 202, (path, reply)
    assert reply.json()["deliveries"] == 2
    return Posted(reply.json()["id"], entry, route, body)


def expect(arrival: Arrival, posted: Posted, path: str, url: str) -> None:
    """Assert that a copy of an event is as it must be, at the right place."""
    assert arrival.path == path
    assert arrival.body == posted.body.replace(SENT_DESTINATION, b'"destination":"%s"' % url.encode())
    assert arrival.headers["content-type"] == "application/json"
    assert arrival.headers["user-agent"] == f"evolution-outbox/{VERSION}"
    assert arrival.webhook_id == posted.id
    assert abs(int(arrival.headers["webhook-timestamp"]) - time.time()) < 60
    assert arrival.headers["x-outbox-attempt"] == "1"
    assert arrival.headers["x-outbox-hops"] == "1"
    assert set(arrival.headers) == HEADERS


def test_vectors_hold_every_route_and_setting() -> None:
    """The vectors name kinds of the catalogue only, with the destination that is looked for."""
    assert len(EVENTS) == 33
    assert all(line.count(SENT_DESTINATION) == 1 for line in EVENTS)
    assert {json.loads(line)["event"] for line in EVENTS} <= set(BY_EVENT)


@pytest.mark.parametrize("by_events", [True, False], ids=["global-by-events", "global-plain"])
@pytest.mark.parametrize("style", ["documented", "evolution"])
async def test_every_event_arrives_through_every_route(tmp_path: Path, style: str, by_events: bool) -> None:  # noqa: FBT001
    """Every event, through every route, arrives once at the global and once at the local webhook, at its path."""
    async with Receiver() as receiver, running(
        tmp_path,
        OUTBOX_ROUTE_STYLE=style,
        WEBHOOK_GLOBAL_ENABLED="true",
        WEBHOOK_GLOBAL_URL=f"{receiver.url}/global?t=a%2Fb",
        WEBHOOK_GLOBAL_WEBHOOK_BY_EVENTS=str(by_events).lower(),
    ) as service:  # fmt: skip
        for route, settings in enumerate(LOCALS):
            await service.set_webhook(f"loja{route}", f"{receiver.url}/local{route}/", **settings)
        posting = [post(service, line, route) for line in EVENTS for route in range(len(LOCALS))]
        posted = {one.id: one for one in await asyncio.gather(*posting)}
        assert len(posted) == len(EVENTS) * len(LOCALS)
        arrivals = await receiver.wait_for_count(2 * len(posted))
        for arrival in arrivals:
            one = posted[arrival.webhook_id]
            if arrival.path.startswith("/global"):
                path = "/global" + suffix_in(one.entry, style) * by_events + "?t=a%2Fb"
            else:
                settings = LOCALS[one.route]
                suffix = suffix_in(one.entry, settings.get("route_style", style))
                path = f"/local{one.route}" + (suffix if settings["by_events"] else "/")
            expect(arrival, one, path, receiver.url + path)
        homes = Counter((arrival.webhook_id, arrival.path.startswith("/global")) for arrival in arrivals)
        assert homes == dict.fromkeys([(id_, is_global) for id_ in posted for is_global in (True, False)], 1)


@pytest.mark.parametrize("style", ["documented", "evolution"])
async def test_every_spelling_arrives_at_the_path_of_its_kind(tmp_path: Path, style: str) -> None:
    """Any spelling of a kind, in any case, is taken; the path is the kind's and the body's `event` is never rewritten.

    A kind that the catalogue has not yet is taken on the Evolution-compatible routes alone.
    """
    async with Receiver() as receiver, running(tmp_path, OUTBOX_ROUTE_STYLE=style) as service:
        await service.set_webhook("loja01", receiver.url, by_events=True)
        wanted = {}
        for entry in CATALOGUE:
            names = [entry[name] for name in ("name", "api_event", "suffix", "evolution_event", "evolution_suffix")]
            for spelling in {*names, *entry["aliases"], entry["name"].lower(), entry["api_event"].upper()}:
                event_id = await service.accept(spelling)
                wanted[event_id] = (suffix_in(entry, style), spelling)
                shown = (await service.request("GET", f"/events/{event_id}")).json()
                assert shown["event"] == entry["name"]
        for event in ("newer.server-event_x", "x9"):
            body = f'{{"event":"{event}","instance":"loja01","data":{{}}}}'
            reply = await service.request("POST", f"/ingest/{INGEST_TOKEN}", body)
            assert reply.status == 202
            wanted[reply.json()["id"]] = ("/" + re.sub("[._]", "-", event), event)
        arrivals = await receiver.wait_for_count(len(wanted))
        assert {arrival.webhook_id: (arrival.path, arrival.json()["event"]) for arrival in arrivals} == wanted
