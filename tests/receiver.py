"""A receiver of webhooks for tests: a real HTTP server that keeps what it gets and answers as told."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import web
from msgspec import Struct

NO_ANSWER = 0


class Arrival(Struct):
    """One POST that a receiver got: its path with query, headers (lower case names), body, and when (epoch, s)."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = 0.0

    @property
    def webhook_id(self) -> str:
        """The id by which receivers drop duplicates."""
        return self.headers["webhook-id"]

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)


Answering = Callable[[Arrival], Awaitable[web.StreamResponse | int] | web.StreamResponse | int]


class Receiver:
    """A real HTTP server on loopback that keeps what it gets; `answer` decides what it says (200 unless told).

    The answer NO_ANSWER closes the connection instead.
    """

    def __init__(self, answer: Answering = lambda _arrival: 200) -> None:
        """Start nothing yet: use `async with`."""
        self.arrivals: list[Arrival] = []
        self.answer = answer
        self.port = 0
        self._arrived = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        """Listen on the port it had before, or on a free one."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("POST", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening; what it got is kept."""
        assert self._runner is not None
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        arrival = Arrival(request.raw_path, headers, await request.read(), time.time())
        self.arrivals.append(arrival)
        async with self._arrived:
            self._arrived.notify_all()
        answer = self.answer(arrival)
        if not isinstance(answer, int | web.StreamResponse):
            answer = await answer
        if answer == NO_ANSWER and request.transport is not None:
            request.transport.abort()
        return answer if isinstance(answer, web.StreamResponse) else web.Response(status=answer or 500)

    async def wait_for(self, enough: Callable[[list[Arrival]], bool], timeout_s: float = 30) -> list[Arrival]:
        """Return what has arrived once that is `enough`."""
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: enough(self.arrivals))
        return self.arrivals

    async def wait_for_count(self, count: int, timeout_s: float = 30) -> list[Arrival]:
        """Return what has arrived once that is at least `count` POSTs."""
        return await self.wait_for(lambda arrivals: len(arrivals) >= count, timeout_s)
