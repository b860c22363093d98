"""Who may do what: the API key for everything, the ingest token for taking events in."""

import hmac
import warnings
from collections.abc import Mapping
from typing import Any

import jwt
from jwt.warnings import InsecureKeyLengthWarning
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from app.problems import ProblemError

JWT_LEEWAY_S = 24 * 3600

_BEARER = b"bearer "


class Keys:
    """The API key and the ingest token, compared in constant time."""

    def __init__(self, api_key: str, ingest_token: str) -> None:
        """Keep both as bytes: comparing text that is not ASCII would raise."""
        self._api_key = api_key.encode()
        self._ingest_token = ingest_token.encode()

    def is_api_key(self, offered: bytes) -> bool:
        """Say whether `offered` is the API key."""
        return hmac.compare_digest(offered, self._api_key)

    def is_ingest_token(self, offered: bytes) -> bool:
        """Say whether `offered` is the ingest token."""
        return hmac.compare_digest(offered, self._ingest_token)

    def check_api_key(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request that has not the API key, as `apikey` or as a bearer token. Raises ProblemError."""
        offered = offered_key(headers)
        if offered is None:
            raise _unauthorized("the header `apikey` (or `Authorization: Bearer`) with the API key is missing")
        if not self.is_api_key(offered):
            raise _unauthorized("the API key is wrong")

    def check_ingest_key(self, headers: Mapping[bytes, bytes]) -> None:
        """Refuse a request whose headers have neither the API key nor the ingest token. Raises ProblemError."""
        offered = offered_key(headers)
        if offered is None:
            raise _unauthorized("the path has no valid ingest token, and the headers have no key")
        if not (self.is_api_key(offered) or self.is_ingest_token(offered) or self._signed(offered)):
            raise _unauthorized("the path has no valid ingest token, and the key in the headers is wrong or expired")

    def _signed(self, offered: bytes) -> bool:
        """Say whether `offered` is an HS256 JWT signed with the ingest token: what Evolution's `jwt_key` sends.

        Evolution mints one token for an event and repeats the event for longer than the token lives.
        """
        with warnings.catch_warnings(action="ignore", category=InsecureKeyLengthWarning):
            try:
                jwt.decode(
                    offered,
                    self._ingest_token,
                    algorithms=["HS256"],
                    leeway=JWT_LEEWAY_S,
                    options={"verify_aud": False},
                )
            except jwt.InvalidTokenError:
                return False
        return True


def offered_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the key that a request shows, or None."""
    if (key := headers.get(b"apikey")) is not None:
        return key
    authorization = headers.get(b"authorization", b"")
    return authorization[len(_BEARER) :].strip() if authorization[: len(_BEARER)].lower() == _BEARER else None


def api_key_guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Let only requests with the API key through, except to routes marked public. Raises ProblemError."""
    if not handler.opt.get("public"):
        keys: Keys = connection.app.state["keys"]
        keys.check_api_key(dict(connection.scope["headers"]))


def _unauthorized(detail: str) -> ProblemError:
    return ProblemError(401, detail, {"www-authenticate": "Bearer"})
