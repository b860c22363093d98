"""The engine on a disk that fails at its first call, then at its second, and so on until nothing fails any more.

    python -m tests.faults.spoiled (work | start | recover) TROUBLE

Run with the disk preloaded. Prints its findings as JSON. Nothing is wrong if every event is delivered that was taken,
every other one can be sent again, and an engine that has not ended does that by itself once nothing fails any more.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from errno import EIO, EMFILE, ENOSPC
from pathlib import Path

from msgspec import Struct, field, to_builtins

from app.logs import configure_logs
from outbox.config import EngineConfig, GlobalWebhook
from outbox.domain.errors import BusyError, NotFoundError, OutboxError
from outbox.domain.events import Event, read_event
from outbox.domain.ids import event_text
from outbox.domain.retrying import RetryPolicy
from outbox.engine import Engine, open_engine
from outbox.inspecting import open_inspector
from outbox.journal import writer
from outbox.relay import loop, recorder
from outbox.store.sqlite import checkpoints, writing
from tests.faults.disk import FOREVER, Calls, Lever, Trouble
from tests.receiver import Receiver

TROUBLES: Mapping[str, Trouble] = {
    "a write fails": Trouble(Calls.WRITE, EIO, times=1),
    "the disk is full": Trouble(Calls.WRITE, ENOSPC, half=True),
    "a sync fails": Trouble(Calls.SYNC, EIO, times=1),
    "no sync works": Trouble(Calls.SYNC, EIO),
    "a read fails": Trouble(Calls.READ, EIO, times=1),
    "nothing can be opened": Trouble(Calls.OPEN, EMFILE),
    "no name can be changed": Trouble(Calls.NAME, EIO),
    "nothing can be truncated": Trouble(Calls.TRUNCATE, EIO),
}
SETTLED_S = 20
REFUSED_S = 0.05


class Findings(Struct):
    """What came of all rounds: the errors that ended the engine, how often events were refused, what was wrong."""

    rounds: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    faults: list[str] = field(default_factory=list)


class Spoiled:
    """An engine that is opened again whenever it has ended, and what it has accepted."""

    def __init__(self, database: Path, url: str, lever: Lever) -> None:
        """Deliver to `url`."""
        self.config = EngineConfig(
            database=database,
            retry=RetryPolicy(initial_s=0.01, max_s=0.05, max_attempts=1000),
            global_webhook=GlobalWebhook(url=url, enabled=True, by_events=False),
        )
        self.accepted: dict[str, bytes] = {}
        self.findings = Findings()
        self._lever = lever

    async def work(self, trouble: Trouble) -> None:
        """Take two events in and deliver them, with trouble at the first call, the second, and so on."""
        number = 1
        while True:
            try:
                async with open_engine(self.config) as engine:
                    while await self._round(engine, number, trouble):
                        number += 1
                    return
            except* OutboxError as group:
                self._end(group)
            finally:
                self._lever.heal()
            # What it did not take, for whatever reason, it takes when it is sent again.
            async with open_engine(self.config) as engine:
                await self.settle(engine, number)
            number += 1

    async def _round(self, engine: Engine, number: int, trouble: Trouble) -> bool:
        """Do the work once; say whether anything has failed."""
        self.findings.rounds += 1
        self._lever.spoil(trouble._replace(after=number - 1))
        await asyncio.gather(*(self.offer(engine, name) for name in _names(number)))
        if trouble.times == FOREVER:
            await asyncio.sleep(REFUSED_S)
            self._lever.heal()
        await self.settle(engine, number)
        failed = self._lever.seen >= number
        self._lever.heal()
        return failed

    async def offer(self, engine: Engine, name: str) -> bool:
        """Offer an event; say whether it was taken. The same one must have the same id."""
        try:
            accepted = await engine.accept(_event(name), name.encode())
        except BusyError:
            self.findings.refused += 1
            return False
        known = self.accepted.setdefault(name, accepted.id)
        if known != accepted.id:
            self.findings.faults.append(f"{name} was taken twice")
        return True

    def _end(self, group: BaseExceptionGroup[OutboxError]) -> None:
        for name in {type(error).__name__ for error in _leaves(group)}:
            self.findings.ended[name] = self.findings.ended.get(name, 0) + 1

    async def settle(self, engine: Engine, number: int) -> None:
        """See that the round's events are taken and delivered by this very engine."""
        async with asyncio.timeout(SETTLED_S):
            for name in _names(number):
                while not await self.offer(engine, name):  # noqa: ASYNC110 - it is for the engine to recover
                    await asyncio.sleep(0.01)
            while engine.troubles or not await self._settled(engine):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    @staticmethod
    async def _settled(engine: Engine) -> bool:
        with suppress(BusyError):  # the trouble may meet this very question
            return not (await engine.inspector.stats()).deliveries["pending"]
        return False

    async def start(self, trouble: Trouble, found: Path | None) -> None:
        """Start and stop on what a crash has left, or on nothing, with trouble at the first call, the second, ..."""
        before, number, failed = dict(self.accepted), 1, True
        while failed:
            self.accepted = dict(before)
            _put(found, self._folder)
            self._lever.spoil(trouble._replace(after=number - 1))
            try:
                async with open_engine(self.config):
                    pass
            except* OutboxError as group:
                self._end(group)
            failed = self._lever.seen >= number
            self._lever.heal()
            self.findings.rounds += 1
            async with open_engine(self.config) as engine:
                await self.settle(engine, number)
            await self.compare()
            number += 1

    async def crash(self, beside: Path) -> Path:
        """Return a folder as a crash would leave it: there are events, and all is still in the write-ahead log."""
        async with open_engine(self.config) as engine:
            await self.settle(engine, 0)
            shutil.copytree(self._folder, beside, ignore=shutil.ignore_patterns("*-shm", "*.lock", "*.head*"))
        return beside

    @property
    def _folder(self) -> Path:
        return self.config.database.parent

    async def compare(self) -> None:
        """Compare what is stored with what was taken."""
        async with open_inspector(self.config.database) as inspector:
            self.findings.faults += (await inspector.verify(lambda _done, _all: None)).problems
            stats = await inspector.stats()
            for name, event_id in self.accepted.items():
                try:
                    await inspector.event(event_text(event_id))
                except NotFoundError:
                    self.findings.faults.append(f"{name} was taken and is not there")
            if stats.events != len(self.accepted) or stats.deliveries["acknowledged"] != len(self.accepted):
                self.findings.faults.append(f"{len(self.accepted)} were taken and delivered, but stored is {stats}")


def _put(found: Path | None, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if found is not None:
        shutil.copytree(found, folder)


def _names(number: int) -> list[str]:
    return [f"{number}-one", f"{number}-another"]


def _event(name: str) -> Event:
    # More than a page, so that it takes several writes.
    data = {"name": name, "filling": "x" * 5000}
    return read_event(json.dumps({"event": "messages.upsert", "instance": "loja01", "data": data}).encode(), 0)


def _leaves(group: BaseExceptionGroup[OutboxError]) -> Iterator[OutboxError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def run(what: str, trouble: Trouble) -> Findings:
    """Do what is asked in the folder that the disk spoils."""
    folder, lever = Path(os.environ["DISK_FOLDER"]), Lever(Path(os.environ["DISK_CONTROL"]))
    async with Receiver() as receiver:
        spoiled = Spoiled(folder / "data" / "outbox.db", receiver.url, lever)
        match what:
            case "work":
                await spoiled.work(trouble)
                await spoiled.compare()
            case "start":
                await spoiled.start(trouble, None)
            case "recover":
                await spoiled.start(trouble, await spoiled.crash(folder / "crashed"))
    return spoiled.findings


def hurry() -> None:
    """Make all that waits wait less, and move the write-ahead log after every commit."""
    checkpoints.FRAMES = 1
    writing._HEAD_INTERVAL_S = 0.02
    recorder.AGAIN_S = loop.RESTART_S = writer.PROVE_S = 0.02


if __name__ == "__main__":
    hurry()
    if sys.argv[1] != "work":
        checkpoints.FRAMES = 1000  # leave it to a start
    with Path(os.devnull).open("w") as nowhere:
        configure_logs("error", "json", nowhere)
        sys.stdout.write(json.dumps(to_builtins(asyncio.run(run(sys.argv[1], TROUBLES[sys.argv[2]])))))
