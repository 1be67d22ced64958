"""Infrared and Raman spectra of a water molecule and a dimer: i-PI's dynamics against harmonic analysis of the models.

    python models/water-dipole/spectra.py build/spectra [molecule] [dimer]     # molecular dynamics with i-PI, the table
    python models/water-dipole/spectra.py build/spectra --draw docs/spectra.svg

The potential is models/water-highlevel, dipoles and polarizabilities are those of this folder. Each structure is
relaxed, and its vibrations found from second derivatives by central differences. The band is the standard deviation
of the spectra of the committee's members, all of one trajectory. Then i-PI moves it at constant energy
from the minimum, where each vibration begins with the kinetic energy kT of 0.02 K and none turns or drifts: so little
that it is harmonic, and each has the energy that the intensities assume. `beadwork analyse infrared` and `raman`
read what i-PI wrote, and a line's place and area are compared with the vibration's wavenumber,
N_A |∂mu/∂Q|² / (12 ε0 c²) and (∂a/∂Q)². Velocity Verlet of the time step t moves a harmonic oscillator of ω with
ω' = (2/t) arcsin(ω t/2), and, begun at its minimum, with an amplitude 1/√(1 − (ω t/2)²) too large: both are exact, and
are put into what is expected.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import scipy.constants as si
from ase import Atoms
from ase.optimize import BFGS

from beadwork.analyse.response import ResponseSpectrum, infrared, raman
from beadwork.analyse.runs import open_run
from beadwork.analyse.spectrum import LIGHT
from beadwork.digits import with_bar
from beadwork.frame import Frame
from beadwork.potential.calculator import BeadworkCalculator
from beadwork.potential.load import load
from beadwork.potential.potential import Potential
from beadwork.units import BOHR, HARTREE

HERE = Path(__file__).parent
HIGHLEVEL = HERE.parent / "water-highlevel"
KELVIN = 0.02
#: fs
STEP = 1.0
#: of the Hessian, Å (ten times as far moves a stretch of the dimer by 5 cm^-1), and of the derivatives of dipole and
#: polarizability along a vibration, √dalton Å
MOVE, ALONG = 0.0005, 0.001
#: eV/Å² over dalton, in 1/fs²
PER_DALTON = si.e / si.atomic_mass * 1e20 / 1e30
#: km/mol of one e²/dalton
KM_MOL = 1e-3 * si.N_A / (12 * si.epsilon_0 * si.c**2) * si.e**2 / si.atomic_mass
#: Å³ of one e Å²/V
VOLUME = HARTREE * BOHR
WATER = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
Light = tuple[tuple[float, float, float], tuple[float, float, float]]
#: the acceptor's oxygen beside the donor's first hydrogen
DIMER = WATER + Atoms("OHH", [[2.9, 0, 0], [3.3, 0.2, 0.85], [3.2, -0.8, -0.4]])
#: directions of the light, in and out: along one that sees all, and in the plane of WATER along its axis and across,
#: where only the antisymmetric stretch is seen
ALL = ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
CROSSED = ((0.6125, 0.7905, 0.0), (-0.7905, 0.6125, 0.0))
#: structure, steps, the window in fs, and the light of each kind of Raman spectrum
SYSTEMS: dict[str, tuple[Atoms, int, float, dict[str, Light]]] = {
    "molecule": (WATER, 1600, 700.0, {"Raman": ALL, "crossed Raman": CROSSED}),
    "dimer": (DIMER, 4200, 2000.0, {"Raman": ALL}),
}
#: areas below this part of the largest are left out of the table
LEAST = 1e-4


@dataclass(frozen=True)
class Line:
    """A vibration. wavenumber: cm^-1. expected: with the time step. areas: by kind of spectrum, km/mol of infrared and
    Å⁴/dalton of each Raman. amplitude: by what the time step, and another energy than kT, multiply them."""

    wavenumber: float
    expected: float
    areas: dict[str, float]
    amplitude: float


def relaxed(potential: Potential, atoms: Atoms) -> Frame:
    """At the nearest minimum."""
    atoms = atoms.copy()
    atoms.calc = BeadworkCalculator(potential)
    BFGS(atoms, logfile=None).run(fmax=2e-5, steps=500)
    return Frame(
        atoms.numbers, atoms.positions - atoms.positions.mean(axis=0), np.zeros((3, 3)), (False,) * 3, charge=0
    )


def harmonic(
    potential: Potential, frame: Frame, masses: np.ndarray, light: Mapping[str, Light]
) -> tuple[np.ndarray, np.ndarray, list[Line]]:
    """Angular frequencies (V,) 1/fs, vectors (3N, V) of mass-weighted coordinates, and the lines of a structure."""
    root = np.repeat(np.sqrt(masses), 3)
    size = len(root)
    moved = [at(frame, sign * MOVE * row) for row in np.eye(size) for sign in (1, -1)]
    forces = potential.evaluate(moved, force_spread=False).forces.reshape(size, 2, size)
    hessian = PER_DALTON * (forces[:, 1] - forces[:, 0]) / (2 * MOVE) / np.outer(root, root)
    omega2, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    omegas, vectors = np.sqrt(omega2[6:]), vectors[:, 6:]
    moves = [at(frame, sign * ALONG * column / root) for column in vectors.T for sign in (1, -1)]
    response = potential.evaluate(moves, force_spread=False).response
    # the same by Born charges
    born = potential.evaluate([frame], force_spread=False).response["born"].mean.reshape(size, 3)
    slopes = (vectors / root[:, None]).T @ born
    dipoles, alphas = (slope(response[name].mean, len(omegas)) for name in ("dipole", "polarizability"))
    if np.abs(slopes - dipoles).max() > 1e-4 * np.abs(dipoles).max():
        raise RuntimeError("Born charges are not the dipole's slopes")
    lines = []
    for omega, dipole, alpha in zip(omegas, dipoles, alphas, strict=True):
        faster, larger = of_verlet(omega)
        wavenumber = omega / (2 * np.pi * LIGHT)
        areas = {"infrared": KM_MOL * float(dipole @ dipole)}
        for kind, ends in light.items():
            one, other = (np.array(end) / np.linalg.norm(end) for end in ends)
            areas[kind] = float(one @ (VOLUME * alpha) @ other) ** 2
        lines.append(Line(wavenumber, faster * wavenumber, areas, larger))
    return omegas, vectors, lines


def of_verlet(omega: float) -> tuple[float, float]:
    """By what velocity Verlet multiplies the frequency of an oscillator (1/fs) that begins at its minimum, and the area
    of its line: that of the rate of change, whose frequency and amplitude are both larger."""
    half = omega * STEP / 2
    faster = np.arcsin(half) / half
    return faster, faster**2 / (1 - half**2)


def slope(values: np.ndarray, count: int) -> np.ndarray:
    """By central differences along each vibration."""
    pairs = values.reshape(count, 2, *values.shape[1:])
    return (pairs[:, 0] - pairs[:, 1]) / (2 * ALONG)


def at(frame: Frame, move: np.ndarray) -> Frame:
    """Moved by (3N,) Å."""
    return Frame(frame.numbers, frame.positions + move.reshape(-1, 3), frame.cell, frame.pbc, charge=frame.charge)


def write_input(folder: Path, name: str, frame: Frame, vectors: np.ndarray, masses: np.ndarray, steps: int) -> None:
    """i-PI's input: at the minimum, each vibration with the kinetic energy kT, in one sense or the other."""
    signs = np.random.default_rng(7).choice([-1.0, 1.0], vectors.shape[1])
    # √(2 kT) of each mass-weighted coordinate; eV to dalton Å²/fs², Å/fs to atomic units
    speed = np.sqrt(2 * si.k * KELVIN / si.e * PER_DALTON)
    velocities = (vectors @ signs * speed).reshape(-1, 3) / np.sqrt(masses)[:, None]
    atomic = velocities * 1e5 / (si.physical_constants["atomic unit of velocity"][0])
    folder.mkdir(parents=True, exist_ok=True)
    box = np.full(3, 30.0)
    symbols = frame.to_atoms().symbols
    rows = [f"{s} {x:.12f} {y:.12f} {z:.12f}" for s, (x, y, z) in zip(symbols, frame.positions + 15.0, strict=True)]
    cell = "# CELL(abcABC): {0} {0} {0} 90 90 90 cell{{angstrom}} positions{{angstrom}}".format(box[0])
    (folder / "init.xyz").write_text("\n".join([str(len(rows)), cell, *rows]) + "\n")
    given = ", ".join(f"{v:.12e}" for v in atomic.ravel())
    extras = "\n".join(
        f"    <trajectory stride='1' filename='{key}' extra_type='{key}'> extras </trajectory>"
        for key in ("dipole", "polarizability", "committee_dipole", "committee_polarizability")
    )
    (folder / "input.xml").write_text(
        f"""<simulation verbosity='low'>
  <output prefix='run'>
    <properties stride='100' filename='out'> [ step, conserved, temperature{{kelvin}} ] </properties>
{extras}
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>1</seed></prng>
  <ffsocket name='beadwork' mode='unix' pbc='False'>
    <address>beadwork-{name}</address>
    <latency>1e-4</latency>
  </ffsocket>
  <system>
    <initialize nbeads='1'>
      <file mode='xyz'>init.xyz</file>
      <velocities mode='manual'>[ {given} ]</velocities>
    </initialize>
    <forces><force forcefield='beadwork'/></forces>
    <ensemble><temperature units='kelvin'>{KELVIN}</temperature></ensemble>
    <motion mode='dynamics'>
      <fixcom>False</fixcom>
      <dynamics mode='nve'><timestep units='femtosecond'>{STEP}</timestep></dynamics>
    </motion>
  </system>
</simulation>
"""
    )


def compute(out: Path, name: str) -> None:
    """Relax, analyse, move, analyse; what is found goes to OUT/NAME.json."""
    atoms, steps, window, light = SYSTEMS[name]
    potential = load(HIGHLEVEL / "baseline", [HIGHLEVEL], also={"dipole": HERE / "model"}, charge=0)
    frame = relaxed(potential, atoms)
    masses = atoms.get_masses()
    _, vectors, lines = harmonic(potential, frame, masses, light)
    folder = out / name
    if not (folder / "summary.json").exists():  # what i-PI wrote before is looked at again
        write_input(folder, name, frame, vectors, masses, steps)
        move(folder)
    energies = begun(folder, vectors, masses)
    lines = [replace(line, amplitude=line.amplitude * energy) for line, energy in zip(lines, energies, strict=True)]
    found = spectra(folder, window, light)
    text = {"lines": [asdict(line) for line in lines], "window": window}
    for kind, of in found.items():
        text[kind] = {"wavenumbers": of.wavenumbers.tolist(), "intensity": of.intensity.tolist(), "peaks": of.peaks}
        if of.committee is not None:
            text[kind]["committee"] = of.committee.tolist()
    (out / f"{name}.json").write_text(json.dumps(text))
    print(table(name, lines, found))


def begun(folder: Path, vectors: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """(V,) the kinetic energy of each vibration in kT, of the velocities in i-PI's input."""
    given = (folder / "input.xml").read_text().partition("<velocities mode='manual'>[")[2].partition("]")[0]
    atomic = np.array([float(word) for word in given.split(",")])
    velocities = atomic * si.physical_constants["atomic unit of velocity"][0] / 1e5  # Å/fs
    along = vectors.T @ (velocities * np.repeat(np.sqrt(masses), 3))
    return along**2 / (2 * si.k * KELVIN / si.e * PER_DALTON)


def move(folder: Path) -> None:
    """With i-PI, on the shipped models."""
    models = ["--baseline", HIGHLEVEL / "baseline", "--delta", HIGHLEVEL, "--also", f"dipole={HERE / 'model'}"]
    command = [sys.executable, "-m", "beadwork", "run", "input.xml", *models, "--charge", "0", "--not-periodic"]
    subprocess.run([str(word) for word in command], cwd=folder, check=True)


def spectra(folder: Path, window: float, light: Mapping[str, Light]) -> dict[str, ResponseSpectrum]:
    """As `beadwork analyse` makes them, by kind."""
    runs = [open_run(folder)]
    return {"infrared": infrared(runs, window), **{kind: raman(runs, *ends, window) for kind, ends in light.items()}}


@dataclass(frozen=True)
class Seen:
    """Lines that the window does not tell apart, and what the dynamics has of them.

    wavenumbers: expected, cm^-1. peak: the nearest one of each kind, cm^-1, NaN where there is none within a line's
    width. areas: (expected, seen) by kind, km/mol and Å⁴/dalton. spread: the standard deviation of the members' areas,
    NaN of one model.
    """

    wavenumbers: tuple[float, ...]
    harmonic: tuple[float, ...]
    peaks: dict[str, float]
    areas: dict[str, tuple[float, float]]
    spread: dict[str, float]


def compared(lines: Sequence[Line], found: Mapping[str, ResponseSpectrum]) -> list[Seen]:
    """Each group of lines that are closer than twice a line's width, against its peak and area in the spectra."""
    width = next(iter(found.values())).resolution
    groups: list[list[Line]] = []
    for line in lines:
        if groups and line.expected - groups[-1][-1].expected < 2 * width:
            groups[-1].append(line)
        else:
            groups.append([line])
    ends = [group[0].expected - 2 * width for group in groups]
    seen = []
    for k, group in enumerate(groups):
        low = ends[k] if k == 0 else (groups[k - 1][-1].expected + group[0].expected) / 2
        high = (
            group[-1].expected + 2 * width
            if k + 1 == len(groups)
            else (group[-1].expected + groups[k + 1][0].expected) / 2
        )
        low, high = max(low, group[0].expected - 4 * width), min(high, group[-1].expected + 4 * width)
        peaks, areas, spread = {}, {}, {}
        for kind, of in found.items():
            strongest = max(group, key=lambda line, kind=kind: line.areas[kind])
            near = min(of.peaks, key=lambda peak, at=strongest.expected: abs(peak - at), default=np.nan)
            peaks[kind] = near if abs(near - strongest.expected) < width else np.nan
            inside = (of.wavenumbers >= low) & (of.wavenumbers < high)
            area = float(of.intensity[inside].sum() * of.wavenumbers[1])
            areas[kind] = (sum(line.areas[kind] * line.amplitude for line in group), area)
            # of the members' areas and not a sum of the band: a member is too high, or too low, all along a line
            members = np.full(1, np.nan) if of.members is None else of.members[inside].sum(axis=0) * of.wavenumbers[1]
            spread[kind] = float(members.std(ddof=1)) if len(members) > 1 else np.nan
        waves = tuple(line.expected for line in group)
        seen.append(Seen(waves, tuple(line.wavenumber for line in group), peaks, areas, spread))
    return seen


def table(name: str, lines: Sequence[Line], found: Mapping[str, ResponseSpectrum]) -> str:
    """As the README has it."""
    units = {kind: "km/mol" if kind == "infrared" else "Å⁴/dalton" for kind in found}
    columns = ["harmonic, cm⁻¹", "with the time step", *(f"{kind} peak" for kind in found)]
    columns += [f"{kind}, {unit}" for kind, unit in units.items()]
    rows = [f"{name}: of harmonic analysis → of i-PI's dynamics"]
    rows += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    least = {kind: LEAST * max(line.areas[kind] for line in lines) for kind in found}
    for one in compared(lines, found):
        waves = (" ".join(f"{w:.1f}" for w in of) for of in (one.harmonic, one.wavenumbers))
        peaks = ("" if np.isnan(peak) else f"{peak:.1f}" for peak in one.peaks.values())
        areas = (
            "" if expected < least[kind] else f"{expected:.3g} → {with_bar(seen, one.spread[kind])}"
            for kind, (expected, seen) in one.areas.items()
        )
        rows.append("| " + " | ".join((*waves, *peaks, *areas)) + " |")
    return "\n".join(rows)


def draw(out: Path, file: Path) -> None:
    """The spectra, with a stick at each harmonic line as high as its area is of the largest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in SYSTEMS if (out / f"{name}.json").exists()]
    figure, panels = plt.subplots(2, len(names), figsize=(4.6 * len(names), 5.2), squeeze=False, sharex=True)
    for column, name in enumerate(names):
        text = json.loads((out / f"{name}.json").read_text())
        for panel, kind in zip(panels[:, column], ("infrared", "Raman"), strict=True):
            waves, values = (np.array(text[kind][key]) for key in ("wavenumbers", "intensity"))
            panel.plot(waves, values / values.max(), color="#2b5c8a", lw=1)
            if band := text[kind].get("committee"):
                low, high = ((values + sign * np.array(band)) / values.max() for sign in (-1, 1))
                panel.fill_between(waves, low, high, color="#2b5c8a", alpha=0.3, lw=0)
            areas = np.array([line["areas"][kind] for line in text["lines"]])
            panel.vlines(
                [line["expected"] for line in text["lines"]], 0, -0.35 * areas / areas.max(), color="#b5482f", lw=2
            )
            panel.axhline(0, color="#222222", lw=0.6)
            panel.set(title=f"{name}, {kind}", yticks=[], xlim=(0, 4500))
        panels[1, column].set_xlabel("wavenumber (cm$^{-1}$)")
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    target, *rest = sys.argv[1:]
    if rest[:1] == ["--draw"]:
        draw(Path(target), Path(rest[1]))
    else:
        for system in rest or SYSTEMS:
            compute(Path(target), system)
