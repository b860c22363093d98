"""Who gets an event, and where a copy is posted to."""

from collections.abc import Iterable, Iterator
from copy import copy
from urllib.parse import quote, urlsplit

from outbox.domain import catalogue
from outbox.domain.catalogue import RouteStyle
from outbox.domain.webhooks import Address, Scope, Webhook, queue_of

_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_TARGETS_CACHED = 10_000


class Webhooks:
    """All live webhooks at one point of the log: an immutable snapshot, replaced when a setting changes."""

    def __init__(self, webhooks: Iterable[Webhook] = ()) -> None:
        """Index `webhooks` by number, address and instance."""
        self._by_number = {webhook.number: webhook for webhook in webhooks}
        self._by_address = {webhook.address: webhook for webhook in self._by_number.values()}
        self._globals: list[Webhook] = []
        self._by_instance: dict[str, list[Webhook]] = {}
        for webhook in self._by_number.values():
            home = self._globals if webhook.scope == "global" else self._by_instance.setdefault(webhook.instance, [])
            home.append(webhook)
        self._targets: dict[tuple[str, str], tuple[int, ...]] = {}
        self._ordered = {number for number, webhook in self._by_number.items() if webhook.settings.order != "none"}

    def __iter__(self) -> Iterator[Webhook]:
        """Iterate over the live webhooks, oldest first."""
        return iter(self._by_number.values())

    def get(self, number: int) -> Webhook | None:
        """Return the webhook with that number, or None if it is deleted or never was."""
        return self._by_number.get(number)

    def find(self, scope: Scope, instance: str = "", name: str = "") -> Webhook | None:
        """Return the webhook set under that scope, instance and name, or None."""
        return self._by_address.get(Address(scope, instance, name))

    def targets(self, kind: str, instance: str) -> tuple[int, ...]:
        """Return the numbers of the webhooks that an event of `kind` on `instance` goes to, globals first."""
        known = self._targets.get((kind, instance))
        if known is None:
            candidates = self._globals + self._by_instance.get(instance, [])
            known = tuple(webhook.number for webhook in candidates if webhook.takes(kind))
            if len(self._targets) < _TARGETS_CACHED:
                self._targets[kind, instance] = known
        return known

    @property
    def ordered(self) -> bool:
        """Whether any webhook asks for order."""
        return bool(self._ordered)

    def queues(self, targets: tuple[int, ...], instance: str, chat_key: int) -> list[tuple[Webhook, int]]:
        """Return those of the `targets` that ask for order, each with the key of the queue that the event stands in."""
        if not self._ordered:
            return []
        found = []
        for number in targets:
            webhook = self._by_number[number]
            queue = queue_of(webhook.settings.order, instance, chat_key)
            if queue is not None:
                found.append((webhook, queue))
        return found

    def replaced(self, webhook: Webhook) -> "Webhooks":
        """Return a snapshot in which `webhook` is new, or takes the place of its earlier self."""
        known = self._by_number.get(webhook.number)
        if known is None or known.settings is not webhook.settings:
            return Webhooks({**self._by_number, webhook.number: webhook}.values())
        # It was suspended, or its breaker has moved: nothing is routed otherwise, and a thousand may do so at once.
        snapshot = copy(self)
        vars(snapshot).update(
            _by_number={**self._by_number, webhook.number: webhook},
            _by_address={**self._by_address, webhook.address: webhook},
        )
        return snapshot

    def without(self, number: int) -> "Webhooks":
        """Return a snapshot in which the webhook with that number is gone."""
        return Webhooks(webhook for webhook in self._by_number.values() if webhook.number != number)


def url_for(webhook: Webhook, kind: str, style: RouteStyle) -> str:
    """Return where a copy of an event of `kind` is posted to, user and password left out.

    With by-events the route suffix (in the webhook's own style, else in `style`) follows the path; a trailing slash
    does not double, a query string stays behind, a fragment is never sent, and what is not ASCII is escaped.
    """
    url = webhook.settings.url.partition("#")[0]
    if not url.isascii():
        url = _escaped(url)
    if not webhook.settings.by_events:
        return url
    path, mark, query = url.partition("?")
    suffix = catalogue.named(kind).suffix_in(webhook.settings.route_style or style)
    return path.rstrip("/") + suffix + mark + query


def _escaped(url: str) -> str:
    """Return `url` with its path and query in ASCII, as HTTP has them; escapes that are there stay as they are."""
    start = url.index("://") + 3 + len(urlsplit(url).netloc)
    return url[:start] + quote(url[start:], safe=_ASCII)
