"""Trying a webhook out: one POST of a made-up event with its real settings, recorded nowhere."""

import os

import msgspec
from msgspec import Struct, structs

from outbox.domain.errors import ConflictError
from outbox.domain.ids import body_digest, event_id
from outbox.domain.records import EventAccepted
from outbox.domain.retrying import Answer
from outbox.domain.webhooks import Webhook
from outbox.journal.claims import Claim
from outbox.journal.damage import tell_lost
from outbox.relay.flight import Tower, clean, rfc3339

KIND = "APPLICATION_STARTUP"
EVENT = "application.startup"
INSTANCE = "test"
"""What stands for the instance in the test event of a global webhook."""

_ID_RANDOM_BYTES = 10


class Trial(Struct, frozen=True):
    """What came of it: the URL that was posted to, without user and password, the answer, the milliseconds it took."""

    url: str
    answer: Answer
    took_ms: int


async def try_out(tower: Tower, webhook: Webhook) -> Trial:
    """Post a test event to `webhook` right now, be it enabled or not, and return what came of it.

    Raises ConflictError where there is no URL, or where its credentials are damaged.
    """
    if not webhook.settings.url:
        msg = "this webhook has no URL to post to: set one first"
        raise ConflictError(msg)
    if webhook.damaged:
        raise ConflictError(tell_lost(webhook))
    started_ms = tower.clock.now_ms()
    instance = webhook.instance or INSTANCE
    envelope = {"event": EVENT, "instance": instance, "data": {"test": True}, "destination": "",
                "date_time": rfc3339(started_ms)}  # fmt: skip
    body = msgspec.json.encode(envelope)
    event = EventAccepted(
        id=event_id(started_ms, os.urandom(_ID_RANDOM_BYTES)),
        at_ms=started_ms,
        kind=KIND,
        instance=instance,
        digest=body_digest(body),
        size=len(body),
        ordering_key=0,
        targets=(webhook.number,),
        dated=True,
        hops=0,
        idempotency=b"",
    )
    parcel = tower.parcel(webhook, Claim(0, event, 0, 0, started_ms), body, 1, started_ms)
    answer, took_ms = await tower.post(parcel)
    return Trial(parcel.url, structs.replace(answer, detail=clean(answer.detail)), took_ms)
