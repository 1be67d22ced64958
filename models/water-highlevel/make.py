"""Make everything here, step by step; each can be interrupted and given again.

    python models/water-highlevel/geometries.py build/highlevel/start.xyz
    python models/water-highlevel/make.py label PBE      # PBE/cc-pVDZ with forces, for the baseline
    python models/water-highlevel/make.py label MP2      # MP2/cc-pVDZ with forces, for the first Δ
    python models/water-highlevel/make.py baseline CLUSTERS.extxyz.gz …
    python models/water-highlevel/make.py delta          # the committee to begin with
    python models/water-highlevel/simulations.py build/highlevel/start.xyz build/highlevel/simulations
    beadwork learn models/water-highlevel/loop.toml      # harvest, label, train, validate, run again
    beadwork label build/highlevel/loop/queue.db --with models/water-highlevel/labeller.toml     # the others that wait
    beadwork models novelty models/water-highlevel       # what the members were trained on: dataset.json
    beadwork models novelty models/water-highlevel/baseline --frames \\
        models/water-highlevel/labels/pbe-start.extxyz CLUSTERS.extxyz.gz …
    python models/water-highlevel/unseen.py build/highlevel/unseen      # MP2 of simulations that no model learned from
    python models/water-highlevel/make.py calibrate      # errors and spread in committee.toml, from those

The loop labels 24 frames a generation; of the 242 behind the shipped committee 237 were labelled beside it (README.md).

CLUSTERS are files with PBE/cc-pVDZ energies and forces as LO_energy and LO_forces: 359 clusters, whose geometries are
of deepks-kit (water, LGPL-3.0), cschran/nn-dms-supporting-data (H3O+ and H5O2+, CC-BY-SA-4.0) and our own (H2 with
water). They are not in this repository.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import tomli_w
from ase import Atoms
from tqdm import tqdm

from beadwork.disk import write_whole
from beadwork.frame import Frame
from beadwork.label.codes.pyscf_labeller import PySCF
from beadwork.potential.bundle import COMMITTEE, members_of
from beadwork.toml import tomllib
from beadwork.train.baseline import train_model
from beadwork.train.calibration import calibrate as calibrated
from beadwork.train.calibration import format_calibration, residuals, scale
from beadwork.train.committee import train_committee
from beadwork.train.dataset import Dataset
from beadwork.train.label_file import from_file
from beadwork.train.plan import apart_of, references
from beadwork.train.settings import TrainSettings
from beadwork.train.split import unseen

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "highlevel"
START = BUILD / "start.xyz"
#: frames of a composition that get PBE labels, by the waters beside the solute; MP2 labels stop at two waters
PBE_FRAMES = {0: 99, 1: 99, 2: 14, 3: 9, 4: 4}
#: energies of the isolated atoms at PBE/cc-pVDZ, eV; `make.py atoms` computes them
ATOMS = {1: -13.568362325459614, 8: -2040.3482839666096}
BASELINE = TrainSettings(
    epochs=60, hidden_irreps="32x0e", held_out=0.1, share=0.9, batch_size=8, pair_repulsion=True, seed=1
)
#: the second half: energies of charged and neutral clusters differ by volts, which forces alone teach slowly
BALANCED = replace(BASELINE, epochs=30, energy_weight=300.0, stage_two_energy_weight=300.0, lr=0.005)
DELTA = TrainSettings(epochs=16, batch_size=5, energy_weight=100.0, held_out=0.15, seed=1)


def waters(atoms: Atoms) -> int:
    """Waters beside the solute."""
    return int(atoms.info["system"].split("+")[1][0])


def wanted(method: str) -> list[Atoms]:
    """The start geometries that get a label of this method, the cheap ones first."""
    frames = ase.io.read(START, ":")
    if method == "MP2":
        chosen = [atoms for atoms in frames if waters(atoms) <= 2]
    else:
        counts: dict[str, int] = {}
        chosen = []
        for atoms in frames:
            system = atoms.info["system"]
            counts[system] = counts.get(system, 0) + 1
            if counts[system] <= PBE_FRAMES[waters(atoms)]:
                chosen.append(atoms)
    return sorted(chosen, key=len)


def compute(method: str, atoms: Atoms) -> Atoms:
    """One label, as a frame with REF_energy and REF_forces."""
    label = PySCF(method, "cc-pVDZ").label(Frame.from_atoms(atoms), int(atoms.info["charge"]), 0)
    out = Atoms(atoms.symbols, atoms.positions)
    out.info |= {"system": atoms.info["system"], "charge": label.charge, "spin": label.spin}
    out.info |= {"REF_energy": label.energy, "method": label.method, "code": label.code, "version": label.version}
    out.arrays["REF_forces"] = label.forces
    return out


def label(method: str) -> None:
    """Label what has no label yet, one process a core, each frame written as it is done."""
    out = HERE / "labels" / f"{method.lower()}-start.extxyz"
    out.parent.mkdir(exist_ok=True)
    done = ase.io.read(out, ":") if out.exists() else []
    left = [
        a for a in wanted(method) if not any(len(a) == len(d) and np.allclose(a.positions, d.positions) for d in done)
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for atoms in tqdm(pool.map(compute, [method] * len(left), left), total=len(left), unit="label"):
            ase.io.write(out, atoms, format="extxyz", append=True)


def baseline(clusters: list[str]) -> None:
    """Train on the clusters given and on our own labels: forces first, then energies and forces in balance."""
    frames = ase.io.read(HERE / "labels" / "pbe-start.extxyz", ":")
    for file in clusters:
        for atoms in ase.io.read(file, ":"):
            plain = Atoms(atoms.symbols, atoms.positions)
            plain.info |= {"charge": int(atoms.info["charge"]), "REF_energy": atoms.info["LO_energy"]}
            plain.info |= {"system": atoms.info["system"], "method": frames[0].info["method"], "code": "PySCF"}
            plain.arrays["REF_forces"] = atoms.arrays["LO_forces"]
            frames.append(plain)
    data = BUILD / "baseline.extxyz"
    ase.io.write(data, frames, format="extxyz")
    examples = from_file(data, None)
    command = "models/water-highlevel/make.py baseline"
    train_model(examples, BUILD / "forces", BASELINE, ATOMS, print, command)
    train_model(examples, HERE / "baseline", BALANCED, ATOMS, print, command, BUILD / "forces")


def delta() -> None:
    """Train the committee that the loop begins with."""
    examples = from_file(HERE / "labels" / "mp2-start.extxyz", HERE / "baseline")
    train_committee(
        examples, HERE / "baseline", BUILD / "gen", DELTA, None, print, "models/water-highlevel/make.py delta"
    )


def calibrate() -> None:
    """Measure errors and spread of the committee that is here on labels of other simulations; write committee.toml."""
    members = members_of([HERE])
    examples = from_file(HERE / "labels" / "mp2-unseen.extxyz", HERE / "baseline")
    found = residuals(unseen(examples, Dataset.read(HERE)), members, references(members[0]), apart_of(members[0]))
    fitted = calibrated(found)
    # each half of the simulations is tested once: 39 of them know the energies' coverage to 6 points
    crossed = calibrated(found, found.halves(found.energy)[1])
    card = tomllib.loads((HERE / COMMITTEE).read_text(encoding="utf-8"))
    measured = found.measured | {"alpha": format_calibration(fitted), "halves_exchanged": format_calibration(crossed)}
    write_whole(HERE / COMMITTEE, tomli_w.dumps(card | scale(found, fitted) | {"held_out": measured}))
    print(measured)


def atoms() -> None:
    """Print the energies of the isolated atoms."""
    for symbol, spin in (("H", 1), ("O", 2)):
        frame = Frame.from_atoms(Atoms(symbol, [[0, 0, 0]]))
        print(symbol, repr(PySCF("PBE", "cc-pVDZ", forces=False).label(frame, 0, spin).energy))


if __name__ == "__main__":
    step, *rest = sys.argv[1:]
    {
        "label": label,
        "baseline": lambda *files: baseline(list(files)),
        "delta": delta,
        "calibrate": calibrate,
        "atoms": atoms,
    }[step](*rest)
