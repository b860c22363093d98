"""Playing a story: in a world of its own, which is then brought to rest and checked for everything that must hold."""

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog

from tests.world.checking import check_rest
from tests.world.life import root_of
from tests.world.loop import run, virtual_loop
from tests.world.world import World

SHOWN = 150
"""The lines of a history that a failure shows."""

Story = Callable[[World], Awaitable[None]]


class BrokenWorldError(AssertionError):
    """Something happened that must not happen: what, and the end of the history that led to it."""

    def __init__(self, world: World) -> None:
        super().__init__(report(world, SHOWN))
        self.world = world


def play(story: Story, *, seed: int = 0, **config: Any) -> World:
    """Play a story in a world of its own, and return that; `config` are settings of the engine.

    Raises BrokenWorldError.
    """
    logging = structlog.get_config()
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        world = World(Path(folder), seed, config)
        structlog.configure(processors=[_Log(world)], wrapper_class=structlog.make_filtering_bound_logger(30))
        try:
            run(_play, world, story)
        except Exception as error:
            world.violations.append(f"{type(root_of(error)).__name__}: {root_of(error)}")
            raise BrokenWorldError(world) from error
        finally:
            structlog.configure(**logging)
    if world.violations:
        raise BrokenWorldError(world)
    return world


def report(world: World, shown: int | None = None) -> str:
    """Return what is wrong with a world, and its history, or so many lines of the end of it."""
    lines = world.history.lines(shown)
    left_out = len(world.history) - len(lines)
    head = f"its history, {left_out} lines left out:" if left_out else "its history:"
    return "\n".join([f"seed {world.seed}:", *world.violations, head, *lines])


async def _play(world: World, story: Story) -> None:
    virtual_loop().set_exception_handler(partial(_judge, world))
    world.story = anyio.CancelScope()
    async with anyio.create_task_group() as world.tasks:
        with world.story:
            await world.start()
            await story(world)
            await world.heal()
            await world.settle()
            await check_rest(world)
        if world.life.up:
            await world.stop()
        world.judge_failure()
    world.lasted_s = world.now_s


def _judge(world: World, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Take note of an exception that the loop had to catch; others, told when garbage is collected, were known."""
    if "handle" in context and not world.life.mortality.dead:
        world.violate(f"{context['message']}: {context.get('exception')!r}")


class _Log:
    """A processor for structlog: takes the engine's warnings into the history of a world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, _logger: Any, _method: str, line: MutableMapping[str, Any]) -> str:
        world = self._world
        if not world.life.mortality.dead:  # else it happened to nobody
            if line["event"] == "lane.broken":
                world.violate(f"a lane broke: {line}")
            if line["event"] not in {"attempt.failed", "delivery.dead"}:  # the receiver's line says as much
                world.note("the log: %s", line)
        raise structlog.DropEvent


def _memory() -> Path | None:
    """Return a folder in memory, if there is one: syncs cost nothing there."""
    return next((path for path in [Path("/dev/shm")] if path.is_dir()), None)  # noqa: S108 - a folder of ours in it
