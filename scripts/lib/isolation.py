"""How much the troubles of some webhooks delay the others: 200 local webhooks, of which only 50 are well.

Of the others 50 hang until the timeout, 50 refuse the connection, 50 answer slowly. The figure is the 99th percentile
of the time from acceptance to acknowledgement of the 50 that are well, with the others at work and, in the same run and
in alternation, without them.
"""

import asyncio
import os
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
from msgspec import structs

from outbox.domain.addresses import AddressPolicy, parse_networks
from outbox.domain.events import Event, read_event
from outbox.domain.records import AttemptRecorded, EventAccepted, decode
from outbox.domain.webhooks import Address, Credentials, Settings, Webhook
from outbox.engine import Engine, EngineConfig, open_engine
from outbox.store.sqlite import open_reader

EACH = 50
RATE = 1.0
ROUND_S = 6.0
TIMEOUT_MS = 1500
KINDS = ("well", "hangs", "refuses", "slow")

CEILING = 1.5


async def measure_isolation(
    folder: Path, rounds: int, receiver: AbstractAsyncContextManager[int]
) -> tuple[float, float]:
    """Return the 99th percentile, in milliseconds, with the troubled webhooks and without them: medians of rounds."""
    path = folder / "isolation.db"
    spans: list[tuple[bool, int, int]] = []
    async with receiver as port, _engine(path, port) as engine:
        for number in range(2 * rounds):
            troubled = bool(number % 2)
            first = (await engine.inspector.stats()).seq
            await _feed(engine, KINDS if troubled else KINDS[:1])
            spans.append((troubled, first, (await engine.inspector.stats()).seq))
    times = await acknowledged_after_ms(path)
    found: dict[bool, list[float]] = {False: [], True: []}
    for troubled, first, last in spans:
        here = [ms for seq, ms in times.items() if first < seq <= last]
        found[troubled].append(statistics.quantiles(here, n=100)[98])
    return statistics.median(found[True]), statistics.median(found[False])


@asynccontextmanager
async def _engine(path: Path, port: int) -> AsyncIterator[Engine]:
    config = EngineConfig(database=path, addresses=AddressPolicy(parse_networks("127.0.0.0/8")))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: it refuses, and nobody else gets it
        async with open_engine(config) as engine:
            for kind in KINDS:
                home = f"http://127.0.0.1:{closed.getsockname()[1] if kind == 'refuses' else port}/{kind}"
                settings = Settings(url=home, timeout_ms=TIMEOUT_MS)
                for number in range(EACH):
                    await set_webhook(engine, Address("instance", f"{kind}-{number}"), settings)
            yield engine


async def set_webhook(engine: Engine, address: Address, settings: Settings) -> None:
    """Set a webhook without credentials."""

    def given(url: str, userinfo: str, _known: Webhook | None) -> tuple[Settings, Credentials]:
        return structs.replace(settings, url=url), Credentials(userinfo=userinfo)

    await engine.set_webhook(address, settings.url, given)


async def _feed(engine: Engine, kinds: tuple[str, ...]) -> None:
    """Accept RATE events a second for every webhook of the `kinds`, for ROUND_S seconds."""
    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for turn in range(int(RATE * ROUND_S)):
            for place in range(EACH * len(kinds)):
                number, kind = divmod(place, len(kinds))
                due = started + (turn + place / (EACH * len(kinds))) / RATE
                await anyio.sleep(max(due - time.perf_counter(), 0))
                tasks.start_soon(engine.accept, event_for(f"{kinds[kind]}-{number}"))
    # The last ones are acknowledged well before the next round begins.
    await anyio.sleep(0.5)


def event_for(instance: str) -> Event:
    """Return a small event of an instance, unlike any other."""
    body = f'{{"event":"messages.upsert","instance":"{instance}","data":{{"id":"{os.urandom(8).hex()}"}}}}'
    return read_event(body.encode())


async def acknowledged_after_ms(path: Path) -> dict[int, float]:
    """Return how long after its acceptance each event of a webhook that is well was acknowledged, by its seq."""
    reader = await open_reader(path)
    accepted: dict[int, int] = {}
    times: dict[int, float] = {}
    last = 0
    while rows := await reader.log(last, 1000):
        last = rows[-1].seq
        for row in rows:
            record = decode(row.record)
            if isinstance(record, EventAccepted) and record.instance.startswith("well-"):
                accepted[row.seq] = record.at_ms
            elif isinstance(record, AttemptRecorded) and record.event in accepted:
                times[record.event] = record.at_ms + record.took_ms - accepted[record.event]
    await reader.aclose()
    return times


class Moody(asyncio.Protocol):
    """A receiver that answers at once under /well, after half a second under /slow, and never under /hangs."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._buffer += data
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        if not mark or len(body) < int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]):
            return
        self._buffer = b""
        path = head.split(b" ", 2)[1]
        if path == b"/well":
            self._answer()
        elif path == b"/slow":
            asyncio.get_running_loop().call_later(0.5, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")  # type: ignore[attr-defined]
