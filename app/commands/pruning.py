"""`prune`: what is old goes, through the running service or without one."""

import sys
import time
from typing import Any

import rich_click as click

from app.commands.asking import ask_service, work_here
from app.commands.common import fail, json_option, load, print_json, progress_bar
from app.settings import Settings, read_duration
from outbox.upkeep import Progress
from outbox.upkeep import prune as prune_database

POLL_S = 0.3


@click.command()
@click.option("--older-than", required=True, help="How old is old: 90, 30m, 24h or 30d.")
@json_option
def prune(older_than: str, *, as_json: bool) -> None:
    """Take what is old away from the beginning of the log, with its bodies, and give the space back.

    Events that are not settled stay, and so do settings. What was dead is gone for good. It may be interrupted; another
    run finds the rest.
    """
    try:
        older_than_s = read_duration(older_than)
    except ValueError as error:
        msg = f"--older-than takes a duration such as 90, 30m, 24h or 30d, not {older_than!r}"
        raise click.UsageError(msg) from error
    settings = load()
    with progress_bar() as show:
        gone = _here(settings, older_than_s, show)
        if gone is None:
            gone = _there(settings, older_than_s, show)
    if as_json:
        print_json({name: gone[name] for name in ("records", "events", "deliveries")})
    else:
        click.echo(f"{gone['records']} records, {gone['events']} events, {gone['deliveries']} deliveries are gone")


def _here(settings: Settings, older_than_s: int, show: Progress) -> dict[str, Any] | None:
    """Prune the file; None if a service has it. Ends the program if that is impossible."""
    window_ms = settings.engine_config().idempotency_window_s * 1000
    gone = work_here(lambda: prune_database(settings.database, older_than_s * 1000, window_ms, show))
    if gone is None:
        return None
    return {"records": gone.records, "events": gone.events, "deliveries": gone.deliveries}


def _there(settings: Settings, older_than_s: int, show: Progress) -> dict[str, Any]:
    """Have the service prune, and wait for its end. Ctrl-C ends the waiting only."""
    found: dict[str, Any] = ask_service(settings, "POST", "/maintenance/prune", {"older_than_s": older_than_s})
    try:
        while found["running"]:
            show("pruning", found["reached"], found["end"])
            time.sleep(POLL_S)
            found = ask_service(settings, "GET", "/maintenance/prune")
    except KeyboardInterrupt:
        click.echo("it goes on without you", err=True)
        sys.exit(0)
    if found["error"]:
        fail(found["error"])
    return found
