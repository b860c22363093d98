"""Records the outcomes of attempts, and keeps them in memory while the store refuses them."""

import asyncio
from collections.abc import Callable
from functools import partial

import anyio
import structlog

from outbox.domain.deliveries import Effect
from outbox.domain.errors import BusyError
from outbox.domain.records import AttemptRecorded
from outbox.journal.commands import RecordAttempt
from outbox.journal.writer import Journal

AGAIN_S = 1.0

Recorded = Callable[[Effect], None]

_log = structlog.get_logger("relay")


class Recorder:
    """Hands outcomes to the journal; what it refuses is offered again every second, and lanes claim nothing new."""

    def __init__(self, journal: Journal) -> None:
        """Record into `journal`."""
        self._journal = journal
        self._kept: list[tuple[AttemptRecorded, Recorded]] = []
        self._refused = anyio.Event()
        self._clear = anyio.Event()
        self._clear.set()

    def record(self, attempt: AttemptRecorded, recorded: Recorded) -> None:
        """Record `attempt`, and call `recorded` with the effect it really had once it is on disk."""
        try:
            answer = self._journal.submit(RecordAttempt(attempt))
        except BusyError as error:
            self._keep(attempt, recorded, error)
        else:
            answer.add_done_callback(partial(self._answered, attempt, recorded))

    async def wait_until_clear(self) -> None:
        """Return once no outcome is waiting to be offered again."""
        await self._clear.wait()

    async def run(self) -> None:
        """Offer again what was refused, until cancelled."""
        while True:
            await self._refused.wait()
            await anyio.sleep(AGAIN_S)
            self._refused = anyio.Event()
            kept, self._kept = self._kept, []
            for attempt, recorded in kept:
                self.record(attempt, recorded)
            if not self._kept:
                self._clear.set()

    def _answered(self, attempt: AttemptRecorded, recorded: Recorded, answer: "asyncio.Future[Effect]") -> None:
        error = answer.exception()
        if error is None:
            recorded(answer.result())
        elif isinstance(error, BusyError):
            self._keep(attempt, recorded, error)
        else:
            # The journal has ended with this very error, and the service with it: after the restart it is tried again.
            _log.error("outcome.lost", webhook=attempt.webhook, reason=str(error))

    def _keep(self, attempt: AttemptRecorded, recorded: Recorded, error: BusyError) -> None:
        _log.warning("outcome.refused", webhook=attempt.webhook, reason=error.detail)
        self._kept.append((attempt, recorded))
        self._refused.set()
        if self._clear.is_set():
            self._clear = anyio.Event()
