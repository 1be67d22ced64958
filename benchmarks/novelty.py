"""What does novelty see that the spread does not? Fifteen kinds of structure that water-revpbe0-d3 never saw.

    python models/water-revpbe0-d3/frames.py scratch/known
    python benchmarks/novelty.py --data water64.extxyz.gz --work scratch/ --known scratch/known/simulation-[A-L].extxyz

Needs the training frames (84 of 64 H2O, models/water-revpbe0-d3/README.md says whose), and PyPI's `dftd3` for the
truth about Δ. Simulates with the shipped models first: twice, from unlike starts and seeds, liquid water of 32 H2O at
300 K (classical, and 16 beads with real i-PI), at 1000 K, ice, an excess proton and H2 (16 beads); what is done is kept
in the work folder. The models have learned from classical water and from beads, so both are known. Of each simulation
there are 20 frames or more; those of OH-, of stretched bonds, of scaled boxes, of clusters and of H2O2 are made of the
frames of classical water.

The simulations of frames.py are more known water: a false flag in a hundred frames wants hundreds of them. Every number
has its threshold fixed on one half of the simulations of known water, and is tested on the other. Novelty has the one
that ships (1). Writes results/novelty.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# asks the dynamic linker for nothing at every call (Symmetrix-XL 0.1.1); one thread, as all parts are timed
os.environ.setdefault("SYMMETRIX_HOST_WORKER_BLAS", "off")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_PROC_BIND", "false")

import ase.io
import matplotlib
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixCom
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ipi.utils.io import iter_file_name_raw
from scipy.spatial import cKDTree
from tqdm import tqdm

import beadwork
from beadwork.events import NOVELTY_EDGE
from beadwork.ipi.outputs import structure
from beadwork.ipi.simulation import read_simulation
from beadwork.potential.bundle import check
from beadwork.potential.features import features
from beadwork.potential.graph import build
from beadwork.potential.novelty import load_training_set
from beadwork.potential.threads import set_threads

HERE = Path(__file__).parent
ROOT = HERE.parent
MODELS = ROOT / "models" / "water-revpbe0-d3"
MEMBERS = [MODELS / f"delta-{m}" for m in range(4)]
#: structures a kind and simulation
FRAMES = 20
#: of each simulation D3 is asked about so many frames, a second each
TRUE = 5
#: of the frames of known water that a rival may call new
FALSE = 0.005
#: what the models have learned from: the first fixes thresholds
KNOWN = ("known water", "known water, 16 beads")
#: kinds that must be flagged without exception; beads of quantum water, which the models have learned from, reach an
#: O-H of 1.3 Å
ALWAYS = (
    "excess proton, 16 beads",
    "H2, 16 beads",
    "a proton put in",
    "H2 put in",
    "OH-",
    "O-H at 1.5 Å",
    "O-H at 2.0 Å",
)


# -- simulations ------------------------------------------------------------------------------------------------------


def starts() -> dict[str, Atoms]:
    """The start structures of inputs/water, and of ice."""
    water = read_simulation(ROOT / "inputs" / "water" / "input.xml").systems[0].frame().to_atoms()
    return {"water": water, "ice": ice()}


def dynamics(atoms: Atoms, temperature: float, steps: int, seed: int, file: Path | None = None, every: int = 0) -> None:
    """Langevin dynamics with the baseline, 0.5 fs; frames go to a file."""
    rng = np.random.default_rng(seed)
    atoms.set_constraint()
    thermalize_momenta(atoms, temperature, rng=rng)
    atoms.set_constraint(FixCom())
    run = Langevin(atoms, 0.5 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng, fixcm=False)
    found: list[Atoms] = []
    if file is not None:
        run.attach(lambda: found.append(Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)), every)
    run.run(steps)
    if file is not None:
        part = file.with_name(f".{file.name}")
        ase.io.write(part, found[1:], format="extxyz")
        part.rename(file)


def classical(work: Path, say: Callable[[str], None]) -> None:
    """Water of two histories: from the input's start, and from one that 450 K have scrambled; both at 1000 K; ice.

    At 700 K the shipped baseline lets protons go, and what has ions in it is no known water: it is looked for.
    """
    for name, seed in (("A", 1), ("B", 2)):
        if (work / f"hot-{name}.xyz").exists():
            continue
        atoms = starts()["water"]
        atoms.calc = beadwork.BeadworkCalculator(beadwork.load(MODELS / "baseline"))
        say(f"classical water {name}")
        if name == "B":
            dynamics(atoms, 450, 4000, 10)
        dynamics(atoms, 300, 1500, seed)
        if ions(atoms):
            raise ValueError(f"water {name} has ions in it; take another seed")
        if name == "B":
            write_start(work / "init-B.xyz", atoms)
        dynamics(atoms, 300, 100 * FRAMES, 20 + seed, work / f"water-{name}.xyz", 100)
        dynamics(atoms, 1000, 500, 30 + seed)
        dynamics(atoms, 1000, 50 * FRAMES, 40 + seed, work / f"hot-{name}.xyz", 50)
    for name, seed in (("A", 3), ("B", 4)):
        if not (work / f"ice-{name}.xyz").exists():
            say(f"ice {name}")
            atoms = ice(seed)
            atoms.calc = beadwork.BeadworkCalculator(beadwork.load(MODELS / "baseline"))
            dynamics(atoms, 250, 1000, seed)
            dynamics(atoms, 250, 50 * FRAMES, 20 + seed, work / f"ice-{name}.xyz", 50)


def write_start(file: Path, atoms: Atoms) -> None:
    """i-PI's xyz of a cubic box."""
    title = re.search("# CELL.*", (ROOT / "inputs" / "water" / "init.xyz").read_text())
    rows = [f"{s} {x:.8f} {y:.8f} {z:.8f}" for s, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)]
    file.write_text("\n".join([str(len(atoms)), title[0] if title else "", *rows]) + "\n")


def quantum(work: Path, say: Callable[[str], None]) -> None:
    """Sixteen beads with real i-PI, from the inputs' starts, and for B from the scrambled one."""
    scrambled = read_xyz(work / "init-B.xyz")
    protonated = add_proton(scrambled, np.random.default_rng(5))
    with_h2 = put_h2(scrambled, np.random.default_rng(6))
    own = {"water": scrambled, "zundel-water": protonated, "h2-water": with_h2}
    for kind, steps in (("water", 160), ("zundel-water", 100), ("h2-water", 100)):
        for name, seed in (("A", 7), ("B", 8)):
            folder = work / f"{kind}-{name}"
            if (folder / "summary.json").exists():
                continue
            say(f"16 beads of {kind} {name}, {steps} steps")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            source = ROOT / "inputs" / kind
            text = (source / "input.xml").read_text()
            text = re.sub(r"<trajectory.*?</trajectory>", "", text, flags=re.DOTALL)
            text = re.sub(r"<total_steps>\d+", f"<total_steps>{steps}", text).replace(">31415<", f">{seed}<")
            beads = "<trajectory stride='10' filename='pos' format='xyz'> positions{angstrom} </trajectory>"
            (folder / "input.xml").write_text(text.replace("<checkpoint", f"{beads}<checkpoint"))
            shutil.copy(source / "init.xyz", folder / "init.xyz")
            if name == "B":
                write_start(folder / "init.xyz", own[kind])
            command = [sys.executable, "-m", "beadwork.cli", "run", "input.xml", "--threads", "1"]
            command += ["--baseline", MODELS / "baseline", "--delta", MEMBERS[0], "--dtype", "float32"]
            with open(folder / "log", "w") as log:
                subprocess.run(command, cwd=folder, check=True, stdout=log, stderr=subprocess.STDOUT)


def read_xyz(file: Path) -> Atoms:
    """The first frame of i-PI's xyz."""
    for raw in iter_file_name_raw(str(file)):
        return structure(raw, "xyz").to_atoms()
    raise ValueError(f"{file} holds no frame")


def beads(folder: Path, skip: int) -> list[Atoms]:
    """Every fifth frame of each bead, not of all at the same time, after so many."""
    files = sorted(folder.glob("simulation.pos_*.xyz"))
    frames = []
    for bead, file in enumerate(files):
        for k, raw in enumerate(iter_file_name_raw(str(file))):
            if k >= skip and (k + 3 * bead) % 5 == 0:
                frames.append(structure(raw, "xyz").to_atoms())
    return frames


# -- structures made by hand ------------------------------------------------------------------------------------------


def molecules(atoms: Atoms) -> dict[int, list[int]]:
    """The two hydrogens of each oxygen of water."""
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    return {
        int(o): hydrogens[np.argsort(atoms.get_distances(o, hydrogens, mic=True))[:2]].tolist()
        for o in np.flatnonzero(atoms.numbers == 8)
    }


def ions(atoms: Atoms) -> int:
    """How many oxygens are nearest to other than two hydrogens."""
    oxygens, hydrogens = np.flatnonzero(atoms.numbers == 8), np.flatnonzero(atoms.numbers == 1)
    owner = [int(atoms.get_distances(h, oxygens, mic=True).argmin()) for h in hydrogens]
    return int((np.bincount(owner, minlength=len(oxygens)) != 2).sum())


def bond(atoms: Atoms, o: int, h: int) -> np.ndarray:
    """The vector of a bond, Å."""
    return np.asarray(atoms.get_distance(o, h, mic=True, vector=True))


def add_proton(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """A third hydrogen on one oxygen, where a lone pair was that nobody's hydrogen points to."""
    waters = list(molecules(atoms).items())
    for k in rng.permutation(len(waters)):
        o, hs = waters[k]
        one, two = (bond(atoms, o, h) for h in hs)
        away = -(one + two) / np.linalg.norm(one + two)
        side = np.cross(one, two) / np.linalg.norm(np.cross(one, two))
        for sign in (1, -1):
            new = atoms.copy()
            new.append("H")
            new.positions[-1] = atoms.positions[o] + 0.5 * away + sign * 0.87 * side
            others = [n for n in range(len(atoms)) if n != o]
            if new.get_distances(len(atoms), others, mic=True).min() > 1.2:
                return new
    raise ValueError("every lone pair has a hydrogen bond")


def put_h2(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """One water replaced by H2 of 0.74 Å."""
    o, hs = list(molecules(atoms).items())[rng.integers((atoms.numbers == 8).sum())]
    along = bond(atoms, o, hs[0])
    along *= 0.37 / np.linalg.norm(along)
    new = atoms.copy()
    new.positions[hs] = new.positions[o] + [along, -along]
    del new[o]
    return new


def made(frames: Sequence[Atoms], seed: int) -> dict[str, list[Atoms]]:
    """The kinds that are made of frames of water."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Atoms]] = {}
    for atoms in frames:
        waters = molecules(atoms)
        o = list(waters)[rng.integers(len(waters))]
        along = bond(atoms, o, waters[o][0])
        along /= np.linalg.norm(along)
        ion = atoms.copy()
        del ion[waters[o][0]]
        found.setdefault("OH-", []).append(ion)
        found.setdefault("a proton put in", []).append(add_proton(atoms, rng))
        found.setdefault("H2 put in", []).append(put_h2(atoms, rng))
        for length in (1.3, 1.5, 2.0):
            far = atoms.copy()
            far.positions[waters[o][0]] = far.positions[o] + length * along
            found.setdefault(f"O-H at {length} Å", []).append(far)
        for factor in (0.95, 1.05, 1.10):
            scaled = atoms.copy()
            for one, hs in waters.items():
                scaled.positions[one] *= factor
                for h in hs:
                    scaled.positions[h] = scaled.positions[one] + bond(atoms, one, h)
            scaled.set_cell(atoms.cell * factor)
            found.setdefault(f"lengths x {factor:.2f}", []).append(scaled)
        apart = atoms.get_distances(o, list(waters), mic=True)
        near = np.array(list(waters))[np.argsort(apart)[:12]]
        cluster = Atoms()
        for one in near:
            place = bond(atoms, o, int(one)) if one != o else np.zeros(3)
            where = [place, *(place + bond(atoms, int(one), h) for h in waters[int(one)])]
            cluster += Atoms("OHH", where)
        found.setdefault("(H2O)12 in vacuum", []).append(cluster)
        peroxide = atoms.copy()
        other = molecule("H2O2")
        other.translate(atoms.positions[o] - other.get_center_of_mass())
        del peroxide[[o, *waters[o]]]
        peroxide += other
        peroxide.set_cell(atoms.cell)
        peroxide.pbc = True
        found.setdefault("H2O2", []).append(peroxide)
    return found


def ice(seed: int = 0) -> Atoms:
    """Ice Ih of 32 molecules at 0.92 g/cm3 with hydrogens in disorder: every oxygen has two, every bond one."""
    a, b, c = 4.5, 4.5 * 3**0.5, 7.34
    third, eighth = 1 / 3, 1 / 16
    base = np.array(
        [
            [0, third, eighth], [0, third, 0.5 - eighth], [0.5, 5 / 6, eighth], [0.5, 5 / 6, 0.5 - eighth],
            [0, 2 / 3, 0.5 + eighth], [0, 2 / 3, 1 - eighth], [0.5, 1 / 6, 0.5 + eighth], [0.5, 1 / 6, 1 - eighth],
        ]
    )  # fmt: skip
    oxygens = Atoms("O8", scaled_positions=base, cell=[a, b, c], pbc=True) * (2, 1, 2)
    rng = np.random.default_rng(seed)
    graph = build([beadwork.Frame.from_atoms(oxygens)], 3.2)
    bonds = [(int(i), int(j), v) for i, j, v in zip(graph.center, graph.neighbor, graph.vectors, strict=True) if i < j]
    gives = rng.random(len(bonds)) < 0.5  # the first of the pair gives its hydrogen
    while True:
        has = np.zeros(len(oxygens), dtype=int)
        for (i, j, _), first in zip(bonds, gives, strict=True):
            has[i if first else j] += 1
        if (has == 2).all():
            break
        # a bond of one that has too many is turned, if that does not make the other as bad
        worst = int(rng.choice(np.flatnonzero(has > 2)))
        mine = [k for k, (i, j, _) in enumerate(bonds) if (i if gives[k] else j) == worst]
        least = min(has[bonds[k][1] if gives[k] else bonds[k][0]] for k in mine)
        k = int(rng.choice([k for k in mine if has[bonds[k][1] if gives[k] else bonds[k][0]] == least]))
        gives[k] = ~gives[k]
    hydrogens = [
        oxygens.positions[i] + 0.97 * v / np.linalg.norm(v)
        if first
        else oxygens.positions[j] - 0.97 * v / np.linalg.norm(v)
        for (i, j, v), first in zip(bonds, gives, strict=True)
    ]
    whole = oxygens + Atoms(f"H{len(hydrogens)}", hydrogens)
    whole.set_cell(oxygens.cell)
    whole.pbc = True
    return whole


# -- numbers that claim to see what is new ----------------------------------------------------------------------------


class Rivals:
    """Of one model: nearest neighbours in whitened features, prediction rigidity of a linear last layer, contacts."""

    def __init__(self, bundle: Path, trained_on: Sequence[beadwork.Frame]) -> None:
        self.bundle, self.training = check(bundle), load_training_set(bundle / "novelty.npz")
        vectors, numbers, _ = features(trained_on, self.bundle)
        self.trees: dict[int, tuple[np.ndarray, np.ndarray, cKDTree]] = {}
        for z in np.unique(numbers):
            mine = vectors[numbers == z]
            values, axes = np.linalg.eigh(np.cov(mine.T))
            white = axes / np.sqrt(np.maximum(values, values[-1] * 1e-9))
            centre = mine.mean(axis=0)
            self.trees[int(z)] = centre, white, cKDTree((mine - centre) @ white)
        # Bigi et al., Mach. Learn.: Sci. Technol. 5, 045018 (2024), with the regularisation of its section 3
        gram = vectors.T @ vectors
        self.rigid = np.linalg.inv(gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram)))

    def __call__(self, frames: Sequence[beadwork.Frame]) -> dict[str, np.ndarray]:
        """(frames,) of each number: its largest of any atom."""
        vectors, numbers, owner = features(frames, self.bundle)
        near = np.zeros(len(numbers))
        for z, (centre, white, tree) in self.trees.items():
            near[numbers == z] = tree.query((vectors[numbers == z] - centre) @ white)[0]
        rigidity = np.sqrt(np.einsum("af,fg,ag->a", vectors, self.rigid, vectors))
        contacts = self.training.contact_novelty(build(frames, self.training.cutoff))
        first = np.flatnonzero(np.diff(owner, prepend=-1))
        values = {"nearest neighbour": near, "prediction rigidity": rigidity, "contacts": contacts}
        return {name: np.maximum.reduceat(value, first) for name, value in values.items()}


def truth(atoms: Atoms) -> np.ndarray:
    """Forces of D3(zero) for revPBE0, eV/Å, as s-dftd3 has them."""
    from dftd3.interface import DispersionModel, ZeroDampingParam

    bohr = units.Bohr
    cell = np.asarray(atoms.cell) / bohr if atoms.pbc.any() else None
    model = DispersionModel(atoms.numbers, atoms.positions / bohr, cell, atoms.pbc if atoms.pbc.any() else None)
    found = model.get_dispersion(ZeroDampingParam(method="revpbe0"), grad=True)
    return -np.asarray(found["gradient"]) * units.Hartree / bohr


def measure(kind: str, frames: Sequence[Atoms], potential: Any, rivals: dict[str, Rivals]) -> dict[str, Any]:
    """All numbers of these frames, a list with one a frame."""
    asked = [beadwork.Frame.from_atoms(atoms) for atoms in frames]
    found: dict[str, list[float]] = {}
    every = -(-len(frames) // TRUE)
    for k, (atoms, frame) in enumerate(zip(tqdm(frames, desc=kind, leave=False), asked, strict=True)):
        answer = potential.evaluate([frame])
        novelty = answer.novelty
        values = {f"novelty of {part}": float(of.max()) for part, of in novelty.of.items()}
        values |= {
            "novelty": float(novelty.largest[0]),
            "atoms": len(atoms),
            "new atoms": int((novelty.atoms > NOVELTY_EDGE).sum()),
            "force spread": float(answer.spread.largest[0]),
            "energy spread": float(answer.spread.energy[0]) / len(atoms),
        }
        if k % every == 0:
            error = answer.delta.forces - truth(atoms)
            values["error of Δ, meV/Å"] = 1e3 * float(np.sqrt((error**2).mean()))
            values["largest error of Δ, meV/Å"] = 1e3 * float(np.linalg.norm(error, axis=1).max())
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    for part, rival in rivals.items():
        for name, of in rival(asked).items():
            both = found.get(name)
            found[f"{name} ({part})"] = of.tolist()
            found[name] = of.tolist() if both is None else np.maximum(both, of).tolist()
    return found


def cost(potential: Any, frames: Sequence[Atoms], rounds: int = 15) -> dict[str, float]:
    """By how much an evaluation of 16 beads is longer with novelty than without, both engines, in turn."""
    asked = [beadwork.Frame.from_atoms(atoms) for atoms in frames[:16]]
    found = {}
    for engine in ("native", "torchscript"):
        knowing = beadwork.load(MODELS / "baseline", MEMBERS[:1], engine=engine)
        plain = beadwork.load(MODELS / "baseline", MEMBERS[:1], engine=engine)
        for pot in (knowing, plain):
            pot.select_backends(asked[0])
        for one in plain.engines:
            one = getattr(one, "_engine", one)
            one.training_set = None
            if hasattr(one, "_evaluator") and hasattr(one._evaluator, "_training_set"):
                one._evaluator._training_set = None
        times: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(rounds if engine == "native" else rounds // 3):
            for name, pot in (("with", knowing), ("without", plain)):
                begin = time.process_time()
                pot.evaluate(asked)
                times[name].append(time.process_time() - begin)
        ratios = np.array(times["with"][1:]) / np.array(times["without"][1:]) - 1
        found[engine] = float(np.median(ratios))
    return found


# -- the report -------------------------------------------------------------------------------------------------------

NUMBERS = ("novelty", "force spread", "energy spread", "prediction rigidity", "nearest neighbour", "contacts")


def collect(work: Path, known: Sequence[Path], with_beads: bool) -> dict[str, dict[str, list[Atoms]]]:
    """Frames by kind and simulation. known: more simulations of known water, which go with the two by turns."""
    found: dict[str, dict[str, list[Atoms]]] = {}

    def put(kind: str, name: str, frames: Sequence[Atoms]) -> None:
        found.setdefault(kind, {})[name] = list(frames)

    for name in "AB":
        water = ase.io.read(work / f"water-{name}.xyz", ":")
        if with_ions := sum(ions(atoms) > 0 for atoms in water):
            raise ValueError(f"{with_ions} of {len(water)} frames of known water {name} have ions; take another seed")
        more = [atoms for file in known["AB".index(name) :: 2] for atoms in ase.io.read(file, ":")]
        put(KNOWN[0], name, [*water, *more])
        for kind, frames in made(water[:FRAMES], ord(name)).items():
            put(kind, name, frames)
        put("1000 K", name, ase.io.read(work / f"hot-{name}.xyz", ":"))
        put("ice Ih, 250 K", name, ase.io.read(work / f"ice-{name}.xyz", ":"))
        if not with_beads:
            continue
        put("excess proton, 16 beads", name, beads(work / f"zundel-water-{name}", 3))
        put("H2, 16 beads", name, beads(work / f"h2-water-{name}", 3))
        put(KNOWN[1], name, beads(work / f"water-{name}", 8))
    return found


def flagged(values: dict[str, dict[str, dict[str, list[float]]]]) -> dict[str, dict[str, float]]:
    """For each kind the part of the frames above each number's threshold; B's is fixed on A, A's on B."""
    other = {"A": "B", "B": "A"}
    found: dict[str, dict[str, float]] = {}
    for kind, runs in values.items():
        found[kind] = {}
        for number in NUMBERS:
            above = []
            for name, of in runs.items():
                mark = (
                    NOVELTY_EDGE
                    if number == "novelty"
                    else np.quantile(values[KNOWN[0]][other[name]][number], 1 - FALSE)
                )
                above += (np.array(of[number]) > mark).tolist()
            found[kind][number] = float(np.mean(above))
    return found


def false_flags(runs: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """What novelty says of frames that are known."""
    new = np.concatenate([np.array(of["new atoms"]) for of in runs.values()])
    atoms = sum(sum(of["atoms"]) for of in runs.values())
    return {
        "frames": len(new),
        "frames_flagged": float(np.mean(new > 0)),
        "atoms_flagged": float(new.sum() / atoms),
        "largest": max(max(of["novelty"]) for of in runs.values()),
    }


def draw(table: dict[str, dict[str, float]], file: Path) -> None:
    """The parts flagged, a row a kind."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = sorted(table, key=lambda kind: kind not in KNOWN)
    values = np.array([[table[kind][number] for number in NUMBERS] for kind in kinds])
    figure, axes = pyplot.subplots(figsize=(8.2, 0.34 * len(kinds) + 1.6), constrained_layout=True)
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
    image.set_clim(0, 1.25)
    axes.set_xticks(range(len(NUMBERS)), [n.replace(" ", "\n", 1) for n in NUMBERS])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    for row, column in np.ndindex(values.shape):
        colour = "white" if values[row, column] > 0.6 else "black"
        axes.text(column, row, f"{100 * values[row, column]:.0f}", ha="center", va="center", color=colour)
    axes.axhline(sum(kind in KNOWN for kind in kinds) - 0.5, color="black", linewidth=1)
    axes.set_xlabel("frames flagged, %; above the line: known water, simulated independently")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="water64.extxyz.gz, for the rivals' training features")
    parser.add_argument("--work", type=Path, required=True, help="folder for the simulations")
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="simulations of frames.py, two at least")
    parser.add_argument("--without-beads", action="store_true", help="leave out what is simulated with i-PI")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    set_threads(1)
    classical(args.work, print)
    if not args.without_beads:
        quantum(args.work, print)
    sets = collect(args.work, args.known, not args.without_beads)
    potential = beadwork.load(MODELS / "baseline", MEMBERS)
    learned = [*ase.io.read(args.data, ":"), *ase.io.read(MODELS / "beads.extxyz.gz", ":")]
    trained_on = [beadwork.Frame.from_atoms(atoms) for atoms in learned]
    known = {part: Rivals(MODELS / name, trained_on) for part, name in (("baseline", "baseline"), ("delta", "delta-0"))}
    values = {
        kind: {name: measure(f"{kind} {name}", frames, potential, known) for name, frames in runs.items()}
        for kind, runs in sets.items()
    }
    table = flagged(values)
    unseen = [kind for kind in table if kind not in KNOWN]
    result = {
        "beadwork": beadwork.__name__,
        "flagged": table,
        "mean_over_unseen_kinds": {n: float(np.mean([table[kind][n] for kind in unseen])) for n in NUMBERS},
        "known": {kind: false_flags(values[kind]) for kind in KNOWN if kind in values},
        "always": {kind: table[kind]["novelty"] for kind in ALWAYS if kind in table},
        "median": {
            kind: {
                number: float(np.median(np.concatenate([runs[name][number] for name in runs])))
                for number in (
                    *NUMBERS,
                    "novelty of baseline",
                    "novelty of delta",
                    "error of Δ, meV/Å",
                    "largest error of Δ, meV/Å",
                )
            }
            for kind, runs in values.items()
        },
        "frames": {kind: {name: len(frames) for name, frames in runs.items()} for kind, runs in sets.items()},
        "longer_by": cost(potential, sets["known water"]["A"]),
    }
    out = HERE / "results"
    (out / "novelty.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "novelty.md").write_text(page(result))
    draw(table, out / "novelty.png")
    print(page(result))


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Novelty beside the spread: what each sees",
        "",
        "`python benchmarks/novelty.py`; shipped models water-revpbe0-d3. Frames flagged, %, by novelty at its default "
        f"threshold of {NOVELTY_EDGE:g}, and by its rivals at the threshold that flags {100 * FALSE:g} % of an "
        "independent simulation of known water. Medians: the largest novelty of any atom, for the baseline and for Δ, "
        f"and the root mean square error of Δ's forces against D3 itself (of {TRUE} frames a simulation).",
        "",
        "| | frames | " + " | ".join(NUMBERS) + " | novelty, baseline | novelty, Δ | error of Δ, meV/Å |",
        "|---|---|" + "---|" * (len(NUMBERS) + 3),
    ]
    for kind, row in sorted(result["flagged"].items(), key=lambda one: one[0] not in KNOWN):
        median = result["median"][kind]
        cells = [f"{100 * row[number]:.0f}" for number in NUMBERS]
        cells += [f"{median[f'novelty of {part}']:.2f}" for part in ("baseline", "delta")]
        cells.append(f"{median['error of Δ, meV/Å']:.1f}")
        lines.append(f"| {kind} | {sum(result['frames'][kind].values())} | " + " | ".join(cells) + " |")
    mean = result["mean_over_unseen_kinds"]
    lines.append(
        "| mean over the kinds never seen | | " + " | ".join(f"{100 * mean[n]:.0f}" for n in NUMBERS) + " | | | |"
    )
    lines += [""]
    for kind, water in result["known"].items():
        lines.append(
            f"{kind.capitalize()}: {100 * water['frames_flagged']:.2f} % of {water['frames']} frames and "
            f"{100 * water['atoms_flagged']:.4f} % of their atoms are above {NOVELTY_EDGE:g}; the largest "
            f"{water['largest']:.2f}."
        )
    lines += [
        "Cost, of an evaluation of 16 beads of 32 H2O on one thread: "
        f"{100 * result['longer_by']['native']:.1f} % with the native engine, "
        f"{100 * result['longer_by']['torchscript']:.1f} % with TorchScript.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
