"""The writer: never in the way of a reply, nothing lost in silence, nothing called kept before its commit."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from beadwork.errors import QueueError
from beadwork.harvest import row
from beadwork.harvest import writer as module
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.harvest.writer import QueueWriter

Make = Callable[[int], KeptFrame]


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

    def add_all(self, frames: list[KeptFrame]) -> list[int | None]:
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
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_SECONDS", 0.05)


def test_writes_in_order_and_reports_after_the_commit(queue: Queue, path: Path, kept: Make) -> None:
    """Each report finds its frame in the database through a connection of its own."""
    seen: list[tuple[int, int]] = []

    def look(id: int, frame: KeptFrame) -> None:
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


def test_bug_in_the_thread_is_not_silent(kept: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """An exception that nobody foresaw: its traceback once, error set, and the frames wait until it does not come."""

    class Broken:
        calls = 0

        def add_all(self, frames: list[KeptFrame]) -> list[int | None]:
            self.calls += 1
            if self.calls < 4:
                raise ZeroDivisionError("a bug")
            return [kept.evaluation for kept in frames]

    broken = Broken()
    seen: list[int] = []
    writer = QueueWriter(broken, on_kept=lambda id, kept: seen.append(id))
    assert writer.offer(kept(7))
    while writer.error is None:
        time.sleep(0.001)
    assert isinstance(writer.error, ZeroDivisionError)
    assert writer.flush(30)
    assert (seen, writer.error, writer.dropped) == ([7], None, 0)
    assert writer.close(30)
    assert capsys.readouterr().err.count("ZeroDivisionError: a bug") == 1


#: keeps 50 frames of a fresh process, for which there is no descriptor for a second
NO_DESCRIPTORS = """
import os, resource, sys, time
from support.kept_frames import make_kept
from beadwork.harvest.queue import Queue
from beadwork.harvest.writer import QueueWriter

seen = []
writer = QueueWriter(Queue(sys.argv[1], create=True), on_kept=lambda id, kept: seen.append(id))
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
assert all(writer.offer(make_kept(seed)) for seed in range(50))
time.sleep(1)
assert writer.pending == 50 and writer.error is not None
for one in held:
    os.close(one)
assert writer.flush(30), writer.error
assert writer.close(30) and writer.error is None and writer.dropped == 0
assert sorted(seen) == list(range(1, 51)), seen
"""


def test_no_descriptor_for_a_second(path: Path) -> None:
    """All 50 frames are kept, and reported, although nothing could be opened when they came: neither the queue nor the
    description of the package, whose version every row has."""
    done = subprocess.run(
        [sys.executable, "-c", NO_DESCRIPTORS, str(path)],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(Queue(path)) == 50


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_whatever_the_machine_says_the_frames_wait(
    queue: Queue, kept: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An error of the system at any place of the writing, the making of a row too, ends no writer."""
    failing = [OSError(number, os.strerror(number))] * 3

    def version(*ignored: object) -> tuple[object, dict[str, object], dict[str, object]]:
        if failing:
            raise failing.pop()
        return to_ase(*ignored)

    to_ase = row.to_ase
    monkeypatch.setattr("beadwork.harvest.queue.to_ase", version)
    writer = QueueWriter(queue)
    assert all(writer.offer(kept(seed)) for seed in range(5))
    assert writer.flush(30)
    assert writer.close(30)
    assert (failing, len(queue), writer.dropped) == ([], 5, 0)
