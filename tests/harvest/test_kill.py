"""kill -9 at random instants: what was reported kept is kept, whole and once, and the queue goes on."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import ase.db
import numpy as np
import pytest

from beadwork.harvest.queue import Queue
from support.kept_frames import make_kept

#: says which frames are kept, each after its commit; offers each frame twice
PROGRAM = textwrap.dedent(
    """
    import itertools, os, sys
    from support.kept_frames import make_kept
    from beadwork.harvest.queue import Queue
    from beadwork.harvest.writer import QueueWriter
    from beadwork.harvest.distance import signature
    signature(make_kept(0).frame)  # whatever is slow the first time
    os.write(1, b"ready\\n")
    writer = QueueWriter(
        Queue(sys.argv[1], create=True), max_pending=4, on_kept=lambda id, kept: os.write(1, b"%d\\n" % kept.evaluation)
    )
    for kept in map(make_kept, itertools.count(int(sys.argv[2]))):
        while not (writer.offer(kept) and writer.offer(kept)):
            writer.flush(1.0)
    """
)


@pytest.mark.fault(
    "the queue's writer is killed", "kill -9, while the queue is being made and amid writing (instants of seed {seed})"
)
@pytest.mark.parametrize("seed", range(3))
def test_killed_writer_leaves_every_reported_frame(path: Path, seed: int, fault: Callable[[str], None]) -> None:
    """One kill soon after the start, often while the queue is being made, one amid writing; then all is counted."""
    chance = random.Random(seed)
    reported: list[int] = []
    for round in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), str(1000 * round)],
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"ready\n"
            for _ in range(round * chance.randrange(1, 12)):
                reported.append(int(child.stdout.readline()))
            time.sleep(0.06 * chance.random())
        finally:
            child.send_signal(signal.SIGKILL)
        # a report is one short write to a pipe: it arrived whole or not at all
        reported += [int(line) for line in child.stdout.read().split()]
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL

    queue = Queue(path, create=True)
    assert queue.add(make_kept(99_999)) is not None  # it opens and takes writes
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with closing(sqlite3.connect(path)) as connection:
        counts = {
            table: connection.execute(f"SELECT COUNT(DISTINCT id) FROM {table}").fetchone()[0]
            for table in ("systems", "keys", "text_key_values", "number_key_values", "species")
        }
    assert len(set(counts.values())) == 1, counts  # no row is torn

    db = ase.db.connect(path, use_lock_file=False)
    with db:
        rows = list(db.select())
    stored = [row.evaluation for row in rows]
    assert len(stored) == len(set(stored))  # none twice
    assert set(reported) <= set(stored)  # none lost
    assert reported
    assert len(reported) == len(set(reported))
    for row in rows:
        made = make_kept(row.evaluation)
        np.testing.assert_array_equal(row.positions, made.frame.positions)
        np.testing.assert_array_equal(row.data["force_spread"], made.force_spread)
    assert not list(path.parent.glob("*.lock"))
    fault(f"{len(reported)} frames reported, all of them among the {len(stored)} rows; no row torn or there twice")
