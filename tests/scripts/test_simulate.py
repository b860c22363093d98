import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from outbox.journal.claims import Claims
from scripts.lib import simulate
from tests.world import chaos

SIMULATE = Path(__file__).parents[2] / "scripts" / "simulate"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    return subprocess.run([SIMULATE, *arguments], capture_output=True, text=True, check=False)


def test_many_seeds_are_played_and_summed_up() -> None:
    """Stories that hold are told in one line."""
    done = run("--seeds", "3", "--first", "8", "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("3 stories held: ")


def test_one_seed_is_told() -> None:
    """A seed by itself prints its history."""
    done = run("--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the settings: " in done.stdout
    assert done.stdout.splitlines()[-1].endswith("is stopped")


def test_a_failing_seed_is_printed_with_its_history_and_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bug planted the run ends at the first seed that notices, and with 1; replayed, that tells the same."""

    async def nothing(self: Claims) -> set[int]:
        return set()

    monkeypatch.setattr(Claims, "unsettled_webhooks", nothing)
    many = CliRunner().invoke(simulate.main, ["--first", "12"])
    assert many.exit_code == 1
    story, _, command = many.output.rpartition("\n\nreplay it with: scripts/simulate ")
    assert "still unsettled" in story
    assert "life 1 begins" in story
    again = CliRunner().invoke(simulate.main, command.split())
    assert (again.exit_code, again.output.strip()) == (1, story.strip())


def test_a_story_that_changes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something outside of the world has a say, a seed that is played twice tells."""
    seeds = iter((1, 2))
    monkeypatch.setattr(simulate, "simulate", lambda _seed: chaos.simulate(next(seeds)))
    outcome = simulate.play_seed(0)
    assert outcome.broken.startswith("seed 0 told two stories: ")
