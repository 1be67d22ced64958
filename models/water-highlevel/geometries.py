"""Start geometries of the clusters: short GFN2-xTB molecular dynamics (`pip install tblite`), hot like quantum protons.

python models/water-highlevel/geometries.py OUT.xyz

GFN2-xTB only places the atoms: no energy of it is used. Quantum protons spread wider than classical ones at 300 K, so
the temperatures are higher, and every frame's hydrogens are moved at random by some hundredths of an Å.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.constraints import Hookean
from ase.md.langevin import Langevin
from ase.optimize import FIRE
from tblite.ase import TBLite
from tqdm import tqdm

SEED = 20261121
#: (kind, waters beside it): frames
WANTED = {
    ("H2O", 0): 20, ("H2O", 1): 15, ("H2O", 2): 15, ("H2O", 3): 15, ("H2O", 4): 8,
    ("H3O", 0): 15, ("H3O", 1): 15, ("H3O", 2): 20, ("H3O", 3): 16, ("H3O", 4): 8,
    ("H2", 0): 24, ("H2", 1): 15, ("H2", 2): 20, ("H2", 3): 16, ("H2", 4): 8,
}  # fmt: skip
WATER = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
SOLUTES = {
    "H2O": (WATER, 0),
    "H3O": (Atoms("OHHH", [[0, 0, 0.3], [0.94, 0, 0], [-0.47, 0.81, 0], [-0.47, -0.81, 0]]), 1),
    "H2": (Atoms("HH", [[0, 0, 0], [0.74, 0, 0]]), 0),
}


def assemble(solute: Atoms, waters: int, random: np.random.Generator) -> Atoms:
    """Put waters round a solute, turned at random, no two molecules closer than 2.4 Å."""
    whole = solute.copy()
    while waters:
        guest = WATER.copy()
        guest.euler_rotate(*random.uniform(0, 360, 3), center="COM")
        way = random.normal(size=3)
        guest.translate(way / np.linalg.norm(way) * random.uniform(2.6, 4.0) + whole.get_center_of_mass())
        gaps = np.linalg.norm(guest.positions[:, None] - whole.positions[None], axis=2)
        if gaps[0].min() > 2.4 and gaps.min() > 1.7 and gaps.min() < 3.0:
            whole += guest
            waters -= 1
    return whole


def frames(kind: str, waters: int, count: int, random: np.random.Generator) -> list[Atoms]:
    """Sample one composition from several starts, at 300 and 600 K."""
    found: list[Atoms] = []
    solute, charge = SOLUTES[kind]
    while len(found) < count:
        atoms = assemble(solute, waters, random)
        atoms.calc = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
        oxygens = [a.index for a in atoms if a.symbol == "O"]
        middle = atoms.get_center_of_mass()
        # a soft wall: what evaporates teaches nothing
        atoms.set_constraint([Hookean(a1=i, a2=middle, rt=2.2 + waters * 0.5, k=0.5) for i in oxygens])
        FIRE(atoms, logfile=None).run(fmax=0.3, steps=60)
        hot = 300 if len(found) % 2 else 600
        motion = Langevin(atoms, 0.5 * units.fs, temperature_K=hot, friction=0.02 / units.fs, rng=random)
        for _ in range(min(4, count - len(found))):
            motion.run(150)
            frame = Atoms(atoms.symbols, atoms.positions)
            hydrogens = frame.numbers == 1
            frame.positions[hydrogens] += random.normal(0, 0.05, (hydrogens.sum(), 3))
            frame.info |= {"system": f"{kind}+{waters}H2O", "charge": charge}
            found.append(frame)
    return found


def main(out: Path) -> None:
    """Write all of them, mixed, so that any beginning of the file is a fair sample."""
    random = np.random.default_rng(SEED)
    every: list[Atoms] = []
    for (kind, waters), count in tqdm(WANTED.items(), unit="composition"):
        every += frames(kind, waters, count, random)
    ase.io.write(out, [every[i] for i in random.permutation(len(every))], format="extxyz")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
