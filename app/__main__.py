"""`python -m app serve`: what scripts/serve runs."""

import sys
from typing import NoReturn

import anyio
import rich_click as click
import structlog

from app.logs import configure_logs
from app.service import serve
from app.settings import load_settings
from outbox import __version__
from outbox.domain.errors import OutboxError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="evolution-outbox")
def main() -> None:
    """Evolution Outbox: a persistent webhook relay."""


@main.command("serve")
def serve_command() -> None:
    """Take events in and deliver them, until SIGTERM or Ctrl-C. Settings come from the environment and .env."""
    configure_logs("info", "auto")
    log = structlog.get_logger("service")
    try:
        settings = load_settings()
        configure_logs(settings["OUTBOX_LOG_LEVEL"], settings["OUTBOX_LOG_FORMAT"])
        anyio.run(serve, settings, backend_options={"use_uvloop": True})
    except OutboxError as error:
        _give_up(log, [error])
    except BaseExceptionGroup as group:
        known, unknown = group.split(OutboxError)
        if unknown is not None:
            raise
        _give_up(log, _leaves(known))


def _give_up(log: structlog.typing.FilteringBoundLogger, errors: list[OutboxError]) -> NoReturn:
    """Say what ended the service, without a trace: the messages are made for people."""
    for error in errors:
        log.error("service.failed", reason=str(error))
    sys.exit(1)


def _leaves(group: BaseExceptionGroup[OutboxError] | None) -> list[OutboxError]:
    leaves: list[OutboxError] = []
    for error in group.exceptions if group else ():
        leaves += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return leaves


if __name__ == "__main__":
    main()
