"""Backup, restore and upgrade, killed as they begin their first call on the disk, then their second, and so on.

    python -m tests.faults.dies_copying backup|restore|damaged|upgrade

Run with the disk preloaded. After each death there is no file that looks whole and is not: a backup that has its name
verifies, and the database is the one that was there, or the restored one. A file that is brought up to date has one
of the schemas on the way, whole. Prints its findings as JSON.
"""

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from msgspec import Struct, to_builtins

from outbox.domain.errors import CannotStartError, CorruptError
from outbox.inspecting import open_inspector
from outbox.store.sqlite import open_store
from outbox.upkeep import back_up, restore
from tests.faults.disk import Lever, Trouble
from tests.faults.dying import CHANGING
from tests.store.earlier import SCRIPTS, make_earlier

_SCHEMA = "SELECT type, name, sql FROM sqlite_schema ORDER BY type, name"


class Findings(Struct):
    """After so many deaths there was nothing, the database as it was, or what had been asked for."""

    deaths: int = 0
    none: int = 0
    old: int = 0
    new: int = 0
    status: int = 0
    faults: list[str] = []


def nothing(_what: str, _done: int, _all: int) -> None:
    """Tell nobody."""


async def records(path: Path) -> int | str:
    """Return how many records a file has, or what is wrong with it."""
    try:
        async with open_inspector(path) as inspector:
            report = await inspector.verify(lambda _done, _all: None)
    except (CannotStartError, CorruptError) as error:
        return error.detail
    return str(report.problems) if report.problems else report.records


async def work(what: str, folder: Path) -> None:
    """Do it once."""
    if what == "backup":
        await back_up(folder / "outbox.db", folder / "copy.db", nothing)
    elif what == "upgrade":
        await (await open_store(folder / "outbox.db")).aclose()
    else:
        await restore(folder.parent / "backup.db", folder / "outbox.db", f"replaced-{os.getpid()}", nothing)


def schemas(path: Path) -> int | None:
    """Return the version of a file's schema, None if it has not the tables and indexes of that version."""
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        found = connection.execute(_SCHEMA).fetchall()
    with closing(sqlite3.connect(":memory:")) as connection:
        for script in SCRIPTS[:version]:
            connection.executescript(script.read_text())
        return int(version) if connection.execute(_SCHEMA).fetchall() == found else None


async def look(what: str, folder: Path, old: int, new: int, findings: Findings) -> None:
    """Judge what a death has left."""
    name = "copy.db" if what == "backup" else "outbox.db"
    if not (folder / name).exists():
        findings.none += 1
        return
    if what == "upgrade":
        version = schemas(folder / name)
        if version is None:
            findings.faults.append(f"death {findings.deaths}: a schema half made")
        elif version < len(SCRIPTS):
            findings.old += 1
        else:
            findings.new += 1
        return
    found = await records(folder / name)
    if found == new:
        findings.new += 1
    elif found == old or what == "damaged":
        findings.old += 1
    else:
        findings.faults.append(f"death {findings.deaths}: {found}")


def main(what: str) -> None:
    """Die once at every call."""
    folder, lever = Path(os.environ["DISK_FOLDER"]), Lever(Path(os.environ["DISK_CONTROL"]))
    findings = Findings(faults=[])
    beside = folder.parent
    old, new = prepare(what, beside)
    status = signal.SIGKILL.value
    while status == signal.SIGKILL:
        findings.deaths += 1
        for path in folder.iterdir():
            path.unlink()
        for suffix in ("", "-wal"):
            if (beside / f"old.db{suffix}").exists():
                shutil.copyfile(beside / f"old.db{suffix}", folder / f"outbox.db{suffix}")
        if not (process := os.fork()):
            lever.spoil(Trouble(CHANGING, after=findings.deaths - 1, times=1, deadly=True))
            asyncio.run(work(what, folder))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        lever.heal()
        asyncio.run(look(what, folder, old, new, findings))
        if what != "backup":  # it can be done again, and then it is done
            asyncio.run(work(what, folder))
            if asyncio.run(records(folder / "outbox.db")) != new:
                findings.faults.append(f"death {findings.deaths}: a second restore did not mend it")
    findings.status = status
    sys.stdout.write(json.dumps(to_builtins(findings)))


def prepare(what: str, beside: Path) -> tuple[int, int]:
    """Make the database and the backup; return how many records the old and the new file have."""
    make_earlier(beside / "backup.db", len(SCRIPTS), 1_700_000_000_000, "http://127.0.0.1:9")
    if what == "backup":
        (beside / "backup.db").rename(beside / "old.db")
        new = asyncio.run(records(beside / "old.db"))
        assert isinstance(new, int)
        return -1, new
    new = asyncio.run(records(beside / "backup.db"))
    assert isinstance(new, int)
    if what == "upgrade":
        make_earlier(beside / "old.db", 1, 1_700_000_000_000, "http://127.0.0.1:9")
        return new, new
    if what == "damaged":
        (beside / "old.db").write_bytes(b"no database " * 1000)
        (beside / "old.db-wal").write_bytes(b"no log " * 1000)
        return -1, new
    make_earlier(beside / "old.db", len(SCRIPTS), 1_700_000_000_000, "http://127.0.0.1:9", more=3)
    return new + 3, new


if __name__ == "__main__":
    main(sys.argv[1])
