import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.world.chaos import simulate

ROOT = Path(__file__).parent.parent.parent
SEEDS = 30
REPEATED = (3, 17)
PRINTED = "from tests.world.chaos import simulate; print(*simulate({seed}).history.lines(), sep='\\n')"


@cache
def told(seed: int) -> list[str]:
    """Play the story of a seed, and return its history."""
    return simulate(seed).history.lines()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_all_promises_hold_whatever_goes_wrong(seed: int) -> None:
    """Random stories of crashes, misbehaving receivers, full disks and jumping clocks break no invariant."""
    assert told(seed)[-1].endswith("is stopped")


def test_these_stories_are_worth_telling() -> None:
    """In some of the stories each kind of trouble really happens."""
    everything = "\n".join(line for seed in range(SEEDS) for line in told(seed))
    for trouble in ("is killed by", "is killed after", "is stopped", "the wall clock", "timeout", "connection_reset",
                    "connection_refused", ": 429", ": 503", "outcomes.refused", "in doubt", "is deleted",
                    "a replay, ", "a replay of event", "the replay is refused", "is cancelled"):  # fmt: skip
        assert trouble in everything, trouble


@pytest.mark.parametrize("seed", REPEATED)
def test_a_seed_tells_the_same_story_in_every_process(seed: int) -> None:
    """Neither time nor place nor the order of hashes shows in a history."""
    program = [sys.executable, "-c", PRINTED.format(seed=seed)]
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    elsewhere = subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout
    assert elsewhere.splitlines() == told(seed) != told(seed + 1)
