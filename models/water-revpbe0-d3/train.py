"""Train the shipped water models: a revPBE0 baseline and four Δ models (D3).

    python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/
    python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/ --calibrate
    python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/ --novelty

The data are the 84 frames of Schran, Brezina and Marsalek, J. Chem. Phys. 153, 104105 (2020), with the
D3(zero) part split off: info LO_energy / DELTA_energy (eV), arrays LO_forces / DELTA_forces (eV/Å). They are
CC-BY-SA-4.0 and stay out of this repository.

Every fifth frame of a seeded shuffle is held out before anything else. The baseline learns LO_* on all that is
left; member m of the committee learns DELTA_* on its own draw of 80 % of it, with seed m. Finished models are
kept, so a killed run goes on where it stopped. At the end the bundles are made and the cards written, with the
errors on the frames held out. --calibrate trains nothing: it measures the spread of the bundles that are there on the
frames held out, and writes it into committee.toml. --novelty lets the bundles that are there know what they were
trained on: the frames that are not held out. Nothing says of which simulation and step a frame is, so frames whose
atoms are less than 2 Å (root mean square) from where another has them are one block.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import tomli_w
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

import beadwork
from beadwork.learn.label_file import from_file
from beadwork.learn.novelty import fit_bundle
from beadwork.learn.residual import calibrate, residuals, scale, told
from beadwork.potential.bundle import COMMITTEE, amend_card, load_card
from beadwork.potential.importer import import_model
from beadwork.toml import tomllib

HELD_OUT = 0.2
MEMBERS = 4
SPLIT_SEED = 20
#: Å
SAME_SIMULATION = 2.0
# No atom's energy is in the data: hydrogen gets its exact non-relativistic energy and oxygen takes the rest, so
# that an added proton does not shift the energy by hundreds of eV.
E_HYDROGEN = -13.6057

COMMON = {
    "model": "ScaleShiftMACE",
    "r_max": 4.5,
    "num_interactions": 2,
    "max_ell": 3,
    "correlation": 3,
    "MLP_irreps": "16x0e",
    "forces_weight": 100,
    "energy_weight": 1,
    "swa_forces_weight": 100,
    "swa_energy_weight": 100,
    "optimizer": "adam",
    "scheduler": "ExponentialLR",
    "lr": 0.01,
    "ema_decay": 0.99,
    "batch_size": 1,
    "valid_batch_size": 2,
    "default_dtype": "float32",
    "device": "cpu",
    "error_table": "PerAtomRMSE",
    "eval_interval": 4,
    "plot": "False",
}
FLAGS = ["--ema", "--amsgrad", "--swa", "--pair_repulsion"]
BASELINE = {
    "hidden_irreps": "24x0e",
    "energy_key": "LO_energy",
    "forces_key": "LO_forces",
    "max_num_epochs": 64,
    "start_swa": 50,
    "swa_lr": 0.0003,
    "lr_scheduler_gamma": 0.955,
}
DELTA = {
    "hidden_irreps": "16x0e",
    "energy_key": "DELTA_energy",
    "forces_key": "DELTA_forces",
    "max_num_epochs": 13,
    "start_swa": 9,
    "swa_lr": 0.0003,
    "lr_scheduler_gamma": 0.8,
}


def split(data: Path, work: Path) -> None:
    """Write held-out.extxyz, train.extxyz and a resampled delta-m.extxyz for each member."""
    frames = ase.io.read(data, ":")
    random.Random(SPLIT_SEED).shuffle(frames)
    held = round(HELD_OUT * len(frames))
    ase.io.write(work / "held-out.extxyz", frames[:held])
    kept = frames[held:]
    ase.io.write(work / "train.extxyz", kept)
    for member in range(MEMBERS):
        drawn = random.Random(100 + member).sample(kept, round(0.8 * len(kept)))
        ase.io.write(work / f"delta-{member}.extxyz", drawn)


def reference_energies(frames: list[ase.Atoms], key: str, hydrogen: float) -> str:
    """Energies of single atoms (eV) as mace_run_train reads them; oxygen takes what hydrogen leaves."""
    oxygen = [(f.info[key] - hydrogen * sum(f.numbers == 1)) / sum(f.numbers == 8) for f in frames]
    return str({1: hydrogen, 8: float(sum(oxygen) / len(oxygen))})


def run(name: str, seed: int, work: Path, settings: dict[str, object], hydrogen: float) -> Path:
    """Train one model with mace_run_train and return the path of its eager model."""
    done = work / f"{name}_stagetwo.model"
    if done.exists():
        return done
    train_file = work / ("train.extxyz" if name == "baseline" else f"{name}.extxyz")
    frames = ase.io.read(train_file, ":")
    options = {
        **COMMON,
        **settings,
        "name": name,
        "seed": seed,
        "work_dir": work,
        "model_dir": work,
        "train_file": train_file,
        "valid_fraction": 0.06,
        "test_file": work / "held-out.extxyz",
        "E0s": reference_energies(frames, str(settings["energy_key"]), hydrogen),
    }
    command = [str(Path(sys.executable).with_name("mace_run_train")), *FLAGS]
    command += [f"--{key}={value}" for key, value in options.items()]
    print(f"training {name} on {len(frames)} frames; its log is {work / f'{name}.out'}", flush=True)
    with open(work / f"{name}.out", "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return done


def rmse(difference: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt((difference**2).mean()))


def errors(potential: Any, frames: list[ase.Atoms], key: str) -> dict[str, float]:
    """Errors of the energy an atom (meV) and of the force components (meV/Å) against `key`_energy and `key`_forces."""
    answer = potential.evaluate([beadwork.Frame.from_atoms(frame) for frame in frames])
    energy = (answer.energies - [f.info[f"{key}_energy"] for f in frames]) / [len(f) for f in frames]
    forces = answer.forces - np.concatenate([f.arrays[f"{key}_forces"] for f in frames])
    return {
        "energy_rmse_meV_per_atom": round(1e3 * rmse(energy), 4),
        "energy_mean_error_meV_per_atom": round(1e3 * float(energy.mean()), 4),
        "force_rmse_meV_per_angstrom": round(1e3 * rmse(forces), 4),
    }


def spread(work: Path, members: list[Path]) -> dict[str, Any]:
    """What committee.toml has of the spread, from the DELTA_* of the frames held out."""
    examples = from_file(work / "held-out.extxyz", None, "D3(zero)", "DELTA_energy", "DELTA_forces")
    found = residuals(examples, members, {1: 0.0, 8: 0.0})
    fitted = calibrate(found)
    return {**scale(found, fitted), "alpha_from": told(fitted)}


def calibrate_again(work: Path, out: Path) -> None:
    """Write the spread of the members that are there into their committee.toml."""
    card = tomllib.loads((out / COMMITTEE).read_text(encoding="utf-8"))
    card |= spread(work, [out / name for name in card["members"]])
    (out / COMMITTEE).write_bytes(tomli_w.dumps(card).encode())
    print(card, flush=True)


def blocks(frames: list[ase.Atoms]) -> list[int]:
    """A number for each frame, shared by those that follow each other in a simulation."""
    positions = np.array([frame.positions for frame in frames])
    length = frames[0].cell.lengths()
    apart = positions[:, None] - positions
    apart -= length * np.round(apart / length)
    near = squareform(np.sqrt((apart**2).sum(axis=3).mean(axis=2)), checks=False)
    return list(map(int, fcluster(linkage(near, "single"), SAME_SIMULATION, "distance")))


def remember(work: Path, out: Path) -> None:
    """Let every bundle know what it, or the committee that it is of, was trained on."""
    frames = ase.io.read(work / "train.extxyz", ":")
    for name in ["baseline", *(f"delta-{m}" for m in range(MEMBERS))]:
        fit_bundle(out / name, [beadwork.Frame.from_atoms(frame) for frame in frames], blocks(frames), print)


def bundles(work: Path, out: Path) -> None:
    """Make the bundles of all five models, measure them on the frames held out, and write the cards."""
    held = ase.io.read(work / "held-out.extxyz", ":")
    source = {
        "data": "revPBE0-D3 frames of 64 H2O, J. Chem. Phys. 153, 104105 (2020), CC-BY-SA-4.0, D3(zero) split off",
        "command": "python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/",
        "frames_held_out": len(held),
    }
    names = [f"delta-{m}" for m in range(MEMBERS)]
    for name in ["baseline", *names]:
        train_file = work / ("train.extxyz" if name == "baseline" else f"{name}.extxyz")
        settings, key = (BASELINE, "LO") if name == "baseline" else (DELTA, "DELTA")
        about = {**source, "trained_on": f"{key}_energy, {key}_forces", "frames": len(ase.io.read(train_file, ":"))}
        if key == "DELTA":
            about["baseline"] = load_card(out / "baseline").hash
        finished = work / f"{name}_stagetwo.model"
        import_model(finished, out / name, trust_pickle=True, **about, settings={**COMMON, **settings})
        measured = errors(beadwork.load(out / name), held, key)
        amend_card(out / name, held_out={key: measured})
        print(name, measured, flush=True)
    remember(work, out)
    members = [out / name for name in names]
    card = {
        **spread(work, members),
        "members": names,
        "weights": [1.0] * MEMBERS,
        "limits": "trained for liquid water at 0.997 g/cm3 and about 300 K alone: not for H3O+, OH- or H2",
        "held_out": {
            "baseline_against_REF": errors(beadwork.load(out / "baseline"), held, "REF"),
            "baseline_and_delta_against_REF": errors(beadwork.load(out / "baseline", members), held, "REF"),
            "delta_against_DELTA": errors(beadwork.load(None, members), held, "DELTA"),
        },
    }
    (out / COMMITTEE).write_bytes(tomli_w.dumps(card).encode())
    print(card, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="water64.extxyz.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder for splits, logs and checkpoints")
    parser.add_argument("--jobs", type=int, default=2, help="models trained at the same time, one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the bundles")
    parser.add_argument("--calibrate", action="store_true", help="train nothing; write committee.toml's spread anew")
    parser.add_argument("--novelty", action="store_true", help="train nothing; fit what the bundles were trained on")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "held-out.extxyz").exists():
        split(args.data, args.work)
    if args.calibrate:
        calibrate_again(args.work, args.out)
    if args.novelty:
        remember(args.work, args.out)
    if args.calibrate or args.novelty:
        return
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run, "baseline", 0, args.work, BASELINE, E_HYDROGEN)]
        jobs += [pool.submit(run, f"delta-{m}", m + 1, args.work, DELTA, 0.0) for m in range(MEMBERS)]
        for job in jobs:
            print(job.result(), flush=True)
    bundles(args.work, args.out)


if __name__ == "__main__":
    main()
