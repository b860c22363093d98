import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.domain.batches import read_array, read_lines
from outbox.domain.errors import InvalidError, MalformedError
from outbox.domain.events import read_event

VECTORS = Path(__file__).parents[2] / "vectors"
BODIES = [line for name in ("events", "extremes") for line in (VECTORS / f"{name}.jsonl").read_bytes().splitlines()]
MANY = 1 << 20

GOOD = b'{"event":"call","instance":"a","data":1}'
CUT = b'{"event":"call","instance":"a","data":"\\ud83d ]}, [{"}'
SPACES = st.sampled_from([b"", b" ", b"\n", b"\r\n\t "])


def event(data: bytes) -> bytes:
    """An event with that data."""
    return b'{"event":"call","instance":"a","data":%s}' % data


def nested(levels: int) -> bytes:
    """An event of so many levels, itself included."""
    return event(b"[" * (levels - 1) + b"]" * (levels - 1))


@given(st.lists(st.sampled_from([*BODIES, GOOD, CUT, event(b'"\\ude00\\\\ud83d"')]), max_size=6), st.data())
def test_elements_are_what_was_sent(bodies: list[bytes], data: st.DataObject) -> None:
    """Whatever is between them, the elements of an array are the events in order, byte for byte, with their hops."""

    def space() -> bytes:
        return data.draw(SPACES)

    array = space() + b"[" + b",".join(space() + body + space() for body in bodies) + b"]" + space()
    assert list(read_array(array, 3)) == [read_event(body, 3) for body in bodies]
    assert [found.body for found in read_array(array)] == bodies


@given(st.lists(st.sampled_from([*BODIES, GOOD, CUT]), max_size=6), st.data())
def test_lines_are_what_was_sent(bodies: list[bytes], data: st.DataObject) -> None:
    """Lines end with or without a carriage return, the last one not at all; empty ones are passed over."""
    ends = [data.draw(st.sampled_from([b"\n", b"\r\n", b" \n", b"\n\n", b"\r\n \t\r\n"])) for _ in bodies]
    lines = b"".join(body + end for body, end in zip(bodies, ends, strict=True))
    for text in (lines, b"\n\r\n" + lines, lines.rstrip()):
        assert [found.body for found in read_lines(text)] == bodies
    assert list(read_lines(lines, 2)) == [read_event(body, 2) for body in bodies]


@pytest.mark.parametrize("text", [b"", b"\n", b" \r\n\r\n"])
def test_nothing_is_no_lines(text: bytes) -> None:
    """That a batch may not be empty is its caller's rule."""
    assert list(read_lines(text)) == []
    assert list(read_array(b" [ ] ")) == []


@pytest.mark.parametrize("sound", [GOOD, CUT])
@pytest.mark.parametrize(
    ("bad", "where", "detail"),
    [
        (b'{"event":"call","instance":"a/b","data":1}', "$.instance", "no / or"),
        (b'{"event":"call","instance":7,"data":1}', "$.instance", "Expected `str`"),
        (b'{"event":"cal","instance":"a","data":1}', "$.event", "there is no kind 'cal'; the nearest is CALL"),
        (b'{"event":"call","instance":"a"}', "$", "the member `data` is missing"),
        (b'{"event":"call","data":1}', "$", "`instance`"),
        (b'{"instance":"a","data":1}', "$", "`event`"),
        (b"7", "$", "got `int`"),
        (b"[%s]" % GOOD, "$", "got `array`"),
    ],
)
def test_a_bad_event_is_named_by_its_place(sound: bytes, bad: bytes, where: str, detail: str) -> None:
    """The path begins with the element, or names the line, counted from 1 with the empty ones."""
    with pytest.raises(InvalidError, match=re.escape(detail)) as refused:
        list(read_array(b"[%s, %s,%s,%s]" % (sound, sound, GOOD, bad)))
    assert refused.value.where == where.replace("$", "$[3]")
    assert refused.value.detail.count(" - at `") == 1
    with pytest.raises(InvalidError, match=re.escape(detail)) as refused:
        list(read_lines(b"%s\r\n\n%s\n%s\n" % (sound, sound, bad)))
    assert refused.value.where == where.replace("$", "line 4: $")
    assert refused.value.detail.count(" - at `") == 1


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "JSON is malformed"),
        (b"[%s" % GOOD, "JSON is malformed"),
        (b"[%s,]" % GOOD, "JSON is malformed"),
        (b"[%s %s]" % (GOOD, GOOD), "(byte 42)"),
        (b"[1,%s" % GOOD, "JSON is malformed"),
        (b"[%s]%s" % (GOOD, GOOD), "trailing characters"),
        (b"\xef\xbb\xbf[%s]" % GOOD, "byte-order mark"),
        (b'["\xff"]', "not valid UTF-8 (byte 2)"),
        (b"[" * 100_000, "levels deep"),
        (b"[%s]" % event(b'"\\ud83d",'), "JSON is malformed"),
        (b"[%s,%s]" % (GOOD, nested(201)), "levels deep"),
    ],
)
def test_what_is_no_array_is_malformed(body: bytes, detail: str) -> None:
    """The offset is that of the whole body; depth, encoding and a byte-order mark are looked at first."""
    with pytest.raises(MalformedError, match=re.escape(detail)):
        list(read_array(body))


@pytest.mark.parametrize("body", [b"{}", b"7", b'"a"', GOOD, b"null"])
def test_another_shape_is_no_batch(body: bytes) -> None:
    """An event alone is not a batch of one."""
    with pytest.raises(InvalidError, match="Expected `array`") as refused:
        list(read_array(body))
    assert refused.value.where == "$"


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b"{", "line 3: JSON is malformed"),
        (GOOD + GOOD, "line 3: JSON is malformed: trailing characters (byte 41)"),
        (GOOD + b",", "line 3: JSON is malformed"),
        (nested(201), "line 3: the body is nested more than 200 levels deep"),
        (b"\xef\xbb\xbf" + GOOD, "line 3: the body starts with a byte-order mark"),
    ],
)
def test_a_malformed_line_is_named(line: bytes, detail: str) -> None:
    """The offset is that within the line."""
    with pytest.raises(MalformedError, match=re.escape(detail)):
        list(read_lines(b"%s\n\n%s\n%s" % (GOOD, line, GOOD)))


@pytest.mark.parametrize(("body", "detail"), [(b"\xef\xbb\xbf" + GOOD, "byte-order"), (GOOD + b"\n\xff", "byte 41")])
def test_lines_must_be_text(body: bytes, detail: str) -> None:
    """Before any line is read: a byte-order mark, and invalid UTF-8 by its offset."""
    with pytest.raises(MalformedError, match=detail):
        next(read_lines(body))


def test_an_event_may_be_as_deep_as_it_may_be_alone() -> None:
    """The array around it does not count."""
    assert [found.body for found in read_array(b"[%s]" % nested(200))] == [nested(200)]
    assert [found.body for found in read_lines(nested(200))] == [nested(200)]


def test_elements_are_read_as_they_are_asked_for() -> None:
    """A caller that has had enough pays for no more of them."""
    array = read_array(b"[%s,%s]" % (GOOD, event(b"2").replace(b"call", b"cal")))
    lines = read_lines(GOOD + b"\nnonsense")
    assert (next(array).body, next(lines).body) == (GOOD, GOOD)
    with pytest.raises(InvalidError):
        next(array)
    with pytest.raises(MalformedError):
        next(lines)


@pytest.mark.parametrize(
    ("reader", "body"),
    [(read_array, b"[" + b"1," * MANY + b"1]"), (read_lines, b"\n" * 8 * MANY), (read_lines, b"\r\n" * 4 * MANY)],
    ids=["elements", "lines", "lines of Windows"],
)
def test_very_many_of_nothing_cost_little(reader: Any, body: bytes) -> None:
    """Millions of elements that are no events, or of empty lines, are passed over without a list of them."""
    started = time.perf_counter()
    try:
        assert list(reader(body)) == []
    except InvalidError as error:
        assert error.where == "$[0]"  # noqa: PT017 - lines are passed over, elements refused
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("body", BODIES)
def test_an_element_is_read_as_if_it_were_alone(body: bytes) -> None:
    """Kind, digest, ordering key and date are those of the same event posted by itself."""
    assert list(read_array(b"[" + body + b"]")) == list(read_lines(body)) == [read_event(body)]
    assert json.loads(body)["event"]
