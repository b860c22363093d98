"""`scripts/outbox`: looks into the outbox and looks after it, beside a running service or without one."""

import rich_click as click

from app.commands.copying import backup, restore
from app.commands.exporting import export
from app.commands.following import log, tail
from app.commands.keeping import rebuild, settings_command, verify
from app.commands.listing import deliveries, events, webhooks
from app.commands.looking import show, stats
from app.commands.pruning import prune
from app.commands.replaying import replay
from outbox import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="evolution-outbox")
def main() -> None:
    """Look into the outbox. Exit status: 0 fine, 1 something is wrong, 2 usage."""


for _command in (
    stats, events, deliveries, show, tail, log, webhooks, settings_command, replay, verify, rebuild, prune, backup,
    restore, export,
):  # fmt: skip
    main.add_command(_command)


if __name__ == "__main__":
    main(prog_name="scripts/outbox")
