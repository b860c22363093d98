import asyncio
import json
import threading
from collections.abc import Awaitable
from pathlib import Path

import anyio

from outbox.config import EngineConfig, GlobalWebhook
from outbox.domain.events import Event, read_event
from outbox.engine import Engine, open_engine
from outbox.inspecting import open_inspector
from tests.harness import Receiver


def event(name: str) -> Event:
    """Return an event by that name."""
    return read_event(json.dumps({"event": "messages.upsert", "instance": "loja01", "data": name}).encode(), 0)


def config_for(receiver: Receiver, folder: Path) -> EngineConfig:
    """Return a configuration with the receiver as its global webhook."""
    webhook = GlobalWebhook(url=receiver.url, enabled=True, by_events=False)
    return EngineConfig(database=folder / "outbox.db", global_webhook=webhook)


async def verified(config: EngineConfig) -> int:
    """Check all that is stored, and return the number of events."""
    async with open_inspector(config.database) as inspector:
        report = await inspector.verify(lambda _done, _all: None)
    assert not report.problems
    return report.events


async def turns(count: int) -> None:
    """Return after so many turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_whoever_gives_up_waiting_disturbs_nobody(tmp_path: Path) -> None:
    """A request that is cancelled after any number of turns is stored or not; its neighbour is, and a repeat is one."""
    async with Receiver() as receiver:
        config = config_for(receiver, tmp_path)
        ids = set()
        async with open_engine(config) as engine:
            number, cancelled = 0, True
            while cancelled:
                mine = asyncio.create_task(engine.accept(event(f"mine {number}"), b"%d" % number))
                neighbour = asyncio.create_task(engine.accept(event(f"neighbour {number}")))
                await turns(number)
                mine.cancel()
                found, beside = await asyncio.gather(mine, neighbour, return_exceptions=True)
                cancelled = isinstance(found, asyncio.CancelledError)
                assert not isinstance(beside, BaseException)
                ids |= {beside.id, (await engine.accept(event(f"mine {number}"), b"%d" % number)).id}
                number += 1
            await receiver.wait_for_count(len(ids))
        assert number > 3
        assert await verified(config) == len(ids) == 2 * number


async def live(config: EngineConfig, accepted: list[bytes], receiver: Receiver) -> None:
    """Open the engine, take three events in one after the other, deliver them, and close it."""

    async def take(engine: Engine, name: str) -> None:
        accepted.append((await engine.accept(event(name))).id)

    async with open_engine(config) as engine:
        for number in range(3):
            await take(engine, f"{len(accepted)} {number}")
        await receiver.wait_for(lambda arrivals: {a.webhook_id for a in arrivals} >= {_text(one) for one in accepted})


async def within(scope: anyio.CancelScope, work: Awaitable[None]) -> None:
    """Await something in a scope that can be cancelled."""
    with scope:
        await work


def outliving(known: set[threading.Thread]) -> list[str]:
    """Return the names of threads that are new and do not end; anyio keeps its own for later use."""
    new = [thread for thread in threading.enumerate() if thread not in known and "AnyIO" not in thread.name]
    for thread in new:
        thread.join(5)  # a connection's thread ends a little after it has said that it is closed
    return [thread.name for thread in new if thread.is_alive()]


def _text(event_id: bytes) -> str:
    return f"evt_{event_id.hex()}"


async def test_an_engine_that_is_cancelled_at_any_moment_leaves_all_in_order(tmp_path: Path) -> None:
    """Cancelled while it opens, works or closes, it keeps what it has taken and lets go of its file and threads."""
    async with Receiver() as receiver:
        config = config_for(receiver, tmp_path)
        accepted: list[bytes] = []
        await live(config, accepted, receiver)
        count, before = 0, set(threading.enumerate())
        ended, rounds = False, 0
        while not ended:
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                tasks.start_soon(within, scope, live(config, accepted, receiver))
                await turns(count)
                scope.cancel()
            ended = not scope.cancelled_caught
            assert not outliving(before)
            assert await verified(config) >= len(accepted)
            rounds += 1
            count += 1 + count // 10
        await live(config, accepted, receiver)
        async with open_inspector(config.database) as inspector:
            for event_id in accepted:
                assert (await inspector.event(_text(event_id))).deliveries[0].attempts
    assert rounds > 20
