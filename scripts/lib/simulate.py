"""Many seeds, each a story of its own, played in the simulated world of `tests/world` until one of them breaks."""

import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import rich_click as click
from msgspec import Struct
from rich.console import Console
from rich.progress import track

from tests.world.chaos import simulate
from tests.world.history import DAY_S
from tests.world.playing import BrokenWorldError, report

TWICE = 10
"""Every seed divisible by this is played twice, and must tell the same story both times."""


class Outcome(Struct):
    """What came of a seed: the virtual seconds it took, the POSTs that were made, and its report if it broke."""

    seed: int
    lasted_s: float = 0.0
    posts: int = 0
    broken: str = ""


def play_seed(seed: int) -> Outcome:
    """Play the story of a seed, some of them twice."""
    try:
        world = simulate(seed)
        again = simulate(seed) if seed % TWICE == 0 else world
    except BrokenWorldError as error:
        return Outcome(seed, broken=report(error.world))
    told, retold = world.history.lines(), again.history.lines()
    if told != retold:
        line = next((number for number, pair in enumerate(zip(told, retold, strict=False)) if pair[0] != pair[1]), -1)
        return Outcome(seed, broken=f"seed {seed} told two stories: {told[line]!r} and {retold[line]!r}")
    posts = sum(len(receiver.calls) for receiver in world.receivers.values())
    return Outcome(seed, world.lasted_s, posts)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seeds", default=100, show_default=True, help="How many seeds to play.", metavar="N")
@click.option("--first", default=0, show_default=True, help="The first of them.", metavar="K")
@click.option("--seed", type=int, help="Play this one alone, and print its history.", metavar="K")
@click.option("--jobs", default=1, show_default=True, help="How many processes play.", metavar="N")
def main(seeds: int, first: int, seed: int | None, jobs: int) -> None:
    """Play random stories in a simulated world: crashes, clocks that jump, full disks, receivers that misbehave.

    Each seed is one story. The first that breaks a promise is printed with its history, and the exit code is 1.
    """
    if seed is not None:
        sys.exit(tell(seed))
    started = time.monotonic()
    console = Console(stderr=True)
    outcomes = []
    for outcome in track(
        played(range(first, first + seeds), jobs), "playing", seeds, console=console, disable=not console.is_terminal
    ):
        if outcome.broken:
            print(outcome.broken)
            print(f"\nreplay it with: scripts/simulate --seed {outcome.seed}")
            sys.exit(1)
        outcomes.append(outcome)
    days = sum(outcome.lasted_s for outcome in outcomes) / DAY_S
    posts = sum(outcome.posts for outcome in outcomes)
    print(f"{len(outcomes)} stories held: {days:,.0f} days and {posts:,} POSTs in {time.monotonic() - started:.0f} s")


def tell(seed: int) -> int:
    """Print the history of a seed; return the exit code."""
    try:
        print(report(simulate(seed)))
    except BrokenWorldError as error:
        print(report(error.world))
        return 1
    return 0


def played(seeds: Iterable[int], jobs: int) -> Iterator[Outcome]:
    """Play seeds in so many processes; yield their outcomes in order."""
    if jobs == 1:
        yield from map(play_seed, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(play_seed, seeds)
        finally:
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main(prog_name="scripts/simulate")
