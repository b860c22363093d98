"""`log` and `tail`: the records of the log, from any point on, and as they are written."""

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import rich_click as click

from app.commands.common import clean, look, moment
from app.filters import read_seq
from app.log_schemas import show_entry
from app.paging import LIMIT_MAX, read_limit
from app.schemas import encode
from outbox.domain.errors import InvalidError
from outbox.inspecting import Entry, Inspector

POLL_S = 0.3
NEWEST = 20

_lines_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line instead.")


@click.command()
@click.option("--after", default="0", help="Begin after the record with this seq.")
@click.option("--limit", help="At most so many: 50, if not given, and 500 at most.")
@_lines_option
def log(after: str, limit: str | None, *, as_json: bool) -> None:
    """Show the records of the log, oldest first."""
    try:
        begin, count = read_seq(after), read_limit(limit)
    except InvalidError as error:
        raise click.UsageError(str(error)) from error
    _print(look(lambda inspector: inspector.log(begin, count)), as_json=as_json)


@click.command()
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=NEWEST, show_default=True, help="So many to begin with."
)
@click.option("-f", "--follow", is_flag=True, help="Go on as records are written, until Ctrl-C.")
@_lines_option
def tail(lines: int, *, follow: bool, as_json: bool) -> None:
    """Show the newest records: events, attempts, changes of settings."""

    async def show(inspector: Inspector) -> None:
        after = max(await inspector.last_seq() - lines, 0)
        while True:
            entries = await inspector.log(after, LIMIT_MAX)
            _print(entries, as_json=as_json)
            if entries:
                after = entries[-1].seq
            if len(entries) == LIMIT_MAX:
                continue
            if not follow:
                return
            await anyio.sleep(POLL_S)

    try:
        look(show)
    except KeyboardInterrupt:
        return  # that is how following ends


def _print(entries: Sequence[Entry], *, as_json: bool) -> None:
    for entry in entries:
        shown = show_entry(entry)
        click.echo(encode(shown).decode() if as_json else _line(shown))


def _line(shown: dict[str, Any]) -> str:
    at = moment(shown["at"]) if "at" in shown else " " * 20
    return clean(f"{shown['seq']:>8}  {at}  {_words(shown)}").replace("\n", " ")


def _words(shown: dict[str, Any]) -> str:
    return _TOLD.get(shown["type"], _any_record)(shown)


def _accepted(shown: dict[str, Any]) -> str:
    return f"event {shown['id']} {shown['kind']} {shown['instance']} to {' '.join(shown['targets']) or 'nobody'}"


def _attempted(shown: dict[str, Any]) -> str:
    answer = " ".join(str(part) for part in (shown["status"], shown["error"], shown["detail"]) if part)
    outcome = ", ".join(filter(None, (shown["effect"], shown["reason"])))
    following = f"; {shown['promoted']} is next" if shown["promoted"] else ""
    return f"attempt {shown['attempt']} {shown['delivery']} {answer} in {shown['ms']} ms: {outcome}{following}"


def _suspended(shown: dict[str, Any]) -> str:
    why = f"410 to {shown['event']}" if shown["event"] else "its credentials are damaged"
    return f"suspended {shown['webhook']}: {why}"


def _breaker(shown: dict[str, Any]) -> str:
    return f"breaker {shown['webhook']} {shown['breaker']} {shown['reason']}".rstrip()


def _moved(shown: dict[str, Any]) -> str:
    changes = (f"{change['count']} {change['from'] or 'new'} to {change['to']}" for change in shown["changes"])
    what = ", ".join(filter(None, (*changes, shown["reason"])))
    return f"{shown['move']} {shown['count']} deliveries to {shown['webhook']}: {what}"


def _converted(shown: dict[str, Any]) -> str:
    return f"order {shown['webhook']} {shown['conversion']['phase'] if shown['conversion'] else 'converted'}"


def _any_record(shown: dict[str, Any]) -> str:
    rest = {name: value for name, value in shown.items() if name not in {"seq", "type", "digest", "at"}}
    return f"{shown['type']} {' '.join(f'{name}={_fact(value)}' for name, value in rest.items() if value)}"


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else encode(value).decode()


_TOLD: dict[str, Callable[[dict[str, Any]], str]] = {
    "EventAccepted": _accepted,
    "AttemptRecorded": _attempted,
    "WebhookSuspended": _suspended,
    "BreakerMoved": _breaker,
    "DeliveriesMoved": _moved,
    "OrderConverted": _converted,
}
