"""Three figures, each a ratio to a yardstick measured in the same run: alternating rounds, the median counts.

| figure | ours | yardstick |
| --- | --- | --- |
| ingest | `POST /events`, durable, 64 connections, 1 KB | a Litestar `@post` that decodes the same, answers a dict |
| batch | 500 events a commit through the journal | `executemany` of the same bodies, 500 a commit |
| delivery | a backlog delivered, with recorded outcomes | a bare aiohttp loop: same POSTs, same concurrency |
"""

import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import aiohttp
import anyio
import msgspec
import rich_click as click
import uvicorn
from litestar import Litestar, post

from app.logs import configure_logs
from app.service import spare_the_collector
from outbox.config import EngineConfig
from outbox.domain.addresses import AddressPolicy, parse_networks
from outbox.domain.events import Event, read_event
from outbox.domain.routing import Webhooks
from outbox.domain.webhooks import Address, Credentials, Settings
from outbox.engine import open_engine
from outbox.journal.accepting import Accept, AcceptBatch
from outbox.journal.setting import SetWebhook
from outbox.journal.writer import Journal
from outbox.store.sqlite import open_store
from scripts.lib import isolation, masses

CONNECTIONS = 64
BODY_BYTES = 1024
BATCH = 500
CONCURRENCY = 32
KEY = "bench-api-key"
HEADERS = {
    "content-type": "application/json",
    "accept": "*/*",
    "accept-encoding": "identity",
    "user-agent": "evolution-outbox/bench",
    "webhook-id": "evt_019a48f3c5a67b1e8d2f001122334455",
    "webhook-timestamp": "1762161342",
    "x-outbox-attempt": "1",
    "x-outbox-hops": "1",
}
FLOORS = {"ingest": 0.8, "batch": 0.4, "delivery": 0.6}
HERE = Path(__file__).resolve()


def make_body(number: int) -> bytes:
    """Return an envelope as a server sends it, BODY_BYTES long, different for every number."""
    data = {"key": {"remoteJid": "5511988887777@s.whatsapp.net", "fromMe": False, "id": f"3EB0{number:012X}"}}
    envelope = {"event": "messages.upsert", "instance": "loja01", "data": {**data, "message": {"conversation": ""}}}
    rest = {"date_time": "2025-11-03T09:15:42.118Z", "sender": "5511900000001@s.whatsapp.net", "apikey": None}
    short = json.dumps(envelope | rest, separators=(",", ":"))
    return short.replace('"conversation":""', f'"conversation":"{"x" * (BODY_BYTES - len(short))}"').encode()


class _Client(asyncio.Protocol):
    """One keep-alive connection that sends the next request as soon as the last one is answered."""

    def __init__(self, requests: Callable[[], bytes | None], expected: bytes, done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._expected = expected
        self._done = done
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        if not mark or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return
        if not head.startswith(self._expected):
            self._done.set_exception(RuntimeError(self._buffer.decode(errors="replace")))
            return
        self._buffer = b""
        self._next()

    def _next(self) -> None:
        request = self._requests()
        if request is not None:
            self._transport.write(request)
        elif not self._done.done():
            self._transport.close()
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))


async def post_all(port: int, path: str, status: bytes, bodies: list[bytes]) -> float:
    """Return the requests a second of posting all `bodies` over CONNECTIONS connections."""
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\napikey: {KEY}\r\ncontent-type: application/json\r\n"
    requests = iter([f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies])
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    waits = []
    for _ in range(CONNECTIONS):
        done = loop.create_future()
        waits.append(done)
        client = _Client(lambda: next(requests, None), b"HTTP/1.1 " + status, done)
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*waits)
    return len(bodies) / (time.perf_counter() - started)


@contextlib.asynccontextmanager
async def child(*arguments: str, **variables: str) -> AsyncIterator[int]:
    """Run a process that prints the port it listens on, and end it afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, env=os.environ | variables, stderr=subprocess.PIPE, limit=1 << 20
    )
    output = cast("asyncio.StreamReader", process.stderr)
    try:
        port = 0
        while not port:
            line = json.loads(await output.readline())
            port = int(str(line.get("address", "")).rpartition(":")[2] or 0)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def measure_ingest(folder: Path, rounds: int, count: int) -> tuple[list[float], list[float]]:
    """Return the rates of durable ingest and of the yardstick, in requests a second."""
    settings = {
        "OUTBOX_DATABASE_URL": f"sqlite:///{folder / 'ingest.db'}",
        "OUTBOX_PORT": "0",
        "OUTBOX_API_KEY": KEY,
        "OUTBOX_LOG_FORMAT": "json",
    }
    ours, yardstick = [], []
    async with child("-m", "app", "serve", **settings) as port, child(str(HERE), "yardstick") as other:
        for number in range(rounds):
            bodies = [make_body(number * count + index) for index in range(count)]
            yardstick.append(await post_all(other, "/events", b"201", bodies))
            ours.append(await post_all(port, "/events", b"202", bodies))
    return ours, yardstick


async def measure_batch(folder: Path, rounds: int, commits: int) -> tuple[list[float], list[float]]:
    """Return the rates of the journal and of bare `executemany`, in events a second."""
    ours, yardstick = [], []
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    bare.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE body (body BLOB NOT NULL)")
    async with _journal(folder / "batch.db") as journal:
        for number in range(rounds):
            batches = [[make_body((number * commits + c) * BATCH + i) for i in range(BATCH)] for c in range(commits)]
            started = time.perf_counter()
            for batch in batches:
                bare.execute("BEGIN IMMEDIATE")
                bare.executemany("INSERT INTO body VALUES (?)", [(body,) for body in batch])
                bare.execute("COMMIT")
            yardstick.append(commits * BATCH / (time.perf_counter() - started))
            events = [[read_event(body) for body in batch] for batch in batches]
            started = time.perf_counter()
            await _one_by_one(journal, events)
            ours.append(commits * BATCH / (time.perf_counter() - started))
    bare.close()
    return ours, yardstick


async def _one_by_one(journal: Journal, batches: list[list[Event]]) -> None:
    """Commit each batch by itself, the next one coming while the last one is being committed."""
    waiting: asyncio.Future[tuple[int, list[bytes]]] | None = None
    for events in batches:
        answer = journal.submit(AcceptBatch(events, time.time_ns() // 1_000_000))
        # The journal takes all that is there: let it take this batch before the next one comes.
        await (waiting or asyncio.sleep(0))
        waiting = answer
    if waiting is not None:
        await waiting


@contextlib.asynccontextmanager
async def _journal(path: Path, url: str = "http://127.0.0.1:9/") -> AsyncIterator[Journal]:
    """Open a journal with one global webhook and no relay."""
    store = await open_store(path)
    journal = Journal(store, Webhooks(), 1 << 30)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.run)
        tasks.start_soon(journal.run)
        settings = Settings(url=url, concurrency=CONCURRENCY)
        await journal.submit(SetWebhook(Address("global", "", ""), "api", 0, lambda _known: (settings, Credentials())))
        yield journal
        await journal.drain()
        tasks.cancel_scope.cancel()
    await store.aclose()


async def measure_delivery(folder: Path, rounds: int, count: int) -> tuple[list[float], list[float]]:
    """Return the rates of delivering a backlog and of a bare POST loop, in POSTs a second."""
    ours, yardstick = [], []
    bodies = [make_body(index) for index in range(count)]
    async with child(str(HERE), "receiver") as port:
        url = f"http://127.0.0.1:{port}/"
        for number in range(rounds):
            path = folder / f"delivery-{number}.db"
            async with _journal(path, url) as journal:
                await asyncio.gather(
                    *[journal.submit(Accept(read_event(body), time.time_ns() // 1_000_000)) for body in bodies]
                )
            yardstick.append(count / await _timed(_bare_posts(url, bodies)))
            ours.append(count / await _timed(_deliver(path, count)))
    return ours, yardstick


async def _timed(work: Awaitable[None]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


async def _bare_posts(url: str, bodies: list[bytes]) -> None:
    waiting = iter(bodies)

    async def work(session: aiohttp.ClientSession) -> None:
        for body in waiting:
            async with session.post(url, data=body, headers=HEADERS) as answer:
                await answer.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*[work(session) for _ in range(CONCURRENCY)])


async def _deliver(path: Path, count: int) -> None:
    config = EngineConfig(database=path, addresses=AddressPolicy(parse_networks("127.0.0.0/8")))
    async with open_engine(config) as engine:
        while sum(engine.vitals.attempts.values()) < count:  # noqa: ASYNC110 - counted once they are on disk
            await anyio.sleep(0.01)


class _Receiver(asyncio.Protocol):
    """Answers 200 to every request, as fast as Python can."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        if mark and len(body) >= int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            self._buffer = b""
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


class _Envelope(msgspec.Struct):
    event: str
    instance: str
    data: dict[str, object]
    date_time: str
    sender: str
    apikey: str | None


@post("/events")
async def _yardstick(data: _Envelope) -> dict[str, object]:
    return {"id": data.event, "seq": 1, "deliveries": 0}


def _announce(listener: socket.socket) -> None:
    print(json.dumps({"address": f"http://127.0.0.1:{listener.getsockname()[1]}"}), file=sys.stderr, flush=True)


async def _serve_receiver(protocol: type[asyncio.Protocol]) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    server = await asyncio.get_running_loop().create_server(protocol, sock=listener)
    _announce(listener)
    await server.serve_forever()


async def _serve_yardstick() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    _announce(listener)
    app = Litestar([_yardstick], openapi_config=None, logging_config=None)
    config = uvicorn.Config(app, http="httptools", loop="none", lifespan="off", log_config=None, access_log=False)
    await uvicorn.Server(config).serve(sockets=[listener])


async def _measure(*, quick: bool, only: str) -> dict[str, tuple[list[float], list[float]]]:
    rounds, scale = (3, 1) if quick else (7, 4)
    figures: dict[str, tuple[list[float], list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if only in {"", "ingest"}:
            figures["ingest"] = await measure_ingest(folder, rounds, 10_000 * scale)
        if only in {"", "batch"}:
            figures["batch"] = await measure_batch(folder, rounds, 10 * scale)
        if only in {"", "delivery"}:
            figures["delivery"] = await measure_delivery(folder, rounds, 5_000 * scale)
    return figures


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Three short rounds of each, about a minute in all.")
@click.option("--only", type=click.Choice(["", "ingest", "batch", "delivery"]), default="", help="One figure alone.")
@click.pass_context
def main(context: click.Context, *, quick: bool, only: str) -> None:
    """Measure ingest, batch and delivery against yardsticks; exit 1 when a ratio is below its floor."""
    if context.invoked_subcommand is not None:
        return
    configure_logs("warning", "console")
    spare_the_collector()
    figures = anyio.run(lambda: _measure(quick=quick, only=only), backend_options={"use_uvloop": True})
    low = False
    for name, (ours, yardstick) in figures.items():
        ratio = statistics.median(ours) / statistics.median(yardstick)
        low = low or ratio < FLOORS[name]
        click.echo(
            f"{name:9} {statistics.median(ours):8.0f}/s  yardstick {statistics.median(yardstick):8.0f}/s  "
            f"ratio {ratio:.2f}  floor {FLOORS[name]:.2f}"
        )
    sys.exit(1 if low else 0)


@main.command(hidden=True)
def receiver() -> None:
    """Serve as the receiver of the delivery figure."""
    anyio.run(_serve_receiver, _Receiver, backend_options={"use_uvloop": True})


@main.command("isolation")
def measure_isolation() -> None:
    """Measure how much the troubles of 150 webhooks delay 50 others; exit 1 when it is more than they may."""
    configure_logs("error", "console")
    spare_the_collector()
    with tempfile.TemporaryDirectory() as name:
        measure = isolation.measure_isolation(Path(name), 3, child(str(HERE), "moody"))
        troubled, alone = anyio.run(lambda: measure, backend_options={"use_uvloop": True})
    ratio = troubled / alone
    click.echo(
        f"isolation  99th percentile {troubled:.0f} ms  alone {alone:.0f} ms  ratio {ratio:.2f}  "
        f"ceiling {isolation.CEILING}"
    )
    sys.exit(1 if ratio > isolation.CEILING else 0)


@main.command("masses")
@click.option("--backlog", type=click.IntRange(1000), default=1_000_000, show_default=True, help="Pending deliveries.")
@click.option("--order", is_flag=True, help="Change the order of all of them too, before they are deleted.")
def measure_masses(backlog: int, *, order: bool) -> None:
    """Measure how long others wait at most while a webhook with a large backlog is changed or deleted."""
    configure_logs("error", "console")
    spare_the_collector()
    with tempfile.TemporaryDirectory() as name:
        measure = masses.measure_masses(Path(name), backlog, child(str(HERE), "moody"), ordered=order)
        for figure in anyio.run(lambda: measure, backend_options={"use_uvloop": True}):
            click.echo(
                f"{figure.deed:9} slowest acceptance {figure.accept_ms:4.0f} ms  "
                f"acknowledgement {figure.acknowledge_ms:4.0f} ms  chores {figure.took_s:.1f} s"
            )


@main.command(hidden=True)
def moody() -> None:
    """Serve as the receivers of the isolation figure."""
    anyio.run(_serve_receiver, isolation.Moody, backend_options={"use_uvloop": True})


@main.command(hidden=True)
def yardstick() -> None:
    """Serve as the yardstick of the ingest figure."""
    anyio.run(_serve_yardstick, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main(prog_name="scripts/bench")
