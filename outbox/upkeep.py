"""The front door to a database without its engine, for what changes it or copies it.

Backing it up, putting a backup in its place, folding it again, pruning, asking for replays.

It needs neither relay nor HTTP, so that a command of `scripts/outbox` starts at once.
"""

import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync
from msgspec import Struct

from outbox.domain.errors import CannotStartError, OutboxError
from outbox.domain.replays import ReplayFilter
from outbox.folders import make_folder
from outbox.journal.chaining import Report
from outbox.journal.folding import verify
from outbox.journal.ledger import load_webhooks
from outbox.journal.pruning import Prune, Pruned, Shears
from outbox.journal.replaying import Replay
from outbox.journal.requesting import Requests
from outbox.journal.writer import Journal
from outbox.store.protocol import Head, Reader, Store
from outbox.store.sqlite import open_reader, open_store
from outbox.store.sqlite.copying import Progress, copy_database, copy_file
from outbox.store.sqlite.drafts import Draft, set_aside
from outbox.store.sqlite.files import FileLock, HeadFile

__all__ = [
    "Progress", "Pruned", "Replay", "Report", "Restored", "back_up", "prune", "rebuild", "request_replay", "restore"
]  # fmt: skip

_QUEUE_BYTES = 1024 * 1024
_T = TypeVar("_T")


class Restored(Struct, frozen=True):
    """What came of a restore: what is wrong with the backup, or else where the database is that was there before."""

    report: Report
    aside: Path | None = None


async def back_up(database: Path, target: Path, progress: Progress) -> Report:
    """Copy a database, which may be in use, to a new file; return what the copy holds, and what is wrong with it.

    The file appears once it is whole, checked and on disk. Raises CannotStartError, StoreRefusedError, CorruptError.
    """
    await (await open_reader(database)).aclose()  # says what is wrong if it cannot be read
    async with AsyncExitStack() as stack:
        draft = _draft(target.with_name(target.name + ".part"), stack)
        if await anyio.Path(target).exists():
            msg = f"{target} is there already: choose another name"
            raise CannotStartError(msg)
        await run_sync(copy_database, database, draft, progress)
        report, _ = await _check(draft, progress)
        _name(draft, target)
    return report


async def restore(backup: Path, database: Path, mark: str, progress: Progress) -> Restored:
    """Put a copy of `backup` in the place of a database that no service has open; keep that as `<file>.<mark>`.

    If anything is wrong with the backup, nothing is changed. If this is interrupted, the database is as it was, or
    restored; it can be done again. Raises CannotStartError, StoreRefusedError, CorruptError.
    """
    if not await anyio.Path(backup).is_file():
        msg = f"there is no file {backup}"
        raise CannotStartError(msg)
    async with AsyncExitStack() as stack:
        _make_folder(database.parent)
        lock = FileLock(database)
        lock.take()
        stack.callback(lock.release)
        draft = _draft(database.with_name(database.name + ".restoring"), stack)
        progress("copying", 0, 1)
        await run_sync(copy_file, backup, draft)
        report, head = await _check(draft, progress)
        if report.problems:
            return Restored(report)
        try:
            aside = set_aside(database, mark)
        except OSError as error:
            msg = f"cannot put {database} aside: {error.strerror}"
            raise CannotStartError(msg) from error
        _name(draft, database)
        if head.seq:
            HeadFile(database).write(head)
    return Restored(report, aside)


async def rebuild(database: Path) -> int:
    """Fold the projections of a database that no service has open again; return how many records. See `prune`."""
    async with _opened(database) as (store, _reader):
        return await store.rebuild()


async def prune(database: Path, older_than_ms: int, window_ms: int, progress: Progress) -> Pruned:
    """Prune a database that no service has open; keys count for `window_ms`. Return how much is gone.

    Raises CannotStartError, CorruptError and StoreRefusedError.
    """
    async with _opened(database) as (store, reader):
        journal = Journal(store, load_webhooks(*await reader.webhooks()), _QUEUE_BYTES)

        async def submit(command: Prune) -> Pruned:
            gone = await journal.submit(command)
            await store.shrink()
            return gone

        cutting = Shears(reader, window_ms).cut(
            submit, _now_ms, older_than_ms, lambda place, end, _gone: progress("pruning", place, end)
        )
        return await _written(store, journal, cutting)


async def request_replay(
    database: Path, wanted: ReplayFilter | str, rate: float | None, *, acknowledged: bool
) -> Replay:
    """Record a request for a replay, of a filter or of one delivery, in a database that no service has open.

    The service carries it out when it is started. Raises CannotStartError, NotFoundError, InvalidError, ConflictError.
    """
    async with _opened(database) as (store, reader):
        journal = Journal(store, load_webhooks(*await reader.webhooks()), _QUEUE_BYTES)
        requests = Requests(journal, reader, _now_ms)
        if isinstance(wanted, str):
            asking = requests.one(wanted, acknowledged=acknowledged)
        else:
            asking = requests.many(wanted, rate)
        return await _written(store, journal, asking)


@asynccontextmanager
async def _opened(database: Path) -> AsyncIterator[tuple[Store, Reader]]:
    """Open a database that is there, for writing. Raises CannotStartError."""
    if not await anyio.Path(database).exists():
        msg = f"there is no database {database}"
        raise CannotStartError(msg)
    async with AsyncExitStack() as stack:
        store = await open_store(database)
        stack.push_async_callback(store.aclose)
        reader = await store.reader()
        stack.push_async_callback(reader.aclose)
        yield store, reader


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _written(store: Store, journal: Journal, work: Awaitable[_T]) -> _T:
    """Return what comes of `work`, which writes through the journal. Raises what ends it, as it is."""
    done: list[_T] = []
    refused: OutboxError | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.run)
            tasks.start_soon(journal.run)
            try:
                done.append(await work)
            except OutboxError as error:
                refused = error
            await journal.drain()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        ended = group.subgroup(OutboxError)
        raise refused or (ended.exceptions[0] if ended else group) from group
    if refused is not None:
        raise refused
    return done[0]


def _make_folder(path: Path) -> None:
    try:
        make_folder(path)
    except OSError as error:
        msg = f"cannot create the directory {path}: {error.strerror}"
        raise CannotStartError(msg) from error


def _draft(path: Path, stack: AsyncExitStack) -> Draft:
    draft = Draft(path)
    stack.callback(draft.close)
    return draft


def _name(draft: Draft, path: Path) -> None:
    try:
        draft.finish(path)
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise CannotStartError(msg) from error


async def _check(draft: Draft, progress: Progress) -> tuple[Report, Head]:
    """Check a whole draft; return also where its log ends."""
    reader = await open_reader(draft.path)
    try:
        return await verify(reader, None, partial(progress, "checking")), await reader.head()
    finally:
        await reader.aclose()
