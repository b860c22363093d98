"""One attempt: from a claim and its body to the record of what came of it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import structlog
from msgspec import Struct

from outbox.domain.bodies import copy_for
from outbox.domain.catalogue import RouteStyle
from outbox.domain.deliveries import Effect
from outbox.domain.holding import expires_ms
from outbox.domain.ids import body_digest, event_text
from outbox.domain.media import without_media
from outbox.domain.records import AttemptRecorded
from outbox.domain.retrying import Answer, Decision, RetryPolicy, cause, decide
from outbox.domain.routing import url_for
from outbox.domain.webhooks import Webhook
from outbox.journal.claims import Claim
from outbox.journal.damage import Damage, Part
from outbox.relay.clock import Clock
from outbox.relay.courier import Parcel
from outbox.relay.signing import identity, own_headers

_MIB = 1024 * 1024


class Carrier(Protocol):
    """Whoever makes the POSTs: the courier, or what a simulation puts in its place."""

    async def post(self, parcel: Parcel) -> Answer:
        """Make one POST and return what came of it, whatever that is, within the parcel's timeout."""


DAMAGED = Answer(error="corrupt_body", detail="the stored body is not the one that was accepted")
DAMAGED_RECORD = Answer(error="corrupt_record", detail="the event's record in the log is not what was written")
"""What stands for an answer where there was nothing sound to send."""

_REASONS = {DAMAGED.error: "the stored body is damaged", DAMAGED_RECORD.error: "the event's record is damaged"}
_PARTS: dict[str, Part] = {DAMAGED.error: "body", DAMAGED_RECORD.error: "record"}


class Flight(NamedTuple):
    """One POST that was made: when it began and ended, in milliseconds since the epoch, and what came of it.

    `took_ms` is by the loop's clock: between beginning and end the wall clock may have been set.
    """

    started_ms: int
    ended_ms: int
    took_ms: int
    answer: Answer


class Tower(Struct, frozen=True):
    """What every attempt of every lane goes by."""

    courier: Carrier
    clock: Clock
    random: Callable[[], float]
    policy: RetryPolicy
    timeout_ms: int
    route_style: RouteStyle
    user_agent: str

    async def fly(self, webhook: Webhook, claim: Claim, body: bytes | None) -> Flight:
        """Make one POST and return what came of it; cancelled, it leaves nothing behind."""
        started_ms = self.clock.now_ms()
        if not claim.sound:
            return Flight(started_ms, started_ms, 0, DAMAGED_RECORD)
        if body is None or body_digest(body) != claim.event.digest:
            return Flight(started_ms, started_ms, 0, DAMAGED)
        answer, took_ms = await self.post(self.parcel(webhook, claim, body, claim.attempts + 1, started_ms))
        return Flight(started_ms, self.clock.now_ms(), took_ms, answer)

    async def post(self, parcel: Parcel) -> tuple[Answer, int]:
        """Make one POST; return what came of it, and the milliseconds it took whatever the wall clock did."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        answer = await self.courier.post(parcel)
        return answer, round((loop.time() - began) * 1000)

    def conclude(self, webhook: Webhook, claim: Claim, flight: Flight, probe_s: float | None) -> AttemptRecorded:
        """Return the record of an attempt. A probe that failed costs nothing, and comes again in `probe_s` seconds."""
        started_ms, ended_ms, took_ms, answer = flight
        if is_damage(answer):
            decision = Decision(Effect.BURY, claim.charged, ended_ms, _REASONS[answer.error])
        else:
            decision = decide(answer, claim.charged, ended_ms, self.policy, self.random)
        due_ms, charged = decision.due_ms, decision.charged
        if decision.effect is Effect.RETRY:
            if probe_s is not None:
                due_ms, charged = ended_ms + round(probe_s * 1000), claim.charged
            # It must be looked at when it expires, be its turn ever so late.
            end_ms = expires_ms(webhook.held, claim.since_ms, round(self.policy.max_age_s * 1000))
            due_ms = max(min(due_ms, end_ms), ended_ms)
        return AttemptRecorded(
            claim.seq, webhook.number, claim.attempts + 1, started_ms, took_ms, answer.status,
            answer.error, clean(answer.detail), answer.excerpt, decision.effect, charged, due_ms, decision.reason,
        )  # fmt: skip

    def parcel(self, webhook: Webhook, claim: Claim, body: bytes, number: int, now_ms: int) -> Parcel:
        """Return the POST that attempt `number` makes now, with the settings as they are."""
        event = claim.event
        url = url_for(webhook, event.kind, self.route_style)
        if not webhook.settings.base64:
            body = without_media(body)
        copy = copy_for(body, url, None if event.dated else rfc3339(event.at_ms))
        headers = {
            "content-type": "application/json",
            "accept": "*/*",
            "accept-encoding": "identity",
            "user-agent": self.user_agent,
            **identity(webhook.credentials, event_text(event.id), copy, now_ms),
            "x-outbox-attempt": str(number),
            "x-outbox-hops": str(event.hops + 1),
        }
        if own := own_headers(webhook.credentials, now_ms):
            for name in own:
                headers.pop(name.lower(), None)
            headers |= own
        timeout_s = (webhook.settings.timeout_ms or self.timeout_ms) / 1000 + len(copy) // _MIB
        return Parcel(url, headers, copy, timeout_s, trusted=webhook.source == "environment")


def is_damage(answer: Answer) -> bool:
    """Say whether this is no answer: no POST was made, for want of something sound to send."""
    return answer.error in _REASONS


def tell(damage: Damage, claim: Claim, answer: Answer) -> None:
    """Note the damage that an answer stands for."""
    event = event_text(claim.event.id)
    detail = f"event {event}: {answer.detail}; its deliveries die unsent: run verify, restore a backup if they matter"
    damage.met(_PARTS[answer.error], detail, event_id=event, event_seq=claim.seq)


def note(log: structlog.typing.FilteringBoundLogger, claim: Claim, record: AttemptRecorded, answer: Answer) -> None:
    """Say in the log what came of an attempt: success at debug level, failure as a warning."""
    if record.effect is Effect.ACKNOWLEDGE:
        log.debug("delivery.acknowledged", event_seq=claim.seq, attempt=record.attempt, status=record.status)
        return
    log.warning(
        "delivery.dead" if record.effect is Effect.BURY else "attempt.failed",
        event_id=event_text(claim.event.id),
        attempt=record.attempt,
        cause=cause(answer),
        detail=record.reason or answer.detail,
        retry_in_s=(record.due_ms - record.at_ms - record.took_ms) / 1000 if record.effect is Effect.RETRY else None,
    )


def clean(text: str) -> str:
    """Return text that can be recorded: aiohttp reads bytes of a header that are not UTF-8 as lone surrogates."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def rfc3339(ms: int) -> str:
    """Return a moment, given in milliseconds since the epoch, as RFC 3339 in UTC."""
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
