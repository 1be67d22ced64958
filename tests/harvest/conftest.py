"""Frames, kept frames and queues for the tests of the harvest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from support.kept_frames import make_kept


@pytest.fixture
def kept() -> Callable[[int], KeptFrame]:
    """The maker of kept frames, one a seed."""
    return make_kept


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the queue is to be."""
    return tmp_path / "queue.db"


@pytest.fixture
def queue(path: Path) -> Queue:
    """An empty queue."""
    return Queue(path, create=True, patience=5)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can reach, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
