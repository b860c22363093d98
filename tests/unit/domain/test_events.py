import hashlib
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.domain import catalogue
from outbox.domain.errors import InvalidError, MalformedError
from outbox.domain.events import Event, check_instance, ordering_key, read_event, read_evolution_event

VECTORS = Path(__file__).parents[2] / "vectors"
EVENTS = (VECTORS / "events.jsonl").read_bytes().splitlines()
EXTREMES = (VECTORS / "extremes.jsonl").read_bytes().splitlines()
READERS = [read_event, read_evolution_event]

WORDS = st.sampled_from(["", "a", "b@g.us", "\u00e9"])
ODD: st.SearchStrategy[Any] = (
    WORDS | st.none() | st.integers() | st.just([]) | st.just({}) | st.floats(allow_nan=False, allow_infinity=False)
)
CHATS = st.fixed_dictionaries(
    {},
    optional={
        "key": ODD | st.fixed_dictionaries({}, optional={"remoteJid": ODD, "id": ODD}),
        "remoteJid": ODD,
        "chatId": ODD,
        "id": ODD,
    },
)


def envelope(**members: Any) -> bytes:
    """A body that both readers take, with these members instead."""
    return json.dumps({"event": "call", "instance": "shop", "data": {}} | members).encode()


def without(member: str) -> bytes:
    """The same body with a member missing."""
    return json.dumps({name: value for name, value in json.loads(envelope()).items() if name != member}).encode()


def key_of(instance: str, data: object) -> int:
    """The ordering key for data given as a value."""
    return ordering_key(instance, json.dumps(data).encode())


def chat_of(data: Any) -> str:
    """The rule of the specification, written the slow way."""
    if isinstance(data, list):
        data = data[0] if data else None
    if not isinstance(data, dict):
        return ""
    key = data.get("key")
    found = [key.get("remoteJid") if isinstance(key, dict) else None]
    found += [data.get(name) for name in ("remoteJid", "chatId", "id")]
    return next((text for text in found if isinstance(text, str) and text), "")


@pytest.mark.parametrize("body", EVENTS + EXTREMES)
@pytest.mark.parametrize("reader", READERS)
def test_what_servers_send_is_an_event(reader: Any, body: bytes) -> None:
    """Every event of the vectors is read, with its canonical kind; its bytes are kept and digested as they came."""
    event: Event = reader(body, hops=2)
    sent = json.loads(body)
    kind = catalogue.find(sent["event"])
    assert kind is not None
    assert (event.kind, event.instance, event.hops) == (kind.name, sent["instance"], 2)
    assert event.body is body
    assert event.digest == hashlib.sha256(body).digest()
    assert event.dated is ("date_time" in sent)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("spelling", "name"), [("MESSAGES_UPSERT", "MESSAGES_UPSERT"), ("/new-jwt", "NEW_TOKEN")])
def test_any_spelling_of_a_kind_is_read(reader: Any, spelling: str, name: str) -> None:
    """The kind is canonical in the event; the body keeps the sender's spelling."""
    event = reader(envelope(event=spelling))
    assert event.kind == name
    assert json.loads(event.body)["event"] == spelling


def test_an_unknown_kind_is_refused_on_our_own_api() -> None:
    """The message names the nearest kind."""
    with pytest.raises(InvalidError, match=r"'mesages\.upsert'; the nearest is MESSAGES_UPSERT") as refused:
        read_event(envelope(event="mesages.upsert"))
    assert refused.value.where == "$.event"


def test_a_newer_servers_kind_is_accepted_from_a_server() -> None:
    """A server must not lose events for being newer than the catalogue."""
    assert read_evolution_event(envelope(event="poll.vote-cast")).kind == "POLL_VOTE_CAST"


def test_an_ill_formed_kind_is_refused_from_a_server_too() -> None:
    """What could stand in no path and no metric is no kind."""
    with pytest.raises(InvalidError, match="not the name of an event") as refused:
        read_evolution_event(envelope(event="a/../b"))
    assert refused.value.where == "$.event"


@pytest.mark.parametrize("member", ["instance", "data"])
def test_our_own_api_wants_instance_and_data(member: str) -> None:
    """A missing member is named."""
    with pytest.raises(InvalidError, match=f"`{member}` is missing") as refused:
        read_event(without(member))
    assert refused.value.where == "$"


def test_a_server_may_name_no_instance() -> None:
    """The error hook of servers has neither an instance nor a kind of the catalogue."""
    event = read_evolution_event(b'{"event":"error","data":{"status":500},"date_time":"x"}')
    assert (event.kind, event.instance, event.dated) == ("ERROR", "", True)


@pytest.mark.parametrize("text", [b"null", b'""'])
def test_a_server_may_have_no_instance_to_name(text: bytes) -> None:
    """Null and an empty name mean what a missing member means; on our own API they are refused by their place."""
    body = envelope().replace(b'"shop"', text)
    event = read_evolution_event(body)
    assert (event.instance, event.body) == ("", body)
    assert event.ordering_key == ordering_key("", b"{}")
    with pytest.raises(InvalidError) as refused:
        read_event(body)
    assert refused.value.where == "$.instance"


def test_a_server_may_send_no_data() -> None:
    """Without data the ordering key is the instance's alone."""
    event = read_evolution_event(without("data"))
    assert event.ordering_key == ordering_key("shop", None)
    assert not event.dated


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"[]", "$"),
        (b"null", "$"),
        (b'{"instance":"a","data":1}', "$"),
        (b'{"event":5,"instance":"a","data":1}', "$.event"),
        (b'{"event":"call","instance":["a"],"data":1}', "$.instance"),
        (b'{"event":"call","instance":7,"data":"\\ud83d"}', "$.instance"),
    ],
)
def test_a_wrong_shape_is_named_by_its_path(reader: Any, body: bytes, where: str) -> None:
    """The path stands once in the message, and in the error for programs."""
    with pytest.raises(InvalidError) as refused:
        reader(body)
    assert refused.value.where == where
    assert refused.value.detail.count(" - at `") == 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"event":"call","instance":"a","data":1', b'\xef\xbb\xbf{"event":"call"}', b"[" * 201, b'"\xff"',
     b'{"event":"call","instance":"a","data":"\\ud8zz"}', b'{"event":5,"instance":"a","data":01}'],
)  # fmt: skip
def test_what_is_no_json_is_malformed(reader: Any, body: bytes) -> None:
    """Malformed bytes are told from a wrong shape, even where both are true."""
    with pytest.raises(MalformedError):
        reader(body)


@pytest.mark.parametrize("name", ["a", "x" * 255, "Loja 01", "Concei\u00e7\u00e3o", "\u65e5\u672c", "...", "a:b%2F"])
def test_an_instance_may_be_called(name: str) -> None:
    """Any text of 1 to 255 characters, spaces and scripts of all kinds included."""
    check_instance(name)
    assert read_event(envelope(instance=name)).instance == name


@pytest.mark.parametrize(
    "name", ["", "x" * 256, ".", "..", "a\n", "\x00", "\x7f", "\x85", "\u2028", "\ufffd", chr(0xDC80)], ids=ascii
)
@pytest.mark.parametrize("slashes", [False, True])
def test_an_instance_may_not_be_called(name: str, slashes: bool) -> None:  # noqa: FBT001
    """Nothing that breaks a path, a terminal or a line of log, wherever it comes from."""
    with pytest.raises(InvalidError) as refused:
        check_instance(name, slashes=slashes, where="$.there")
    assert refused.value.where == "$.there"


@pytest.mark.parametrize("name", ["a/b", "a\\b", "/"])
def test_a_slash_is_taken_from_servers_only(name: str) -> None:
    """Servers out there have such instances; our own routes could not name them."""
    check_instance(name, slashes=True)
    assert read_evolution_event(envelope(instance=name)).instance == name
    with pytest.raises(InvalidError, match="no / or"):
        read_event(envelope(instance=name))


@pytest.mark.parametrize("name", ["\ud83d", "a\x00", "x" * 256], ids=["lone surrogate", "control", "long"])
def test_a_broken_instance_is_refused_from_servers_too(name: str) -> None:
    """A lone surrogate in a name could be written nowhere."""
    with pytest.raises(InvalidError) as refused:
        read_evolution_event(envelope(instance=name))
    assert refused.value.where == "$.instance"


def test_an_ordering_key_is_the_same_for_ever() -> None:
    """Keys stand in the log: another hash would let events of one chat overtake each other."""
    assert key_of("loja01", {"key": {"remoteJid": "5511@s.whatsapp.net"}}) == 829748069754325134
    assert ordering_key("loja01", None) == -6515967265049088860


@given(st.text(max_size=9), st.text(min_size=1, max_size=9))
def test_the_same_chat_has_the_same_key_wherever_it_is_named(instance: str, chat: str) -> None:
    """Each of the four places, in an object or a list's first element, means the same chat."""
    shapes: list[object] = [{"key": {"remoteJid": chat}}, {"remoteJid": chat}, {"chatId": chat}, {"id": chat}]
    keys = {key_of(instance, shape) for shape in (*shapes, *([shape, {"id": "other"}] for shape in shapes))}
    assert len(keys) == 1
    assert -(2**63) <= keys.pop() < 2**63


@given(st.text(max_size=3), CHATS | st.lists(CHATS | WORDS, max_size=2) | ODD)
def test_the_first_chat_named_decides(instance: str, data: object) -> None:
    """Members of a type of their own are passed over; without a chat the instance alone makes the key."""
    chat = chat_of(data)
    assert key_of(instance, data) == (key_of(instance, {"id": chat}) if chat else ordering_key(instance, None))


def test_the_four_places_are_looked_at_in_order() -> None:
    """Every combination of a chat, an empty text, a number or nothing in the four places."""
    places = ("key", "remoteJid", "chatId", "id")
    for values in product(("chat", "", 5, None), repeat=4):
        told = {
            place: f"{value} in {place}" if value == "chat" else value
            for place, value in zip(places, values, strict=True)
        }
        chat = next((text for text in told.values() if isinstance(text, str) and text), "")
        data = told | {"key": {"remoteJid": told["key"]}}
        assert key_of("shop", data) == key_of("shop", {"id": chat}), data


@given(WORDS, WORDS, WORDS, WORDS)
def test_keys_tell_instances_and_chats_apart(instance: str, chat: str, other: str, other_chat: str) -> None:
    """Two keys are equal only if instance and chat both are."""
    same = (instance, chat) == (other, other_chat)
    assert (key_of(instance, {"id": chat}) == key_of(other, {"id": other_chat})) is same


def test_an_events_key_is_its_instances_and_chats() -> None:
    """The key of an event read is that of its instance and data, cut emoji or not."""
    assert read_event(envelope(data={"chatId": "c"})).ordering_key == key_of("shop", {"id": "c"})
    assert read_event(envelope(data={"chatId": "c", "pushName": "\ud83d"})).ordering_key == key_of("shop", {"id": "c"})
