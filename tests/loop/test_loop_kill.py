"""SIGKILL in every stage of `beadwork learn`, and between write and commit: it goes on, no label is lost or made twice.

A dozen kills of one loop, one after the other, each followed by the same command again; the last call ends the loop.
"""

from __future__ import annotations

import hashlib
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beadwork.harvest.queue import CLAIMED, LABELLED, Queue
from beadwork.loop.loop import generations
from beadwork.potential.bundle import check, members_of
from beadwork.train.dataset import Dataset
from support import loop_project as loops

# one loop goes through all of them, in this order: so `make faults` gives each worker whole files
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

#: instants are drawn from the first so many seconds of a stage; where it is shorter, it is killed at its end. Those of
#: labelling count from the first call, before which there is nothing in flight, and end before the last of three
SECONDS = {"simulate": 12.0, "choose": 2.0, "label": 1.2, "train": 20.0, "validate": 2.0, "swap": 0.05}
CHANCE = random.Random(20)
KILLS = [
    ("row", ""),  # first: it wants a simulation that has not begun
    ("all", "simulate"),
    ("stage", "simulate"),
    ("stage", "choose"),
    ("call", "label"),
    ("label", ""),
    ("all", "train"),
    ("replace", "delta-1"),
    ("record", "train"),
    ("stage", "validate"),
    ("replace", "current"),
    ("stage", "swap"),
]
PROVOKED = {
    "all": "SIGKILL of the loop, i-PI and the server, {:.2f} s into the stage `{}`",
    "stage": "SIGKILL of the loop alone, {:.2f} s into the stage `{}`",
    "call": "SIGKILL of the loop alone, in a call of the labeller, {:.2f} s after the first one has begun",
    "row": "SIGKILL of the server between the write of harvested frames and their commit",
    "label": "SIGKILL between the write of a label into the queue and its commit",
    "replace": "SIGKILL when `{1}` is written and before it is put in its place",
    "record": "SIGKILL between the end of the stage `{1}` and its record",
}


def orders() -> list[Any]:
    """Each kill with its instant, and what the table says of it."""
    found = []
    for number, (kind, name) in enumerate(KILLS):
        seconds = CHANCE.uniform(0, SECONDS.get(name, 0.0))
        order = {"row": "row", "label": "label"}.get(kind, f"{kind}:{name}")
        order += f":{seconds:.3f}" if kind in ("all", "stage", "call") else ""
        mark = pytest.mark.fault(
            f"the loop is killed ({number + 1} of {len(KILLS)})", PROVOKED[kind].format(seconds, name)
        )
        found.append(pytest.param(order, marks=mark, id=order))
    return found


@dataclass
class Project:
    """The loop and what was seen of it. flying: how often each frame was being labelled when a kill came."""

    path: Path
    flying: Counter[str] = field(default_factory=Counter)
    labelled: dict[int, Any] = field(default_factory=dict)

    @property
    def queue(self) -> Path:
        return self.path.parent / "loop" / "queue.db"

    def look(self) -> set[str]:
        """The queue is whole, and no label has gone or changed. Returns the frames that were being labelled."""
        with closing(sqlite3.connect(self.queue)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = Queue(self.queue).rows()
        assert len({row.fingerprint for row in rows}) == len(rows)
        now = {row.id: row.label["energy"] for row in rows if row.status == LABELLED and row.label is not None}
        assert self.labelled.items() <= now.items()
        self.labelled = now
        return {identity(row.kept.frame.positions) for row in rows if row.status == CLAIMED}


def identity(positions: np.ndarray) -> str:
    """As the truth's diary has it."""
    return hashlib.sha256(np.round(positions, 9).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def project(ipi, tmp_path_factory) -> Project:
    """A loop of one generation, in which a label takes half a second."""
    return Project(loops.project(ipi, tmp_path_factory.mktemp("project"), steps=40, seconds=0.5))


def recorded(project: Project) -> set[tuple[str, str]]:
    """The stages that are done, of all generations."""
    return {(g.folder.name, stage) for g in generations(project.path.parent / "loop") for stage in g.stages}


def killed_in_a_call(project: Project, seconds: float) -> subprocess.CompletedProcess[str]:
    """The loop, killed from here: so long after its first call has begun, and while one is under way."""
    folder = project.path.parent
    before = len(loops.diary(folder, "calls"))
    with (
        (folder / "killed.log").open("w+") as log,
        subprocess.Popen(loops.command(project.path), env=loops.environment(), stdout=log, stderr=log) as process,
    ):
        try:
            until = time.monotonic() + 1500
            while process.poll() is None and len(loops.diary(folder, "calls")) == before:
                assert time.monotonic() < until
                time.sleep(0.01)
            time.sleep(seconds)
            while process.poll() is None and set(loops.diary(folder, "calls")) == set(loops.diary(folder, "ends")):
                time.sleep(0.01)
        finally:
            process.kill()
        process.wait()
        log.seek(0)
        return subprocess.CompletedProcess(process.args, process.returncode, "", log.read())


@pytest.mark.parametrize("order", orders())
def test_a_kill_leaves_the_queue_whole_and_every_label(project, fault, order) -> None:
    """The process dies where it was told to, the queue is whole, and every label that was there is there."""
    before = recorded(project)
    command = loops.command(project.path, str(loops.HERE / "loop_runner.py"), order)
    kind, _, instant = order.partition(":label:")
    if kind == "call":
        ended = killed_in_a_call(project, float(instant))
    else:
        ended = subprocess.run(
            command, env=loops.environment(), capture_output=True, text=True, timeout=1500, check=False
        )
    if order == "row":  # the server died, not the loop
        assert ended.returncode == 3, ended.stderr[-3000:]
        assert "exit code -9" in ended.stderr
    else:
        assert ended.returncode == -signal.SIGKILL, ended.stderr[-3000:]
    claimed = project.look()
    if order != "label":  # there it was kept safe already, and need not be computed again
        project.flying.update(claimed)
    rows = Queue(project.queue).rows()
    calls = loops.diary(project.path.parent, "calls")
    if kind == "call":  # one frame was in flight, and is in the queue as such
        assert len(claimed) == 1
        assert claimed == set(calls) - set(loops.diary(project.path.parent, "ends"))
    happened = (
        f"ended with {ended.returncode}; queue whole: {len(rows)} frames, {len(project.labelled)} labels, "
        f"{len(calls)} calls of the labeller; {len(recorded(project))} stages on record"
    )
    assert before <= recorded(project)
    print(f"{order:>32}  {happened}")
    fault(happened)


@pytest.mark.fault("the loop is killed, and goes on", "the same command once more after the twelve kills")
def test_after_all_kills_each_frame_was_computed_once(project, fault) -> None:
    """After all this the loop ends as if nothing had been: each distinct frame was computed once (but for the one that
    a kill came upon), each label is in the dataset, and nothing runs any more."""
    command = loops.command(project.path)
    ended = subprocess.run(command, env=loops.environment(), capture_output=True, text=True, timeout=1500, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    project.look()
    folder = project.path.parent
    first, last = generations(folder / "loop")
    assert list(first.stages) == ["begin", "simulate", "choose", "label", "train", "validate", "swap"]
    assert list(last.stages) == ["begin", "simulate", "end"]
    calls, ends = Counter(loops.diary(folder, "calls")), Counter(loops.diary(folder, "ends"))
    rows = {row.id: row for row in Queue(folder / "loop" / "queue.db").rows(status=LABELLED)}
    assert set(rows) == set(first.stages["choose"]["rows"])
    assert set(calls) == set(ends) == {identity(row.kept.frame.positions) for row in rows.values()}
    for name, count in calls.items():
        assert count <= 1 + project.flying[name], "a frame that nobody was killed at was computed twice"
    again = sum(calls.values()) - len(calls)
    committee = first.folder / "committee"
    assert {e.row for e in Dataset.read(committee).examples} == set(rows)
    for member in members_of([committee]):
        check(member)
    assert not list(first.folder.glob("water/group"))
    happened = (
        f"ended with 0; {len(rows)} labels of {len(calls)} distinct frames by {sum(calls.values())} calls, {again} of "
        f"them begun again after a kill in their midst, {sum(ends.values()) - len(ends)} finished twice; all labels "
        "learned"
    )
    print(happened)
    fault(happened)
