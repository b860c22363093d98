import asyncio
import random
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outbox.inspecting import open_inspector
from tests.faults.load import Load, faults_of_delivery
from tests.harness import API_KEY, Arrival, Receiver, Service

BOTH_SIGNALS = pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])

EVENT = b'{"event": "messages.upsert", "instance": "loja01", "data": {}}'


class Gate:
    """The answer of a receiver that lets every POST wait until it is opened."""

    def __init__(self) -> None:
        """Start closed."""
        self._open = asyncio.Event()

    async def __call__(self, _arrival: Arrival) -> int:
        """Wait, then say 200."""
        await self._open.wait()
        return 200

    def open(self) -> None:
        """Let through those that wait and all that come."""
        self._open.set()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A healthy receiver."""
    async with Receiver() as made:
        yield made


def service_for(receiver: Receiver, folder: Path, **settings: str) -> Service:
    """Return a service, not started, whose global webhook is the receiver."""
    return Service(folder, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=receiver.url, **settings)


def names(folder: Path) -> set[str]:
    """Return the names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


async def told_to_stop(service: Service, sent: signal.Signals = signal.SIGTERM) -> None:
    """Send the signal and return once the service has taken note."""
    service.process.send_signal(sent)
    line = await service.wait_for_log(lambda line: line["event"] == "service.stopping")
    assert line["signal"] == sent.name


async def refused_start(service: Service) -> str:
    """Start a service that cannot; return the reason it gave, exit status 1 and no trace of Python's checked."""
    await service.launch()
    line = await service.wait_for_log(lambda line: line["event"] in {"service.started", "service.failed"})
    assert line["event"] == "service.failed"
    assert await service.wait() == 1
    assert not [line for line in service.log if line["event"] == "text"]
    return str(line["reason"])


@BOTH_SIGNALS
async def test_a_signal_stops_the_service_in_order(tmp_path: Path, receiver: Receiver, sent: signal.Signals) -> None:
    """The exit status is 0, even when the signal follows the start at once; the log says stopping and stopped."""
    service = service_for(receiver, tmp_path)
    service.forked = False
    await service.start()
    await told_to_stop(service, sent)
    assert await service.wait() == 0
    said = [line["event"] for line in service.log]
    assert said[-3:] == ["service.stopping", "service.stopped", "end"]
    assert not names(tmp_path) & {"outbox.db-wal", "outbox.db-shm"}, (
        "the write-ahead log is written back on the way out"
    )
    await service.verify()


@BOTH_SIGNALS
async def test_a_post_in_flight_gets_its_grace_and_nothing_new_is_sent(
    tmp_path: Path, receiver: Receiver, sent: signal.Signals
) -> None:
    """After the signal the POST under way may finish and is recorded; the others wait for the next start."""
    receiver.answer = gate = Gate()
    service = Service(tmp_path)
    await service.start()
    await service.set_webhook("loja01", receiver.url, concurrency=1)
    ids = [await service.accept() for _ in range(3)]
    await receiver.wait_for_count(1)
    await told_to_stop(service, sent)
    gate.open()
    assert await service.wait() == 0
    assert [arrival.webhook_id for arrival in receiver.arrivals] == ids[:1]
    await service.verify()
    await service.start()
    stats = await service.wait_until_settled()
    assert stats["deliveries"]["acknowledged"] == 3
    assert [arrival.webhook_id for arrival in receiver.arrivals] == ids
    assert await service.stop() == 0


async def test_more_signals_do_not_cut_the_stop_short(tmp_path: Path, receiver: Receiver) -> None:
    """A POST under way has its grace, and the exit status is 0, however often the service is told to stop."""
    receiver.answer = gate = Gate()
    service = service_for(receiver, tmp_path)
    await service.start()
    await service.accept()
    await receiver.wait_for_count(1)
    await told_to_stop(service)
    for _ in range(20):  # at every moment of the stop
        await asyncio.sleep(0.05)
        service.process.send_signal(signal.SIGTERM)
    gate.open()
    assert await service.wait() == 0
    async with open_inspector(service.database) as inspector:
        assert (await inspector.stats()).deliveries["acknowledged"] == 1
    await service.verify()


async def half_a_request(service: Service, body: bytes, sent: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Post an event of which only the first bytes are sent; return once the service has read these."""
    host, _, port = service.address.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /events HTTP/1.1\r\nhost: x\r\napikey: {API_KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body[:sent])
    await writer.drain()
    assert (await service.request("GET", "/health/live")).status == 200  # answered after what came before it
    return reader, writer


async def test_what_hangs_beyond_the_grace_is_cut_off(tmp_path: Path, receiver: Receiver) -> None:
    """Neither a POST nor a client that hangs holds up the stop for more than 8 s; the POST is made again later."""
    receiver.answer = gate = Gate()
    service = service_for(receiver, tmp_path)
    await service.start()
    event_id = await service.accept()
    await receiver.wait_for_count(1)
    reader, writer = await half_a_request(service, EVENT, 10)
    await told_to_stop(service)
    stopping = time.monotonic()
    assert await service.wait() == 0
    assert 7.5 < time.monotonic() - stopping < 10
    answer = await reader.read()
    writer.close()
    assert b" 202 " not in answer
    gate.open()
    receiver.answer = lambda _arrival: 200
    await service.verify()
    await service.start()
    arrivals = await receiver.wait_for_count(2)
    assert [(arrival.webhook_id, arrival.headers["x-outbox-attempt"]) for arrival in arrivals] == [(event_id, "1")] * 2
    stats = await service.wait_until_settled()
    assert stats["events"] == 1
    assert await service.stop() == 0


async def test_a_request_under_way_is_answered_before_the_stop(tmp_path: Path, receiver: Receiver) -> None:
    """An event of which half was sent before SIGTERM is taken in, gets its 202, and is delivered after the start."""
    service = service_for(receiver, tmp_path)
    await service.start()
    reader, writer = await half_a_request(service, EVENT, 20)
    await told_to_stop(service)
    writer.write(EVENT[20:])
    status = await reader.readline()
    assert status.startswith(b"HTTP/1.1 202")
    writer.close()
    assert await service.wait() == 0
    await service.verify()
    await service.start()
    await receiver.wait_for_count(1)
    await service.wait_until_settled()
    assert await service.stop() == 0


@BOTH_SIGNALS
async def test_a_stop_under_load_loses_no_202(tmp_path: Path, receiver: Receiver, sent: signal.Signals) -> None:
    """Every event that got a 202 while the service was being stopped is there after the next start."""
    load = Load(random.Random(20_260_731))
    service = service_for(receiver, tmp_path)
    await service.start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.produce(service.address, producers=16))
        await receiver.wait_for_count(200)
        await told_to_stop(service, sent)
    assert await service.wait() == 0
    await service.verify()
    await service.start()
    await service.wait_until_settled()
    assert await service.stop() == 0
    assert len(load.ledger.accepted) >= 200
    assert not faults_of_delivery(load.ledger, receiver.arrivals, lambda _instance: True)
    assert all(refusal.startswith("503 ") for refusal in load.ledger.refused)


async def test_a_second_service_on_the_same_file_refuses_to_start(tmp_path: Path, receiver: Receiver) -> None:
    """It exits with 1 and names the process that holds the file, which goes on undisturbed."""
    service = service_for(receiver, tmp_path)
    await service.start()
    reason = await refused_start(service_for(receiver, tmp_path))
    assert f"process {service.process.pid} already works with this database" in reason
    await service.accept()
    await receiver.wait_for_count(1)
    await service.wait_until_settled()
    await service.kill()
    second = service_for(receiver, tmp_path)
    await second.start()  # the kernel lets go of a dead process's lock
    assert await second.stop() == 0
    await second.verify()


async def test_a_port_in_use_stops_the_start(tmp_path: Path) -> None:
    """It exits with 1 and says which address is taken and which variables choose it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        reason = await refused_start(Service(tmp_path, OUTBOX_PORT=str(port)))
    assert reason.startswith(f"cannot listen on 127.0.0.1:{port} (OUTBOX_HOST, OUTBOX_PORT)")
    assert "in use" in reason


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "x" * 70], ids=["name", "address", "long"])
async def test_a_host_that_is_not_ours_stops_the_start(tmp_path: Path, host: str) -> None:
    """It exits with 1 and names the variables, whatever is wrong with the host."""
    reason = await refused_start(Service(tmp_path, OUTBOX_HOST=host))
    assert reason.startswith(f"cannot listen on {host}:0 (OUTBOX_HOST, OUTBOX_PORT)")


@pytest.mark.parametrize("content", [b"plain text, and more of it than a header has" * 10, b""], ids=["text", "empty"])
async def test_a_file_that_is_no_outbox(tmp_path: Path, content: bytes) -> None:
    """A file of something else stops the start with exit status 1 and stays as it is; an empty one is used."""
    (tmp_path / "outbox.db").write_bytes(content)
    service = Service(tmp_path)
    if content:
        assert str(service.database) in await refused_start(service)
        assert service.database.read_bytes() == content
    else:
        await service.start()
        assert await service.stop() == 0
