# ruff: noqa: T201 - pytest shows what a failed test printed: its seed, its moments
import random
import signal
from pathlib import Path

import pytest

from tests.faults.load import LOCAL, Load, faults_of_delivery, kill_under, misbehaving
from tests.harness import Receiver, Service

ROUNDS = 20
BACKLOG_ROUNDS = 6
SEED = 20_260_731
DEATHS = {"decided": 3, "written": 30, "committed": 7, "answered": 20, "posted": 40}
"""The steps at which `dies_at` kills the service, and the how-manieth time it gets there."""

TROUBLED = {
    "WEBHOOK_GLOBAL_ENABLED": "true",
    "WEBHOOK_REQUEST_TIMEOUT_MS": "300",
    "WEBHOOK_RETRY_INITIAL_DELAY_SECONDS": "0.02",
}
"""Short timeouts and delays, so that many attempts fall into each round."""


async def started(service: Service, local: Receiver) -> None:
    """Start the service and see that the instance has its webhook."""
    await service.start()
    await service.set_webhook(LOCAL, local.url)


async def assert_all_arrived(service: Service, load: Load, everywhere: Receiver, local: Receiver) -> None:
    """Let healthy receivers get what is left, and compare what they got with what the producers know."""
    everywhere.answer = local.answer = lambda _arrival: 200
    stats = await service.wait_until_settled(60)
    assert stats["deliveries"]["dead"] == 0
    assert stats["oldest_pending_s"] is None
    faults = faults_of_delivery(load.ledger, everywhere.arrivals, lambda _instance: True)
    faults += faults_of_delivery(load.ledger, local.arrivals, lambda instance: instance == LOCAL)
    assert not faults, faults[:20]
    assert stats["events"] >= len(load.ledger.accepted)


async def test_what_got_a_202_survives_kill_9_at_any_moment_under_load(tmp_path: Path) -> None:
    """No acknowledged event is lost, none changes its id, and a repeat with its key is the same event."""
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    load = Load(rng)
    async with Receiver(misbehaving(rng, 1.0)) as everywhere, Receiver(misbehaving(rng, 1.0)) as local:
        service = Service(tmp_path, WEBHOOK_GLOBAL_URL=everywhere.url, **TROUBLED)
        for number in range(ROUNDS):
            await started(service, local)
            await load.repeat(service.address)
            more, after_s = rng.randrange(80), rng.uniform(0.0, 0.05)
            accepted = len(load.ledger.accepted)
            print(f"round {number}: {accepted} accepted; kill {after_s:.3f} s after {more} more")
            await kill_under(load, service, more, after_s)
            await service.verify()
        await started(service, local)
        await load.repeat(service.address, known=200)
        await assert_all_arrived(service, load, everywhere, local)
        assert await service.stop() == 0
        status, output, errors = await service.command("verify")
        assert (status, output.endswith(": all is well\n")) == (0, True), output + errors
    assert not load.ledger.refused
    assert len(load.ledger.accepted) > 10 * ROUNDS
    assert load.ledger.repeated > ROUNDS


async def test_a_backlog_survives_kill_9_while_it_is_relayed(tmp_path: Path) -> None:
    """Kills in the middle of relaying, with nothing coming in, lose no delivery and settle none twice."""
    rng = random.Random(SEED + 1)
    load = Load(rng)
    async with Receiver(lambda _arrival: 500) as everywhere, Receiver(lambda _arrival: 500) as local:
        service = Service(tmp_path, WEBHOOK_GLOBAL_URL=everywhere.url, **TROUBLED)
        await started(service, local)
        await kill_under(load, service, 400)
        await service.verify()
        everywhere.answer = local.answer = misbehaving(rng, 1.0)
        for number in range(BACKLOG_ROUNDS):
            await service.start()
            before = len(everywhere.arrivals)
            await everywhere.wait_for_count(before + rng.randrange(1, 60))
            print(f"round {number}: kill after {len(everywhere.arrivals) - before} POSTs")
            await service.kill()
            await service.verify()
        await service.start()
        await assert_all_arrived(service, load, everywhere, local)
        assert await service.stop() == 0
        report = await service.verify()
    assert report["events"] >= len(load.ledger.accepted) >= 400


async def test_a_death_between_any_two_steps_loses_nothing(tmp_path: Path) -> None:
    """Killed before, in and after a commit, before its answer is sent, or with an answer not recorded: all arrives."""
    load = Load(random.Random(SEED + 3))
    async with Receiver() as everywhere, Receiver() as local:
        service = Service(tmp_path, WEBHOOK_GLOBAL_URL=everywhere.url, **TROUBLED)
        genuine = service.program
        await started(service, local)
        await service.stop()
        for step, times in DEATHS.items():
            service.program = ["-m", "tests.faults.dies_at", "serve"]
            service.settings |= {"FAULT_STEP": step, "FAULT_TIMES": str(times)}
            await service.start()
            await load.produce(service.address)
            assert await service.wait() == -signal.SIGKILL, step
            await service.verify()
            service.program = genuine
            await service.start()
            await load.repeat(service.address)
            assert await service.stop() == 0
        await service.start()
        await assert_all_arrived(service, load, everywhere, local)
        assert await service.stop() == 0
        await service.verify()
    assert load.ledger.repeated > len(DEATHS)


@pytest.mark.parametrize("planted", [True, False])
async def test_the_check_notices_a_202_before_its_commit(tmp_path: Path, *, planted: bool) -> None:
    """The same check fails when a bug that loses acknowledged events is planted, and passes without it."""
    rng = random.Random(SEED + 2)
    load = Load(rng)
    async with Receiver() as everywhere, Receiver() as local:
        service = Service(tmp_path, WEBHOOK_GLOBAL_URL=everywhere.url, **TROUBLED)
        genuine = service.program
        await started(service, local)
        await service.stop()
        if planted:
            service.program = ["-m", "tests.faults.answers_early", "serve"]
        await service.start()
        await kill_under(load, service, 30)
        service.program = genuine
        await service.start()
        if planted:
            with pytest.raises(AssertionError, match=r"got a 202 as .* and never arrived"):
                await assert_all_arrived(service, load, everywhere, local)
        else:
            await assert_all_arrived(service, load, everywhere, local)
        await service.stop()
        await service.verify()
