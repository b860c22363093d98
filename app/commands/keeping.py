"""`verify`, `rebuild`, `settings`: is it in order, put it in order, how is it set up."""

import sys
from collections.abc import Awaitable

import anyio
import rich_click as click
from rich.console import Console
from rich.progress import Progress

from app.commands.asking import ask_service, is_in_use
from app.commands.common import fail, json_option, load, look, print_json, print_table
from app.settings import MASK, Value
from outbox.domain.errors import CannotStartError
from outbox.inspecting import Inspector, Report, rebuild_database


@click.command()
@json_option
def verify(*, as_json: bool) -> None:
    """Check the log, what follows from it, the bodies and the file; exit 1 if anything is wrong."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("verify", total=None)

        def check(inspector: Inspector) -> Awaitable[Report]:
            return inspector.verify(lambda done, total: progress.update(task, completed=done, total=total))

        report = look(check)
    if as_json:
        print_json(report)
    else:
        for problem in report.problems:
            click.echo(problem)
        verdict = f"{len(report.problems)} problems" if report.problems else "all is well"
        click.echo(
            f"{report.records} records, {report.events} events, {report.deliveries} deliveries, "
            f"{report.bodies} bodies: {verdict}"
        )
    sys.exit(1 if report.problems else 0)


@click.command()
@json_option
def rebuild(*, as_json: bool) -> None:
    """Throw the projections away and fold them again from the log."""
    settings = load()
    try:
        records = anyio.run(rebuild_database, settings.database)
    except CannotStartError as error:
        if not is_in_use(error):
            fail(error.detail)
        records = ask_service(settings, "POST", "/maintenance/rebuild")["records"]
    if as_json:
        print_json({"records": records})
    else:
        click.echo(f"{records} records folded")


@click.command("settings")
@json_option
def settings_command(*, as_json: bool) -> None:
    """Show every setting with its value, its default and where it comes from; secrets are masked."""
    settings = load()
    values = [*settings.values.values(), *settings.kinds.values()]
    if as_json:
        print_json([{"name": value.variable.name, **_shown(value)} for value in values])
        return
    rows = []
    for value in values:
        shown = _shown(value)
        rows.append([value.variable.name, shown["value"], shown["default"], shown["source"]])
    print_table(["name", "value", "default", "source"], rows, whole={"name", "value"})
    for warning in settings.warnings:
        click.echo(warning, err=True)


def _shown(value: Value) -> dict[str, str]:
    text = MASK if value.variable.secret and value.text else value.text
    return {"value": text, "default": value.variable.default, "source": value.source, "takes": value.variable.takes}
