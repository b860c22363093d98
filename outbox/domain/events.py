"""An event: what a producer's JSON must hold, and what is worked out from it once, at acceptance."""

import hashlib
import re

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from outbox.domain import catalogue
from outbox.domain.bodies import check_text, decode_json
from outbox.domain.errors import InvalidError
from outbox.domain.ids import body_digest

INSTANCE_MAX_LENGTH = 255
MAX_HOPS = 5

_LIST, _OBJECT = b"[{"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd\ud800-\udfff]")


class Event(Struct, frozen=True, gc=False):
    """An event to be accepted.

    `kind` is canonical, `instance` is empty where the sender named none, `digest` is the body's SHA-256 and
    `ordering_key` a signed 64-bit hash; `dated` says whether the body has a `date_time`; `hops` counts the relays
    that the event has been through before this one.
    """

    kind: str
    instance: str
    body: bytes
    digest: bytes
    ordering_key: int
    dated: bool
    hops: int = 0


class _Envelope(Struct):
    event: str
    instance: str | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    date_time: Raw | UnsetType = UNSET


class _ServerEnvelope(Struct):
    event: str
    instance: str | UnsetType | None = UNSET
    data: Raw | UnsetType = UNSET
    date_time: Raw | UnsetType = UNSET


class _MessageKey(Struct):
    remoteJid: str = ""  # noqa: N815 - the name on the wire


class _Chat(Struct):
    key: _MessageKey | None = None
    remoteJid: str = ""  # noqa: N815 - the name on the wire
    chatId: str = ""  # noqa: N815 - the name on the wire
    id: str = ""


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_SERVER_ENVELOPE = msgspec.json.Decoder(_ServerEnvelope)
_CHAT = msgspec.json.Decoder(_Chat)
_FIRST_CHAT = msgspec.json.Decoder(list[Raw])
_LOOSE = msgspec.json.Decoder(dict[str, Raw])
_TEXT = msgspec.json.Decoder(str)


def read_event(body: bytes, hops: int = 0) -> Event:
    """Read an event as our own API takes it: a kind of the catalogue, an instance and data.

    Raises MalformedError and InvalidError (`where` is a JSON path).
    """
    check_text(body)
    envelope = decode_json(_ENVELOPE, body)
    kind = catalogue.find(envelope.event)
    if kind is None:
        known = catalogue.nearest(envelope.event)
        msg = f"there is no kind {envelope.event[:80]!r}; the nearest is {known}"
        raise InvalidError(msg, "$.event")
    if isinstance(envelope.instance, UnsetType):
        msg = "the member `instance` is missing"
        raise InvalidError(msg)
    if isinstance(envelope.data, UnsetType):
        msg = "the member `data` is missing"
        raise InvalidError(msg)
    check_instance(envelope.instance)
    return _event(envelope, kind.name, envelope.instance, body, hops)


def read_evolution_event(body: bytes, hops: int = 0) -> Event:
    """Read an event as an Evolution API server sends it: the kind may be a newer server's, the instance may lack.

    Raises MalformedError and InvalidError (`where` is a JSON path).
    """
    check_text(body)
    envelope = decode_json(_SERVER_ENVELOPE, body)
    kind = catalogue.find(envelope.event) or catalogue.unknown(envelope.event)
    if kind is None:
        msg = f"{envelope.event[:80]!r} is not the name of an event: letters, digits and single . _ - between them"
        raise InvalidError(msg, "$.event")
    instance = envelope.instance or ""  # null and "" mean what a missing member means
    if instance:
        check_instance(instance, slashes=True)
    return _event(envelope, kind.name, instance, body, hops)


def check_instance(name: str, *, slashes: bool = False, where: str = "$.instance") -> None:
    """Refuse what cannot be an instance's name: it stands in paths and in terminals. Raises InvalidError."""
    if not 1 <= len(name) <= INSTANCE_MAX_LENGTH:
        msg = f"an instance's name has 1 to {INSTANCE_MAX_LENGTH} characters"
    elif _CONTROL.search(name):
        msg = "an instance's name has no control characters and no broken ones"
    elif not slashes and ("/" in name or "\\" in name):
        msg = "an instance's name has no / or \\"
    elif name in {".", ".."}:
        msg = "an instance's name is not . or .."
    else:
        return
    raise InvalidError(msg, where)


def ordering_key(instance: str, data: Raw | bytes | None) -> int:
    """Return the signed 64-bit hash of the instance and the chat that `data` is about, or of the instance alone."""
    chat = _chat(memoryview(data)) if data is not None else ""  # data may be large: no copy of it
    digest = hashlib.blake2b(f"{instance}\0{chat}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _chat(data: memoryview) -> str:
    if data[0] == _LIST:
        elements = _FIRST_CHAT.decode(data)
        if not elements:
            return ""
        data = memoryview(elements[0])
    if data[0] != _OBJECT:
        return ""
    try:
        found = _CHAT.decode(data)
    except msgspec.ValidationError:
        # A member has a type of its own (labels.edit has a number as id in some servers): look at each by itself.
        return _loose_chat(_LOOSE.decode(data))
    return (found.key.remoteJid if found.key else "") or found.remoteJid or found.chatId or found.id


def _loose_chat(members: dict[str, Raw]) -> str:
    key = bytes(members.get("key", b""))
    nested = _LOOSE.decode(key).get("remoteJid", b"") if key.startswith(b"{") else b""
    for raw in (nested, *(members.get(name, b"") for name in ("remoteJid", "chatId", "id"))):
        if bytes(raw).startswith(b'"') and (text := _TEXT.decode(raw)):
            return text
    return ""


def _event(envelope: _Envelope | _ServerEnvelope, kind: str, instance: str, body: bytes, hops: int) -> Event:
    data = None if isinstance(envelope.data, UnsetType) else envelope.data
    return Event(
        kind=kind,
        instance=instance,
        body=body,
        digest=body_digest(body),
        ordering_key=ordering_key(instance, data),
        dated=not isinstance(envelope.date_time, UnsetType),
        hops=hops,
    )
