"""Local webhooks of Evolution API servers may show a signed token: HS256, with our ingest token for a key."""

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.harness import API_KEY, INGEST_TOKEN, Service, running
from tests.http.doors import event, post
from tests.http.support import stats

DAY_S = 24 * 3600

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="service")
async def running_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """A service with no webhook."""
    async with running(tmp_path_factory.mktemp("service")) as service:
        yield service


def coded(part: bytes) -> str:
    """Base64 as tokens have it."""
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def token(claims: object, key: str = INGEST_TOKEN, alg: str = "HS256", digest: str = "sha256", **header: object) -> str:
    """A JWT made by hand (RFC 7519), of whatever kind."""
    head = {"alg": alg, "typ": "JWT", **header}
    signed = f"{coded(json.dumps(head).encode())}.{coded(json.dumps(claims).encode())}"
    return f"{signed}.{coded(hmac.digest(key.encode(), signed.encode(), digest))}"


def claims_of(age_s: float = 0.0, **more: object) -> dict[str, object]:
    """The claims that Evolution's `jwt_key` option sends, minted so long ago."""
    minted = int(time.time() - age_s)
    return {"iat": minted, "exp": minted + 600, "app": "evolution", "action": "webhook", **more}


@pytest.mark.parametrize("suffix", ["", "/messages-upsert", "/", "/a/b/c", "/%2F"])
async def test_a_signed_local_webhook_is_let_in(service: Service, suffix: str) -> None:
    """A token as `jwt_key` sends it opens the door while it lives and for a day after: servers mint one per event."""
    for age_s in (0, 590, 3600, DAY_S + 500, -30, -3600):
        signed = {"authorization": f"Bearer {token(claims_of(age_s))}"}
        assert (await post(service, f"/ingest{suffix}", event(age_s), signed)).status == 202, age_s
    for claims in ({}, {"iat": int(time.time())}, claims_of(aud="n8n", iss="x", sub="y", jti="z"), claims_of(nbf=0)):
        signed = {"authorization": f"BEARER  {token(claims, typ='jwt', kid='1')} "}
        assert (await post(service, f"/ingest{suffix}", event("odd"), signed)).status == 202, claims


def bad_tokens() -> Iterator[str]:
    """Tokens that must open nothing."""
    fine = claims_of()
    sound = token(fine)
    head, body, signature = sound.split(".")
    yield from (token(claims_of(DAY_S + 660)), token(claims_of(400 * DAY_S)), token({"exp": 0}))
    yield from (token(fine, "another-key"), token(fine, ""), token(fine, INGEST_TOKEN + "x"), token(fine, API_KEY))
    for alg, digest in (("HS384", "sha384"), ("HS512", "sha512"), ("RS256", "sha256"), ("none", "sha256"), ("", "md5")):
        yield token(fine, INGEST_TOKEN, alg, digest)
    yield from (token(fine, alg="hs256"), token(fine, alg="HS256\x00"), token(fine, crit=["exp"], exp=1))
    for alg in ("none", "None", "NONE", "nOnE"):
        bare = coded(json.dumps({"alg": alg, "typ": "JWT"}).encode())
        yield from (f"{bare}.{body}.", f"{bare}.{body}", f"{bare}.{body}.{signature}")
    yield from (
        f"{head}.{body}",
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}",
        f".{body}.{signature}",
        "..",
        ".",
    )
    yield from (f"{head}.{body}.{signature}.", f"{head}.{coded(b'{}')}.{signature}", f"a{sound}", sound.swapcase(), "x")
    for odd in (b"null", b"[]", b"7", b"{", b"\xff", b'"' + b"\\ud83d" + b'"', b"[" * 5000):
        yield f"{coded(odd)}.{body}.{signature}"
        signed = f"{head}.{coded(odd)}"
        yield f"{signed}.{coded(hmac.digest(INGEST_TOKEN.encode(), signed.encode(), 'sha256'))}"
    for claims in (
        {"exp": "soon"},
        {"exp": None},
        {"exp": [1]},
        {"iat": "x"},
        {"exp": 1e400},
        {"nbf": time.time() + 9e9},
    ):
        yield token(claims)
    yield from ("", " ", INGEST_TOKEN[:-1], INGEST_TOKEN.upper(), "\xe9\xff", "x" * 7000)


async def test_other_tokens_are_not_let_in(service: Service) -> None:
    """Expired for a day, unsigned, signed otherwise or with another key, or no token at all: 401, nothing stored."""
    before = await stats(service)
    for bad in bad_tokens():
        for headers in ({"authorization": f"Bearer {bad}"}, {"apikey": bad.strip()}):
            reply = await post(service, "/ingest/call", event(1), headers)
            assert (reply.status, reply.headers["content-type"]) == (401, "application/problem+json"), (bad, reply)
            assert reply.headers["www-authenticate"] == "Bearer"
    sound = {"authorization": f"Bearer {token(claims_of())}"}
    for path in ("/events", "/events/batch"):
        assert (await post(service, path, event(1), sound)).status == 401
    assert await stats(service) == before
