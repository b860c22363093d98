import json
import re
import time
from functools import reduce
from itertools import product
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outbox.domain import bodies
from outbox.domain.errors import InvalidError, MalformedError

VECTORS = Path(__file__).parents[2] / "vectors"
BODIES = [line for name in ("events", "extremes") for line in (VECTORS / f"{name}.jsonl").read_bytes().splitlines()]
ANY: msgspec.json.Decoder[object] = msgspec.json.Decoder()
URL = "https://h.test/w?a=1&b=\u00e9"
DATED = "2025-11-03T09:15:42.118Z"

TRICKY = st.text(alphabet='{}[]",:\\u\u00e9\U0001f600\n d8', max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | TRICKY
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4), max_leaves=12
)
SPACES = (b"", b" ", b"\r\n\t ")
LEAF_TEXTS = st.sampled_from(
    [b"1e400", b"-0.0", b"0.10", b"1E+2", b"12345678901234567890123", b"true", b"null", b"[]", b"{ }", b'"\\u0041\\/"',
     b'"}],{\\"a\\":[{"', b'"\\\\"', b'"x\\\\\\""', b'"\\\\ud83d"', b'"\\ud83d\\ude00"', '"\u00e9\u65e5"'.encode()]
)  # fmt: skip
BROKEN = st.sampled_from([b'"\\ud83d"', b'"cut \\uD83D, }"', b'"\\ude00\\ud83d"', b'"\\\\\\udfff\\""'])
AROUND = st.sampled_from([b"[%s]", b"[ 1 ,%s, {}]", b'{"a":%s}', b'{ "z":[], "a": %s ,"a":2}', b'{"}\\"":%s,"[{,":0}'])
NAMES = st.sampled_from(["destination", "date_time", "data", "", "a b", "{[:,", "\u00e9\u65e5"])


def objects(leaves: st.SearchStrategy[bytes]) -> st.SearchStrategy[dict[str, bytes]]:
    """Outermost members: values in any spelling and nesting; destination and date_time may be among them."""

    def wrapped(leaf: bytes, around: list[bytes]) -> bytes:
        return reduce(lambda inner, outer: outer % inner, around, leaf)

    values = st.builds(wrapped, leaves, st.lists(AROUND, max_size=3))
    return st.dictionaries(NAMES, values, max_size=5)


def quoted(name: str) -> bytes:
    """A name or a text as JSON, with no escape that is not needed."""
    return json.dumps(name, ensure_ascii=False).encode()


def joined(members: dict[str, bytes], space: bytes = b"") -> bytes:
    """A body of these members, with that space wherever space may stand."""
    inside = (space + b"," + space).join(quoted(name) + space + b":" + space + raw for name, raw in members.items())
    return space + b"{" + space + inside + space + b"}" + space


def depth_of(value: object) -> int:
    """Levels of nesting, counted the slow way."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@pytest.mark.parametrize("body", BODIES)
def test_real_bodies_are_taken(body: bytes) -> None:
    """Nothing that servers send, however odd, is refused for its text."""
    bodies.check_text(body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'\xef\xbb\xbf{"a":1}', "byte-order mark"),
        (b'{"a":"\xff"}', "not valid UTF-8 (byte 6)"),
        (b'{"a":"\xed\xa0\xbd"}', "not valid UTF-8 (byte 6)"),
        (b'{"a":"\xc3', "not valid UTF-8 (byte 6)"),
        (b"[" * 201 + b"]" * 201, "more than 200 levels"),
        (b'{"a":' * 201 + b"1" + b"}" * 201, "more than 200 levels"),
        (b"[" * 100_000, "more than 200 levels"),
        (b'["\\\\",' + b"[" * 201, "more than 200 levels"),
    ],
)
def test_hostile_text_is_refused_before_it_is_parsed(body: bytes, message: str) -> None:
    """A byte-order mark, broken UTF-8 and too deep nesting are malformed, and the message says which."""
    with pytest.raises(MalformedError, match=re.escape(message)):
        bodies.check_text(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200 + b"]" * 200,
        b"[" * 199 + b"[],{},[]" + b"]" * 199,
        b"[" + b"[]," * 5000 + b"{}]",
        b'{"a":"' + b"[" * 999 + b'"}',
        b'["\\"' + b"[" * 999 + b'","\\\\",[]]',
    ],
)
def test_many_brackets_are_not_deep(body: bytes) -> None:
    """Two hundred levels are allowed; brackets side by side or inside strings are no levels."""
    bodies.check_text(body)


@given(VALUES)
def test_depth_is_counted_as_a_parser_would(value: object) -> None:
    """The count from the bytes equals a walk over the parsed value, whatever strings hold."""
    for ascii_only in (True, False):
        assert bodies._depth(json.dumps(value, ensure_ascii=ascii_only).encode()) == depth_of(value)


def test_a_string_without_an_end_costs_no_time() -> None:
    """A hostile string of escaped quotes is passed over once, not once per quote."""
    started = time.perf_counter()
    bodies.check_text(b"[]," * 201 + b'"' + b'\\"' * 100_000)
    assert time.perf_counter() - started < 1


@given(
    st.lists(st.sampled_from(["\\ud83d", "\\uDE00", "\\uDBff", "\\\\", "\\n", "u", "d83d", '\\"', "\\u00e9", "\u00e9"]))
)
@example(["\\ud83d", "\\ud83d", "\\uDE00", "\\uDE00"])
@example(["\\uDBff", "\\uDE00"])
def test_lone_surrogates_are_replaced_at_the_same_length(parts: list[str]) -> None:
    """Pairs, escaped backslashes and all other text stay; each half that stands alone becomes U+FFFD."""
    text = '"' + "".join(parts) + '"'
    body = text.encode()
    neutral = bodies.neutralised(body)
    assert len(neutral) == len(body)
    assert ANY.decode(neutral) == re.sub("[\ud800-\udfff]", "\ufffd", json.loads(text))


@pytest.mark.parametrize("body", [b'{"a":"\\ud83d\\ude00"}', b'"\\\\ud83d"', b"{}", '"\ufffd"'.encode()])
def test_a_body_without_lone_surrogates_is_left_alone(body: bytes) -> None:
    """Pairs and look-alikes are none."""
    assert bodies.neutralised(body) == body


@pytest.mark.parametrize("body", BODIES)
def test_every_real_body_is_decoded(body: bytes) -> None:
    """What Python's own parser takes is taken, numbers beyond all bounds and cut emoji too."""
    members = bodies.decode_json(msgspec.json.Decoder(dict[str, msgspec.Raw]), body)
    assert members.keys() == json.loads(body).keys()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON is malformed: input data was truncated"),
        (b'{"a":1', "JSON is malformed: input data was truncated"),
        (b'{"a":01}', "JSON is malformed: invalid number (byte 6)"),
        (b'{"a":"\\ud83d","b":tru_}', "JSON is malformed: invalid character (byte 22)"),
        (b'{"a":"\\ud8zz"}', "JSON is malformed: invalid character in unicode escape (byte 11)"),
        (b'{"a":"\\ud8"}', "JSON is malformed"),
        (b'{"a":1}{}', "JSON is malformed: trailing characters (byte 8)"),
        (b'{"a":\\ud83d}', "JSON is malformed: invalid character (byte 5)"),
        (b"\\ud83d", "JSON is malformed"),
        (b"NaN", "JSON is malformed: invalid character (byte 0)"),
    ],
)
def test_what_is_no_json_is_malformed(body: bytes, message: str) -> None:
    """The message gives the offset in the bytes as they came; forgiving surrogates forgives nothing else."""
    with pytest.raises(MalformedError, match=re.escape(message)):
        bodies.decode_json(ANY, body)


@pytest.mark.parametrize("body", [b'{"a":[]}', b'{"a":[],"b":"\\ud83d"}'])
def test_a_wrong_shape_is_told_from_malformed_text(body: bytes) -> None:
    """Sound JSON of another shape is named by its path, with a lone surrogate too."""
    with pytest.raises(InvalidError, match="Expected") as refused:
        bodies.decode_json(msgspec.json.Decoder(dict[str, int | str]), body)
    assert refused.value.where == "$[...]"
    assert refused.value.detail.count(" - at `") == 1


def test_malformed_text_after_a_wrong_type_is_malformed() -> None:
    """The worse fault is named, even when a wrong type comes first."""
    with pytest.raises(MalformedError, match=re.escape("expected ',' or '}' (byte 8)")):
        bodies.decode_json(msgspec.json.Decoder(dict[str, int]), b'{"a":"x"\x00,"b":1}')


@given(objects(LEAF_TEXTS | BROKEN))
@example({})
@example({"a": b'"\\ud83d"'})
def test_a_copy_differs_in_destination_and_date_time_only(members: dict[str, bytes]) -> None:
    """Every other member is byte for byte what came, in its place; a missing date_time comes last."""
    expected = members | {"destination": quoted(URL)}
    dated = expected | {"date_time": members.get("date_time", quoted(DATED))}
    for space in SPACES:
        assert bodies.copy_for(joined(members, space), URL, None) == joined(expected)
        assert bodies.copy_for(joined(members, space), URL, DATED) == joined(dated)


@given(objects(LEAF_TEXTS))
@example({})
def test_copying_by_offsets_is_copying(members: dict[str, bytes]) -> None:
    """The way for bodies that the parser refuses makes the copy that the usual way makes."""
    for space, date_time in product(SPACES, (None, DATED)):
        body = joined(members, space)
        assert bodies._copy_by_offsets(body, quoted(URL), date_time) == bodies.copy_for(body, URL, date_time)


@given(objects(LEAF_TEXTS))
@example({})
def test_joining_a_large_copy_is_encoding_it(members: dict[str, bytes]) -> None:
    """A large body gets the copy that it would get if it were small."""
    for space, date_time in product(SPACES, (None, DATED)):
        body = joined(members, space)
        small = bodies.copy_for(body, URL, date_time)
        with patch.object(bodies, "_LARGE_BYTES", 0):
            assert bodies.copy_for(body, URL, date_time) == small


@given(VALUES)
def test_names_in_any_spelling_are_recognised(value: object) -> None:
    """Escaped names, also those of the two members that are ours, lead to equal copies either way."""
    text = json.dumps({"v": value, "destination": "old", "date_time": None})
    body = text.replace("destination", "de\\u0073tination").replace("date_time", "date\\u005ftime").encode()
    for copy in (bodies.copy_for(body, URL, DATED), bodies._copy_by_offsets(body, quoted(URL), DATED)):
        assert json.loads(copy) == {"v": value, "destination": URL, "date_time": None}


def test_a_name_may_be_cut_too() -> None:
    """A lone surrogate in a name hides no other member."""
    body = b'{"\\ud83d":1,"destination":2,"\\ude00":{}}'
    assert bodies.copy_for(body, "u", "t") == b'{"\\ud83d":1,"destination":"u","\\ude00":{},"date_time":"t"}'


@pytest.mark.parametrize(
    "values",
    [(b"12", b"1"), (b"1", b"12"), (b'{"a":"}"}', b"{}"), (b"[]", b"[[],[1]]"), (b"[ [],0]", b'"["'), (b"[]", b"[]")],
)
def test_a_name_may_stand_there_twice(values: tuple[bytes, bytes]) -> None:
    """Where bodies are walked through, both members are kept, and the one behind them too."""
    body = b'{"\\ud83d":0,"a": %s ,"a":%s, "b":{}}' % values
    expected = b'{"\\ud83d":0,"a":%s,"a":%s,"b":{},"destination":"u"}' % values
    assert bodies.copy_for(body, "u", None) == expected


@pytest.mark.parametrize("body", BODIES)
def test_a_copy_of_a_real_body_keeps_its_data(body: bytes) -> None:
    """What stands in `data` reaches the receiver byte for byte, and the copy is JSON."""
    text = body.decode()
    start = text.index(":", text.index('"data"')) + 1
    start += len(text[start:]) - len(text[start:].lstrip())
    end = json.JSONDecoder().raw_decode(text, start)[1]
    copy = bodies.copy_for(body, URL, DATED)
    assert f'"data":{text[start:end]},'.encode() in copy
    assert json.loads(copy)["destination"] == URL


@given(objects(LEAF_TEXTS | BROKEN | st.just(b'""')))
@example({"destination": b"null", "a b": b'""'})
@example({"destination": b"{}", "a b": b"0", "data": b"1"})
def test_masking_hides_the_named_members_alone(members: dict[str, bytes]) -> None:
    """Their values give way to the mask, unless there is nothing to hide; all others stay byte for byte."""
    hidden = {name: b"7" for name in ("destination", "a b") if members.get(name, b"null") not in (b"null", b'""')}
    for space in SPACES:
        shown = bodies.masked(joined(members, space), frozenset({"destination", "a b", "absent"}), b"7")
        assert shown == joined(members | hidden)


def test_a_name_in_disguise_is_masked() -> None:
    """A secret's name spelled with escapes, or standing there twice, hides nothing from the mask."""
    body = b'{"api\\u006bey":"hush","apikey":["hush"],"apikey ":1,"x":{"apikey":2}}'
    shown = bodies.masked(body, frozenset({"apikey"}), b'"***"')
    assert shown == b'{"api\\u006bey":"***","apikey":"***","apikey ":1,"x":{"apikey":2}}'
