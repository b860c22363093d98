"""`verify`, `rebuild`, `settings`: is it in order, put it in order, how is it set up."""

import sys

import rich_click as click

from app.commands.asking import ask_service, work_here
from app.commands.common import json_option, load, look, print_json, print_report, print_table, progress_bar
from app.settings import MASK, Value
from outbox.upkeep import rebuild as rebuild_database


@click.command()
@json_option
def verify(*, as_json: bool) -> None:
    """Check the log, what follows from it, the bodies and the file; exit 1 if anything is wrong."""
    with progress_bar() as show:
        report = look(lambda inspector: inspector.verify(lambda done, total: show("checking", done, total)))
    if as_json:
        print_json(report)
    else:
        print_report(report)
    sys.exit(1 if report.problems else 0)


@click.command()
@json_option
def rebuild(*, as_json: bool) -> None:
    """Throw the projections away and fold them again from the log."""
    settings = load()
    records = work_here(lambda: rebuild_database(settings.database))
    if records is None:
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
