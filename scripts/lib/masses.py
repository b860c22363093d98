"""How long the others wait while a webhook with a large backlog is disabled, replayed, reordered, or deleted.

A webhook that is down has a backlog; another one gets an event every few milliseconds. The figure of a deed is the most
that an acceptance, or an acknowledgement after it, took from the deed until its chores are done.
"""

import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
from msgspec import Struct, structs

from outbox.config import EngineConfig
from outbox.domain.addresses import AddressPolicy, parse_networks
from outbox.domain.replays import ReplayFilter
from outbox.domain.webhooks import Address, Settings
from outbox.engine import Engine, open_engine
from scripts.lib.isolation import acknowledged_after_ms, event_for, set_webhook

EVERY_S = 0.02
QUIET_S = 3.0
BATCH = 1000
BIG, WELL = Address("instance", "big-0"), Address("instance", "well-0")


class Figure(Struct, frozen=True):
    """What a deed cost the others at most, in milliseconds, and how long its chores took, in seconds."""

    deed: str
    accept_ms: float
    acknowledge_ms: float
    took_s: float


async def measure_masses(
    folder: Path, backlog: int, receiver: AbstractAsyncContextManager[int], *, ordered: bool
) -> list[Figure]:
    """Return the figures of all deeds, the first being none at all; `ordered` changes the order before the end."""
    path = folder / "masses.db"
    seen: list[tuple[str, int, int, float, float]] = []
    async with receiver as port, _engine(path, port) as engine:
        await _fill(engine, backlog)
        down = Settings(url=f"http://127.0.0.1:{port}/hangs", timeout_ms=500)
        deeds: dict[str, Callable[[], Coroutine[object, object, object]]] = {
            "nothing": anyio.lowlevel.checkpoint,
            "disable": lambda: set_webhook(engine, BIG, structs.replace(down, enabled=False)),
            "enable": lambda: set_webhook(engine, BIG, down),
            "replay": lambda: _replay(engine),
            "order": lambda: set_webhook(engine, BIG, structs.replace(down, order="chat")),
            "delete": lambda: engine.delete_webhook(BIG),
        }
        if not ordered:
            del deeds["order"]
        for name, deed in deeds.items():
            first = (await engine.inspector.stats()).seq
            slowest, took_s = await _during(engine, deed)
            seen.append((name, first, (await engine.inspector.stats()).seq, slowest, took_s))
    times = await acknowledged_after_ms(path)
    return [
        Figure(name, accept_ms, max(ms for seq, ms in times.items() if first < seq <= last), took_s)
        for name, first, last, accept_ms, took_s in seen
    ]


@asynccontextmanager
async def _engine(path: Path, port: int) -> AsyncIterator[Engine]:
    config = EngineConfig(database=path, addresses=AddressPolicy(parse_networks("127.0.0.0/8")))
    async with open_engine(config) as engine:
        await set_webhook(engine, WELL, Settings(url=f"http://127.0.0.1:{port}/well"))
        await set_webhook(engine, BIG, Settings(url=f"http://127.0.0.1:{port}/hangs", timeout_ms=500))
        yield engine


async def _replay(engine: Engine) -> None:
    """Let every pending delivery of the webhook begin anew, and return once that is done."""
    number = next(webhook.number for webhook in engine.webhooks if webhook.address == BIG)
    replay = await engine.replay(ReplayFilter(webhook=number, state="pending"))
    while not (await engine.inspector.replay(replay.row.number)).replay.row.finished:  # noqa: ASYNC110 - as a user would
        await anyio.sleep(0.1)


async def _fill(engine: Engine, backlog: int) -> None:
    for _ in range(0, backlog, BATCH):
        await engine.accept_batch([event_for(BIG.instance) for _ in range(BATCH)], b"")


async def _during(engine: Engine, deed: Callable[[], Coroutine[object, object, object]]) -> tuple[float, float]:
    """Do the deed while events come; return the milliseconds of the slowest acceptance, and the chores' seconds."""
    started = time.perf_counter()
    slowest = 0.0
    done_s = 0.0

    async def accept() -> None:
        nonlocal slowest
        before = time.perf_counter()
        await engine.accept(event_for(WELL.instance))
        slowest = max(slowest, 1000 * (time.perf_counter() - before))

    ended = anyio.Event()

    async def do() -> None:
        await deed()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(do)
        while not done_s or time.perf_counter() - started < QUIET_S:
            tasks.start_soon(accept)
            await anyio.sleep(EVERY_S)
            busy = engine.sweeping or not ended.is_set()
            done_s = 0.0 if busy else done_s or time.perf_counter() - started
    await anyio.sleep(0.5)
    return slowest, done_s
