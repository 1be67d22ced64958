"""Train the shipped water models: a revPBE0 baseline and four Δ models (D3).

    python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/
    python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/ --beads 1
    python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/ --beads 2
    python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/ --novelty
    python models/water-revpbe0-d3/frames.py scratch/
    python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/ \\
        --calibrate scratch/simulation-[A-L].extxyz

The data are the 84 frames of Schran, Brezina and Marsalek, J. Chem. Phys. 153, 104105 (2020), with the
D3(zero) part split off: info LO_energy / DELTA_energy (eV), arrays LO_forces / DELTA_forces (eV/Å). They are
CC-BY-SA-4.0 and stay out of this repository.

Every fifth frame of a seeded shuffle is held out before anything else. The baseline learns LO_* on all that is
left; member m of the committee learns DELTA_* on its own draw of 80 % of it, with seed m. Finished models are
kept, so a killed run goes on where it stopped. At the end the bundles are made. --novelty lets the bundles that are
there know what they were trained on: the frames that are not held out, and those of beads.

The data are of classical nuclei. --beads goes on with the bundles that are there, on the same frames and those of
beads.extxyz.gz (beads.py says whose labels they have); each member draws 80 % of both. The first part has frames that
the baseline of classical frames has sampled, and others that one which knew those has; the second adds what the first
part's baseline found most new.

--calibrate measures the bundles that are there, and writes committee.toml and the cards. Nothing says of which
simulation and step a frame of the data is, so frames whose atoms are less than 2 Å (root mean square) from where
another has them are one block; errors against DFT are those of frames held out whose block has none that was learned
from. D3 itself can be computed for any frame: alpha is fitted on the first half of the simulations of frames.py and
tested on the others, and all together tell the errors of Δ.
"""

from __future__ import annotations

import argparse
import random
import shutil
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
from beadwork.potential.bundle import COMMITTEE, amend_card, load_card
from beadwork.potential.importer import import_model
from beadwork.train.calibration import Errors, calibrate, format_calibration, residuals, scale
from beadwork.train.fit_novelty import fit_bundle
from beadwork.train.label_file import from_file

HELD_OUT = 0.2
MEMBERS = 4
NAMES = ["baseline", *(f"delta-{m}" for m in range(MEMBERS))]
SPLIT_SEED = 20
#: Å
SAME_SIMULATION = 2.0
#: steps; the 100 between two frames of frames.py are less, so that its blocks are ten times this, a picosecond
APART = 200
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
#: what follows, each part with the weights of the one before: simulations of beads.extxyz.gz that come in with it, and
#: settings of baseline and Δ
LATER: dict[int, tuple[list[str], dict[str, Any], dict[str, Any]]] = {
    1: (
        ["64-t0", "64-t8", "64-s16", "64-s40", "32-eco20", "32-eco24", "32-e32"],
        {"max_num_epochs": 22, "start_swa": 16, "lr": 0.005, "lr_scheduler_gamma": 0.85, "eval_interval": 2},
        {"max_num_epochs": 10, "start_swa": 7, "lr": 0.005, "lr_scheduler_gamma": 0.75, "eval_interval": 2},
    ),
    2: (
        ["64-t5", "64-t33", "32-e33"],
        {"max_num_epochs": 9, "start_swa": 6, "lr": 0.003, "lr_scheduler_gamma": 0.75},
        {"max_num_epochs": 4, "start_swa": 2, "lr": 0.003, "lr_scheduler_gamma": 0.6, "eval_interval": 1},
    ),
}
BEADS = Path(__file__).parent / "beads.extxyz.gz"


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


def split_beads(work: Path, part: int) -> None:
    """Write beads-PART-train.extxyz and beads-PART-delta-m.extxyz of each member: what they learned from, and beads."""
    beads = beads_of(part)
    for name, seed in (("train", None), *((f"delta-{m}", 200 + m) for m in range(MEMBERS))):
        drawn = beads if seed is None else random.Random(seed).sample(beads, round(0.8 * len(beads)))
        ase.io.write(work / f"beads-{part}-{name}.extxyz", [*ase.io.read(work / f"{name}.extxyz", ":"), *drawn])


def beads_of(part: int) -> list[ase.Atoms]:
    """The frames of beads that a part of the training has."""
    known = {name for k in range(1, part + 1) for name in LATER[k][0]}
    return [frame for frame in ase.io.read(BEADS, ":") if frame.info["simulation"] in known]


def name_of(name: str, part: int) -> str:
    """What a model is called in the work folder. part: of LATER, 0 for what comes first."""
    return f"beads-{part}-{name}" if part else name


def reference_energies(frames: list[ase.Atoms], key: str, hydrogen: float) -> str:
    """Energies of single atoms (eV) as mace_run_train reads them; oxygen takes what hydrogen leaves."""
    oxygen = [(f.info[key] - hydrogen * sum(f.numbers == 1)) / sum(f.numbers == 8) for f in frames]
    return str({1: hydrogen, 8: float(sum(oxygen) / len(oxygen))})


def run(
    name: str, seed: int, work: Path, settings: dict[str, object], hydrogen: float, start: Path | None, part: int
) -> Path:
    """Train one model and return the path of its eager model. start: the bundle with whose weights to begin."""
    trained = name_of(name, part)
    done = work / f"{trained}_stagetwo.model"
    if done.exists():
        return done
    train_file = work / f"{trained.replace('baseline', 'train')}.extxyz"
    # of the frames of DFT alone: those of beads have more energy, which is not of the atoms
    frames = ase.io.read(work / f"{name.replace('baseline', 'train')}.extxyz", ":")
    options = {
        **COMMON,
        **settings,
        "name": trained,
        "seed": seed,
        "work_dir": work,
        "model_dir": work,
        "train_file": train_file,
        "valid_fraction": 0.06,
        "test_file": work / "held-out.extxyz",
        "E0s": reference_energies(frames, str(settings["energy_key"]), hydrogen),
    }
    command = [str(Path(sys.executable).with_name("mace_run_train"))]
    if start is not None:
        command = [sys.executable, "-m", "beadwork.train.mace_run", "--start", str(start), "--"]
    command += [*FLAGS, *(f"--{key}={value}" for key, value in options.items())]
    print(f"training {trained}; its log is {work / f'{trained}.out'}", flush=True)
    with open(work / f"{trained}.out", "w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return done


def errors(potential: Any, frames: list[ase.Atoms], key: str, block: list[int]) -> dict[str, Any]:
    """Errors of the energy an atom (meV) and of the force components (meV/Å) against `key`_energy and `key`_forces.

    Each with its error bar, from the blocks that the frames are of.
    """
    answer = potential.evaluate([beadwork.Frame.from_atoms(frame) for frame in frames])
    energy = (answer.energies - [f.info[f"{key}_energy"] for f in frames]) / [len(f) for f in frames]
    forces = (answer.forces - np.concatenate([f.arrays[f"{key}_forces"] for f in frames])).ravel()
    found: dict[str, Any] = {"frames": len(frames), "blocks": len(set(block))}
    for name, error in (("energy_rmse_meV_per_atom", energy), ("force_rmse_meV_per_angstrom", forces)):
        of = np.repeat(np.arange(len(frames)), len(error) // len(frames))
        rmse = Errors(error, np.zeros(len(error)), None, of, 1, np.array(block)[of]).rmse
        found[name] = [round(1e3 * value, 4) for value in rmse]
    return found


def far(work: Path) -> tuple[list[ase.Atoms], list[int]]:
    """Frames held out whose block has none that was learned from, and their blocks."""
    held, learned = (ase.io.read(work / f"{name}.extxyz", ":") for name in ("held-out", "train"))
    block = blocks([*held, *learned])
    mine, theirs = block[: len(held)], set(block[len(held) :])
    found = [(frame, one) for frame, one in zip(held, mine, strict=True) if one not in theirs]
    return [frame for frame, _ in found], [one for _, one in found]


def measure(work: Path, out: Path, simulations: list[Path]) -> None:
    """Write into cards and committee.toml what errors and spread of the bundles that are there are."""
    held, block = far(work)
    names = NAMES[1:]
    members = [out / name for name in names]
    examples = [e for file in simulations for e in from_file(file, None, "D3(zero)", "DELTA_energy", "DELTA_forces")]
    first = {file.name for file in simulations[: len(simulations) // 2]}
    found = residuals(examples, members, {1: 0.0, 8: 0.0}, APART)
    fitted = calibrate(found, [n for n, e in enumerate(examples) if e.source in first])
    # each half of the simulations is tested once: six are few for the energies
    crossed = calibrate(found, [n for n, e in enumerate(examples) if e.source not in first])
    for name in NAMES:
        key = "LO" if name == "baseline" else "DELTA"
        amend_card(out / name, held_out={key: errors(beadwork.load(out / name), held, key, block)})
    card = {
        **scale(found, fitted),
        "alpha_from": format_calibration(fitted),
        "halves_exchanged": format_calibration(crossed),
        "members": names,
        "weights": [1.0] * MEMBERS,
        "limits": "trained for liquid water at 0.997 g/cm3 and about 300 K alone: not for H3O+, OH- or H2",
        "held_out": {
            "baseline_against_REF": errors(beadwork.load(out / "baseline"), held, "REF", block),
            "baseline_and_delta_against_REF": errors(beadwork.load(out / "baseline", members), held, "REF", block),
            "delta_against_DELTA": errors(beadwork.load(None, members), held, "DELTA", block),
            "delta_against_DELTA_of_simulations": {
                key: value for key, value in found.measured.items() if not key.startswith("baseline")
            },
        },
    }
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


def remember(work: Path, out: Path, part: int) -> None:
    """Let every bundle know what it, or the committee that it is of, was trained on."""
    frames, beads = ase.io.read(work / "train.extxyz", ":"), beads_of(part)
    block = blocks(frames)
    # beads of one moment, and moments of one simulation, are neighbours
    simulations = sorted({frame.info["simulation"] for frame in beads})
    block += [max(block) + 1 + simulations.index(frame.info["simulation"]) for frame in beads]
    learned = [beadwork.Frame.from_atoms(frame) for frame in [*frames, *beads]]
    for name in NAMES:
        fit_bundle(out / name, learned, block, print)


def bundles(work: Path, out: Path, part: int) -> None:
    """Make the bundles of all five models."""
    source = {
        "data": "revPBE0-D3 frames of 64 H2O, J. Chem. Phys. 153, 104105 (2020), CC-BY-SA-4.0, D3(zero) split off",
        "command": "python models/water-revpbe0-d3/train.py --data water64.extxyz.gz --work scratch/",
        "frames_held_out": len(ase.io.read(work / "held-out.extxyz", ":")),
    }
    if part:
        source["data"] += "; and frames of beads, with labels of the same authors' committee of networks (beads.py)"
        source["command"] += "".join(f", and again with --beads {k}" for k in range(1, part + 1))
    for name in NAMES:
        trained = name_of(name, part)
        settings, key = (BASELINE, "LO") if name == "baseline" else (DELTA, "DELTA")
        frames = len(ase.io.read(work / f"{trained.replace('baseline', 'train')}.extxyz", ":"))
        about: dict[str, Any] = {**source, "trained_on": f"{key}_energy, {key}_forces", "frames": frames}
        if key == "DELTA":
            about["baseline"] = load_card(out / "baseline").hash
        about["settings"] = {**COMMON, **settings}
        for k in range(1, part + 1):
            about["settings"][f"beads_{k}"] = LATER[k][1 if name == "baseline" else 2]
        made = work / trained  # where bundles are there, they were what the training began with
        shutil.rmtree(made, ignore_errors=True)
        import_model(work / f"{trained}_stagetwo.model", made, trust_pickle=True, name=name, **about)
        shutil.rmtree(out / name, ignore_errors=True)
        shutil.move(made, out / name)
    remember(work, out, part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="water64.extxyz.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder for splits, logs and checkpoints")
    parser.add_argument("--jobs", type=int, default=2, help="models trained at the same time, one thread each")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the bundles")
    parser.add_argument(
        "--beads", type=int, choices=LATER, default=0, help="go on with the bundles in OUT, on frames of beads too"
    )
    parser.add_argument(
        "--calibrate", type=Path, nargs="+", metavar="FILE", help="train nothing; measure on frames.py's simulations"
    )
    parser.add_argument("--novelty", action="store_true", help="train nothing; fit what the bundles were trained on")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "held-out.extxyz").exists():
        split(args.data, args.work)
    if args.calibrate:
        measure(args.work, args.out, args.calibrate)
    if args.novelty:
        remember(args.work, args.out, max(LATER))
    if args.calibrate or args.novelty:
        return
    if args.beads:
        split_beads(args.work, args.beads)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = []
        for seed, name in enumerate(NAMES):
            settings, hydrogen = (BASELINE, E_HYDROGEN) if name == "baseline" else (DELTA, 0.0)
            start = None
            if args.beads:
                start = args.out / name
                settings = {**settings, **LATER[args.beads][1 if name == "baseline" else 2]}
            jobs.append(pool.submit(run, name, seed, args.work, settings, hydrogen, start, args.beads))
        for job in jobs:
            job.result()
    bundles(args.work, args.out, args.beads)


if __name__ == "__main__":
    main()
