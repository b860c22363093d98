"""`scripts/outbox`: looks into the outbox and looks after it, beside a running service or without one."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import anyio
import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from app.schemas import encode, show_event, show_stats
from app.settings import MASK, Settings, Value, load_settings, with_keys
from outbox import __version__
from outbox.domain.errors import CannotStartError, OutboxError
from outbox.engine import Inspector, Report, SystemClock, open_inspector, rebuild_database

_T = TypeVar("_T")
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to reach a service that listens everywhere
_NO_PAYLOAD = "(the body is gone or damaged: run verify)"
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="evolution-outbox")
def main() -> None:
    """Look into the outbox. Exit status: 0 fine, 1 something is wrong, 2 usage."""


@main.command()
@_json_option
def stats(*, as_json: bool) -> None:
    """Show the numbers: events, deliveries by state, every webhook's share."""
    found = show_stats(_look(lambda inspector: inspector.stats()), SystemClock().now_ms())
    if as_json:
        _print_json(found)
        return
    words = list(found.deliveries)
    table = Table(title=f"{found.events} events", title_justify="left")
    for heading in ("webhook", "instance", "name", *words, "oldest pending"):
        table.add_column(heading, justify="right" if heading in words else "left")
    for entry in found.webhooks:
        numbers = [str(entry.deliveries[word]) for word in words]
        age = _age(entry.oldest_pending_s)
        table.add_row(entry.id, _plain(entry.instance or "(global)"), entry.name, *numbers, age)
    table.add_section()
    table.add_row("all", "", "", *[str(found.deliveries[word]) for word in words], _age(found.oldest_pending_s))
    Console().print(table)


@main.command()
@click.argument("event_id")
@_json_option
def show(event_id: str, *, as_json: bool) -> None:
    """Show one event: its payload, its deliveries, its attempts."""
    found = show_event(_look(lambda inspector: inspector.event(event_id)))
    if as_json:
        _print_json(found)
        return
    console = Console()
    console.print(f"[bold]{found.id}[/]  seq {found.seq}  {found.event} ", _plain(found.instance), found.accepted_at)
    console.print(_plain(bytes(found.payload).decode() if found.payload is not None else _NO_PAYLOAD))
    deliveries = Table("delivery", "url", "state", "attempts", "due", title="Deliveries", title_justify="left")
    for delivery in found.deliveries:
        deliveries.add_row(delivery.id, _plain(delivery.url), delivery.state, str(delivery.attempts), delivery.due_at)
    attempts = Table("webhook", "attempt", "at", "ms", "status", "what", title="Attempts", title_justify="left")
    for attempt in found.attempts:
        what = " ".join(filter(None, (attempt.error, attempt.detail, attempt.reason, attempt.answer)))
        status = str(attempt.status or "")
        attempts.add_row(attempt.webhook, str(attempt.attempt), attempt.at, str(attempt.ms), status, _plain(what))
    console.print(deliveries, attempts)


@main.command()
@_json_option
def verify(*, as_json: bool) -> None:
    """Check the log, what follows from it, the bodies and the file; exit 1 if anything is wrong."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("verify", total=None)

        def look(inspector: Inspector) -> Awaitable[Report]:
            return inspector.verify(lambda done, total: progress.update(task, completed=done, total=total))

        report = _look(look)
    if as_json:
        _print_json(report)
    else:
        for problem in report.problems:
            click.echo(problem)
        verdict = f"{len(report.problems)} problems" if report.problems else "all is well"
        click.echo(
            f"{report.records} records, {report.events} events, {report.deliveries} deliveries, "
            f"{report.bodies} bodies: {verdict}"
        )
    sys.exit(1 if report.problems else 0)


@main.command()
@_json_option
def rebuild(*, as_json: bool) -> None:
    """Throw the projections away and fold them again from the log."""
    settings = _settings()
    try:
        records = _run(lambda: rebuild_database(settings.database))
    except CannotStartError as error:
        if "already works" not in error.detail:
            _fail(error.detail)
        records = _ask_service(settings, "/maintenance/rebuild")["records"]
    if as_json:
        _print_json({"records": records})
    else:
        click.echo(f"{records} records folded")


@main.command("settings")
@_json_option
def settings_command(*, as_json: bool) -> None:
    """Show every setting with its value, its default and where it comes from; secrets are masked."""
    settings = _settings()
    values = [*settings.values.values(), *settings.kinds.values()]
    if as_json:
        _print_json([{"name": value.variable.name, **_shown(value)} for value in values])
        return
    table = Table("name", "value", "default", "source")
    for value in values:
        shown = _shown(value)
        table.add_row(value.variable.name, shown["value"], shown["default"], shown["source"])
    Console().print(table)
    for warning in settings.warnings:
        click.echo(warning, err=True)


def _shown(value: Value) -> dict[str, str]:
    text = MASK if value.variable.secret and value.text else value.text
    return {"value": text, "default": value.variable.default, "source": value.source, "takes": value.variable.takes}


def _settings() -> Settings:
    try:
        return load_settings()
    except CannotStartError as error:
        _fail(error.detail)


def _look(question: Callable[[Inspector], Awaitable[_T]]) -> _T:
    database = _settings().database
    if not database.exists():
        _fail(f"there is no database {database} yet (OUTBOX_DATABASE_URL): start the service once")

    async def ask() -> _T:
        async with open_inspector(database) as inspector:
            return await question(inspector)

    try:
        return _run(ask)
    except OutboxError as error:
        _fail(str(error))


def _run(work: Callable[[], Awaitable[_T]]) -> _T:
    return anyio.run(work)


def _ask_service(settings: Settings, path: str) -> Any:
    """Have the running service do it. Ends the program if it cannot be reached."""
    settings = with_keys(settings)
    host = _EVERYWHERE.get(settings["OUTBOX_HOST"], settings["OUTBOX_HOST"])
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings['OUTBOX_PORT']}{path}"
    request = urllib.request.Request(url, method="POST", headers={"apikey": settings.api_key})
    try:
        # No proxy stands between us and our own service, whatever the environment says.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        _fail(f"the service at {url} answered {error.code}: {error.read().decode(errors='replace')[:500]}")
    except OSError as error:
        _fail(f"the database is in use, and its service cannot be reached at {url}: {error}")


def _print_json(document: object) -> None:
    click.echo(msgspec.json.format(encode(document), indent=2).decode())


def _plain(text: str | None) -> Text:
    """Return what others wrote as it is: brackets in it are no markup, and control characters do nothing."""
    return Text("".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text or ""))


def _age(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"


def _fail(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
