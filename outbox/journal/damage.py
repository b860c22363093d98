"""Damage that is met while the service runs: said in the log, counted, and kept before whoever asks how it is."""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import structlog

from outbox.domain.routing import Webhooks
from outbox.domain.webhooks import Webhook

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

    def warnings(self, webhooks: Webhooks) -> list[str]:
        """Return what was met last of each kind, and how often; damaged credentials until the webhook is set anew."""
        met = {part: text for part, text in self._last.items() if part != "credentials"}
        more = {part: f" (and {n - 1} more since the start)" for part, n in self._counts.items() if n > 1}
        lost = [tell_lost(webhook) for webhook in webhooks if webhook.damaged]
        return [text + more.get(part, "") for part, text in met.items()] + lost

    def met(self, part: Part, detail: str, **where: object) -> None:
        """Note damage; `detail` says what, and what a person does about it."""
        self._counts[part] += 1
        self._last[part] = detail
        _log.error("damage.found", part=part, detail=detail, **where)


def tell_lost(webhook: Webhook) -> str:
    """Return what is so of a webhook with damaged credentials, and what to do about it."""
    whose = f"instance {webhook.instance!r}" if webhook.scope == "instance" else "the global scope"
    name = f", named {webhook.name!r}" if webhook.name else ""
    return (
        f"the credentials of webhook {webhook.number} ({whose}{name}) are missing or not those that were set:"
        " its deliveries are held; set it anew with PUT, or restore a backup"
    )
