"""A lane: the deliveries of one webhook, isolated from every other. It claims, limits, hands out and lets go."""

from collections import deque

import anyio
import structlog
from anyio.abc import TaskGroup
from msgspec import Struct

from outbox.domain.deliveries import Effect
from outbox.domain.retrying import RETRY_AFTER_MAX_S, Answer, clamped_retry_after
from outbox.domain.webhooks import Webhook
from outbox.journal.claims import Claim, Claims
from outbox.journal.recording import Outcome
from outbox.journal.writer import Journal
from outbox.relay.budget import ByteBudget
from outbox.relay.flight import Tower, note
from outbox.relay.recorder import Recorder

PAGE = 256
LOAD_BYTES = 1024 * 1024
IDLE_S = 30.0


class Surroundings(Struct, frozen=True):
    """What all lanes share."""

    journal: Journal
    claims: Claims
    recorder: Recorder
    budget: ByteBudget
    tower: Tower


class Lane:
    """Works while its webhook is live and enabled and has deliveries; `wake` it when something changed.

    A delivery is in hand (`_taken`) from its claim until its outcome is on disk. In between it waits with its body
    (`_ready`) for one of the crew, which are at most as many tasks as the webhook takes POSTs at a time.
    """

    def __init__(self, number: int, around: Surroundings) -> None:
        """Prepare the lane of the webhook with that number."""
        self.number = number
        self._around = around
        self._log = structlog.get_logger("relay").bind(webhook=number)
        self._taken: set[int] = set()
        self._let_go: set[int] = set()
        self._ready: deque[tuple[Claim, bytes | None]] = deque()
        self._crew = 0
        self._low_water = self._high_water = 0
        self._changed = anyio.Event()
        self._moved = anyio.Event()
        self._stopping = False
        self._paused_until_ms = 0
        self._astray_since: float | None = None
        self._reach_ms = 0
        self._looked_until_ms = -1

    @property
    def woken(self) -> bool:
        """Whether something changed that the lane has not looked at."""
        return self._changed.is_set()

    def wake(self, *, nudged: bool = False) -> None:  # noqa: ARG002
        """Look again: there is new work, or the settings have changed."""
        self._changed.set()
        self._moved.set()

    def stop(self) -> None:
        """Claim nothing more; `run` ends once what is in flight has landed and is recorded."""
        self._stopping = True
        self.wake()

    async def run(self) -> None:
        """Deliver until there is nothing to do for a while, the webhook is off or gone, or `stop`."""
        async with anyio.create_task_group() as tasks:
            while self._webhook() is not None:
                self._changed = anyio.Event()
                await self._around.recorder.wait_until_clear()
                claims = await self._claim()
                if claims:
                    await self._load(claims, tasks)
                elif not await self._rest():
                    break
            self._put_back()
        # Whoever takes this webhook up again must find every outcome in the store.
        while self._taken:
            await self._motion()

    def _webhook(self) -> Webhook | None:
        """Return the webhook as it stands if this lane has to deliver to it."""
        webhook = self._around.journal.webhooks.get(self.number)
        if webhook is None or webhook.holds or webhook.conversion.phase or self._stopping:
            return None
        return webhook

    def _limit(self) -> int:
        """Return how many POSTs may be in flight now."""
        webhook = self._webhook()
        if webhook is None or self._around.tower.clock.now_ms() < self._paused_until_ms:
            return 0
        return webhook.settings.concurrency

    def _full(self, limit: int) -> bool:
        """Say whether the crew has enough before it, or too many outcomes are not on disk yet."""
        self._low_water, self._high_water = max(limit, PAGE // 2), limit + 2 * PAGE
        return len(self._ready) > self._low_water or len(self._taken) > self._high_water

    async def _motion(self) -> None:
        """Wait until a delivery leaves the lane's hands, or the crew has little left to do."""
        self._moved = anyio.Event()
        await self._moved.wait()

    async def _claim(self) -> list[Claim]:
        """Return due deliveries that are not in hand, the longest due first."""
        now_ms, self._looked_until_ms = self._around.tower.clock.now_ms(), -1
        if now_ms < self._paused_until_ms:
            return []
        self._looked_until_ms, self._reach_ms = max(now_ms, self._reach_ms), 0
        self._let_go.clear()
        found = await self._around.claims.due(self.number, self._looked_until_ms, PAGE + len(self._taken))
        # What was let go while the answer was under way may stand in it as it was before its outcome.
        stale = self._taken | self._let_go
        return [claim for claim in found if claim.seq not in stale][:PAGE]

    async def _rest(self) -> bool:
        """Wait for a change or a due time; say whether there is reason to go on."""
        now_ms = self._around.tower.clock.now_ms()
        # What is due up to where `_claim` looked is in hand, or it would have been claimed.
        first = await self._around.claims.next_due(self.number, self._looked_until_ms)
        wait_s = IDLE_S
        if self._paused_until_ms > now_ms:
            wait_s = (self._paused_until_ms - now_ms) / 1000
        elif first is not None:
            wait_s = self._until_s(first, now_ms)
        with anyio.move_on_after(wait_s):
            await self._changed.wait()
        return first is not None or bool(self._taken) or self._changed.is_set()

    def _until_s(self, first_ms: int, now_ms: int) -> float:
        """Return the seconds until the first delivery is due, the longest delay of the schedule at most.

        Further away than that it can only be because the wall clock was set back since the due time was stored; after
        the longest delay it counts as due, whatever the clock says.
        """
        wait_s = max(first_ms - now_ms, 0) / 1000
        longest_s = max(self._around.tower.policy.max_s, RETRY_AFTER_MAX_S)
        if wait_s <= longest_s:
            self._astray_since = None
            return wait_s
        if self._astray_since is None:
            self._astray_since = anyio.current_time()
        left_s = self._astray_since + longest_s - anyio.current_time()
        if left_s <= 0:
            self._reach_ms = first_ms
        return max(left_s, 0.0)

    async def _load(self, claims: list[Claim], tasks: TaskGroup) -> None:
        """Hand the claims to the crew, loading their bodies a few at a time as the crew comes to need them."""
        for few in _portions(claims):
            size = sum(claim.event.size for claim in few)
            await self._around.budget.take(size)
            try:
                bodies = await self._around.claims.bodies([claim.seq for claim in few])
            except BaseException:
                self._around.budget.give_back(size)
                raise
            self._taken.update(claim.seq for claim in few)
            self._ready.extend((claim, bodies.pop(claim.seq, None)) for claim in few)
            limit = self._man(tasks)
            while limit and self._full(limit):
                await self._motion()
                limit = self._man(tasks)
            if not limit:
                self._put_back()
                return

    def _man(self, tasks: TaskGroup) -> int:
        """Call up as many tasks as there is work for, within the limit; return the limit."""
        limit = self._limit()
        for _ in range(min(limit - self._crew, len(self._ready))):
            self._crew += 1
            tasks.start_soon(self._work)
        return limit

    async def _work(self) -> None:
        """Make attempts while there are some to make; the next one never waits for the last one's record."""
        try:
            while self._ready and self._crew <= self._limit():
                claim, body = self._ready.popleft()
                if len(self._ready) == self._low_water:
                    self._moved.set()
                await self._fly(claim, body)
                body = None
        finally:
            self._crew -= 1
            self._moved.set()

    async def _fly(self, claim: Claim, body: bytes | None) -> None:
        webhook = self._webhook()
        recording = False
        try:
            if webhook is not None:
                record, answer = await self._around.tower.attempt(webhook, claim, body)
                self._obey(answer)
                note(self._log, claim, record, answer)
                recording = True
                self._around.recorder.record(
                    Outcome(record, webhook.revision), lambda effect: self._recorded(claim.seq, effect)
                )
        finally:
            self._around.budget.give_back(claim.event.size)
            if not recording:
                self._release(claim.seq)

    def _recorded(self, seq: int, effect: Effect) -> None:
        self._release(seq)
        if effect is Effect.RETRY:
            self._changed.set()

    def _release(self, seq: int) -> None:
        self._taken.discard(seq)
        self._let_go.add(seq)
        if not self._taken or len(self._taken) == self._high_water:
            self._moved.set()

    def _put_back(self) -> None:
        """Let go of what the crew has not begun."""
        while self._ready:
            claim, _ = self._ready.popleft()
            self._around.budget.give_back(claim.event.size)
            self._release(claim.seq)

    def _obey(self, answer: Answer) -> None:
        """Hold the whole lane for as long as a throttling receiver asked."""
        asked_s = clamped_retry_after(answer)
        if asked_s is not None:
            until_ms = self._around.tower.clock.now_ms() + round(asked_s * 1000)
            self._paused_until_ms = max(self._paused_until_ms, until_ms)
            self._moved.set()


def _portions(claims: list[Claim]) -> list[list[Claim]]:
    """Split claims into runs whose bodies together stay within LOAD_BYTES, or are one."""
    portions: list[list[Claim]] = []
    size = LOAD_BYTES
    for claim in claims:
        if size + claim.event.size > LOAD_BYTES:
            portions.append([])
            size = 0
        portions[-1].append(claim)
        size += claim.event.size
    return portions
