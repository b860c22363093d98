"""An idempotency key makes a repeated request the same event: once stored, once delivered."""

import asyncio
import json
from collections import Counter
from pathlib import Path

from tests.harness import Receiver, Reply, Service, running
from tests.http.support import request_bytes, settled, stats, talk


def event(data: object) -> str:
    """An event of an instance with a webhook."""
    return json.dumps({"event": "call", "instance": "loja01", "data": data})


async def post(service: Service, body: str, key: str | None = None) -> Reply:
    """Post an event, with a key if there is one."""
    return await service.request("POST", "/events", body, {"idempotency-key": key} if key is not None else {})


async def test_repeats_are_the_same_event(tmp_path: Path) -> None:
    """The same key with the same body gives the same answer, says that it is a repeat, and delivers nothing more."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        first = await post(service, event(1), "k")
        assert first.status == 202
        assert "idempotency-replayed" not in first.headers
        before = await stats(service)
        for _ in range(3):
            again = await post(service, event(1), "k")
            assert (again.status, again.body) == (202, first.body)
            assert again.headers["idempotency-replayed"] == "true"
        assert (await stats(service))["seq"] - before[
            "seq"
        ] <= 1  # the first one's attempt may have been recorded since
        for other in ("K", "k!", "kk", "\u00e9", "x" * 255):
            reply = await post(service, event(1), other)
            assert "idempotency-replayed" not in reply.headers
        # Without a key, or with an empty one, equal bodies are different events.
        for key in (None, None, "", ""):
            reply = await post(service, event(1), key)
            assert "idempotency-replayed" not in reply.headers
        assert (await service.wait_until_settled())["events"] == 1 + 5 + 4
        arrived = Counter(arrival.webhook_id for arrival in receiver.arrivals)
        assert arrived[first.json()["id"]] == 1
        assert len(arrived) == 10


async def test_repeat_survives_a_restart_and_a_change_of_webhooks(tmp_path: Path) -> None:
    """A key is remembered on disk; a repeat is not routed anew, whatever webhooks there are by then."""
    async with Receiver() as receiver:
        async with running(tmp_path) as service:
            first = await post(service, event(1), "k")
            assert first.json()["deliveries"] == 0
        async with running(tmp_path) as service:
            await service.set_webhook("loja01", receiver.url)
            again = await post(service, event(1), "k")
            assert (again.body, again.headers["idempotency-replayed"]) == (first.body, "true")
            assert (await post(service, event(2), "k")).status == 409
            await settled(service, str((await post(service, event(2), "other")).json()["id"]))
            assert len(receiver.arrivals) == 1


async def test_equal_keys_at_once_become_one_event(tmp_path: Path) -> None:
    """Fifty equal requests at once are one event and 49 repeats; those of strangers beside them are all stored."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await service.set_webhook("loja01", receiver.url)
        wanted = [post(service, event("same"), "k") for _ in range(50)]
        strangers = [post(service, event(number), f"s{number}") for number in range(25)]
        keyless = [post(service, event("none")) for _ in range(25)]
        mixed = [one for three in zip(wanted, strangers + keyless, strict=True) for one in three]
        replies = await asyncio.gather(*mixed)
        same, others = replies[0::2], replies[1::2]
        assert {reply.status for reply in replies} == {202}
        assert len({reply.body for reply in same}) == 1
        assert sum("idempotency-replayed" not in reply.headers for reply in same) == 1
        assert len({reply.json()["id"] for reply in others}) == 50
        assert not any("idempotency-replayed" in reply.headers for reply in others)
        assert (await service.wait_until_settled())["events"] == 51
        arrived = Counter(arrival.webhook_id for arrival in receiver.arrivals)
        assert set(arrived.values()) == {1}
        assert len(arrived) == 51


async def test_one_key_for_many_bodies_at_once(tmp_path: Path) -> None:
    """Of different bodies that meet under one key one is stored; the others are 409, and strangers undisturbed."""
    async with running(tmp_path) as service:
        # Sent in one go, so that they meet in as few commits as can be.
        key = [f"apikey: {service.settings['OUTBOX_API_KEY']}".encode(), b"idempotency-key: k"]
        posting = []
        for number in range(20):
            posting.append(talk(service, request_bytes("POST", "/events", event(number).encode(), *key)))
            posting.append(talk(service, request_bytes("POST", "/events", event(number).encode(), key[0])))
        replies = [reply for reply in await asyncio.gather(*posting) if reply is not None]
        assert Counter(reply.status for reply in replies[1::2]) == {202: 20}
        assert Counter(reply.status for reply in replies[0::2]) == {202: 1, 409: 19}
        for refused in (reply for reply in replies if reply.status == 409):
            assert refused.headers["content-type"] == "application/problem+json"
            assert "another body" in refused.json()["detail"]
        assert (await stats(service))["events"] == 21
        (stored,) = [reply for reply in replies[0::2] if reply.status == 202]
        shown = (await service.request("GET", f"/events/{stored.json()['id']}")).json()
        again = await post(service, event(shown["payload"]["data"]), "k")
        assert (again.body, again.headers["idempotency-replayed"]) == (stored.body, "true")


async def test_key_is_new_again_after_the_window(tmp_path: Path) -> None:
    """Once the window is over the key stands for a new event, with the same body or another, and for that one alone."""
    async with Receiver() as receiver, running(tmp_path, OUTBOX_IDEMPOTENCY_WINDOW="1s") as service:
        await service.set_webhook("loja01", receiver.url)
        ids = []
        for body in (event(1), event(1), event(2)):
            async with asyncio.timeout(20):
                while (reply := await post(service, body, "k")).status == 409 or reply.json()["id"] in ids:
                    assert reply.status == 409 or reply.headers["idempotency-replayed"] == "true"
                    await asyncio.sleep(0.05)
            assert "idempotency-replayed" not in reply.headers
            ids.append(reply.json()["id"])
        assert (await post(service, event(2), "k")).json()["id"] == ids[-1]
        assert (await service.wait_until_settled())["events"] == 3
        assert Counter(arrival.webhook_id for arrival in receiver.arrivals) == dict.fromkeys(ids, 1)
