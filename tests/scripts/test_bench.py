from pathlib import Path

import pytest

from scripts.lib import bench, isolation, masses


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that a benchmark starts find the project, as its script does."""
    monkeypatch.setenv("PYTHONPATH", str(bench.HERE.parents[2]))


async def test_troubled_webhooks_leave_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many hanging, refusing and slow webhooks each, those that are well are served about as fast as alone.

    On a busy machine the order of magnitude is all that can be asked; `scripts/bench isolation` measures.
    """
    monkeypatch.setattr(isolation, "EACH", 8)
    monkeypatch.setattr(isolation, "ROUND_S", 1.0)
    moody = bench.child(str(bench.HERE), "moody")
    troubled_ms, alone_ms = await isolation.measure_isolation(tmp_path, 3, moody)
    assert troubled_ms < 10 * max(alone_ms, 20)
    assert troubled_ms < isolation.TIMEOUT_MS


async def test_a_backlog_that_is_changed_delays_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done to a webhook with a backlog, acceptance and the deliveries of the others go on."""
    monkeypatch.setattr(masses, "QUIET_S", 0.5)
    figures = await masses.measure_masses(tmp_path, 5000, bench.child(str(bench.HERE), "moody"), ordered=True)
    assert [figure.deed for figure in figures] == ["nothing", "disable", "enable", "replay", "order", "delete"]
    assert max(max(figure.accept_ms, figure.acknowledge_ms) for figure in figures) < 1000
