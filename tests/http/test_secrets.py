"""A webhook's secret: how it is set, made, kept and taken away over the HTTP face, and that nothing shows it."""

import json
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from outbox.domain.rotating import read_secret
from tests.harness import Receiver, Service, running
from tests.http.signed import put, signatures, verifies, written
from tests.http.support import settled, stats

URL = "https://93.184.215.14/w"
FIRST, SECOND = written("canary-first"), written("canary-second")
DAY_S = 86_400
BAD = [
    "", "whsec_", "not base64", "whsec_hello", "***", "GENERATE", "whsk_" + "A" * 64, "whsec_" + "A" * 31,
    "whsec_" + "A" * 30 + "==", "whsec_" + "A" * 88, "whsec_" + "A" * 31 + "-", FIRST + "\n", FIRST + "=", " " + FIRST,
    "A" * 32 + "\r\nx: y", "\u00e9" * 32, "A" * 100_000, 7, True, [], {}, [FIRST],
]  # fmt: skip

SHOWN = ["/webhooks", "/webhook/find/loja01", "/log", "/stats", "/metrics", "/schema", "/events", "/deliveries"]
COMMANDS = [["webhooks"], ["webhooks", "--json"], ["log", "--json"]]
# What gives them away: as they are written, decoded, and either of these in hexadecimal digits.
TEXTS = [FIRST[6:-1], SECOND[6:-1], *(read_secret(secret).decode() for secret in (FIRST, SECOND))]
FORMS = [form.lower() for text in TEXTS for form in (text, text.encode().hex())]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for the tests that need none of their own: each has an instance of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


def materials(service: Service) -> list[bytes]:
    """Return what is in the table of secrets."""
    with closing(sqlite3.connect(f"file:{service.database}?mode=ro", uri=True)) as connection:
        return [row[0] for row in connection.execute("SELECT material FROM secret")]


async def test_a_secret_that_is_made_is_shown_once(service: Service) -> None:
    """In the answer to who asked for it, in clear; it signs, and everybody after that sees the mask."""
    async with Receiver() as receiver:
        for path in ("global/made", "instances/made", "instances/made/x"):
            made = [(await put(service, path, url=receiver.url, secret="generate")).json()["secret"] for _ in range(2)]
            assert made[0] != made[1]
            for secret in made:
                assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
                assert len(read_secret(secret)) == 32
            shown = await service.request("GET", f"/webhooks/{path}")
            assert shown.json()["secret"] == "***"
            assert shown.json()["previous_secret_until"] is not None
            receiver.arrivals.clear()
            await service.request("POST", f"/webhooks/{path}/test")
            assert [verifies(receiver.arrivals[0], secret) for secret in made] == [True, True]
            again = (await put(service, path, url=receiver.url, secret="***")).json()
            assert again == shown.json() | {"updated_at": again["updated_at"]}
            assert (await service.request("DELETE", f"/webhooks/{path}")).status == 204


async def test_the_mask_keeps_what_is_there(service: Service) -> None:
    """Two secrets are changed by no PUT that sends the mask, and a webhook without one has nothing to keep."""
    async with Receiver() as receiver:
        for name, secret in (("one", FIRST), ("other", SECOND)):
            await put(service, f"instances/kept/{name}", url=receiver.url, secret=secret)
            reply = await put(service, f"instances/kept/{name}", url=f"{receiver.url}/{name}", secret="***")
            assert (reply.status, reply.json()["secret"]) == (200, "***")
        await settled(service, await service.accept(instance="kept"))
        for arrival in receiver.arrivals:
            assert verifies(arrival, FIRST if arrival.path == "/one" else SECOND)
            assert len(signatures(arrival)) == 1
        assert len(receiver.arrivals) == 2


async def test_a_secret_may_come_as_receivers_libraries_take_it(service: Service) -> None:
    """Without the prefix or the padding it is the same secret: set again, it begins no rotation."""
    async with Receiver() as receiver:
        await put(service, "instances/loose", url=receiver.url, secret=FIRST)
        for text in (FIRST.rstrip("="), FIRST.removeprefix("whsec_"), FIRST.removeprefix("whsec_").rstrip("=")):
            shown = (await put(service, "instances/loose", url=receiver.url, secret=text)).json()
            assert (shown["secret"], shown["previous_secret_until"]) == ("***", None)
        await settled(service, await service.accept(instance="loose"))
        assert verifies(receiver.arrivals[0], FIRST)


@pytest.mark.parametrize("path", ["global/bad", "instances/bad"])
async def test_what_is_no_secret_is_refused(service: Service, path: str) -> None:
    """422 at its place, without repeating it; the webhook that is there stays as it is, and so does the log."""
    for known in (None, "***"):
        before, shown = await stats(service), await service.request("GET", f"/webhooks/{path}")
        for secret in [entry for entry in BAD if entry != known]:
            reply = await put(service, path, url=URL, secret=secret)
            detail = str(reply.json()["detail"])
            assert (reply.status, "`$.secret`" in detail) == (422, True), (secret, reply)
            assert not re.search("A{9}|canary|" + FIRST[6:30], detail)
        for overlap in (-1, 30 * DAY_S + 1, 10**30, 1.5, "60", None, True):
            for more in ({}, {"secret": FIRST}, {"secret": "generate"}):
                reply = await put(service, path, url=URL, secret_overlap_s=overlap, **more)
                assert (reply.status, "`$.secret_overlap_s`" in reply.json()["detail"]) == (422, True), (overlap, reply)
        for name in ("webhook-signature", "Webhook-Secret"):
            reply = await put(service, path, url=URL, secret=FIRST, headers={name: "x"})
            assert (reply.status, f"`$.headers.{name}`" in reply.json()["detail"]) == (422, True)
        reply = await put(service, path, url=URL, secret=FIRST, headers={"x-key": "a\r\nwebhook-signature: x"})
        assert (reply.status, "`$.headers.x-key`" in reply.json()["detail"]) == (422, True)
        assert await stats(service) == before
        assert (await service.request("GET", f"/webhooks/{path}")).body == shown.body
        await put(service, path, url=URL, secret=FIRST, secret_overlap_s=30 * DAY_S)


async def test_the_webhook_of_the_environment_is_not_signed(tmp_path: Path) -> None:
    """There is no variable for a secret, and the API may not change it; once it is the API's, it may."""
    async with Receiver() as receiver:
        variables = {"WEBHOOK_GLOBAL_ENABLED": "true", "WEBHOOK_GLOBAL_URL": receiver.url}
        async with running(tmp_path, **variables) as service:
            await settled(service, await service.accept())
            assert "webhook-signature" not in receiver.arrivals[0].headers
            assert (await put(service, "global", url=receiver.url, secret=FIRST)).status == 409
        async with running(tmp_path) as service:
            assert (await put(service, "global", url=receiver.url, secret=FIRST)).status == 200
            await settled(service, await service.accept())
            assert verifies(receiver.arrivals[1], FIRST)


async def test_nothing_shows_a_secret(tmp_path: Path) -> None:
    """Not an answer, a command, the program's log at debug level, a record, or any table but that of secrets."""
    answers = iter([200, 500, 400])
    async with (
        Receiver(lambda _arrival: next(answers)) as receiver,
        running(tmp_path, OUTBOX_LOG_LEVEL="debug") as service,
    ):
        path = "/webhooks/instances/loja01"
        wanted = {"url": receiver.url, "secret": FIRST}
        wrong: list[dict[str, Any]] = [
            {"secret": f"{SECOND}!"},
            {"secret_": SECOND},
            {"secret_overlap_s": -1},
            {"headers": {"a": "\n"}},
        ]
        seen: list[Any] = [await service.request("PUT", path, {**wanted, **changed}) for changed in ({}, *wrong)]
        seen.append(await service.request("PUT", path, json.dumps(wanted)[:-1]))
        assert [reply.status for reply in seen] == [201, 422, 422, 422, 422, 400]
        seen.append(await service.request("PUT", path, wanted | {"secret": SECOND}))
        seen.append(await service.request("POST", "/webhook/set/loja01", wanted | {"enabled": True}))
        ids = [await service.accept() for _ in range(2)]
        for event_id in ids:
            await settled(service, event_id)
        shown = [*SHOWN, path, *(f"/events/{event_id}" for event_id in ids)]
        seen += [await service.request("GET", place) for place in shown]
        assert [reply.status for reply in seen[6:]] == [200, 201] + [200] * len(shown)
        seen += [await service.command(*command) for command in (*COMMANDS, ["show", ids[0]])]
        await service.stop()
        seen.append(service.log)
        assert [text for text in FORMS if text in repr(seen).lower()] == []
        with closing(sqlite3.connect(service.database)) as connection:
            found = {line.split('"')[1] for line in connection.iterdump() for text in FORMS if text in line.lower()}
        assert found == {"secret"}


async def test_a_secret_that_signs_no_more_is_erased(tmp_path: Path) -> None:
    """Replaced without overlap, or taken away, or its webhook deleted: its row is gone with the same commit."""
    async with running(tmp_path) as service:
        key = read_secret(FIRST)
        for after in ({"secret": SECOND, "secret_overlap_s": 0}, {"headers": {"x": "y"}}):
            await put(service, "global", url=URL, enabled=False, secret=FIRST)
            assert [key in material for material in materials(service)] == [True]
            await put(service, "global", url=URL, enabled=False, **after)
            assert [key in material for material in materials(service)] == [False]
        await put(service, "global", url=URL, enabled=False, secret=FIRST)
        assert (await service.request("DELETE", "/webhooks/global")).status == 204
        assert materials(service) == []
