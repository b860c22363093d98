import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.domain import catalogue

ROWS = json.loads((Path(__file__).parents[2] / "vectors" / "catalogue.json").read_text())
WORDS = st.lists(st.sampled_from(["a", "call", "7", "x9y"]), min_size=1, max_size=4)
WELL_FORMED = st.builds(
    lambda words, mark, last: mark.join(words) + last, WORDS, st.sampled_from("._-"), st.sampled_from(["", "_b", ".0"])
)


def test_the_rows_are_the_documented_ones() -> None:
    """Names, events and suffixes are to the letter those of the vectors, in their order."""
    assert [
        (kind.name, kind.api_event, kind.suffix, kind.server_event, kind.evolution_suffix, kind.documented)
        for kind in catalogue.KINDS
    ] == [
        tuple(row[key] for key in ("name", "api_event", "suffix", "evolution_event", "evolution_suffix", "documented"))
        for row in ROWS
    ]


def test_nineteen_kinds_are_documented() -> None:
    """The documented kinds come first and are 19."""
    assert [kind.documented for kind in catalogue.KINDS] == [True] * 19 + [False] * (len(ROWS) - 19)


@pytest.mark.parametrize(
    ("name", "api_event", "documented", "evolution"),
    [
        ("SEND_MESSAGE", "send.message", "/send-messages", "/send-message"),
        (
            "GROUP_PARTICIPANTS_UPDATE",
            "group-participants.update",
            "/groups-participants-update",
            "/group-participants-update",
        ),
        ("NEW_TOKEN", "new.jwt", "/new-token", "/new-jwt"),
        ("MESSAGES_UPSERT", "message.upsert", "/messages-upsert", "/messages-upsert"),
    ],
)
def test_the_traps_of_the_documentation_are_kept(name: str, api_event: str, documented: str, evolution: str) -> None:
    """What looks like a slip on the documented page is what receivers were built against."""
    kind = catalogue.named(name)
    assert kind.api_event == api_event
    assert kind.suffix_in("documented") == documented
    assert kind.suffix_in("evolution") == evolution


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["name"]))
def test_every_spelling_in_any_case_means_its_kind(row: dict[str, Any]) -> None:
    """Name, API event, server event, suffixes and aliases are read in upper, lower and mixed case."""
    spellings = [row[key] for key in ("name", "api_event", "suffix", "evolution_event", "evolution_suffix")]
    spellings += [row["suffix"].removeprefix("/"), *row["aliases"]]
    for spelling in spellings:
        for written in (spelling, spelling.upper(), spelling.lower(), spelling.title()):
            kind = catalogue.find(written)
            assert kind is not None, written
            assert kind.name == row["name"], written


@pytest.mark.parametrize(
    "spelling", ["", "/", "//call", "calls", "messages upsert", "message", "messages.upsert.", "*"]
)
def test_what_no_kind_is_called_is_not_found(spelling: str) -> None:
    """Finding is exact: a near miss is no kind."""
    assert catalogue.find(spelling) is None


@given(WELL_FORMED)
def test_a_newer_servers_event_becomes_a_kind_of_its_own(event: str) -> None:
    """A well-formed unknown event gets a canonical name, in any case, and keeps its event string."""
    kind = catalogue.unknown(event)
    assert kind is not None
    assert kind == catalogue.unknown(event.upper())
    assert kind.name == event.upper().replace(".", "_").replace("-", "_")
    assert kind.server_event == event
    assert kind.suffix_in("evolution") == "/" + event.replace(".", "-").replace("_", "-")
    assert not kind.documented


@given(WELL_FORMED, st.sampled_from(["documented", "evolution"]))
def test_an_unknown_kind_has_one_suffix_whatever_the_style(event: str, style: catalogue.RouteStyle) -> None:
    """From the canonical name alone, the suffix is the event string with its separators turned to dashes."""
    kind = catalogue.unknown(event)
    assert kind is not None
    if catalogue.find(event) is None:
        assert catalogue.named(kind.name).suffix_in(style) == "/" + event.replace(".", "-").replace("_", "-")


@pytest.mark.parametrize("event", ["x" * 64, "a.b_c-d", "7", "ERROR"])
def test_a_well_formed_event_is_taken(event: str) -> None:
    """Letters and digits with single separators between them, up to 64 characters, in any case."""
    assert catalogue.unknown(event) is not None


@pytest.mark.parametrize(
    "event",
    ["", "x" * 65, ".a", "a.", "a..b", "a._b", "a b", "a/b", "a\n", "é", "\u212aall", "a\u0660", "..", "a\x00"],
)
def test_an_ill_formed_event_is_no_kind(event: str) -> None:
    """Anything else names nothing, look-alikes from beyond ASCII included."""
    assert catalogue.unknown(event) is None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["name"]))
def test_a_canonical_name_leads_back_to_its_row(row: dict[str, str]) -> None:
    """What is stored is the name alone; the rest of the row is found by it."""
    kind = catalogue.named(row["name"])
    assert (kind.suffix, kind.server_event) == (row["suffix"], row["evolution_event"])


@pytest.mark.parametrize(
    ("typo", "name"),
    [
        ("message.upset", "MESSAGES_UPSERT"),
        ("QRCODE_UPDATE", "QRCODE_UPDATED"),
        ("Send-Mesage", "SEND_MESSAGE"),
        ("groups.participants", "GROUP_PARTICIPANTS_UPDATE"),
    ],
)
def test_a_typo_is_told_its_nearest_kind(typo: str, name: str) -> None:
    """Error messages name the kind that was probably meant."""
    assert catalogue.nearest(typo) == name


@pytest.mark.parametrize("spelling", ["", "日本語", "\x00"])
def test_something_is_nearest_to_anything(spelling: str) -> None:
    """Even what resembles nothing gets a kind named as an example."""
    assert catalogue.nearest(spelling) in {row["name"] for row in ROWS}


def test_only_the_head_of_a_long_spelling_is_compared() -> None:
    """A megabyte sent as a kind does not keep the service guessing."""
    assert catalogue.nearest("messages_upsert") == "MESSAGES_UPSERT"
    assert catalogue.nearest("x" * 64 + "messages_upsert") == catalogue.nearest("x" * 64) != "MESSAGES_UPSERT"
