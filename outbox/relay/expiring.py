"""Deliveries that have become too old: they end as dead, soon after their time, whatever their lane is at."""

from collections import Counter
from collections.abc import Set as AbstractSet
from math import inf

import structlog

from outbox.domain.holding import Interval, cutoff_ms
from outbox.journal.claims import Claims
from outbox.journal.writer import Journal
from outbox.relay.flight import Tower
from outbox.relay.sweeping import expire

SWEEP_S = 60.0
COMMITTED_WITHIN_MS = 60_000
"""How long after its acceptance an event is in the tables, at the latest."""

LAST_EVENT = 2**63 - 1


class Expiry:
    """Ends the deliveries of one webhook that are too old, and counts them in `expired`.

    A sweep looks only at what has come due since the one before, unless the oldest that it left may be too old by now:
    a receiver that is down for days does not have its backlog gone through every minute.
    """

    def __init__(self, webhook: int, journal: Journal, claims: Claims, tower: Tower, expired: "Counter[int]") -> None:
        """Start without having looked at anything."""
        self._webhook = webhook
        self._journal = journal
        self._claims = claims
        self._clock = tower.clock
        self._age_ms = round(tower.policy.max_age_s * 1000)
        self._expired = expired
        self._untold = 0
        self._swept_at = -inf
        self._looked_ms = -1
        self._oldest_ms = 0
        self._log = structlog.get_logger("relay").bind(webhook=webhook)

    def cutoff_ms(self, held: tuple[Interval, ...], now_ms: int) -> int:
        """Return the moment before which a delivery has become too old."""
        return cutoff_ms(held, now_ms, self._age_ms)

    async def end(self, events: list[int], cutoff: int) -> None:
        """Settle as dead those of the deliveries whose age counts from `cutoff` or before."""
        expired = await expire(self._journal, self._clock, self._webhook, events, cutoff)
        self._expired[self._webhook] += expired
        self._untold += expired

    def tell(self) -> None:
        """Say how many have become too old since the last time: those of a queue do one after the other."""
        if self._untold:
            self._log.warning("deliveries.expired", count=self._untold)
            self._untold = 0

    async def sweep(self, held: tuple[Interval, ...], in_hand: AbstractSet[int], now: float) -> None:
        """End those that are due, too old and not in hand; once a minute at most, by the loop's clock `now`."""
        if now - self._swept_at < SWEEP_S:
            return
        self._swept_at = now
        now_ms = self._clock.now_ms()
        cutoff = self.cutoff_ms(held, now_ms)
        if cutoff >= self._oldest_ms or now_ms < self._looked_ms:
            # What is not in the tables yet is as old as this at most.
            self._looked_ms, self._oldest_ms = -1, now_ms - COMMITTED_WITHIN_MS
        async for aged in self._claims.older(self._webhook, cutoff, now_ms, (self._looked_ms, LAST_EVENT)):
            self._oldest_ms = min(self._oldest_ms, aged.oldest_ms)
            idle = [event for event in aged.events if event not in in_hand]
            if len(idle) < len(aged.events):
                self._oldest_ms = cutoff
            if idle:
                await self.end(idle, cutoff)
        self._looked_ms = now_ms
        self.tell()
