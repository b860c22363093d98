"""Every POST of a webhook with a secret is signed by Standard Webhooks; the package of that name is the referee."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.harness import Arrival, Receiver, Service, running
from tests.http.signed import alone, put, signatures, verifies, written
from tests.http.support import lines, settled

OLD, NEW, NEWER = (written(name) for name in ("old", "new", "newer"))
MEDIA = (
    '{"event": "send.message", "instance": "loja01", "n": 1e400, "destination": "x", "text": "ol\u00e1 \\ud83d",'
    ' "data": {"base64": "AAAA", "message": {"base64": "AAAA"}}}'
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for the tests that need none of their own: each has an instance of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


async def delivered(service: Service, receiver: Receiver, instance: str) -> list[Arrival]:
    """Post an event for an instance and return its attempts as they arrived."""
    event_id = await service.accept(instance=instance)
    await settled(service, event_id)
    return [arrival for arrival in receiver.arrivals if arrival.webhook_id == event_id]


async def until_rotated(service: Service, path: str) -> None:
    """Wait until the earlier secret of a webhook signs no more."""
    async with asyncio.timeout(10):
        while (await service.request("GET", f"/webhooks/{path}")).json()["previous_secret_until"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # the service is another process: it can only be asked again


async def test_the_very_bytes_that_are_sent_are_signed(tmp_path: Path) -> None:
    """Of every scope, in both route styles, media stripped or not, odd bodies: each copy by its webhook's secret."""
    webhooks: dict[str, dict[str, Any]] = {
        "global": {"by_events": True},
        "global/x": {"by_events": True, "route_style": "evolution", "base64": False},
        "instances/loja01": {"by_events": True, "base64": False, "headers": {"jwt_key": "k"}},
        "instances/loja01/x": {"by_events": True, "route_style": "evolution"},
    }
    bodies = [MEDIA.encode(), *lines("extremes.jsonl")]
    async with Receiver() as receiver, running(tmp_path) as service:
        for path, settings in webhooks.items():
            reply = await put(service, path, url=f"{receiver.url}/{path}", secret=written(path), **settings)
            assert reply.status == 201, reply
        for body in bodies:
            assert (await service.request("POST", "/events", body)).status == 202, body
        await service.wait_until_settled()
        suffixes = [("global", "s"), ("global/x", ""), ("instances/loja01", "s"), ("instances/loja01/x", "")]
        expected = {f"/{path}/send-message{ending}" for path, ending in suffixes}
        assert expected <= {arrival.path for arrival in receiver.arrivals}
        assert len(receiver.arrivals) > 2 * len(bodies)
        for arrival in receiver.arrivals:
            path = arrival.path.rpartition("/")[0].strip("/")
            assert [name for name in webhooks if verifies(arrival, written(name))] == [path], arrival
            assert len(signatures(arrival)) == 1


async def test_two_secrets_sign_while_one_takes_over(service: Service) -> None:
    """Both, the newest first, across a restart too; the end of it is shown and can be brought forward."""
    async with Receiver() as receiver:
        assert (await put(service, "instances/turn", url=receiver.url, secret=OLD)).status == 201
        shown = (await put(service, "instances/turn", url=receiver.url, secret=NEW)).json()
        assert shown["previous_secret_until"] > shown["updated_at"]
        await service.stop()
        await service.start()
        (arrival,) = await delivered(service, receiver, "turn")
        first, second = signatures(arrival)
        assert (verifies(alone(arrival, first), NEW), verifies(alone(arrival, first), OLD)) == (True, False)
        assert (verifies(alone(arrival, second), NEW), verifies(alone(arrival, second), OLD)) == (False, True)
        assert (verifies(arrival, NEW), verifies(arrival, OLD)) == (True, True)
        kept = (await put(service, "instances/turn", url=receiver.url, secret="***")).json()
        assert kept["previous_secret_until"] == shown["previous_secret_until"]
        over = (await put(service, "instances/turn", url=receiver.url, secret="***", secret_overlap_s=0)).json()
        assert (over["secret"], over["previous_secret_until"]) == ("***", None)
        (arrival,) = await delivered(service, receiver, "turn")
        assert (verifies(arrival, NEW), verifies(arrival, OLD)) == (True, False)


async def test_an_earlier_secret_signs_no_longer_than_was_said(service: Service) -> None:
    """Once its time is over the new one signs alone, and nothing has to be set for that."""
    async with Receiver() as receiver:
        await put(service, "instances/over", url=receiver.url, secret=OLD)
        shown = (await put(service, "instances/over", url=receiver.url, secret=NEW, secret_overlap_s=1)).json()
        assert shown["previous_secret_until"] is not None
        await until_rotated(service, "instances/over")
        (arrival,) = await delivered(service, receiver, "over")
        (only,) = signatures(arrival)
        assert verifies(alone(arrival, only), NEW)


async def test_each_attempt_is_signed_by_what_is_in_force(service: Service) -> None:
    """A delivery that is tried again after a rotation is signed anew, with the same id, by the secrets of then."""

    async def rotate(arrival: Arrival) -> int:
        if arrival.headers["x-outbox-attempt"] == "1":
            await put(service, "instances/again", url=receiver.url, secret=NEW, secret_overlap_s=0)
            return 503
        return 200

    async with Receiver(rotate) as receiver:
        await put(service, "instances/again", url=receiver.url, secret=OLD)
        first, second = await delivered(service, receiver, "again")
        assert first.body == second.body
        assert [verifies(first, secret) for secret in (OLD, NEW)] == [True, False]
        assert [verifies(second, secret) for secret in (OLD, NEW)] == [False, True]


async def test_a_secret_that_is_taken_away_ends_all_signing(service: Service) -> None:
    """Absent or null: from then on nothing is signed, though an earlier secret had time left."""
    async with Receiver() as receiver:
        for without in ({}, {"secret": None}):
            for secret in (OLD, NEW):
                await put(service, "instances/gone", url=receiver.url, secret=secret)
            shown = (await put(service, "instances/gone", url=receiver.url, **without)).json()
            assert (shown["secret"], shown["previous_secret_until"]) == (None, None)
            (arrival,) = await delivered(service, receiver, "gone")
            assert "webhook-signature" not in arrival.headers


@pytest.mark.parametrize("path", ["global/tried", "instances/tried", "instances/tried/x"])
async def test_a_test_event_is_signed_too(service: Service, path: str) -> None:
    """As its deliveries would be, both secrets of a rotation included, and of a webhook that is disabled."""
    async with Receiver() as receiver:
        for secret in (OLD, NEW):
            await put(service, path, url=receiver.url, secret=secret, enabled=False)
        reply = await service.request("POST", f"/webhooks/{path}/test")
        assert reply.json()["status"] == 200
        (arrival,) = receiver.arrivals
        assert (verifies(arrival, OLD), verifies(arrival, NEW)) == (True, True)


async def test_evolutions_own_route_leaves_the_secret_alone(service: Service) -> None:
    """It has no word for it: a rotation that is going on goes on, and the row does not show it."""
    async with Receiver() as receiver:
        for secret in (OLD, NEW):
            await put(service, "instances/theirs", url=f"{receiver.url}/before", secret=secret)
        for body in ({"webhook": {"url": receiver.url, "enabled": True}}, {"url": receiver.url, "secret": NEWER}):
            reply = await service.request("POST", "/webhook/set/theirs", body)
            assert (reply.status, "secret" in reply.json()) == (201, False)
            (arrival,) = await delivered(service, receiver, "theirs")
            assert arrival.path == "/"
            assert [verifies(arrival, secret) for secret in (OLD, NEW, NEWER)] == [True, True, False]
