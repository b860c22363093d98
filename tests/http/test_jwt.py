"""`jwt_key` among a webhook's headers is never sent: it signs a fresh token for every attempt."""

import json
import time
from collections.abc import AsyncIterator

import jwt
import pytest
import pytest_asyncio

from tests.harness import Arrival, Receiver, Reply, Service, running
from tests.http.support import settled, stats

KEY = "a-shared-secret-of-more-than-32-bytes"
ODD_KEYS = [
    "k",
    "-----BEGIN PUBLIC KEY----- x -----END PUBLIC KEY-----",
    "ssh-rsa AAAA",
    '{"kty":"oct","k":"x"}',
    "~" * 4096,
]
URL = "https://93.184.215.14/w"

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service for all tests here, whose retries take a while: each test has an instance of its own."""
    slow = {"WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "1.1", "WEBHOOK_RETRY_JITTER_FACTOR": "0"}
    async with running(tmp_path_factory.mktemp("service"), **slow, WEBHOOK_RETRY_MAX_DELAY_SECONDS="2") as service:
        yield service


def claims(arrival: Arrival, key: str) -> dict[str, object]:
    """Return what the token of an arrival says, its signature checked."""
    scheme, _, token = arrival.headers["authorization"].partition(" ")
    assert scheme == "Bearer"
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    return dict(jwt.decode(token, key, algorithms=["HS256"]))


async def set_key(service: Service, instance: str, url: str, headers: dict[str, str]) -> Reply:
    """Set a webhook with these headers."""
    return await service.request("PUT", f"/webhooks/instances/{instance}", {"url": url, "headers": headers})


@pytest.mark.parametrize("name", ["jwt_key", "JWT_KEY", "Jwt_Key"])
async def test_every_attempt_has_a_token_of_its_own(service: Service, name: str) -> None:
    """The claims are Evolution's, `iat` is the attempt's time; the key itself and its name go nowhere."""
    answers = iter([503, 200])
    async with Receiver(lambda _arrival: next(answers)) as receiver:
        reply = await set_key(service, name, receiver.url, {name: KEY, "x-a": "1"})
        assert reply.json()["headers"] == {name: "***", "x-a": "***"}
        await settled(service, await service.accept(instance=name))
        first, second = receiver.arrivals
        for arrival in (first, second):
            now = int(arrival.at)
            found = claims(arrival, KEY)
            iat = found["iat"]
            assert isinstance(iat, int)
            assert now - 2 <= iat <= now
            assert found == {"iat": iat, "exp": iat + 600, "app": "evolution", "action": "webhook"}
            assert "jwt_key" not in arrival.headers
            assert KEY not in json.dumps(arrival.headers) + arrival.body.decode()
            assert arrival.headers["x-a"] == "1"
        assert first.headers["authorization"] != second.headers["authorization"]


async def test_a_masked_key_sent_back_is_kept(service: Service) -> None:
    """Over either face, and across a restart; the token is still signed with the key that was set."""
    async with Receiver() as receiver:
        await set_key(service, "kept", receiver.url, {"jwt_key": KEY})
        await set_key(service, "kept", receiver.url, {"jwt_key": "***"})
        row = {"enabled": True, "url": receiver.url, "headers": {"jwt_key": "***"}}
        assert (await service.request("POST", "/webhook/set/kept", {"webhook": row})).status == 201
        await service.stop()
        await service.start()
        await settled(service, await service.accept(instance="kept"))
        assert claims(receiver.arrivals[0], KEY)["app"] == "evolution"
        shown = [await service.request("GET", path) for path in ("/webhooks", "/webhook/find/kept", "/stats")]
        assert KEY not in "".join(map(str, shown)) + json.dumps(service.log)


@pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: key[:9])
async def test_any_text_is_a_key(service: Service, key: str) -> None:
    """Short ones and such as look like public keys sign as Evolution API signs with them, and nothing is warned of."""
    async with Receiver() as receiver:
        assert (await set_key(service, "odd", receiver.url, {"jwt_key": key})).status in {200, 201}
        await settled(service, await service.accept(instance="odd"))
        head, payload, signature = receiver.arrivals[0].headers["authorization"].removeprefix("Bearer ").split(".")
        algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        assert algorithm.verify(f"{head}.{payload}".encode(), key.encode(), jwt.utils.base64url_decode(signature))
        assert not [line for line in service.log if line["event"] == "text"]


async def test_a_key_that_cannot_be_used_is_refused(service: Service) -> None:
    """Empty, or beside another way to log in: 422 at its place, over both faces."""
    before = await stats(service)
    for headers, url, at in [
        ({"jwt_key": ""}, URL, "$.headers.jwt_key"),
        ({"JWT_KEY": ""}, URL, "$.headers.JWT_KEY"),
        ({"jwt_key": KEY, "Authorization": "Basic x"}, URL, "$.headers"),
        ({"jwt_key": KEY}, URL.replace("//", "//ana:pw@"), "$.headers"),
        ({"jwt_key": KEY, "JWT_KEY": KEY}, URL, "$.headers"),
        ({"jwt_key": " k"}, URL, "$.headers.jwt_key"),
    ]:
        reply = await set_key(service, "refused", url, headers)
        assert (reply.status, f"`{at}`" in reply.json()["detail"]) == (422, True), reply
        row = {"webhook": {"enabled": True, "url": url, "headers": headers}}
        reply = await service.request("POST", "/webhook/set/refused", row)
        assert (reply.status, f"`{at}`".replace("$", "$.webhook") in reply.json()["detail"]) == (422, True), reply
    assert await stats(service) == before


async def test_without_a_key_nothing_is_signed(service: Service) -> None:
    """A webhook's own authorization goes out as it was set, and none is made up."""
    async with Receiver() as receiver:
        for headers in ({"Authorization": "Bearer mine"}, {"x-jwt_key": "x"}):
            await set_key(service, "plain", receiver.url, headers)
            await settled(service, await service.accept(instance="plain"))
        first, second = receiver.arrivals
        assert first.headers["authorization"] == "Bearer mine"
        assert "authorization" not in second.headers
        assert second.headers["x-jwt_key"] == "x"
        assert time.time() - second.at < 60
