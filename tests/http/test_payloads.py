"""Payloads arrive byte for byte, however odd; what is no JSON, too deep or too large is refused and not stored."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from tests.harness import API_KEY, INGEST_TOKEN, Receiver, Service, running
from tests.http.support import (
    in_chunks,
    ingest_routes,
    lines,
    members,
    request_bytes,
    settled,
    states,
    stats,
    talk,
)  # fmt: skip

EXTREMES = lines("extremes.jsonl")
KEY = f"apikey: {API_KEY}".encode()
LIMIT = 4096


def nested(levels: int) -> bytes:
    """An event of so many levels, the object itself included."""
    inner = b"[" * (levels - 1) + b"]" * (levels - 1)
    return b'{"event":"call","instance":"deep","data":%s}' % inner


def of_size(size: int) -> bytes:
    """An event of exactly so many bytes."""
    head, tail = b'{"event":"call","instance":"sized","data":"', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


async def chunked(service: Service, path: str, headers: dict[str, str], *parts: bytes) -> int:
    """Post a body without a Content-Length and return the status."""
    sent = {"content-type": "application/json", **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(service.address + path, data=in_chunks(*parts), headers=sent) as answer,
    ):
        await answer.read()
        return answer.status


def test_members_are_cut_out_as_they_are_written() -> None:
    """The helper that compares payloads sees white space inside a value, and none around it."""
    assert members(b'{ "a" : [ 1 , 2 ] ,\n"b":1e400}') == [('"a"', "[ 1 , 2 ]"), ('"b"', "1e400")]


async def test_every_member_survives_byte_for_byte(tmp_path: Path) -> None:
    """Numbers, escapes, key order, doubled keys, depth and spacing of every member arrive as they were sent.

    Only `destination` is replaced (or added), and a missing `date_time` added: once, the same on every attempt and in
    every copy.
    """
    async with (
        Receiver(lambda arrival: 200 if arrival.headers["x-outbox-attempt"] == "3" else 500) as receiver,
        running(
            tmp_path, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=f"{receiver.url}/global"
        ) as service,
    ):  # fmt: skip
        for route in range(5):
            await service.set_webhook(f"loja{route}", f"{receiver.url}/local")
        posted = {}
        for line in EXTREMES:
            for route, (path, headers) in enumerate(ingest_routes("/messages-upsert")):
                body = line.replace(b"loja01", b"loja%d" % route)
                reply = await service.request("POST", path, body, headers)
                assert reply.status == 202, (path, body, reply)
                posted[reply.json()["id"]] = body
        arrivals = await receiver.wait_for_count(len(posted) * 2 * 3)
        dates: dict[str, set[str]] = {}
        for arrival in arrivals:
            sent = dict(members(posted[arrival.webhook_id]))
            got = dict(members(arrival.body))
            assert got.pop('"destination"') == json.dumps(receiver.url + arrival.path)
            dates.setdefault(arrival.webhook_id, set()).add(got['"date_time"'])
            if '"date_time"' not in sent:
                moment = datetime.fromisoformat(json.loads(got.pop('"date_time"')))
                assert moment.utcoffset() is not None
                assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
            assert list(got.items()) == list(sent.items())
        assert set(map(len, dates.values())) == {1}
        for event_id in posted:
            assert await states(service, event_id) == {"acknowledged"}
        posts = {(arrival.path, arrival.webhook_id, arrival.headers["x-outbox-attempt"]) for arrival in arrivals}
        assert len(posts) == len(receiver.arrivals) == len(posted) * 2 * 3


async def test_depth_text_and_surrogates(tmp_path: Path) -> None:
    """200 levels are taken and 201 refused; a lone surrogate survives anywhere; BOM and invalid UTF-8 are refused."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await service.set_webhook("deep", receiver.url)
        good = [
            nested(200),
            b'{"event":"call","instance":"deep","data":"%s"}' % (b"[{" * 300),
            b'{"event":"call","instance":"deep","data":"cut \\ud83d","\\ud83d":["\\uDC00"],"k\\\\ud83d":1}',
            b'{"event":"call","instance":"deep","data":"\\ud83d\\ude00 \\ud83d\\ud83d\\ude00","x":"\\u0000"}',
            '{"event":"call","instance":"deep","data":"\ufeff\U0010ffff\u2028"}'.encode(),
        ]
        before = await stats(service)
        for path, headers in ingest_routes("/call"):
            for body, wanted in [
                (nested(201), "200 levels"),
                (nested(100_000), "200 levels"),
                (nested(200).replace(b"[]", b'[{"a":"]"}]'), "200 levels"),
                (b"\xef\xbb\xbf" + nested(2), "byte-order mark"),
                (b'{"event":"call","instance":"deep","data":"\xff"}', "UTF-8 (byte 42)"),
                (b'{"event":"call","instance":"deep","data":"\xed\xa0\xbd"}', "UTF-8 (byte 42)"),
                (nested(3).decode().encode("utf-16"), "UTF-8"),
            ]:
                reply = await service.request("POST", path, body, headers)
                assert (reply.status, reply.headers["content-type"]) == (400, "application/problem+json"), reply
                assert wanted in reply.json()["detail"]
        assert await stats(service) == before
        posted = {}
        for body in good:
            reply = await service.request("POST", "/events", body)
            assert reply.status == 202, reply
            posted[reply.json()["id"]] = body
        for arrival in await receiver.wait_for_count(len(good)):
            added = {'"destination"', '"date_time"'}
            assert [pair for pair in members(arrival.body) if pair[0] not in added] == members(
                posted[arrival.webhook_id]
            )


async def test_body_limit_is_exact(tmp_path: Path) -> None:
    """A body of exactly OUTBOX_MAX_BODY_BYTES is taken, one byte more is 413, with a Content-Length and chunked."""
    async with Receiver() as receiver, running(tmp_path, OUTBOX_MAX_BODY_BYTES=str(LIMIT)) as service:
        await service.set_webhook("sized", receiver.url)
        exact, over = of_size(LIMIT), of_size(LIMIT + 1)
        for path, headers in ingest_routes("/call"):
            reply = await service.request("POST", path, over, headers)
            assert reply.status == 413, reply
            assert "4096" in reply.json()["detail"]
            assert "OUTBOX_MAX_BODY_BYTES" in reply.json()["detail"]
            assert await chunked(service, path, headers, over) == 413
            assert await chunked(service, path, headers, over[:-1], over[-1:]) == 413
            assert await chunked(service, path, headers, *[b" " * 1000] * 5) == 413
        assert (await stats(service))["events"] == 0
        # By its length alone: not a byte of the body has to be sent.
        head = request_bytes("POST", "/events", b"", KEY).replace(b"Content-Length: 0", b"Content-Length: 5000000000")
        refused = await talk(service, head)
        assert refused is not None
        assert refused.status == 413
        assert (await service.request("POST", "/events", exact)).status == 202
        assert await chunked(service, "/events", {"apikey": API_KEY}, exact) == 202
        assert await chunked(service, f"/ingest/{INGEST_TOKEN}", {}, exact[:1], exact[1:9], exact[9:]) == 202
        arrivals = await receiver.wait_for_count(3)
        assert all(json.loads(arrival.body)["data"] == json.loads(exact)["data"] for arrival in arrivals)


async def test_client_that_leaves_stores_nothing(tmp_path: Path) -> None:
    """A body that breaks off is no event, whatever of it had come."""
    async with running(tmp_path) as service:
        body = of_size(2000)
        for sent in (body[:-1], body[:100], b""):
            whole = request_bytes("POST", "/events", body, KEY)
            assert await talk(service, whole[: len(whole) - len(body)] + sent, then_leave=True) is None
        assert (await stats(service))["seq"] == 0


async def test_large_body_goes_through(tmp_path: Path) -> None:
    """A body of 20 MB is taken, stored, delivered and shown whole, to a local and to the global webhook."""
    async with (
        Receiver() as receiver,
        running(tmp_path, WEBHOOK_GLOBAL_ENABLED="true", WEBHOOK_GLOBAL_URL=receiver.url) as service,
    ):
        await service.set_webhook("sized", f"{receiver.url}/local")
        body = of_size(20_000_000)
        reply = await talk(service, request_bytes("POST", "/events", body, KEY))
        assert reply is not None
        assert reply.status == 202
        arrivals = await receiver.wait_for_count(2)
        wanted = hashlib.sha256(json.loads(body)["data"].encode()).digest()
        for arrival in arrivals:
            assert hashlib.sha256(arrival.json()["data"].encode()).digest() == wanted
        shown = await settled(service, reply.json()["id"])
        assert shown["bytes"] == len(body)
        assert len(shown["payload"]["data"]) == len(json.loads(body)["data"])
        assert len(shown["attempts"]) == 2
