"""Damage that is met while the service runs: said in the log, counted, and kept before whoever asks how it is."""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import structlog

Part = Literal["body", "record", "credentials", "tail", "file"]
PARTS: tuple[Part, ...] = ("body", "record", "credentials", "tail", "file")

_log = structlog.get_logger("damage")


class Damage:
    """What was found not to be what was written, since the start. `counts` is how often, by what it is."""

    def __init__(self) -> None:
        """Know of none."""
        self._counts: Counter[Part] = Counter()
        self._last: dict[Part, str] = {}

    @property
    def counts(self) -> Mapping[Part, int]:
        """How often damage was met, by what is damaged."""
        return {part: self._counts[part] for part in PARTS}

    @property
    def warnings(self) -> list[str]:
        """What was met last of each kind, and how much more."""
        return [
            text if self._counts[part] == 1 else f"{text} (and {self._counts[part] - 1} more since the start)"
            for part, text in self._last.items()
        ]

    def met(self, part: Part, detail: str, **where: object) -> None:
        """Note damage; `detail` says what, and what a person does about it."""
        self._counts[part] += 1
        self._last[part] = detail
        _log.error("damage.found", part=part, detail=detail, **where)
