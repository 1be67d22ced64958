"""Train the shipped water models: a revPBE0 baseline and four Δ models (D3).

    python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/

The data are the 84 frames of Schran, Brezina and Marsalek, J. Chem. Phys. 153, 104105 (2020), with the
D3(zero) part split off: info LO_energy / DELTA_energy (eV), arrays LO_forces / DELTA_forces (eV/Å). They are
CC-BY-SA-4.0 and stay out of this repository.

Every fifth frame of a seeded shuffle is held out before anything else. The baseline learns LO_* on all that is
left; member m of the committee learns DELTA_* on its own draw of 80 % of it, with seed m. Finished models are
kept, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ase.io

HELD_OUT = 0.2
MEMBERS = 4
SPLIT_SEED = 20
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="water64.extxyz.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder for splits, logs and checkpoints")
    parser.add_argument("--jobs", type=int, default=2, help="models trained at the same time, one thread each")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "held-out.extxyz").exists():
        split(args.data, args.work)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run, "baseline", 0, args.work, BASELINE, E_HYDROGEN)]
        jobs += [pool.submit(run, f"delta-{m}", m + 1, args.work, DELTA, 0.0) for m in range(MEMBERS)]
        for job in jobs:
            print(job.result(), flush=True)


if __name__ == "__main__":
    main()
