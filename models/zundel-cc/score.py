"""How wrong the models are where a simulation goes: labels of its own frames, about dc = 0 and about |dc| = 0.4.

    python models/zundel-cc/score.py pick build/zundel-cc/runs scored.extxyz          # of the classical pieces
    beadwork queue add scored.db scored.extxyz --not-periodic
    beadwork label scored.db --with models/zundel-cc/labeller.toml
    beadwork queue export scored.db scored-labelled.extxyz --status labelled
    python models/zundel-cc/score.py compare scored.extxyz scored-labelled.extxyz

What the labels add to F(0.4) - F(0) is, to first order, the mean of label - model among the frames of the one place
less that among those of the other.

`pick` of a folder with simulation.pos_*.xyz, positions of every bead, takes beads: the place is that of the centroid,
and of each frame every eighth bead stands for all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.units import kJ, mol

from beadwork.analyse.coordinate import parse
from beadwork.frame import Frame
from beadwork.potential.load import load

HERE = Path(__file__).parent
DC = parse("dc:O1,O2")
PLACES, WIDTH = (0.0, 0.4), 0.05
#: structures about each place, and every which bead of a frame may be one
FRAMES, STRIDE = 30, 8


def dc(atoms: Atoms) -> float:
    """Of one structure."""
    return abs(float(DC.values(atoms.numbers, atoms.positions[None])[0, 0]))


def pick(runs: Path, out: Path) -> None:
    """Frames of a run with positions of every bead, or of all classical pieces, far from each other in time."""
    found: list[list[Atoms]] = [[] for _ in PLACES]
    for whole, one in quantum(runs) if (runs / "simulation.pos_00.xyz").exists() else classical(runs):
        where = dc(whole)
        for number, place in enumerate(PLACES):
            if abs(where - place) < WIDTH:
                moved = one.positions - one.positions.mean(axis=0)
                found[number].append(Atoms(one.symbols, moved, info={"dc": where}))
    spaced = [[one[k] for k in np.linspace(0, len(one) - 1, min(FRAMES, len(one))).astype(int)] for one in found]
    # in turn: a part will do
    chosen = [atoms for both in zip_longest(*spaced) for atoms in both if atoms is not None]
    ase.io.write(out, chosen, format="extxyz")
    print(f"{len(chosen)} of {sum(map(len, found))} frames")


def classical(runs: Path) -> Iterator[tuple[Atoms, Atoms]]:
    """Each structure, twice."""
    for folder in sorted(runs.glob("classical-*")):
        trajectory = ase.io.read(folder / "simulation.centroid.xyz", ":")
        yield from ((atoms, atoms) for atoms in trajectory[len(trajectory) // 11 :])


def quantum(run: Path) -> Iterator[tuple[Atoms, Atoms]]:
    """The centroid and each of some beads of each frame."""
    files = sorted(run.glob("simulation.pos_*.xyz"))
    for number, beads in enumerate(zip(*(ase.io.iread(file) for file in files), strict=False)):
        centroid = Atoms(beads[0].symbols, np.mean([bead.positions for bead in beads], axis=0))
        yield from ((centroid, bead) for bead in beads[number % STRIDE :: STRIDE])


def compare(picked: Path, labelled: Path) -> None:
    """Print label - model by place."""
    atoms = ase.io.read(labelled, ":")
    model = load(HERE / "baseline", [HERE], dtype="float64")
    energies = model.evaluate([Frame.from_atoms(one) for one in atoms]).energies
    wrong = (np.array([one.info["REF_energy"] for one in atoms]) - energies) * mol / kJ
    # a queue keeps a structure and its label
    known = ase.io.read(picked, ":")
    places = np.array([one.positions for one in known])
    nearest = [int(np.abs(places - one.positions).max(axis=(1, 2)).argmin()) for one in atoms]
    where = np.array([known[k].info["dc"] for k in nearest])
    means = []
    for place in PLACES:
        mine = wrong[np.abs(where - place) < WIDTH]
        means.append((mine.mean(), mine.std(ddof=1) / np.sqrt(len(mine))))
        print(f"|dc| = {place:g}: {len(mine)} frames, label - model scatters by {mine.std(ddof=1):.2f} kJ/mol")
    (first, a), (second, b) = means
    print(f"the labels add {second - first:.2f} ± {np.hypot(a, b):.2f} kJ/mol to F({PLACES[1]:g}) - F({PLACES[0]:g})")


STEPS: dict[str, Callable[..., None]] = {"pick": pick, "compare": compare}

if __name__ == "__main__":
    step, *paths = sys.argv[1:]
    STEPS[step](*map(Path, paths))
