"""Runs whose averages are known exactly, written by i-PI's own writers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ipi.engine.atoms import Atoms
from ipi.engine.cell import Cell
from ipi.utils.io import print_file
from ipi.utils.units import Elements, unit_to_internal

from beadwork.observe.record import COLUMNS
from beadwork.units import BOHR

#: of the ring polymer
KELVIN, BEADS, WAVENUMBER = 300.0, 4, 1500.0
KT = float(unit_to_internal("temperature", "kelvin", KELVIN))
OMEGA = float(unit_to_internal("frequency", "inversecm", WAVENUMBER))
HYDROGEN = float(Elements.mass("H"))


def write_frames(
    path: Path, names: Sequence[str], steps: Sequence[int], values: np.ndarray, key: str = "positions",
    dimension: str = "length", units: str = "angstrom", side: float = 20.0, bead: int = 0,
) -> None:  # fmt: skip
    """One file of i-PI's, (F, n, 3) in atomic units, in the way that i-PI writes it."""
    cell = Cell(h=side / BOHR * np.eye(3))
    atoms = Atoms(len(names))
    atoms.names = np.array(names)
    with open(path, "w") as file:
        for step, frame in zip(steps, values, strict=True):
            atoms.q = frame.ravel()
            title = f"Step:  {step:10d}  Bead:   {bead:5d} "
            print_file("xyz", atoms, cell, file, title, key, dimension, units, "angstrom")


def write_about(folder: Path, name: str = "beadwork.out", tail: str = "", **about: object) -> None:
    """What beadwork.out says of a run; tail: its further lines."""
    said = {"directory": ".", "outputs": "run", "temperature_K": KELVIN, "beads": 1, "time_step_fs": 0.5} | about
    (folder / name).write_text(f"{COLUMNS}\n# run: {json.dumps(said)}\n{tail}")


def write_energies(folder: Path, steps: Sequence[int], energies: np.ndarray, bead: int = 0, form: str = ".12e") -> None:
    """The members' energies (F, M) in Hartree, as i-PI writes the extras of a bead."""
    lines = []
    for step, row in zip(steps, energies, strict=True):
        lines += [f" #EXTRAS(committee_pot)# Step:  {step:10d} ", " ".join(format(value, form) for value in row)]
    (folder / f"run.committee_{bead}").write_text("\n".join(lines) + "\n")


def write_extra(folder: Path, key: str, steps: Sequence[int], values: np.ndarray, bead: int = 0) -> None:
    """A quantity (F, n) or (F, rows, n) of the extras of a bead, as i-PI writes it."""
    lines = []
    for step, rows in zip(steps, values, strict=True):
        lines.append(f" #EXTRAS({key})# Step:  {step:10d} ")
        lines += [" ".join(format(value, ".12e") for value in row) for row in np.atleast_2d(rows)]
    (folder / f"run.{key}_{bead}").write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class RingPolymer:
    """A hydrogen in a harmonic well about an oxygen that stays, drawn exactly. positions: (F, BEADS, 3) Bohr.

    centroid, bead: Å, the standard deviation of one component of each. stiffer: of each member, about 1.
    """

    folder: Path
    steps: list[int]
    positions: np.ndarray
    centroid: float
    bead: float
    stiffer: np.ndarray


def draw_ring_polymer(folder: Path) -> RingPolymer:
    """Each normal mode of the ring polymer is normal with the variance P kT / m (ω_k² + ω²)."""
    rng = np.random.default_rng(21)
    frames = 2000
    modes = 2 * BEADS * KT * np.sin(np.arange(BEADS) * np.pi / BEADS)  # ħ is 1
    sigma = np.sqrt(BEADS * KT / HYDROGEN / (modes**2 + OMEGA**2))
    angle = 2 * np.pi * np.outer(np.arange(BEADS), np.arange(BEADS)) / BEADS
    basis = np.where(np.arange(BEADS) <= BEADS // 2, np.cos(angle), np.sin(angle))
    basis /= np.linalg.norm(basis, axis=0)
    positions = np.einsum("pk,fkx->fpx", basis, sigma[:, None] * rng.normal(size=(frames, BEADS, 3)))
    steps = list(range(0, 10 * frames, 10))
    stiffer = np.array([0.05, -0.02, -0.03])
    for bead in range(BEADS):
        both = np.zeros((frames, 2, 3))
        both[:, 1] = positions[:, bead]
        write_frames(folder / f"run.pos_{bead}.xyz", ["O", "H"], steps, both, bead=bead)
        energy = 0.5 * HYDROGEN * OMEGA**2 * (positions[:, bead] ** 2).sum(axis=1)
        write_energies(folder, steps, np.outer(energy, 1 + stiffer) - 70.0, bead)
    write_about(folder, beads=BEADS, motions=["nvt"], properties={"run.out": {"stride": 10, "columns": []}})
    _write_properties(folder, steps, positions)
    bead = float(np.sqrt((sigma**2).sum() / BEADS)) * BOHR
    return RingPolymer(folder, steps, positions, float(sigma[0]) / np.sqrt(BEADS) * BOHR, bead, stiffer)


def _write_properties(folder: Path, steps: Sequence[int], q: np.ndarray) -> None:
    """What i-PI measures of these frames (F, BEADS, 3) of the hydrogen, by its own formulas, in its own formats."""
    spring = HYDROGEN * OMEGA**2
    about = q - q.mean(axis=1, keepdims=True)
    kinetic = 0.5 * KT + 0.5 * spring * (about * q).mean(axis=1)  # (F, 3)
    gyration = np.sqrt((about**2).mean(axis=1))
    delta = 1e-3

    def potential(stretched: np.ndarray) -> np.ndarray:
        return 0.5 * spring * (stretched**2).sum(axis=2).mean(axis=1)

    less, here, more = (potential(q - about + np.sqrt(1 + change) * about) for change in (-delta, 0.0, delta))
    # of deuterium, of one hydrogen: by its coordinates, which are scaled, and by its springs, which are stronger
    scaled = potential(q.mean(axis=1, keepdims=True) + about / np.sqrt(2)) - here
    springs = 0.5 * HYDROGEN * (BEADS * KT) ** 2 * ((q - np.roll(q, 1, axis=1)) ** 2).sum(axis=(1, 2)) / BEADS
    by_coordinates = np.stack([scaled, scaled**2, np.exp(-scaled / KT)])
    by_springs = np.stack([springs, springs**2, np.exp(-springs / KT) * 2 ** (1.5 * (BEADS - 1))])
    # two atoms count for the kinetic part
    energy = ((1 + delta) * more - (1 - delta) * less) / (2 * delta) + 1.5 * 2 * KT
    slope = ((1 + delta) * more + (1 - delta) * less - 2 * here) * KT / delta**2 - 1.5 * 2 * KT**2
    head = ["column   1", "column   2", "column   3", "column   4", "cols.    5-6  "]
    head += ["cols.    7-9  ", "cols.   10-12 "]
    asked = ["step", "time{femtosecond}", "potential{electronvolt}", "volume{angstrom3}", "scaledcoords"]
    asked += [f"isotope_zeta{kind}(alpha=2;atom=H)" for kind in ("sc", "td")]
    lines = [f"# {column}     --> {name} : words" for column, name in zip(head, asked, strict=True)]
    volt = float(unit_to_internal("energy", "electronvolt", 1.0))
    columns = [steps, 0.5 * np.array(steps), here / volt, np.full(len(steps), 8000.1), energy, slope]
    for row in zip(*columns, *by_coordinates, *by_springs, strict=True):
        lines.append(" ".join(f"{value:.12e}" for value in row))
    (folder / "run.out").write_text("\n".join(lines) + "\n")
    for key, dimension, units, values in (
        ("kinetic_cv", "energy", "electronvolt", kinetic),
        ("r_gyration", "length", "angstrom", gyration),
    ):
        both = np.zeros((len(steps), 2, 3))
        both[:, 1] = values
        write_frames(folder / f"run.{key}.xyz", ["O", "H"], steps, both, key, dimension, units)
