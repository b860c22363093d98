"""`backup` and `restore`: a whole copy of the database, and putting one in its place."""

import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import anyio
import rich_click as click
from msgspec import structs

from app.commands.asking import is_in_use
from app.commands.common import fail, json_option, load, print_json, print_report, progress_bar
from outbox.domain.errors import CannotStartError, OutboxError
from outbox.upkeep import back_up
from outbox.upkeep import restore as restore_backup

_T = TypeVar("_T")


@click.command()
@click.argument("dest", type=click.Path(path_type=Path))
@json_option
def backup(dest: Path, *, as_json: bool) -> None:
    """Copy the database to the new file DEST, beside a running service or without one.

    The copy is whole, checked, and of one instant; it has its name once it is on disk. Exit 1 if anything is wrong.
    """
    settings = load()
    if not settings.database.exists():
        fail(f"there is no database {settings.database} yet (OUTBOX_DATABASE_URL): start the service once")
    with progress_bar() as progress:
        report = _run(lambda: back_up(settings.database, dest, progress))
    if as_json:
        print_json({"file": str(dest), **structs.asdict(report)})
    else:
        print_report(report, f"in {dest}")
    sys.exit(1 if report.problems else 0)


@click.command()
@click.argument("backup", type=click.Path(path_type=Path))
@json_option
def restore(backup: Path, *, as_json: bool) -> None:
    """Put the file BACKUP in the place of the database, which no service may have open.

    It is checked first. The database that was there is kept beside it.
    """
    settings = load()
    mark = f"replaced-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    with progress_bar() as progress:
        done = _run(lambda: restore_backup(backup, settings.database, mark, progress))
    if as_json:
        print_json({
            "file": str(settings.database),
            "aside": None if done.aside is None else str(done.aside),
            "restored": not done.report.problems,
            **structs.asdict(done.report),
        })  # fmt: skip
    elif done.report.problems:
        print_report(done.report, "nothing was changed")
    else:
        print_report(done.report, f"now in {settings.database}")
        if done.aside is not None:
            click.echo(f"what was there before is {done.aside}")
    sys.exit(1 if done.report.problems else 0)


def _run(work: Callable[[], Awaitable[_T]]) -> _T:
    try:
        return anyio.run(work)
    except CannotStartError as error:
        fail(f"{error.detail}: stop the service first" if is_in_use(error) else error.detail)
    except OutboxError as error:
        fail(str(error))
