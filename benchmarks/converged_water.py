"""Quantum water at 300 K: what the averages of a plan are off by, measured, and what a picosecond of it costs.

    python models/water-revpbe0-d3/frames.py scratch/known
    python benchmarks/converged_water.py run reference eco build/converged \\
        --starts scratch/known/simulation-[A-H].extxyz
    python benchmarks/converged_water.py time build/converged
    python benchmarks/converged_water.py report build/converged

32 H2O of inputs/water-piglet with models/water-revpbe0-d3 in float32. A plan has a piece for each start, the last frame
of a simulation of its own, with its own momenta and noise; a piece forgets 100 fs, can be interrupted (--until), and
the same command goes on with it. All plans have the same starts, so that they are compared piece by piece: the network
of hydrogen bonds takes picoseconds to forget where it began. `time` lets i-PI make steps of a plan and of `ffcommittee`
over i-PI's own MACE in turns, and counts seconds of cores. `report` writes results/converged_water.json and .md.

Kinetic energies are those of the centroid virial estimator. For white noise they are had a second time, with less
noise (`kinetic_energies`).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ase
import ase.io
import numpy as np
import peers
from ipi.utils.nmtransform import mk_nm_matrix
from system import Size

from beadwork.config import ServeConfig
from beadwork.doctor.curvature import PER_DALTON, vibrations
from beadwork.doctor.harmonic import BOLTZMANN, Modes, Plan, compress, errors, springs, without_barriers
from beadwork.doctor.plan_xml import changed, colored_noise
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.ipi.outputs import Files, find_trajectory, read_properties
from beadwork.ipi.simulation import read_simulation
from beadwork.potential.bundle import load_card
from beadwork.potential.load import load_for
from beadwork.report.radial import radial
from beadwork.report.uncertainty import FEWEST, uncertainty
from beadwork.units import BOHR, FORCE, HARTREE

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MODELS = ROOT / "models" / "water-revpbe0-d3"
BUNDLES = [MODELS / "baseline", *(MODELS / f"delta-{m}" for m in range(4))]
INPUT = ROOT / "inputs" / "water-piglet" / "input.xml"
KELVIN, WATERS = 300.0, 32
PLANS = {
    "reference": Plan(24, 0.5, "eco", contracted=1, highest=4000.0),
    "eco": Plan(20, 0.75, "eco", inner=3, contracted=1, cayley=True, highest=4000.0),
    "ordinary": Plan(32, 0.5, contracted=1),
    "piglet": Plan(6, 0.5, "piglet", contracted=1),
    "piglet-mts": Plan(6, 1.0, "piglet", inner=4, contracted=1),
}
#: the plan of the peer: one forcefield, one time step
PLAIN = Plan(32, 0.5)
#: exit code of coreutils' timeout
OUT_OF_TIME = 124
#: ps that a piece forgets
FORGET = 0.1
#: fs between two frames of positions and forces, about
EVERY = 12.0


# --- simulations


def elements(plan: Plan, folder: str) -> ElementTree.Element:
    """The input of a plan; addresses are of the folder."""
    root = changed(plan, read_simulation(INPUT), ServeConfig(simulation=str(INPUT)), INPUT)
    for entry in root.iter("ffsocket"):
        address = entry.find("address")
        (
            ElementTree.SubElement(entry, "address") if address is None else address
        ).text = f"converged-{folder}-{entry.get('name')}"
    return root


def part(root: ElementTree.Element, path: str) -> ElementTree.Element:
    """The element there. Raises ValueError where there is none."""
    if (found := root.find(path)) is None:
        raise ValueError(f"{INPUT} has no {path} where it was looked for")
    return found


def replace(root: ElementTree.Element, **texts: str) -> None:
    """Put elements in the place of those of their name."""
    for tag, text in texts.items():
        root.remove(part(root, tag))
        root.append(ElementTree.fromstring(text))


def write_input(kind: str, folder: Path, start: Path, steps: int, seed: int) -> None:
    """Write input.xml for a plan, and what it starts from beside it: the last frame of `start`.

    Raises ValueError where that is no frame of the input's water.
    """
    plan = PLANS[kind]
    every = round(EVERY / plan.outer)
    lines = (
        "<properties stride='1' filename='out'>[step, time{femtosecond}, conserved{electronvolt}, temperature{kelvin}, "
        "potential{electronvolt}, kinetic_cv(H){electronvolt}, kinetic_cv(O){electronvolt}]</properties>"
        f"<trajectory stride='{every}' filename='positions' format='xyz' cell_units='angstrom'>positions{{angstrom}}"
        f"</trajectory><trajectory stride='{every}' filename='forces' format='xyz'>forces{{ev/ang}}</trajectory>"
        "<checkpoint stride='20' filename='checkpoint' overwrite='true'/>"
    )
    own, title = read_simulation(INPUT).systems[0], (INPUT.parent / "init.xyz").read_text().splitlines()[1]
    atoms = ase.io.read(start, -1)
    if atoms.numbers.tolist() != list(own.numbers) or not np.allclose(atoms.cell[:], own.cell, atol=1e-4):
        raise ValueError(f"{start} is not of the atoms and the cell of {INPUT}")
    rows = [f"{s} {x:.8f} {y:.8f} {z:.8f}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
    (folder / "init.xyz").write_text("\n".join([str(len(atoms)), title, *rows]) + "\n")
    root = elements(plan, folder.name)
    replace(
        root,
        output=f"<output prefix='simulation'>{lines}</output>",
        total_steps=f"<total_steps>{steps}</total_steps>",
        prng=f"<prng><seed>{seed}</seed></prng>",
    )
    ElementTree.ElementTree(root).write(folder / "input.xml", encoding="unicode")


def simulate(kind: str, folder: Path, start: Path, steps: int, seed: int, end: float | None) -> bool:
    """Begin or go on with a piece; whether it came to its last step."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "RESTART"
    if not begun.exists():
        begun = folder / "input.xml"
        write_input(kind, folder, start, steps, seed)
    else:
        text = begun.read_text(encoding="utf-8")
        if int((re.search(r"<step>\s*(\d+)", text) or [0, 0])[1]) >= steps:
            return True
        begun.write_text(re.sub(r"<total_steps>\s*\d+\s*<", f"<total_steps>{steps}<", text), encoding="utf-8")
    command = [sys.executable, "-m", "beadwork", "run", begun.name, "--at", "baseline=baseline", "delta=delta"]
    command += ["--baseline", str(BUNDLES[0]), "--delta", str(MODELS), "--dtype", "float32", "--threads", "1"]
    if end is not None:  # SIGTERM, at which i-PI writes a RESTART
        command = ["timeout", "--foreground", f"{max(1.0, end - time.time()):.0f}", *command]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "log", "a", encoding="utf-8") as log:
        code = subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(folder / "seconds", "a", encoding="utf-8") as file:
        file.write(f"{after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime:.1f}\n")
    if code not in (0, OUT_OF_TIME):
        raise SystemExit(f"{folder.name} ended with {code}: {folder / 'log'}")
    return code == 0


def pieces_of(kind: str, folder: Path) -> list[Path]:
    """The pieces of a plan that are there."""
    return sorted(path for path in folder.glob(f"{kind}-[0-9][0-9]") if (path / "simulation.out").exists())


def run(kinds: Sequence[str], folder: Path, ps: float, starts: Sequence[Path], end: float | None) -> None:
    """Simulate plans, a piece of each from one start after the other."""
    for number, start in enumerate(starts):
        for kind in kinds:
            if end is not None and time.time() > end:
                return
            seed = 1000 * (1 + list(PLANS).index(kind)) + number
            steps = round(1000 * ps / PLANS[kind].outer)
            if not simulate(kind, folder / f"{kind}-{number:02}", start, steps, seed, end):
                return


# --- kinetic energies

#: x and g of the internal modes, (M, P - 1, 9) each
Sample = tuple[FloatArray, FloatArray]


def internal(
    positions: FloatArray, forces: FloatArray, cell: FloatArray, masses: FloatArray, waters: IntArray
) -> Sample:
    """Displacements and forces of a ring polymer's internal modes, each molecule's in the frame of its centroid.

    positions, forces: (P, N, 3) Å and eV/Å. masses: (N,) dalton. waters: (M, 3) atoms O, H, H. Returns x = √m q and
    g = f/√m, (M, P - 1, 9) each, in Å√dalton and eV/Å/√dalton.
    """
    transform = mk_nm_matrix(len(positions))
    centre = positions.mean(axis=0)[waters]
    bonds = centre[:, 1:] - centre[:, :1]
    bonds = bonds - np.round(bonds @ np.linalg.inv(cell)) @ cell
    axis = bonds.sum(axis=1)
    normal = np.cross(bonds[:, 0], bonds[:, 1])
    axes = np.stack([v / np.linalg.norm(v, axis=1, keepdims=True) for v in (axis, np.cross(normal, axis), normal)], 1)
    root = np.sqrt(masses[waters])[:, None, :, None]

    def local(values: FloatArray) -> FloatArray:
        modes = np.tensordot(transform, values, axes=(1, 0))[1:, waters]
        return np.asarray(np.einsum("mcx,kmax->mkac", axes, modes))

    x, g = local(positions) * root, local(forces) / root
    return x.reshape(*x.shape[:2], 9), g.reshape(*g.shape[:2], 9)


def kinetic_energies(
    samples: Sequence[Sample], frequencies: FloatArray, kelvin: float
) -> tuple[FloatArray, FloatArray]:
    """(F, 2) eV an atom of H and O: the centroid virial's kinetic energies, and the same with less noise.

    frequencies: (P,) 1/fs, of the springs. The estimator is 3kT/2 less the mean over beads of x.S g / 2, where S picks
    the element's atoms. Beads of an exact ensemble are distributed as exp(-U/PkT), so a vector field v has
    <v . grad U> = PkT <div v>, and what is left of it in a sample can be subtracted: on average it is nothing. Were the
    forces g = -D x, v = x S D (w² + D)^-1 for a mode of the frequency w would leave nothing in the estimator that
    fluctuates, for v . grad U = x.S D x. D is fitted to all samples. It only says how much noise is taken away: v
    depends on the centroid and is linear in x, so div v is known whatever D is.
    """
    beads = len(frequencies)
    squares = (frequencies[1:] ** 2 / PER_DALTON)[:, None, None]
    xx = sum(np.einsum("mki,mkj->ij", x, x) for x, _ in samples)
    gx = sum(np.einsum("mki,mkj->ij", g, x) for x, g in samples)
    curvature = -np.linalg.solve(xx.T, gx.T).T
    inverse = np.linalg.inv(squares * np.eye(9) + curvature)
    plain, less = np.empty((len(samples), 2)), np.empty((len(samples), 2))
    for column, chosen in enumerate((slice(3, 9), slice(0, 3))):
        pick = np.diag(np.isin(np.arange(9), np.arange(9)[chosen]).astype(float))
        field = pick @ curvature @ inverse
        trace = np.trace(field, axis1=1, axis2=2).sum()
        for row, (x, g) in enumerate(samples):
            virial = -np.einsum("mki,ij,mkj->", x, pick, g)
            known = len(x) * beads * BOLTZMANN * kelvin * trace
            rest = np.einsum("mki,kij,mkj->", x, field, squares[:, 0] * x - g) - known
            share = 2 * beads * len(x) * pick.sum() / 3
            plain[row, column], less[row, column] = virial / share, (virial - rest) / share
    return plain + 1.5 * BOLTZMANN * kelvin, less + 1.5 * BOLTZMANN * kelvin


# --- averages

#: Å; the tops of g_OH's first two peaks, and the whole of the second, which has less noise; and up to where a hydrogen
#: is bonded
WINDOWS = {
    "g_OH, 0.93 to 1.03 Å": (0.93, 1.03),
    "g_OH, 1.65 to 1.95 Å": (1.65, 1.95),
    "g_OH, 1.4 to 2.2 Å": (1.4, 2.2),
}
BOND = 1.3
SHAPE = ("length of an O-H bond", "its standard deviation", *WINDOWS)


@dataclass(frozen=True)
class Piece:
    """What a piece says. kinetic: (F, 2) eV an atom of H and O, of each step. less: the same with less noise, of each
    frame; None where it does not hold. shape: (S, 5) of frames: first two moments of the bond, g_OH in WINDOWS. lost:
    hydrogens whose centroid is nearer to another oxygen than their own in the last frame."""

    kinetic: FloatArray
    less: FloatArray | None
    shape: FloatArray
    lost: int


def frames(folder: Path) -> Iterator[tuple[int, FloatArray, FloatArray, FloatArray]]:
    """Step, positions (P, N, 3) Å, forces eV/Å and cell of the frames that are there whole."""
    found: dict[int, dict[tuple[str, int], FloatArray]] = {}
    cell, beads = np.eye(3), 0
    for name, scale in (("positions", BOHR), ("forces", FORCE)):
        trajectory = find_trajectory(Files(folder, "simulation"), name)
        if trajectory is None:
            return
        if name == "positions":
            cell, beads = next(iter(trajectory))[2].cell, len(trajectory.files)
        for step, bead, _, values in trajectory.vectors():
            found.setdefault(step, {})[name, bead] = values * scale
    for step, parts in sorted(found.items()):
        if len(parts) == 2 * beads:
            positions, forces = (np.array([parts[n, k] for k in range(beads)]) for n in ("positions", "forces"))
            yield step, positions, forces, cell


def molecules(positions: FloatArray, numbers: IntArray, cell: FloatArray) -> IntArray:
    """(M, 3) atoms O, H, H of each molecule."""
    oxygens, hydrogens = np.flatnonzero(numbers == 8), np.flatnonzero(numbers == 1)
    own = distances(positions, hydrogens, oxygens, cell).argmin(axis=1)
    return np.array([[oxygen, *hydrogens[own == k]] for k, oxygen in enumerate(oxygens)])


def distances(positions: FloatArray, some: IntArray, others: IntArray, cell: FloatArray) -> FloatArray:
    """(A, B) Å, to the nearest image."""
    between = positions[some, None] - positions[others]
    return np.asarray(np.linalg.norm(between - np.round(between @ np.linalg.inv(cell)) @ cell, axis=2))


def read(kind: str, folders: Sequence[Path], last: float = np.inf) -> list[Piece]:
    """What pieces of a plan say, up to `last` ps."""
    plan, system = PLANS[kind], read_simulation(INPUT).systems[0]
    numbers, masses = np.array(system.numbers), np.array(system.masses)
    waters = molecules(system.positions[0], numbers, system.cell)
    kinetic, shapes, lost = [], [], []
    samples: list[list[Sample]] = []
    for folder in folders:
        columns = read_properties(folder / "simulation.out")
        steps = columns["potential"].steps
        rows = (steps >= round(1000 * FORGET / plan.outer)) & (steps * plan.outer <= 1000 * last)
        each = [columns[f"kinetic_cv({s})"].values[rows] / (numbers == z).sum() for s, z in (("H", 1), ("O", 8))]
        kinetic.append(np.stack(each, axis=1))
        shape: list[list[float]] = []
        samples.append([])
        for step, positions, forces, cell in frames(folder):
            if not FORGET <= step * plan.outer / 1000 <= last:
                continue
            samples[-1].append(internal(positions, forces, cell, masses, waters))
            ring = [(step, k, Frame(numbers, one, cell, (True,) * 3, k)) for k, one in enumerate(positions)]
            if (found := radial(ring)) is None:
                raise ValueError(f"{folder} is not periodic")
            r, g = found.distances, found.pairs["OH"][0]
            weights = (g * r**2)[r < BOND]
            moments = [(weights * r[r < BOND] ** n).sum() / weights.sum() for n in (1, 2)]
            shape.append([*moments, *(g[(low <= r) & (r <= high)].mean() for low, high in WINDOWS.values())])
            away = distances(positions.mean(axis=0), waters[:, 1:].ravel(), waters[:, 0], cell)
        lost.append(int((away.argmin(axis=1) != np.arange(2 * len(waters)) // 2).sum()))
        shapes.append(np.array(shape))
    less: list[FloatArray | None] = [None] * len(samples)
    if plan.springs != "piglet":
        every = kinetic_energies([one for mine in samples for one in mine], springs(plan, KELVIN), KELVIN)[1]
        less = list(np.split(every, np.cumsum([len(mine) for mine in samples])[:-1]))
    return [Piece(*parts) for parts in zip(kinetic, less, shapes, lost, strict=True)]


def shapes_of(found: Sequence[Piece]) -> tuple[FloatArray, FloatArray]:
    """SHAPE and its errors, from all frames."""

    def derivatives(mean: FloatArray) -> FloatArray:
        rows = np.eye(len(SHAPE))
        spread = np.sqrt(mean[1] - mean[0] ** 2)
        rows[1, :2] = -mean[0] / spread, 0.5 / spread
        return rows

    series = [piece.shape for piece in found]
    mean = np.concatenate(series).mean(axis=0)
    values = np.array([mean[0], np.sqrt(mean[1] - mean[0] ** 2), *mean[2:]])
    return values, uncertainty(series, jacobian=derivatives).statistical


def values_of(piece: Piece) -> FloatArray:
    """(2 + S) T(H), T(O), eV an atom, and SHAPE, of a piece alone."""
    kinetic = piece.kinetic if piece.less is None else piece.less
    mean = piece.shape.mean(axis=0)
    return np.array([*kinetic.mean(axis=0), mean[0], np.sqrt(mean[1] - mean[0] ** 2), *mean[2:]])


def apart(some: Sequence[Piece], true: Sequence[Piece]) -> dict[str, list[float]]:
    """How far a plan is from another by T(H), T(O) and SHAPE, relative, and the standard error of that.

    Pieces with one start make a pair: the mean difference of all pairs, and its error from how much they differ.
    """
    pairs = np.array([values_of(one) / values_of(other) - 1 for one, other in zip(some, true, strict=False)])
    bars = pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else np.full(pairs.shape[1], np.nan)
    return {name: [float(v), float(b)] for name, v, b in zip(("H", "O", *SHAPE), pairs.mean(axis=0), bars, strict=True)}


# --- time a step


def eager(bundle: Path, file: Path) -> None:
    """Write a bundle's model as mace-torch has it, for i-PI's driver. Raises ModelError where it cannot be made."""
    import torch

    from beadwork.potential.architecture import mace_imported, rebuild

    with mace_imported():
        scripted = torch.jit.load(str(bundle / "model.pt"))
        parts = dict(scripted.named_modules())
        settings = load_card(bundle).about["settings"]
        count = settings["num_interactions"]
        blocks = [parts[f"interactions.{k}"] for k in range(count)]
        description = {
            "class": settings["model"],
            "r_max": settings["r_max"],
            "num_bessel": len(scripted.state_dict()["radial_embedding.bessel_fn.bessel_weights"]),
            "num_polynomial_cutoff": int(scripted.state_dict()["radial_embedding.cutoff_fn.p"]),
            "max_ell": settings["max_ell"],
            "interaction_cls": blocks[-1].original_name,
            "interaction_cls_first": blocks[0].original_name,
            "num_interactions": count,
            "hidden_irreps": settings["hidden_irreps"],
            "MLP_irreps": settings["MLP_irreps"],
            "avg_num_neighbors": [float(block.avg_num_neighbors) for block in blocks],
            "correlation": settings["correlation"],
            "gate": "silu",
            "pair_repulsion": "pair_repulsion_fn" in parts,
            "radial_type": "bessel",
            "radial_MLP": [64, 64, 64],
            "heads": ["Default"],
        }
        torch.save(rebuild(description, scripted.state_dict()), file)


def ours(plan: Plan) -> Callable[[peers.Place, peers.Setting], peers.Parts]:
    """beadwork with a plan: its forcefields, and one server for them."""

    def build(place: peers.Place, setting: peers.Setting) -> peers.Parts:
        root = elements(plan, place.folder.name)
        texts = [
            "".join(ElementTree.tostring(e, encoding="unicode") for e in among)
            for among in (root.findall("ffsocket"), part(root, "system/forces"))
        ]
        command = [
            sys.executable,
            "-m",
            "beadwork",
            "serve",
            "input.xml",
            "--threads",
            "1",
            "--dtype",
            place.size.dtype,
        ]
        command += ["--baseline", str(BUNDLES[0]), "--delta", str(MODELS), "--queue", "queue.db"]
        command += ["--at", "baseline=baseline", "delta=delta"] if plan.apart else []
        return peers.Parts(*texts, [command])

    return build


@dataclass
class Timed(peers.Peer):
    """A peer with the start and the time steps of a plan."""

    plan: Plan = PLAIN

    def _write(self, parts: peers.Parts) -> None:
        folder, system = self.place.folder, read_simulation(INPUT).systems[0]
        shutil.copy(INPUT.parent / "init.xyz", folder / "start.xyz")
        # the driver's template, by a name that peers knows
        atoms = ase.Atoms(system.numbers, system.positions[0], cell=system.cell, pbc=True)
        ase.io.write(folder / "init.xyz", atoms, format="extxyz")
        root = elements(self.plan, folder.name)
        part(root, "system/initialize/file").text = "start.xyz"
        for entry in root.findall("ffsocket"):
            root.remove(entry)
        root.extend(ElementTree.fromstring(f"<all>{parts.forcefields}</all>"))
        replace(part(root, "system"), forces=f"<forces>{parts.forces}</forces>")
        lines = (
            "<trajectory stride='1000000' filename='force' format='xyz'>forces</trajectory>"
            "<properties stride='1' filename='properties'>[step, potential, conserved, kinetic_md]</properties>"
        )
        replace(root, output=f"<output prefix='out'>{lines}</output>", total_steps="<total_steps>1000000</total_steps>")
        ElementTree.ElementTree(root).write(folder / "input.xml", encoding="unicode")

    def cores_of(self, steps: int) -> list[float]:
        """Seconds of cores that each of so many steps takes, after one that is not counted."""
        lines = self._lines() + 1
        self._signal(signal.SIGCONT)
        seen = []
        for k in range(1 + steps):
            self._wait(lines + k, self.patience)
            seen.append(self.cores())
        self._signal(signal.SIGSTOP)
        return np.diff(seen).tolist()  # type: ignore[no-any-return]


PEER = "ffcommittee over i-PI's MACE"
#: what is timed: its plan, and how many steps of i-PI a turn
TIMED = {
    "eco": (PLANS["eco"], 4),
    "piglet-mts": (PLANS["piglet-mts"], 6),
    "one forcefield, beadwork": (PLAIN, 3),
    PEER: (PLAIN, 1),
}


def clock(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of cores a step and a picosecond, of all in turns, and the potential of step 0."""
    models = folder / "models"
    models.mkdir(exist_ok=True)
    files = [models / f"{bundle.name}.model" for bundle in BUNDLES]
    for bundle, file in zip(BUNDLES, files, strict=True):
        if not file.exists():
            eager(bundle, file)
    all_of_them = []
    for number, (name, (plan, _)) in enumerate(TIMED.items()):
        build = peers.ffcommittee_direct if name == PEER else ours(plan)
        size = Size(plan.beads, WATERS, members=4, dtype="float32")
        place = peers.Place(folder / f"timed-{number}", size, files, BUNDLES, f"converged-timed-{number}")
        all_of_them.append(Timed(name, place, peers.Setting(), build, 600.0, plan=plan))
    found: dict[str, Any] = {name: {"steps": []} for name in TIMED}
    with peers.running(all_of_them):
        for peer in all_of_them:
            peer.start()
            found[peer.name]["potential"] = float(peer.properties()[0, 1]) * HARTREE
        for _ in range(rounds):
            for peer in all_of_them:
                found[peer.name]["steps"].append(peer.cores_of(TIMED[peer.name][1]))
    for name, (plan, _) in TIMED.items():
        means = [float(np.mean(one)) * 1000 / plan.outer for one in found[name]["steps"]]
        found[name] |= {"seconds_a_ps": float(np.median(means)), "range": [min(means), max(means)]}
    return found


# --- report


def precision(folder: Path) -> dict[str, float]:
    """What float32 changes in the forces of baseline and Δ: root mean squares, eV/Å, on the beads of a frame."""
    import beadwork

    _, positions, _, cell = next(frames(pieces_of("reference", folder)[0]))
    numbers = np.array(read_simulation(INPUT).systems[0].numbers)
    ring = [Frame(numbers, one, cell, (True,) * 3, k) for k, one in enumerate(positions[::4])]
    single, double = (
        beadwork.load(BUNDLES[0], BUNDLES[1:], dtype=dtype).evaluate(ring).forces for dtype in ("float32", "float64")
    )
    return {"difference": float(np.sqrt(np.mean((single - double) ** 2))), "forces": float(np.sqrt(np.mean(double**2)))}


def harmonic(folder: Path) -> dict[str, dict[str, float]]:
    """What `beadwork plan` says of the plans: relative errors for the vibrations of the input's structure."""
    file = folder / "modes.npz"
    if not file.exists():
        config = ServeConfig(simulation=str(INPUT), baseline=str(BUNDLES[0]), delta=(str(MODELS),), dtype="float32")
        system = read_simulation(INPUT).systems[0]
        found = vibrations(load_for(config), system.frame(periodic=True), system.names, system.masses)
        np.savez(file, omega2=found.omega2, delta2=found.delta2, most=found.most, **found.weights)
    saved = np.load(file)
    weights = {symbol: saved[symbol] for symbol in ("H", "O")}
    modes = Modes(saved["omega2"], saved["delta2"], weights, {"H": 2 * WATERS, "O": WATERS}, float(saved["most"]))
    modes = compress(without_barriers(modes, KELVIN)[0])
    noise = colored_noise(INPUT, KELVIN)
    plans = {**PLANS, "peer": PLAIN}
    return {
        name: errors(modes, dataclasses.replace(plan, noise=noise if plan.springs == "piglet" else None), KELVIN)
        for name, plan in plans.items()
    }


def report(folder: Path) -> dict[str, Any]:
    """All that is known so far."""
    found = {kind: read(kind, pieces_of(kind, folder)) for kind in PLANS if pieces_of(kind, folder)}
    # too short for an error bar
    found = {kind: pieces for kind, pieces in found.items() if sum(len(piece.shape) for piece in pieces) >= FEWEST}
    rows: dict[str, Any] = {}
    for kind, pieces in found.items():
        ps = sum(len(piece.kinetic) for piece in pieces) * PLANS[kind].outer / 1000
        row: dict[str, Any] = {"pieces": len(pieces), "ps": ps, "lost": [piece.lost for piece in pieces]}
        less = [piece.less for piece in pieces if piece.less is not None]
        for name, series in (("plain", [piece.kinetic for piece in pieces]), ("less", less)):
            if series:
                mean, error = np.concatenate(series).mean(axis=0), uncertainty(series).statistical
                row[name] = {s: [float(m), float(e)] for s, m, e in zip("HO", mean, error, strict=True)}
        values, bars = shapes_of(pieces)
        row["shape"] = {name: [float(v), float(b)] for name, v, b in zip(SHAPE, values, bars, strict=True)}
        rows[kind] = row
    for kind, row in rows.items():
        row["bias"] = apart(found[kind], found["reference"])
    time_file = folder / "time.json"
    return {
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "plans": rows,
        "harmonic": harmonic(folder),
        "precision": precision(folder),
        "time": json.loads(time_file.read_text(encoding="utf-8")) if time_file.exists() else None,
    }


def words_of(plan: Plan) -> str:
    """A plan in a line."""
    step = f"{plan.timestep:g} fs" + (", Cayley" if plan.cayley else "")
    delta = (
        f"Δ every {plan.outer:g} fs on {plan.delta_beads} bead{'s' * (plan.delta_beads > 1)}"
        if plan.apart
        else "one forcefield"
    )
    return f"{plan.beads} {plan.springs}, {step}, {delta}"


def percent(pair: Sequence[float]) -> str:
    """A relative value and its error."""
    return f"{100 * pair[0]:+.2f} ± {100 * pair[1]:.2f} %"


def table(found: dict[str, Any]) -> str:
    """The Markdown page."""
    lines = [
        "# Quantum water at 300 K: what plans are off by, and what they cost",
        "",
        f"{found['when']}, `benchmarks/converged_water.py`. {WATERS} H2O, models/water-revpbe0-d3, float32. Kinetic "
        "energies in meV an atom; all errors are one standard error: of a plan by blocks, of differences by pairs of "
        "pieces with the same start.",
        "",
        "| plan | | ps | T(H) | T(O) | T(H), less noise | T(O), less noise | hydrogens that left their oxygen |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, row in found["plans"].items():
        both = [
            f"{1e3 * row[name][s][0]:.2f} ± {1e3 * row[name][s][1]:.2f}" if name in row else "–"
            for name in ("plain", "less")
            for s in "HO"
        ]
        lost = ", ".join(map(str, row["lost"]))
        lines.append(f"| {kind} | {words_of(PLANS[kind])} | {row['ps']:.2f} | {' | '.join(both)} | {lost} |")
    names = ("H", "O", *SHAPE)
    lines += [
        "",
        "Against `reference`:",
        "",
        "| plan | T(H), harmonic | T(H) | T(O), harmonic | T(O) | " + " | ".join(SHAPE) + " |",
        "|---|---|---|---|---|" + "---|" * len(SHAPE),
    ]
    for kind, row in found["plans"].items():
        told = found["harmonic"][kind]
        cells = [f"{100 * told['kinetic H']:+.2f} %", percent(row["bias"]["H"])]
        cells += [f"{100 * told['kinetic O']:+.2f} %", *(percent(row["bias"][name]) for name in names[1:])]
        if kind == "reference":
            cells[1:2], cells[3:] = ["–"], ["–"] * (len(cells) - 3)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    difference = found["precision"]
    lines += [
        "",
        f"Forces in float32 are {1e3 * difference['difference']:.1g} meV/Å from those in float64 (root mean squares; "
        f"the forces themselves {1e3 * difference['forces']:.3g}).",
    ]
    if found["time"]:
        peer = found["time"][PEER]["seconds_a_ps"]
        lines += ["", "| | core seconds a ps | least, most of a turn | the peer, times |", "|---|---|---|---|"]
        for name, row in found["time"].items():
            low, high = row["range"]
            ratio = "" if name == PEER else f"{peer / row['seconds_a_ps']:.3g}"
            cells = [f"{row['seconds_a_ps']:.4g}", f"{low:.4g} to {high:.4g}", ratio]
            lines.append(f"| {name}: {words_of(TIMED[name][0])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, time or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("kinds", choices=PLANS, nargs="+")
    running.add_argument("folder", type=Path)
    running.add_argument("--ps", type=float, default=1.0, help="length of a piece")
    running.add_argument("--starts", type=Path, nargs="+", required=True, help="one for each piece")
    running.add_argument("--until", help="HH:MM UTC of today, when what is under way is ended with a RESTART")
    timing = commands.add_parser("time")
    timing.add_argument("folder", type=Path)
    timing.add_argument("--rounds", type=int, default=3)
    commands.add_parser("report").add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"SYMMETRIX_HOST_WORKER_BLAS": "off", "OMP_NUM_THREADS": "1"}
    if args.command == "run":
        end = None if args.until is None else today(args.until)
        run(args.kinds, args.folder.absolute(), args.ps, [file.absolute() for file in args.starts], end)
    elif args.command == "time":
        found = clock(args.folder.absolute(), args.rounds)
        (args.folder / "time.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found, indent=1))
    else:
        found = report(args.folder.absolute())
        (HERE / "results" / "converged_water.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (HERE / "results" / "converged_water.md").write_text(table(found), encoding="utf-8")
        print(table(found))


def today(text: str) -> float:
    """Seconds since 1970 of HH:MM UTC."""
    hour, minute = map(int, text.split(":"))
    return datetime.datetime.now(datetime.timezone.utc).replace(hour=hour, minute=minute, second=0).timestamp()


if __name__ == "__main__":
    main()
