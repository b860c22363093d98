import asyncio
import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from app.logs import configure_logs
from tests.harness import NO_ANSWER, Arrival, Receiver, Service, running

SECRETS = {
    "OUTBOX_API_KEY": "canary-api-key",
    "OUTBOX_INGEST_TOKEN": "canary-ingest-token",
    "header": "canary-header-value",
    "password": "canary-password",
    "query": "canary-query-token",
    "payload": "canary-payload-key",
}
RETRY_ONCE = {"WEBHOOK_RETRY_MAX_ATTEMPTS": "2", "WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "0"}


@asynccontextmanager
async def raw_receiver(answer: bytes) -> AsyncIterator[str]:
    """A server that sends these bytes for every connection, whatever they are, and closes; yields its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


def of_attempts(service: Service) -> list[dict[str, Any]]:
    """Return the lines that say what came of an attempt."""
    return [line for line in service.log if line["event"].startswith(("attempt.", "delivery."))]


async def ended(service: Service) -> None:
    """Stop the service, so that its log is complete."""
    assert await service.stop() == 0
    assert service.log.pop()["event"] == "end"


def kinds(service: Service) -> Counter[str]:
    """Return how many lines of each event the log has."""
    return Counter(line["event"] for line in service.log)


async def test_failures_are_one_line_each_and_successes_none(tmp_path: Path) -> None:
    """Each failed attempt is a warning that names event, webhook, attempt and cause; a success is only for debug."""
    answers = iter([500, 503, 200])
    async with Receiver(lambda _arrival: next(answers)) as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        event_id = await service.accept()
        await service.wait_until_settled()
        await ended(service)
    lines = of_attempts(service)
    assert [line["event"] for line in lines] == ["attempt.failed"] * 2
    assert [(line["attempt"], line["cause"]) for line in lines] == [(1, "status 500"), (2, "status 503")]
    assert {(line["event_id"], line["level"]) for line in lines} == {(event_id, "warning")}


async def test_successes_are_logged_at_debug_level(tmp_path: Path) -> None:
    """At debug level an acknowledged attempt is one line too; one that ends as dead says why at any level."""
    answers = iter([200, 400])
    async with (
        Receiver(lambda _arrival: next(answers)) as receiver,
        running(tmp_path, OUTBOX_LOG_LEVEL="debug") as service,
    ):
        await service.set_webhook("loja01", receiver.url)
        await service.accept()
        await service.wait_until_settled()
        await service.accept()
        await service.wait_until_settled()
        await ended(service)
    assert [(line["event"], line["level"]) for line in of_attempts(service)] == [
        ("delivery.acknowledged", "debug"),
        ("delivery.dead", "warning"),
    ]


async def test_every_line_is_json_with_time_and_level(tmp_path: Path) -> None:
    """What libraries have to say is JSON too: a request that is no HTTP, a client cut off at the stop."""
    before = datetime.now(UTC)
    async with running(tmp_path) as service:
        host, _, port = service.address.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"this is no HTTP\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        await service.wait_for_log(lambda line: line.get("logger") == "uvicorn.error")
        await ended(service)
    for line in service.log:
        assert line["event"] != "text", line
        assert line["level"] in {"debug", "info", "warning", "error"}
        assert before <= datetime.fromisoformat(line["timestamp"]) <= datetime.now(UTC)


@pytest.mark.parametrize("style", ["console", "json"])
def test_a_trace_shows_no_values(style: str) -> None:
    """A trace names places in the code, never what the variables held."""
    stream = io.StringIO()
    configure_logs("debug", style, stream)
    try:
        _fail(SECRETS["header"])
    except RuntimeError:
        structlog.get_logger().exception("request.failed")
    finally:
        structlog.reset_defaults()
    assert "RuntimeError" in stream.getvalue()
    assert SECRETS["header"] not in stream.getvalue()


def _fail(secret: str) -> None:
    if secret:
        msg = "it broke"
        raise RuntimeError(msg)


def with_secrets(url: str) -> str:
    """Put a password and a token into a URL."""
    return url.replace("://", f"://user:{SECRETS['password']}@") + f"/?token={SECRETS['query']}"


async def hang(_arrival: Arrival) -> int:
    """Answer too late."""
    await asyncio.sleep(0.5)
    return 200


async def test_no_secret_is_logged(tmp_path: Path) -> None:
    """Success, every kind of failure, wrong keys and wrong settings, at debug level: no secret is in the log."""
    redirected = web.Response(status=302, headers={"location": "http://elsewhere.example/"})
    answers: list[Callable[[Arrival], Any]] = [
        lambda _arrival: 200,
        lambda _arrival: 500,
        lambda _arrival: 400,
        lambda _arrival: NO_ANSWER,
        lambda _arrival: redirected,
        hang,
    ]
    settings = {name: SECRETS[name] for name in ("OUTBOX_API_KEY", "OUTBOX_INGEST_TOKEN")}
    key = {"apikey": SECRETS["OUTBOX_API_KEY"]}
    async with Receiver() as receiver, raw_receiver(b"HTTP/9.9 nonsense\r\n\r\n") as odd:
        nobody = ["http://127.0.0.1:1", "http://no.such.host.invalid"]
        urls = [with_secrets(url) for url in (receiver.url, odd, receiver.url.replace("http://", "https://"), *nobody)]
        service = Service(
            tmp_path, OUTBOX_LOG_LEVEL="debug", WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=urls[0],
            WEBHOOK_REQUEST_TIMEOUT_MS="200", **RETRY_ONCE, **settings,
        )  # fmt: skip
        await service.start()
        for number, url in enumerate(urls):
            body = {"url": url, "headers": {"x-secret": SECRETS["header"]}}
            put = await service.request("PUT", f"/webhooks/instances/i{number}", body, key)
            assert put.status == 201, put
        for n, answer in enumerate(answers):
            receiver.answer = answer
            # None fails five times in a row: what waits behind an open breaker would stay pending.
            for number in range(1 if n else len(urls)):
                event = {"event": "call", "instance": f"i{number}", "data": {"n": n}, "apikey": SECRETS["payload"]}
                path = f"/ingest/{SECRETS['OUTBOX_INGEST_TOKEN']}/call"
                assert (await service.request("POST", path, event, {"apikey": "none"})).status == 202
            await _settled(service, key)
        for method, path, body_text in (
            ("POST", "/events", "{"),
            ("POST", f"/ingest/{SECRETS['OUTBOX_INGEST_TOKEN']}", "{"),
            ("GET", f"/ingest/{SECRETS['OUTBOX_INGEST_TOKEN']}", None),
            ("POST", f"/ingests/{SECRETS['OUTBOX_INGEST_TOKEN']}", "{}"),
            ("PUT", "/webhooks/instances/i1", json.dumps({"url": f"http://user:{SECRETS['password']}@[::"})),
            (
                "PUT",
                "/webhooks/instances/i1",
                json.dumps({"url": "http://x", "headers": {"x": SECRETS["header"] + "\n"}}),
            ),
        ):
            assert (await service.request(method, path, body_text, key)).status in {400, 404, 405, 422}
        await ended(service)
    found = kinds(service)
    assert min(found["delivery.acknowledged"], found["attempt.failed"], found["delivery.dead"]) > 1
    causes = {line["cause"] for line in of_attempts(service) if "cause" in line}
    assert causes >= {
        "status 500", "status 400", "status 302", "connection_closed", "timeout", "protocol_error", "tls_error",
        "connection_refused", "dns_error",
    }  # fmt: skip
    text = json.dumps(service.log)
    assert not [name for name, secret in SECRETS.items() if secret in text]
    await service.verify()


async def _settled(service: Service, key: dict[str, str]) -> None:
    """Wait until nothing is pending, with a key of this test's own."""
    async with asyncio.timeout(30):
        while (await service.request("GET", "/stats", headers=key)).json()["deliveries"]["pending"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the service is another process: it can only be asked again
