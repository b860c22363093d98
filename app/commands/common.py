"""What all commands share: the database they look into, how they print, how they fail."""

import sys
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import anyio
import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text

from app.schemas import Breaker, encode
from app.settings import Settings, load_settings
from outbox.domain.errors import CannotStartError, OutboxError
from outbox.domain.webhooks import WebhookState
from outbox.inspecting import Inspector, Report, open_inspector

_T = TypeVar("_T")
_GAP = 1
_FOLDED_WIDTH = 10  # a date

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


def load() -> Settings:
    """Return the settings. Ends the program if they are wrong."""
    try:
        return load_settings()
    except CannotStartError as error:
        fail(error.detail)


def look(question: Callable[[Inspector], Awaitable[_T]]) -> _T:
    """Return what an inspector of the database answers. Ends the program if it cannot."""
    database = load().database
    if not database.exists():
        fail(f"there is no database {database} yet (OUTBOX_DATABASE_URL): start the service once")

    async def ask() -> _T:
        async with open_inspector(database) as inspector:
            return await question(inspector)

    try:
        return anyio.run(ask)
    except OutboxError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the program: something is wrong."""
    click.echo(message, err=True)
    sys.exit(1)


def print_json(document: object) -> None:
    """Print one JSON document, for programs."""
    click.echo(msgspec.json.format(encode(document), indent=2).decode())


def print_report(report: Report, where: str = "") -> None:
    """Print what a check has found, for people; `where` says of what."""
    for problem in report.problems:
        click.echo(problem)
    verdict = f"{len(report.problems)} problems" if report.problems else "all is well"
    click.echo(
        f"{report.records} records, {report.events} events, {report.deliveries} deliveries, "
        f"{report.bodies} bodies: {verdict}{where and f', {where}'}"
    )


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    whole: Collection[str],
    numbers: Collection[str] = (),
    title: str = "",
) -> None:
    """Print a table. The columns in `whole` and `numbers` are never cut or broken, so that they can be copied.

    The others fold where the terminal is narrow. A row that is too wide all the same is the terminal's to wrap.
    """
    unbroken = {*whole, *numbers}
    columns = [
        Column(
            heading,
            justify="right" if heading in numbers else "left",
            no_wrap=heading in unbroken,
            overflow="fold",
        )
        for heading in headings
    ]
    table = Table(*columns, box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="")
    for row in rows:
        table.add_row(*map(plain, row))
    console = Console()
    widths = [_width(heading, [row[at] for row in rows]) for at, heading in enumerate(headings)]
    least = [
        width if heading in unbroken else min(width, _FOLDED_WIDTH)
        for heading, width in zip(headings, widths, strict=True)
    ]
    # What goes to a file or a pipe has no width to keep to.
    room = console.width if console.is_terminal else sum(widths) + _GAP * len(widths)
    console.width = max(room, sum(least) + _GAP * len(least))
    with console.capture() as captured:
        console.print(table)
    if title:
        click.echo(title)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def _width(heading: str, cells: Sequence[str]) -> int:
    return max(plain(cell).cell_len for cell in (heading, *cells))


def plain(text: str | None) -> Text:
    """Return what others wrote as it is: brackets in it are no markup, and control characters do nothing."""
    return Text(clean(text))


def clean(text: str | None) -> str:
    """Return what others wrote without control characters, for a line of plain text."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text or "")


def state_words(state: WebhookState, breaker: Breaker) -> str:
    """Return how a webhook stands, for people."""
    return "breaker open" if (state, breaker) == ("enabled", "open") else state


def age(seconds: float | None) -> str:
    """Return an age for people; nothing where there is none."""
    return "" if seconds is None else f"{seconds:.0f} s"


def moment(text: str) -> str:
    """Return a moment of the API for people: to the second, in two words that may stand below each other."""
    return text[:19].replace("T", " ") + "Z"


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show on a terminal what is being done, and how much of it is."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
