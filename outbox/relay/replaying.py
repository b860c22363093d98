"""Replays at work: a chunk at a time, in turn, while everybody else is served in between."""

from math import inf

import anyio
import structlog
from anyio import CancelScope

from outbox.domain.errors import DamagedFileError
from outbox.domain.replays import SPAN_S, chunk_size
from outbox.journal.damage import Damage
from outbox.journal.reaching import Step, Ways
from outbox.journal.replaying import AdvanceReplay, Replay
from outbox.journal.writer import Journal
from outbox.relay.clock import Clock
from outbox.relay.sweeping import by_turns

CONVERTING_S = 0.5
AGAIN_S = 5.0

_log = structlog.get_logger("replay")


class _Work:
    """A replay under way: as the log has it, how far it has looked, and when it goes on (on the loop's clock)."""

    def __init__(self, replay: Replay, at: float) -> None:
        self.replay = replay
        self.place = replay.place
        self.at = at
        self.cancelled = False
        self.ended = anyio.Event()


class Replayer:
    """Carries out replays until each is at its end; those that a stop interrupts are taken up at the next start."""

    def __init__(self, journal: Journal, ways: Ways, clock: Clock, damage: Damage) -> None:
        """Record into `journal` what is found on the `ways`."""
        self._damage = damage
        self._journal = journal
        self._ways = ways
        self._clock = clock
        self._works: dict[int, _Work] = {}
        self._begun = anyio.Event()
        self._scope = CancelScope()

    def begin(self, replay: Replay) -> None:
        """Carry out a replay that was recorded."""
        at = anyio.current_time() + self._wait_s(replay)
        self._works.setdefault(replay.row.number, _Work(replay, at))
        self._begun.set()

    async def cancel(self, number: int) -> None:
        """End a replay where it is, and return once that is recorded; one that is not under way is left alone."""
        work = self._works.get(number)
        if work is not None:
            work.cancelled = True
            work.at = -inf
            self._begun.set()
            await work.ended.wait()

    def stop(self) -> None:
        """Begin no further chunk."""
        self._scope.cancel()

    async def run(self) -> None:
        """Take up what is not finished, then carry out what comes, until `stop`."""
        with self._scope:
            replays, damaged = await self._ways.running()
            for number in damaged:
                detail = f"the record of the replay rpl_{number} is damaged: it does not go on; ask for it again"
                self._damage.met("record", detail, replay=number)
            for replay in replays:
                self.begin(replay)
            while True:
                await self._go_on(await self._next())

    async def _next(self) -> _Work:
        """Return the work whose turn it is, once it is time."""
        while True:
            self._begun = anyio.Event()
            work = min(self._works.values(), key=lambda work: work.at, default=None)
            wait_s = inf if work is None else work.at - anyio.current_time()
            if work is not None and wait_s <= 0:
                return work
            with anyio.move_on_after(wait_s):
                await self._begun.wait()

    async def _go_on(self, work: _Work) -> None:
        """Take the next step of a replay; if that breaks, say so and take it again later."""
        number = work.replay.row.number
        try:
            await self._step(work)
        except Exception as error:
            _log.exception("replay.broken", replay=number)
            if isinstance(error, DamagedFileError):
                raise
            work.at = anyio.current_time() + AGAIN_S
        row = work.replay.row
        if row.finished:
            del self._works[number]
            work.ended.set()
            _log.info("replay.finished", replay=number, replayed=row.replayed, skipped=row.skipped)

    async def _step(self, work: _Work) -> None:
        request, row = work.replay.request, work.replay.row
        if work.cancelled:
            step = Step([], work.replay.place, finished=True)
        else:
            step = await self._ways.step(
                request.wanted, work.place, self._journal.webhooks, before=row.number, limit=chunk_size(request.rate)
            )
        if step.found or step.finished:
            advance = AdvanceReplay(work.replay, step.candidates, step.place, step.finished, self._clock.now_ms())
            advanced = await by_turns(self._journal, advance)  # one of them at a time, however many replays there are
            if advanced is None:
                work.at = anyio.current_time() + CONVERTING_S
                return
            work.replay = advanced
        work.place = step.place
        work.at = anyio.current_time() + self._wait_s(work.replay)

    def _wait_s(self, replay: Replay) -> float:
        """Return the seconds until the next chunk; no more than a chunk's own time, should the clock be set back."""
        rate = replay.request.rate
        if rate is None:
            return 0.0
        return min(max(replay.row.next_ms - self._clock.now_ms(), 0) / 1000, SPAN_S + 1 / rate)
