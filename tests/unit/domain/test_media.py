import json
import re
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outbox.domain.media import without_media

VECTORS = Path(__file__).parents[2] / "vectors"
BODIES = [line for name in ("events", "extremes") for line in (VECTORS / f"{name}.jsonl").read_bytes().splitlines()]
NAMES = st.sampled_from(["base64", "message", "data", "k", "base64 ", "Base64", "\u00e9", ""])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, 1, "base64", 'a "base64": 1, \\', "\U0001f600", {}, []]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
DISGUISED = ["b\\u0061se64", "\\u0062ase64", "base6\\u0034", "ba\\u0073e64", "bas\\u006564", "base\\u00364",
             "\\u0062\\u0061\\u0073\\u0065\\u0036\\u0034"]  # fmt: skip


def stripped(value: Any) -> Any:
    """What is to be left of a body, worked out on the parsed value."""
    data = value.get("data")
    if not isinstance(data, dict):
        return value
    data = {name: inner for name, inner in data.items() if name != "base64"}
    if isinstance(data.get("message"), dict):
        data["message"] = {name: inner for name, inner in data["message"].items() if name != "base64"}
    return value | {"data": data}


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (b'{"data":{"base64":"x"}}', b'{"data":{}}'),
        (b'{"data":{"base64":"x","k":1}}', b'{"data":{"k":1}}'),
        (b'{"data":{"k":1,"base64":"x"}}', b'{"data":{"k":1}}'),
        (b'{"data":{"k":1,"base64":null,"l":2}}', b'{"data":{"k":1,"l":2}}'),
        (b'{"data":{"message":{"base64":"x"}}}', b'{"data":{"message":{}}}'),
        (
            b'{"data":{"base64":[1],"message":{"k":0,"base64":{"a":1}},"z":{}},"base64":9}',
            b'{"data":{"message":{"k":0},"z":{}},"base64":9}',
        ),
        (
            b' { "z" : 1e400 , "data" : { "a" : 1.0 , "base64" : "x" , "b" : 2 } } ',
            b' { "z" : 1e400 , "data" : { "a" : 1.0 , "b" : 2 } } ',
        ),
        (b'{"data": {  "base64" : "x" ,\n"b" : 2 }}', b'{"data": {  "b" : 2 }}'),
        (b'{"data": { "base64" : 1 }}', b'{"data": {  }}'),
    ],
)
def test_media_goes_and_its_comma_with_it(body: bytes, left: bytes) -> None:
    """Whatever its place and value; all other bytes, spaces and numbers too, stay as they came."""
    assert without_media(body) == left


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[{"base64":"x"}]}', b'{"data":"base64"}', b'{"data":null,"base64":1}', b'{"base64":"x"}', b"{}",
        b'{"data":{"message":[{"base64":1}],"qrcode":{"base64":"x"}}}', b'{"message":{"base64":"x"}}',
        b'{"data":{"message":"base64","Base64":1,"base64 ":2}}', b'{"data":{"text":"\\u0061 base64"}}',
    ],
)  # fmt: skip
def test_what_is_no_media_is_left_alone(body: bytes) -> None:
    """Arrays, texts, other names and deeper places: the very same body comes back."""
    assert without_media(body) is body


@pytest.mark.parametrize("body", [body for body in BODIES if b"base64" not in body])
def test_a_real_body_without_media_is_left_alone(body: bytes) -> None:
    """The very same bytes come back, so that nothing is copied for the usual event."""
    assert without_media(body) is body


@pytest.mark.parametrize("body", [body for body in BODIES if b"base64" in body])
def test_a_real_body_loses_its_media_only(body: bytes) -> None:
    """What is left parses to what there was, without the two members."""
    left = without_media(body)
    assert json.loads(left) == stripped(json.loads(body))


@given(st.dictionaries(NAMES, VALUES, max_size=4), VALUES, st.sampled_from([None, 0, 3]))
@example({"data": {"base64": 1, "message": {"base64": 2, "k": {"base64": 3}}}}, None, None)
def test_stripping_equals_stripping_the_parsed_value(members: dict[str, Any], data: Any, indent: int | None) -> None:
    """Whatever the nesting, the spelling of characters and the spacing."""
    value = members | {"data": members.get("data", data)}
    for ascii_only in (True, False):
        body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
        left = without_media(body)
        assert json.loads(left) == stripped(value)
        assert (left is body) is (value == stripped(value))


@given(
    st.lists(
        st.sampled_from([b'"base64":0', b'"base64" : [1]', b'"k":"}"', b'"message":{"base64":1,"base64":2}']),
        max_size=5,
    )
)
def test_a_name_may_stand_there_twice(inner: list[bytes]) -> None:
    """Every member of the name goes, and what is left is JSON with everything else, in order."""
    left = without_media(b'{"data":{' + b",".join(inner) + b'},"z":1}')
    wanted = b",".join(one for one in inner if not one.startswith(b'"base64"'))
    assert left == b'{"data":{' + re.sub(rb'\{"base64":1,"base64":2\}', b"{}", wanted) + b'},"z":1}'


@pytest.mark.parametrize(("name", "outer"), list(product(DISGUISED, ["data", "d\\u0061ta"])))
def test_a_name_in_disguise_is_media_too(name: str, outer: str) -> None:
    """A name spelled with escapes means the same."""
    body = f'{{"{outer}":{{"{name}":"x","k":1,"message":{{"{name}":"y"}}}}}}'.encode()
    assert json.loads(without_media(body)) == {"data": {"k": 1, "message": {}}}


def test_lone_surrogates_around_media_stay() -> None:
    """A cut emoji in any text or name, even inside the media, hinders nothing."""
    body = (
        b'{"a":"\\ud83d","data":{"\\ud83d":1,"base64":"\\ud83d","message":{"t":"\\ude00 }","base64":2}},"z":"\\udfff"}'
    )
    left = b'{"a":"\\ud83d","data":{"\\ud83d":1,"message":{"t":"\\ude00 }"}},"z":"\\udfff"}'
    assert without_media(body) == left


def test_large_media_costs_little() -> None:
    """Sixteen megabytes are passed over at the parser's speed."""
    body = b'{"data":{"message":{"base64":"' + b"iVBO" * (4 << 20) + b'","k":1}}}'
    started = time.perf_counter()
    assert without_media(body) == b'{"data":{"message":{"k":1}}}'
    assert time.perf_counter() - started < 1
