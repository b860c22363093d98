import asyncio
import json
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from outbox.domain.records import WebhookSet
from tests.harness import API_KEY, INGEST_TOKEN, ROOT, Receiver, Service
from tests.logged import logged

GLOBAL = {"WEBHOOK_GLOBAL_ENABLED": "true"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A healthy receiver."""
    async with Receiver() as made:
        yield made


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project's code: a root of its own, with its own `.env` and data."""
    for package in ("app", "outbox"):
        shutil.copytree(ROOT / package, tmp_path / "checkout" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "checkout"


def mode(path: Path) -> int:
    """Return the permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


async def refused_start(service: Service) -> str:
    """Start a service that cannot; see that it says so in one line and exits with 1; return the reason."""
    await service.launch()
    assert await service.wait() == 1
    assert [line["event"] for line in service.log] == ["service.failed", "end"]
    return str(service.log[0]["reason"])


async def restarted(service: Service, change: Callable[[dict[str, str]], Any]) -> dict[str, Any]:
    """Stop the service, change its settings, start it again; return how it shows its global webhook."""
    assert await service.stop() == 0
    change(service.settings)
    await service.start()
    stats = (await service.request("GET", "/stats")).json()
    (shown,) = [webhook for webhook in stats["webhooks"] if webhook["scope"] == "global"]
    return dict(shown)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("OUTBOX_PORT", "eighty", "OUTBOX_PORT is 'eighty', but takes a port from 0 (any free one) to 65535"),
        ("OUTBOX_INGEST_TOKEN", "has/a/slash", "OUTBOX_INGEST_TOKEN is ***, but takes 8 to 256 letters"),
        ("WEBHOOK_EVENTS_CALL", "perhaps", "WEBHOOK_EVENTS_CALL is 'perhaps', but takes true or false"),
        ("WEBHOOK_GLOBAL_URL", f"http://x/ingest/{INGEST_TOKEN}", "WEBHOOK_GLOBAL_URL holds this service's own ingest"),
        ("OUTBOX_DATABASE_URL", "sqlite:////proc/no/outbox.db", "cannot create the directory /proc/no"),
    ],
)
async def test_a_wrong_value_stops_the_start(tmp_path: Path, name: str, text: str, said: str) -> None:
    """The process exits with 1 and one line that names the variable and what it takes."""
    assert (await refused_start(Service(tmp_path, **{name: text}))).startswith(said)


async def test_keys_are_made_at_the_first_start(tmp_path: Path, receiver: Receiver) -> None:
    """They are kept beside the database for the owner only, work at once, and the log names their files, not them."""
    service = Service(tmp_path / "new" / "place")
    tmp_path.joinpath("new", "place").mkdir(parents=True)
    del service.settings["OUTBOX_API_KEY"], service.settings["OUTBOX_INGEST_TOKEN"]
    kept = {
        name: service.folder / file
        for name, file in (("OUTBOX_API_KEY", "api-key"), ("OUTBOX_INGEST_TOKEN", "ingest-token"))
    }
    await service.start()
    started = await service.wait_for_log(lambda line: line["event"] == "service.started")
    assert {name: started[name] for name in kept} == {name: str(path) for name, path in kept.items()}
    assert [mode(path) for path in kept.values()] == [0o600, 0o600]
    keys = {name: path.read_text().strip() for name, path in kept.items()}
    assert not [key for key in keys.values() if key in json.dumps(service.log)]
    assert (await service.request("GET", "/stats")).status == 401
    assert (await service.request("GET", "/stats", headers={"apikey": keys["OUTBOX_API_KEY"]})).status == 200
    body = {"event": "call", "instance": "loja01", "data": {}}
    assert (await service.request("POST", f"/ingest/{keys['OUTBOX_INGEST_TOKEN']}", body)).status == 202
    await service.stop()
    await service.start()
    assert keys == {name: path.read_text().strip() for name, path in kept.items()}
    assert (await service.request("GET", "/stats", headers={"apikey": keys["OUTBOX_API_KEY"]})).status == 200
    assert await service.stop() == 0


async def test_paths_are_relative_to_the_project(checkout: Path, tmp_path: Path) -> None:
    """`.env` at the project's root is read, a relative database lies under that root, the environment wins."""
    (checkout / ".env").write_text(f"OUTBOX_DATABASE_URL=sqlite:///var/o.db\nOUTBOX_API_KEY={API_KEY}\nOUTBOX_PORT=1\n")
    service = Service(tmp_path)
    service.root = checkout
    del service.settings["OUTBOX_DATABASE_URL"], service.settings["OUTBOX_API_KEY"]
    await service.start()
    started = await service.wait_for_log(lambda line: line["event"] == "service.started")
    assert started["database"] == str(checkout / "var" / "o.db")
    assert not started["address"].endswith(":1")
    assert (await service.request("GET", "/stats")).status == 200
    status, output, _ = await service.command("settings", "--json")
    shown = {entry["name"]: entry for entry in json.loads(output)}
    assert status == 0
    assert (shown["OUTBOX_DATABASE_URL"]["source"], shown["OUTBOX_PORT"]["source"]) == (".env", "environment")
    assert await service.stop() == 0


async def test_changes_of_the_global_webhook_are_records(tmp_path: Path, receiver: Receiver) -> None:
    """What the environment says is recorded when it has changed since the last start, and only then."""
    service = Service(tmp_path, WEBHOOK_GLOBAL_URL=receiver.url, **GLOBAL)
    await service.start()
    first = await restarted(service, lambda _settings: None)
    assert first["enabled"]
    assert len(await logged(service.database, WebhookSet)) == 1
    kinds = await restarted(service, lambda settings: settings.update(WEBHOOK_EVENTS_CALL="true"))
    by_events = await restarted(service, lambda settings: settings.update(WEBHOOK_GLOBAL_WEBHOOK_BY_EVENTS="true"))
    disabled = await restarted(service, lambda settings: settings.update(WEBHOOK_GLOBAL_ENABLED="false"))
    assert {first["id"]} == {kinds["id"], by_events["id"], disabled["id"]}
    assert not disabled["enabled"]
    enabled = await restarted(service, lambda settings: settings.update(WEBHOOK_GLOBAL_ENABLED="true"))
    assert enabled["enabled"]
    await service.accept("call")
    await service.accept("messages.upsert")
    (arrival,) = await receiver.wait_for_count(1)
    assert (arrival.path, arrival.json()["event"]) == ("/call", "call")
    await service.wait_until_settled()
    assert await service.stop() == 0
    records = await logged(service.database, WebhookSet)
    assert [record.webhook == 0 for record in records] == [True, False, False, False, False]
    assert {record.source for record in records} == {"environment"}
    await service.verify()


async def test_a_global_webhook_that_left_the_environment_is_disabled(tmp_path: Path, receiver: Receiver) -> None:
    """It is not deleted: its pending deliveries are held, and go out when it is back."""
    receiver.answer = lambda _arrival: 503
    service = Service(tmp_path, WEBHOOK_GLOBAL_URL=receiver.url, **GLOBAL)
    await service.start()
    event_id = await service.accept()
    await receiver.wait_for_count(1)
    gone = await restarted(
        service, lambda settings: [settings.pop(name) for name in list(settings) if "GLOBAL" in name]
    )
    assert not gone["enabled"]
    assert gone["deliveries"]["held"] == 1
    await service.accept()
    tried = len(receiver.arrivals)
    await restarted(service, lambda _settings: None)
    assert len(await logged(service.database, WebhookSet)) == 2
    receiver.answer = lambda _arrival: 200
    assert len(receiver.arrivals) == tried
    back = await restarted(service, lambda settings: settings.update(GLOBAL, WEBHOOK_GLOBAL_URL=receiver.url))
    assert back["id"] == gone["id"]
    stats = await service.wait_until_settled()
    assert stats["deliveries"]["acknowledged"] == 1
    assert receiver.arrivals[-1].webhook_id == event_id
    assert await service.stop() == 0
    await service.verify()


@pytest.mark.parametrize("name", ["WEBHOOK_EVENTS_ERRORS", "OUTBOX_DATABASE"])
async def test_unknown_names_are_warned_about_at_the_start(tmp_path: Path, name: str) -> None:
    """Evolution's switch for errors, and a name of ours that is misspelt: one warning in the log, and it starts."""
    service = Service(tmp_path, **{name: "true"})
    await service.start()
    warning = await service.wait_for_log(lambda line: line["event"] == "settings.ignored")
    assert warning["reason"] == f"{name} is not known here and ignored"
    assert await service.stop() == 0


async def test_two_first_starts_at_once(tmp_path: Path) -> None:
    """Of two services started together on nothing exactly one starts; the other says why it cannot."""
    services = [Service(tmp_path), Service(tmp_path)]
    for service in services:
        del service.settings["OUTBOX_API_KEY"], service.settings["OUTBOX_INGEST_TOKEN"]
        await service.launch()
    said = [
        await service.wait_for_log(lambda line: line["event"] in {"service.started", "service.failed"})
        for service in services
    ]
    assert sorted(line["event"] for line in said) == ["service.failed", "service.started"]
    failed = next(line for line in said if line["event"] == "service.failed")
    assert "already works with this database" in failed["reason"]
    statuses = await asyncio.gather(
        *[
            service.stop() if line["event"] == "service.started" else service.wait()
            for service, line in zip(services, said, strict=True)
        ]
    )
    assert sorted(statuses) == [0, 1]
