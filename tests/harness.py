"""What tests of the running service share: the real process, a client, and (from `receiver`) real receivers."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from msgspec import Struct, to_builtins

from outbox.inspecting import open_inspector
from tests.forking import Process, fork
from tests.receiver import NO_ANSWER, Answering, Arrival, Receiver

__all__ = [
    "API_KEY",
    "INGEST_TOKEN",
    "NO_ANSWER",
    "ROOT",
    "START_TIMEOUT_S",
    "Answering",
    "Arrival",
    "Receiver",
    "Reply",
    "Service",
    "kill_leftovers",
    "running",
]

ROOT = Path(__file__).resolve().parent.parent
API_KEY = "test-api-key"
INGEST_TOKEN = "test-ingest-token"
START_TIMEOUT_S = 30
_OURS = ("OUTBOX_", "WEBHOOK_", "AUTHENTICATION_", "FAULT_")


class Reply(Struct):
    """What the service answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)


class Service:
    """The real service as a process of its own, on a free port, with a database in `folder`.

    The process is forked off one that has imported the service, unless `forked` is set to False: then it is started as
    users start it, which takes a second.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        """Prepare it with quick retries and loopback receivers allowed; `settings` are further variables."""
        self.folder = folder
        self.settings = {
            "OUTBOX_DATABASE_URL": f"sqlite:///{folder / 'outbox.db'}",
            "OUTBOX_PORT": "0",
            "OUTBOX_API_KEY": API_KEY,
            "OUTBOX_INGEST_TOKEN": INGEST_TOKEN,
            "OUTBOX_ALLOWED_NETWORKS": "127.0.0.0/8",
            "OUTBOX_LOG_FORMAT": "json",
            "WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "0.05",
            "WEBHOOK_RETRY_MAX_DELAY_SECONDS": "0.2",
            "WEBHOOK_RETRY_MAX_ATTEMPTS": "1000",
            **settings,
        }
        self.program = ["-m", "app", "serve"]
        self.root = ROOT
        self.forked = True
        self.address = ""
        self.log: list[dict[str, Any]] = []
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ended = False
        self._logged = asyncio.Condition()
        self._http: aiohttp.ClientSession | None = None

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "outbox.db"

    @property
    def process(self) -> Process:
        """The process that is running or ran last."""
        assert self._process is not None
        return self._process

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the service and of `scripts/outbox` beside it: nothing of ours but the settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "WEBHOOK_"))}
        return {**kept, "PYTHONPATH": str(self.root), **self.settings}

    async def start(self) -> None:
        """Start it and return once it listens."""
        await self.launch()
        started = await self.wait_for_log(lambda line: line["event"] in {"service.started", "service.failed"})
        assert started["event"] == "service.started", started
        self.address = started["address"]

    async def launch(self) -> None:
        """Start it without waiting for anything."""
        self.log.clear()
        self._ended = False
        _launched.append(self)
        self._process = await self.run(self.program)
        self._reading = asyncio.create_task(self._read_log())

    async def run(self, arguments: list[str], **more: str) -> Process:
        """Run `python` with such arguments in its environment and `more`."""
        environment = self.environment | more
        # What is neither the service's nor the tests' own may be for Python, or for what is loaded before Python.
        plain = self.root == ROOT and all(name.startswith(_OURS) for name in self.settings)
        if self.forked and plain:
            return await fork(arguments, self.folder, environment)
        return await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=self.folder, env=environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )  # fmt: skip

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            try:
                line = json.loads(raw)
            except ValueError:
                line = {"event": "text", "text": raw.decode(errors="replace").rstrip()}
            await self._note(line)
        self._ended = True
        await self._note({"event": "end"})

    async def _note(self, line: dict[str, Any]) -> None:
        self.log.append(line)
        async with self._logged:
            self._logged.notify_all()

    async def wait_for_log(
        self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = START_TIMEOUT_S
    ) -> dict[str, Any]:
        """Return the first line of its log that is `wanted`, be it there already or still to come."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.log if wanted(line)]

        async with asyncio.timeout(timeout_s), self._logged:
            await self._logged.wait_for(lambda: bool(found()) or self._ended)
        assert found(), f"the service ended without the wanted line: {self.log}"
        return found()[0]

    async def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self.process.kill()
        await self._wait()

    async def stop(self, timeout_s: float = 20) -> int:
        """End it with SIGTERM and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.wait(timeout_s)

    async def wait(self, timeout_s: float = 20) -> int:
        """Wait until it has ended, and return its exit status."""
        async with asyncio.timeout(timeout_s):
            return await self._wait()

    async def _wait(self) -> int:
        status = await self.process.wait()
        if self._reading is not None:
            await self._reading
        if self._http is not None:
            await self._http.close()
            self._http = None
        return status

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | str | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Ask it something with the API key (`headers` may replace it); a mapping is sent as JSON."""
        if self._http is None:
            self._http = aiohttp.ClientSession(auto_decompress=False)
        data = json.dumps(body) if isinstance(body, Mapping) else body
        sent = {"apikey": API_KEY, "content-type": "application/json", **(headers or {})}
        async with self._http.request(method, self.address + path, data=data, headers=sent) as answer:
            named = {name.lower(): value for name, value in answer.headers.items()}
            return Reply(answer.status, named, await answer.read())

    async def accept(self, event: str = "messages.upsert", instance: str = "loja01", **members: Any) -> str:
        """Post an event and return its id."""
        body = {"event": event, "instance": instance, "data": {}, **members}
        reply = await self.request("POST", "/events", body)
        assert reply.status == 202, reply
        return str(reply.json()["id"])

    async def set_webhook(self, instance: str, url: str, **settings: Any) -> None:
        """Set the local webhook of an instance over our own API."""
        reply = await self.request("PUT", f"/webhooks/instances/{instance}", {"url": url, **settings})
        assert reply.status in {200, 201}, reply

    async def wait_for_stats(self, wanted: Callable[[Any], bool], timeout_s: float = 30) -> Any:
        """Ask for its numbers until they are `wanted`, and return them."""
        stats = None
        try:
            async with asyncio.timeout(timeout_s):
                while not wanted(stats := (await self.request("GET", "/stats")).json()):  # noqa: ASYNC110 - it is a process
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            msg = f"the numbers never came to what was wanted: {stats}"
            raise AssertionError(msg) from error
        return stats

    async def wait_until_settled(self, timeout_s: float = 30) -> Any:
        """Wait until every delivery is acknowledged or dead, and return the numbers."""
        return await self.wait_for_stats(
            lambda stats: not sum(stats["deliveries"][state] for state in ("pending", "waiting", "held")), timeout_s
        )

    async def command(self, *arguments: str, **more: str) -> tuple[int, str, str]:
        """Run `scripts/outbox` with `arguments` in its environment and `more`; return exit status, output, errors."""
        process = await self.run(["-m", "app.cli", *arguments], **{"COLUMNS": "200", **more})
        assert process.stdout is not None
        assert process.stderr is not None
        output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
        return await process.wait(), output.decode(), errors.decode()

    async def verify(self) -> dict[str, Any]:
        """Check everything it stored, as `scripts/outbox verify` does; fail the test with the problems found.

        In this process, since starting another one takes longer than nearly every test has to check.
        """
        async with open_inspector(self.database) as inspector:
            report = await inspector.verify(lambda _done, _all: None)
        assert not report.problems, report.problems
        return dict(to_builtins(report))


_launched: list[Service] = []


async def kill_leftovers() -> None:
    """Kill what a failed test left running, so that the next one has the machine and its warnings to itself."""
    while _launched:
        service = _launched.pop()
        if service.process.returncode is None:
            await service.kill()


@asynccontextmanager
async def running(folder: Path, **settings: str) -> AsyncIterator[Service]:
    """Run a service for a test; afterwards it is stopped in order, and everything it stored is verified."""
    service = Service(folder, **settings)
    await service.start()
    try:
        yield service
    finally:
        if service.process.returncode is None:
            await service.stop()
        await service.verify()
