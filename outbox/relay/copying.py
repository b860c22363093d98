"""Copies for debugging: what deliveries hold, posted to another URL, with nothing of ours in it and nothing recorded.

The URL may hold a token, so it is not in the log; how far copies have come is known until the next start.
"""

import secrets
from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskGroup
from msgspec import Struct, structs

from outbox.domain.bodies import copy_for
from outbox.domain.errors import BusyError, ConflictError, NotFoundError
from outbox.domain.ids import body_digest
from outbox.domain.media import without_media
from outbox.domain.records import EventAccepted
from outbox.domain.replays import Place, ReplayFilter
from outbox.domain.retrying import Answer, cause
from outbox.domain.routing import Webhooks
from outbox.domain.webhooks import Webhook
from outbox.journal.reaching import Found, Ways
from outbox.relay.budget import ByteBudget
from outbox.relay.courier import Parcel
from outbox.relay.flight import DAMAGED, DAMAGED_RECORD, Tower, clean, rfc3339
from outbox.relay.signing import basic

AT_ONCE = 4
"""The runs of copies that may be under way, and the POSTs that each may have in flight."""
IN_VAIN_MAX = 20
"""The copies in a row that may get no answer before a run is given up: nobody is there."""
KEPT = 100
BUDGET_BYTES = 32 * 1024 * 1024

_FOUND_AT_ONCE = 100
_MIB = 1024 * 1024
_SUCCESS = range(200, 300)

_log = structlog.get_logger("replay")


class Target(Struct, frozen=True):
    """Where copies go: a URL without its user and password, and these, percent-encoded."""

    url: str
    userinfo: str


class Copies(Struct):
    """A run of copies and how far it has come: `in_vain` in a row got no answer, `error` says what went wrong last."""

    id: str
    at_ms: int
    target: Target
    wanted: ReplayFilter
    rate: float | None
    matched: int | None
    copied: int = 0
    failed: int = 0
    in_vain: int = 0
    error: str = ""
    finished_ms: int = 0
    cancelled: bool = False

    @property
    def given_up(self) -> bool:
        """Whether no further copy is to be made: it was cancelled, or nobody is there."""
        return self.cancelled or self.in_vain >= IN_VAIN_MAX

    def note(self, answer: Answer) -> None:
        """Count what came of a copy."""
        if answer.status in _SUCCESS:
            self.copied += 1
            self.in_vain = 0
        else:
            self.failed += 1
            self.in_vain = self.in_vain + 1 if answer.status is None else 0
            self.error = cause(answer)


class Copier:
    """Makes copies of what is found on the `ways` of replays."""

    def __init__(self, tower: Tower, ways: Ways, webhooks: Callable[[], Webhooks]) -> None:
        """Post by the `tower`'s rules, with the `webhooks` as they stand."""
        self._tower = tower
        self._ways = ways
        self._webhooks = webhooks
        self._runs: dict[str, Copies] = {}
        self._budget = ByteBudget(BUDGET_BYTES)
        self._tasks: TaskGroup | None = None
        self._stopping = anyio.Event()

    async def run(self) -> None:
        """Make copies in the background until `stop`; those under way then are cut off."""
        async with anyio.create_task_group() as self._tasks:
            await self._stopping.wait()
            self._tasks.cancel_scope.cancel()
        self._tasks = None

    def stop(self) -> None:
        """Make no more copies."""
        self._stopping.set()

    def find(self, name: str) -> Copies:
        """Return a run by its id. Raises NotFoundError."""
        found = self._runs.get(name)
        if found is None:
            msg = f"there is no replay {name}: copies are forgotten when the service ends"
            raise NotFoundError(msg)
        return found

    def cancel(self, name: str) -> None:
        """End a run; copies that are under way still land. Raises NotFoundError."""
        self.find(name).cancelled = True

    async def copy_one(self, wanted: ReplayFilter, target: Target) -> Answer:
        """Post a copy of one delivery, and return what came of it. Raises ConflictError where its webhook is gone."""
        wanted = structs.replace(wanted, acknowledged=True)
        step = await self._ways.step(wanted, Place(), self._webhooks(), limit=1)
        webhook = self._webhooks().get(step.place.webhook)
        if not step.found or webhook is None:
            msg = "the webhook was deleted: its deliveries stay as they are"
            raise ConflictError(msg)
        return await self._post(webhook, step.found[0], target)

    async def begin(self, wanted: ReplayFilter, target: Target, rate: float | None, matched: int | None) -> Copies:
        """Copy in the background what matches and is there by now. Raises BusyError."""
        before = await self._ways.end()
        running = [copies for copies in self._runs.values() if not copies.finished_ms]
        if self._tasks is None or len(running) >= AT_ONCE:
            msg = f"{AT_ONCE} runs of copies are under way already: wait for one to end"
            raise BusyError(msg, retry_after_s=5)
        while len(self._runs) >= KEPT:
            del self._runs[next(name for name, copies in self._runs.items() if copies.finished_ms)]
        copies = Copies(f"cpy_{secrets.token_hex(8)}", self._tower.clock.now_ms(), target, wanted, rate, matched)
        self._runs[copies.id] = copies
        self._tasks.start_soon(self._carry_out, copies, before)
        return copies

    async def _carry_out(self, copies: Copies, before: int) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                await self._copy_all(copies, before, tasks)
        finally:
            copies.finished_ms = self._tower.clock.now_ms()
            _log.info("copies.finished", id=copies.id, copied=copies.copied, failed=copies.failed, error=copies.error)

    async def _copy_all(self, copies: Copies, before: int, tasks: TaskGroup) -> None:
        """Hand out one delivery after the other, a few at a time, until the end or until nobody answers."""
        slots = anyio.Semaphore(AT_ONCE)
        place, finished = Place(), False
        while not finished:
            found, place, finished = await self._ways.step(
                copies.wanted, place, self._webhooks(), before=before, limit=_FOUND_AT_ONCE
            )
            for one in found:
                await slots.acquire()
                webhook = self._webhooks().get(place.webhook)
                if copies.given_up:
                    return
                if webhook is None:
                    slots.release()
                    break
                tasks.start_soon(self._copy, copies, webhook, one, slots)
                if copies.rate is not None:
                    await anyio.sleep(1 / copies.rate)

    async def _copy(self, copies: Copies, webhook: Webhook, found: Found, slots: anyio.Semaphore) -> None:
        try:
            answer = await self._post(webhook, found, copies.target)
        finally:
            slots.release()
        copies.note(answer)

    async def _post(self, webhook: Webhook, found: Found, target: Target) -> Answer:
        event = found.event
        if not event.digest:
            return DAMAGED_RECORD
        await self._budget.take(event.size)
        try:
            body = (await self._ways.bodies([found.seq])).get(found.seq)
            if body is None or body_digest(body) != event.digest:
                return DAMAGED
            answer = await self._tower.courier.post(self._parcel(webhook, event, body, target))
        finally:
            self._budget.give_back(event.size)
        return structs.replace(answer, detail=clean(answer.detail))

    def _parcel(self, webhook: Webhook, event: EventAccepted, body: bytes, target: Target) -> Parcel:
        """Return the POST of a copy as the webhook would get it, but for the headers that say who sent it and why."""
        if not webhook.settings.base64:
            body = without_media(body)
        copy = copy_for(body, target.url, None if event.dated else rfc3339(event.at_ms))
        headers = {
            "content-type": "application/json",
            "accept": "*/*",
            "accept-encoding": "identity",
            "user-agent": self._tower.user_agent,
        }
        if target.userinfo:
            headers["authorization"] = basic(target.userinfo)
        return Parcel(target.url, headers, copy, self._tower.timeout_ms / 1000 + len(copy) // _MIB)
