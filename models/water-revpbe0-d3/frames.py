"""Frames that tell what Δ's spread is worth: twelve simulations that nobody learned from, with D3's own labels.

    pip install dftd3
    python models/water-revpbe0-d3/frames.py OUT

Writes OUT/simulation-A.extxyz to OUT/simulation-L.extxyz: 32 H2O at 300 K, classical Langevin dynamics with the
baseline, 20 frames each, 100 steps of 0.5 fs apart. A begins as inputs/water does, the others where 1 ps at 450 K
has left that; all forget their start for a picosecond first. There are twelve, because what Δ's energy is off by hardly
changes within one. DELTA_energy (eV) and DELTA_forces (eV/Å) are D3(zero) for revPBE0 without three-body terms by
simple-dftd3, which gives those of the training data to 6e-7 meV/atom and 3e-6 meV/Å. What is done is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from dftd3.interface import DispersionModel, ZeroDampingParam
from tqdm import tqdm

import beadwork

HERE = Path(__file__).parent
START = HERE.parents[1] / "inputs" / "water" / "init.xyz"
SEEDS = {name: 101 * number for number, name in enumerate("ABCDEFGHIJKL", 1)}
FRAMES = 20
#: steps between two frames; steps that a start is forgotten in
EVERY, FORGET = 100, 2000
KELVIN = 300
#: K, and steps, that make the others unlike A
HOT, SCRAMBLED = 450, 2000


def d3(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of D3(zero) for revPBE0, without three-body terms."""
    model = DispersionModel(atoms.numbers, atoms.positions / units.Bohr, atoms.cell[:] / units.Bohr, atoms.pbc)
    found = model.get_dispersion(ZeroDampingParam(method="revpbe0", atm=False), grad=True)
    return found["energy"] * units.Hartree, -found["gradient"] * units.Hartree / units.Bohr


def dynamics(atoms: Atoms, kelvin: float, seed: int) -> Langevin:
    """Langevin dynamics from velocities of this temperature."""
    rng = np.random.default_rng(seed)
    atoms.set_constraint()
    thermalize_momenta(atoms, kelvin, rng=rng)
    atoms.set_constraint(FixCom())
    return Langevin(atoms, 0.5 * units.fs, temperature_K=kelvin, friction=0.02 / units.fs, rng=rng, fixcm=False)


def whole(atoms: Atoms) -> bool:
    """Whether every oxygen has its two hydrogens."""
    oxygens, hydrogens = (np.flatnonzero(atoms.numbers == z) for z in (8, 1))
    nearest = atoms.get_all_distances(mic=True)[np.ix_(hydrogens, oxygens)].argmin(axis=1)
    return bool((np.bincount(nearest, minlength=len(oxygens)) == 2).all())


def simulate(name: str, seed: int) -> list[Atoms]:
    """The frames of one simulation, with labels."""
    lines = START.read_text().splitlines()
    length = float(lines[1].split("abcABC):")[1].split()[0])
    rows = [line.split() for line in lines[2:]]
    atoms = Atoms([r[0] for r in rows], [list(map(float, r[1:4])) for r in rows], cell=[length] * 3, pbc=True)
    atoms.calc = beadwork.BeadworkCalculator(beadwork.load(HERE / "baseline"))
    if name != "A":
        dynamics(atoms, HOT, seed + HOT).run(SCRAMBLED)
    run = dynamics(atoms, KELVIN, seed)
    run.run(FORGET)
    found = []
    for number in tqdm(range(FRAMES), desc=name, unit="frame"):
        run.run(EVERY)
        frame = Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        if not whole(frame):
            raise SystemExit(f"simulation {name} has an ion at frame {number}: it is no longer what Δ learned from")
        frame.info["simulation"] = name
        frame.info["step"] = FORGET + (number + 1) * EVERY
        frame.info["DELTA_energy"], frame.arrays["DELTA_forces"] = d3(frame)
        found.append(frame)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=tuple(SEEDS), help="one of them, for other processes to do the others")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, seed in SEEDS.items():
        file = args.out / f"simulation-{name}.extxyz"
        if not file.exists() and args.only in (None, name):
            found = simulate(name, seed)
            part = file.with_name(f".{file.name}")
            ase.io.write(part, found, format="extxyz")
            part.rename(file)


if __name__ == "__main__":
    main()
