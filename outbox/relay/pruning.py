"""Pruning at work: a chunk at a time, while everybody else is served in between, and then the file gives space back."""

from collections.abc import Awaitable, Callable

import anyio
import structlog
from anyio import CancelScope
from msgspec import Struct

from outbox.domain.errors import ConflictError, DamagedFileError, OutboxError, OutcomeUnknownError
from outbox.journal.pruning import Prune, Pruned, Shears
from outbox.journal.writer import Journal
from outbox.relay.clock import Clock
from outbox.relay.sweeping import insist

_log = structlog.get_logger("prune")


class Pruning(Struct):
    """How far a run has come: up to the seq `place` of `end`, what is gone, and why it has ended, if it broke off."""

    older_than_ms: int
    gone: Pruned
    running: bool = True
    place: int = 0
    end: int = 0
    error: str = ""


class Pruner:
    """Prunes when asked to, one run at a time. A run that a stop interrupts is over; another one finds the rest."""

    def __init__(self, journal: Journal, shears: Shears, shrink: Callable[[], Awaitable[None]], clock: Clock) -> None:
        """Cut with `shears` through the journal; `shrink` gives space back."""
        self._journal = journal
        self._shears = shears
        self._shrink = shrink
        self._clock = clock
        self._asked = anyio.Event()
        self._scope = CancelScope()
        self.last: Pruning | None = None

    def begin(self, older_than_ms: int) -> Pruning:
        """Prune what is older than that. Raises ConflictError while a run goes on."""
        if self.last is not None and self.last.running:
            msg = "a prune goes on already: wait for its end"
            raise ConflictError(msg)
        self.last = Pruning(older_than_ms, Pruned())
        self._asked.set()
        return self.last

    def stop(self) -> None:
        """Begin no further chunk."""
        self._scope.cancel()

    async def run(self) -> None:
        """Prune whenever asked, until `stop`. Raises OutcomeUnknownError and DamagedFileError."""
        with self._scope:
            while True:
                await self._asked.wait()
                self._asked = anyio.Event()
                if self.last is not None:
                    await self._prune(self.last)

    async def _submit(self, command: Prune) -> Pruned:
        gone = await insist(self._journal, command)
        await self._shrink()
        return gone

    async def _prune(self, pruning: Pruning) -> None:
        def progress(place: int, end: int, gone: Pruned) -> None:
            pruning.place, pruning.end, pruning.gone = place, end, gone

        try:
            await self._shears.cut(self._submit, self._clock.now_ms, pruning.older_than_ms, progress)
        except (OutcomeUnknownError, DamagedFileError):
            raise
        except OutboxError as error:
            pruning.error = error.detail
            _log.error("prune.broken", reason=error.detail)
        else:
            gone = pruning.gone
            _log.info("prune.finished", records=gone.records, events=gone.events, deliveries=gone.deliveries)
        finally:
            pruning.running = False
