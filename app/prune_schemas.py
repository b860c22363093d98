"""Pruning on the wire."""

from typing import Annotated

from msgspec import Meta, Struct

from outbox.engine import Pruning


class PruneIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """What is to be pruned: what is older than that."""

    older_than_s: Annotated[float, Meta(ge=0, le=10**10, description="seconds")]


class PruneOut(Struct):
    """A run of a prune: whether it goes on, how far it has come in the log, what is gone, why it broke off."""

    running: bool
    reached: int
    end: int
    records: int
    events: int
    deliveries: int
    error: str | None


def show_pruning(pruning: Pruning) -> PruneOut:
    """Return a run as we show it."""
    return PruneOut(
        running=pruning.running,
        reached=pruning.place,
        end=pruning.end,
        records=pruning.gone.records,
        events=pruning.gone.events,
        deliveries=pruning.gone.deliveries,
        error=pruning.error or None,
    )
