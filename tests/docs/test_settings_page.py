import importlib
import re

from app.settings import VARIABLES
from app.webhook_schemas import WebhookIn
from outbox.domain import catalogue
from tests.docs.pages import ROOT, rows, section

PAGE = ROOT / "docs" / "settings.md"
_VARIABLE = re.compile(r"`((?:OUTBOX|WEBHOOK|AUTHENTICATION)_[A-Z_]+[A-Z])`")


def known(name: str) -> bool:
    """Say whether a variable is one that the service reads."""
    kind = name.removeprefix("WEBHOOK_EVENTS_")
    return name in {variable.name for variable in VARIABLES} or (kind != name and catalogue.find(kind) is not None)


def test_the_page_is_the_table() -> None:
    """Each variable stands on the page once, with its default and what it takes, and no other does."""
    variables = [cells for cells in rows(PAGE.read_text()) if len(cells) == 4]
    shown = sorted((name.strip("`"), takes, default.strip("`")) for name, takes, default, _ in variables)
    assert shown == sorted((variable.name, variable.takes, variable.default) for variable in VARIABLES)


def test_every_setting_of_a_webhook_is_on_the_page() -> None:
    """The members of a webhook's body stand on the page, with their defaults."""
    shown = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(section(PAGE, "## One webhook"))}
    assert list(shown) == list(WebhookIn.__struct_fields__)
    defaults = WebhookIn(url="")
    words = {True: "true", False: "false", None: "null"}
    for name, default in shown.items():
        meant = getattr(defaults, name)
        assert default == (words[meant] if isinstance(meant, bool) or meant is None else str(meant)), name


def test_no_page_names_a_variable_that_is_not_read() -> None:
    """What looks like a variable in README and pages is one, but for the example of an unknown one."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        named = set(_VARIABLE.findall(page.read_text()))
        assert [name for name in named if not known(name)] in ([], ["WEBHOOK_EVENTS_ERRORS"]), page


def test_the_compose_example_sets_what_exists() -> None:
    """The compose file is YAML, and every variable it sets for the outbox is one."""
    # Not imported like the others: there are no types of it in the lock.
    example = importlib.import_module("yaml").safe_load((ROOT / "docs" / "compose.yaml").read_text())
    environment = example["services"]["outbox"]["environment"]
    assert environment["OUTBOX_ALLOWED_NETWORKS"] == "private"
    assert [name for name in environment if not known(name)] == []
