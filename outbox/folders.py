"""Folders that outlast a power cut: a name is only on disk once the folder it stands in was synced."""

import os
from pathlib import Path


def make_folder(path: Path) -> None:
    """Make a folder, and those it is in, so that they outlast a power cut. Raises OSError."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Return once the names in a folder are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
