"""Rules for the bytes of a JSON body: what is refused, how its members are found, how a copy for a receiver is made.

A body is kept exactly as it came. Where a parser is stricter than JSON (a lone surrogate escape is legal, and
JavaScript writes one for a cut emoji), a same-length copy with that escape neutralised is parsed instead, and the
offsets found in the copy are applied to the original.
"""

import re
from collections.abc import Iterator
from itertools import accumulate, tee
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from outbox.domain.errors import InvalidError, MalformedError

MAX_DEPTH = 200

_LARGE_BYTES = 1024 * 1024
_CLOSED = b'"{['
_EMPTY = frozenset({b"null", b'""'})
_BOM = b"\xef\xbb\xbf"
# Possessive quantifiers: a string of many megabytes costs no memory for the ways back into it.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(_STRING + rb"|[{}\[\]]", re.DOTALL)
_NAME = re.compile(rb"[{,\s]*(" + _STRING + rb")\s*:\s*", re.DOTALL)
_SIMPLE = re.compile(_STRING + rb"|[^\s{}\[\],]+", re.DOTALL)
# An escaped backslash is consumed whole, so that its second half never pairs with a following `u`.
_ESCAPE = re.compile(
    rb"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\\\"
)
_QUOTED = re.compile(rb'"[^"]*"?')
_PLACE = re.compile(r" - at `(?P<path>[^`]*)`$")  # how msgspec ends its messages
_NOT_MARKS = bytes(set(range(256)) - set(b'{}[]"'))
_STEP = {ord("{"): 1, ord("["): 1, ord("}"): -1, ord("]"): -1}
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_TEXT = msgspec.json.Decoder(str)
_T = TypeVar("_T")


def check_text(body: bytes, levels: int = MAX_DEPTH) -> None:
    """Refuse what no JSON parser should be handed: a byte-order mark, invalid UTF-8, more than so many levels.

    Raises MalformedError, with the offset in bytes where there is one.
    """
    check_encoding(body)
    # Counting every bracket, those inside strings too, clears nearly all bodies without a look at their structure.
    if body.count(b"{") + body.count(b"[") > levels and _depth(body) > levels:
        msg = f"the body is nested more than {levels} levels deep"
        raise MalformedError(msg)


def check_encoding(body: bytes) -> None:
    """Refuse a byte-order mark and invalid UTF-8. Raises MalformedError."""
    if body.startswith(_BOM):
        msg = "the body starts with a byte-order mark: send plain UTF-8"
        raise MalformedError(msg)
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            msg = f"the body is not valid UTF-8 (byte {error.start})"
            raise MalformedError(msg) from error


def _depth(body: bytes) -> int:
    marks = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_MARKS)
    brackets = _QUOTED.sub(b"", marks.replace(b'""', b""))
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def decode_json(decoder: "msgspec.json.Decoder[_T]", body: bytes) -> _T:
    """Decode `body`, forgiving lone surrogate escapes (what is decoded then has U+FFFD in their place).

    Raises MalformedError when it is not JSON, and InvalidError, with the JSON path, when it has the wrong shape.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        # The decoder stops at the first wrong type: the rest may not be JSON at all, which is the worse fault.
        _refuse_malformed(body)
        text = str(error)
        found = _PLACE.search(text)
        raise InvalidError(text[: found.start()] if found else text, found["path"] if found else "$") from error
    except msgspec.DecodeError as error:
        neutral = neutralised(body)
        if neutral == body:
            raise MalformedError(_sentence(error)) from error
    return decode_json(decoder, neutral)


def _refuse_malformed(body: bytes) -> None:
    try:
        msgspec.json.decode(neutralised(body), type=Raw)
    except msgspec.DecodeError as error:
        raise MalformedError(_sentence(error)) from error


def _sentence(error: msgspec.DecodeError) -> str:
    text = str(error)
    return text if text.startswith("JSON is malformed") else f"JSON is malformed: {text[:1].lower()}{text[1:]}"


def neutralised(body: bytes) -> bytes:
    """Return `body` with every lone surrogate escape replaced by one of the same length, or `body` itself."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    return _ESCAPE.sub(lambda found: b"\\ufffd" if found[2] else found[0], body)


def copy_for(body: bytes, destination: str, date_time: str | None) -> bytes:
    """Return the copy of an accepted `body` (a JSON object) whose `destination` is the given URL.

    `date_time` is added when given and not there. Every other member stays byte for byte what came, in its place;
    only white space between the outermost members may go.
    """
    url = msgspec.json.encode(destination)
    try:
        found = _MEMBERS.decode(body)
    except msgspec.DecodeError:
        return _copy_by_offsets(body, url, date_time)
    found["destination"] = Raw(url)
    if date_time is not None:
        found.setdefault("date_time", Raw(msgspec.json.encode(date_time)))
    return msgspec.json.encode(found) if len(body) < _LARGE_BYTES else _joined(found)


def _joined(found: dict[str, Raw]) -> bytes:
    """Encode members into memory that is taken in one piece: where there is too little msgspec ends the process."""
    parts: list[bytes | Raw] = []
    for name, value in found.items():
        parts += (b"," if parts else b"{", msgspec.json.encode(name), b":", value)
    return b"".join([*parts, b"}"])


def _copy_by_offsets(body: bytes, url: bytes, date_time: str | None) -> bytes:
    found = list(_members(body))
    names = {name for name, _, _ in found}
    if "destination" not in names:
        found.append(("destination", b'"destination"', url))
    if date_time is not None and "date_time" not in names:
        found.append(("date_time", b'"date_time"', msgspec.json.encode(date_time)))
    copied = (quoted + b":" + (url if name == "destination" else value) for name, quoted, value in found)
    return b"{" + b",".join(copied) + b"}"


class Member(NamedTuple):
    """A member of a JSON object by offsets: from `start` to `named` its quoted name, `value` to `end` its value."""

    name: str
    start: int
    named: int
    value: int
    end: int


def members(text: bytes, start: int = 0, end: int | None = None) -> Iterator[Member]:
    """Yield the members of the JSON object that `text[start:end]` is; no lone surrogate escape may be in it."""
    values = _MEMBERS.decode(memoryview(text)[start:end])
    found = _NAME.match(text, start)
    while found:
        name = _TEXT.decode(text[found.start(1) : found.end(1)])
        behind = _end(text, found.end(), memoryview(values[name]))
        yield Member(name, found.start(1), found.end(1), found.end(), behind)
        found = _NAME.match(text, behind)


def _members(body: bytes) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the outermost members of a valid JSON object: the name, as it is written, and the value in no space."""
    for member in members(neutralised(body)):
        yield member.name, body[member.start : member.named], body[member.value : member.end]


def _end(body: bytes, start: int, value: memoryview) -> int:
    """Return the offset behind the JSON value at `start`: it is `value`, unless its name stands there twice."""
    if value[0] in _CLOSED and body.startswith(value, start):  # a value that says where it ends begins no longer one
        return start + len(value)
    if simple := _SIMPLE.match(body, start):
        return simple.end()
    tokens, marks = tee(_TOKEN.finditer(body, start))
    depths = accumulate(_STEP.get(token[0][0], 0) for token in marks)
    return next(token.end() for token, depth in zip(tokens, depths, strict=True) if depth == 0)


def masked(body: bytes, names: frozenset[str], mask: bytes) -> bytes:
    """Return an accepted `body` with `mask` for the values of the outermost members `names` that hold something."""
    shown = (
        quoted + b":" + (mask if name in names and value not in _EMPTY else value)
        for name, quoted, value in _members(body)
    )
    return b"{" + b",".join(shown) + b"}"
