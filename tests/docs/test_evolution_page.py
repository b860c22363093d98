import json
import re

import pytest

from app.evolution_schemas import read_wanted
from app.settings import VARIABLES
from outbox.domain.catalogue import KINDS
from tests.docs.pages import ROOT, rows, section

PAGE = ROOT / "docs" / "evolution.md"
BODIES = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_table_of_names_is_the_catalogue() -> None:
    """Every kind stands there once, with what servers send and both suffixes."""
    shown = [tuple(cell.strip("`") for cell in cells) for cells in rows(section(PAGE, "## Names"))]
    assert shown == [(kind.name, kind.server_event, kind.suffix, kind.evolution_suffix) for kind in KINDS]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_every_body_that_is_shown_is_taken(body: str) -> None:
    """A body on the page sets what it says."""
    wanted = read_wanted(body.encode())
    shown = json.loads(body)
    inner = shown.get("webhook", shown)
    assert (wanted.url, wanted.base64, wanted.by_events) == (inner["url"], True, False)
    assert wanted.enabled
    assert set(wanted.events) == set(inner["events"])


def test_the_bodies_are_those_of_three_generations() -> None:
    """One nested, one flat in each of the two spellings, and the one that points a server here."""
    shapes = {frozenset({"webhook"}) & set(json.loads(body)) or frozenset(json.loads(body)) for body in BODIES}
    assert len(BODIES) == 4
    assert {"webhook"} in shapes
    assert any("webhookByEvents" in shape for shape in shapes)
    assert any("webhook_by_events" in shape for shape in shapes)


def test_what_find_shows_can_be_set_as_it_is() -> None:
    """The row that a server answers with, piped here, has everything that the webhook is made of."""
    row = {
        "id": "cm3x", "url": "https://h.test/w", "headers": {"jwt_key": "k"}, "enabled": True,
        "events": ["GROUP_UPDATE"], "webhookByEvents": True, "webhookBase64": True, "instanceId": "6f0c",
        "createdAt": "2025-11-03T12:00:00.000Z", "updatedAt": "2025-11-03T12:00:00.000Z",
    }  # fmt: skip
    wanted = read_wanted(json.dumps(row).encode())
    assert (wanted.url, wanted.enabled, wanted.headers) == (row["url"], True, {"jwt_key": "k"})
    assert (wanted.by_events, wanted.base64, wanted.events) == (True, True, ("GROUPS_UPDATE",))


def test_every_line_of_an_environment_is_a_variable() -> None:
    """What the page has its reader write into a `.env` file is read by the outbox (and by the server)."""
    lines = "".join(re.findall(r"^```env\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)).splitlines()
    assert len(lines) == 5
    assert {line.partition("=")[0] for line in lines} <= {variable.name for variable in VARIABLES}
