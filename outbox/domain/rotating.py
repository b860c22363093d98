"""The secret that signs a webhook's POSTs (Standard Webhooks): how it is written, and how one follows another."""

import base64
import re

from msgspec import structs

from outbox.domain.errors import InvalidError
from outbox.domain.webhooks import Credentials

SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with
SECRET_MIN_BYTES = 24
SECRET_MAX_BYTES = 64
OVERLAP_MAX_S = 30 * 86_400

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def read_secret(text: str, where: str = "$.secret") -> bytes:
    """Return the bytes of a secret as people write it. Raises InvalidError, which does not repeat it.

    As receivers' libraries read it, `whsec_` and the padding of the base64 may be missing. Those that skip whatever
    is no base64 are not followed there: other libraries refuse it, and what is skipped was meant.
    """
    encoded = text.removeprefix(SECRET_PREFIX)
    if "=" not in encoded:
        encoded += "=" * (-len(encoded) % 4)
    secret = base64.b64decode(encoded) if _BASE64.fullmatch(encoded) else b""
    if not SECRET_MIN_BYTES <= len(secret) <= SECRET_MAX_BYTES:
        msg = f"a secret is {SECRET_PREFIX} and the base64 of {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} bytes"
        raise InvalidError(msg, where)
    return secret


def write_secret(secret: bytes) -> str:
    """Undo `read_secret`."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def rotated(old: Credentials, secret: bytes, overlap_s: int, now_ms: int) -> Credentials:
    """Return `old` with `secret` from `now_ms` on; none (empty) ends all signing. Raises InvalidError.

    The secret that it replaces goes on signing for `overlap_s`. Where it replaces none, being the same, a rotation
    that is going on goes on, unless `overlap_s` is 0.
    """
    if not 0 <= overlap_s <= OVERLAP_MAX_S:
        msg = f"secret_overlap_s is 0 to {OVERLAP_MAX_S}"
        raise InvalidError(msg, "$.secret_overlap_s")
    previous, until_ms = old.secret, now_ms + overlap_s * 1000
    if secret == old.secret:
        previous, until_ms = old.previous_secret, old.previous_until_ms
    if not (secret and previous and overlap_s) or until_ms <= now_ms:
        previous, until_ms = b"", 0
    return structs.replace(old, secret=secret, previous_secret=previous, previous_until_ms=until_ms)


def secrets_at(credentials: Credentials, now_ms: int) -> tuple[bytes, ...]:
    """Return the secrets that sign at `now_ms`, the newest first."""
    if not credentials.secret:
        return ()
    if now_ms < credentials.previous_until_ms:
        return credentials.secret, credentials.previous_secret
    return (credentials.secret,)
