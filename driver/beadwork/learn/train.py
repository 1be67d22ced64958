"""Training: examples in, a committee of Δ bundles out. mace_run_train does the work, one process a member.

What the loss is. A label with standard error sigma counts floor^2 / (floor^2 + sigma^2), for the energy an atom and
for the forces: as 1/sigma^2 where the noise is large, capped at 1 where it is below what the model can resolve anyway
(the floor). A label without forces has a force weight of zero.

What is kept from whom. The frames held out (`dataset.split`) are kept from all members and from the choice of the best
epoch. Of the rest each member draws its own share, with its own seed; what it did not draw chooses its best epoch. The
frames with the closest and the widest contact of two elements are drawn by all: a member that lacks them extrapolates
where its fellows do not, and spoils the mean.

The folder: dataset.json first, then the members as they are done, committee.toml last. `training/` beside them has
logs and checkpoints, and goes when all is done. A member's bundle appears by a rename, so it is whole or not there: the
same call after a kill trains only those that are missing.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from beadwork.errors import ConfigError, LabelError, ModelError
from beadwork.frame import FloatArray, Frame
from beadwork.learn.dataset import DATASET, FRAMES, Dataset, Example, reference_energies, split, to_atoms, write_whole
from beadwork.learn.jobs import Jobs, Pool, lost
from beadwork.learn.labellers import build as from_toml
from beadwork.learn.residual import NO_CALIBRATION, calibrate, residuals
from beadwork.potential.bundle import COMMITTEE, MODEL, Card, check, load_card
from beadwork.potential.delta import load
from beadwork.potential.graph import build
from beadwork.potential.importer import import_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TRAINING = "training"
GIVEN = "energies_of_atoms"
#: of a member whose worker dies
ATTEMPTS = 2
#: scripting a model patches modules of Python's for a while, so only one thread at a time may do it
_importing = threading.Lock()
#: trainings that threads of this process have started; none may start once it was interrupted
_started: set[subprocess.Popen[bytes]] = set()
_starting = threading.Lock()
_interrupted = threading.Event()


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. Everything a TOML file for `beadwork train` may set."""

    members: int = 4  #: of the committee
    held_out: float = 0.2  #: share of the frames kept for tests, the same for all members
    share: float = 0.8  #: of the other frames, what each member draws; the rest choose its best epoch
    seed: int = 0  #: of splits and draws; member m starts from random weights with seed + m
    epochs: int = 60  #: the last quarter is mace's stage two, with stage_two_energy_weight
    batch_size: int = 5  #: frames
    lr: float = 0.01  #: learning rate at the start; it falls to a twentieth
    hidden_irreps: str = "16x0e"  #: features of an atom, as e3nn writes them
    r_max: float = 5.0  #: cutoff, Å
    energy_weight: float = 30.0  #: of the squared error of the energy an atom (eV)
    forces_weight: float = 100.0  #: of the squared error of a force component (eV/Å)
    stage_two_energy_weight: float = 1000.0  #: the same in the last quarter
    energy_floor: float = 0.001  #: eV an atom; errors below it all count the same
    forces_floor: float = 0.02  #: eV/Å
    pair_repulsion: bool = False  #: add a ZBL repulsion: for a baseline, not for a Δ
    dtype: str = "float32"  #: of the training
    device: str = "cpu"  #: cpu or cuda
    threads: int = 1  #: of each training process
    jobs: Jobs | None = None  #: where members train; None: here, as many at the same time as there are cores for

    def check(self) -> TrainSettings:
        """Return self, or raise ConfigError with what is wrong and what to do."""
        for name, least in (("members", 1), ("epochs", 2), ("batch_size", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("lr", "r_max", "energy_floor", "forces_floor"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.held_out < 1 or not 0 < self.share < 1:
            raise ConfigError(
                f"held_out is {self.held_out} and share is {self.share}; they are fractions, and share must leave "
                "some frames to choose the best epoch"
            )
        return self

    @classmethod
    def read(cls, file: Path) -> TrainSettings:
        """Read a TOML file. Raises ConfigError."""
        try:
            return cls.from_table(tomllib.loads(file.read_text(encoding="utf-8")), str(file))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"cannot read {file}: {error}") from error

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str) -> TrainSettings:
        """Take a table of a TOML file. Raises ConfigError for unknown keys and values of a wrong kind."""
        default, settings = cls(), {}
        for key, value in ((key.replace("-", "_"), value) for key, value in table.items()):
            if key not in {f.name for f in fields(cls)}:
                known = ", ".join(f.name for f in fields(cls))
                raise ConfigError(f"{where} sets {key!r}, which is no setting of a training; known are {known}")
            if key == "jobs" and isinstance(value, dict):
                settings[key] = from_toml(Jobs, value, Path(), f"{where}: jobs")
                continue
            kind = type(getattr(default, key))
            if key == "jobs":
                raise ConfigError(f"{where}: jobs is {value!r}; it wants a table, as labellers have it")
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ConfigError(f"{where}: {key} is {value!r}; it wants a {kind.__name__}")
            settings[key] = kind(value)
        return cls(**settings).check()


def train_committee(
    examples: Sequence[Example],
    baseline: Path,
    out: Path,
    settings: TrainSettings | None = None,
    previous: Path | None = None,
    progress: Callable[[str], None] = lambda sentence: None,
    command: str = "beadwork.learn.train.train_committee",
) -> list[Path]:
    """Train a Δ committee and return its bundles, `out`/delta-0, delta-1, …

    previous: a committee of an earlier generation, from whose weights each member goes on; its frames held out stay
    held out. progress: is told a sentence now and then. command: for the cards. Members that `out` has already, of the
    same data and settings, are kept. Raises LabelError for examples that do not go together or not to the
    baseline, ModelError for an `out` with something else in it, a previous committee that does not fit, or a training
    that failed.
    """
    settings = (settings or TrainSettings()).check()
    name = load_card(baseline).hash
    dataset = _dataset(examples, settings, previous)
    if dataset.baseline != name:
        raise LabelError(f"the examples are differences to the model {dataset.baseline}, but {baseline} is {name}")
    start = [] if previous is None else members_of(previous)
    plan = _plan(dataset, settings, start)
    _open(out, dataset)
    members = [f"delta-{m}" for m in range(settings.members)]
    about = {"trained_on": "DELTA_energy, DELTA_forces", "baseline": name, "command": command}
    missing = [m for m, member in enumerate(members) if not _finished(out / member, dataset, plan)]
    if len(missing) < len(members):
        progress(f"{len(members) - len(missing)} of {len(members)} members of {out} are there already")
    _train(missing, out, settings, plan, start, about, progress)
    shutil.rmtree(out / TRAINING, ignore_errors=True)
    paths = [out / member for member in members]
    alpha, measured = held_out(dataset, paths)
    card = {
        "alpha": alpha,
        "members": members,
        "weights": [1.0] * len(members),
        "method": dataset.method,
        "dataset": dataset.hash,
        **about,
        "held_out": measured,
    }
    write_whole(out / COMMITTEE, tomli_w.dumps(card))
    progress(f"{out}: {measured}")
    return paths


def _train(
    missing: Sequence[int],
    out: Path,
    settings: TrainSettings,
    plan: Mapping[str, Any],
    start: Sequence[Path],
    about: Mapping[str, Any],
    progress: Callable[[str], None],
) -> None:
    """Train these members, at the same time where there is room."""
    jobs = settings.jobs
    if jobs is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = Jobs(workers=max(1, min(len(missing), cores // settings.threads)))
        if not jobs.here and find_spec("parsl") is None:
            progress("members are trained one after the other; at the same time with pip install 'beadwork[learn]'")
            jobs = Jobs()
    (out / TRAINING).mkdir(exist_ok=True)
    losses = Counter[int]()
    items = deque(missing)
    try:
        with Pool(jobs, out / TRAINING) as pool, _ended_when_interrupted():
            paths = [bundle.absolute() for bundle in start]  # a worker may be elsewhere
            for m, future in pool.each(_member, items, out.absolute(), settings, plan, paths, about):
                losses[m] += lost(future.exception())
                if not lost(future.exception()):
                    progress(future.result())
                elif losses[m] < ATTEMPTS:
                    items.append(m)
                else:
                    raise ModelError(
                        f"the worker that trained {out / f'delta-{m}'} died {ATTEMPTS} times: killed, out of memory, "
                        "or its node went; give it more memory or time, and the command again"
                    )
    finally:
        _interrupted.clear()


def _member(
    member: int,
    out: Path,
    settings: TrainSettings,
    plan: Mapping[str, Any],
    start: Sequence[Path],
    about: Mapping[str, Any],
) -> str:
    """`train_member` for `Pool.each`."""
    return train_member(out, f"delta-{member}", member, settings, plan, start, about)


@contextmanager
def _ended_when_interrupted() -> Iterator[None]:
    """Kill the trainings that threads of this process have started, and let none follow, or the pool would wait."""
    try:
        yield
    except BaseException:
        with _starting:
            _interrupted.set()
            for process in _started:
                process.kill()
        raise


def held_out(dataset: Dataset, members: Sequence[Path]) -> tuple[float, dict[str, Any]]:
    """alpha, and the errors on the frames held out as the committee's card has them; with none, 1 and the reason."""
    if not dataset.testing:
        return 1.0, {"frames": 0, "alpha": "1, for want of frames held out"}
    found = residuals(dataset.testing, members, references(members[0]))
    fitted = calibrate(found)
    measured: dict[str, Any] = {"frames": len(found.examples)}
    for name, unit, errors in (
        ("energy", "meV_per_atom", found.energy),
        ("baseline_energy", "meV_per_atom", found.baseline_energy),
        ("force", "meV_per_angstrom", found.forces),
        ("baseline_force", "meV_per_angstrom", found.baseline_forces),
    ):
        if errors is not None:
            value, bar = errors.rmse
            measured[f"{name}_rmse_{unit}"] = [round(1e3 * value, 4), round(1e3 * bar, 4)]
    measured["alpha"] = "1: " + NO_CALIBRATION if fitted is None else str(fitted)
    return 1.0 if fitted is None else round(fitted.alpha, 4), measured


def references(bundle: Path) -> dict[int, float]:
    """The reference energies (eV by atomic number) in the card of a bundle that was trained here."""
    plan = load_card(bundle).about.get("plan", {})
    if "reference_energies" not in plan:
        raise ModelError(f"{bundle} was not trained by beadwork: its card has no reference energies")
    return {int(z): float(energy) for z, energy in plan["reference_energies"].items()}


def train_model(
    examples: Sequence[Example],
    out: Path,
    settings: TrainSettings,
    energies_of_atoms: Mapping[int, float] | None = None,
    progress: Callable[[str], None] = lambda sentence: None,
    command: str = "beadwork.learn.train.train_model",
    previous: Path | None = None,
) -> Path:
    """Train one model on the labels themselves (examples made with baseline None): a baseline.

    energies_of_atoms: eV of each isolated atom at the labels' level, by atomic number; fitted where not given.
    previous: a bundle that was trained here, from whose weights to go on; its frames held out stay held out.
    Returns the bundle `out`, which holds dataset.json too. Otherwise as `train_committee`.
    """
    settings = settings.check()
    dataset = _dataset(examples, settings, previous)
    if dataset.baseline is not None:
        raise LabelError("a baseline is trained on labels, not on differences; make the examples with baseline None")
    start = [] if previous is None else [previous]
    plan = _plan(dataset, settings, start, energies_of_atoms)
    work = out.with_name(f"{out.name}.parts")
    if _finished(out, dataset, plan):
        shutil.rmtree(work, ignore_errors=True)
        return out
    _open(work, dataset)
    if not _finished(work / out.name, dataset, plan):
        about = {"trained_on": "REF_energy, REF_forces", "command": command}
        progress(train_member(work, out.name, 0, settings, plan, start, about))
    dataset.write(work / out.name)
    os.replace(work / out.name, out)
    shutil.rmtree(work)
    return out


def train_member(
    folder: Path,
    name: str,
    member: int,
    settings: TrainSettings,
    plan: Mapping[str, Any],
    start: Sequence[Path],
    about: Mapping[str, Any],
) -> str:
    """Train one member of the committee in `folder` (which has its dataset) and return a sentence.

    It depends on nothing but its arguments and the folder, so it can run in any process or on any machine that sees it.
    """
    dataset = Dataset.read(folder)
    drawn, other = _draw(dataset.training, settings, member)
    (folder / TRAINING).mkdir(exist_ok=True)
    # a folder of its own for each attempt: mace would take a checkpoint that a killed one left
    work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder / TRAINING))
    for file, part in (("train.extxyz", drawn), ("valid.extxyz", other)):
        _write(work / file, part, settings)
    options = _options(work, settings, plan, len(drawn), member)
    model = _run(work, options, start[member % len(start)] if start else None, settings)
    _write_bundle(
        model,
        work / "bundle" / name,
        **about,
        method=dataset.method,
        dataset=dataset.hash,
        frames=len(drawn),
        frames_choosing_the_epoch=len(other),
        frames_held_out=len(dataset.testing),
        member=member,
        plan=plan,
        mace_run_train=shlex.join(options).replace(str(work), "."),  # other people have other folders
    )
    shutil.rmtree(folder / name, ignore_errors=True)  # one that is there is not finished, or it would have been kept
    os.replace(work / "bundle" / name, folder / name)
    return f"{name} is trained on {len(drawn)} frames"


def _dataset(examples: Sequence[Example], settings: TrainSettings, previous: Path | None) -> Dataset:
    before: dict[str, bool] = {}
    if previous is not None:
        old = Dataset.read(previous)
        before = {e.structure: out for e, out in zip(old.examples, old.held_out, strict=True)}
    return Dataset(tuple(examples), split(examples, settings.held_out, settings.seed, before))


def _plan(
    dataset: Dataset, settings: TrainSettings, start: Sequence[Path], atoms: Mapping[int, float] | None = None
) -> dict[str, Any]:
    """What all members share, as it stands in their cards: settings, reference energies, scale, start models."""
    training = dataset.training
    if len(training) < 2:
        raise LabelError(f"{len(training)} frames to train on, of {len(dataset.examples)}; label more")
    elements = sorted({int(z) for e in dataset.examples for z in e.frame.numbers})
    energies = np.array([e.energy for e in training])
    old = dict.fromkeys(elements, 0.0)
    if start:
        old = _old_energies(start, elements, settings)
        # the weights stay, so the reference energies take up what the old committee leaves
        energies = energies - load(None, start).evaluate([e.frame for e in training]).energies
    if atoms is None:
        fitted, undetermined = reference_energies(training, energies, settings.energy_floor)
        reference = {z: old[z] + fitted[z] for z in elements}
    else:
        if lacking := set(elements) - set(atoms):
            raise LabelError(
                f"the energies of isolated atoms lack {sorted(lacking)} (atomic numbers); compute them too"
            )
        reference, undetermined = {z: atoms[z] for z in elements}, ""
    return {
        "settings": {k: v for k, v in asdict(settings).items() if k not in ("threads", "jobs")},
        "reference_energies": {str(z): e for z, e in reference.items()},
        "reference_energies_undetermined": undetermined,
        **_scale(training, reference),
        "start": [load_card(p).hash for p in start],
        **({} if atoms is None else {GIVEN: {str(z): float(atoms[z]) for z in elements}}),
    }


def _scale(training: Sequence[Example], reference: Mapping[int, float]) -> dict[str, float]:
    """Mean (eV) of the energy an atom above the reference, and root mean square force component (eV/Å).

    Computed here because mace would count frames without forces as frames without force.
    """
    rest = np.array(
        [(e.energy - sum(reference[int(z)] for z in e.frame.numbers)) / len(e.frame.numbers) for e in training]
    )
    forces = [e.forces for e in training if e.forces is not None]
    # of energies alone: their spread over one Å
    scale = float(np.sqrt((np.concatenate(forces) ** 2).mean()) if forces else rest.std())
    return {"mean": float(rest.mean()), "std": scale if scale > 1e-6 else 1.0}


def members_of(committee: Path) -> list[Path]:
    """The bundles delta-0, delta-1, … of a committee's folder. Raises ModelError where there are none."""
    found = sorted((p for p in committee.glob("delta-*") if p.name[6:].isdigit()), key=lambda p: int(p.name[6:]))
    if not found:
        raise ModelError(f"{committee} has no members delta-0, delta-1, …; give the folder of a committee")
    return found


def _old_energies(start: Sequence[Path], elements: Sequence[int], settings: TrainSettings) -> dict[int, float]:
    """Check that the old members can be gone on with, and return the mean of their reference energies (eV)."""
    totals = dict.fromkeys(elements, 0.0)
    for path in start:
        card = check(path)
        then = card.about.get("plan", {}).get("settings", {})
        if list(card.elements) != list(elements):
            raise ModelError(
                f"{path} knows the elements {card.elements}, the new labels have {tuple(elements)}; its weights cannot "
                "be used: train without --from"
            )
        for key in ("hidden_irreps", "r_max", "pair_repulsion"):
            if then.get(key) != getattr(settings, key):
                raise ModelError(
                    f"{path} has {key} {then.get(key)!r}, the settings say {getattr(settings, key)!r}; keep it, or "
                    "train without --from"
                )
        for z in elements:
            totals[z] += references(path)[z] / len(start)
    return totals


def _open(out: Path, dataset: Dataset) -> None:
    """Make the committee's folder, or find that it is the same committee's already."""
    if (out / DATASET).exists():
        if Dataset.read(out).hash != dataset.hash:
            raise ModelError(f"{out} holds a committee that learned from other labels; choose another folder")
        return
    # frames alone, or parts of files, are what a call leaves that was killed at this very point
    if out.exists() and (
        not out.is_dir() or any(file.name != FRAMES and not file.name.endswith(".part") for file in out.iterdir())
    ):
        raise ModelError(f"{out} exists and is no committee's folder; choose another one or remove it")
    dataset.write(out)


def _finished(bundle: Path, dataset: Dataset, plan: Mapping[str, Any]) -> bool:
    """Whether this member is there, whole, and of this dataset and plan. Raises ModelError for one of another plan."""
    if not bundle.exists():
        return False
    about = check(bundle).about
    then = about.get("plan", {})
    # the rest of the plan follows from these, but for rounding
    if about.get("dataset") != dataset.hash or any(then.get(k) != plan.get(k) for k in ("settings", "start", GIVEN)):
        raise ModelError(
            f"{bundle} was trained with other labels or settings; choose another folder, or remove this one"
        )
    return True


def _draw(training: Sequence[Example], settings: TrainSettings, member: int) -> tuple[list[Example], list[Example]]:
    """What a member learns from, and what chooses its best epoch; both have at least one frame."""
    other = list(split(training, 1 - settings.share, 1000 * (settings.seed + 1) + member))
    outermost = _outermost([e.frame for e in training], settings.r_max)
    for i in outermost:
        other[i] = False
    if not any(other):
        free = [i for i in range(len(other)) if i not in outermost] or list(range(len(other)))
        other[free[member % len(free)]] = True
    return (
        [e for e, out in zip(training, other, strict=True) if not out],
        [e for e, out in zip(training, other, strict=True) if out],
    )


def _outermost(frames: Sequence[Frame], cutoff: float) -> set[int]:
    """The frames whose closest contact of some pair of elements, within cutoff Å, is the shortest or longest of all."""
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
    energy = example.energy_error / len(example.frame.numbers)
    forces: FloatArray | float = 0.0 if example.forces_error is None else example.forces_error
    return (
        settings.energy_floor**2 / (settings.energy_floor**2 + energy**2),
        settings.forces_floor**2 / (settings.forces_floor**2 + float(np.mean(np.square(forces)))),
    )


def _write(file: Path, examples: Sequence[Example], settings: TrainSettings) -> None:
    import ase.io

    frames = []
    for example in examples:
        atoms = to_atoms(example)
        energy, forces = weights(example, settings)
        atoms.info = {
            "DELTA_energy": example.energy,
            "config_energy_weight": energy,
            "config_forces_weight": forces,
        }
        frames.append(atoms)
    ase.io.write(file, frames, format="extxyz")


def _options(work: Path, settings: TrainSettings, plan: Mapping[str, Any], frames: int, member: int) -> list[str]:
    """The command line of mace_run_train."""
    epochs = settings.epochs
    options = {
        "name": "model",
        "seed": settings.seed + member,
        "work_dir": work,
        "train_file": work / "train.extxyz",
        "valid_file": work / "valid.extxyz",
        "energy_key": "DELTA_energy",
        "forces_key": "DELTA_forces",
        "E0s": str({int(z): e for z, e in plan["reference_energies"].items()}),
        "atomic_numbers": str([int(z) for z in plan["reference_energies"]]),
        "mean": plan["mean"],
        "std": plan["std"],
        "model": "ScaleShiftMACE",
        "r_max": settings.r_max,
        "hidden_irreps": settings.hidden_irreps,
        "MLP_irreps": "16x0e",
        # what the compiled engine can serve
        "num_interactions": 2,
        "max_ell": 3,
        "correlation": 3,
        "loss": "weighted",
        "energy_weight": settings.energy_weight,
        "forces_weight": settings.forces_weight,
        "swa_energy_weight": settings.stage_two_energy_weight,
        "swa_forces_weight": settings.forces_weight,
        "start_swa": epochs - max(1, epochs // 4),
        "swa_lr": settings.lr / 20,
        "lr": settings.lr,
        "scheduler": "ExponentialLR",
        "lr_scheduler_gamma": 0.05 ** (1 / epochs),
        "ema_decay": 0.99,
        "max_num_epochs": epochs,
        "eval_interval": max(1, epochs // 30),
        # mace drops the last, unfilled batch: more frames a batch than there are would train nothing at all
        "batch_size": min(settings.batch_size, frames),
        "valid_batch_size": settings.batch_size,
        "default_dtype": settings.dtype,
        "device": settings.device,
        "error_table": "PerAtomRMSE",
        "plot": "False",
    }
    flags = ["--ema", "--amsgrad", "--swa", "--save_cpu", *(["--pair_repulsion"] if settings.pair_repulsion else [])]
    return [*flags, *(f"--{key}={value}" for key, value in options.items())]


def _run(work: Path, options: Sequence[str], start: Path | None, settings: TrainSettings) -> Path:
    """Run mace_run_train and return the eager model that it wrote. It hides failures, so that is looked at."""
    command = [sys.executable, "-m", "beadwork.learn.mace_run"]
    if start is not None:
        command += ["--start", str(start / MODEL)]
    environment = os.environ | {name: str(settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    log = work / "log.txt"
    with open(log, "wb") as out:
        with _starting:
            if _interrupted.is_set():
                raise ModelError(f"the training in {work} was interrupted; give the command again")
            process = subprocess.Popen(
                [*command, "--", *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            _started.add(process)
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            _started.discard(process)
    model = work / "model_stagetwo.model"
    if code != 0 or not model.exists():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise ModelError(
            f"mace_run_train ended with {code} and wrote {'a' if model.exists() else 'no'} model; its last "
            f"words: {lines[-1] if lines else 'none'} (log: {log})"
        )
    return model


def _write_bundle(model: Path, bundle: Path, **about: Any) -> Card:
    bundle.parent.mkdir()
    with _importing:
        # our own process wrote this pickle a moment ago
        return import_model(model, bundle, trust_pickle=True, **about)
