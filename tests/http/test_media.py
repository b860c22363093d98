"""`base64: false` strips media from one webhook's copy, and from nobody else's."""

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.harness import INGEST_TOKEN, Receiver, Service, running
from tests.http.support import members, settled

IMAGE = '"data:image/png;base64,iVBOR\\/w0K"'
WITH = (
    '{"event": "messages.upsert", "instance": "%s", "n": 1e400, "data": {"key" : {"id": "3EB0"} , "base64" : %s ,'
    ' "message": {"base64": %s, "imageMessage": {"base64": "kept", "caption": "cut \\ud83d"} }, "n": 1.50 }}'
)
WITHOUT = (
    '{"key" : {"id": "3EB0"} , "message": {"imageMessage": {"base64": "kept", "caption": "cut \\ud83d"} }, "n": 1.50 }'
)
UNTOUCHED = [
    '[{"base64": "x", "message": {"base64": "y"}}]',
    '"base64"',
    "null",
    '{"message": ["base64"], "qrcode": {"base64": "shown"}}',
    '{"message": null, "text": "\\ud83d base64 "}',
]

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="receiver")
async def running_receiver() -> AsyncIterator[Receiver]:
    """A receiver for all tests here: each looks at paths of its own."""
    async with Receiver() as receiver:
        yield receiver


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> AsyncIterator[Service]:
    """A service for all tests here: each has an instance of its own."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


async def copies(service: Service, receiver: Receiver, instance: str, body: str) -> dict[str, list[tuple[str, str]]]:
    """Post a body of an instance with two webhooks; return the members of the copies by path, `date_time` left out."""
    if (await service.request("GET", f"/webhooks/instances/{instance}")).status == 404:
        await service.set_webhook(instance, f"{receiver.url}/{instance}/whole")
        await service.set_webhook(f"{instance}/thin", f"{receiver.url}/{instance}/thin", base64=False)
    reply = await service.request("POST", f"/ingest/{INGEST_TOKEN}", body)
    assert reply.status == 202, reply
    await settled(service, reply.json()["id"])
    arrivals = [arrival for arrival in receiver.arrivals if arrival.webhook_id == reply.json()["id"]]
    assert len(arrivals) == 2
    return {
        arrival.path.rpartition("/")[2]: [pair for pair in members(arrival.body) if pair[0] != '"date_time"']
        for arrival in arrivals
    }


async def test_media_goes_from_one_copy_only(service: Service, receiver: Receiver) -> None:
    """`data.base64` and `data.message.base64` are gone from it, every other byte of its members stays."""
    found = await copies(service, receiver, "strip", WITH % ("strip", IMAGE, IMAGE))
    whole, thin = dict(found["whole"]), dict(found["thin"])
    assert whole.pop('"data"') == (WITH % ("strip", IMAGE, IMAGE)).partition('"data": ')[2][:-1]
    assert thin.pop('"data"') == WITHOUT
    assert (whole.pop('"destination"'), thin.pop('"destination"')) == tuple(
        f'"{receiver.url}/strip/{end}"' for end in ("whole", "thin")
    )
    assert whole == thin == {'"event"': '"messages.upsert"', '"instance"': '"strip"', '"n"': "1e400"}


@pytest.mark.parametrize("data", UNTOUCHED)
async def test_what_is_no_media_stays(service: Service, receiver: Receiver, data: str) -> None:
    """Arrays, texts, and members of the same name elsewhere arrive as they came."""
    body = f'{{"event":"messages.upsert","instance":"other","data":{data}}}'
    found = await copies(service, receiver, "other", body)
    assert [dict(pairs)['"data"'] for pairs in found.values()] == [data, data]


async def test_large_media_is_stripped(service: Service, receiver: Receiver) -> None:
    """Nearly a megabyte of media leaves a small POST; the other webhook gets it all."""
    media = json.dumps("iVBO" * 120_000)
    found = await copies(service, receiver, "large", WITH % ("large", media, media))
    assert dict(found["thin"])['"data"'] == WITHOUT
    assert len(dict(found["whole"])['"data"']) > 2 * len(media)


async def test_evolutions_own_way_strips_by_default(service: Service, receiver: Receiver) -> None:
    """A webhook that is new in Evolution's own words has base64 false; set to true it gets media again."""
    for wanted, switch in ((False, {}), (False, {"base64": False}), (True, {"base64": True})):
        body = {"webhook": {"enabled": True, "url": f"{receiver.url}/own", **switch}}
        assert (await service.request("POST", "/webhook/set/own", body)).status == 201
        event_id = await service.accept(instance="own", data={"base64": "x", "k": 1})
        await settled(service, event_id)
        (arrival,) = [arrival for arrival in receiver.arrivals if arrival.webhook_id == event_id]
        assert arrival.json()["data"] == ({"base64": "x", "k": 1} if wanted else {"k": 1})
