"""Coupled-cluster labels of H5O2+, step by step; each can be interrupted and given again.

    python models/zundel-cc/make.py geometries build/zundel-cc   # writes geometries.extxyz.gz, 800, and held-out, 60
    beadwork queue add build/zundel-cc/cc.db models/zundel-cc/geometries.extxyz.gz --not-periodic
    nice -n 19 beadwork label build/zundel-cc/cc.db --with models/zundel-cc/labeller.toml
    beadwork queue export build/zundel-cc/cc.db build/zundel-cc/labelled.extxyz --status labelled
    python models/zundel-cc/make.py keep cc build/zundel-cc/labelled.extxyz          # in labels/, 50 a file

and so for pbe0 (the baseline's labels, with labeller-baseline.toml) and held-out. Then, from the labels that are here:

    for kind in cc pbe0 held-out; do python models/zundel-cc/make.py join $kind build/zundel-cc/$kind.extxyz; done
    beadwork train build/zundel-cc/pbe0.extxyz --as-baseline --out build/zundel-cc/first \\
        --settings models/zundel-cc/train-baseline.toml
    beadwork train build/zundel-cc/pbe0.extxyz --as-baseline --from build/zundel-cc/first \\
        --out models/zundel-cc/baseline --settings models/zundel-cc/train-baseline-2.toml
    beadwork train build/zundel-cc/cc.extxyz --baseline models/zundel-cc/baseline --out build/zundel-cc/delta \\
        --settings models/zundel-cc/train-delta.toml
    python models/zundel-cc/make.py calibrate build/zundel-cc/held-out.extxyz build/zundel-cc/delta   # and copy it here

The geometries: beads of path-integral MD (16 beads) and frames of classical MD, both at 300 K with the models of
models/water-highlevel, and such beads whose waters were moved along the line between their oxygens to distances of 2.2
to 2.9 Å, with the proton anywhere between them, also far off the middle.
"""

from __future__ import annotations

import gzip
import io
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import tomli_w
from ase import Atoms
from ase.units import kJ, mol

from beadwork.disk import write_whole
from beadwork.potential.bundle import COMMITTEE, members_of
from beadwork.toml import tomllib
from beadwork.train.calibration import Residuals, format_calibration, residuals, scale
from beadwork.train.calibration import calibrate as calibrated
from beadwork.train.dataset import Dataset
from beadwork.train.label_file import from_file
from beadwork.train.plan import apart_of, references
from beadwork.train.split import unseen

HERE = Path(__file__).parent
MODELS = HERE.parent / "water-highlevel"
BOX = 40.0  # Å, so large that no image matters
#: seed, beads, steps of 0.5 fs, steps between two frames, and which beads are taken
SIMULATIONS = {
    "classical": (100, 1, 10_000, 40, (0,)),
    "pimd": (101, 16, 3_000, 20, (0, 5, 11)),
    "held-out-classical": (102, 1, 4_000, 40, (0,)),
    "held-out-pimd": (103, 16, 1_200, 20, (0, 5, 11)),
}
#: of each file the simulations, how many frames of each are kept, and how many of the latter are stretched
FILES = {
    "geometries": (20, {"classical": 200, "pimd": 300}, 300),
    "held-out": (21, {"held-out-classical": 20, "held-out-pimd": 20}, 20),
}
DISTANCES = (2.2, 2.9)  # Å, between the oxygens
NEAREST = 0.9  # Å, of the proton to an oxygen
A_FILE = 50
KJ_MOL_OF_EV = mol / kJ
INPUT = """<simulation verbosity='low' safe_stride='1000'>
  <output prefix='simulation'>
    <properties stride='20' filename='out'> [ step, temperature{{kelvin}}, potential{{electronvolt}} ] </properties>
    <trajectory stride='{stride}' filename='pos' format='xyz' cell_units='angstrom'> positions{{angstrom}} </trajectory>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>{seed}</seed></prng>
  <ffsocket name='beadwork' mode='unix'>
    <address>zundel-cc-{name}</address>
    <batch_size>{beads}</batch_size>
    <latency>1e-3</latency>
  </ffsocket>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='xyz'>start.xyz</file>
      <velocities mode='thermal' units='kelvin'>300</velocities>
    </initialize>
    <forces><force forcefield='beadwork'/></forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'>0.5</timestep>
        <thermostat mode='pile_g'><tau units='femtosecond'>50</tau></thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def geometries(out: Path) -> None:
    """Simulate in `out`, stretch, shuffle, and write the files; those held out are of simulations of their own."""
    for file, (seed, counts, stretched) in FILES.items():
        rng = np.random.default_rng(seed)
        found: dict[str, list[Atoms]] = {}
        for name, count in counts.items():
            _simulate(out / name, name)
            bound = [atoms for atoms in _frames(out / name, name) if 2.1 < atoms.get_distance(*_oxygens(atoms)) < 3.2]
            found[name] = [bound[i] for i in rng.permutation(len(bound))[:count]]
            print(f"{name}: {len(found[name])} of {len(bound)} frames of a whole H5O2+")
        # those of path integrals, which came last
        parents = found[name]
        found["stretched"] = [_stretched(parents[int(rng.integers(len(parents)))], rng) for _ in range(stretched)]
        every = [atoms for frames in found.values() for atoms in frames]
        _write(HERE / f"{file}.extxyz.gz", [every[i] for i in rng.permutation(len(every))])


def keep(kind: str, labelled: Path) -> None:
    """Write the labels of a kind to labels/, fifty a file; a file that is full is never written again.

    Each gets the simulation and the step of its geometry: of a stretched one, those of the frame that was stretched.
    """
    geometry = HERE / f"{'held-out' if kind.startswith('held-out') else 'geometries'}.extxyz.gz"
    origins = {_key(atoms): atoms.info for atoms in ase.io.read(geometry, ":")}
    frames = ase.io.read(labelled, ":")
    (HERE / "labels").mkdir(exist_ok=True)
    for first in range(0, len(frames), A_FILE):
        file = HERE / "labels" / f"{kind}-{first // A_FILE:02}.extxyz.gz"
        part = frames[first : first + A_FILE]
        if file.exists() and len(ase.io.read(file, ":")) == A_FILE:
            continue
        _write(file, [_told(atoms, origins[_key(atoms)]) for atoms in part])
    print(f"{len(frames)} labels are in {HERE / 'labels'}")


def join(kind: str, file: Path) -> None:
    """Write all labels of a kind to one file, for `beadwork train` and `beadwork validate`."""
    parts = sorted((HERE / "labels").glob(f"{kind}-[0-9]*.extxyz.gz"))
    frames = [atoms for part in parts for atoms in ase.io.read(part, ":")]
    file.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(file, frames, format="extxyz")
    print(f"{len(frames)} labels of {len(parts)} files are in {file}")


def calibrate(held_out: str, committee: Path) -> None:
    """Copy a committee here, with its errors and its alpha on the labels held out, which no model has seen."""
    for bundle in members_of([committee]):
        shutil.copytree(bundle, HERE / bundle.name, dirs_exist_ok=True)
    members = members_of([committee])
    examples = from_file(Path(held_out), HERE / "baseline")
    found = residuals(unseen(examples, Dataset.read(committee)), members, references(members[0]), apart_of(members[0]))
    fitted = calibrated(found)
    card = tomllib.loads((committee / COMMITTEE).read_text(encoding="utf-8"))
    measured = found.measured | {"alpha": format_calibration(fitted)}
    write_whole(HERE / COMMITTEE, tomli_w.dumps(card | scale(found, fitted) | {"held_out": measured}))
    print(measured)
    _table(found)


def _table(found: Residuals) -> None:
    """Print errors of relative energies in kJ/mol by the distance of the oxygens, by dc, and by origin.

    Error bars are by blocks of the simulations, as in the card; a group of too few has none.
    """
    atoms = [e.frame.to_atoms() for e in found.examples]
    apart = np.array([one.get_distance(*_oxygens(one)) for one in atoms])
    dc = np.abs([_dc(one) for one in atoms])
    size = np.array([len(one) for one in atoms])
    errors = {}
    for name, one in (("baseline", found.baseline_energy), ("baseline + delta", found.energy)):
        whole = one.error * size * KJ_MOL_OF_EV
        errors[name] = replace(one, error=whole - whole.mean())
    groups = {"all": np.ones(len(atoms), dtype=bool)}
    for values, label, edges in ((apart, "d_OO", (2.2, 2.35, 2.45, 2.6, 2.9)), (dc, "|dc|", (0, 0.2, 0.4, 0.6, 1.1))):
        for low, high in itertools.pairwise(edges):
            groups[f"{label} {low} to {high}"] = (values >= low) & (values < high)
    print(f"| | frames | blocks | {' | '.join(errors)} |")
    for group, inside in groups.items():
        if not inside.any():
            continue
        some = [one.take(np.flatnonzero(inside).tolist()) for one in errors.values()]
        cells = [
            f"{value:.2f}" + (f" ± {bar:.2f}" if np.isfinite(bar) else "") for value, bar in (e.rmse for e in some)
        ]
        frames = some[0].frame if some[0].block is None else some[0].block
        print(f"| {group} | {inside.sum()} | {len(np.unique(frames))} | {' | '.join(cells)} |")


def _dc(atoms: Atoms) -> float:
    """The coordination of the first oxygen by hydrogens less that of the second, as `beadwork analyse` has it."""
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    first, second = (atoms.get_distances(oxygen, hydrogens) for oxygen in _oxygens(atoms))
    return float((1 / (1 + (first / 1.4) ** 6)).sum() - (1 / (1 + (second / 1.4) ** 6)).sum())


def _write(file: Path, frames: list[Atoms]) -> None:
    """Write frames so that the same frames give the same bytes."""
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    file.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def _simulate(folder: Path, name: str) -> None:
    """Run i-PI with the models of water-highlevel, where that was not done."""
    if (folder / "done").exists():
        return
    seed, beads, steps, stride, _ = SIMULATIONS[name]
    folder.mkdir(parents=True, exist_ok=True)
    start = next(
        atoms
        for atoms in ase.io.iread(MODELS / "labels" / "pbe-start.extxyz")
        if atoms.info["system"].startswith("H3O+1")
    )
    start.positions += BOX / 2 - start.positions.mean(axis=0)
    lines = [f"{len(start)}", f"# CELL(abcABC): {BOX} {BOX} {BOX} 90 90 90 cell{{angstrom}} positions{{angstrom}}"]
    lines += [f"{a.symbol} {a.x:.8f} {a.y:.8f} {a.z:.8f}" for a in start]
    (folder / "start.xyz").write_text("\n".join(lines) + "\n")
    (folder / "input.xml").write_text(INPUT.format(name=name, beads=beads, steps=steps, stride=stride, seed=seed))
    deltas = [argument for member in sorted(MODELS.glob("delta-*")) for argument in ("--delta", str(member))]
    command = [sys.executable, "-m", "beadwork", "run", "input.xml", "--not-periodic", "--threads", "1"]
    command += ["--baseline", str(MODELS / "baseline"), *deltas, "--dtype", "float32"]
    with open(folder / "log", "w") as log:
        subprocess.run(command, cwd=folder, check=True, stdout=log, stderr=subprocess.STDOUT)
    (folder / "done").touch()


def _frames(folder: Path, name: str) -> Iterator[Atoms]:
    """The frames of the beads that are taken, but for the first tenth of the simulation, in the middle of nowhere."""
    _, beads, _, stride, taken = SIMULATIONS[name]
    for bead in taken:
        file = folder / f"simulation.pos_{bead:0{len(str(beads - 1))}}.xyz"
        trajectory = ase.io.read(file, ":")
        for k, atoms in list(enumerate(trajectory))[len(trajectory) // 10 :]:
            info = {"origin": name, "simulation": name, "step": k * stride}
            yield Atoms(atoms.symbols, atoms.positions - atoms.positions.mean(axis=0), info=info)


def _oxygens(atoms: Atoms) -> tuple[int, int]:
    first, second = np.flatnonzero(atoms.numbers == 8)
    return int(first), int(second)


def _stretched(atoms: Atoms, rng: np.random.Generator) -> Atoms:
    """Both waters moved along the line of their oxygens, and the proton put somewhere between them."""
    atoms = atoms.copy()
    first, second = _oxygens(atoms)
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    away = np.linalg.norm(atoms.positions[hydrogens, None] - atoms.positions[[first, second]], axis=2)
    proton = hydrogens[away.max(axis=1).argmin()]
    line = atoms.positions[second] - atoms.positions[first]
    length = np.linalg.norm(line)
    line /= length
    middle = (atoms.positions[first] + atoms.positions[second]) / 2
    across = atoms.positions[proton] - middle
    across -= across @ line * line
    distance = rng.uniform(*DISTANCES)
    mine = dict(zip(hydrogens.tolist(), away.argmin(axis=1).tolist(), strict=True)) | {first: 0, second: 1}
    for atom, side in mine.items():
        atoms.positions[atom] += (1 if side else -1) * (distance - length) / 2 * line
    room = max(distance / 2 - NEAREST, 0.0)
    atoms.positions[proton] = middle + across + rng.uniform(-room, room) * line
    atoms.info["origin"] = "stretched"
    return atoms


def _key(atoms: Atoms) -> bytes:
    """The same for a geometry and its label, whose files have eight digits."""
    return bytes(np.round(atoms.positions, 6).tobytes())


def _told(atoms: Atoms, origin: Mapping[str, Any]) -> Atoms:
    """What a label is: structure, energy, forces where there are, charge, spin and method; and where it is from."""
    told = Atoms(atoms.symbols, atoms.positions)
    told.info = {name: atoms.info[name] for name in ("REF_energy", "charge", "spin", "method", "code", "version")}
    told.info |= {name: origin[name] for name in ("origin", "simulation", "step")}
    if "REF_forces" in atoms.arrays:
        told.arrays["REF_forces"] = atoms.arrays["REF_forces"]
    return told


STEPS: dict[str, Callable[..., None]] = {"geometries": geometries, "keep": keep, "join": join, "calibrate": calibrate}

if __name__ == "__main__":
    step, *words, path = sys.argv[1:]
    STEPS[step](*words, Path(path))
