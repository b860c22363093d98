"""What the engine is told when it is opened."""

from pathlib import Path

from msgspec import Struct

from outbox.domain.addresses import AddressPolicy
from outbox.domain.catalogue import RouteStyle
from outbox.domain.retrying import RetryPolicy


class GlobalWebhook(Struct, frozen=True, kw_only=True):
    """The global webhook as the environment sets it; `events` are canonical, none of them meaning all."""

    url: str
    enabled: bool
    by_events: bool
    events: tuple[str, ...] = ()


class EngineConfig(Struct, frozen=True, kw_only=True):
    """Everything the engine needs to know. Sizes in bytes, times as their names say."""

    database: Path
    retry: RetryPolicy = RetryPolicy()
    timeout_ms: int = 30_000
    route_style: RouteStyle = "documented"
    addresses: AddressPolicy = AddressPolicy()
    global_webhook: GlobalWebhook | None = None
    idempotency_window_s: int = 86_400
    queue_bytes: int = 256 * 1024 * 1024
    delivery_bytes: int = 256 * 1024 * 1024
