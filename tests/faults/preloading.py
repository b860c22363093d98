"""Small libraries in C that are preloaded into a process (LD_PRELOAD), and the memory that is shared with them."""

import hashlib
import mmap
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.harness import ROOT


def shared(control: Path) -> mmap.mmap:
    """Return the whole of a file as memory that is shared with whoever else maps it."""
    with control.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def library(source: str) -> Path:
    """Return the library of a C file beside this one, built if it is not there yet.

    Skips the test where that is impossible.
    """
    path = Path(__file__).with_name(source)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    built = ROOT / ".venv" / "cache" / f"{path.stem}-{digest}.so"
    if not built.exists():
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler: apt install gcc libc6-dev")
        draft = built.with_suffix(f".{os.getpid()}")
        built.parent.mkdir(parents=True, exist_ok=True)
        options: Mapping[str, str] = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(
            [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o", draft, path, "-ldl"],
            capture_output=True, text=True, check=False, env=options,
        )  # fmt: skip
        if "stdio.h: No such file" in done.stderr or "features.h: No such file" in done.stderr:
            pytest.skip("no C library's headers: apt install libc6-dev")
        assert done.returncode == 0, done.stderr
        draft.rename(built)
    return built
