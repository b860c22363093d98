"""Many events in one body: a JSON array, or one JSON object a line (NDJSON)."""

import re
from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

from outbox.domain.bodies import MAX_DEPTH, check_encoding, check_text, decode_json, neutralised
from outbox.domain.errors import InvalidError, MalformedError
from outbox.domain.events import Event, read_event


class _Shape(Struct, gc=False):
    event: str
    instance: str


_SHAPES = msgspec.json.Decoder(list[_Shape])
_ELEMENTS = msgspec.json.Decoder(list[Raw])
_LINE = re.compile(rb"\S[^\n]*")


def read_array(body: bytes, hops: int = 0) -> Iterator[Event]:
    """Yield the events of a JSON array. Raises MalformedError and InvalidError, whose place begins with `$[n]`."""
    check_text(body, MAX_DEPTH + 1)
    for index, element in enumerate(_elements(body)):
        yield _event(element, hops, f"$[{index}]", f"element {index}")


def read_lines(body: bytes, hops: int = 0) -> Iterator[Event]:
    """Yield the events of NDJSON; empty lines are passed over. Raises MalformedError, InvalidError naming the line."""
    check_encoding(body)
    number, at = 1, 0
    for found in _LINE.finditer(body):  # sixteen million empty lines cost no list of them
        number += body.count(b"\n", at, found.start())
        at = found.start()
        yield _event(found[0].rstrip(), hops, f"line {number}: $", f"line {number}")


def _event(element: bytes, hops: int, path: str, place: str) -> Event:
    try:
        return read_event(element, hops)
    except InvalidError as error:
        raise InvalidError(error.problem, error.where.replace("$", path, 1)) from error
    except MalformedError as error:
        msg = f"{place}: {error.detail}"
        raise MalformedError(msg) from error


def _elements(body: bytes) -> list[bytes]:
    """Return the bytes of each element, as they came."""
    neutral = neutralised(body)
    # Eight million elements that are no events are refused at the first, before a list of them is made.
    decode_json(_SHAPES, neutral)
    raws = [bytes(raw) for raw in decode_json(_ELEMENTS, neutral)]
    if neutral == body:
        return raws
    # The copy has the same length, so its elements' places are those of the original's.
    elements = []
    at = neutral.index(b"[") + 1
    for raw in raws:
        start = neutral.index(raw, at)
        at = start + len(raw)
        elements.append(body[start:at])
    return elements
