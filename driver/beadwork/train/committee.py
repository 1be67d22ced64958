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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tomli_w

from beadwork.disk import write_whole
from beadwork.errors import LabelError, ModelError
from beadwork.label.jobs import Jobs, lost
from beadwork.log import Alarm
from beadwork.packages import pip_install
from beadwork.potential.additions import ADD
from beadwork.potential.bundle import (
    COMMITTEE,
    format_errors,
    format_no_better,
    load_card,
    members_of,
)
from beadwork.train.calibration import held_out
from beadwork.train.dataset import DATASET, FRAMES, Dataset, Example
from beadwork.train.divide import divide, format_division, symbols_of
from beadwork.train.member import TRAINING, name_of, train_member, workers
from beadwork.train.plan import finished, make_plan
from beadwork.train.settings import SHARED, TrainSettings

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
    dataset = divide(out, [out / member for member in members], examples, settings, previous)
    progress(format_division(out, examples, dataset, settings))
    if atoms := [e for e in examples if e.isolated]:
        progress(
            f"{len(atoms)} isolated atoms ({symbols_of(atoms)}) are left out, neither trained on nor tested: a Δ's "
            "reference energies are fitted to the other frames"
        )
    if dataset.baseline != name:
        raise LabelError(f"the examples are differences to the model {dataset.baseline}, but {baseline} is {name}")
    start = [] if previous is None else members_of([previous])
    plan = make_plan(dataset, settings, start)
    open_folder(out, dataset)
    about = {"trained_on": "DELTA_energy, DELTA_forces", "baseline": name, "command": command, **added(dataset)}
    missing = [m for m, member in enumerate(members) if not finished(out / member, dataset, plan)]
    if len(missing) < len(members):
        progress(f"{len(members) - len(missing)} of {len(members)} members of {out} are there already")
    if missing:  # else a Slurm job would be submitted for nothing
        train_missing(missing, out, settings, plan, start, about, progress)
    shutil.rmtree(out / TRAINING, ignore_errors=True)
    paths = [out / member for member in members]
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


def added(dataset: Dataset) -> dict[str, Any]:
    """What a card says of what is added by formula: nothing where there is nothing."""
    return {ADD: dict(dataset.add)} if dataset.add else {}


def train_missing(
    missing: Sequence[int],
    out: Path,
    settings: TrainSettings,
    plan: Mapping[str, Any],
    start: Sequence[Path],
    about: Mapping[str, Any],
    progress: Callable[[str], None],
) -> None:
    """Train these members of the folder, which has its dataset, as many at the same time as there are cores or jobs."""
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
                    f"the worker that trained {out / name_of(m, plan)} died {MAX_ATTEMPTS} times: killed, out of "
                    "memory, or its node failed",
                    "give it more memory or time, and run the command again",
                )


def open_folder(out: Path, dataset: Dataset) -> None:
    """Make the committee's folder, or check that it is of the same committee."""
    if (out / DATASET).exists():
        if Dataset.read(out).hash != dataset.hash:
            raise ModelError(
                f"{out} contains a committee trained on other labels, or on the same ones divided otherwise (seed, "
                "held_out, apart)",
                "choose another folder, or remove this one to train anew",
            )
        return
    # a call that was killed while it wrote the dataset leaves only frames.extxyz or parts of files
    if out.exists() and (
        not out.is_dir() or any(file.name != FRAMES and not file.name.endswith(".part") for file in out.iterdir())
    ):
        raise ModelError(f"{out} exists and is no committee's folder", "choose another one or remove it")
    dataset.write(out)
