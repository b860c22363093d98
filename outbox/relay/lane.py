"""A lane: the deliveries of one webhook, isolated from every other. It claims, limits, hands out and lets go."""

import asyncio
from collections import Counter, deque
from functools import partial

import anyio
import structlog
from anyio.abc import TaskGroup
from msgspec import Struct

from outbox.domain.deliveries import Effect
from outbox.domain.retrying import GONE, RETRY_AFTER_MAX_S, Answer
from outbox.domain.webhooks import Webhook
from outbox.journal.claims import Claim, Claims
from outbox.journal.damage import Damage
from outbox.journal.recording import Outcome
from outbox.journal.setting import MoveBreaker
from outbox.journal.writer import Journal
from outbox.relay.astray import Astray
from outbox.relay.budget import ByteBudget, portions
from outbox.relay.expiring import SWEEP_S, Expiry
from outbox.relay.flight import Flight, Tower, is_damage, note, tell
from outbox.relay.gate import Gate
from outbox.relay.recorder import Recorder
from outbox.relay.sweeping import insist

PAGE = 512
LOAD_BYTES = 1024 * 1024
IDLE_S = 30.0


class Surroundings(Struct, frozen=True):
    """What all lanes share; `expired` counts by webhook's number the deliveries that became too old."""

    journal: Journal
    claims: Claims
    recorder: Recorder
    budget: ByteBudget
    tower: Tower
    damage: Damage
    expired: Counter[int]


class Lane:
    """Works while its webhook is live and not held and has deliveries; `wake` it when something changed.

    A delivery is in hand (`_taken`) from its claim until its outcome is on disk. In between it waits with its body
    (`_ready`) for one of the crew, which are at most as many tasks as the gate lets POST at a time. While the breaker
    is open nobody of the crew works: the lane itself makes a probe at a time.
    """

    def __init__(self, webhook: Webhook, around: Surroundings) -> None:
        """Prepare the lane of a webhook."""
        self.number = webhook.number
        self._around = around
        self._gate = Gate(webhook, around.tower.policy, around.tower.random)
        longest_s = max(around.tower.policy.max_s, RETRY_AFTER_MAX_S)
        self._astray = Astray(around.claims, self.number, longest_s)
        self._expiry = Expiry(self.number, around.journal, around.claims, around.tower, around.expired)
        self._log = structlog.get_logger("relay").bind(webhook=webhook.number)
        self._now = asyncio.get_running_loop().time  # anyio's own way to it costs more than all of the gate
        self._turned = webhook
        self._gone: Webhook | None = None
        self._webhook: Webhook | None = None
        self._suspended_ms = 0
        self._probing: int | None = None
        self._taken: set[int] = set()
        self._ready: deque[tuple[Claim, bytes | None]] = deque()
        self._crew = self._low_water = self._high_water = 0
        self._changed = anyio.Event()
        self._moved = anyio.Event()
        self._roused = anyio.Event()
        self._stopping = False
        self._looked_until_ms = -1
        self._stale = False
        self._look()

    @property
    def woken(self) -> bool:
        """Whether something changed that the lane has not looked at."""
        return self._changed.is_set()

    @property
    def is_nudged(self) -> bool:
        """Whether the lane was told to try at once, and has not done so."""
        return self._gate.is_nudged

    def wake(self, *, nudged: bool = False) -> None:
        """Look again: there is new work, or the settings have changed. `nudged` means: try at once."""
        if nudged:
            self._gate.nudge()
        self._look()
        if not self._limit():
            # Held here, the bytes of what may not be posted now would be kept from whoever waits for them.
            self._put_back()
        self._changed.set()
        self._moved.set()
        self._roused.set()

    def stop(self) -> None:
        """Claim nothing more; `run` ends once what is in flight has landed and is recorded."""
        self._stopping = True
        self.wake()

    async def run(self) -> None:
        """Deliver until there is nothing to do for a while, the webhook is held or gone, or `stop`."""
        async with anyio.create_task_group() as tasks:
            try:
                await self._deliver(tasks)
            finally:
                self._put_back()
        await self._keep_breaker()
        # Whoever takes this webhook up again must find every outcome in the store.
        while self._taken:
            await self._motion()

    async def _deliver(self, tasks: TaskGroup) -> None:
        while self._webhook is not None:
            self._changed = anyio.Event()
            await self._around.recorder.wait_until_clear()
            await self._keep_breaker()
            await self._astray.look(self._now(), self._around.tower.clock.now_ms())
            claims = await self._claim()
            if claims and self._gate.is_open:
                await self._probe(claims[0])
            elif await self._load(claims, tasks) and len(claims) < PAGE and not await self._rest():
                break

    def _look(self) -> None:
        """Take up the webhook as it stands, if this lane has to deliver to it; every change of it wakes the lane."""
        webhook = self._around.journal.webhooks.get(self.number)
        if webhook is not None and webhook is not self._turned:
            self._turned = webhook
            self._gate.turn(webhook)
        if webhook is not None and webhook.conversion.phase:
            # Whose turn it is has changed: what was claimed before, and waits for memory, may have to wait for others.
            self._stale = True
        # Between a 410 and its record nothing is sent any more.
        gone = self._gone is not None and webhook is not None and webhook.revision == self._gone.revision
        if webhook is None or webhook.holds or webhook.conversion.phase or self._stopping or gone:
            webhook = None
        self._webhook = webhook

    def _limit(self) -> int:
        """Return how many POSTs of the crew may be in flight now."""
        # What would come of a POST while outcomes are refused could not be stored either.
        may = self._webhook is not None and self._around.recorder.is_clear
        return self._gate.limit(self._now()) if may else 0

    def _full(self, limit: int) -> bool:
        """Say whether the crew has enough before it, or too many outcomes are not on disk yet."""
        self._low_water, self._high_water = max(limit, PAGE // 2), limit + 2 * PAGE
        return len(self._ready) > self._low_water or len(self._taken) > self._high_water

    async def _motion(self) -> None:
        """Wait until a delivery leaves the lane's hands, or the crew has little left to do."""
        self._moved = anyio.Event()
        await self._moved.wait()

    async def _keep_breaker(self) -> None:
        """Bring the log up to date with the breaker."""
        webhook = self._around.journal.webhooks.get(self.number)
        is_open = self._gate.is_open
        if webhook is None or (webhook.opened_ms > 0) == is_open:
            return
        now_ms = self._around.tower.clock.now_ms()
        if await insist(self._around.journal, MoveBreaker(self.number, is_open, self._gate.reason, now_ms)):
            self._log.warning("breaker.opened" if is_open else "breaker.closed", cause=self._gate.reason or None)

    async def _claim(self) -> list[Claim]:
        """Return due deliveries that are not in hand, the longest due first; those that are too old expire."""
        self._stale = False
        while self._gate.pause_s(self._now()) <= 0:
            self._looked_until_ms = now_ms = self._around.tower.clock.now_ms()
            count = 1 if self._gate.is_open else PAGE
            # What is let go while the answer is under way would stand in it as it was before its outcome.
            claims = await self._around.claims.due(self.number, now_ms, count, self._taken)
            if len(claims) < count:
                claims += await self._astray.claim(now_ms, count - len(claims), self._taken)
            if not claims and self._gate.is_nudged:
                claims = await self._around.claims.due_after(self.number, now_ms, count, self._taken)
            cutoff = self._expiry.cutoff_ms(self._turned.held, now_ms)
            expired = [claim.seq for claim in claims if claim.since_ms <= cutoff]
            if not expired:
                self._expiry.tell()
                if self._gate.pause_s(self._now()) > 0:  # meanwhile the breaker opened, or a Retry-After came
                    break
                return claims
            await self._expiry.end(expired, cutoff)
        self._looked_until_ms = -1
        return []

    async def _rest(self) -> bool:
        """Wait for a change or a due time; say whether there is reason to go on."""
        now_ms = self._around.tower.clock.now_ms()
        pause_s = self._gate.pause_s(self._now())
        # What is due up to where `_claim` looked is in hand, or it would have been claimed.
        first = await self._around.claims.next_due(self.number, self._looked_until_ms)
        wait_s = IDLE_S
        if pause_s > 0 and first is not None:
            await self._expiry.sweep(self._turned.held, self._taken, self._now())
            wait_s = min(pause_s, SWEEP_S)
        elif first is not None:
            wait_s = self._astray.wait_s(first, self._now(), now_ms)
        with anyio.move_on_after(wait_s):
            await self._changed.wait()
        return first is not None or bool(self._taken) or self._changed.is_set()

    async def _probe(self, claim: Claim) -> None:
        """Make one attempt to see if the receiver is back, and wait until it is recorded."""
        bodies = await self._bodies([claim])
        if bodies is None:
            return
        self._taken.add(claim.seq)
        self._probing = claim.seq
        self._gate.probe(claim.seq)
        await self._fly(claim, bodies.get(claim.seq), probing=True)
        while claim.seq in self._taken:
            await self._motion()

    async def _load(self, claims: list[Claim], tasks: TaskGroup) -> bool:
        """Hand the claims to the crew, loading their bodies a few at a time as the crew comes to need them.

        Return whether it has taken all of them; what it has not is to be claimed anew.
        """
        for few in portions(claims, lambda claim: claim.event.size, LOAD_BYTES):
            bodies = await self._bodies(few)
            if bodies is None:
                return False
            self._taken.update(claim.seq for claim in few)
            self._ready.extend((claim, bodies.pop(claim.seq, None)) for claim in few)
            limit = self._man(tasks)
            while limit and self._full(limit):
                await self._motion()
                limit = self._man(tasks)
            if not limit:
                self._put_back()
                return False
        return True

    async def _bodies(self, claims: list[Claim]) -> dict[int, bytes] | None:
        """Take the claims' bytes from the budget and load their bodies; None if the claims have become stale."""
        size = sum(claim.event.size for claim in claims)
        await self._around.budget.take(size)
        bodies = None
        try:
            if not self._stale:
                bodies = await self._around.claims.bodies([claim.seq for claim in claims])
        finally:
            if bodies is None or self._stale:
                self._around.budget.give_back(size)
        return None if self._stale else bodies

    def _man(self, tasks: TaskGroup) -> int:
        """Call up as many tasks as there is work for, within the limit; return the limit."""
        limit = self._limit()
        for _ in range(min(limit - self._crew, len(self._ready))):
            self._crew += 1
            tasks.start_soon(self._work, tasks)
        return limit

    async def _work(self, tasks: TaskGroup) -> None:
        """Make attempts while there are some to make; the next one never waits for the last one's record."""
        try:
            while self._ready and self._crew <= (limit := self._limit()):
                wait_s = self._gate.wait_s(self._now())
                if wait_s > 0:
                    await self._hold_on(wait_s)
                    continue
                claim, body = self._ready.popleft()
                if len(self._ready) == self._low_water:
                    self._moved.set()
                if self._crew < limit:
                    self._man(tasks)
                await self._fly(claim, body)
                body = None
        finally:
            self._crew -= 1
            if self._ready and not self._limit():
                # Nobody calls up a crew for these: they are claimed again once they may be posted.
                self._put_back()
                self._changed.set()
            self._moved.set()

    async def _hold_on(self, wait_s: float) -> None:
        """Wait that long, or until something changes."""
        self._roused = self._roused if not self._roused.is_set() else anyio.Event()
        with anyio.move_on_after(wait_s):
            await self._roused.wait()

    async def _fly(self, claim: Claim, body: bytes | None, *, probing: bool = False) -> None:
        """Make an attempt and have it recorded, or, if that is not wanted any more, let go of its delivery."""
        webhook = self._webhook
        recording = False
        try:
            if webhook is not None:
                flight = await self._attempt(webhook, claim, body)
                retry_s = self._gate.retry_s(self._now()) if probing and self._gate.is_open else None
                record = self._around.tower.conclude(webhook, claim, flight, retry_s)
                note(self._log, claim, record, flight.answer)
                if is_damage(flight.answer):
                    tell(self._around.damage, claim, flight.answer)
                recording = True
                outcome = Outcome(record, webhook.revision, claim.charged, claim.since_ms)
                urgent = webhook.settings.order != "none"  # the next of the queue waits for it
                self._around.recorder.record(outcome, partial(self._recorded, claim.seq), urgent=urgent)
        finally:
            self._around.budget.give_back(claim.event.size)
            if not recording:
                self._release(claim.seq)

    async def _attempt(self, webhook: Webhook, claim: Claim, body: bytes | None) -> Flight:
        """Make the POST, and let the gate learn from what came of it."""
        gate, began = self._gate, self._now()
        gate.began(began)
        told = False
        try:
            flight = await self._around.tower.fly(webhook, claim, body)
            told = not is_damage(flight.answer)
        finally:
            if not told:
                gate.abandoned(claim.seq, self._now())
        if told:
            gate.ended(claim.seq, began, self._now(), flight.answer)
            if not flight.answer.acknowledges:
                self._trouble(webhook, flight.answer)
        return flight

    def _trouble(self, webhook: Webhook, answer: Answer) -> None:
        """Follow what the gate has learned from a failure: fewer POSTs at a time, perhaps none for now."""
        if answer.status == GONE:
            self._gone = webhook
            self._look()
        limit = self._limit()
        if not limit:
            self._put_back()
        if limit < self._crew:
            self._moved.set()

    def _recorded(self, seq: int, effect: Effect) -> None:
        self._release(seq)
        if effect is Effect.RETRY or effect is Effect.SUSPEND:  # a 410 from before a new setting suspends nothing
            self._changed.set()
        if self._gone is not None:
            self._say_suspended()

    def _say_suspended(self) -> None:
        """Say that the webhook is suspended, once for each time: it may have been set anew since the 410."""
        webhook = self._around.journal.webhooks.get(self.number)
        if webhook is not None and webhook.suspended_ms not in {0, self._suspended_ms}:
            self._suspended_ms = webhook.suspended_ms
            self._log.error("webhook.suspended", instance=webhook.instance or None, cause=f"status {GONE}")

    def _release(self, seq: int) -> None:
        self._taken.discard(seq)
        if not self._taken or len(self._taken) == self._high_water or seq == self._probing or self._gate.is_open:
            self._moved.set()

    def _put_back(self) -> None:
        """Let go of what the crew has not begun."""
        while self._ready:
            claim, _ = self._ready.popleft()
            self._around.budget.give_back(claim.event.size)
            self._release(claim.seq)
