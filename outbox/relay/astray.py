"""Deliveries whose due time has gone astray: the wall clock was set back since it was stored."""

from collections.abc import Collection
from math import inf

from outbox.journal.claims import Claim, Claims

LOOK_S = 60.0


class Astray:
    """Those of one webhook. They are due further away than any delay goes, which nothing else can be.

    How long they had to wait is not known any more. After the longest delay, by the loop's clock `now`, they count as
    due, whatever the wall clock says. That there are some is found out within a minute.
    """

    def __init__(self, claims: Claims, webhook: int, longest_s: float) -> None:
        """Start without having looked."""
        self._claims = claims
        self._webhook = webhook
        self._longest_s = longest_s
        self._since: float | None = None
        self._looked_at = self._missed_at = -inf

    async def look(self, now: float, now_ms: int) -> None:
        """Find out whether there are any; once a minute at most."""
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            if await self._claims.next_due(self._webhook, self._horizon_ms(now_ms)) is None:
                self._since = None
            elif self._since is None:
                self._since = now

    async def claim(self, now: float, now_ms: int, limit: int, but: Collection[int]) -> list[Claim]:
        """Return up to `limit` that count as due, but not of the events `but`, which are in hand."""
        if self._since is None or now < self._since + self._longest_s:
            return []
        claims = await self._claims.due_after(self._webhook, self._horizon_ms(now_ms), limit, but)
        if not claims:
            self._missed_at = now
        return claims

    def wait_s(self, first_ms: int, now: float, now_ms: int) -> float:
        """Return the seconds until a delivery is due or counts as due; the first by the clock is due at `first_ms`."""
        if first_ms > self._horizon_ms(now_ms) and self._since is None:
            self._since = now
        wait_s = max(first_ms - now_ms, 0) / 1000
        if self._since is None:
            return wait_s
        # Those that are left may all be in hand.
        again = max(self._since + self._longest_s, self._missed_at + LOOK_S)
        return min(wait_s, max(again - now, 0.0))

    def _horizon_ms(self, now_ms: int) -> int:
        return now_ms + round(self._longest_s * 1000)
