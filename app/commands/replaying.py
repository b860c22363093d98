"""`replay`: deliveries go out again, or events to a webhook that was set too late."""

import sys
import time
from typing import Any, NoReturn

import msgspec
import rich_click as click
from rich.console import Console
from rich.progress import Progress

from app.commands.asking import ask_service, work_here
from app.commands.common import clean, fail, json_option, load, print_json
from app.replay_schemas import (
    DeliveryReplayIn,
    EventsReplayIn,
    ReplayIn,
    read_events_replay,
    read_replay,
    show_replay,
)
from app.settings import Settings
from outbox.domain.errors import InvalidError, NotFoundError
from outbox.domain.ids import parse_delivery
from outbox.domain.replays import ReplayFilter
from outbox.inspecting import STATES, ReplayView
from outbox.upkeep import request_replay

POLL_S = 0.3

_COUNTS = ("reopened", "added", "skipped", "copied", "failed")
_SUCCESS = range(200, 300)
_COPIER = "copies are made by a running service, and it"


@click.command()
@click.argument("delivery_id", required=False)
@click.option("--webhook", help="Deliveries to this webhook: wh_N.")
@click.option("--state", help=f"Deliveries in this state: {', '.join(STATES)}.")
@click.option("--event", help="Of events of this kind, in any spelling.")
@click.option("--instance", help="Of events of this instance.")
@click.option("--since", help="Of events accepted from this moment on: RFC 3339, or seconds since the epoch.")
@click.option("--until", help="Of events accepted before this moment.")
@click.option("--acknowledged", is_flag=True, help="Acknowledged ones too: they are sent a second time.")
@click.option("--rate", type=float, help="So many become due a second; without it, all at once.")
@click.option("--to", help="Post copies to this URL instead, without our own headers; nothing else changes.")
@click.option("--events", is_flag=True, help="Add the events that --webhook takes and has not got.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is done; that is the default.")
@json_option
def replay(delivery_id: str | None, *, events: bool, wait: bool, as_json: bool, **given: Any) -> None:
    """Replay one delivery, or all that match: those that are dead, or pending, or what you say.

    What was acknowledged is left alone unless you say otherwise. A running service does it at once; without one the
    request is recorded, and carried out when the service is started.
    """
    asked = {name: value for name, value in given.items() if value is not None and value is not False}
    wanted, path = _read(delivery_id, asked, events=events)
    settings = load()
    receipt = _record(settings, wanted, asked) if "to" not in asked else None
    if receipt is not None:
        _show(receipt, as_json=as_json)
        if not as_json:
            click.echo("no service is running: it is carried out when one is started", err=True)
        return
    answer = ask_service(settings, "POST", path, asked, **({"who": _COPIER} if "to" in asked else {}))
    if answer["id"] is None:
        _show_copy(answer, as_json=as_json)
        return
    place = f"/replays/{answer['id']}"
    found = _follow(settings, place) if wait else ask_service(settings, "GET", place)
    _show(found, as_json=as_json)
    sys.exit(1 if found["failed"] else 0)


def _read(delivery_id: str | None, asked: dict[str, Any], *, events: bool) -> tuple[ReplayFilter | str, str]:
    """Return what is wanted, and the path that takes it. Ends the program as wrong usage if an option is wrong."""
    if events and delivery_id:
        _misused("either one delivery is replayed, or --events are added")
    kind = EventsReplayIn if events else DeliveryReplayIn if delivery_id else ReplayIn
    if odd := sorted(asked.keys() - set(kind.__struct_fields__)):
        _misused(f"--{odd[0]} does not go with {'--events' if events else 'one delivery'}")
    try:
        body = msgspec.convert(asked, kind)
        if isinstance(body, ReplayIn):
            return read_replay(body), "/deliveries/replay"
        if isinstance(body, EventsReplayIn):
            return read_events_replay(body), "/events/replay"
        parse_delivery(delivery_id or "")
    except (msgspec.ValidationError, InvalidError) as error:
        _misused(str(error).replace("`$.", "`--").replace(" - at `$`", ""))
    except NotFoundError as error:
        fail(error.detail)
    return delivery_id or "", f"/deliveries/{delivery_id}/replay"


def _misused(message: str) -> NoReturn:
    raise click.UsageError(message)


def _record(settings: Settings, wanted: ReplayFilter | str, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Record the request in the database; None if a service has it. Ends the program if it is refused."""
    acknowledged = bool(asked.get("acknowledged"))
    replay = work_here(lambda: request_replay(settings.database, wanted, asked.get("rate"), acknowledged=acknowledged))
    return None if replay is None else dict(msgspec.to_builtins(show_replay(ReplayView(replay))))


def _follow(settings: Settings, place: str) -> dict[str, Any]:
    """Return what has become of a replay at its end; on a terminal, show how it goes on. Ctrl-C ends the watching."""
    console = Console(stderr=True)
    found: dict[str, Any] = ask_service(settings, "GET", place)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("replay", total=None)
            while found["state"] != "finished":
                progress.update(task, completed=_done(found), total=found["deliveries"])
                time.sleep(POLL_S)
                found = ask_service(settings, "GET", place)
    except KeyboardInterrupt:
        click.echo("it goes on without you", err=True)
    return found


def _done(found: dict[str, Any]) -> int:
    return sum(found[name] for name in _COUNTS)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    counts = ", ".join(f"{found[name]} {name}" for name in _COUNTS if found[name]) or "none done"
    matched = "not counted" if found["deliveries"] is None else f"{found['deliveries']} matched"
    wrong = f"; the last failure: {found['error']}" if found["error"] else ""
    click.echo(f"{found['id']}  {found['state']}: {matched}, {counts}{clean(wrong)}")


def _show_copy(answer: dict[str, Any], *, as_json: bool) -> None:
    """Show what came of a copy of one delivery, and end the program."""
    if as_json:
        print_json(answer)
    else:
        click.echo(f"copied: {answer['error'] or answer['status']}")
    status = answer["status"]
    sys.exit(0 if status is not None and status in _SUCCESS else 1)
