"""Deliveries whose due time has gone astray: the wall clock was set back since it was stored."""

from collections.abc import Collection
from math import inf

from outbox.journal.claims import Claim, Claims

LOOK_S = 60.0


class Astray:
    """Those of one webhook. They are due further away than any delay goes.

    How long they were to wait is not known any more. They count as due, as what waits does when the clock is set ahead.
    That there are some is found out within a minute, by the loop's clock `now`.
    """

    def __init__(self, claims: Claims, webhook: int, longest_s: float) -> None:
        """Start without having looked."""
        self._claims = claims
        self._webhook = webhook
        self._longest_ms = round(longest_s * 1000)
        self._looked_at = -inf
        self._found = False

    async def look(self, now: float, now_ms: int) -> None:
        """Find out whether there are any; once a minute at most."""
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._found = await self._claims.next_due(self._webhook, now_ms + self._longest_ms) is not None

    async def claim(self, now_ms: int, limit: int, but: Collection[int]) -> list[Claim]:
        """Return up to `limit` of them, but not those of the events `but`, which are in hand."""
        if not self._found:
            return []
        claims = await self._claims.due_after(self._webhook, now_ms + self._longest_ms, limit, but)
        self._found = bool(claims)
        return claims

    def wait_s(self, first_ms: int, now: float, now_ms: int) -> float:
        """Return the seconds until the first delivery is due, which is at `first_ms`, or `look` is to find it."""
        wait_ms = max(first_ms - now_ms, 0)
        # Those that are this far away may be in hand.
        return wait_ms / 1000 if wait_ms <= self._longest_ms else max(self._looked_at + LOOK_S - now, 0.0)
