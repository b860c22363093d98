"""What a webhook's credentials make of a POST's headers: its own ones; a login and a signature made for an attempt."""

import base64
import hashlib
import hmac
from urllib.parse import unquote

import msgspec
from jwt import PyJWS
from jwt.algorithms import HMACAlgorithm
from msgspec import Struct

from outbox.domain.rotating import secrets_at
from outbox.domain.webhooks import JWT_KEY, Credentials

TOKEN_LIFE_S = 600


class _Claims(Struct):
    """What Evolution API puts into its tokens."""

    iat: int
    exp: int
    app: str = "evolution"
    action: str = "webhook"


class _AnyKey(HMACAlgorithm):
    """HMAC with whatever secret the receiver knows, be it short or look like a public key, as Evolution API signs.

    PyJWT's checks of the key protect those who verify tokens whose algorithm others choose; here it is fixed.
    """

    def prepare_key(self, key: str | bytes) -> bytes:
        return key.encode() if isinstance(key, str) else key

    def check_key_length(self, key: bytes) -> None:
        """Find nothing wrong."""


_signer = PyJWS(algorithms=[])
_signer.register_algorithm("HS256", _AnyKey(hashlib.sha256))


def own_headers(credentials: Credentials, now_ms: int) -> dict[str, str]:
    """Return the headers that a webhook adds to a POST made now; `now_ms` is since the epoch.

    User and password become Basic auth. A `jwt_key` is not sent: it signs a token that is good for ten minutes.
    """
    headers = credentials.headers
    if credentials.userinfo:
        return {**headers, "authorization": basic(credentials.userinfo)}
    if not headers or (key := credentials.jwt_key) is None:
        return headers
    sent = {name: value for name, value in headers.items() if name.lower() != JWT_KEY}
    return {**sent, "authorization": f"Bearer {token(key, now_ms // 1000)}"}


def identity(credentials: Credentials, webhook_id: str, body: bytes, now_ms: int) -> dict[str, str]:
    """Return the headers by which a receiver knows a POST of `body` made now (Standard Webhooks).

    These are the event's id, the attempt's time and, where there is a secret, a signature of the two and the body by
    every secret that is active, the newest first.
    """
    timestamp = str(now_ms // 1000)
    headers = {"webhook-id": webhook_id, "webhook-timestamp": timestamp}
    if secrets := secrets_at(credentials, now_ms):
        head = f"{webhook_id}.{timestamp}.".encode()
        headers["webhook-signature"] = " ".join(_signature(secret, head, body) for secret in secrets)
    return headers


def _signature(secret: bytes, head: bytes, body: bytes) -> str:
    mac = hmac.new(secret, head, "sha256")
    mac.update(body)  # apart, since a body may be large and would be copied
    return "v1," + base64.b64encode(mac.digest()).decode()


def token(key: str, now_s: int) -> str:
    """Return the JWT (HS256) that Evolution API would send at that time, in seconds since the epoch."""
    claims = msgspec.json.encode(_Claims(iat=now_s, exp=now_s + TOKEN_LIFE_S))
    return _signer.encode(claims, key, algorithm="HS256")


def basic(userinfo: str) -> str:
    """Return the Authorization header for a URL's user and password, which are percent-encoded there."""
    user, _, password = userinfo.partition(":")  # RFC 7617, section 2: the colon is there without a password too
    return "Basic " + base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
