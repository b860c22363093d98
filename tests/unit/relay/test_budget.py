import pytest

from outbox.relay.budget import portions


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([], []),
        ([0], [[0]]),  # an event whose record is damaged counts as no bytes
        ([0, 5, 0], [[0, 5, 0]]),
        ([4, 6, 1], [[4, 6], [1]]),
        ([11, 0, 10], [[11], [0, 10]]),
        ([3, 20, 3], [[3], [20], [3]]),
    ],
)
def test_portions_are_full_and_none_is_lost(sizes: list[int], runs: list[list[int]]) -> None:
    """Each run is as much as fits, or one item, be it of any size."""
    assert portions(sizes, lambda size: size, 10) == runs
