"""Many events in one request: all of them in order or none, whatever they hold, and once for every key."""

import asyncio
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.harness import API_KEY, Receiver, Service, running
from tests.http.support import NDJSON, array, lines, members, numbered, post_batch, request_bytes, stats, talk

EXTREMES = lines("extremes.jsonl")
KEY = f"apikey: {API_KEY}".encode()
MIB = 1024 * 1024
ADDED = {'"destination"', '"date_time"'}
GOOD = b'{"event":"call","instance":"loja01","data":{}}'
CUT = [
    b'{"event":"call","instance":"loja01","data":"cut \\ud83d"}',
    b'{"event":"call","instance":"loja01","data":["\\udc00]", {"\\ud83d":"}"}], "more" : 1.0 }',
    b'{"event":"call","instance":"loja01","data":"\\\\ud83d \\ud83d\\ude00"}',
]


async def log_of(service: Service, ids: list[str]) -> list[tuple[int, Any]]:
    """The seq and the data of each event, as GET /events/{id} shows them."""
    shown = [(await service.request("GET", f"/events/{event}")).json() for event in ids]
    return [(one["seq"], one["payload"]["data"]) for one in shown]


@pytest.mark.parametrize("kind", ["application/json", NDJSON])
async def test_order_and_numbers(tmp_path: Path, kind: str) -> None:
    """Events get ids and seqs in a row, in the order of the batch, between those of other requests."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        bodies = numbered(20)
        body = array(bodies) if kind == "application/json" else b"\n".join(bodies)
        beside = asyncio.gather(*[service.accept("call", data=[-1]) for _ in range(20)])
        reply = await post_batch(service, body, kind)
        await beside
        assert reply.status == 202, reply
        assert reply.headers["content-type"] == "application/json"
        receipt = reply.json()
        assert sorted(receipt) == ["accepted", "first_seq", "ids", "last_seq"]
        assert receipt["accepted"] == len(receipt["ids"]) == 20
        assert receipt["last_seq"] == receipt["first_seq"] + 19
        rows = await log_of(service, receipt["ids"])
        assert rows == [(receipt["first_seq"] + n, [n, ""]) for n in range(20)]
        assert (await service.wait_until_settled())["events"] == 40
        arrived = Counter(arrival.webhook_id for arrival in receiver.arrivals)
        assert all(arrived[event] == 1 for event in receipt["ids"])


@pytest.mark.parametrize("kind", ["application/json", NDJSON])
async def test_payloads_arrive_byte_for_byte(tmp_path: Path, kind: str) -> None:
    """Odd numbers, doubled keys, spacing, depth and cut emoji of every element survive, as if each came alone."""
    bodies = [*EXTREMES, *CUT, *EXTREMES]
    body = b" [ " + b" ,\r\n ".join(bodies) + b"\n]" if kind != NDJSON else b"\n\r\n" + b"\r\n\n".join(bodies)
    async with Receiver() as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        reply = await post_batch(service, body, kind)
        assert reply.status == 202, reply
        posted = dict(zip(reply.json()["ids"], bodies, strict=True))
        for arrival in await receiver.wait_for_count(len(bodies)):
            sent, got = members(posted[arrival.webhook_id]), members(arrival.body)
            assert [pair for pair in got if pair[0] not in ADDED] == [pair for pair in sent if pair[0] not in ADDED]
        assert {arrival.webhook_id for arrival in receiver.arrivals} == set(posted)


async def test_ten_thousand_events(tmp_path: Path) -> None:
    """A batch of 10,000 events is one commit; of 10,001 it is 413, either way, and nothing is stored."""
    async with running(tmp_path) as service:
        bodies = numbered(10_001)
        for kind, body in (("application/json", array(bodies)), (NDJSON, b"\n".join(bodies))):
            reply = await post_batch(service, body, kind)
            assert reply.status == 413, reply.body[:200]
            assert "10000" in reply.json()["detail"]
        assert (await stats(service))["seq"] == 0
        assert (await post_batch(service, array(bodies[:-1]))).json()["last_seq"] == 10_000
        receipt = (await post_batch(service, b"\r\n".join(bodies[1:]), NDJSON)).json()
        assert (receipt["accepted"], receipt["first_seq"], receipt["last_seq"]) == (10_000, 10_001, 20_000)
        assert len(set(receipt["ids"])) == 10_000
        assert await log_of(service, receipt["ids"][::3_333]) == [
            (10_001 + n, [n + 1, ""]) for n in (0, 3_333, 6_666, 9_999)
        ]


async def test_sixteen_mebibytes(tmp_path: Path) -> None:
    """A batch of exactly 16 MiB is taken, of one byte more it is 413 by its length alone; events get no such limit."""
    async with running(tmp_path) as service:
        body = array(numbered(100, pad=16 * MIB // 100 - 64))
        exact = body[:-1] + b" " * (16 * MIB - len(body)) + b"]"
        reply = await talk(service, request_bytes("POST", "/events/batch", exact, KEY))
        assert reply is not None
        assert (reply.status, reply.json()["accepted"]) == (202, 100)
        head = request_bytes("POST", "/events/batch", b"", KEY).replace(
            b"Content-Length: 0", b"Content-Length: 16777217"
        )
        refused = await talk(service, head)
        assert refused is not None
        assert refused.status == 413
        assert "16777216 bytes" in refused.json()["detail"]
        assert "OUTBOX_MAX_BODY_BYTES" not in refused.json()["detail"]
        alone = await talk(service, request_bytes("POST", "/events", GOOD + b" " * 16 * MIB, KEY))
        assert alone is not None
        assert alone.status == 202
        assert (await stats(service))["events"] == 101
    # Where the limit on every body is lower still, it is that one that counts, and is named.
    async with running(tmp_path, OUTBOX_MAX_BODY_BYTES="1000") as service:
        reply = await post_batch(service, array(numbered(100)))
        assert reply.status == 413
        assert "OUTBOX_MAX_BODY_BYTES" in reply.json()["detail"]


async def test_a_key_is_for_the_whole_batch(tmp_path: Path) -> None:
    """A repeat has the same answer, says so and stores nothing, after a crash too; another body is 409."""
    bodies = numbered(300)
    keys = [{"idempotency-key": "k"}, {"webhook-id": "w"}]
    async with Receiver() as receiver:
        async with running(tmp_path) as service:
            await service.set_webhook("loja01", receiver.url)
            first = [await post_batch(service, array(bodies), **key) for key in keys]
            assert [reply.status for reply in first] == [202, 202]
            assert not any("idempotency-replayed" in reply.headers for reply in first)
            await service.wait_until_settled()
            for body, key in product((array([*bodies, GOOD]), array(bodies[:-1]), array(bodies) + b" ", GOOD), keys):
                other = await post_batch(service, body, NDJSON if body == GOOD else "application/json", **key)
                assert (other.status, other.headers["content-type"]) == (409, "application/problem+json"), other
            await service.kill()
        async with running(tmp_path) as service:
            before = await stats(service)
            for key, reply in zip(keys, first, strict=True):
                again = await post_batch(service, array(bodies), **key)
                assert (again.status, again.body) == (202, reply.body)
                assert again.headers["idempotency-replayed"] == "true"
                assert (await post_batch(service, GOOD, NDJSON, **key)).status == 409
            assert await stats(service) == before
            # A batch's key is its own: the same key on one event is another.
            for key in keys:
                alone = await service.request("POST", "/events", GOOD, key)
                assert (alone.status, "idempotency-replayed" in alone.headers) == (202, False)
                repeat = await service.request("POST", "/events", GOOD, key)
                assert (repeat.body, repeat.headers["idempotency-replayed"]) == (alone.body, "true")
            # Without a key equal batches are different ones.
            assert (await post_batch(service, array(bodies))).json()["ids"] != first[0].json()["ids"]
            await service.wait_until_settled()
        arrived = Counter(arrival.webhook_id for arrival in receiver.arrivals)
        assert set(arrived.values()) == {1}
        assert len(arrived) == 3 * 300 + 2


async def test_equal_batches_at_once(tmp_path: Path) -> None:
    """Twenty equal batches under one key that meet become one; a stranger's beside each of them are all stored."""
    async with running(tmp_path) as service:
        same = [post_batch(service, array(numbered(50)), idempotency_key="k") for _ in range(20)]
        others = [post_batch(service, array(numbered(5, n)), idempotency_key=f"s{n}") for n in range(20)]
        replies = await asyncio.gather(*[one for pair in zip(same, others, strict=True) for one in pair])
        assert {reply.status for reply in replies} == {202}
        assert len({reply.body for reply in replies[0::2]}) == 1
        assert sum("idempotency-replayed" not in reply.headers for reply in replies[0::2]) == 1
        assert len({event for reply in replies for event in reply.json()["ids"]}) == 50 + 20 * 5
        assert (await stats(service))["events"] == 50 + 20 * 5


async def test_kill_right_after_the_answer(tmp_path: Path) -> None:
    """Killed the moment its 202 is read, the service has the whole batch on disk and delivers it."""
    async with Receiver(lambda _arrival: 500) as receiver:
        service = Service(tmp_path)
        ids: list[str] = []
        for number in range(3):
            await service.start()
            await service.set_webhook("loja01", receiver.url)
            reply = await post_batch(service, array(numbered(200, number * 200)))
            service.process.kill()
            await service.kill()
            await service.verify()
            assert reply.status == 202
            ids += reply.json()["ids"]
        receiver.answer = lambda _arrival: 200
        before = len(receiver.arrivals)
        await service.start()
        assert (await service.wait_until_settled(60))["deliveries"]["dead"] == 0
        assert await service.stop() == 0
        await service.verify()
        arrived = {arrival.webhook_id: arrival.json()["data"][0] for arrival in receiver.arrivals[before:]}
        assert arrived == dict(zip(ids, range(600), strict=True))
