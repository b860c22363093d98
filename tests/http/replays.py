"""Asking a service for replays, and waiting for them."""

import asyncio
import json
from typing import Any

from tests.harness import Service
from tests.http.support import SETTLED, Shown, event_when


async def asked(service: Service, path: str, body: Any = None) -> Shown:
    """Ask for a replay, and return the answer."""
    reply = await service.request("POST", path, json.dumps(body) if body is not None else None)
    assert reply.status == 202, reply
    shown: Shown = reply.json()
    return shown


async def finished(service: Service, replay_id: str) -> Shown:
    """Return what is shown of a replay once it has come to its end."""
    async with asyncio.timeout(30):
        while True:
            shown: Shown = (await service.request("GET", f"/replays/{replay_id}")).json()
            if shown["state"] == "finished":
                return shown
            await asyncio.sleep(0.02)


async def delivered(service: Service, instance: str, count: int, **members: Any) -> list[str]:
    """Accept so many events of an instance, wait until they are settled, and return the ids of their deliveries."""
    events = [await service.accept(instance=instance, **members) for _ in range(count)]
    found = []
    for event_id in events:
        shown = await event_when(service, event_id, all_settled)
        found += [delivery["id"] for delivery in shown["deliveries"]]
    return found


def all_settled(shown: Shown) -> bool:
    """Say whether every delivery of an event has come to its end."""
    return all(delivery["state"] in SETTLED for delivery in shown["deliveries"])


async def webhook_of(service: Service, instance: str) -> str:
    """Return the id of the webhook of an instance."""
    shown = (await service.request("GET", f"/webhooks/instances/{instance}")).json()
    return str(shown["id"])
