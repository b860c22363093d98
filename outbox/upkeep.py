"""The front door to looking after a database: backing it up, and putting a backup in its place.

It needs neither relay nor HTTP, so that a command of `scripts/outbox` starts at once.
"""

from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
from anyio.to_thread import run_sync
from msgspec import Struct

from outbox.domain.errors import CannotStartError
from outbox.folders import make_folder
from outbox.journal.folding import Report, verify
from outbox.store.protocol import Head
from outbox.store.sqlite import open_reader
from outbox.store.sqlite.copying import Progress, copy_database, copy_file
from outbox.store.sqlite.drafts import Draft, set_aside
from outbox.store.sqlite.files import FileLock, HeadFile

__all__ = ["Report", "Restored", "back_up", "restore"]


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
