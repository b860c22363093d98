"""The webhook sender of an Evolution API server (2.3), imitated with its habits and its faults.

It is what stands in front of the service in real life, and it must not notice that anything has changed: one local
webhook an instance and one global one, the local one first and to its last attempt; a retry that lives in memory and
ends for good with the tenth failure, or at once with a status that the server holds to be final; one envelope for both
copies, with the `destination` of the local webhook in it; and switches of kinds of which some never match.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import aiohttp
from msgspec import Struct, field

FINAL_STATUSES = frozenset({400, 401, 403, 404, 422})
"""WEBHOOK_RETRY_NON_RETRYABLE_STATUS_CODES: on these the server drops an event at once, with a line in its log."""

GLOBAL_SWITCHES = frozenset(
    """
    APPLICATION_STARTUP INSTANCE_CREATE INSTANCE_DELETE QRCODE_UPDATED MESSAGES_SET MESSAGES_UPSERT MESSAGES_EDITED
    MESSAGES_UPDATE MESSAGES_DELETE SEND_MESSAGE SEND_MESSAGE_UPDATE CONTACTS_SET CONTACTS_UPDATE CONTACTS_UPSERT
    PRESENCE_UPDATE CHATS_SET CHATS_UPDATE CHATS_UPSERT CHATS_DELETE CONNECTION_UPDATE LABELS_EDIT LABELS_ASSOCIATION
    GROUPS_UPSERT GROUP_UPDATE GROUP_PARTICIPANTS_UPDATE CALL TYPEBOT_START TYPEBOT_CHANGE_STATUS MESSAGING_HISTORY_SET
    """.split()  # noqa: SIM905 - it is read more easily
)
"""What WEBHOOK_EVENTS_... can switch on for the global webhook. WEBHOOK_EVENTS_GROUPS_UPDATE becomes GROUP_UPDATE."""

LOCAL_EVENTS = GLOBAL_SWITCHES | {"REMOVE_INSTANCE", "LOGOUT_INSTANCE", "STATUS_INSTANCE"}
"""What an empty list of events becomes for a local webhook."""


class LocalWebhook(Struct, frozen=True):
    """The webhook of one instance, with all events on."""

    url: str
    by_events: bool = False
    headers: Mapping[str, str] = {}


class Retry(Struct, frozen=True):
    """WEBHOOK_RETRY_...: the defaults of the server, but for a clock that runs twenty times as fast."""

    max_attempts: int = 10
    initial_s: float = 0.25
    max_s: float = 15.0
    jitter: float = 0.2

    def delay_s(self, attempt: int) -> float:
        """The wait after that attempt: doubled every time, jittered, never below the first."""
        wait = min(self.initial_s * 2.0 ** (attempt - 1), self.max_s)
        return max(self.initial_s, wait + wait * self.jitter * random.uniform(-1, 1))


class Copy(Struct, frozen=True):
    """One event on its way to one webhook: what the server would have to account for, and keeps in memory only."""

    to: str
    instance: str
    event: str
    date_time: str


class EvolutionServer(Struct):
    """A server with its settings; `delivered` and `dropped` say what became of each copy, `heard` every status."""

    global_url: str
    global_by_events: bool = False
    local_webhooks: dict[str, LocalWebhook] = field(default_factory=dict)
    local_events: frozenset[str] = LOCAL_EVENTS
    global_events: frozenset[str] = GLOBAL_SWITCHES
    retry: Retry = Retry()
    timeout_s: float = 30.0
    delivered: list[Copy] = field(default_factory=list)
    dropped: list[Copy] = field(default_factory=list)
    heard: Counter[int | str] = field(default_factory=Counter)

    async def emit(self, instance: str, event: str, data: Any, date_time: str, **extra: Any) -> None:
        """Send an event to the local webhook, to exhaustion, and only then to the global one."""
        key = re.sub(r"[.-]", "_", event).upper()
        suffix = key.replace("_", "-").lower()
        local = self.local_webhooks.get(instance)
        envelope = {
            **extra,
            "event": event,
            "instance": instance,
            "data": data,
            "destination": local.url if local else f"{self.global_url}/{suffix}",
            "date_time": date_time,
            "sender": "5511900000001@s.whatsapp.net",
            "server_url": "https://evo.example.test",
            "apikey": None,
        }
        body = json.dumps(envelope, ensure_ascii=False, separators=(",", ":")).encode()
        if local and key in self.local_events:
            url = f"{local.url}/{suffix}" if local.by_events else local.url
            await self._send(url, body, _with_token(local.headers), Copy("local", instance, event, date_time))
        if self.global_url and key in self.global_events:
            url = f"{self.global_url}/{suffix}" if self.global_by_events else self.global_url
            await self._send(url, body, {}, Copy("global", instance, event, date_time))

    async def _send(self, url: str, body: bytes, headers: dict[str, str], copy: Copy) -> None:
        """Try until a 2xx comes, a final status, or the last attempt has failed. The headers are made once."""
        if not re.match(r"https?://", url):
            return  # skipped without a word
        for attempt in range(1, self.retry.max_attempts + 1):
            status = await self._post(url, body, headers)
            self.heard[status] += 1
            if isinstance(status, int) and 200 <= status < 300:
                self.delivered.append(copy)
                return
            if status in FINAL_STATUSES:
                break
            if attempt < self.retry.max_attempts:
                await asyncio.sleep(self.retry.delay_s(attempt))
        self.dropped.append(copy)

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> int | str:
        """One POST on a connection of its own; the status, or the name of what went wrong before there was one."""
        sent = {"content-type": "application/json", "accept": "application/json, text/plain, */*", **headers}
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as http,
                http.post(url, data=body, headers=sent) as answer,
            ):
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, OSError) as error:
            return type(error).__name__


def _with_token(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a local webhook: `jwt_key` gives way to a token, minted once for all attempts of an event."""
    sent = dict(headers)
    key = sent.pop("jwt_key", "")
    if key:
        now = int(time.time())
        claims = {"iat": now, "exp": now + 600, "app": "evolution", "action": "webhook"}
        parts = [_coded(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
        signature = hmac.digest(key.encode(), ".".join(parts).encode(), hashlib.sha256)
        sent["Authorization"] = "Bearer " + ".".join([*parts, _coded(signature)])
    return sent


def _coded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()
