"""One generation of `beadwork learn` on a solute that Δ never saw: whose novelty its labels mend, and whose not.

Real i-PI, the shipped baseline, which learned from water alone, and Δ committees that are trained here.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest

from beadwork.frame import Frame
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.label import spec as labellers
from beadwork.label.run import label
from beadwork.loop.loop import Loop, generations, read_loop
from beadwork.potential.bundle import members_of
from beadwork.potential.load import load
from beadwork.train.committee import train_committee
from beadwork.train.dataset import from_queue
from support import loop_project as loops
from support import truth

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 60
TRAIN = {
    "members": 2,
    "epochs": 6,
    "batch_size": 5,
    "hidden_irreps": "8x0e",
    "r_max": 4.0,
    "held_out": 0.2,
    "apart": 20,
    "jobs": {"workers": 1},
}


def hydronium(waters: int = 2) -> ase.Atoms:
    """H3O+ and its nearest waters, out of the shipped box; in an empty cell of 20 Å."""
    box = ase.io.read(truth.ROOT / "inputs" / "zundel-water" / "init.xyz")
    cell = np.full(3, 9.86)
    ways = box.positions - box.positions[0]
    ways -= np.round(ways / cell) * cell
    oxygens = np.flatnonzero(box.numbers == 8)[1:]
    near = oxygens[np.argsort(np.linalg.norm(ways[oxygens], axis=1))[:waters]]
    held = [0, 1, 2, 3, *(int(o) + k for o in near for k in range(3))]
    for o in near:  # molecules stay whole
        ways[o : o + 3] -= np.round((ways[o : o + 3] - ways[o]) / cell) * cell
    return ase.Atoms(box.numbers[held], ways[held] + 10.0, cell=[20.0] * 3, pbc=True)


def simulations(ipi: Any, folder: Path) -> dict[str, str]:
    """Two of the same solute, with other velocities from a start that is a little other: as two blocks for training."""
    found = {}
    for seed, name in enumerate(("one", "two")):
        atoms = hydronium()
        atoms.positions += np.random.default_rng(seed).normal(0, 0.03, atoms.positions.shape)
        run = ipi.Input(
            folder / name, [ipi.Forcefield(batch=2, latency=1e-3)], beads=2, steps=STEPS, atoms=atoms
        ).write()
        run.path.write_text(run.path.read_text().replace("<seed>4242<", f"<seed>{seed}<"))
        found[name] = str(run.path)
    return found


def learned_water(loop: Loop, folder: Path) -> None:
    """Train the committee that the loop begins with, on neutral water by the loop's labeller."""
    queue = Queue(folder / "neutral.db", create=True)
    for n, frame in enumerate(truth.clusters(60, 5)):
        unknown = np.full(len(frame.numbers), np.nan)
        queue.add(KeptFrame(frame, n, np.nan, unknown, np.empty(0), (), "c" * 64))
    label(queue, labellers.read_spec(loop.labeller))
    train_committee(from_queue(queue, loop.baseline), loop.baseline, loop.delta, loop.train, None, print, "test")


def test_labels_mend_deltas_novelty_and_not_the_baselines(ipi: Any, tmp_path: Path) -> None:
    """All steps of H3O+ in water are new to a Δ of neutral water. Once its labels are learned none is, and no frame is
    asked for; the baseline's novelty stays what it was, and log and page name it. And Δ has not become blind by that:
    OH- and an O-H bond of 1.4 Å, of which it has no label, are as new to it as before."""
    path = loops.project(
        ipi,
        tmp_path,
        labels=200,
        simulations=simulations(ipi, tmp_path),
        run={"keep-force": [], "cooldown": 2, "keep-most": 1000, "engine": "torchscript"},
        train=TRAIN,
        delta="neutral",
    )
    loop = read_loop(path)
    learned_water(loop, tmp_path)
    ended = subprocess.run(
        loops.command(path),
        env=loops.environment(),
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    first, last = (generation.stages["simulate"]["runs"] for generation in generations(loop.folder))
    for name in loop.simulations:
        before, after = first[name], last[name]
        assert before["flagged"] == before["steps"] == STEPS + 1
        assert len(before["kept"]) > STEPS / 3
        assert before["novelty"]["delta"]["largest"] > 1.5
        assert after["novelty"]["delta"]["largest"] < 1.0
        assert (after["flagged"], after["kept"]) == (0, [])
        assert after["novelty"]["baseline"]["new"] == STEPS + 1
        was, found = (run["novelty"]["baseline"]["largest"] for run in (before, after))
        assert found == pytest.approx(was, rel=0.05)
        assert found > 1.8  # 1.93 of the baseline that learned from beads, 2.0 and more of the one before
    rows = Queue(loop.folder / "queue.db").rows()
    assert {row.kept.why for row in rows} == {("novelty",)}
    assert min(row.kept.novelty["delta"].max() for row in rows) >= 1.0
    said = [
        line for line in ended.stderr.splitlines() if "gen-001" in line and "new to the baseline at 61 of 61" in line
    ]
    assert len(said) == 2
    for text in (*said, (loop.folder / "generations.html").read_text()):
        assert "need labels of the baseline's own level and a new baseline" in text
    start = hydronium()
    hydroxide, stretched = start.copy(), start.copy()
    del hydroxide[[1, 2]]
    bond = start.positions[5] - start.positions[4]
    stretched.positions[5] = start.positions[4] + 1.4 * bond / np.linalg.norm(bond)
    committees = [load(None, members_of([folder]), "torchscript") for folder in (loop.delta, loop.folder / "current")]
    for known, atoms in ((True, start), (False, hydroxide), (False, stretched)):
        novelty = [committee.evaluate([Frame.from_atoms(atoms)]).novelty for committee in committees]
        old, new = (0.0 if found is None else found.largest[0] for found in novelty)
        assert old > 1.0
        assert (new < 1.0) == known
