"""kill -9 of the server in mid-harvest costs nothing but time: not a frame, not the run, not a digit of it."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import time
from contextlib import closing

import numpy as np
import pytest

from beadwork.harvest.queue import Queue

#: steps that i-PI gets for each kill; a server is killed before it has answered for so many
STEPS = 15


def undisturbed(ipi, models, start, serve, folder, steps, options):
    """The same run with a server that lives."""
    run = ipi.Input(folder, [ipi.Forcefield(batch=4)], steps=steps).write()
    process = start.ipi(run)
    assert serve(run, *options) == 0
    assert process.wait(ipi.PATIENCE) == 0
    return run


def count(path) -> int:
    """Rows in the queue, 0 before there is one."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'systems'").fetchall():
            return 0
        return connection.execute("SELECT COUNT(*) FROM systems").fetchone()[0]


@pytest.mark.fault("beadwork is killed", "kill -9 at {kills} random instants while it writes to the queue; real i-PI")
@pytest.mark.parametrize(
    ("kills", "seed"), [(3, 1), pytest.param(20, 2, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_a_killed_server_loses_no_reported_frame(ipi, models, start, serve, fault, tmp_path, kills, seed) -> None:
    """The server is killed again and again at random instants while it writes to the queue, and started anew.

    The queue is whole and takes writes, every frame in it is one of the undisturbed run's, none is there twice, and
    i-PI ends with the output of the undisturbed run.
    """
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "native"]
    harvest = ["--queue", "q.db", "--keep-force", "0", "--cooldown", "0", "--keep-most", "10000", "--distance", "1e-9"]
    steps = STEPS * (kills + 1)
    calm = undisturbed(ipi, models, start, serve, tmp_path / "calm", steps, [*options, *harvest])
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4)], steps=steps).write()
    process = start.ipi(run)
    chance = random.Random(seed)
    path = run.folder / "q.db"
    before = 0
    for number in range(kills):
        server = start.beadwork("serve", run, *options, *harvest, "--out", f"out-{number}")
        wanted = before + chance.randrange(1, 4 * STEPS // 2)
        end = time.monotonic() + ipi.PATIENCE
        while count(path) < wanted:
            assert time.monotonic() < end, "the server does not harvest"
            assert server.poll() is None
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        server.send_signal(signal.SIGKILL)
        assert server.wait(10) == -signal.SIGKILL
        assert process.poll() is None, "i-PI has ended before the last kill"
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        before = count(path)
    server = start.beadwork("serve", run, *options, *harvest, "--out", "out-last")
    assert process.wait(10 * ipi.PATIENCE) == 0  # all the steps that are left, on whatever machine
    assert server.wait(ipi.PATIENCE) == 0
    rows = count(path)
    check_queue(path, calm)
    for name, expected in calm.properties().items():
        np.testing.assert_allclose(run.properties()[name], expected, rtol=1e-7, atol=0, err_msg=name)
    np.testing.assert_allclose(run.positions(), calm.positions(), rtol=1e-7, atol=0)
    off = np.abs(run.positions() / calm.positions() - 1).max()
    fault(
        f"a new server each time; i-PI ended with 0 after all {steps} steps, its positions within {off:.0e} of an "
        f"undisturbed run's; {rows} rows in the queue, each whole, once, and one of the undisturbed run's frames"
    )


def check_queue(path, calm) -> None:
    """No row is torn or twice, and the queue takes writes."""
    with closing(sqlite3.connect(path)) as connection:
        tables = ("systems", "keys", "text_key_values", "number_key_values", "species")
        counts = {t: connection.execute(f"SELECT COUNT(DISTINCT id) FROM {t}").fetchone()[0] for t in tables}
    assert len(set(counts.values())) == 1, counts
    rows, known = Queue(path).rows(), Queue(calm.folder / "q.db").rows()
    dropped = json.loads((calm.folder / "summary.json").read_text())["frames_dropped"]
    assert dropped == 0, f"the undisturbed run could not keep {dropped} frames, so there is nothing to compare with"
    assert len({row.fingerprint for row in rows}) == len(rows)
    all_known = np.stack([row.kept.frame.positions.ravel() for row in known])
    found = set()
    for row in rows:
        distances = np.abs(all_known - row.kept.frame.positions.ravel()).max(axis=1)
        nearest = int(distances.argmin())
        assert distances[nearest] < 1e-6, (  # Å
            f"row {row.id} of {len(rows)}, step {row.kept.step}, bead {row.kept.frame.bead}, is "
            f"{distances[nearest]:.1e} Å from row {known[nearest].id} of {len(known)}, step {known[nearest].kept.step}"
        )
        assert nearest not in found
        found.add(nearest)
        np.testing.assert_allclose(row.kept.force_spread, known[nearest].kept.force_spread, rtol=1e-5)
    first = rows[0]
    queue = Queue(path)
    assert queue.get(first.id).fingerprint == first.fingerprint
    moved = first.kept.frame.positions + np.arange(36).reshape(12, 3) / 100
    other = type(first.kept)(
        **{name: getattr(first.kept, name) for name in first.kept.__dataclass_fields__ if name != "frame"},
        frame=type(first.kept.frame)(first.kept.frame.numbers, moved, first.kept.frame.cell),
    )
    assert queue.add(other) is not None
