"""Chores that go through many deliveries of a webhook, chunk by chunk, while everybody else is served in between."""

from typing import TypeVar

import anyio
import structlog

from outbox.domain.deliveries import EXPIRED
from outbox.domain.errors import BusyError
from outbox.journal.commands import Command
from outbox.journal.sweeping import Bury, Convert, Expire
from outbox.journal.writer import Journal
from outbox.relay.clock import Clock

PAUSE_MAX_S = 1.0

_log = structlog.get_logger("relay")
_T = TypeVar("_T")


async def bury(journal: Journal, clock: Clock, webhook: int) -> None:
    """Settle the deliveries of a deleted webhook as dead."""
    after: int | None = 0
    while after is not None:
        after = await by_turns(journal, Bury(webhook, after, clock.now_ms(), "the webhook was deleted"))


async def convert(journal: Journal, clock: Clock, webhook: int) -> None:
    """Put the deliveries of a webhook whose order was changed into their new queues."""
    while await insist(journal, Convert(webhook, clock.now_ms())):
        pass
    _log.info("webhook.order_converted", webhook=webhook)


async def expire(journal: Journal, clock: Clock, webhook: int, events: list[int], cutoff_ms: int) -> int:
    """Settle as dead those of the deliveries whose age counts from `cutoff_ms` or before; return how many."""
    return await insist(journal, Expire(webhook, events, cutoff_ms, clock.now_ms(), EXPIRED))


async def by_turns(journal: Journal, command: Command[_T]) -> _T:
    """Submit a command until the store takes it, then leave as much time to everybody else; return its answer."""
    began = anyio.current_time()
    answer = await insist(journal, command)
    await anyio.sleep(min(anyio.current_time() - began, PAUSE_MAX_S))
    return answer


async def insist(journal: Journal, command: Command[_T]) -> _T:
    """Submit a command until the store takes it, and return its answer."""
    while True:
        try:
            return await journal.submit(command)
        except BusyError as error:
            await anyio.sleep(error.retry_after_s)
