import hashlib
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.domain import ids
from outbox.domain.errors import NotFoundError

HEX = "0123456789abcdef" * 2
EVENT_IDS = st.binary(min_size=16, max_size=16)
RANDOMS = st.binary(min_size=10, max_size=10)
TIMES = st.integers(0, 2**48 - 1)


@given(TIMES, RANDOMS)
def test_an_event_id_is_a_uuid_of_version_7(now_ms: int, random: bytes) -> None:
    """Time, version and variant stand where RFC 9562 puts them."""
    made = uuid.UUID(bytes=ids.event_id(now_ms, random))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == now_ms


@given(TIMES, TIMES, RANDOMS, RANDOMS)
def test_event_ids_sort_by_time(earlier: int, later: int, random: bytes, other: bytes) -> None:
    """An id made in an earlier millisecond is the smaller one."""
    if earlier != later:
        assert (ids.event_id(earlier, random) < ids.event_id(later, other)) is (earlier < later)


def test_event_ids_hold_74_of_the_random_bits() -> None:
    """Every random bit but the six under version and variant stands in the id."""
    zeros, ones = (int.from_bytes(ids.event_id(1, bit * 10), "big") for bit in (b"\x00", b"\xff"))
    assert zeros ^ ones == (1 << 80) - 1 - (0xF << 76) - (0b11 << 62)


@given(EVENT_IDS)
def test_an_event_id_survives_being_written(event_id: bytes) -> None:
    """The public form leads back to the same 16 bytes."""
    assert ids.parse_event(ids.event_text(event_id)) == event_id


@given(EVENT_IDS, st.integers(1, 10**18 - 1))
def test_a_delivery_id_survives_being_written(event_id: bytes, webhook: int) -> None:
    """The public form leads back to the event and the webhook's number."""
    assert ids.parse_delivery(ids.delivery_text(event_id, webhook)) == (event_id, webhook)


def test_the_public_forms() -> None:
    """What API and CLI write: a prefix, hexadecimal digits, and for a delivery the webhook's number."""
    assert ids.event_text(bytes.fromhex(HEX)) == f"evt_{HEX}"
    assert ids.delivery_text(bytes.fromhex(HEX), 42) == f"dlv_{HEX}_42"


@pytest.mark.parametrize(
    "text",
    ["", HEX, f"evt_{HEX}0", f"evt_{HEX[1:]}", f"evt_{HEX.upper()}", f"evt_{HEX}\n", f"dlv_{HEX}_1", f" evt_{HEX}"],
)
def test_what_is_no_event_id_names_no_event(text: str) -> None:
    """Anything but the one spelling is not found, and the message says what an id looks like."""
    with pytest.raises(NotFoundError, match="32 hex digits"):
        ids.parse_event(text)


@pytest.mark.parametrize(
    "tail", ["", "_", "_0", "_01", "_-1", "_1\n", "_1_", "_x", "_1\u0661", "_" + "9" * 19], ids=ascii
)  # fmt: skip
def test_what_is_no_delivery_id_names_no_delivery(tail: str) -> None:
    """A delivery has one spelling: no leading zeros, no foreign digits, no number that fits nowhere."""
    with pytest.raises(NotFoundError, match="32 hex digits"):
        ids.parse_delivery(f"dlv_{HEX}{tail}")


def test_a_body_is_named_by_its_sha_256() -> None:
    """The digest that stands in the log is the one that sha256sum prints."""
    assert ids.body_digest(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_key_digest_is_the_same_for_ever() -> None:
    """Keys stand in the log as these 16 bytes: another way to make them would forget every key."""
    assert ids.key_digest("events", b"k") == hashlib.sha256(b"events\0k").digest()[:16]


@given(st.binary(), st.binary())
def test_key_digests_tell_keys_and_scopes_apart(one: bytes, other: bytes) -> None:
    """The same key in another scope is another key."""
    assert (ids.key_digest("a", one) == ids.key_digest("a", other)) is (one == other)
    assert ids.key_digest("a", one) != ids.key_digest("b", other)
