import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli import main
from tests.harness import Receiver, Service, running
from tests.http.support import event_when

BESIDE = pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without it"])


async def with_dead(service: Service, receiver: Receiver, count: int = 3) -> list[str]:
    """Let so many deliveries die, and return their ids; from then on the receiver is well."""
    receiver.answer = lambda _arrival: 400
    await service.set_webhook("loja01", receiver.url)
    events = [await service.accept() for _ in range(count)]
    await service.wait_until_settled()
    receiver.answer = lambda _arrival: 200
    service.settings["OUTBOX_PORT"] = service.address.rpartition(":")[2]
    shown = [(await service.request("GET", f"/events/{event_id}")).json() for event_id in events]
    return [event["deliveries"][0]["id"] for event in shown]


async def json_of(service: Service, *arguments: str) -> Any:
    """Return the document a command prints with --json; see that it is the only thing it prints."""
    status, output, errors = await service.command(*arguments, "--json")
    assert (status, errors) == (0, "")
    return json.loads(output)


async def test_replay_through_the_service(tmp_path: Path) -> None:
    """It asks the service, waits for the end, and says how many there were: for people, or as /replays shows it."""
    async with Receiver() as receiver, running(tmp_path) as service:
        ids = await with_dead(service, receiver)
        shown = await json_of(service, "replay", ids[0])
        assert (shown["state"], shown["reopened"], shown["filter"]["delivery"]) == ("finished", 1, ids[0])
        assert shown == (await service.request("GET", f"/replays/{shown['id']}")).json()
        status, output, errors = await service.command("replay", "--state", "dead", "--instance", "loja01")
        assert (status, errors) == (0, "")
        assert output.endswith("finished: 2 matched, 2 reopened\n")
        await service.wait_until_settled()
        assert len(receiver.arrivals) == 6
        late = await service.accept("call", instance="other")
        await service.set_webhook("other", receiver.url)
        status, output, _ = await service.command("replay", "--events", "--webhook", "wh_1", "--rate", "50")
        assert (status, output.endswith("finished: 0 matched, none done\n")) == (0, True)
        webhook = (await service.request("GET", "/webhooks/instances/other")).json()["id"]
        shown = await json_of(service, "replay", "--events", "--webhook", webhook)
        assert (shown["added"], shown["deliveries"]) == (1, 1)
        await event_when(service, late, lambda shown: bool(shown["deliveries"]))


async def test_replay_without_a_service_is_carried_out_at_the_next_start(tmp_path: Path) -> None:
    """The request is recorded, and it says so; nothing is sent until a service runs."""
    async with Receiver() as receiver, running(tmp_path) as service:
        ids = await with_dead(service, receiver)
        assert await service.stop() == 0
        status, output, errors = await service.command("replay", ids[1])
        assert (status, "running: 1 matched, none done" in output) == (0, True)
        assert errors == "no service is running: it is carried out when one is started\n"
        status, output, _ = await service.command("replay", "--state", "dead", "--json")
        shown = json.loads(output)
        assert (status, shown["state"], shown["deliveries"], shown["reopened"]) == (0, "running", 3, 0)
        assert len(receiver.arrivals) == 3
        await service.start()
        await service.wait_for_stats(lambda stats: stats["deliveries"]["acknowledged"] == 3)
        items = (await service.request("GET", "/replays")).json()["items"]
        assert [item["state"] for item in items] == ["finished", "finished"]
        assert items[0]["id"] == shown["id"]


@BESIDE
async def test_what_cannot_be_replayed_is_said(tmp_path: Path, *, beside: bool) -> None:
    """An acknowledged delivery, a deleted webhook, an unknown one: exit status 1, and the reason."""
    async with Receiver() as receiver, running(tmp_path) as service:
        (delivery,) = await with_dead(service, receiver, 1)
        await json_of(service, "replay", delivery)
        await service.wait_until_settled()
        await service.set_webhook("gone", receiver.url)
        webhook = (await service.request("GET", "/webhooks/instances/gone")).json()["id"]
        await service.request("DELETE", "/webhooks/instances/gone")
        if not beside:
            assert await service.stop() == 0
        for arguments, said in (
            ([delivery], "acknowledged"),
            (["dlv_" + "0" * 32 + "_1"], "there is no delivery"),
            (["nonsense/../x"], "there is no delivery"),
            (["--webhook", webhook], "deleted"),
            (["--webhook", "wh_999"], "no webhook wh_999"),
            (["--events", "--webhook", webhook], "deleted"),
        ):
            status, output, errors = await service.command("replay", *arguments)
            assert (status, output, said in errors) == (1, "", True), (arguments, errors)
        if beside:
            shown = await json_of(service, "replay", delivery, "--acknowledged")
            assert shown["reopened"] == 1


async def test_copies(tmp_path: Path) -> None:
    """`--to` posts copies and says what came of them; the exit status says whether all went well."""
    async with Receiver() as receiver, Receiver() as elsewhere, running(tmp_path) as service:
        (delivery, *_) = await with_dead(service, receiver)
        status, output, errors = await service.command("replay", delivery, "--to", f"{elsewhere.url}/x?token=canary")
        assert (status, output, errors) == (0, "copied: 200\n", "")
        shown = await json_of(service, "replay", "--state", "dead", "--to", elsewhere.url)
        assert (shown["copied"], shown["failed"], shown["to"]) == (3, 0, elsewhere.url)
        assert len(elsewhere.arrivals) == 4
        elsewhere.answer = lambda _arrival: 500
        assert (await service.command("replay", delivery, "--to", elsewhere.url))[:2] == (1, "copied: 500\n")
        status, output, _ = await service.command("replay", "--state", "dead", "--to", elsewhere.url)
        assert (status, "3 failed; the last failure: status 500" in output) == (1, True)
        assert len(receiver.arrivals) == 3
        assert await service.stop() == 0
        status, _, errors = await service.command("replay", delivery, "--to", elsewhere.url)
        assert (status, errors.startswith("copies are made by a running service, and it cannot be reached")) == (
            1,
            True,
        )


async def test_a_terminal_shows_how_it_goes_on(tmp_path: Path) -> None:
    """There is a bar on a terminal; --no-wait ends at once, and the replay goes on."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await with_dead(service, receiver)
        shown = await json_of(service, "replay", "--state", "dead", "--rate", "0.5", "--no-wait")
        # Few deliveries are one chunk, which may be done already: their due times are what goes by the rate.
        assert (shown["state"] in {"running", "finished"}, shown["rate"]) == (True, 0.5)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app.cli", "replay", "--state", "dead", cwd=service.folder,
            env=service.environment | {"TTY_COMPATIBLE": "1", "TERM": "xterm", "FORCE_COLOR": "1"},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate()
        assert (process.returncode, b"finished" in output) == (0, True)
        assert b"replay" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing says which deliveries"),
        (["--acknowledged"], "nothing says which deliveries"),
        (["--state", "nope"], "at `--state`"),
        (["--event", "no.such.kind"], "the nearest is"),
        (["--webhook", "1"], "at `--webhook`"),
        (["--since", "yesterday"], "at `--since`"),
        (["--state", "dead", "--rate", "0"], "at `--rate`"),
        (["--state", "dead", "--rate", "fast"], "--rate"),
        (["dlv_1", "--state", "dead"], "--state does not go with one delivery"),
        (["dlv_1", "--rate", "5"], "--rate does not go with one delivery"),
        (["dlv_1", "--events"], "either one delivery"),
        (["--events"], "webhook"),
        (["--events", "--webhook", "wh_1", "--state", "dead"], "--state does not go with --events"),
        (["--events", "--webhook", "wh_1", "--to", "http://x"], "--to does not go with --events"),
        (["--bogus"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], said: str) -> None:
    """It is exit status 2 and names the option; nothing is created on the way."""
    settings = {"OUTBOX_DATABASE_URL": f"sqlite:///{tmp_path / 'outbox.db'}", "COLUMNS": "200"}
    result = CliRunner(env=settings).invoke(main, ["replay", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Exit status 1, and nothing is created."""
    settings = {"OUTBOX_DATABASE_URL": f"sqlite:///{tmp_path / 'outbox.db'}", "COLUMNS": "200"}
    result = CliRunner(env=settings).invoke(main, ["replay", "--state", "dead"])
    assert (result.exit_code, "there is no database" in result.stderr) == (1, True)
    assert not list(tmp_path.iterdir())
