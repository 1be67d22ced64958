"""Train one member of a committee: its draw of frames, mace_run_train in a process of its own, and its bundle.

The loss: a label with standard error sigma has the weight floor^2 / (floor^2 + sigma^2), for the energy per atom and
for the forces: 1/sigma^2 where the noise is large, at most 1 where it is below what the model can resolve anyway (the
floor). A label without forces has a force weight of zero.

The frames: of those that are not held out each member draws its own fraction, with its own seed; the rest choose its
best epoch. Frames with the closest and the widest contact of two elements are drawn by all members: a member without
them extrapolates where the others do not, and spoils the mean.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.errors import ModelError
from beadwork.frame import FloatArray, Frame
from beadwork.label.jobs import Jobs, Pool
from beadwork.potential.bundle import Card
from beadwork.potential.graph import build
from beadwork.potential.importer import import_model
from beadwork.potential.response import DIPOLE_UNITS, POLARIZABILITY_UNITS
from beadwork.processes import kill, last_line, launch, module
from beadwork.train.dataset import Dataset, Example, to_atoms
from beadwork.train.fit_novelty import fit_bundle, format_fit
from beadwork.train.settings import SHARED, TrainSettings
from beadwork.train.split import blocks, split

TRAINING = "training"
#: what only one thread at a time may do: compiling a model to TorchScript patches Python modules for a moment, and an
#: engine that evaluates the training set takes all the memory that it is given
_one_at_a_time = threading.Lock()
#: key of what is learned besides energies in a plan, and its names, which are those of labels and of models' answers
LEARNS, DIPOLE, POLARIZABILITY = "learns", "dipole", "polarizability"
#: the units of a model's labels in its training: those in which mace-torch adds its charges times positions, and one in
#: which polarizabilities of atoms are of the order of 1
_UNITS = {DIPOLE: "eang", POLARIZABILITY: "ang3"}
#: trainings that threads of this process have started; none may start once it was interrupted
_started: set[subprocess.Popen[bytes]] = set()
_starting = threading.Lock()
_interrupted = threading.Event()


def train_member(
    member: int,
    folder: Path,
    settings: TrainSettings,
    plan: Mapping[str, Any],
    start: Sequence[Path],
    about: Mapping[str, Any],
    name: str | None = None,
) -> str:
    """Train one member of the committee in `folder` (which has its dataset) and return a message.

    With a shared trunk the member is the whole committee: one model with a head for each draw.
    name: of its bundle there, `name_of` where not given. The result depends on nothing but the arguments and
    the folder, so a member can be trained in any process, on any machine that sees the folder. start: bundles
    trained by beadwork, or the file of a model of another origin, whose head is in the plan.
    """
    name = name or name_of(member, plan)
    dataset = Dataset.read(folder)
    shared = settings.trunk == SHARED
    draws = [_draw(dataset.training, settings, m) for m in (range(settings.members) if shared else [member])]
    (folder / TRAINING).mkdir(exist_ok=True)
    # beside the bundle, so that it can be moved into place; a new folder for each attempt: mace would continue from a
    # checkpoint that a killed training left
    work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder / TRAINING))
    for m, draw in enumerate(draws):
        for file, part in zip(_files(work, m), draw, strict=True):
            _write(file, part, settings, plan.get(LEARNS, ()))
    options = _options(work, settings, plan, sum(len(drawn) for drawn, _ in draws), member)
    if shared:
        options += _heads(work, settings.members)
    # members of a larger committee begin from the earlier ones in turn
    first = start[member % len(start)] if start else None
    if first is not None and first.is_file():
        options += _fine_tuning(first, plan["foundation"]["head"])
    model = _run(work, options, first, settings, "model.model" if LEARNS in plan else "model_stagetwo.model")
    bundle = work / "bundle" / name
    _write_bundle(
        model,
        bundle,
        committee=shared,
        **about,
        method=dataset.method,
        dataset=dataset.hash,
        frames=len({e.hash for drawn, _ in draws for e in drawn}),
        frames_choosing_the_epoch=len({e.hash for _, other in draws for e in other}),
        frames_held_out=len(dataset.testing),
        member=member,
        plan=plan,
        **{f"{learned}_unit": _UNITS[learned] for learned in plan.get(LEARNS, ())},
        mace_run_train=_without_folders(options, [work, *start]),  # cards are shared, and folders differ
    )
    # before the bundle moves into place: one that is there is complete
    novelty = "" if LEARNS in plan else f"; {_remember(dataset, bundle, settings)}"
    shutil.rmtree(folder / name, ignore_errors=True)  # an existing one is incomplete, else it would have been kept
    os.replace(bundle, folder / name)
    drawn = sorted({len(drawn) for drawn, _ in draws})
    frames = "-".join(map(str, drawn[:1] + drawn[1:][-1:]))
    by = f" by each of its {len(draws)} heads" if shared else ""
    return f"{name} is trained on {frames} frames{by}{novelty}"


def _remember(dataset: Dataset, bundle: Path, settings: TrainSettings) -> str:
    """Add the training set to a bundle, the frames of this and of earlier generations, and return a message."""
    known = [met for met in dataset.past if not met.held_out]
    try:
        with _one_at_a_time:
            card = fit_bundle(bundle, [met.frame for met in known], blocks(known, settings.apart).tolist())
    except ModelError as error:  # without novelty the model itself is as good
        return f"there will be no novelty for it: {error}"
    return format_fit(card.about["novelty"])


def name_of(member: int, plan: Mapping[str, Any]) -> str:
    """The folder of a member's bundle: delta-0, delta-1, …, of models of dipoles dipole-0, …"""
    return f"{DIPOLE if LEARNS in plan else 'delta'}-{member}"


def in_training_units(name: str, values: FloatArray) -> FloatArray:
    """A label's dipoles or polarizabilities in the unit in which they are trained on."""
    known = DIPOLE_UNITS if name == DIPOLE else POLARIZABILITY_UNITS
    return values / known[_UNITS[name]]


@contextmanager
def workers(jobs: Jobs, folder: Path) -> Iterator[Pool]:
    """A pool that trains members. An exception in the block kills the running trainings, and no other one starts."""
    try:
        with Pool(jobs, folder) as pool:
            try:
                yield pool
            except BaseException:
                # under the lock: a training that is just being started is either seen here, or not begun
                with _starting:
                    _interrupted.set()
                    for process in _started:
                        kill(process)
                raise
    finally:
        _interrupted.clear()


def _draw(training: Sequence[Example], settings: TrainSettings, member: int) -> tuple[list[Example], list[Example]]:
    """The frames on which a member is trained, and those that choose its best epoch; both have at least one frame."""
    marks = split(training, 1 - settings.share, 1000 * (settings.seed + 1) + member, apart=settings.apart)
    # frames too close to those that choose the epoch are trained on: here they cannot spoil a test
    other = [mark is True for mark in marks]
    outermost = _outermost([e.frame for e in training], settings.r_max)
    # whatever the draw: all members must know the ends of every contact
    for i in outermost:
        other[i] = False
    if not any(other):  # few frames: mace needs a validation set, and members take different frames for it
        free = [i for i in range(len(other)) if i not in outermost] or list(range(len(other)))
        other[free[member % len(free)]] = True
    return (
        [e for e, out in zip(training, other, strict=True) if not out],
        [e for e, out in zip(training, other, strict=True) if out],
    )


def _outermost(frames: Sequence[Frame], cutoff: float) -> set[int]:
    """Frames whose closest contact of some pair of elements, within cutoff Å, is the shortest or longest of all."""
    graph = build(frames, cutoff)
    system = graph.system[graph.center]
    ends = np.sort([graph.numbers[graph.center], graph.numbers[graph.neighbor]], axis=0)
    found: set[int] = set()
    for pair in np.unique(ends, axis=1).T if len(system) else ():
        mine = np.flatnonzero((ends == pair[:, None]).all(axis=0))
        closest = np.full(len(graph), np.inf)
        np.minimum.at(closest, system[mine], graph.lengths[mine])
        there = np.flatnonzero(np.isfinite(closest))
        found |= {int(there[closest[there].argmin()]), int(there[closest[there].argmax()])}
    return found


def weights(example: Example, settings: TrainSettings) -> tuple[float, float]:
    """Of a label's energy and forces in the loss: floor^2 / (floor^2 + sigma^2)."""
    energy = example.energy_error / len(example.frame.numbers)  # the loss is of the energy per atom
    forces: FloatArray | float = 0.0 if example.forces_error is None else example.forces_error
    return (
        settings.energy_floor**2 / (settings.energy_floor**2 + energy**2),
        settings.forces_floor**2 / (settings.forces_floor**2 + float(np.mean(np.square(forces)))),
    )


def _write(file: Path, examples: Sequence[Example], settings: TrainSettings, learns: Sequence[str] = ()) -> None:
    import ase.io

    make = partial(_response_atoms, learns=learns) if learns else partial(_energy_atoms, settings=settings)
    ase.io.write(file, [make(example) for example in examples], format="extxyz")


def _energy_atoms(example: Example, settings: TrainSettings) -> Any:
    atoms = to_atoms(example)
    energy, forces = weights(example, settings)
    # our own names: ASE moves a key `energy` to a calculator when it reads the file
    atoms.info = {
        "DELTA_energy": example.energy,
        "config_energy_weight": energy,
        "config_forces_weight": forces,
    }
    return atoms


def _response_atoms(example: Example, learns: Sequence[str]) -> Any:
    atoms = example.frame.to_atoms()
    atoms.info = {f"REF_{name}": in_training_units(name, getattr(example.label, name)) for name in learns}
    atoms.info["total_charge"] = example.charge
    return atoms


def _files(work: Path, head: int) -> tuple[Path, Path]:
    """Where a head has what it learns from, and what chooses the best epoch; a model of its own is head 0."""
    return work / f"train-{head}.extxyz", work / f"valid-{head}.extxyz"


def _heads(work: Path, count: int) -> list[str]:
    """What makes so many heads of mace_run_train: it then has a frame once for each head that drew it."""
    files = [map(str, _files(work, m)) for m in range(count)]
    heads = {f"head{m}": dict(zip(("train_file", "valid_file"), both, strict=True)) for m, both in enumerate(files)}
    # mace looks at all frames of each head again in the end, which takes as long as an epoch and is not read
    return [f"--heads={heads}", f"--skip_evaluate_heads={','.join(heads)}"]


def _options(work: Path, settings: TrainSettings, plan: Mapping[str, Any], frames: int, member: int) -> list[str]:
    """The command line of mace_run_train."""
    epochs = settings.epochs
    if settings.trunk == SHARED:
        # in an epoch the trunk sees each frame as often as heads drew it. Twice as many as one member: that takes the
        # CPU time of four (the default), and is as good; with half of it errors are a tenth larger (trunk_errors.md)
        epochs = max(4, -(-2 * epochs // settings.members))
    train_file, valid_file = _files(work, 0)
    learns = plan.get(LEARNS)
    options = {
        "name": "model",
        "seed": settings.seed + member,
        "work_dir": work,
        "train_file": train_file,
        "valid_file": valid_file,
        "r_max": settings.r_max,
        "hidden_irreps": settings.hidden_irreps,
        "num_interactions": 2,
        "lr": settings.lr,
        "scheduler": "ExponentialLR",
        "lr_scheduler_gamma": 0.05 ** (1 / epochs),
        "ema_decay": 0.99,
        "max_num_epochs": epochs,
        "eval_interval": max(1, epochs // 30),  # some thirty checkpoints to choose from, and little time for them
        # mace drops the last, incomplete batch: with a batch larger than the dataset it would train on nothing
        "batch_size": min(settings.batch_size, frames),
        "valid_batch_size": settings.batch_size,
        "default_dtype": settings.dtype,
        "device": settings.device,
        "plot": "False",
        **(_of_response(settings, plan) if learns else _of_energies(settings, plan, epochs)),
    }
    flags = ["--ema", "--amsgrad", "--save_cpu"]
    if not learns:
        flags += ["--swa", *(["--pair_repulsion"] if settings.pair_repulsion else [])]
    return [*flags, *(f"--{key}={value}" for key, value in options.items())]


def _of_energies(settings: TrainSettings, plan: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """The options of a model of energies and forces."""
    return {
        "energy_key": "DELTA_energy",
        "forces_key": "DELTA_forces",
        # given, since mace's own "average" is an unweighted fit which knows no error bars
        "E0s": str({int(z): e for z, e in plan["reference_energies"].items()}),
        "atomic_numbers": str([int(z) for z in plan["reference_energies"]]),
        "mean": plan["mean"],
        "std": plan["std"],
        "model": "ScaleShiftMACE",
        "MLP_irreps": "16x0e",
        # the only values that the native engine supports, and the two layers
        "max_ell": 3,
        "correlation": 3,
        "loss": "weighted",
        "energy_weight": settings.energy_weight,
        "forces_weight": settings.forces_weight,
        "swa_energy_weight": settings.stage_two_energy_weight,
        "swa_forces_weight": settings.forces_weight,
        # stage two: the last quarter, with a larger weight of the energy and a small learning rate
        "start_swa": epochs - max(1, epochs // 4),
        "swa_lr": settings.lr / 20,
        "error_table": "PerAtomRMSE",
    }


def _of_response(settings: TrainSettings, plan: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model of dipoles, or of dipoles and polarizabilities."""
    both = POLARIZABILITY in plan[LEARNS]
    # the readout of dipoles alone has no scalars
    layers = [term.strip() for term in settings.hidden_irreps.split("+")]
    return {
        **{f"{name}_key": f"REF_{name}" for name in plan[LEARNS]},
        **{f"{name}_weight": weight for name, weight in plan["weights"].items()},
        # mace wants them of models without energies too
        "E0s": str(dict.fromkeys(plan["elements"], 0.0)),
        "atomic_numbers": str(plan["elements"]),
        "model": "AtomicDielectricMACE" if both else "AtomicDipolesMACE",
        "MLP_irreps": "+".join(layers if both else [term for term in layers if term.endswith("1o")]),
        "max_ell": 2,
        "correlation": 2,
        "loss": "dipole_polar" if both else "dipole",
        "error_table": "DipolePolarRMSE" if both else "DipoleRMSE",
    }


def _without_folders(options: Sequence[str], paths: Sequence[Path]) -> str:
    """The options as one line, with paths relative to the training's folder, and files by their names."""
    line = shlex.join(options)
    for path in paths:
        line = line.replace(str(path), path.name if path.is_file() else ".")
    return line


def _fine_tuning(file: Path, head: str) -> list[str]:
    """Options with which mace_run_train fine-tunes a model, on our frames alone."""
    chosen = [f"--foundation_head={head}"] if head else []
    return [f"--foundation_model={file}", "--multiheads_finetuning=False", *chosen]


def _run(work: Path, options: Sequence[str], start: Path | None, settings: TrainSettings, file: str) -> Path:
    """Run mace_run_train and return the eager model that it wrote, `file`. It can fail with exit code 0, so that
    counts."""
    command = module("beadwork.train.mace_run")
    if start is not None and start.is_dir():
        command += ["--start", str(start)]
    environment = os.environ | {name: str(settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    log = work / "log.txt"
    with _starting:
        if _interrupted.is_set():
            raise ModelError(f"the training in {work} was interrupted", "run the command again")
        process = launch([*command, "--", *options], log, environment=environment)
        _started.add(process)
    try:
        code = process.wait()
    finally:
        kill(process)
        with _starting:  # who interrupts goes through them meanwhile
            _started.discard(process)
    model = work / file
    if code != 0 or not model.exists():
        raise ModelError(
            f"mace_run_train ended with {code} and wrote {'a' if model.exists() else 'no'} model; its last "
            f"words: {last_line(log, 'none')} (log: {log})"
        )
    return model


def _write_bundle(model: Path, bundle: Path, **about: Any) -> Card:
    bundle.parent.mkdir()
    with _one_at_a_time:
        # our own process wrote this pickle a moment ago
        return import_model(model, bundle, trust_pickle=True, **about)
