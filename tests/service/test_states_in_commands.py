import json
from pathlib import Path
from typing import Any

from tests.harness import Receiver, Service, running


async def line_of(service: Service, command: str, webhook: str) -> list[str]:
    """Return the words of the line that a command's table has for a webhook."""
    status, output, errors = await service.command(command)
    assert (status, errors) == (0, "")
    (line,) = [line for line in output.splitlines() if line.startswith(f"{webhook} ")]
    return line.split()


async def with_troubles(service: Service, receiver: Receiver) -> None:
    """Leave a webhook that is well and orders by chat, one that a 410 suspended, one that is off, one that is down."""
    receiver.answer = lambda arrival: 410 if arrival.path == "/gone" else 200
    for instance in ("well", "gone", "off"):
        await service.set_webhook(
            instance, f"{receiver.url}/{instance}", order="chat" if instance == "well" else "none"
        )
    await service.set_webhook("off", f"{receiver.url}/off", enabled=False)
    await service.set_webhook("down", "http://127.0.0.1:9/")
    for instance in ("well", "gone", "off", "down"):
        await service.accept(instance=instance)

    def troubled(stats: Any) -> bool:
        found = {entry["instance"]: (entry["state"], entry["breaker"]) for entry in stats["webhooks"]}
        return found["gone"] == ("suspended", "closed") and found["down"] == ("enabled", "open")

    await service.wait_for_stats(troubled)


async def test_tables_say_how_webhooks_are(tmp_path: Path) -> None:
    """`webhooks` and `stats` have a column for it: enabled, disabled, suspended, or the breaker that is open."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await with_troubles(service, receiver)
        for command in ("webhooks", "stats"):
            said = {f"wh_{number}": await line_of(service, command, f"wh_{number}") for number in (1, 2, 3, 5)}
            assert said["wh_1"][2] == "enabled"
            assert said["wh_2"][2] == "suspended"
            assert said["wh_3"][2] == "disabled"
            assert said["wh_5"][2:4] == ["breaker", "open"]
        assert (await line_of(service, "webhooks", "wh_1"))[3] == "chat"
        _, output, _ = await service.command("webhooks", "--json")
        shown = json.loads(output)["items"]
        assert shown == (await service.request("GET", "/webhooks")).json()["items"]
        assert [item["breaker"] for item in shown] == ["closed", "closed", "closed", "open"]


async def test_log_tells_of_webhooks(tmp_path: Path) -> None:
    """`log` has a line of plain words for suspensions, breakers, conversions and moves; with --json an object."""
    async with Receiver() as receiver, running(tmp_path, OUTBOX_MAX_PENDING_AGE="1s") as service:
        await with_troubles(service, receiver)
        await service.set_webhook("well", f"{receiver.url}/well", order="instance")
        await service.wait_for_stats(lambda stats: stats["deliveries"]["dead"] == 1)
        _, output, _ = await service.command("log", "--limit", "500")
        _, lines, _ = await service.command("log", "--limit", "500", "--json")
    records = [json.loads(line) for line in lines.splitlines()]
    gone = next(record for record in records if record["type"] == "WebhookSuspended")
    said = [line.split(maxsplit=3)[3] for line in output.splitlines()]
    assert f"suspended wh_2: 410 to {gone['event']}" in said
    assert "breaker wh_5 open connection_refused" in said
    assert "order wh_1 converted" in said
    assert "expire 1 deliveries to wh_5: 1 pending to dead, expired" in said
    assert [record["type"] for record in records if record["type"] in {"OrderConverted", "DeliveriesMoved"}]
