import sqlite3
from contextlib import closing
from pathlib import Path

from tests.faults.planted import LARGE_BYTES
from tests.harness import Service


async def unmoved_bytes(service: Service) -> float:
    """Return what the metrics say of the write-ahead log."""
    lines = (await service.request("GET", "/metrics")).body.decode().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("outbox_wal_bytes ")]
    return float(value)


async def warnings(service: Service) -> list[str]:
    """Return what the service warns of; it is ready all the same."""
    ready = await service.request("GET", "/health/ready")
    assert ready.status == 200
    found: list[str] = ready.json()["warnings"]
    return found


async def test_a_reader_that_is_stuck_is_told_of_and_does_no_harm(tmp_path: Path) -> None:
    """While it holds its transaction the write-ahead log grows, with a warning; afterwards it is moved as ever."""
    service = Service(tmp_path)
    service.program = ["-m", "tests.faults.planted", "serve"]  # whose write-ahead log is soon large
    await service.start()
    await service.accept(data="x" * 20_000)
    with closing(sqlite3.connect(f"file:{service.database}?mode=ro", uri=True, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM event").fetchone() == (1,)
        assert await warnings(service) == []
        while not await warnings(service):
            await service.accept(data="x" * 20_000)
        assert await unmoved_bytes(service) >= LARGE_BYTES
        line = await service.wait_for_log(lambda line: line["event"] == "checkpoint.hindered")
        assert (line["level"], line["bytes"] >= LARGE_BYTES) == ("warning", True)
        assert "another program" in (await warnings(service))[0]
        assert reader.execute("SELECT count(*) FROM event").fetchone() == (1,)
    grown = service.database.with_name("outbox.db-wal").stat().st_size
    while await unmoved_bytes(service) > LARGE_BYTES / 2:
        await service.accept(data="x" * 20_000)
    assert await warnings(service) == []
    for _ in range(20):  # it is written from its beginning again
        await service.accept(data="x" * 20_000)
    assert service.database.with_name("outbox.db-wal").stat().st_size < grown + LARGE_BYTES / 2
    assert len([line for line in service.log if line["event"] == "checkpoint.hindered"]) == 1
    assert await service.stop() == 0
    await service.verify()
