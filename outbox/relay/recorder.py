"""Records the outcomes of attempts, and keeps them in memory while the store refuses them."""

import anyio
import structlog

from outbox.domain.deliveries import Effect
from outbox.domain.errors import BusyError
from outbox.domain.records import AttemptRecorded
from outbox.journal.commands import RecordAttempt
from outbox.journal.writer import Journal

AGAIN_S = 1.0

_log = structlog.get_logger("relay")


class Recorder:
    """Hands attempts to the journal; while it refuses, asks again every second and lets lanes claim nothing new."""

    def __init__(self, journal: Journal) -> None:
        """Record into `journal`."""
        self._journal = journal
        self._refused = 0
        self._clear = anyio.Event()
        self._clear.set()

    async def wait_until_clear(self) -> None:
        """Return once every outcome offered so far is on disk or on its way."""
        await self._clear.wait()

    async def record(self, attempt: AttemptRecorded) -> Effect:
        """Return the effect the attempt really had, once it is on disk."""
        try:
            return await self._journal.submit(RecordAttempt(attempt))
        except BusyError as error:
            _log.warning("outcome.refused", webhook=attempt.webhook, reason=error.detail)
        if not self._refused:
            self._clear = anyio.Event()
        self._refused += 1
        try:
            return await self._insist(attempt)
        finally:
            self._refused -= 1
            if not self._refused:
                self._clear.set()

    async def _insist(self, attempt: AttemptRecorded) -> Effect:
        while True:
            await anyio.sleep(AGAIN_S)
            try:
                return await self._journal.submit(RecordAttempt(attempt))
            except BusyError:
                continue
