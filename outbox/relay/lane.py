"""A lane: the deliveries of one webhook, isolated from every other. It claims, limits, posts and records."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import unquote

import anyio
import structlog
from anyio.abc import TaskGroup
from msgspec import Struct

from outbox.domain.bodies import copy_for
from outbox.domain.catalogue import RouteStyle
from outbox.domain.deliveries import Effect
from outbox.domain.ids import body_digest, event_text
from outbox.domain.records import AttemptRecorded
from outbox.domain.retrying import (
    RETRY_AFTER_MAX_S,
    Answer,
    Decision,
    RetryPolicy,
    Verdict,
    cause,
    clamped_retry_after,
    classify,
    decide,
)
from outbox.domain.routing import url_for
from outbox.domain.webhooks import Webhook
from outbox.journal.claims import Claim, Claims
from outbox.journal.writer import Journal
from outbox.relay.budget import ByteBudget
from outbox.relay.clock import Clock
from outbox.relay.courier import Courier, Parcel
from outbox.relay.recorder import Recorder

PAGE = 128
LOAD_BYTES = 1024 * 1024
IDLE_S = 30.0

_MIB = 1024 * 1024
_log = structlog.get_logger("relay")


class Surroundings(Struct, frozen=True):
    """What all lanes share."""

    journal: Journal
    claims: Claims
    courier: Courier
    recorder: Recorder
    budget: ByteBudget
    clock: Clock
    random: Callable[[], float]
    policy: RetryPolicy
    timeout_ms: int
    route_style: RouteStyle
    user_agent: str


class Lane:
    """Works while its webhook is live and enabled and has deliveries; `wake` when something changed."""

    def __init__(self, number: int, around: Surroundings) -> None:
        """Prepare the lane of the webhook with that number."""
        self.number = number
        self._around = around
        self._taken: set[int] = set()
        self._let_go: set[int] = set()
        self._flying = 0
        self._changed = anyio.Event()
        self._landed = anyio.Event()
        self._stopping = False
        self._paused_until_ms = 0
        self._astray_since: float | None = None
        self._reach_ms = 0
        self._looked_until_ms = -1

    @property
    def woken(self) -> bool:
        """Whether something changed that the lane has not looked at."""
        return self._changed.is_set()

    def wake(self) -> None:
        """Look again: there is new work, or the settings have changed."""
        self._changed.set()

    def stop(self) -> None:
        """Claim nothing more; `run` ends once what is in flight has landed."""
        self._stopping = True
        self._changed.set()
        self._landed.set()

    async def run(self) -> None:
        """Deliver until there is nothing to do for a while, the webhook is off or gone, or `stop`."""
        async with anyio.create_task_group() as flights:
            while self._on():
                self._changed = anyio.Event()
                await self._around.recorder.wait_until_clear()
                claims = await self._claim()
                if claims:
                    await self._send(claims, flights)
                elif not await self._rest():
                    break

    def _on(self) -> bool:
        webhook = self._webhook()
        return webhook is not None and webhook.settings.enabled and not self._stopping

    def _webhook(self) -> Webhook | None:
        return self._around.journal.webhooks.get(self.number)

    async def _claim(self) -> list[Claim]:
        """Return due deliveries that are not in hand, the longest due first."""
        now_ms, self._looked_until_ms = self._around.clock.now_ms(), -1
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
        now_ms = self._around.clock.now_ms()
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
        longest_s = max(self._around.policy.max_s, RETRY_AFTER_MAX_S)
        if wait_s <= longest_s:
            self._astray_since = None
            return wait_s
        if self._astray_since is None:
            self._astray_since = anyio.current_time()
        left_s = self._astray_since + longest_s - anyio.current_time()
        if left_s <= 0:
            self._reach_ms = first_ms
        return max(left_s, 0.0)

    async def _send(self, claims: list[Claim], flights: TaskGroup) -> None:
        """Post the claims as places come free, loading their bodies a few at a time."""
        for few in _portions(claims):
            size = sum(claim.event.size for claim in few)
            await self._around.budget.take(size)
            unsent = size
            try:
                bodies = await self._around.claims.bodies([claim.seq for claim in few])
                for claim in few:
                    if not await self._place():
                        return
                    self._taken.add(claim.seq)
                    self._flying += 1
                    unsent -= claim.event.size
                    flights.start_soon(self._deliver, claim, bodies.pop(claim.seq, None))
            finally:
                if unsent:
                    self._around.budget.give_back(unsent)

    async def _place(self) -> bool:
        """Wait until one more POST may fly; say whether the lane still may send."""
        while (webhook := self._webhook()) is not None and self._on():
            if self._paused_until_ms > self._around.clock.now_ms():
                return False
            if self._flying < webhook.settings.concurrency and len(self._taken) < webhook.settings.concurrency + PAGE:
                return True
            self._landed = anyio.Event()
            await self._landed.wait()
        return False

    async def _deliver(self, claim: Claim, body: bytes | None) -> None:
        """Make one attempt and record it. Cancelled in mid-flight it records nothing, and is made again."""
        try:
            try:
                attempt = await self._attempt(claim, body)
            finally:
                self._around.budget.give_back(claim.event.size)
                self._flying -= 1
                self._landed.set()
            if attempt is not None:
                effect = await self._around.recorder.record(attempt)
                if effect is Effect.RETRY:
                    self._changed.set()
        finally:
            self._taken.discard(claim.seq)
            self._let_go.add(claim.seq)
            self._landed.set()

    async def _attempt(self, claim: Claim, body: bytes | None) -> AttemptRecorded | None:
        webhook = self._webhook()
        if webhook is None:
            return None
        clock = self._around.clock
        started_ms = clock.now_ms()
        number = claim.attempts + 1
        if body is None or body_digest(body) != claim.event.digest:
            answer = Answer(error="corrupt_body", detail="the stored body is not the one that was accepted")
            decision = Decision(Effect.BURY, claim.charged, started_ms, "the stored body is damaged")
        else:
            answer = await self._around.courier.post(self._parcel(webhook, claim, body, number))
            decision = decide(answer, claim.charged, clock.now_ms(), self._around.policy, self._around.random)
        self._obey(answer)
        self._note(claim, number, answer, decision)
        return AttemptRecorded(
            event=claim.seq,
            webhook=self.number,
            attempt=number,
            at_ms=started_ms,
            took_ms=max(clock.now_ms() - started_ms, 0),
            status=answer.status,
            error=answer.error,
            detail=answer.detail,
            excerpt=answer.excerpt,
            effect=decision.effect,
            charged=decision.charged,
            due_ms=decision.due_ms,
            reason=decision.reason,
        )

    def _parcel(self, webhook: Webhook, claim: Claim, body: bytes, number: int) -> Parcel:
        around, event = self._around, claim.event
        url = url_for(webhook, event.kind, around.route_style)
        copy = copy_for(body, url, None if event.dated else _rfc3339(event.at_ms))
        headers = {
            "content-type": "application/json",
            "user-agent": around.user_agent,
            "webhook-id": event_text(event.id),
            "webhook-timestamp": str(around.clock.now_ms() // 1000),
            "x-outbox-attempt": str(number),
            "x-outbox-hops": str(event.hops + 1),
            **webhook.credentials.headers,
        }
        if webhook.credentials.userinfo:
            headers["authorization"] = _basic(webhook.credentials.userinfo)
        timeout_s = (webhook.settings.timeout_ms or around.timeout_ms) / 1000 + len(copy) / _MIB
        return Parcel(url, headers, copy, timeout_s, trusted=webhook.source == "environment")

    def _obey(self, answer: Answer) -> None:
        """Hold the whole lane for as long as a throttling receiver asked."""
        asked_s = clamped_retry_after(answer)
        if asked_s is not None:
            until_ms = self._around.clock.now_ms() + round(asked_s * 1000)
            self._paused_until_ms = max(self._paused_until_ms, until_ms)

    def _note(self, claim: Claim, number: int, answer: Answer, decision: Decision) -> None:
        """Say in the log what came of an attempt."""
        if classify(answer, self._around.policy) is Verdict.SUCCESS:
            _log.debug("delivery.acknowledged", webhook=self.number, attempt=number, status=answer.status)
            return
        _log.warning(
            "delivery.dead" if decision.effect is Effect.BURY else "attempt.failed",
            event_id=event_text(claim.event.id),
            webhook=self.number,
            attempt=number,
            cause=cause(answer),
            detail=answer.detail,
            next_ms=decision.due_ms,
        )


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


def _rfc3339(ms: int) -> str:
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _basic(userinfo: str) -> str:
    return "Basic " + base64.b64encode(unquote(userinfo).encode()).decode()
