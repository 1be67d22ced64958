"""Make everything here, step by step; each can be interrupted and given again.

    python models/water-dipole/make.py frames      # molecules and dimers, by dynamics on models/water-highlevel
    python models/water-dipole/make.py label       # dipoles and polarizabilities by PySCF, with labeller.toml
    M=models/water-dipole
    beadwork train $M/labels.extxyz --as-dipole --out $M/model --settings $M/train.toml
    python $M/spectra.py build/spectra             # with i-PI, against harmonic analysis
    python $M/spectra.py build/spectra --draw docs/spectra.svg

Dynamics is classical, and hotter than room temperature, with hydrogens moved at random besides, because quantum protons
spread wider. Each trajectory is a simulation of its own for the hold-out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin

from beadwork.frame import Frame
from beadwork.harvest.listing import attach_label
from beadwork.label.spec import read_spec
from beadwork.potential.calculator import BeadworkCalculator
from beadwork.potential.load import load

HERE = Path(__file__).parent
POTENTIAL = HERE.parent / "water-highlevel"
FRAMES, LABELS = HERE / "frames.xyz", HERE / "labels.extxyz"
#: formula: simulations, temperature in K
WANTED = {"H2O": (10, 1000.0), "H4O2": (15, 400.0)}
#: frames of each, steps of 0.5 fs between two of them, and Å by which hydrogens are moved
COUNT, EVERY, MOVED = 4, 60, 0.03
SEED = 20261130


def frames() -> None:
    """Write the structures: four from each simulation, whose starts are those of water-highlevel's labels."""
    random = np.random.default_rng(SEED)
    starts = ase.io.read(POTENTIAL / "labels" / "mp2-start.extxyz", ":")
    calculator = BeadworkCalculator(load(POTENTIAL / "baseline", [POTENTIAL]))
    found = []
    for formula, (simulations, kelvin) in WANTED.items():
        of = [one for one in starts if one.get_chemical_formula() == formula]
        for number in range(simulations):
            atoms = Atoms(of[number].symbols, of[number].positions, calculator=calculator)
            motion = Langevin(
                atoms, 0.5 * units.fs, temperature_K=kelvin, friction=0.02 / units.fs, fixcm=False, rng=random
            )
            for _ in range(COUNT):
                motion.run(EVERY)
                frame = Atoms(atoms.symbols, atoms.positions - atoms.positions.mean(axis=0))
                frame.positions += random.normal(0, MOVED, frame.positions.shape) * (frame.numbers == 1)[:, None]
                frame.info |= {"simulation": f"{formula}-{number}", "step": motion.nsteps, "charge": 0}
                found.append(frame)
    ase.io.write(FRAMES, found, format="extxyz")


def label() -> None:
    """Label what has no label yet, molecules first, each written as it is done."""
    labeller = read_spec(HERE / "labeller.toml").labeller()
    done = len(ase.io.read(LABELS, ":")) if LABELS.exists() else 0
    for atoms in ase.io.read(FRAMES, ":")[done:]:
        out = Atoms(atoms.symbols, atoms.positions, info=atoms.info)
        attach_label(labeller.label(Frame.from_atoms(atoms), 0, 0).to_dict(), out)
        ase.io.write(LABELS, out, format="extxyz", append=True)


if __name__ == "__main__":
    {"frames": frames, "label": label}[sys.argv[1]]()
