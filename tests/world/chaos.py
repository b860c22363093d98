"""Random stories: the steps that a seed stands for, done one after another while the service is kept running."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from outbox.domain.errors import BusyError, ConflictError, InvalidError, NotFoundError, OutcomeUnknownError
from tests.world.life import DownError
from tests.world.plans import Plan, draw
from tests.world.playing import play
from tests.world.receivers import Behaviour
from tests.world.world import Posted, World

TRIES = 60


class Chaos:
    """Plays a plan in a world."""

    def __init__(self, world: World, plan: Plan) -> None:
        self._world = world
        self._plan = plan
        self._rng = world.chance("chaos")

    async def play(self) -> None:
        """Do every step at its moment, and keep the service running meanwhile; return when all steps are done."""
        world, plan = self._world, self._plan
        world.note("the settings: %s", plan.config)
        for name, behaviour in plan.receivers.items():
            world.turn(world.receiver(name), behaviour)
        async with anyio.create_task_group() as supervising:
            supervising.start_soon(self._supervise)
            async with anyio.create_task_group() as steps:
                for step in plan.steps:
                    await world.until(step.at_s)
                    steps.start_soon(getattr(self, step.what), *step.values)
            supervising.cancel_scope.cancel()

    async def _supervise(self) -> None:
        """Start the service again some time after it has ended."""
        while True:
            await self._world.life.ended.wait()
            await self._world.sleep(self._rng.choice((0.1, 5.0, 600.0)) * self._rng.random())
            await self._world.ensure_up()

    async def webhook(self, instance: str, name: str, receiver: str, settings: dict[str, Any]) -> None:
        """Set a webhook, again and again while the service cannot."""
        world = self._world
        await self._insist(lambda: world.set_webhook(world.receivers[receiver], instance, name, **settings))

    async def delete(self, instance: str, name: str) -> None:
        """Delete a webhook if it is there."""
        try:
            await self._insist(lambda: self._world.delete_webhook(instance, name))
        except NotFoundError:
            self._world.note("there is no such webhook")

    async def post(self, count: int, event: tuple[Any, ...], batch: bool, keyed: bool) -> None:  # noqa: FBT001
        """Post events as a producer does: those with a key until they are taken, others only while that is safe."""
        world = self._world
        events = [world.event(*event) for _ in range(count)]
        key = f"key {events[0].marker}" if keyed else ""
        if batch:
            await self._insist(lambda: world.accept_batch(events, key), repeatable=keyed)
            return
        async with anyio.create_task_group() as tasks:
            for number, one in enumerate(events):
                tasks.start_soon(self._post_one, one, f"{key} {number}" if keyed else "")

    async def _post_one(self, event: Posted, key: str) -> None:
        await self._insist(lambda: self._world.accept(event, key), repeatable=bool(key))
        if key and self._rng.random() < 0.2:
            await self._insist(lambda: self._world.accept(event, key))

    async def _insist(self, request: Callable[[], Awaitable[object]], *, repeatable: bool = True) -> None:
        """Make a request until it is answered."""
        for waited_s in range(1, TRIES):
            try:
                await request()
            except BusyError:
                pass
            except (DownError, OutcomeUnknownError) as error:
                if not repeatable and not (isinstance(error, DownError) and error.unasked):
                    self._world.note("a producer is in doubt: %s", error)
                    return
            else:
                return
            await self._world.sleep(waited_s * self._rng.random())
        self._world.note("a producer gives up")

    async def replay(self, instance: str, rate: float | None, wanted: dict[str, Any]) -> None:
        """Replay what matches, of one webhook or of all ("-")."""
        world = self._world
        numbers = world.fetch("SELECT number FROM webhook WHERE instance = ? AND deleted_ms IS NULL", instance)
        if numbers:
            wanted = {**wanted, "webhook": numbers[0][0]}
        await self._try_replay(lambda: world.replay(rate, **wanted))

    async def replay_one(self, which: float, acknowledged: bool) -> None:  # noqa: FBT001
        """Replay one delivery, whatever has become of it."""
        world = self._world
        found = world.fetch("SELECT event, webhook FROM delivery ORDER BY event, webhook")
        if found:
            event, webhook = found[int(which * len(found))]
            await self._try_replay(lambda: world.replay_one(event, webhook, acknowledged=acknowledged))

    async def cancel_replay(self, which: float) -> None:
        """End one of the replays that were ever asked for."""
        world = self._world
        found = world.fetch("SELECT number FROM replay ORDER BY number")
        if found:
            await self._try_replay(lambda: world.cancel_replay(found[int(which * len(found))][0]))

    async def _try_replay(self, request: Callable[[], Awaitable[object]]) -> None:
        try:
            await self._insist(request, repeatable=False)
        except (ConflictError, InvalidError, NotFoundError) as error:
            self._world.note("the replay is refused: %s", error)

    async def turn(self, receiver: str, behaviour: Behaviour) -> None:
        """Change what a receiver does."""
        self._world.turn(self._world.receivers[receiver], behaviour)

    async def kill(self) -> None:
        """Kill the service, whatever it is at."""
        self._world.life.kill("by SIGKILL")

    async def kill_after(self, hops: int) -> None:
        """Kill the service after so many functions on the writer's connection."""
        self._world.life.mortality.hops_left = hops

    async def stop(self) -> None:
        """Stop the service in order."""
        self._world.life.stop()

    async def jump(self, ahead_s: float) -> None:
        """Set the wall clock."""
        self._world.set_clock(ahead_s)

    async def full_disk(self, lasts_s: float) -> None:
        """Have the disk refuse writes for a while."""
        world = self._world
        world.note("the disk is full")
        world.disk.refuses = True
        await world.sleep(lasts_s)
        world.disk.refuses = False
        world.note("the disk has space")

    async def slow_disk(self, hop_s: float, lasts_s: float) -> None:
        """Have the disk be slow for a while."""
        world = self._world
        world.note("the disk takes %.3f s", hop_s)
        world.disk.hop_s = hop_s
        await world.sleep(lasts_s)
        world.disk.hop_s = 0.0002

    async def failing_sync(self) -> None:
        """Have the next commit's sync fail."""
        self._world.note("the next sync fails")
        self._world.disk.failing_syncs = 1


def simulate(seed: int) -> World:
    """Play the story of a seed. Raises BrokenWorldError."""
    plan = draw(seed)
    return play(lambda world: Chaos(world, plan).play(), seed=seed, **plan.config)
