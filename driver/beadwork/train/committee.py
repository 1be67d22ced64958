"""Train a committee of Δ bundles from examples, with one process of mace_run_train per member.

The held-out frames (`split`) are used neither to train any member nor to choose its best epoch (`member`).

The folder gets dataset.json first, then the members as they finish, committee.toml last. `training/` beside them has
logs and checkpoints, and is removed at the end. A member's bundle appears by a rename, so it is complete or not there:
the same call after a kill trains only the missing members.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from ase.data import chemical_symbols

from beadwork.disk import write_whole
from beadwork.errors import ConfigError, LabelError, ModelError
from beadwork.label.jobs import Jobs, lost
from beadwork.log import Alarm
from beadwork.packages import pip_install
from beadwork.potential.bundle import (
    COMMITTEE,
    amend_card,
    check,
    format_errors,
    format_no_better,
    load_card,
    members_of,
)
from beadwork.potential.load import load
from beadwork.train.calibration import calibrate, format_calibration, residuals, scale
from beadwork.train.dataset import DATASET, FRAMES, Dataset, Example, reference_energies
from beadwork.train.duplicates import among
from beadwork.train.fit_novelty import fit_bundle
from beadwork.train.foundation import Foundation
from beadwork.train.member import TRAINING, train_member, workers
from beadwork.train.settings import SEPARATE, SHARED, TrainSettings
from beadwork.train.split import APART, blocks, split

#: key of the isolated atoms' energies in the plan of a baseline for which they were given
ATOM_ENERGIES_KEY = "energies_of_atoms"
#: key of the model of another origin that a baseline was fine-tuned from, in its plan
FOUNDATION_KEY = "foundation"
#: settings that such a baseline takes from that model
MODEL_SETTINGS = ("hidden_irreps", "pair_repulsion")
#: eV; closer energies of an isolated atom count as equal
SAME_ENERGY_EV = 1e-4
#: trainings of a member whose worker dies, before the command ends
MAX_ATTEMPTS = 2


def train_committee(
    examples: Sequence[Example],
    baseline: Path,
    out: Path,
    settings: TrainSettings | None = None,
    previous: Path | None = None,
    progress: Callable[[str], None] = lambda sentence: None,
    command: str = "beadwork.train.committee.train_committee",
) -> list[Path]:
    """Train a Δ committee and return its bundles, `out`/delta-0, delta-1, …, or the one of all on a shared trunk.

    previous: a committee of an earlier generation, from whose weights each member starts; its held-out frames stay held
    out. progress: called with messages. command: for the cards. Members that `out` has already, of the same data and
    settings, are kept. Raises LabelError for examples that do not fit each other or the baseline, ModelError for an
    `out` with something else in it, a previous committee that does not fit, or a training that failed.
    """
    settings = settings or TrainSettings()
    # a hash, because a Δ that is summed with another baseline of the same name gives wrong energies
    name = load_card(baseline).hash
    members = [f"delta-{m}" for m in range(1 if settings.trunk == SHARED else settings.members)]
    # a committee that was begun under the older rule of splitting is finished under it
    dataset = _framewise(out, [out / member for member in members], examples) or _dataset(examples, settings, previous)
    progress(_counted(out, examples, dataset, settings))
    if atoms := [e for e in examples if e.isolated]:
        progress(
            f"{len(atoms)} isolated atoms ({_symbols(atoms)}) are left out, neither trained on nor tested: a Δ's "
            "reference energies are fitted to the other frames"
        )
    if dataset.baseline != name:
        raise LabelError(f"the examples are differences to the model {dataset.baseline}, but {baseline} is {name}")
    start = [] if previous is None else members_of([previous])
    plan = _plan(dataset, settings, start)
    _open(out, dataset)
    about = {"trained_on": "DELTA_energy, DELTA_forces", "baseline": name, "command": command}
    missing = [m for m, member in enumerate(members) if not _finished(out / member, dataset, plan)]
    if len(missing) < len(members):
        progress(f"{len(members) - len(missing)} of {len(members)} members of {out} are there already")
    if missing:  # else a Slurm job would be submitted for nothing
        _train(missing, out, settings, plan, start, about, progress)
    shutil.rmtree(out / TRAINING, ignore_errors=True)
    paths = [out / member for member in members]
    _remember(dataset, paths, settings.apart, progress)
    # measured on the finished bundles by the engine that serves them, and not taken from mace's own tables
    spread, measured = held_out(dataset, paths)
    card = {
        **spread,
        "members": members,
        # equal: no member has seen frames by which it could be called better
        "weights": [1.0] * len(members),
        "method": dataset.method,
        "dataset": dataset.hash,
        **about,
        "held_out": measured,
    }
    # last: a folder without it is no committee, so no server can read one that is half trained
    write_whole(out / COMMITTEE, tomli_w.dumps(card))
    progress(f"{out}: {format_errors(measured)}")
    if said := format_no_better(measured):
        progress(Alarm(f"{out}: {said}"))
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
    """Train these members, as many at the same time as there are cores or jobs."""
    jobs = settings.jobs
    if jobs is None:
        # the cores of this process: a batch job may use only some of the machine's
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = Jobs(workers=max(1, min(len(missing), cores // settings.threads)))
        if not jobs.here and find_spec("parsl") is None:
            progress(f"members are trained one after the other; at the same time with {pip_install('parsl')}")
            jobs = Jobs()
    (out / TRAINING).mkdir(exist_ok=True)
    losses = Counter[int]()
    items = deque(missing)
    paths = [bundle.absolute() for bundle in start]  # a worker may be elsewhere
    with workers(jobs, out / TRAINING) as pool:
        for m, future in pool.each(train_member, items, out.absolute(), settings, plan, paths, about):
            losses[m] += lost(future.exception())
            if not lost(future.exception()):
                progress(future.result())
            elif losses[m] < MAX_ATTEMPTS:  # a node may fail by chance; twice it is the member's memory or time
                items.append(m)
            else:
                raise ModelError(
                    f"the worker that trained {out / f'delta-{m}'} died {MAX_ATTEMPTS} times: killed, out of memory, "
                    "or its node failed",
                    "give it more memory or time, and run the command again",
                )


def held_out(dataset: Dataset, members: Sequence[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The card's entries about the spread (`calibration.scale`), and the errors on the held-out frames; without such
    frames, the reason.

    A model of the labels themselves has neither alpha nor a baseline, so its card has only its own errors.
    """
    whole = dataset.baseline is None
    if not dataset.testing:
        if whole:
            return {}, {"frames": 0}
        return {"alpha": 1.0}, {"frames": 0, "alpha": "1, because no frames were held out"}
    found = residuals(dataset.testing, members, references(members[0]), apart_of(members[0]))
    measured = found.measured
    if whole:
        return {}, {key: value for key, value in measured.items() if not key.startswith("baseline")}
    fitted = calibrate(found)
    measured["alpha"] = format_calibration(fitted)
    return scale(found, fitted), measured


def references(bundle: Path) -> dict[int, float]:
    """The reference energies (eV by atomic number) in the card of a bundle that was trained here."""
    plan = load_card(bundle).about.get("plan", {})
    if "reference_energies" not in plan:
        raise ModelError(f"{bundle} was not trained by beadwork: its card has no reference energies")
    return {int(z): float(energy) for z, energy in plan["reference_energies"].items()}


def apart_of(bundle: Path) -> int:
    """Steps between training and held-out frames, from a bundle's card; the default where the card does not say it."""
    return int(_settings_of(bundle).get("apart", APART))


def train_model(
    examples: Sequence[Example],
    out: Path,
    settings: TrainSettings,
    energies_of_atoms: Mapping[int, float] | None = None,
    progress: Callable[[str], None] = lambda sentence: None,
    command: str = "beadwork.train.committee.train_model",
    previous: Path | None = None,
    foundation: Foundation | None = None,
) -> Path:
    """Train one model on the labels themselves (examples made with baseline None): a baseline.

    energies_of_atoms: eV of each isolated atom at the labels' level, by atomic number; where not given, those of the
    isolated atoms among the examples if they are of all elements, and fitted else.
    previous: a bundle trained by beadwork, from whose weights to start; its held-out frames stay held out.
    foundation: instead, a model of another origin to fine-tune, whose architecture and cutoff replace the settings'.
    Returns the bundle `out`, which contains dataset.json too. Otherwise as `train_committee`.
    """
    if settings.trunk == SHARED:
        raise ConfigError("trunk is shared, which is for the members of a Δ committee", "a baseline is one model")
    dataset = _framewise(out, [out], examples) or _dataset(examples, settings, previous)
    if dataset.baseline is not None:
        raise LabelError("a baseline is trained on labels, not on differences", "make the examples with baseline None")
    progress(_counted(out, examples, dataset, settings))
    if energies_of_atoms is None and (atoms := [e for e in examples if e.isolated]):
        energies_of_atoms = _energies_of(atoms)
        # energies of some elements alone would put the others on another scale
        lacking = set().union(*(e.frame.numbers.tolist() for e in dataset.examples)) - set(energies_of_atoms)
        used = "their energies are the reference energies"
        if lacking:
            energies_of_atoms = None
            used = f"{', '.join(chemical_symbols[z] for z in sorted(lacking))} is missing: references are fitted"
        progress(f"{len(atoms)} isolated atoms ({_symbols(atoms)}), neither trained on nor tested: {used}")
    start = [] if previous is None else [previous]
    if foundation is not None:
        settings = replace(settings, r_max=foundation.card.cutoff)
        start = [foundation.file]
        progress(
            f"fine-tunes {foundation.file.name}: architecture and cutoff ({settings.r_max:g} Å) are that model's; "
            f"r_max, {' and '.join(MODEL_SETTINGS)} of the settings are not used"
        )
    plan = _plan(dataset, settings, start, energies_of_atoms, foundation)
    # beside `out`: a rename works within one file system only
    work = out.with_name(f"{out.name}.parts")
    if _finished(out, dataset, plan):
        shutil.rmtree(work, ignore_errors=True)
        return out
    _open(work, dataset)
    if not _finished(work / out.name, dataset, plan):
        about = {"trained_on": "REF_energy, REF_forces", "command": command}
        progress(train_member(0, work, settings, plan, start, about, out.name))
    _remember(dataset, [work / out.name], settings.apart, progress)
    _, measured = held_out(dataset, [work / out.name])
    amend_card(work / out.name, held_out=measured)
    progress(f"{out}: {format_errors(measured)}")
    dataset.write(work / out.name)
    # the finished bundle appears in one step, with its dataset and its errors
    os.replace(work / out.name, out)
    shutil.rmtree(work)
    return out


def _remember(dataset: Dataset, bundles: Sequence[Path], apart: int, progress: Callable[[str], None]) -> None:
    """Add the training set to each bundle without one: the frames of this and of earlier generations."""
    known = [met for met in dataset.past if not met.held_out]
    block = blocks(known, apart).tolist()
    for bundle in bundles:
        if load_card(bundle).novelty is None:
            try:
                fit_bundle(bundle, [met.frame for met in known], block, progress)
            except ModelError as error:  # without novelty the model itself is as good as before
                progress(f"{bundle}: there will be no novelty for it: {error}")


def _dataset(examples: Sequence[Example], settings: TrainSettings, previous: Path | None) -> Dataset:
    """The examples without isolated atoms, and which of them are held out."""
    examples = [e for e in examples if not e.isolated]
    before = [] if previous is None else Dataset.read(previous).past
    # labels of earlier generations come again with the new ones: `before` keeps only structures that do not
    again = among([met.frame for met in before], [e.frame for e in examples])
    marks = split(examples, settings.held_out, settings.seed, before, settings.apart)
    chosen = [(e, mark) for e, mark in zip(examples, marks, strict=True) if mark is not None]
    return Dataset(
        tuple(e for e, _ in chosen),
        tuple(mark for _, mark in chosen),
        tuple(met for met, here in zip(before, again, strict=True) if not here),
    )


def _framewise(out: Path, bundles: Sequence[Path], examples: Sequence[Example]) -> Dataset | None:
    """The dataset in `out`, where it has these examples and was split before `apart` was introduced; else None.

    The present rule would split it differently, and what the existing bundles were trained on cannot change.
    """
    if not (out / DATASET).exists() or all("apart" in _settings_of(bundle) for bundle in bundles if bundle.exists()):
        return None
    then = Dataset.read(out)
    marks = {e.hash: mark for e, mark in zip(then.examples, then.held_out, strict=True)}
    now = [e for e in examples if not e.isolated]
    if {e.hash for e in now} != set(marks):  # other examples: split by the present rule
        return None
    return Dataset(tuple(now), tuple(marks[e.hash] for e in now), then.before)


def _settings_of(bundle: Path) -> Mapping[str, Any]:
    """The training settings in a bundle's card."""
    settings: Mapping[str, Any] = load_card(bundle).about.get("plan", {}).get("settings", {})
    return settings


def _counted(out: Path, examples: Sequence[Example], dataset: Dataset, settings: TrainSettings) -> str:
    """Format the size of the dataset and its split."""
    count, testing = len(dataset.examples), dataset.testing
    forces = sum(e.forces is not None for e in dataset.examples)
    lost = sum(not e.isolated for e in examples) - count
    alone = sum(e.simulation is None for e in dataset.examples)
    simulations = {e.simulation for e in dataset.examples} - {None}
    undated = sum(met.step is None and met.simulation in simulations for met in dataset.before)
    return (
        f"{out}: {count} labels, {forces} with forces and {count - forces} with energies alone; "
        + (
            f"{len(testing)} are held out in {len(set(blocks(testing, settings.apart)))} blocks"
            if testing or not settings.held_out
            else f"none is held out, because no block of frames {settings.apart} steps apart is small enough: errors "
            "and alpha cannot be measured (use a smaller `apart`, or labels of more simulations)"
        )
        + (f"; {lost} closer than {settings.apart} steps to one of those are left out" if lost else "")
        + (f"; {alone} of no known simulation are blocks by themselves" if alone else "")
        + (
            f"; {undated} frames of these simulations in the previous committee's dataset have no step, and new frames "
            "may be close to them (give their labels too)"
            if undated
            else ""
        )
    )


def _energies_of(atoms: Sequence[Example]) -> dict[int, float]:
    """Energy (eV) by atomic number. Raises LabelError where two of one element differ."""
    found: dict[int, Example] = {}
    for e in atoms:
        first = found.setdefault(int(e.frame.numbers[0]), e)
        if abs(first.energy - e.energy) > SAME_ENERGY_EV:
            raise LabelError(
                f"the isolated atom in {first.place} has {first.energy:.4f} eV, the one in {e.place} {e.energy:.4f}: "
                "one element has one reference energy",
                "remove one of them",
            )
    return {z: e.energy for z, e in found.items()}


def _symbols(atoms: Sequence[Example]) -> str:
    return ", ".join(chemical_symbols[z] for z in sorted({int(e.frame.numbers[0]) for e in atoms}))


def _plan(
    dataset: Dataset,
    settings: TrainSettings,
    start: Sequence[Path],
    atoms: Mapping[int, float] | None = None,
    foundation: Foundation | None = None,
) -> dict[str, Any]:
    """What all members share, as written in their cards: settings, reference energies, scale, start models."""
    # from the training frames alone: reference energies fitted to held-out frames would spoil the test
    training = dataset.training
    if len(training) < 2:
        raise LabelError(f"{len(training)} frames to train on, of {len(dataset.examples)}", "label more")
    elements = sorted({int(z) for e in dataset.examples for z in e.frame.numbers})
    energies = np.array([e.energy for e in training])
    old = dict.fromkeys(elements, 0.0)
    if start:
        bundles = start if foundation is None else [foundation.card.path]
        old = foundation.energies_of_atoms(elements) if foundation else _old_energies(start, elements, settings)
        # weights and old reference energies stay, so the new ones are fitted to the residual of the old committee
        energies = energies - load(None, bundles).evaluate([e.frame for e in training]).energies
    if atoms is None:
        fitted, undetermined = reference_energies(training, energies, settings.energy_floor)
        reference = {z: old[z] + fitted[z] for z in elements}
    else:
        if lacking := set(elements) - set(atoms):
            raise LabelError(
                f"the energies of isolated atoms lack {sorted(lacking)} (atomic numbers)", "compute them too"
            )
        reference, undetermined = {z: atoms[z] for z in elements}, ""
    # where and on how many cores is no part of what is learned: another machine may go on with it
    other = ("threads", "jobs", *(MODEL_SETTINGS if foundation else ()))
    return {
        "settings": {k: v for k, v in asdict(settings).items() if k not in other},
        "reference_energies": {str(z): e for z, e in reference.items()},
        "reference_energies_undetermined": undetermined,
        **_scale(training, reference),
        "start": [foundation.hash] if foundation else [load_card(p).hash for p in start],
        **({FOUNDATION_KEY: {"file": foundation.file.name, "head": foundation.head or ""}} if foundation else {}),
        **({} if atoms is None else {ATOM_ENERGIES_KEY: {str(z): float(atoms[z]) for z in elements}}),
    }


def _scale(training: Sequence[Example], reference: Mapping[int, float]) -> dict[str, float]:
    """Mean (eV) of the energy per atom above the reference, and root mean square force component (eV/Å).

    Computed here because mace would count frames without forces as frames without force.
    """
    rest = np.array(
        [(e.energy - sum(reference[int(z)] for z in e.frame.numbers)) / len(e.frame.numbers) for e in training]
    )
    forces = [e.forces for e in training if e.forces is not None]
    # without forces: the standard deviation of the energies, per Å
    scale = float(np.sqrt((np.concatenate(forces) ** 2).mean()) if forces else rest.std())
    # mace divides by it: a committee that starts from a perfect one has nothing to scale
    return {"mean": float(rest.mean()), "std": scale if scale > 1e-6 else 1.0}


def _old_energies(start: Sequence[Path], elements: Sequence[int], settings: TrainSettings) -> dict[int, float]:
    """Check that training can start from the old members, and return the mean of their reference energies (eV)."""
    totals = dict.fromkeys(elements, 0.0)
    for path in start:
        card, then = check(path), _settings_of(path)
        if FOUNDATION_KEY in card.about.get("plan", {}):
            raise ModelError(
                f"{path} was fine-tuned from a model of another architecture, which cannot be rebuilt from a bundle",
                "fine-tune that model's file again, with all labels",
            )
        # weights belong to elements by their position
        if list(card.elements) != list(elements):
            raise ModelError(
                f"{path} knows the elements {card.elements}, the new labels have {tuple(elements)}",
                "its weights cannot be used: train without --from",
            )
        then = {"trunk": SEPARATE} | dict(then)
        of_heads = ("members",) if settings.trunk == SHARED else ()
        # what decides the shapes of the weights, or the meaning of an edge
        for key in ("hidden_irreps", "r_max", "pair_repulsion", "trunk", *of_heads):
            if then.get(key) != getattr(settings, key):
                raise ModelError(
                    f"{path} has {key} {then.get(key)!r}, the settings say {getattr(settings, key)!r}",
                    "keep it, or train without --from",
                )
        for z in elements:
            totals[z] += references(path)[z] / len(start)
    return totals


def _open(out: Path, dataset: Dataset) -> None:
    """Make the committee's folder, or check that it is of the same committee."""
    if (out / DATASET).exists():
        if Dataset.read(out).hash != dataset.hash:
            raise ModelError(f"{out} contains a committee trained on other labels", "choose another folder")
        return
    # a call that was killed while it wrote the dataset leaves only frames.extxyz or parts of files
    if out.exists() and (
        not out.is_dir() or any(file.name != FRAMES and not file.name.endswith(".part") for file in out.iterdir())
    ):
        raise ModelError(f"{out} exists and is no committee's folder", "choose another one or remove it")
    dataset.write(out)


def _finished(bundle: Path, dataset: Dataset, plan: Mapping[str, Any]) -> bool:
    """Whether this member exists, complete, with this dataset and plan. Raises ModelError for one of another plan."""
    if not bundle.exists():
        return False
    about = check(bundle).about
    then = about.get("plan", {})
    # cards older than `apart` and `trunk` do not have them
    older = {"apart": plan["settings"]["apart"], "trunk": SEPARATE}
    then = then | {"settings": older | then.get("settings", {})}
    # the rest of the plan follows from these, up to rounding errors of another machine
    if about.get("dataset") != dataset.hash or any(
        then.get(k) != plan.get(k) for k in ("settings", "start", ATOM_ENERGIES_KEY)
    ):
        raise ModelError(
            f"{bundle} was trained with other labels or settings", "choose another folder, or remove this one"
        )
    return True
