"""Asking for replays: what is asked for is checked against what there is, counted, and recorded."""

from collections.abc import Callable

from outbox.domain.errors import ConflictError, InvalidError, NotFoundError
from outbox.domain.ids import parse_delivery
from outbox.domain.replays import ReplayFilter
from outbox.domain.webhooks import Webhook
from outbox.journal.reaching import Ways
from outbox.journal.replaying import Replay, RequestReplay
from outbox.journal.writer import Journal
from outbox.store.protocol import Reader


class Requests:
    """Records requests for replays; whoever carries them out is told of them, or finds them at the next start."""

    def __init__(self, journal: Journal, reader: Reader, now_ms: Callable[[], int]) -> None:
        """Record into `journal` what was checked with `reader`."""
        self._journal = journal
        self._reader = reader
        self._now_ms = now_ms

    async def one(self, delivery_id: str, *, acknowledged: bool) -> Replay:
        """Ask for one delivery. Raises NotFoundError and ConflictError."""
        wanted = await self.find(delivery_id, acknowledged=acknowledged)
        return await self._journal.submit(RequestReplay(wanted, None, 1, self._now_ms()))

    async def many(self, wanted: ReplayFilter, rate: float | None) -> Replay:
        """Ask for all that match, to become due at so many a second. Raises InvalidError and ConflictError."""
        matched = await self.count(wanted)
        return await self._journal.submit(RequestReplay(wanted, rate, matched, self._now_ms()))

    async def find(self, delivery_id: str, *, acknowledged: bool) -> ReplayFilter:
        """Return the filter that one delivery alone matches. Raises NotFoundError."""
        event_id, webhook = parse_delivery(delivery_id)
        seq = await self._reader.event_seq(event_id)
        if seq is None or not await self._reader.deliveries([(webhook, seq)]):
            msg = f"there is no delivery {delivery_id}"
            raise NotFoundError(msg)
        return ReplayFilter(webhook=webhook, event=seq, acknowledged=acknowledged)

    async def count(self, wanted: ReplayFilter) -> int | None:
        """Return how many match now, None if that takes too long. Raises InvalidError and ConflictError."""
        if wanted.webhook is not None:
            webhook = await self._live(wanted.webhook)
            if wanted.adds:
                _check_taken(wanted, webhook)
        return await Ways(self._reader).count(wanted, self._journal.webhooks)

    async def _live(self, number: int) -> Webhook:
        webhook = self._journal.webhooks.get(number)
        if webhook is not None:
            return webhook
        rows, _ = await self._reader.webhooks()
        if any(row.number == number for row in rows):
            msg = "the webhook was deleted: its deliveries stay as they are"
            raise ConflictError(msg)
        msg = f"there is no webhook wh_{number}"
        raise InvalidError(msg, "$.webhook")


def _check_taken(wanted: ReplayFilter, webhook: Webhook) -> None:
    """Refuse to add events that a webhook does not take. Raises InvalidError."""
    if not wanted.reaches(webhook):
        msg = f"the webhook gets events of the instance {webhook.instance!r} only"
        raise InvalidError(msg, "$.instance")
    if wanted.kind is not None and webhook.settings.events and wanted.kind not in webhook.settings.events:
        msg = f"the webhook does not take events of the kind {wanted.kind}"
        raise InvalidError(msg, "$.event")
