"""Labels that test the committee: MP2/cc-pVDZ on frames of new simulations, from which no model learned.

    python models/water-highlevel/unseen.py build/highlevel/unseen

Path-integral MD of clusters with one to three waters, with the baseline and the first member (16 beads, 400 steps of
0.5 fs), each from another geometry of labels/pbe-start.extxyz, then of labels/mp2-start.extxyz, and another seed; the
frames are two beads of it, one 200 and one 400 steps after the start. They go to labels/mp2-unseen.extxyz, each with
its simulation, so that a simulation is one block. What is done is kept.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ipi.utils.io import iter_file_name_raw
from simulations import write
from tqdm import tqdm

from beadwork.frame import Frame
from beadwork.ipi.outputs import structure
from beadwork.label.codes.pyscf_labeller import PySCF

HERE = Path(__file__).parent
OUT = HERE / "labels" / "mp2-unseen.extxyz"
STEPS, STRIDE = 400, 200
#: simulations of a solute, by the waters beside it: a label of four molecules costs ten of two
SIMULATIONS = {1: 12, 2: 12, 3: 2}
#: which bead of the frames of one simulation
BEADS = (3, 11)


def simulate(folder: Path) -> None:
    """Run i-PI with the baseline and one Δ."""
    command = [sys.executable, "-m", "beadwork.cli", "run", "input.xml", "--not-periodic", "--threads", "1"]
    command += ["--baseline", HERE / "baseline", "--delta", HERE / "delta-0", "--dtype", "float32"]
    with open(folder / "log", "w") as log:
        subprocess.run(command, cwd=folder, check=True, stdout=log, stderr=subprocess.STDOUT)


def frames(folder: Path) -> Iterator[tuple[int, Atoms]]:
    """Step and structure of one bead at each of the times."""
    for number, bead in enumerate(BEADS, 1):
        trajectory = [
            structure(raw, "xyz") for raw in iter_file_name_raw(str(folder / f"simulation.pos_{bead:02}.xyz"))
        ]
        atoms = trajectory[number].to_atoms()
        yield number * STRIDE, Atoms(atoms.symbols, atoms.positions - atoms.positions.mean(axis=0))


def labelled(work: Path, name: str, start: Atoms, seed: int) -> list[Atoms]:
    """Simulate, and label the frames, as extended XYZ has them."""
    folder = work / name
    write(folder, start, name, STEPS, STRIDE, seed)
    file = folder / "input.xml"  # one member is no committee
    file.write_text(re.sub(r" *<trajectory[^>]*filename='committee'.*\n", "", file.read_text()))
    simulate(folder)
    found = []
    for step, atoms in frames(folder):
        label = PySCF("MP2", "cc-pVDZ").label(Frame.from_atoms(atoms), int(start.info["charge"]), 0)
        atoms.info |= {"system": start.info["system"], "charge": label.charge, "spin": label.spin}
        atoms.info |= {"simulation": name, "time_fs": 0.5 * step, "REF_energy": label.energy}
        atoms.info |= {"method": label.method, "code": label.code, "version": label.version}
        atoms.arrays["REF_forces"] = label.forces
        found.append(atoms)
    return found


def main(work: Path) -> None:
    starts: dict[str, list[Atoms]] = defaultdict(list)
    for file in ("pbe-start.extxyz", "mp2-start.extxyz"):
        for atoms in ase.io.read(HERE / "labels" / file, ":"):
            several = starts[atoms.info["system"]]
            # many geometries have labels of both methods
            if not any(np.allclose(atoms.positions, other.positions, atol=1e-4) for other in several):
                several.append(atoms)
    names = [
        (number, f"{system}-{number}", start)
        for system, several in starts.items()
        for number, start in enumerate(several[: SIMULATIONS.get(int(system.split("+")[1][0]), 0)])
    ]
    done = {a.info["simulation"] for a in ase.io.read(OUT, ":")} if OUT.exists() else set()
    left = [one for one in sorted(names, key=lambda one: (one[0], len(one[2]))) if one[1] not in done]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(labelled, work, name, start, 2000 + 10 * number + int(start.info["system"].split("+")[1][0]))
            for number, name, start in left
        ]
        for job in tqdm(as_completed(jobs), total=len(jobs), unit="simulation"):
            ase.io.write(OUT, job.result(), format="extxyz", append=True)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(Path(sys.argv[1]))
