import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli import main
from outbox.store.protocol import LOOKED_AT_ONCE
from tests.harness import Receiver, Service, running
from tests.store.filling import Planned, fill

PASSWORD = "canary-password"
LONG_PATH = "/" + "path" * 40


@asynccontextmanager
async def history(folder: Path) -> AsyncIterator[tuple[Service, list[str]]]:
    """Run a service that has delivered two events, has one dead and one for nobody; give the events' ids."""
    async with Receiver(lambda arrival: 400 if "bad" in arrival.path else 200) as receiver, running(folder) as service:
        url = receiver.url.replace("://", f"://user:{PASSWORD}@")
        await service.set_webhook("loja01", url + LONG_PATH, events=["messages.upsert"])
        await service.set_webhook("bad", f"{url}/bad")
        ids = [await service.accept(instance=instance) for instance in ("loja01", "bad", "loja01", "nobody")]
        await service.wait_until_settled()
        yield service, ids


async def json_of(service: Service, *arguments: str) -> Any:
    """Return the document a command prints with --json; see that it is the only thing it prints."""
    status, output, errors = await service.command(*arguments, "--json")
    assert (status, errors) == (0, "")
    return json.loads(output)


async def on_a_terminal(service: Service, columns: int, *arguments: str) -> str:
    """Return what a command prints on a terminal that is so wide."""
    terminal = {"COLUMNS": str(columns), "TTY_COMPATIBLE": "1", "TERM": "xterm"}
    status, output, errors = await service.command(*arguments, **terminal)
    assert (status, errors) == (0, "")
    return output


@pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without it"])
async def test_lists_are_those_of_http(tmp_path: Path, *, beside: bool) -> None:
    """`events`, `deliveries`, `webhooks` print with --json what HTTP answers, filters and all, service or not."""
    questions = {
        ("events",): "/events",
        ("events", "--instance", "loja01", "--limit", "1"): "/events?instance=loja01&limit=1",
        ("events", "--state", "dead", "--event", "message.upsert"): "/events?state=dead&event=message.upsert",
        ("deliveries",): "/deliveries",
        ("deliveries", "--webhook", "wh_1", "--since", "0", "--until", "9999999999"): "/deliveries?webhook=wh_1",
        ("webhooks",): "/webhooks",
    }
    async with history(tmp_path) as (service, _):
        answers = {question: (await service.request("GET", path)).json() for question, path in questions.items()}
        if not beside:
            assert await service.stop() == 0
        for question, answer in answers.items():
            assert await json_of(service, *question) == answer, question


async def test_a_list_goes_on_with_its_cursor(tmp_path: Path) -> None:
    """A table says with which cursor it goes on; the pages together are the whole list."""
    async with history(tmp_path) as (service, ids):
        page = await json_of(service, "events", "--limit", "3")
        _, output, _ = await service.command("events", "--limit", "3")
        assert output.endswith(f"there are more: --cursor {page['next']}\n")
        rest = await json_of(service, "events", "--cursor", page["next"])
        assert [item["id"] for item in page["items"] + rest["items"]] == ids[::-1]
        assert rest["next"] is None
        assert "--cursor" not in (await service.command("events"))[1]


async def test_ids_and_urls_are_whole_on_a_narrow_terminal(tmp_path: Path) -> None:
    """On 80 columns every id and every URL stands on one line, to be copied; passwords do not."""
    async with history(tmp_path) as (service, ids):
        listed = (await service.request("GET", "/deliveries")).json()["items"]
        urls = {item["url"] for item in listed}
        events = await on_a_terminal(service, 80, "events")
        assert all(event_id in events for event_id in ids)
        deliveries = await on_a_terminal(service, 80, "deliveries")
        assert all(item["id"] in deliveries and item["url"] in deliveries for item in listed)
        shown = await on_a_terminal(service, 80, "show", ids[0])
        assert ids[0] in shown
        assert listed[-1]["id"] in shown
        assert listed[-1]["url"] in shown
        webhooks = await on_a_terminal(service, 80, "webhooks")
        assert all(url.replace("://", "://user:***@") in webhooks for url in urls)
        stats = await on_a_terminal(service, 80, "stats")
        assert {"wh_1", "wh_2", "acknowledged"} <= set(stats.split())
        assert PASSWORD not in events + deliveries + shown + webhooks + stats
        widest = max(map(len, events.splitlines()))
        assert widest <= 80, "what can be folded is folded"


async def test_what_others_wrote_is_no_markup(tmp_path: Path) -> None:
    """Names with brackets and control characters in answers are shown as they are, and do nothing."""
    name = "[red]a[link=b]c"
    async with Receiver() as receiver, running(tmp_path) as service:
        await service.set_webhook(name, receiver.url)
        await service.accept(instance=name)
        await service.wait_until_settled()
        for command in ("events", "deliveries", "webhooks", "log", "tail"):
            status, output, errors = await service.command(command)
            assert (status, errors) == (0, "")
            assert name in output


def test_a_list_is_looked_for_until_it_is_full(tmp_path: Path) -> None:
    """People follow no empty pages: what stands far down is found by one command."""
    database = tmp_path / "outbox.db"
    fill(database, LOOKED_AT_ONCE + 50, lambda number: Planned("NEW_TOKEN" if number < 2 else "CALL"))
    settings = {"OUTBOX_DATABASE_URL": f"sqlite:///{database}"}
    for limit, found in (("1", 1), ("2", 2), ("50", 2)):
        result = CliRunner(env=settings).invoke(main, ["events", "--event", "new.jwt", "--limit", limit, "--json"])
        assert len(json.loads(result.stdout)["items"]) == found


@pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without it"])
async def test_log_prints_records(tmp_path: Path, *, beside: bool) -> None:
    """`log` prints the records of /log: a line each for people, an object per line for programs."""
    async with history(tmp_path) as (service, ids):
        records = (await service.request("GET", "/log?after=2&limit=4")).json()["items"]
        if not beside:
            assert await service.stop() == 0
        status, output, errors = await service.command("log", "--after", "2", "--limit", "4", "--json")
        assert (status, errors) == (0, "")
        assert [json.loads(line) for line in output.splitlines()] == records
        _, output, _ = await service.command("log")
        lines = output.splitlines()
        assert [int(line.split()[0]) for line in lines] == list(range(1, len(lines) + 1))
        assert [event_id for event_id in ids if f"event {event_id} MESSAGES_UPSERT" not in output] == []
        assert "400 in" in output
        assert ": bury, " in output
        assert PASSWORD not in output


async def test_tail_prints_the_newest(tmp_path: Path) -> None:
    """`tail` prints the newest records and ends."""
    async with history(tmp_path) as (service, _):
        seq = (await service.request("GET", "/stats")).json()["seq"]
        status, output, errors = await service.command("tail", "-n", "3")
        assert (status, errors) == (0, "")
        assert [int(line.split()[0]) for line in output.splitlines()] == [seq - 2, seq - 1, seq]
        _, output, _ = await service.command("tail", "-n", "0")
        assert output == ""
        _, output, _ = await service.command("tail", "-n", "100", "--json")
        assert [json.loads(line)["seq"] for line in output.splitlines()] == list(range(1, seq + 1))


async def test_tail_follows_until_ctrl_c(tmp_path: Path) -> None:
    """`tail -f` prints records as they are written, also across a restart of the service; Ctrl-C is exit status 0."""
    service = Service(tmp_path)
    await service.start()
    await service.accept()
    process = await service.run(["-m", "app.cli", "tail", "-f", "--json"])
    output, errors = process.stdout, process.stderr
    assert output is not None
    assert errors is not None

    async def line() -> Any:
        async with asyncio.timeout(20):
            return json.loads(await output.readline())

    try:
        assert (await line())["seq"] == 1
        event_id = await service.accept()
        assert (await line())["id"] == event_id
        assert await service.stop() == 0
        await service.start()
        event_id = await service.accept()
        assert (await line())["id"] == event_id
        process.send_signal(signal.SIGINT)
        assert (await process.wait(), await output.read(), await errors.read()) == (0, b"", b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        assert await service.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["events", "--state", "nope"], 2, "at `state`"),
        (["deliveries", "--webhook", "1"], 2, "at `webhook`"),
        (["deliveries", "--since", "yesterday"], 2, "at `since`"),
        (["events", "--limit", "0"], 2, "at `limit`"),
        (["events", "--event", "no.such.kind"], 2, "the nearest is"),
        (["log", "--after", "x"], 2, "at `after`"),
        (["log", "--limit", "501"], 2, "at `limit`"),
        (["tail", "-n", "-1"], 2, "-n"),
        (["events", "--bogus"], 2, "No such option"),
        (["events"], 1, "there is no database"),
        (["deliveries", "--state", "dead"], 1, "there is no database"),
        (["webhooks"], 1, "there is no database"),
        (["log"], 1, "there is no database"),
        (["tail", "-f"], 1, "there is no database"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_exit_status(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    """Wrong usage is 2 and names the option, a missing database is 1; nothing is created on the way."""
    settings = {"OUTBOX_DATABASE_URL": f"sqlite:///{tmp_path / 'outbox.db'}", "COLUMNS": "200"}
    result = CliRunner(env=settings).invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert said in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert not list(tmp_path.iterdir())
