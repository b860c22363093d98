"""Every route refuses bad input with the right status and a detail that names the place, and stores nothing."""

import gzip
import json
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.harness import API_KEY, INGEST_TOKEN, Reply, Service, running
from tests.http.support import ingest_routes, request_bytes, stats, talk

LIMIT = 8192
EVENT = '{"event":"messages.upsert","instance":"loja01","data":{}}'
SETTINGS = '{"url":"https://93.184.215.14/w"}'
EVOLUTION = '{"webhook":{"enabled":true,"url":"https://93.184.215.14/w"}}'
SET, PUT = "/webhook/set/loja01", "/webhooks/instances/loja01"
SOME_ID = "evt_" + "0" * 32
DEEP = "[" * 201 + "]" * 201

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Bad(NamedTuple):
    """A request that must be refused: with `status`, and a detail that has all of `names`."""

    status: int
    names: tuple[str, ...]
    method: str
    path: str
    body: str | bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service with one webhook, small limits, and no event."""
    folder = tmp_path_factory.mktemp("service")
    async with running(folder, OUTBOX_MAX_BODY_BYTES=str(LIMIT)) as service:
        await service.set_webhook("known", "https://93.184.215.14/w", enabled=False)
        yield service


def bad_events() -> Iterator[Bad]:
    """What every route that takes events refuses in the same way."""
    for path, headers in ingest_routes("/messages-upsert"):
        yield Bad(400, ("malformed", "(byte 5"), "POST", path, EVENT + "}", headers)
        yield Bad(400, ("malformed", "(byte 9)"), "POST", path, '{"event":}', headers)
        yield Bad(400, ("malformed", "(byte 22)"), "POST", path, '{"event":1,"instance":}', headers)
        yield Bad(400, ("malformed",), "POST", path, EVENT[:-1], headers)
        yield Bad(400, ("malformed",), "POST", path, "", headers)
        yield Bad(400, ("malformed",), "POST", path, EVENT.replace("{}", "NaN"), headers)
        yield Bad(400, ("200 levels",), "POST", path, EVENT.replace("{}", DEEP), headers)
        yield Bad(400, ("200 levels",), "POST", path, DEEP, headers)
        yield Bad(400, ("UTF-8", "byte 50"), "POST", path, EVENT.encode()[:50] + b"\xc3(", headers)
        yield Bad(422, ("`$`",), "POST", path, f"[{EVENT}]", headers)
        yield Bad(422, ("`$`",), "POST", path, "null", headers)
        yield Bad(422, ("event",), "POST", path, '{"instance":"loja01","data":{}}', headers)
        yield Bad(422, ("`$.event`",), "POST", path, EVENT.replace('"messages.upsert"', "7"), headers)
        yield Bad(422, ("`$.instance`",), "POST", path, EVENT.replace('"loja01"', '["a"]'), headers)
        yield Bad(422, ("`$.instance`", "control"), "POST", path, EVENT.replace("loja", "lo\\u0000ja"), headers)
        yield Bad(422, ("`$.instance`", "control"), "POST", path, EVENT.replace("loja", "lo\\u009bja"), headers)
        yield Bad(422, ("`$.instance`",), "POST", path, EVENT.replace("loja", "lo\\ud83dja"), headers)
        yield Bad(422, ("`$.instance`", "255"), "POST", path, EVENT.replace("loja", "l" * 254), headers)
        yield Bad(422, ("`$.instance`",), "POST", path, EVENT.replace("loja01", ".."), headers)
        yield Bad(422, ("`$.event`",), "POST", path, EVENT.replace("messages", "mess\\u0000ages"), headers)
        yield Bad(422, ("`$.event`",), "POST", path, EVENT.replace("messages", "no such kind"), headers)
        yield Bad(422, ("`$.event`",), "POST", path, EVENT.replace("messages.upsert", ""), headers)
        yield Bad(413, ("8192", "OUTBOX_MAX_BODY_BYTES"), "POST", path, EVENT + " " * LIMIT, headers)
        for coding in ("gzip", "identity", "br"):
            sent = headers | {"content-encoding": coding}
            yield Bad(415, ("Content-Encoding",), "POST", path, gzip.compress(EVENT.encode()), sent)
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"):
            yield Bad(415, (kind.partition(";")[0],), "POST", path, EVENT, headers | {"content-type": kind})
        yield Bad(508, ("5",), "POST", path, EVENT, headers | {"x-outbox-hops": "5"})
        yield Bad(508, ("99999999",), "POST", path, EVENT, headers | {"x-outbox-hops": "99999999"})
    yield Bad(422, ("instance",), "POST", "/events", '{"event":"call","data":{}}')
    yield Bad(422, ("`$.instance`",), "POST", "/events", EVENT.replace("loja01", ""))
    yield Bad(422, ("`$.instance`", "got `null`"), "POST", "/events", EVENT.replace('"loja01"', "null"))
    yield Bad(422, ("`$.instance`", "/"), "POST", "/events", EVENT.replace("loja01", "a/b"))
    yield Bad(422, ("`$.instance`", "/"), "POST", "/events", EVENT.replace("loja01", "a\\\\b"))
    yield Bad(422, ("data",), "POST", "/events", '{"event":"call","instance":"loja01"}')
    yield Bad(422, ("`$.event`", "MESSAGES_UPSERT"), "POST", "/events", EVENT.replace("upsert", "upzert"))
    yield Bad(
        422, ("`$.event`", "GROUP_PARTICIPANTS_UPDATE"), "POST", "/events", '{"event":"group-participant.update"}'
    )
    yield Bad(422, ("255", "Idempotency-Key"), "POST", "/events", EVENT, {"idempotency-key": "k" * 256})


def bad_settings() -> Iterator[Bad]:
    """What the routes that set a webhook refuse, each with the place in its own body."""
    for method, path, body, at in (("POST", SET, EVOLUTION, "$.webhook"), ("PUT", PUT, SETTINGS, "$")):
        yield Bad(400, ("malformed", f"(byte {len(body) + 1})"), method, path, body + "]")
        yield Bad(400, ("malformed",), method, path, "")
        yield Bad(400, ("malformed",), method, path, body[:-1])
        yield Bad(400, ("200 levels",), method, path, body.replace('"https://93.184.215.14/w"', DEEP))
        yield Bad(400, ("byte-order mark",), method, path, b"\xef\xbb\xbf" + body.encode())
        yield Bad(400, ("UTF-8",), method, path, body.encode().replace(b"/w", b"/\xff"))
        yield Bad(422, ("`$`",), method, path, f"[{body}]")
        yield Bad(422, ("uri" if method == "PUT" else "url",), method, path, body.replace('"url"', '"uri"'))
        yield Bad(422, (f"`{at}.url`",), method, path, body.replace('"https://93.184.215.14/w"', "7"))
        yield Bad(422, ("url`",), method, path, body.replace("https", "ftp"))
        for member, value in (
            ("enabled", '"true"'), ("headers", "[]"), ("headers", '{"a":1}'), ("base64", "0"), ("events", '"all"'),
            ("by_events" if method == "PUT" else "byEvents", "null"),
        ):  # fmt: skip
            text = body.replace('"url"', f'"{member}":{value},"url"').replace('"enabled":true,"enabled"', '"enabled"')
            yield Bad(422, (f"`{at}.{member}",), method, path, text)
        text = body.replace('"url"', '"events":["CALL","MESSAGE_UPSERTS"],"url"')
        yield Bad(422, (f"`{at}.events[1]`", "MESSAGES_UPSERT"), method, path, text)
        text = body.replace('"url"', '"headers":{"x-a":"ok","x-\\u0000":"b"},"url"')
        yield Bad(422, ("headers",), method, path, text)
        yield Bad(415, ("Content-Encoding",), method, path, body, {"content-encoding": "gzip"})
        yield Bad(415, ("application/json",), method, path, body, {"content-type": "text/plain"})
        for name in ("a%00b", "a%7Fb", "%ED%A0%BD", "%EF%BF%BD", "%2E%2E", "l" * 256, "a%5Cb", "%C2%9B"):
            place = path.replace("loja01", name)
            # `..` is resolved before any route is looked for, and the list of webhooks is only looked at.
            up = 405 if path.startswith("/webhooks/") else 404
            yield Bad(up if name == "%2E%2E" else 422, () if name == "%2E%2E" else ("instance",), method, place, body)


def other_requests() -> Iterator[Bad]:
    """Wrong methods, unknown routes and things that are not there."""
    yield Bad(404, ("loja01",), "GET", PUT)
    yield Bad(404, (), "DELETE", PUT)
    for wrong in ("evt_0", "0" * 32, "evt_" + "g" * 32, "%00", "evt_%F0", "dlv_" + "0" * 32):
        yield Bad(404, ("evt_",), "GET", f"/events/{wrong}")
    yield Bad(404, (SOME_ID,), "GET", f"/events/{SOME_ID}")
    for path in (
        "/", "/nothing", "/webhook", "/webhook/set", "/webhook/set/", "/webhooks/instances/", "/ingester",
        "/webhooks/instances/a/b/c", "/webhook/find/a%2Fb", "/eventss", "/stats/x",
    ):  # fmt: skip
        yield Bad(404, (), "POST", path, EVENT)
    for method, path in (
        ("GET", "/ingest"), ("PUT", "/ingest"), ("GET", f"/ingest/{INGEST_TOKEN}"), ("PATCH", "/ingest/x/y"),
        ("PUT", "/events"), ("PATCH", "/events"), ("DELETE", f"/events/{SOME_ID}"), ("POST", f"/events/{SOME_ID}"),
        ("POST", "/stats"), ("POST", "//events"),
        ("PUT", "/stats"), ("PATCH", PUT), ("POST", PUT), ("PUT", SET), ("GET", SET), ("POST", "/webhook/find/loja01"),
        ("DELETE", "/webhook/find/loja01"),
    ):  # fmt: skip
        yield Bad(405, (), method, path, EVENT if method in {"POST", "PUT"} else "")


def without_key() -> Iterator[Bad]:
    """Requests with no key, a wrong one, and one that is no ASCII."""
    routes = [
        ("POST", "/events", EVENT), ("POST", "/ingest", EVENT), ("POST", "/ingest/messages-upsert", EVENT),
        ("POST", "/ingest/wrong-token/messages-upsert", EVENT), ("POST", "/ingest/%C3%A9%00%FF", EVENT),
        ("POST", SET, EVOLUTION), ("GET", "/webhook/find/known", ""), ("PUT", PUT, SETTINGS), ("GET", PUT, ""),
        ("DELETE", "/webhooks/instances/known", ""), ("GET", f"/events/{SOME_ID}", ""), ("GET", "/stats", ""),
    ]  # fmt: skip
    for method, path, body in routes:
        for headers in (
            {"apikey": ""}, {"apikey": "wrong"}, {"apikey": API_KEY + "x"}, {"apikey": "chav\xe9"},
            {"apikey": "\U0001f511"}, {"apikey": "", "authorization": f"Basic {API_KEY}"},
            {"apikey": "wrong", "authorization": f"Bearer {API_KEY}"},
        ):  # fmt: skip
            yield Bad(401, ("key",), method, path, body, headers)
        if not path.startswith("/ingest"):
            yield Bad(401, ("key",), method, path, body, {"apikey": INGEST_TOKEN})
    yield Bad(401, ("key",), "POST", "/events", "{not json", {"apikey": "wrong"})


def expect(reply: Reply, bad: Bad) -> None:
    """Assert that a request was refused as it must be."""
    assert reply.status == bad.status, (bad, reply)
    assert reply.headers["content-type"].partition(";")[0] == "application/problem+json", (bad, reply)
    problem = reply.json()
    assert problem["status"] == bad.status
    assert problem["title"] == HTTPStatus(bad.status).phrase
    assert problem["detail"], (bad, reply)
    assert all(name in problem["detail"] for name in bad.names), (bad, problem)
    assert API_KEY not in problem["detail"]
    assert INGEST_TOKEN not in problem["detail"]
    if bad.path.startswith("/webhook/"):
        assert problem["error"] == problem["title"]
        message = problem["response"]["message"]
        assert problem["detail"] in (message if isinstance(message[0], str) else message[0])
    if bad.status == HTTPStatus.METHOD_NOT_ALLOWED:
        assert reply.headers["allow"]


@pytest.mark.parametrize(
    "kind", [bad_events, bad_settings, other_requests, without_key], ids=lambda kind: kind.__name__
)
async def test_bad_requests_are_refused_and_nothing_is_stored(service: Service, kind: object) -> None:
    """Each bad request gets its own status and a problem that names the place; the numbers and settings stay."""
    assert callable(kind)
    before = await stats(service)
    for bad in kind():
        expect(await service.request(bad.method, bad.path, bad.body, bad.headers), bad)
    assert await stats(service) == before
    assert (await service.request("GET", "/webhook/find/loja01")).json() is None
    assert (await service.request("GET", "/webhooks/instances/known")).json()["enabled"] is False


async def test_bytes_that_no_client_library_sends(service: Service) -> None:
    """Keys, names and paths of bytes beyond ASCII, and broken heads, are refused, never a failure inside."""
    before = await stats(service)
    key = f"apikey: {API_KEY}".encode()
    for data, status in [
        (request_bytes("POST", "/events", EVENT.encode(), b"apikey: \xe9\xff"), 401),
        (request_bytes("POST", "/events", EVENT.encode(), b"authorization: Bearer \xe9\xff"), 401),
        (request_bytes("POST", "/events", EVENT.encode(), b"authorization: \xe9"), 401),
        (request_bytes("GET", "/stats", b"", b"apikey: \xe9\xff"), 401),
        (request_bytes("POST", "/events", EVENT.encode(), key, b"content-type: \xe9"), 415),
        (request_bytes("POST", "/events", EVENT.encode(), key, b"x-outbox-hops: \xb2"), 202),
        (request_bytes("PUT", PUT, SETTINGS.encode(), key, b"content-type: \xe9"), 415),
        (request_bytes("POST", "/ingest/\xe9", EVENT.encode()), 400),
        (request_bytes("GET", "/webhooks/instances/\xe9", b"", key), 400),
        (request_bytes("GET", "/events/%zz", b"", key), 404),
        (request_bytes("GET", "*", b"", key), 404),
        (request_bytes("GET", "http://elsewhere/stats", b"", b"apikey: wrong"), 401),
        (b"GET /stats HTTP/1.1\r\nHost: outbox\r\napikey: a\x00b\r\nConnection: close\r\n\r\n", 400),
        (b"POST /events HTTP/1.1\r\nHost: outbox\r\nContent-Length: -1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
    ]:
        reply = await talk(service, data)
        assert reply is not None, data
        assert reply.status == status, (data, reply)
    assert (await stats(service))["events"] == before["events"] + 1


async def test_key_used_for_another_body(service: Service) -> None:
    """An idempotency key that comes with another body is 409; the first event stays what it was."""
    first = await service.request("POST", "/events", EVENT, {"idempotency-key": "k1"})
    assert first.status == 202
    before = await stats(service)
    bad = Bad(409, ("idempotency key", "another body"), "POST", "/events", EVENT + " ", {"idempotency-key": "k1"})
    expect(await service.request(bad.method, bad.path, bad.body, bad.headers), bad)
    assert await stats(service) == before
    shown = (await service.request("GET", f"/events/{first.json()['id']}")).json()
    assert shown["payload"] == json.loads(EVENT)


async def test_settings_are_small(service: Service) -> None:
    """Settings of more than a mebibyte are 413 on both faces, in the shape of each."""
    before = await stats(service)
    for method, path, body in (("POST", SET, EVOLUTION), ("PUT", PUT, SETTINGS)):
        text = body.replace("/w", "/" + "w" * 1_100_000).encode()
        reply = await talk(service, request_bytes(method, path, text, f"apikey: {API_KEY}".encode()))
        assert reply is not None
        expect(reply, Bad(413, (), method, path))
    assert await stats(service) == before
