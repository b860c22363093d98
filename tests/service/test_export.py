import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.commands import exporting
from tests.harness import Receiver, Service, running
from tests.service.damage import flip

LOCAL = "loja01"
SECRETS = ("canary-header", "canary-password", "canary-apikey")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A healthy receiver."""
    async with Receiver(lambda _arrival: 200) as made:
        yield made


async def lines_of(service: Service, *arguments: str) -> list[dict[str, Any]]:
    """Return what an export prints, line by line; see that nothing else is printed."""
    status, output, errors = await service.command("export", *arguments)
    assert (status, errors) == (0, "")
    assert not [secret for secret in SECRETS if secret in output]
    return [json.loads(line) for line in output.splitlines()]


async def with_history(service: Service, receiver: Receiver, events: int) -> None:
    """Deliver some events, with secrets wherever they may be."""
    url = receiver.url.replace("://", "://user:canary-password@")
    await service.set_webhook(LOCAL, url, headers={"x-key": "canary-header"})
    for n in range(events):
        await service.accept(data={"n": n, "big": 10**30}, apikey="canary-apikey")
    await service.wait_until_settled()


@pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without it"])
async def test_the_log_as_lines(tmp_path: Path, receiver: Receiver, *, beside: bool) -> None:
    """The lines are those of GET /log, all of them, in order, and from any seq on."""
    async with running(tmp_path) as service:
        await with_history(service, receiver, 3)
        items = (await service.request("GET", "/log")).json()["items"]
        if not beside:
            assert await service.stop() == 0
        assert await lines_of(service) == await lines_of(service, "--json") == items
        assert [line["seq"] for line in await lines_of(service, "--after", "4")] == [5, 6, 7]
        assert (await service.command("export", "--after", "x"))[0] == 2


async def test_more_than_a_page(tmp_path: Path) -> None:
    """Nothing is missing or twice between pages."""
    async with running(tmp_path) as service:
        body = json.dumps([{"event": "call", "instance": LOCAL, "data": 1}] * (2 * exporting.PAGE + 1))
        assert (await service.request("POST", "/events/batch", body)).status == 202
        assert [line["seq"] for line in await lines_of(service)] == list(range(1, 2 * exporting.PAGE + 2))


async def test_bodies_when_asked_for(tmp_path: Path, receiver: Receiver) -> None:
    """As they were received but for secrets; one that is damaged is not shown."""
    async with running(tmp_path) as service:
        await with_history(service, receiver, 2)
        assert not [line for line in await lines_of(service) if "payload" in line]
        found = {line["seq"]: line["payload"] for line in await lines_of(service, "--bodies") if "payload" in line}
        assert found[2]["data"] == {"n": 0, "big": 10**30}
        assert found[2]["apikey"] == "***"
        assert await service.stop() == 0
        flip(service.database, "body", "body", "event = 2", 9)
        found = {line["seq"]: line["payload"] for line in await lines_of(service, "--bodies") if "payload" in line}
        assert found[2] is None
        assert any(found.values())
        flip(service.database, "body", "body", "event = 2", 9)
