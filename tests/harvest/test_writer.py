"""The writer: never in the way of a reply, nothing lost in silence, nothing called kept before its commit."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from beadwork.errors import QueueError
from beadwork.harvest import writer as module
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import Kept
from beadwork.harvest.writer import QueueWriter

Make = Callable[[int], Kept]


class Gate:
    """A store that waits until it is opened, and fails as often as it is told to."""

    def __init__(self, failures: int = 0, *, opened: bool = True) -> None:
        self.open = threading.Event()
        if opened:
            self.open.set()
        self.failures = failures
        self.calls = 0
        self.stored: list[int] = []
        self.threads: set[str] = set()

    def add_all(self, frames: list[Kept]) -> list[int | None]:
        self.calls += 1
        self.threads.add(threading.current_thread().name)
        self.open.wait(30)
        if self.failures > 0:
            self.failures -= 1
            raise QueueError("the disk is full")
        self.stored += [kept.evaluation for kept in frames]
        return [kept.evaluation for kept in frames]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other quickly."""
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.05)


def test_writes_in_order_and_reports_after_the_commit(queue: Queue, path: Path, kept: Make) -> None:
    """Each report finds its frame in the database through a connection of its own."""
    seen: list[tuple[int, int]] = []

    def look(id: int, frame: Kept) -> None:
        with closing(sqlite3.connect(path)) as connection:
            (count,) = connection.execute("SELECT COUNT(*) FROM systems WHERE id = ?", (id,)).fetchone()
        seen.append((frame.evaluation, count))

    writer = QueueWriter(queue, on_kept=look)
    assert all(writer.offer(kept(seed)) for seed in (*range(8), 3))
    assert writer.flush(30)
    assert (writer.dropped, writer.pending, writer.error) == (0, 0, None)
    assert writer.close(30)
    assert len(queue) == 8  # one was there twice
    assert seen == [(seed, 1) for seed in range(8)]


def test_full_buffer_drops_and_says_so(kept: Make) -> None:
    """With a store that hangs, offers return at once; what does not fit is counted, what was taken is written later."""
    gate = Gate(opened=False)
    writer = QueueWriter(gate, max_pending=3)
    start = time.perf_counter()
    taken = [writer.offer(kept(seed)) for seed in range(5)]
    assert time.perf_counter() - start < 1.0
    assert taken == [True, True, True, False, False]
    assert (writer.dropped, writer.pending, gate.stored) == (2, 3, [])
    assert not writer.flush(0.05)
    gate.open.set()
    assert writer.close(30)
    assert gate.stored == [0, 1, 2]
    assert gate.threads == {"beadwork-queue"}


def test_error_is_reported_and_tried_again(kept: Make) -> None:
    """While the disk is full the frames wait and the error is there to read; then they are stored once, in order."""
    gate = Gate(failures=10**6)
    writer = QueueWriter(gate)
    for seed in range(3):
        assert writer.offer(kept(seed))
    deadline = time.monotonic() + 30
    while gate.calls < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(writer.error, QueueError)
    assert (gate.stored, writer.pending) == ([], 3)
    gate.failures = 0
    assert writer.flush(30)
    assert (writer.error, gate.stored) == (None, [0, 1, 2])
    assert writer.close(30)


def test_close_gives_up_in_time_and_keeps_the_error(kept: Make) -> None:
    """A store that never recovers: close returns, says that frames are left, and takes no more."""
    writer = QueueWriter(Gate(failures=10**6))
    assert writer.offer(kept(0))
    start = time.monotonic()
    assert not writer.close(0.3)
    assert time.monotonic() - start < 5
    assert writer.pending == 1
    assert "full" in str(writer.error)
    assert not writer.offer(kept(1))
    assert writer.dropped == 1


def test_close_saves_what_a_lock_delayed(path: Path, kept: Make) -> None:
    """A real queue, held by someone else while the writer is closed, and let go in time."""
    queue = Queue(path, create=True, patience=0.05)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        writer = QueueWriter(queue)
        writer.offer(kept(0))
        timer = threading.Timer(0.4, other.execute, ["ROLLBACK"])
        timer.start()
        assert writer.close(30)
        timer.join()
    assert (writer.pending, len(queue)) == (0, 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_bug_in_the_thread_is_not_silent(kept: Make) -> None:
    """An exception that nobody foresaw ends the thread loudly: error set, later frames counted as dropped."""

    class Broken:
        def add_all(self, frames: list[Kept]) -> list[int | None]:
            raise ZeroDivisionError("a bug")

    writer = QueueWriter(Broken())
    assert writer.offer(kept(0))
    assert not writer.flush(30)
    assert isinstance(writer.error, ZeroDivisionError)
    writer.close(30)
    assert not writer.offer(kept(1))
    assert (writer.pending, writer.dropped) == (1, 1)
