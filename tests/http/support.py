"""What the tests of the HTTP face share: waiting with a deadline, requests and receivers written byte by byte."""

import asyncio
import json
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self

from tests.harness import API_KEY, INGEST_TOKEN, ROOT, Reply, Service

VECTORS = ROOT / "tests" / "vectors"
CATALOGUE: list[dict[str, Any]] = json.loads((VECTORS / "catalogue.json").read_text())
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SETTLED = {"acknowledged", "dead"}
NDJSON = "application/x-ndjson"

Shown = dict[str, Any]


def lines(name: str) -> list[bytes]:
    """Return the lines of a file of vectors, as bytes."""
    return (VECTORS / name).read_bytes().splitlines()


def ingest_routes(suffix: str) -> list[tuple[str, dict[str, str]]]:
    """Return every way to post an event: the path, and the headers that let it in."""
    key = {"apikey": API_KEY}
    return [
        ("/events", key),
        (f"/ingest/{INGEST_TOKEN}", {"apikey": ""}),
        (f"/ingest/{INGEST_TOKEN}{suffix}", {"apikey": ""}),
        ("/ingest", key),
        (f"/ingest{suffix}", {"apikey": INGEST_TOKEN}),
    ]


def numbered(count: int, first: int = 0, pad: int = 0) -> list[bytes]:
    """Return so many events, each with its number, and `pad` more bytes each."""
    more = b"x" * pad
    return [b'{"event":"call","instance":"loja01","data":[%d,"%s"]}' % (first + n, more) for n in range(count)]


def array(bodies: list[bytes]) -> bytes:
    """Return a batch as a JSON array."""
    return b"[" + b",".join(bodies) + b"]"


async def post_batch(service: Service, body: bytes, kind: str = "application/json", **headers: str) -> Reply:
    """Post a batch of that content type; in the names of `headers`, _ stands for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await service.request("POST", "/events/batch", body, {"content-type": kind, **named})


def members(body: bytes) -> list[tuple[str, str]]:
    """Return the outermost members of a JSON object as they are written: the name's text and the value's."""
    text = body.decode()
    decoder = json.JSONDecoder()
    found = []
    at = _after(text, 0, "{")
    while text[at] != "}":
        _, end = decoder.raw_decode(text, at)
        start = _after(text, end, ":")
        _, stop = decoder.raw_decode(text, start)
        found.append((text[at:end], text[start:stop]))
        at = _after(text, stop, "")
        if text[at] == ",":
            at = _after(text, at, ",")
    return found


def _after(text: str, at: int, mark: str) -> int:
    """Return the first place behind `mark`, which stands at `at` or after white space, that is no white space."""
    while text[at].isspace():
        at += 1
    assert text.startswith(mark, at)
    at += len(mark)
    while text[at].isspace():
        at += 1
    return at


async def stats(service: Service) -> Shown:
    """Return the numbers, without the one that only time changes."""
    shown: Shown = (await service.request("GET", "/stats")).json()
    for part in [shown, *shown["webhooks"]]:
        part.pop("oldest_pending_s")
    return shown


async def event_when(service: Service, event_id: str, wanted: Callable[[Shown], bool], timeout_s: float = 30) -> Shown:
    """Return what GET /events/{id} shows as soon as that is `wanted`."""
    shown: Shown = {}
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                reply = await service.request("GET", f"/events/{event_id}")
                assert reply.status == 200, reply
                shown = reply.json()
                if wanted(shown):
                    return shown
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not what was waited for: {shown}") from None


async def settled(service: Service, event_id: str, timeout_s: float = 30) -> Shown:
    """Return what GET /events/{id} shows once every delivery has come to its end."""

    def done(shown: Shown) -> bool:
        return all(delivery["state"] in SETTLED for delivery in shown["deliveries"])

    return await event_when(service, event_id, done, timeout_s)


async def attempted(service: Service, event_id: str, count: int = 1) -> Shown:
    """Return what GET /events/{id} shows once so many attempts are recorded."""
    return await event_when(service, event_id, lambda shown: len(shown["attempts"]) >= count)


async def states(service: Service, event_id: str) -> set[str]:
    """Return the states that the deliveries of an event come to."""
    return {delivery["state"] for delivery in (await settled(service, event_id))["deliveries"]}


async def in_chunks(*parts: bytes) -> AsyncIterator[bytes]:
    """Give `parts` as a body that is sent chunked."""
    for part in parts:
        yield part


async def talk(service: Service, data: bytes, *, then_leave: bool = False) -> Reply | None:
    """Send these very bytes on a connection of their own and return the answer, or None if there is none.

    `then_leave` closes the sending side, as a client does that breaks off.
    """
    host, _, port = service.address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        if then_leave:
            writer.write_eof()
        async with asyncio.timeout(30):
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            except (asyncio.IncompleteReadError, ConnectionError):
                return None
            first, *rest = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Reply(int(first.split()[1]), headers, body)
    finally:
        writer.close()


def request_bytes(method: str, path: str, body: bytes = b"", *headers: bytes) -> bytes:
    """Return a request as bytes: nothing is checked or escaped on its way."""
    lines_ = [f"{method} {path} HTTP/1.1".encode("latin-1"), b"Host: outbox", b"Connection: close", *headers]
    return b"\r\n".join([*lines_, f"Content-Length: {len(body)}".encode(), b"", body])


Saying = Callable[[int, asyncio.StreamWriter], Awaitable[None]]


class RawReceiver:
    """A receiver that reads POSTs and answers with whatever bytes `say` writes; `say` gets how many there have been."""

    def __init__(self, say: Saying) -> None:
        """Start nothing yet: use `async with`."""
        self.requests: list[bytes] = []
        self.connections = 0
        self._say = say
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening and drop all connections."""
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self.connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                self.requests.append(head + await reader.readexactly(length))
                await self._say(len(self.requests), writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


def answer_bytes(status: int, body: bytes = b"", *headers: str) -> bytes:
    """Return an answer as bytes, its body complete."""
    head = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body
