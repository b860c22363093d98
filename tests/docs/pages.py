"""What tests of the documentation share: the pages, their sections, code blocks, tables and links."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_STEP = re.compile(
    _FENCE.pattern + r"|^<!-- press Ctrl-C: (?P<stopped>\w+) -->$",
    re.MULTILINE | re.DOTALL,
)
_CODE = re.compile(r"`([^`]+)`")


class Step(Struct, frozen=True):
    """One thing a walk-through has its reader do or see: `what` is `sh`, `text` (the output) or `ctrl-c`."""

    what: str
    terminal: str
    text: str


def section(page: Path, heading: str) -> str:
    """Return the text below a heading, up to the next one of its level or a higher one."""
    marks = heading.partition(" ")[0]
    _, found, rest = _without_comments(page.read_text()).partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(marks)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def _without_comments(text: str) -> str:
    """Return the page with `#` at the beginning of lines inside code made harmless to a search for headings."""
    return _FENCE.sub(lambda found: re.sub(r"^#", "\u200b#", found[0], flags=re.MULTILINE), text)


def steps(text: str) -> Iterator[Step]:
    """Yield what a walk-through asks for; a block's info string names a terminal, or none for the reader's own."""
    for found in _STEP.finditer(text):
        if found["stopped"]:
            yield Step("ctrl-c", found["stopped"], "")
        else:
            what, _, terminal = found["info"].partition(" ")
            yield Step(what, terminal, found["text"].replace("\u200b", ""))


def rows(text: str) -> list[list[str]]:
    """Return the cells of every table row of a text, without headings and rules."""
    lines = text.splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line, following in pairwise([*lines, ""])
        if line.startswith("|") and not line.startswith("| ---") and not following.startswith("| ---")
    ]


def code(text: str) -> list[str]:
    """Return what stands in backticks, fenced blocks left out."""
    return _CODE.findall(_FENCE.sub("", text))


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", text)
