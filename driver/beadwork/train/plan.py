"""What the members of a training share, as their cards say it: settings, reference energies, scale, start models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.errors import LabelError, ModelError
from beadwork.potential.bundle import (
    check,
    load_card,
)
from beadwork.potential.load import load
from beadwork.train.dataset import Dataset, Example, reference_energies
from beadwork.train.foundation import Foundation
from beadwork.train.settings import SEPARATE, SHARED, TrainSettings
from beadwork.train.split import APART

#: key of the isolated atoms' energies in the plan of a baseline for which they were given
ATOM_ENERGIES_KEY = "energies_of_atoms"


#: key of the model of another origin that a baseline was fine-tuned from, in its plan
FOUNDATION_KEY = "foundation"


#: settings that such a baseline takes from that model
MODEL_SETTINGS = ("hidden_irreps", "pair_repulsion")


def make_plan(
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
        card, then = check(path), settings_of(path)
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


def references(bundle: Path) -> dict[int, float]:
    """The reference energies (eV by atomic number) in the card of a bundle that was trained here."""
    plan = load_card(bundle).about.get("plan", {})
    if "reference_energies" not in plan:
        raise ModelError(f"{bundle} was not trained by beadwork: its card has no reference energies")
    return {int(z): float(energy) for z, energy in plan["reference_energies"].items()}


def apart_of(bundle: Path) -> int:
    """Steps between training and held-out frames, from a bundle's card; the default where the card does not say it."""
    return int(settings_of(bundle).get("apart", APART))


def settings_of(bundle: Path) -> Mapping[str, Any]:
    """The training settings in a bundle's card."""
    settings: Mapping[str, Any] = load_card(bundle).about.get("plan", {}).get("settings", {})
    return settings


def finished(bundle: Path, dataset: Dataset, plan: Mapping[str, Any]) -> bool:
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
