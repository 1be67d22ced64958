"""What the spread and the weighted baseline do when a system grows: boxes of 16, 64 and 256 water molecules.

    python benchmarks/grow.py

Classical Langevin dynamics at 300 K and 0.997 g/cm³ by the baseline of models/water-revpbe0-d3 (steps of 0.5 fs), and
the committee's spread on its frames. Prints the table of docs/formulas.md. 16 molecules begin on a lattice, the others
as copies of the box in inputs/water.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import FIRE

import beadwork
from beadwork.potential.potential import Potential
from beadwork.report.radial import deviations, offsets

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models" / "water-revpbe0-d3"
KELVIN = 300.0
KT = KELVIN * units.kB
#: eV of the whole system, and eV/atom: what the 64 molecules have of both is about as much
WHOLE, ATOM = 0.012, 0.012 / 192


def box(molecules: int) -> Atoms:
    """A start."""
    if molecules > 32:
        copies = {64: (2, 1, 1), 256: (2, 2, 2)}[molecules]
        atoms = read(ROOT / "inputs" / "water" / "init.xyz")
        edge = (32 * 18.015 / 0.6022 / 0.997) ** (1 / 3)
        return Atoms(atoms.symbols, atoms.positions, cell=[edge] * 3, pbc=True).repeat(copies)
    edge = (molecules * 18.015 / 0.6022 / 0.997) ** (1 / 3)
    rng = np.random.default_rng(0)
    atoms = Atoms(cell=[edge] * 3, pbc=True)
    corners = np.argwhere(np.ones((2, 2, 2))) / 2
    for place in np.concatenate((corners, corners + 0.25)):  # 3.4 Å apart
        one = molecule("H2O")
        one.euler_rotate(*rng.uniform(0, 360, 3), center="COM")
        one.translate(place * edge - one.get_center_of_mass() + rng.normal(0, 0.1, 3))
        atoms += one
    return atoms


def frames(molecules: int, count: int, steps: int) -> list[beadwork.Frame]:
    """Frames of liquid water, one every 10 fs, after so many steps."""
    atoms = box(molecules)
    rng = np.random.default_rng(molecules)
    atoms.calc = beadwork.BeadworkCalculator(beadwork.load(MODELS / "baseline"))
    if molecules <= 32:
        FIRE(atoms, logfile=None).run(fmax=0.5, steps=200)
    MaxwellBoltzmannDistribution(atoms, temperature_K=KELVIN, rng=rng)
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=KELVIN, friction=0.02 / units.fs, rng=rng)
    dynamics.run(steps)
    found = []
    for _ in range(count):
        dynamics.run(20)
        found.append(beadwork.Frame.from_atoms(atoms))
    print(f"{molecules} molecules: {atoms.get_temperature():.0f} K at the end", flush=True)
    return found


def weighed(known: Potential, frame: beadwork.Frame, **uncertainty: float) -> float:
    """Which part of Δ (its constant part taken out) is left."""
    one = Potential(
        known.baseline,
        known.members,
        reference=known.reference,
        alpha=known.alpha,
        energy_alpha=known.energy_alpha,
        **uncertainty,
    )
    lone = sum(known.reference[z] for z in frame.numbers.tolist())
    left, whole = (p.without_baseline().evaluate([frame]).energies[0] - lone for p in (one, known))
    return float(left / whole)


def row(molecules: int, count: int, steps: int) -> str:
    """One line of the table."""
    seen = frames(molecules, count, steps)
    atoms = len(seen[0].numbers)
    committee = beadwork.load(MODELS / "baseline", [MODELS])
    answers = [committee.evaluate([frame]).spread for frame in seen]
    members = np.array([answer.members[:, 0] for answer in answers])
    force = np.array([answer.force for answer in answers])
    freedom = members.shape[1] - 1
    total = np.sqrt(np.mean([answer.energy[0] ** 2 for answer in answers]))
    offset = np.sqrt((offsets(members) ** 2).sum() / freedom)
    wander = np.sqrt((deviations(members, KT) ** 2).sum(axis=1).mean() / freedom)
    some = seen[:: max(1, len(seen) // 5)]
    kinds = ({"baseline_uncertainty": WHOLE}, {"baseline_uncertainty": ATOM * atoms}, {"atom_uncertainty": ATOM})
    left = [np.mean([weighed(committee, frame, **kind) for frame in some]) for kind in kinds]
    cells = [
        f"{molecules}",
        f"{1e3 * np.sqrt((force**2).mean()):.2f}",
        f"{1e3 * force.max(axis=1).mean():.2f}",
        f"{1e3 * total:.1f}",
        f"{1e3 * offset:.1f}",
        f"{wander:.2f}",
        *(f"{part:.2f}" for part in left),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table, a row as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=40, help="of each box, one every 10 fs")
    parser.add_argument("--steps", type=int, default=2000, help="before the first frame, to forget the start")
    parser.add_argument("molecules", type=int, nargs="*", default=[16, 64, 256])
    args = parser.parse_args()
    for molecules in args.molecules:
        print(row(molecules, args.frames, args.steps), flush=True)


if __name__ == "__main__":
    main()
