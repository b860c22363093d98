"""Records, and the frozen file of them.

`records.jsonl` holds encoded records as some version wrote them: logs out there hold the same bytes. A line is added
whenever a type is added, or a field is appended to one: encode a record with the field set, and append a line with its
type, its tag, the hexadecimal digits of its encoding, and its fields in order (bytes as hexadecimal digits, an effect,
a move or a state as its number). A line is never edited or removed: a test that fails because of one says that the code
can no longer read what was written.
"""

import hashlib
import json
from collections import Counter
from enum import Enum, IntEnum
from functools import reduce
from itertools import starmap
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from outbox.domain import records
from outbox.domain.deliveries import Effect
from outbox.domain.errors import CorruptError
from outbox.domain.records import (
    CHECKPOINTS,
    GENESIS,
    UNREADABLE,
    Record,
    chained,
    decode,
    decode_checkpoint,
    decode_event,
    decode_or_blank,
    encode,
    subject,
)
from outbox.domain.replays import ReplayFilter
from outbox.domain.webhooks import Settings

LINES: list[dict[str, Any]] = list(
    map(json.loads, (Path(__file__).with_name("records.jsonl")).read_text().splitlines())
)
TYPES: dict[str, Any] = {kind.__name__: kind for kind in get_args(Record)}
EACH_LINE = pytest.mark.parametrize("line", LINES, ids=[f"{at}-{line['type']}" for at, line in enumerate(LINES, 1)])
PLAIN: dict[Any, st.SearchStrategy[Any]] = {int: st.integers(-(2**63), 2**63 - 1), float: st.floats(allow_nan=False)}
DELETED = records.WebhookDeleted(webhook=5, at_ms=6)


def written(value: Any) -> Any:
    """A field as the file writes it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, msgspec.Struct):
        return {name: written(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return list(map(written, value))
    return int(value) if isinstance(value, IntEnum) else value


def holds(now: Any, then: Any) -> bool:
    """Whether a value of today is the one of then, members that came later aside."""
    if isinstance(then, dict):
        return all(name in now and holds(now[name], value) for name, value in then.items())
    if isinstance(then, list):
        return len(now) == len(then) and all(starmap(holds, zip(now, then, strict=True)))
    return type(now) is type(then) and bool(now == then)


def any_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values for a field of that type, a future one's too."""
    inner = get_args(hint)
    if hint in PLAIN:
        return PLAIN[hint]
    if inner[1:] == (...,):
        return st.lists(any_of(inner[0]), max_size=3).map(tuple)
    if get_origin(hint) is tuple:
        return st.tuples(*map(any_of, inner))
    if inner and type(None) in inner:
        return st.none() | st.one_of([any_of(one) for one in inner if one is not type(None)])
    return whole(hint) if hasattr(hint, "__annotations__") and not issubclass(hint, Enum) else st.from_type(hint)


def whole(kind: Any) -> st.SearchStrategy[Any]:
    """Structs and named tuples with any value in each field."""
    return st.builds(kind, **{name: any_of(hint) for name, hint in get_type_hints(kind).items()})


RECORDS: st.SearchStrategy[Record] = st.one_of([whole(kind) for kind in TYPES.values()])


@EACH_LINE
def test_a_record_written_once_is_read_for_ever(line: dict[str, Any]) -> None:
    """Each line decodes to its type, with every field as it was."""
    record = decode(bytes.fromhex(line["hex"]))
    assert type(record).__name__ == line["type"]
    assert holds(written(record), line["fields"])


@EACH_LINE
def test_fields_are_only_ever_appended(line: dict[str, Any]) -> None:
    """The fields of then come first, in their order; later ones have a default that says what their absence meant."""
    kind = TYPES[line["type"]]
    then = list(line["fields"])
    later = kind.__struct_fields__[len(then) :]
    assert kind.__struct_fields__[: len(then)] == tuple(then)
    assert len(msgspec.msgpack.decode(bytes.fromhex(line["hex"]))) == 1 + len(then)
    assert len(kind.__struct_defaults__) >= len(later)


@EACH_LINE
def test_a_tag_means_one_type(line: dict[str, Any]) -> None:
    """The tag stands first in the encoding, and is the type's still."""
    assert msgspec.msgpack.decode(bytes.fromhex(line["hex"]))[0] == line["tag"]
    assert TYPES[line["type"]].__struct_config__.tag == line["tag"]


@EACH_LINE
def test_todays_encoding_begins_like_the_one_of_then(line: dict[str, Any]) -> None:
    """A record read and written again differs in what was appended only."""
    data = bytes.fromhex(line["hex"])
    then, now = msgspec.msgpack.decode(data), msgspec.msgpack.decode(encode(decode(data)))
    assert holds(now[: len(then)], then)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_record_is_in_the_file(name: str) -> None:
    """At least twice, and in its newest form: a new type or field has to be frozen before it can be written."""
    lines = [line for line in LINES if line["type"] == name]
    assert len(lines) >= 2
    assert tuple(lines[-1]["fields"]) == TYPES[name].__struct_fields__
    for field, kind in (("settings", Settings), ("wanted", ReplayFilter)):
        nested = lines[-1]["fields"].get(field)
        assert nested is None or tuple(nested) == kind.__struct_fields__


def test_no_two_types_share_a_tag() -> None:
    """Nor does a line name a type that is gone."""
    tags = Counter(kind.__struct_config__.tag for kind in TYPES.values())
    assert set(tags.values()) == {1}
    assert {line["type"] for line in LINES} <= TYPES.keys()


@pytest.mark.parametrize("nested", [Settings(url=""), ReplayFilter()], ids=lambda nested: type(nested).__name__)
def test_settings_and_filters_are_always_written_whole(nested: Settings | ReplayFilter) -> None:
    """A default may change later; what was recorded under the old one may not."""
    raw = msgspec.msgpack.decode(msgspec.msgpack.encode(nested))
    assert tuple(raw) == nested.__struct_fields__


@given(RECORDS)
def test_any_record_comes_back(record: Record) -> None:
    """Encoding loses nothing, whatever the fields hold."""
    assert decode(encode(record)) == record


@given(st.sampled_from(LINES), st.data())
def test_a_damaged_record_is_read_or_corrupt(line: dict[str, Any], data: st.DataObject) -> None:
    """A flipped bit gives another record or the one error that means damage, never a surprise."""
    bits = bytearray.fromhex(line["hex"])
    place = data.draw(st.integers(0, len(bits) * 8 - 1))
    bits[place // 8] ^= 1 << place % 8
    try:
        assert isinstance(decode(bytes(bits)), get_args(Record))
    except CorruptError as error:
        assert "cannot be read" in error.detail  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", encode(DELETED)[:-1], encode(DELETED) + b"\x00", b"\x92\x04\x05", b"\x93\x63\x05\x06",
     b"\x93\x04\x05\xa1x", encode(DELETED).replace(b"\x93", b"\x94") + b"\x91" * 5000 + b"\xc0",
     encode(records.DeliveriesBuried(1, 1, 1, 1, "why", 1, 1)).replace(b"why", b"w\xff\xfe")],
    ids=["empty", "number", "short", "long", "few fields", "unknown tag", "wrong type", "deep", "broken text"],
)  # fmt: skip
def test_what_is_no_record_is_corrupt(data: bytes) -> None:
    """Truncated, overlong, unknown or broken bytes are one error."""
    with pytest.raises(CorruptError, match="a record of the log cannot be read"):
        decode(data)


def test_an_events_record_is_read_as_one() -> None:
    """Where an event is looked for, the record of something else is damage too, and may be seen as a blank."""
    event = structs.replace(UNREADABLE, kind="CALL", at_ms=7)
    assert decode_event(encode(event)) == decode_or_blank(encode(event)) == event
    for data, problem in ((encode(DELETED), "is a WebhookDeleted in the log"), (b"", "cannot be read")):
        with pytest.raises(CorruptError, match=problem):
            decode_event(data)
        assert decode_or_blank(data) is UNREADABLE


def test_a_checkpoints_record_is_read_as_one() -> None:
    """The record of something else in its place is damage."""
    (line, *_) = (line for line in LINES if line["type"] == "Checkpoint")
    data = bytes.fromhex(line["hex"])
    assert decode_checkpoint(9, data) == decode(data)
    with pytest.raises(CorruptError, match="record 9 is not the checkpoint"):
        decode_checkpoint(9, encode(DELETED))


def test_a_newer_versions_field_is_passed_over() -> None:
    """After a downgrade, fields appended by the newer version are no damage."""
    data = encode(DELETED)
    assert decode(b"\x94" + data[1:] + b"\x2a") == DELETED


def test_the_chain_begins_with_zeros_and_hashes_on() -> None:
    """The digest of a record covers its bytes and, through the digest before, all earlier ones."""
    assert bytes(32) == GENESIS
    assert chained(GENESIS, b"record") == hashlib.sha256(bytes(32) + b"record").digest()


def test_the_chain_over_the_frozen_records_is_the_same_for_ever() -> None:
    """Another way to chain would make every log look damaged."""
    head = reduce(chained, (bytes.fromhex(line["hex"]) for line in LINES[:10]), GENESIS)
    assert head.hex() == "d6dbd68aca939c81ee92cbcaebd784f991ba631c04cae049543732d6cbfe5747"


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=9), st.binary(max_size=9))
def test_another_record_gives_another_digest(previous: bytes, one: bytes, other: bytes) -> None:
    """A changed, exchanged or missing record shows in every digest after it."""
    assert (chained(previous, one) == chained(previous, other)) is (one == other)
    assert (chained(chained(previous, one), other) == chained(chained(previous, other), one)) is (one == other)


@pytest.mark.parametrize(
    ("name", "fields", "about"),
    [
        ("EventAccepted", {}, 0),
        ("AttemptRecorded", {"event": 5, "webhook": 3}, 5),
        ("WebhookSet", {"webhook": 3}, -3),
        ("WebhookSet", {"webhook": 0}, 0),
        ("WebhookDeleted", {"webhook": 3}, -3),
        ("DeliveriesBuried", {"webhook": 3, "first": 1, "last": 9}, -3),
        ("WebhookSuspended", {"webhook": 3, "event": 5}, -3),
        ("BreakerMoved", {"webhook": 3}, -3),
        ("DeliveriesMoved", {"webhook": 3}, -3),
        ("OrderConverted", {"webhook": 3}, -3),
        ("ReplayRequested", {}, 0),
        ("ReplayAdvanced", {"replay": 4, "webhook": 3, "event": 5}, -4),
        ("Checkpoint", {"first": 1, "last": 9}, CHECKPOINTS),
        ("WebhookCarried", {"webhook": 3}, -3),
    ],
)
def test_a_record_is_about_an_event_or_a_webhook_or_a_replay(name: str, fields: dict[str, int], about: int) -> None:
    """Events by their seq, webhooks and replays by minus their number, nothing where the record's own seq says it."""
    line = next(line for line in LINES if line["type"] == name)
    record = msgspec.structs.replace(decode(bytes.fromhex(line["hex"])), **fields)
    assert subject(record) == about


def test_effects_are_recorded_as_numbers() -> None:
    """One byte each, whatever they are called."""
    line = next(line for line in LINES if line["type"] == "AttemptRecorded")
    assert line["fields"]["effect"] in list(Effect)
