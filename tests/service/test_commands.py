import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.harness import API_KEY, INGEST_TOKEN, ROOT, Receiver, Service, running

PASSWORD = "canary-password"
HOSTILE_NAME = "[red]a[link=b]c"
SECRETS = (API_KEY, INGEST_TOKEN, PASSWORD)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A healthy receiver."""
    async with Receiver() as made:
        yield made


async def with_history(service: Service, receiver: Receiver) -> str:
    """Deliver an event that needed two attempts, and leave a second one pending; return the first one's id."""
    receiver.answer = lambda arrival: 500 if arrival.headers["x-outbox-attempt"] == "1" else 200
    await service.set_webhook("loja01", receiver.url.replace("://", f"://user:{PASSWORD}@"))
    event_id = await service.accept(data={"n": 1}, apikey="secret-of-the-instance")
    await service.wait_until_settled()
    return event_id


def names(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return [path.name for path in folder.iterdir()]


async def json_of(service: Service, *arguments: str) -> Any:
    """Return the document a command prints with --json; see that it is the only thing it prints."""
    status, output, errors = await service.command(*arguments, "--json")
    assert (status, errors) == (0, "")
    return json.loads(output)


@pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without it"])
async def test_stats(tmp_path: Path, receiver: Receiver, *, beside: bool) -> None:
    """`stats` prints the numbers of /stats, as a table or as JSON, with the service running or not."""
    async with running(tmp_path) as service:
        await with_history(service, receiver)
        over_http = (await service.request("GET", "/stats")).json()
        if not beside:
            assert await service.stop() == 0
        assert await json_of(service, "stats") == over_http
        status, output, errors = await service.command("stats")
    assert (status, errors) == (0, "")
    assert "1 events" in output
    assert "loja01" in output


@pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without it"])
async def test_show(tmp_path: Path, receiver: Receiver, *, beside: bool) -> None:
    """`show` prints an event with its deliveries and attempts, and masks its secrets."""
    async with running(tmp_path) as service:
        event_id = await with_history(service, receiver)
        over_http = (await service.request("GET", f"/events/{event_id}")).json()
        if not beside:
            assert await service.stop() == 0
        shown = await json_of(service, "show", event_id)
        status, output, errors = await service.command("show", event_id)
    assert shown == over_http
    assert [attempt["status"] for attempt in shown["attempts"]] == [500, 200]
    assert shown["payload"]["apikey"] == "***"
    assert (status, errors) == (0, "")
    assert event_id in output
    assert "acknowledged" in output
    assert not [secret for secret in (*SECRETS, "secret-of-the-instance") if secret in output]


async def test_what_receivers_and_producers_write_is_shown_as_it_is(tmp_path: Path) -> None:
    """Brackets in an answer or a name are no markup, and no control sequence reaches the terminal."""
    hostile = "[/bold] [/] [red]x[/] \x1b[2J\x1b]0;title\x07 end"
    async with (
        Receiver(lambda _arrival: web.Response(status=400, text=hostile)) as receiver,
        running(tmp_path) as service,
    ):
        await service.set_webhook(HOSTILE_NAME, receiver.url)
        event_id = await service.accept(instance=HOSTILE_NAME, data="[/green] \x9b2J")
        await service.wait_until_settled()
        for arguments in (("show", event_id), ("stats",)):
            status, output, errors = await service.command(*arguments)
            assert (status, errors) == (0, "")
            assert HOSTILE_NAME in output
            assert not set("\x1b\x07\x9b") & set(output)


@pytest.mark.parametrize("beside", [True, False], ids=["beside the service", "without it"])
async def test_rebuild(tmp_path: Path, receiver: Receiver, *, beside: bool) -> None:
    """`rebuild` folds the log again, through the service if one has the file, and loses nothing."""
    async with running(tmp_path) as service:
        await with_history(service, receiver)
        before = (await service.request("GET", "/stats")).json()
        service.settings["OUTBOX_PORT"] = service.address.rpartition(":")[2]
        if not beside:
            assert await service.stop() == 0
        assert await json_of(service, "rebuild") == {"records": before["seq"]}
        assert await json_of(service, "stats") == before
        status, output, errors = await service.command("rebuild")
        assert (status, output, errors) == (0, f"{before['seq']} records folded\n", "")
        if beside:
            await service.accept()
            await service.wait_until_settled()


async def test_rebuild_beside_a_service_on_another_address(tmp_path: Path) -> None:
    """`rebuild` reaches a service that listens on IPv6, and on every address."""
    for host in ("::1", "::", "0.0.0.0"):
        async with running(tmp_path, OUTBOX_HOST=host) as service:
            service.settings["OUTBOX_PORT"] = service.address.rpartition(":")[2]
            assert await json_of(service, "rebuild") == {"records": 0}


async def test_rebuild_beside_a_service_it_cannot_reach(tmp_path: Path) -> None:
    """With the file in use, and nothing listening where the settings say, `rebuild` says so: exit status 1."""
    async with running(tmp_path) as service:
        service.settings["OUTBOX_PORT"] = "1"
        status, output, errors = await service.command("rebuild")
        assert (status, output) == (1, "")
        assert errors.startswith("the database is in use, and its service cannot be reached at http://127.0.0.1:1/")


async def test_rebuild_leaves_the_head_file_alone(tmp_path: Path) -> None:
    """The end of the log stays where it is, so the next start misses nothing."""
    service = Service(tmp_path)
    await service.start()
    await service.accept()
    assert await service.stop() == 0
    head = (tmp_path / "outbox.db.head").read_bytes()
    assert (await service.command("rebuild"))[0] == 0
    assert (tmp_path / "outbox.db.head").read_bytes() == head
    await service.start()
    assert await service.stop() == 0
    assert not [line for line in service.log if line["event"] == "log.tail_lost"]
    assert (tmp_path / "outbox.db.head").read_bytes() == head


async def test_verify_says_what_it_looked_at(tmp_path: Path, receiver: Receiver) -> None:
    """`verify` of a sound file exits with 0, beside a working service and without one, and changes nothing."""
    async with running(tmp_path) as service:
        await with_history(service, receiver)
        seen = await json_of(service, "verify")
        assert (seen["events"], seen["deliveries"], seen["bodies"], seen["problems"]) == (1, 1, 1, [])
        assert await service.stop() == 0
        content = service.database.read_bytes()
        status, output, _ = await service.command("verify")
        assert (status, output) == (0, f"{seen['records']} records, 1 events, 1 deliveries, 1 bodies: all is well\n")
        assert service.database.read_bytes() == content


async def test_settings(tmp_path: Path) -> None:
    """`settings` prints every variable with value, default and source, and masks what is secret."""
    url = f"http://user:{PASSWORD}@127.0.0.1:1/"
    service = Service(tmp_path, WEBHOOK_GLOBAL_URL=url, WEBHOOK_EVENTS_CALL="true", WEBHOOK_EVENTS_ERRORS="true")
    status, output, errors = await service.command("settings", "--json")
    assert status == 0
    shown = {entry["name"]: entry for entry in json.loads(output)}
    assert shown["OUTBOX_API_KEY"]["value"] == shown["WEBHOOK_GLOBAL_URL"]["value"] == "***"
    assert shown["AUTHENTICATION_API_KEY"]["value"] == ""
    assert shown["OUTBOX_LOG_FORMAT"]["value"] == "json"
    assert (shown["OUTBOX_LOG_FORMAT"]["source"], shown["OUTBOX_HOST"]["source"]) == ("environment", "default")
    assert shown["WEBHOOK_EVENTS_CALL"]["value"] == "true"
    status, table, errors = await service.command("settings")
    assert status == 0
    assert "OUTBOX_QUEUE_BYTES" in table
    assert errors == "WEBHOOK_EVENTS_ERRORS is not known here and ignored\n"
    assert not [secret for secret in SECRETS if secret in output + table]
    assert not service.database.exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--help"], 0, "verify"),
        (["replay", "--help"], 0, "Usage: scripts/outbox replay"),
        (["--version"], 0, "evolution-outbox"),
        (["nonsense"], 2, "No such command"),
        (["show"], 2, "Missing argument"),
        (["stats", "--bogus"], 2, "No such option"),
        (["stats"], 1, "there is no database"),
        (["verify"], 1, "there is no database"),
        (["rebuild"], 1, "there is no database"),
        (["show", "evt_1"], 1, "there is no database"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
async def test_exit_status(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    """0 is fine, 1 says what is wrong, 2 is wrong usage; nothing is created on the way."""
    found, output, errors = await Service(tmp_path).command(*arguments)
    assert found == status
    assert said in (errors if status else output)
    assert "Traceback" not in errors
    assert not names(tmp_path)


async def test_other_failures_have_status_1(tmp_path: Path) -> None:
    """An unknown event, a wrong setting and a file of something else are said in one line."""
    service = Service(tmp_path)
    await service.start()
    assert await service.stop() == 0
    nobody = "evt_" + "0" * 32
    assert await service.command("show", nobody) == (1, "", f"there is no event {nobody}\n")
    assert await service.command("show", "that one") == (
        1, "", "there is no event 'that one': an event's id is evt_ and 32 hex digits\n"
    )  # fmt: skip
    service.settings["OUTBOX_PORT"] = "eighty"
    assert (await service.command("stats"))[::2] == (
        1, "OUTBOX_PORT is 'eighty', but takes a port from 0 (any free one) to 65535\n"
    )  # fmt: skip
    service.settings["OUTBOX_PORT"] = "0"
    service.database.write_text("something else, and long enough to be looked at " * 100)
    status, output, errors = await service.command("stats")
    assert (status, output) == (1, "")
    assert errors == f"cannot open the database {service.database}: file is not a database\n"


def test_the_script_itself(tmp_path: Path) -> None:
    """scripts/outbox works from any folder, whose own `app` does not stand in for ours."""
    (tmp_path / "app").mkdir()
    environment = Service(tmp_path).environment
    done = subprocess.run(
        [ROOT / "scripts" / "outbox", "settings", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
    )
    names = [entry["name"] for entry in json.loads(done.stdout)]
    assert names[0] == "OUTBOX_HOST"
