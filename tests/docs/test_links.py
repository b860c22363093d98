import importlib
import re
from pathlib import Path

import pytest

from outbox.domain.deliveries import State
from tests.docs.pages import PAGES, ROOT, code, prose, rows, section

_LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
_DOTTED = re.compile(r"(?:outbox|app)(?:\.[a-z_]+)*(?:\.[A-Z]?[A-Za-z_]+)?")
_PATH = re.compile(r"(?:outbox|app|tests|scripts|docs)/[\w./-]+|[a-z-]+\.(?:toml|lock)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(page.read_text())}


def names(dotted: str) -> bool:
    """Say whether a dotted path names a module, or something in one."""
    try:
        importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, member = dotted.rpartition(".")
        return bool(module) and hasattr(importlib.import_module(module), member)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_names_lead_somewhere(page: Path) -> None:
    """Every relative link, every path of the project and every module that a page names is there."""
    text = page.read_text()
    for link in _LINK.findall(prose(text)):
        target, _, anchor = link.partition("#")
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), link
        assert not anchor or anchor in anchors(there), link
    for word in code(text):
        if _DOTTED.fullmatch(word) and not word.startswith("outbox.db"):
            assert names(word), word
        elif _PATH.fullmatch(word):
            assert (ROOT / word).exists(), word


def test_the_architecture_page_names_every_module() -> None:
    """The table of parts has all modules of the two packages, by themselves or by their package."""
    table = rows(section(ROOT / "docs" / "architecture.md", "## The parts"))
    listed = {name for cells in table for name in code(cells[0])}
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for package in ("outbox", "app")
        for file in (ROOT / package).rglob("*.py")
        if not file.name.startswith("__")
    }
    packages = {"outbox.store.sqlite", "app.routes", "app.commands"}
    missing = [name for name in modules - listed if not any(name.startswith(package) for package in packages)]
    assert missing == []


def test_the_glossary_uses_the_words_of_the_code() -> None:
    """Where the glossary names a class or function, it has the glossary's word in its name, or is known not to."""
    others = {"acknowledgement", "attempt", "chain", "fold", "projection", "settings (of a webhook)"}
    entries = [cells for cells in rows((ROOT / "docs" / "glossary.md").read_text()) if len(cells) == 3]
    assert len({word for word, _, _ in entries}) == len(entries)
    for word, _, where in entries:
        named = where.strip("`").rpartition(".")[2].lower()
        assert not named or word in others or named == word, word
    words = {word for word, _, _ in entries}
    assert {"event", "kind", "instance", "webhook", "delivery", "attempt", "acknowledgement", "record", "log"} <= words
    assert {"projection", "journal", "relay", "lane", "claim", "head", "held"} <= words


def test_the_states_of_a_delivery_are_in_the_glossary() -> None:
    """The entry of a delivery's state names every state that is stored."""
    (meaning,) = [cells[1] for cells in rows((ROOT / "docs" / "glossary.md").read_text()) if cells[0] == "state"]
    assert [state.word for state in State if state.word not in meaning] == []


def test_every_decision_is_listed_once() -> None:
    """The list of decisions has them all, in order, each under its own title."""
    folder = ROOT / "docs" / "decisions"
    pages = sorted(folder.glob("0*.md"))
    titles = [page.read_text().partition("\n")[0].removeprefix("# ") for page in pages]
    listed = re.findall(r"^(\d+)\. \[(.+)\]\((.+)\)$", (folder / "README.md").read_text(), re.MULTILINE)
    assert [(f"{number}. {title}", file) for number, title, file in listed] == list(
        zip(titles, [page.name for page in pages], strict=True)
    )
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
