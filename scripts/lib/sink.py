"""A receiver to try webhooks with: prints one line per POST, and fails, waits or hangs when told to."""

import itertools
import json
import signal
import sys
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import anyio
import rich_click as click
from aiohttp import web

HANG = "hang"  # printed instead of a status
SHUTDOWN_S = 0.5  # how long a stopping sink waits for the requests it holds
MAX_BODY_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the sink answers, and when."""

    fail: int | None
    fail_first: int | None
    delay_s: float
    hang: bool
    retry_after_s: int | None

    def status(self, request_number: int) -> int:
        """Choose the answer to the nth request (from 1): the failure, or 200."""
        if self.fail is None or (self.fail_first is not None and request_number > self.fail_first):
            return 200
        return self.fail


@dataclass(frozen=True, slots=True)
class Sink:
    """Answers every POST by its behaviour and prints it as it arrives."""

    behaviour: Behaviour
    as_json: bool
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    async def receive(self, request: web.Request) -> web.Response:
        """Print one POST and answer it."""
        body = await request.read()
        status = self.behaviour.status(next(self.numbers))
        shown = HANG if self.behaviour.hang else status
        say(json_line(request, body, shown) if self.as_json else text_line(request, body, shown))
        if self.behaviour.hang:
            await anyio.sleep_forever()
        await anyio.sleep(self.behaviour.delay_s)
        headers = {}
        if self.behaviour.retry_after_s is not None and status != 200:  # noqa: PLR2004 - the one good status here
            headers["retry-after"] = str(self.behaviour.retry_after_s)
        return web.Response(status=status, headers=headers)


def say(line: str) -> None:
    """Print a line at once, so that whoever reads along through a pipe sees it."""
    print(line, flush=True)


def json_line(request: web.Request, body: bytes, status: int | str) -> str:
    """Show a request to a program."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    text = body.decode(errors="replace")
    return json.dumps({"path": request.raw_path, "headers": headers, "body": text, "status": status})


def text_line(request: web.Request, body: bytes, status: int | str) -> str:
    """Show a request to a person."""
    envelope = members(body)
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="milliseconds")
    return "  ".join(
        [
            now,
            request.raw_path,
            f"event={printable(envelope.get('event'))}",
            f"instance={printable(envelope.get('instance'))}",
            f"webhook-id={request.headers.get('webhook-id', '-')}",
            f"attempt={request.headers.get('x-outbox-attempt', '-')}",
            f"-> {status}",
        ]
    )


def members(body: bytes) -> dict[str, Any]:
    """Read the members of a JSON object; anything else has none."""
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return envelope if isinstance(envelope, dict) else {}


def printable(value: object) -> str:
    """Keep a sender from moving the terminal's cursor or breaking the line."""
    if value is None:
        return "-"
    return "".join(char if char.isprintable() else "�" for char in str(value))


async def run(sink: Sink, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/{path:.*}", sink.receive)
    # handler_cancellation: a request whose sender gave up is not held on to.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            await web.TCPSite(runner, host, port).start()
            say(f"listening on {address(*runner.addresses[0][:2])}")
            async for _ in signals:
                return
    finally:
        await runner.cleanup()


def address(host: str, port: int) -> str:
    """Write the address as a webhook's URL begins."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@click.command(help=__doc__)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=9000, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per request: path, headers, body, status.")
@click.option("--fail", type=click.IntRange(200, 599), metavar="STATUS", help="Answer this status instead of 200.")
@click.option("--fail-first", type=click.IntRange(1), metavar="N", help="With --fail: only the first N requests.")
@click.option("--delay", "delay_s", default=0.0, type=click.FloatRange(0), metavar="SECONDS", help="Answer this late.")
@click.option("--hang", is_flag=True, help="Take requests and never answer.")
@click.option(
    "--retry-after", "retry_after_s", type=click.IntRange(0), metavar="SECONDS", help="Say so in failed answers."
)
def main(  # noqa: PLR0913 - one argument per option
    *,
    host: str,
    port: int,
    as_json: bool,
    fail: int | None,
    fail_first: int | None,
    delay_s: float,
    hang: bool,
    retry_after_s: int | None,
) -> None:
    """Start the sink with what the command line says."""
    if fail is None and (fail_first is not None or retry_after_s is not None):
        raise click.UsageError("--fail-first and --retry-after say more about --fail STATUS, which is missing")
    sink = Sink(Behaviour(fail, fail_first, delay_s, hang, retry_after_s), as_json)
    try:
        anyio.run(run, sink, host, port)
    except OSError as error:
        sys.exit(f"sink: cannot listen on {host} port {port}: {error.strerror or error}")


if __name__ == "__main__":
    main(prog_name="scripts/sink")
