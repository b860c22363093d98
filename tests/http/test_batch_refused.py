"""What is no batch, or holds one bad event, is refused with the place named, and nothing of it is stored."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness import Service, running
from tests.http.support import NDJSON, array, numbered, post_batch, stats

GOOD = b'{"event":"call","instance":"loja01","data":{}}'
CUT = b'{"event":"call","instance":"loja01","data":"cut \\ud83d"}'

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service with no webhook, for what is refused."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (b"%s\n%s\n", 2), (b"%s\r\n%s\r\n", 2), (b"%s\n%s", 2), (b"\n\n \r\n%s\n\r\n\t\n%s\r\n\n", 2),
        (b"  %s \t\n %s", 2), (b"[%s,%s]", 0), (b"%s %s", 0), (b"%s\r%s", 0), (b"\x00%s\n%s", 0),
    ],
)  # fmt: skip
async def test_lines_and_what_is_between_them(service: Service, text: bytes, count: int) -> None:
    """Empty lines, carriage returns and a missing last newline are fine; two events on a line are not."""
    before = (await stats(service))["events"]
    kind = "Application/X-NDJSON; charset=utf-8"
    reply = await post_batch(service, text % (GOOD, CUT), kind)
    assert reply.status == (202 if count else 422 if text.startswith(b"[") else 400), reply
    assert (await stats(service))["events"] == before + count


@pytest.mark.parametrize(
    ("bad", "status", "detail"),
    [
        (b'{"event":"call","instance":"a/b","data":{}}', 422, ".instance"),
        (b'{"event":"call","instance":null,"data":{}}', 422, ".instance"),
        (b'{"event":"call","instance":"a"}', 422, "`data`"),
        (b'{"event":"no.such","instance":"a","data":{}}', 422, ".event"),
        (b"null", 422, "null"),
        (b"{", 400, "malformed"),
        (b'{"event":"call","instance":"a","data":%s}' % (b"[" * 200 + b"]" * 200), 400, "levels deep"),
        (b'{"event":"call","instance":"a","data":"\xff"}', 400, "UTF-8"),
    ],
)
async def test_all_or_nothing(service: Service, bad: bytes, status: int, detail: str) -> None:
    """One bad event, be it the last of many, and nothing is stored; the answer says which it is."""
    before = await stats(service)
    for kind, place in (("application/json", "$[3]"), (NDJSON, "line 4")):
        many = [*numbered(3), bad] if status == 400 else [*numbered(3), bad, *numbered(400)]
        reply = await post_batch(service, array(many) if kind != NDJSON else b"\n".join(many), kind)
        assert (reply.status, reply.headers["content-type"]) == (status, "application/problem+json"), reply
        assert detail in reply.json()["detail"]
        if status == 422 or (kind == NDJSON and detail != "UTF-8"):
            assert place in reply.json()["detail"]
    reply = await post_batch(service, array([*numbered(9_999), bad]))
    assert reply.status == status
    assert await stats(service) == before


@pytest.mark.parametrize(
    ("body", "kind", "status", "detail"),
    [
        (b"[]", "application/json", 422, "empty"), (b" [ \n] ", "application/json", 422, "empty"),
        (b"", NDJSON, 422, "empty"), (b"\n\r\n \n", NDJSON, 422, "empty"),
        (b"", "application/json", 400, "malformed"), (GOOD, "application/json", 422, "array"),
        (b"[%s]" % GOOD, "text/plain", 415, "application/x-ndjson"), (GOOD, "application/jsonl", 415, "ndjson"),
        (GOOD, "application/x-www-form-urlencoded", 415, "application/json"),
    ],
)  # fmt: skip
async def test_what_is_no_batch(service: Service, body: bytes, kind: str, status: int, detail: str) -> None:
    """An empty batch, an event alone and another content type are refused in words."""
    before = await stats(service)
    reply = await post_batch(service, body, kind)
    assert (reply.status, reply.headers["content-type"]) == (status, "application/problem+json"), reply
    assert detail in reply.json()["detail"]
    assert (await post_batch(service, body, kind, content_encoding="gzip")).status == 415
    assert (await post_batch(service, body, kind, apikey="wrong")).status == 401
    assert await stats(service) == before


async def test_who_may_post_what_how(service: Service) -> None:
    """Only POST is taken, and errors in a long key or hops are those of one event."""
    for method in ("PUT", "DELETE", "PATCH"):
        reply = await service.request(method, "/events/batch", array([GOOD]))
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert (await post_batch(service, array([GOOD]), idempotency_key="k" * 256)).status == 422
    assert (await post_batch(service, array([GOOD]), x_outbox_hops="5")).status == 508
    reply = await post_batch(service, array([GOOD]), x_outbox_hops="4")
    assert reply.status == 202
    assert json.loads(reply.body)["accepted"] == 1
