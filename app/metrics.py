"""Metrics in Prometheus's text format: the numbers of `/stats`, and what only the running process knows.

Webhooks are told apart by their ids; no label holds a name, a URL or a secret.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from msgspec import Struct
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.schemas import webhook_id
from outbox import __version__
from outbox.domain.deliveries import Effect
from outbox.engine import FILE_CHECKS, Vitals
from outbox.inspecting import Stats

DELETED = "deleted"

_OUTCOMES = {
    Effect.ACKNOWLEDGE: "acknowledged",
    Effect.RETRY: "retry",
    Effect.BURY: "dead",
    Effect.SUSPEND: "suspended",
    Effect.LATE: "late",
}


class Reading(Struct, frozen=True):
    """Everything that is measured, as of one moment."""

    stats: Stats
    vitals: Vitals
    ready: bool
    now_ms: int


def render_metrics(reading: Reading) -> bytes:
    """Return a reading, with the process's memory, processor time and files, in the text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(reading))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Families(Collector):
    """Yields the families of one reading."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterable[Metric]:
        reading = self._reading
        events = reading.stats.events + reading.stats.pruned["events"]
        yield InfoMetricFamily("outbox_build", "The release that runs.", {"version": __version__})
        yield CounterMetricFamily("outbox_events", "Events ever taken in.", events)
        yield _deliveries(reading.stats)
        yield _oldest(reading.stats, reading.now_ms)
        yield _attempts(reading)
        yield _expired(reading)
        yield from _standing(reading.stats)
        yield from _gauges(reading)


def _deliveries(stats: Stats) -> Metric:
    family = GaugeMetricFamily("outbox_deliveries", "Deliveries by state.", labels=["webhook", "state"])
    deleted = Counter(stats.deliveries)
    for entry in stats.webhooks:
        deleted.subtract(entry.deliveries)
        for state, n in entry.deliveries.items():
            family.add_metric([webhook_id(entry.webhook.number), state], n)
    # All deleted webhooks are one: there may be any number of them.
    for state in stats.deliveries:
        family.add_metric([DELETED, state], deleted[state])
    return family


def _oldest(stats: Stats, now_ms: int) -> Metric:
    family = GaugeMetricFamily(
        "outbox_oldest_pending_age_seconds", "Age of the oldest pending delivery; 0: none.", labels=["webhook"]
    )
    for entry in stats.webhooks:
        age_s = max(now_ms - entry.oldest_ms, 0) / 1000 if entry.oldest_ms is not None else 0
        family.add_metric([webhook_id(entry.webhook.number)], age_s)
    return family


def _attempts(reading: Reading) -> Metric:
    family = CounterMetricFamily(
        "outbox_attempts", "Attempts recorded since the start, by what came of them.", labels=["webhook", "outcome"]
    )
    live = {entry.webhook.number for entry in reading.stats.webhooks}
    counts: Counter[tuple[str, Effect]] = Counter()
    for (number, effect), n in reading.vitals.attempts.items():
        counts[webhook_id(number) if number in live else DELETED, effect] += n
    for (webhook, effect), n in sorted(counts.items()):
        family.add_metric([webhook, _OUTCOMES[effect]], n)
    return family


def _expired(reading: Reading) -> Metric:
    family = CounterMetricFamily(
        "outbox_deliveries_expired", "Deliveries that became too old, since the start.", labels=["webhook"]
    )
    live = {entry.webhook.number for entry in reading.stats.webhooks}
    counts: Counter[str] = Counter()
    for number, n in reading.vitals.expired.items():
        counts[webhook_id(number) if number in live else DELETED] += n
    for webhook, n in sorted(counts.items()):
        family.add_metric([webhook], n)
    return family


def _standing(stats: Stats) -> Iterator[Metric]:
    suspended = GaugeMetricFamily(
        "outbox_webhook_suspended",
        "1: a 410, or the loss of its credentials, has suspended it; 0: it is not suspended.",
        labels=["webhook"],
    )
    opened = GaugeMetricFamily(
        "outbox_webhook_breaker_open",
        "1: its receiver fails, and is only tried now and then; 0: not.",
        labels=["webhook"],
    )
    for entry in stats.webhooks:
        webhook = webhook_id(entry.webhook.number)
        suspended.add_metric([webhook], int(entry.webhook.suspended_ms > 0))
        opened.add_metric([webhook], int(entry.webhook.opened_ms > 0))
    yield suspended
    yield opened


def _gauges(reading: Reading) -> Iterator[Metric]:
    yield GaugeMetricFamily("outbox_log_seq", "The seq of the last record of the log.", reading.stats.seq)
    yield GaugeMetricFamily(
        "outbox_journal_queue_bytes", "Bytes that wait for the next commit.", reading.vitals.queue_bytes
    )
    yield GaugeMetricFamily(
        "outbox_journal_queue_limit_bytes",
        "Bytes that may wait before events are refused.",
        reading.vitals.queue_limit_bytes,
    )
    yield GaugeMetricFamily(
        "outbox_wal_bytes",
        "Bytes of the write-ahead log that are not in the database file yet.",
        reading.vitals.unmoved_bytes,
    )
    damage = CounterMetricFamily(
        "outbox_damage", "Times something was found damaged since the start, by what it is.", labels=["part"]
    )
    for part, n in reading.vitals.damage.items():
        damage.add_metric([part], n)
    yield damage
    check = GaugeMetricFamily(
        "outbox_file_check", "1 for the state that the check of the database file is in.", labels=["state"]
    )
    for state in FILE_CHECKS:
        check.add_metric([state], int(reading.vitals.file_check == state))
    yield check
    yield GaugeMetricFamily("outbox_ready", "1: events are taken in; 0: they are not.", int(reading.ready))
