"""`export`: the whole log as lines of JSON, for programs."""

from typing import Any

import rich_click as click

from app.commands.common import look, progress_bar
from app.filters import read_seq
from app.log_schemas import show_entry
from app.schemas import encode, show_payload
from outbox.domain.errors import InvalidError
from outbox.domain.records import EventAccepted
from outbox.inspecting import Entry, Inspector

PAGE = 500


@click.command()
@click.option("--after", default="0", help="Begin after the record with this seq.")
@click.option("--bodies", is_flag=True, help="With the body of each event, as `payload`.")
@click.option("--json", "_as_json", is_flag=True, help="It is always JSON: one object per line.")
def export(after: str, *, bodies: bool, _as_json: bool) -> None:
    """Print every record of the log as a line of JSON, oldest first, up to what is the last one now.

    Lines are as in GET /log. Secrets are masked. What was pruned is not there.
    """
    try:
        begin = read_seq(after)
    except InvalidError as error:
        raise click.UsageError(str(error)) from error

    async def write(inspector: Inspector) -> None:
        place, end = begin, await inspector.last_seq()
        with progress_bar() as show:
            while place < end and (entries := await inspector.log(place, PAGE)):
                for entry in entries:
                    if entry.seq <= end:
                        click.echo(encode(await _line(inspector, entry, bodies=bodies)))
                place = entries[-1].seq
                show("export", min(place, end), end)

    look(write)


async def _line(inspector: Inspector, entry: Entry, *, bodies: bool) -> dict[str, Any]:
    shown = show_entry(entry)
    if bodies and isinstance(entry.record, EventAccepted):
        # One at a time: there may be hundreds of large ones.
        shown["payload"] = show_payload(entry.record, await inspector.body(entry.seq))
    return shown
