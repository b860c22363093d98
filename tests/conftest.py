"""What holds for every test: where CI is set, nothing may be skipped.

A skip says "this machine lacks something". On a developer's machine it is listed (-ra in pyproject.toml); on the
machine that decides whether a change is good it would be a promise nobody checked, so there it is a failure. What a
machine does not allow its user cannot be installed, and is only listed there too.
"""

import os
from collections.abc import Generator

import pytest

NOT_ALLOWED = "not allowed here: "
"""How the reason of a skip begins that no installation could prevent."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that skipped itself; an expected failure (xfail) is no skip."""
    report = yield
    if not hasattr(report, "wasxfail"):
        forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a file that skipped itself as a whole."""
    report = yield
    forbid_skip(report)
    return report


def forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure that names its reason, if CI is set."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    if report.skipped and os.environ.get("CI") and NOT_ALLOWED not in str(reason):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} may not be skipped where CI is set: {reason}"
