"""Records the outcomes of attempts: a few together, and again and again while the store refuses them."""

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial

import anyio
import structlog

from outbox.domain.deliveries import Effect
from outbox.domain.errors import BusyError
from outbox.journal.recording import Outcome, RecordAttempts
from outbox.journal.writer import Journal

GATHER_S = 0.03
GATHER_COUNT = 512
SOON_S = 0.002
"""So long waits an outcome that is the first for a while: one that comes alone need not wait for company."""
AGAIN_S = 1.0

Recorded = Callable[[Effect], None]

_log = structlog.get_logger("relay")


class Recorder:
    """Hands outcomes to the journal, those of some milliseconds as one command.

    Nobody waits for an outcome's record but a delivery's own next attempt, and a commit costs the same for one outcome
    as for fifty. What the journal refuses is offered again every second, and until then lanes claim nothing new.
    """

    def __init__(self, journal: Journal) -> None:
        """Record into `journal`; `effects` counts what was recorded, by webhook's number and effect.

        `is_clear` says that outcomes are taken: none was refused that has not been recorded since.
        """
        self.effects: Counter[tuple[int, Effect]] = Counter()
        self.is_clear = True
        self._journal = journal
        self._gathered: list[tuple[Outcome, Recorded]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0
        self._kept: list[tuple[Outcome, Recorded]] = []
        self._refused = anyio.Event()
        self._clear = anyio.Event()
        self._ended = False

    def record(self, outcome: Outcome, recorded: Recorded, *, urgent: bool = False) -> None:
        """Record `outcome` soon, or now; call `recorded` with the effect it really had once it is on disk."""
        self._gathered.append((outcome, recorded))
        if urgent or len(self._gathered) >= GATHER_COUNT:
            self.flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(self._flushed_at + GATHER_S, loop.time() + SOON_S), self.flush)

    def flush(self) -> None:
        """Hand over what is gathered, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flushed_at = asyncio.get_running_loop().time()
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._submit(gathered)

    async def wait_until_clear(self) -> None:
        """Return once outcomes are taken."""
        while not self.is_clear:
            await self._clear.wait()

    async def run(self) -> None:
        """Offer again what was refused, until cancelled."""
        try:
            while True:
                await self._refused.wait()
                await anyio.sleep(AGAIN_S)
                self._refused = anyio.Event()
                kept, self._kept = self._kept, []
                self._submit(kept)
        finally:
            self._ended = True
            self._lose(self._kept, "the store has refused them until the end")

    def _submit(self, outcomes: list[tuple[Outcome, Recorded]]) -> None:
        try:
            answer = self._journal.submit(RecordAttempts([outcome for outcome, _ in outcomes]))
        except BusyError as error:
            self._keep(outcomes, error)
        else:
            answer.add_done_callback(partial(self._answered, outcomes))

    def _answered(self, outcomes: list[tuple[Outcome, Recorded]], answer: "asyncio.Future[list[Effect]]") -> None:
        error = answer.exception()
        if error is None:
            effects = answer.result()
            self._count(outcomes, effects)
            for (_, recorded), effect in zip(outcomes, effects, strict=True):
                recorded(effect)
            if not self.is_clear and not self._kept:
                self.is_clear = True
                self._clear.set()
        elif isinstance(error, BusyError):
            self._keep(outcomes, error)
        else:
            # The journal has ended with this very error, and the service with it.
            self._lose(outcomes, str(error))

    def _count(self, outcomes: list[tuple[Outcome, Recorded]], effects: list[Effect]) -> None:
        """Count effects by their numbers first: members of an enumeration are hashed by Python code, which is slow."""
        counted = Counter(
            [(outcome.attempt.webhook, int(effect)) for (outcome, _), effect in zip(outcomes, effects, strict=True)]
        )
        for (webhook, effect), count in counted.items():
            self.effects[webhook, Effect(effect)] += count

    @staticmethod
    def _lose(outcomes: list[tuple[Outcome, Recorded]], reason: str) -> None:
        """Say what goes unrecorded: after the restart these attempts are made again."""
        if outcomes:
            _log.error("outcomes.lost", count=len(outcomes), reason=reason)

    def _keep(self, outcomes: list[tuple[Outcome, Recorded]], error: BusyError) -> None:
        if self._ended:
            self._lose(outcomes, error.detail)
            return
        _log.warning("outcomes.refused", count=len(outcomes), reason=error.detail)
        self._kept += outcomes
        self._refused.set()
        if self.is_clear:
            self.is_clear = False
            self._clear = anyio.Event()
