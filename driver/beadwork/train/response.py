"""Train models of dipoles, and of polarizabilities where the labels have them, and measure them on frames held out.

They are mace-torch's AtomicDipolesMACE (dipoles alone, a sum of vectors of the atoms) and AtomicDielectricMACE (both;
its dipole is a sum over vectors and charges of the atoms). A server takes the folder as `--also dipole=DIR`. The loss
is the mean square error an atom; dipoles and polarizabilities have the weights 1 over their own mean squares, so that
relative errors of both count the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from beadwork.digits import with_bar
from beadwork.disk import write_whole
from beadwork.errors import ConfigError, LabelError
from beadwork.frame import FloatArray
from beadwork.potential.bundle import COMMITTEE, check
from beadwork.potential.graph import build
from beadwork.potential.response import ResponseEngine, Role
from beadwork.train.calibration import Errors
from beadwork.train.committee import open_folder, train_missing
from beadwork.train.dataset import BATCH, Dataset, Example
from beadwork.train.divide import divide, format_division
from beadwork.train.member import DIPOLE, LEARNS, POLARIZABILITY, TRAINING, in_training_units
from beadwork.train.plan import finished
from beadwork.train.settings import SHARED, TrainSettings
from beadwork.train.split import blocks

#: parts of hidden_irreps that each model has
IRREPS = {(DIPOLE,): {"0e", "1o"}, (DIPOLE, POLARIZABILITY): {"0e", "1o", "2e"}}
#: of what a card says of errors: the key and the unit as it is told
ERRORS = {
    DIPOLE: ("dipole_rmse_e_angstrom", "e Å"),
    POLARIZABILITY: ("polarizability_rmse_e_angstrom2_per_V", "e Å²/V"),
}

#: of e times a cell vector, to which dipoles of periodic frames are of one branch
BRANCH = 0.25


def train_response(
    examples: Sequence[Example],
    out: Path,
    settings: TrainSettings,
    progress: Callable[[str], None] = lambda sentence: None,
    command: str = "beadwork.train.response.train_response",
) -> list[Path]:
    """Train models of the examples' dipoles, and polarizabilities where all have them; return the bundles in `out`.

    The folder gets dataset.json, `dipole-0`, `dipole-1`, … and committee.toml, as that of a Δ committee; held out,
    drawn and gone on with after a kill are as there. Raises LabelError for examples without dipoles, for ions where
    dipoles alone are learned, and for dipoles of periodic frames that may be on different branches; ConfigError for
    settings that make no such model, ModelError for a training that failed.
    """
    learns = _learned(examples)
    given = {term.split("x")[-1].strip() for term in settings.hidden_irreps.split("+")}
    if given != IRREPS[learns]:
        suited = " + ".join(f"16x{one}" for one in sorted(IRREPS[learns]))
        raise ConfigError(
            f"hidden_irreps is {settings.hidden_irreps}, and a model of {' and '.join(learns)} has "
            f"{', '.join(sorted(IRREPS[learns]))}",
            f'give hidden_irreps = "{suited}"',
        )
    if settings.trunk == SHARED:
        raise ConfigError("trunk is shared, which is for the members of a Δ committee", "leave trunk out")
    members = [f"{DIPOLE}-{m}" for m in range(settings.members)]
    paths = [out / member for member in members]
    dataset = divide(out, paths, examples, settings, None)
    kind = "of dipoles and polarizabilities" if POLARIZABILITY in learns else "of dipoles"
    progress(format_division(out, examples, dataset, settings, kind))
    if len(dataset.training) < 2:
        raise LabelError(
            f"{len(dataset.training)} frames to train on, of {len(dataset.examples)}", "label more, or hold out less"
        )
    plan = {
        "settings": {key: value for key, value in asdict(settings).items() if key not in ("threads", "jobs")},
        "start": [],
        LEARNS: list(learns),
        "elements": sorted({int(z) for e in dataset.examples for z in e.frame.numbers}),
        "weights": {name: _weight(dataset, name) for name in learns},
    }
    open_folder(out, dataset)
    about = {
        "trained_on": ", ".join(f"REF_{name}" for name in learns),
        "command": command,
        "charges": sorted({e.charge for e in dataset.examples if e.charge is not None}),
    }
    missing = [m for m, path in enumerate(paths) if not finished(path, dataset, plan)]
    if len(missing) < len(members):
        progress(f"{len(members) - len(missing)} of {len(members)} members of {out} are there already")
    if missing:
        train_missing(missing, out, settings, plan, [], about, progress)
    shutil.rmtree(out / TRAINING, ignore_errors=True)
    engines = tuple(ResponseEngine(check(path), DIPOLE) for path in paths)
    role = Role(DIPOLE, engines, np.ones(len(engines)) / len(engines))
    measured = errors_of(dataset.testing, role, learns, settings.apart)
    card = {
        "members": members,
        "weights": [1.0] * len(members),
        "method": dataset.method,
        "dataset": dataset.hash,
        **about,
        "held_out": measured,
    }
    # last: a folder without it is no committee
    write_whole(out / COMMITTEE, tomli_w.dumps(card))
    progress(f"{out}: {format_response_errors(measured)}")
    return paths


def errors_of(testing: Sequence[Example], role: Role, learns: Sequence[str], apart: int) -> dict[str, Any]:
    """Errors of a role's mean on frames held out, as a card has them: the root mean square of a component, each with
    its error bar over blocks; and, to compare, that of what there is to learn (`_varies`) in the labels."""
    if not testing:
        return {"frames": 0}
    cutoff = max(engine.cutoff for engine in role.engines)
    found: dict[str, list[FloatArray]] = {name: [] for name in learns}
    for start in range(0, len(testing), BATCH):
        graph = build([e.frame for e in testing[start : start + BATCH]], cutoff)
        answer = role.combine([engine.evaluate(graph) for engine in role.engines])
        for name in learns:
            found[name].append(answer[name].mean)
    block = blocks(testing, apart)
    measured: dict[str, Any] = {"frames": len(testing), "blocks": len(set(block))}
    for name in learns:
        key, _ = ERRORS[name]
        label = _labels(testing, name)
        for what, values in ((key, np.concatenate(found[name]) - label), (f"labels_{key}", _varies(testing, name))):
            flat = values.reshape(len(testing), -1)
            frame = np.repeat(np.arange(len(testing)), flat.shape[1])
            errors = Errors(flat.ravel(), np.zeros(flat.size), None, frame, 1, np.asarray(block)[frame])
            measured[what] = [round(value, 6) for value in errors.rmse]
    return measured


def format_response_errors(measured: dict[str, Any]) -> str:
    """The errors of a card in one sentence."""
    if not measured["frames"]:
        return "no frames were held out, so its errors are not known"
    told = [
        f"{name} {with_bar(*measured[key])} {unit} (that of the labels {with_bar(*measured[f'labels_{key}'])})"
        for name, (key, unit) in ERRORS.items()
        if key in measured
    ]
    return f"root mean square errors on {measured['frames']} frames that no member saw: {', '.join(told)}"


def _learned(examples: Sequence[Example]) -> tuple[str, ...]:
    """What all examples have labels of. Raises LabelError where they lack dipoles, or some lack polarizabilities."""
    _check_branches(examples)
    for name in (DIPOLE, POLARIZABILITY):
        lacking = [e for e in examples if getattr(e.label, name) is None]
        if not lacking:
            continue
        if name == POLARIZABILITY and len(lacking) == len(examples):
            ions = [e for e in examples if e.charge]
            if ions:
                raise LabelError(
                    f"{ions[0].place} has the charge {ions[0].charge:+d} e and no polarizability; a model of dipoles "
                    "alone is a sum of vectors of the atoms, and the dipole of an ion moves with it",
                    "label polarizabilities too, whose model has charges, or leave ions out",
                )
            return (DIPOLE,)
        raise LabelError(
            f"{len(lacking)} of {len(examples)} labels have no {name}, the first is {lacking[0].place}",
            f"label them with {name} = true, or, in a file, name what holds it (--{name}-key)",
        )
    if unsaid := next((e for e in examples if e.charge is None), None):
        raise LabelError(
            f"{unsaid.place} does not say its total charge, which a model of dipoles and polarizabilities learns",
            "give charge in the comment line of each frame, also where it is 0",
        )
    return (DIPOLE, POLARIZABILITY)


def _check_branches(examples: Sequence[Example]) -> None:
    """Refuse dipoles of periodic frames that may differ by whole quanta, e times cell vectors, as jumps to be learned.

    Within a quarter of a quantum from 0 no two can (King-Smith and Vanderbilt, Phys. Rev. B 47, 1651, 1993).
    """
    for e in examples:
        pbc = np.array(e.frame.pbc)
        if e.label.dipole is None or not pbc.any():
            continue
        quanta = e.label.dipole @ np.linalg.pinv(e.frame.cell[pbc])
        if np.abs(quanta).max() > BRANCH:
            raise LabelError(
                f"{e.place} is periodic, and its dipole is {np.abs(quanta).max():.2f} of e times a cell vector: a "
                "dipole in a cell is known up to whole such quanta, and those of other frames may be on another branch",
                f"train on frames whose dipoles are within {BRANCH:g} of it, such as molecules in a large cell or "
                "clusters",
            )


def _labels(examples: Sequence[Example], name: str) -> FloatArray:
    return np.array([getattr(e.label, name) for e in examples])


def _varies(examples: Sequence[Example], name: str) -> FloatArray:
    """(n, 3) or (n, 3, 3): labels less a constant an atom, the mean isotropic one of polarizabilities."""
    label = _labels(examples, name)
    if name == DIPOLE:
        return label
    atoms = np.array([len(e.frame.numbers) for e in examples])
    each = float(np.trace(label, axis1=1, axis2=2).sum() / 3 / atoms.sum())
    return label - each * atoms[:, None, None] * np.eye(3)


def _weight(dataset: Dataset, name: str) -> float:
    """1 over the mean square that is to be learned, of an atom and in the units of the training."""
    atoms = np.array([len(e.frame.numbers) for e in dataset.training])
    values = in_training_units(name, _varies(dataset.training, name)).reshape(len(atoms), -1) / atoms[:, None]
    size = float((values**2).mean())
    if not size > 0:
        raise LabelError(f"the {name} is the same in all labels", "there is nothing to learn")
    return 1.0 / size
