"""The relay: starts a lane for every webhook with work, ends idle ones, supervises them, stops them in order."""

from collections.abc import Awaitable, Callable, Mapping

import anyio
import structlog
from anyio.abc import TaskGroup

from outbox.domain.deliveries import Effect
from outbox.domain.errors import DamagedFileError, OutcomeUnknownError
from outbox.journal.writer import Journal
from outbox.relay.clock import Clock
from outbox.relay.lane import Lane, Surroundings
from outbox.relay.sweeping import bury, convert

Chore = Callable[[Journal, Clock, int], Awaitable[None]]

NOBODY: frozenset[int] = frozenset()
RESTART_S = 5.0
GRACE_S = 8.0

_log = structlog.get_logger("relay")


class Relay:
    """Runs the lanes. Lanes share nothing but what `Surroundings` holds, so one's trouble stays its own."""

    def __init__(self, around: Surroundings) -> None:
        """Prepare a relay; it does nothing until `run`."""
        self._around = around
        self._lanes: dict[int, Lane] = {}
        self._sweeping: set[int] = set()
        self._tasks: TaskGroup | None = None
        self._stopping = anyio.Event()

    @property
    def effects(self) -> Mapping[tuple[int, Effect], int]:
        """The attempts recorded since the start, by webhook's number and effect."""
        return self._around.recorder.effects

    @property
    def sweeping(self) -> bool:
        """Whether a chore goes through the deliveries of some webhook."""
        return bool(self._sweeping)

    @property
    def expired(self) -> Mapping[int, int]:
        """The deliveries that became too old since the start, by webhook's number."""
        return self._around.expired

    async def run(self) -> None:
        """Deliver until `stop`; what is in flight then has eight seconds to land."""
        async with anyio.create_task_group() as recording:
            recording.start_soon(self._around.recorder.run)
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                try:
                    self._around.journal.listen(self._noticed)
                    self._noticed(await self._around.claims.unsettled_webhooks())
                    await self._stopping.wait()
                finally:
                    self._tasks = None  # the journal may commit once more, even if a lane has ended everything
                for lane in self._lanes.values():
                    lane.stop()
                tasks.cancel_scope.deadline = anyio.current_time() + GRACE_S
            self._around.recorder.flush()
            recording.cancel_scope.cancel()

    def stop(self) -> None:
        """Make no new attempt from here on."""
        self._stopping.set()

    def nudge(self, webhook: int) -> None:
        """Try a webhook at once, whatever its receiver asked for or its breaker says."""
        self._noticed(set(), {webhook})

    def _noticed(self, touched: set[int], nudged: "set[int] | frozenset[int]" = NOBODY) -> None:
        """Wake or start the lanes of webhooks with new work or settings; sweep where many deliveries must change."""
        if self._tasks is None:
            return
        for number in touched | nudged:
            lane = self._lanes.get(number)
            webhook = self._around.journal.webhooks.get(number)
            if lane is None and webhook is not None and not webhook.holds and not webhook.conversion.phase:
                self._lanes[number] = lane = Lane(webhook, self._around)
                self._tasks.start_soon(self._supervise, lane)
            if lane is not None:
                lane.wake(nudged=number in nudged)
            if number not in self._sweeping and (webhook is None or webhook.conversion.phase):
                self._sweeping.add(number)
                self._tasks.start_soon(self._sweep, number, bury if webhook is None else convert)

    async def _supervise(self, lane: Lane) -> None:
        """Run one lane; if it breaks, say so and start it again, since its deliveries are still due."""
        try:
            await lane.run()
        except (Exception, ExceptionGroup) as error:
            if _holds(error, OutcomeUnknownError):
                raise  # the journal has ended with it too
            _log.exception("lane.broken", webhook=lane.number)
            if _holds(error, DamagedFileError):
                raise
            await anyio.sleep(RESTART_S)
            lane.wake()
        finally:
            del self._lanes[lane.number]
        # Between the lane's last look and this line nothing else ran, unless it broke or was woken as it ended.
        if lane.woken:
            self._noticed({lane.number}, {lane.number} if lane.is_nudged else NOBODY)

    async def _sweep(self, webhook: int, chore: Chore) -> None:
        """Do a chore, and look again afterwards: the webhook may have been changed or deleted meanwhile."""
        try:
            await chore(self._around.journal, self._around.tower.clock, webhook)
        finally:
            self._sweeping.discard(webhook)
        if chore is not bury:
            self._noticed({webhook})


def _holds(error: BaseException, kind: type[BaseException]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_holds(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)
