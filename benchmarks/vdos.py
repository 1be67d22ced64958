"""Vibrational densities of states of H5O2+ and of liquid water, one trajectory for each member of the committee.

    python benchmarks/vdos.py build/vdos                # all kinds; what has run is not run again
    python benchmarks/vdos.py build/vdos zundel         # one of zundel, zundel-quantum, water

Each member moves a simulation of its own, also a head on a trunk, of which a model by itself is made: first 0.5 ps with
a strong thermostat, then the velocities are thermal again and the centroid has a friction of 1/ps, which makes lines
5 cm^-1 wider, beside a window that makes them 67 cm^-1 wide; the other modes of a ring polymer are damped as in
T-RPMD (Rossi, Ceriotti and Manolopoulos, J. Chem. Phys. 140, 234116, 2014). `beadwork analyse vdos --members` makes
results/vdos_KIND.csv and .png, and what it says is in results/vdos_KIND.txt; of H5O2+ with the harmonic frequencies of
the same models at their minimum.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import tomli_w
import torch
from ase.optimize import BFGS

from beadwork.analyse.spectrum import LIGHT
from beadwork.doctor.curvature import vibrations
from beadwork.frame import Frame
from beadwork.potential.bundle import load_card
from beadwork.potential.calculator import BeadworkCalculator
from beadwork.potential.heads import load_heads
from beadwork.potential.load import load
from beadwork.toml import tomllib

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results"
BEADWORK = (sys.executable, "-m", "beadwork")
STEP = 0.5  # fs
HEATING = 0.5  # ps


@dataclass(frozen=True)
class Kind:
    """A system: its start in inputs/, its models, beads of the ring polymer, ps for each member, the window in fs."""

    start: str
    baseline: str
    delta: str
    periodic: bool
    beads: int
    ps: float
    window: int
    seed: int


ZUNDEL = ("zundel/init.xyz", "zundel-cc/baseline", "zundel-cc", False)
KINDS = {
    "zundel": Kind(*ZUNDEL, beads=1, ps=3.0, window=500, seed=100),
    "water": Kind(
        "water/init.xyz",
        "water-revpbe0-d3/baseline",
        "water-revpbe0-d3",
        periodic=True,
        beads=1,
        ps=1.5,
        window=500,
        seed=300,
    ),
    "zundel-quantum": Kind(*ZUNDEL, beads=16, ps=1.5, window=500, seed=200),
}
INPUT = """<simulation verbosity='low' safe_stride='1000'>
  <output prefix='simulation'>
    <properties stride='20' filename='out'> [ step, temperature{{kelvin}}, potential{{electronvolt}} ] </properties>
    <trajectory stride='4' filename='v' format='xyz'> v_centroid </trajectory>
    <checkpoint stride='2000' filename='checkpoint' overwrite='true'/>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>{seed}</seed></prng>
  <ffsocket name='beadwork' mode='unix'>
    <address>beadwork-vdos-{name}</address>
    <batch_size>{beads}</batch_size>
    <latency>1e-4</latency>
  </ffsocket>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='{mode}'>{start}</file>
      <velocities mode='thermal' units='kelvin'>300</velocities>
    </initialize>
    <forces><force forcefield='beadwork'/></forces>
    <ensemble><temperature units='kelvin'>300</temperature></ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nvt'>
        <timestep units='femtosecond'>{step}</timestep>
        <thermostat mode='pile_l'>
          <tau units='femtosecond'>{tau}</tau>
          <pile_lambda>0.5</pile_lambda>
        </thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def members(kind: Kind, build: Path) -> list[Path]:
    """The bundles of the members; those of heads on one trunk are made in `build`."""
    there = sorted((ROOT / "models" / kind.delta).glob("delta-*"))
    if len(there) > 1:
        return there
    heads = load_heads(there[0] / "heads.npz", load_card(there[0]).elements)
    made = [build / f"head-{m}" for m in range(len(heads))]
    for m, bundle in enumerate(made):
        if bundle.exists():
            continue
        build.mkdir(parents=True, exist_ok=True)
        module = torch.jit.load(there[0] / "model.pt")
        state = module.state_dict()
        module.load_state_dict(state | heads.put(state, m))
        module.save(build / "head.pt")
        subprocess.run([*BEADWORK, "models", "import", str(build / "head.pt"), "--out", str(bundle)], check=True)
        _add_native(bundle, json.loads((there[0] / "native.json").read_text()), m)
    return made


def _add_native(bundle: Path, mean: dict[str, Any], m: int) -> None:
    """Give the bundle of a head its native model, which is part of the mean's; a run compares it with TorchScript
    before it takes it."""
    others = {key: value for key, value in mean.items() if key not in ("prediction_heads", "head")}
    text = json.dumps(others | mean["prediction_heads"]["parameters"][str(m)])
    (bundle / "native.json").write_text(text)
    card = tomllib.loads((bundle / "card.toml").read_text())
    card = {key: value for key, value in card.items() if key not in ("native", "native_remedy")}
    card["sha256"]["native.json"] = hashlib.sha256(text.encode()).hexdigest()
    (bundle / "card.toml").write_text(tomli_w.dumps(card))


def stage(folder: Path, name: str, kind: Kind, member: int, bundle: Path, start: Path, ps: float, tau: float) -> Path:
    """Run one member, unless it has run; return what i-PI left at the end."""
    end = folder / "RESTART"
    if (folder / "done").exists():
        return end
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told = {"name": name, "steps": round(1000 * ps / STEP), "seed": kind.seed + member, "step": STEP, "tau": tau}
    told |= {"beads": kind.beads, "start": start.absolute(), "mode": "xyz" if start.suffix == ".xyz" else "chk"}
    (folder / "input.xml").write_text(INPUT.format(**told))
    command = [*BEADWORK, "run", "input.xml", "--threads", "1", "--dtype", "float32"]
    command += ["--baseline", str(ROOT / "models" / kind.baseline), "--delta", str(bundle.absolute())]
    command += [] if kind.periodic else ["--not-periodic"]
    with open(folder / "log", "w", encoding="utf-8") as log:
        subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=True)
    (folder / "done").touch()
    return end


def harmonic(kind: Kind) -> list[float]:
    """cm^-1: vibrations of a molecule at the minimum of the committee's mean, but for what moves or turns all of it."""
    models = ROOT / "models"
    potential = load(models / kind.baseline, [models / kind.delta], engine="torchscript")
    atoms = ase.io.read(ROOT / "inputs" / kind.start)
    atoms.set_cell(None)
    atoms.pbc = False
    atoms.calc = BeadworkCalculator(potential)
    if not BFGS(atoms, logfile=None).run(fmax=2e-4, steps=500):
        raise RuntimeError(f"{kind.start} has no minimum within 500 steps")
    at = Frame(atoms.numbers, atoms.positions, np.zeros((3, 3)), (False,) * 3, charge=1)
    omega2 = vibrations(potential, at, atoms.get_chemical_symbols(), atoms.get_masses()).omega2
    return list(np.sqrt(omega2[6:]) / (2 * np.pi * LIGHT))


def main(build: Path, kinds: list[str]) -> None:
    """Simulate and analyse."""
    for name in kinds or list(KINDS):
        kind = KINDS[name]
        folders = []
        for member, bundle in enumerate(members(kind, build / kind.delta)):
            folder, told = build / name / f"member-{member}", (f"{name}-{member}", kind, member, bundle)
            heated = stage(folder / "heated", *told, ROOT / "inputs" / kind.start, HEATING, 100)
            stage(folder / "run", *told, heated, kind.ps, 1000)
            folders.append(folder / "run")
            print(f"{name}: member {member} has run", flush=True)
        # named from there: the table has their names
        named = [str(folder.relative_to(build)) for folder in folders]
        command = [*BEADWORK, "analyse", "vdos", *named, "--members", "--window", str(kind.window)]
        command += ["--out", str(RESULTS.absolute() / f"vdos_{name}")]
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=build).stdout
        if not kind.periodic:
            said += f"harmonic: {', '.join(f'{one:.0f}' for one in harmonic(kind))} cm^-1\n"
        (RESULTS / f"vdos_{name}.txt").write_text(said.replace(f"{RESULTS.absolute()}/", ""))
        print(said)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
