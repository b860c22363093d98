from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.harness import Receiver, Service, running

PASSWORD = "canary-password"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def samples(service: Service) -> Samples:
    """Return all samples by name and labels, as a Prometheus server would read them."""
    reply = await service.request("GET", "/metrics")
    assert reply.status == 200, reply
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(reply.body.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float | None:
    """Return the sample with that name and those labels."""
    return found.get((name, frozenset(labels.items())))


async def with_history(service: Service, receiver: Receiver) -> None:
    """Leave two acknowledged deliveries (one at the second attempt), a dead and a held one."""
    receiver.answer = lambda arrival: {
        ("/good", "1"): 500,
        ("/good", "2"): 200,
        ("/bad", "1"): 400,
    }.get((arrival.path, arrival.headers["x-outbox-attempt"]), 503)
    for instance in ("good", "bad", "off"):
        await service.set_webhook(instance, f"{receiver.url.replace('://', f'://user:{PASSWORD}@')}/{instance}")
        await service.accept(instance=instance)
    await service.wait_for_stats(
        lambda stats: stats["deliveries"]["acknowledged"] == 1 and stats["deliveries"]["dead"] == 1
    )
    await service.set_webhook("off", f"{receiver.url}/off", enabled=False)


async def at_rest(service: Service) -> tuple[Any, Samples]:
    """Return the numbers of /stats and the metrics of a moment in between which nothing happened."""
    while True:
        before = (await service.request("GET", "/stats")).json()
        found = await samples(service)
        if before["seq"] == (await service.request("GET", "/stats")).json()["seq"]:
            return before, found


async def test_the_numbers(tmp_path: Path) -> None:
    """Metrics show the numbers of /stats by webhook and state, held included, and the attempts since the start."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await with_history(service, receiver)
        stats, found = await at_rest(service)
    assert value(found, "outbox_events_total") == stats["events"] == 3
    for entry in stats["webhooks"]:
        for state, n in entry["deliveries"].items():
            assert value(found, "outbox_deliveries", webhook=entry["id"], state=state) == n
    good, bad, off = (entry["id"] for entry in stats["webhooks"])
    assert value(found, "outbox_deliveries", webhook=off, state="held") == 1
    assert not any(n for (_, labels), n in found.items() if ("webhook", "deleted") in labels)
    assert value(found, "outbox_attempts_total", webhook=good, outcome="retry") == 1
    assert value(found, "outbox_attempts_total", webhook=good, outcome="acknowledged") == 1
    assert value(found, "outbox_attempts_total", webhook=bad, outcome="dead") == 1
    assert value(found, "outbox_log_seq") == stats["seq"]
    assert value(found, "outbox_oldest_pending_age_seconds", webhook=good) == 0
    assert (value(found, "outbox_oldest_pending_age_seconds", webhook=off) or 0) > 0
    assert value(found, "outbox_journal_queue_bytes") == 0
    assert value(found, "outbox_journal_queue_limit_bytes") == 256 * 1024 * 1024
    assert value(found, "outbox_ready") == 1
    assert (value(found, "process_resident_memory_bytes") or 0) > 1024 * 1024


async def test_deleted_webhooks_are_counted_as_one(tmp_path: Path) -> None:
    """The deliveries of deleted webhooks stay in the sum, and their number adds no labels."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await with_history(service, receiver)
        for instance in ("good", "bad", "off"):
            assert (await service.request("DELETE", f"/webhooks/instances/{instance}")).status == 204
        await service.wait_for_stats(lambda stats: stats["deliveries"]["dead"] == 2)
        found = await samples(service)
    assert value(found, "outbox_deliveries", webhook="deleted", state="dead") == 2
    assert value(found, "outbox_deliveries", webhook="deleted", state="acknowledged") == 1
    assert value(found, "outbox_attempts_total", webhook="deleted", outcome="acknowledged") == 1
    assert {dict(labels)["webhook"] for name, labels in found if name == "outbox_deliveries"} == {"deleted"}


async def test_metrics_tell_no_secrets(tmp_path: Path) -> None:
    """Metrics need the API key; webhooks are named by their ids, and no URL or name of an instance is in a label."""
    async with Receiver() as receiver, running(tmp_path) as service:
        await with_history(service, receiver)
        assert (await service.request("GET", "/metrics", headers={"apikey": "wrong-key"})).status == 401
        text = (await service.request("GET", "/metrics")).body.decode()
        found = await samples(service)
    assert not [secret for secret in (PASSWORD, "http://", "127.0.0.1") if secret in text]
    assert {name for _, labels in found for name, _ in labels} == {"webhook", "state", "outcome", "version", "part"}
