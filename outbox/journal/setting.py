"""Setting and deleting webhooks, and opening and closing their lanes' breakers."""

from collections.abc import Callable
from typing import ClassVar

from msgspec import structs

from outbox.domain.errors import NotFoundError
from outbox.domain.holding import held_after
from outbox.domain.records import BreakerMoved, WebhookSet, WebhookSuspended
from outbox.domain.webhooks import (
    NO_CONVERSION,
    QUEUEING,
    Address,
    Conversion,
    Credentials,
    Settings,
    Source,
    Webhook,
    check_changeable,
    check_settings,
)
from outbox.journal.commands import Asking
from outbox.journal.ledger import Ledger


class SetWebhook(Asking, frozen=True):
    """Set the webhook of a scope, an instance and a name: a new one, or the whole of the one that is there.

    `settings_for` gets the webhook that is there, or None, and returns what is to be in force.
    """

    address: Address
    source: Source
    now_ms: int
    settings_for: Callable[[Webhook | None], tuple[Settings, Credentials]]

    alone: ClassVar[bool] = True

    def decide(self, ledger: Ledger) -> tuple[Webhook, bool]:
        """See `Command.decide`; return the webhook and if it is new. Raises InvalidError, or as `settings_for` does."""
        known = ledger.webhooks.find(*self.address)
        settings, credentials = self.settings_for(known)
        check_settings(settings, credentials)
        record = WebhookSet(
            webhook=known.number if known else 0,
            at_ms=self.now_ms,
            scope=self.address.scope,
            instance=self.address.instance,
            name=self.address.name,
            settings=settings,
            source=self.source,
            secret=known.secret_id if known else b"",
            fingerprint=b"",
            held=held_after(known.held if known else (), self.now_ms, holding=not settings.enabled),
            opened_ms=known.opened_ms if known else 0,
            conversion=_conversion(known, settings, ledger.next_seq),
        )
        return ledger.set_webhook(record, credentials), known is None


def _conversion(known: Webhook | None, settings: Settings, seq: int) -> Conversion:
    """Return how far a change of order has come once the record with that seq is written."""
    if known is None:
        return NO_CONVERSION
    return known.conversion if known.settings.order == settings.order else Conversion(QUEUEING, 0, seq)


class SuspendDamaged(Asking, frozen=True):
    """Suspend those webhooks whose credentials are damaged and that are enabled; each rests until it is set again."""

    now_ms: int

    alone: ClassVar[bool] = True

    def decide(self, ledger: Ledger) -> None:
        """See `Command.decide`."""
        for webhook in list(ledger.webhooks):
            if webhook.damaged and webhook.state == "enabled":
                held = held_after(webhook.held, self.now_ms, holding=True)
                ledger.append(WebhookSuspended(webhook.number, self.now_ms, 0, held))
                ledger.replace_webhook(structs.replace(webhook, suspended_ms=self.now_ms, held=held))


class DeleteWebhook(Asking, frozen=True):
    """Delete a webhook: a tombstone at once; its deliveries are buried afterwards, chunk by chunk."""

    address: Address
    now_ms: int

    alone: ClassVar[bool] = True

    def decide(self, ledger: Ledger) -> Webhook:
        """See `Command.decide`; return what was deleted. Raises NotFoundError and ConflictError."""
        known = ledger.webhooks.find(*self.address)
        if known is None:
            raise NotFoundError(self.address.missing)
        check_changeable(known)
        ledger.delete_webhook(known.number, known.secret_id, self.now_ms)
        return known


class MoveBreaker(Asking, frozen=True):
    """Record that the breaker of a webhook's lane has opened or closed, and what made it."""

    webhook: int
    opened: bool
    reason: str
    now_ms: int

    def decide(self, ledger: Ledger) -> bool:
        """See `Command.decide`; say whether that was news: not if it stands so already, or the webhook is gone."""
        known = ledger.webhooks.get(self.webhook)
        if known is None or (known.opened_ms > 0) == self.opened:
            return False
        ledger.append(BreakerMoved(self.webhook, self.now_ms, self.opened, self.reason))
        ledger.replace_webhook(structs.replace(known, opened_ms=self.now_ms if self.opened else 0))
        return True
