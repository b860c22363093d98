"""Identifiers: event ids and delivery ids, and the digests that name bodies and idempotency keys.

An event's id is a UUID version 7 (RFC 9562), 16 bytes; outside it is written `evt_` and 32 hex digits. A delivery has
no id of its own: it is the pair of its event and its webhook, written `dlv_<32 hex digits>_<webhook number>`.
"""

import hashlib
import re

from outbox.domain.errors import NotFoundError

_EVENT = re.compile(r"evt_([0-9a-f]{32})")
_DELIVERY = re.compile(r"dlv_([0-9a-f]{32})_([1-9][0-9]{0,17})")


def event_id(now_ms: int, random: bytes) -> bytes:
    """Return an id made of 48 bits of time and 74 of the 80 `random` bits given: ids of one time sort together."""
    stamped = bytes((0x70 | random[0] & 0x0F, random[1], 0x80 | random[2] & 0x3F))  # version 7, variant 10
    return now_ms.to_bytes(6, "big") + stamped + random[3:]


def event_text(event: bytes) -> str:
    """Return the public form of an event's id."""
    return "evt_" + event.hex()


def delivery_text(event: bytes, webhook: int) -> str:
    """Return the public form of a delivery's id."""
    return f"dlv_{event.hex()}_{webhook}"


def parse_event(text: str) -> bytes:
    """Return the 16 bytes that `text` stands for. Raises NotFoundError: what is no id names no event."""
    found = _EVENT.fullmatch(text)
    if found is None:
        msg = f"there is no event {text!r}: an event's id is evt_ and 32 hex digits"
        raise NotFoundError(msg)
    return bytes.fromhex(found[1])


def parse_delivery(text: str) -> tuple[bytes, int]:
    """Return the event's id and the webhook's number. Raises NotFoundError."""
    found = _DELIVERY.fullmatch(text)
    if found is None:
        msg = f"there is no delivery {text!r}: a delivery's id is dlv_, 32 hex digits, _ and a number"
        raise NotFoundError(msg)
    return bytes.fromhex(found[1]), int(found[2])


def body_digest(body: bytes) -> bytes:
    """Return the SHA-256 of a body, 32 bytes."""
    return hashlib.sha256(body).digest()


def key_digest(scope: str, key: bytes) -> bytes:
    """Return the 16 bytes under which an idempotency key is kept; the key itself may be long, or a secret."""
    return hashlib.sha256(scope.encode() + b"\0" + key).digest()[:16]
