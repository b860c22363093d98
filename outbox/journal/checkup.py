"""What a start looks at: the end of the log, the webhooks' credentials and, unless the last stop was orderly, the file.

The file is checked beside the work, not before it: a million rows take seconds, and nobody waits for them.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import anyio
import structlog

from outbox.domain.errors import OutboxError
from outbox.journal.damage import Damage, tell_lost
from outbox.journal.setting import SuspendDamaged
from outbox.journal.writer import Journal
from outbox.store.protocol import Head, Reader

FileCheck = Literal["not needed", "running", "sound", "damaged", "not finished"]
FILE_CHECKS: tuple[FileCheck, ...] = ("not needed", "running", "sound", "damaged", "not finished")

_INTERRUPT_S = 0.05

_log = structlog.get_logger("store")


class Checkup:
    """The check of the file. `state` says how far it has come, or what came of it."""

    def __init__(self, damage: Damage, reader: Reader | None, settled: Callable[[], None]) -> None:
        """Check with a reader of its own, None if there is no need to; call `settled` once the file is known sound."""
        self.state: FileCheck = "not needed" if reader is None else "running"
        self._damage = damage
        self._reader = reader
        self._settled = settled
        self._stopping = anyio.Event()

    def stop(self) -> None:
        """Check no further: the next start does it again."""
        self._stopping.set()

    async def run(self) -> None:
        """Check the file if that is needed; `stop` must be called, be it that all else is cancelled."""
        if self._reader is None:
            return
        _log.info("file.check_began", reason="the last stop was not an orderly one")
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            interrupting = anyio.CancelScope(shield=True)
            tasks.start_soon(self._interrupt, self._reader, interrupting)
            try:
                problems = await self._reader.quick_check()
            except OutboxError as error:
                self.state = "not finished"
                _log.warning("file.check_not_finished", reason=error.detail, stopping=self._stopping.is_set())
            else:
                self._conclude(problems, time.monotonic() - began)
            finally:
                interrupting.cancel()

    async def _interrupt(self, reader: Reader, scope: anyio.CancelScope) -> None:
        """Once told to stop, interrupt the check until it has ended: once might be between two of its steps."""
        with scope:
            await self._stopping.wait()
            while True:
                reader.interrupt()
                await anyio.sleep(_INTERRUPT_S)

    def _conclude(self, problems: list[str], took_s: float) -> None:
        if problems:
            self.state = "damaged"
            detail = f"the database file is damaged ({problems[0]}): stop the service, run verify, restore a backup"
            self._damage.met("file", detail, problems=problems)
        else:
            self.state = "sound"
            self._settled()
        _log.info("file.check_ended", result=self.state, took_s=round(took_s, 3))


async def hold_damaged(journal: Journal, damage: Damage, now_ms: int) -> None:
    """Hold what is for webhooks with damaged credentials, and say so: their receivers must not get it without them."""
    damaged = [webhook for webhook in journal.webhooks if webhook.damaged]
    for webhook in damaged:
        damage.met("credentials", tell_lost(webhook), webhook=webhook.number)
    if damaged:
        await journal.submit(SuspendDamaged(now_ms))


async def compare_head(reader: Reader, kept: Head | None, set_aside: Callable[[], Path], damage: Damage) -> None:
    """Say loudly if the log ends before, or differs from, what the head file remembers; go on with what is there."""
    if kept is None:
        return
    rows = await reader.log(kept.seq - 1, 1)
    if rows and rows[0].seq == kept.seq and rows[0].digest == kept.digest:
        return
    aside, found = set_aside(), (await reader.head()).seq
    _log.error("log.tail_lost", remembered=kept.seq, found=found, evidence=str(aside))
    if found < kept.seq:
        detail = f"the log ends at {found}, but record {kept.seq} was there: what came after is lost (see {aside.name})"
    else:
        detail = f"record {kept.seq} is not the one that was there: the file is another, or changed (see {aside.name})"
    damage.met("tail", detail)
