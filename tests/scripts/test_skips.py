import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPPING = """
import pytest

def test_skips() -> None:
    pytest.skip("no browser here")

def test_forbidden() -> None:
    pytest.skip("not allowed here: mounting")

@pytest.mark.skip(reason="not today")
def test_marked() -> None: ...

@pytest.mark.xfail(reason="known")
def test_known() -> None:
    assert False
"""
SKIPPED_FILE = "import pytest\n\npytest.importorskip('no_such_package')\n"


def run(folder: Path, *, ci: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on files that skip, below a copy of our conftest."""
    shutil.copy(CONFTEST, folder)
    (folder / "test_inner.py").write_text(SKIPPING)
    (folder / "test_file.py").write_text(SKIPPED_FILE)
    options = ["-ra", "--continue-on-collection-errors", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder)],
        env={"CI": ci, "PATH": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_skips_fail_in_ci(tmp_path: Path) -> None:
    """Where CI is set a skipped test or file is a failure that names its reason; an expected failure is none.

    What the machine does not allow is no failure either, but listed.
    """
    result = run(tmp_path, ci="true")
    assert result.returncode != 0
    assert "may not be skipped where CI is set: Skipped: no browser here" in result.stdout
    assert "may not be skipped where CI is set: Skipped: could not import 'no_such_package'" in result.stdout
    assert "1 skipped" in result.stdout
    assert "not allowed here: mounting" in result.stdout


def test_skips_are_listed_elsewhere(tmp_path: Path) -> None:
    """Elsewhere a skipped test passes, and is listed with its reason."""
    result = run(tmp_path, ci="")
    assert result.returncode == 0, result.stdout
    assert "no browser here" in result.stdout
    assert "1 xfailed" in result.stdout
