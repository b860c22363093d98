"""Hypothesis for these tests: the same examples in every run, few enough to be quick, nothing kept between runs."""

from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import configuration, settings

configuration.set_hypothesis_home_dir(Path(__file__).parents[2] / ".venv" / "cache" / "hypothesis")
settings.register_profile("unit", derandomize=True, deadline=None, max_examples=30, database=None)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let the tests of these folders be defined under their own settings, and those of other folders under theirs."""
    before = settings.get_current_profile_name()
    settings.load_profile("unit")
    try:
        return (yield)
    finally:
        settings.load_profile(before)
