"""Train one model on the labels themselves: a baseline."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ase.data import chemical_symbols

from beadwork.errors import ConfigError, LabelError
from beadwork.potential.bundle import (
    amend_card,
    format_errors,
)
from beadwork.train.calibration import held_out
from beadwork.train.committee import added, open_folder
from beadwork.train.dataset import Example
from beadwork.train.divide import divide, format_division, symbols_of
from beadwork.train.foundation import Foundation
from beadwork.train.member import train_member
from beadwork.train.plan import MODEL_SETTINGS, finished, make_plan
from beadwork.train.settings import SHARED, TrainSettings

#: eV; closer energies of an isolated atom count as equal
SAME_ENERGY_EV = 1e-4


def train_model(
    examples: Sequence[Example],
    out: Path,
    settings: TrainSettings,
    energies_of_atoms: Mapping[int, float] | None = None,
    progress: Callable[[str], None] = lambda sentence: None,
    command: str = "beadwork.train.baseline.train_model",
    previous: Path | None = None,
    foundation: Foundation | None = None,
) -> Path:
    """Train one model on the labels themselves (examples made with baseline None): a baseline.

    energies_of_atoms: eV of each isolated atom at the labels' level, by atomic number; where not given, those of the
    neutral isolated atoms among the examples if they are of all elements, and fitted else.
    previous: a bundle trained by beadwork, from whose weights to start; its held-out frames stay held out.
    foundation: instead, a model of another origin to fine-tune, whose architecture and cutoff replace the settings'.
    Returns the bundle `out`, which contains dataset.json too. Otherwise as `committee.train_committee`.
    """
    # a trunk is what heads share, and a baseline has one readout
    if settings.trunk == SHARED:
        raise ConfigError("trunk is shared, which is for the members of a Δ committee", "a baseline is one model")
    dataset = divide(out, [out], examples, settings, previous)
    if dataset.baseline is not None:
        raise LabelError("a baseline is trained on labels, not on differences", "make the examples with baseline None")
    progress(format_division(out, examples, dataset, settings))
    ions = [e for e in examples if e.isolated and e.charge]
    if ions:
        progress(f"{len(ions)} isolated ions ({symbols_of(ions)}), neither trained on nor tested")
    if energies_of_atoms is None and (atoms := [e for e in examples if e.isolated and not e.charge]):
        energies_of_atoms = _energies_of(atoms)
        # energies of some elements alone would put the others on another scale
        lacking = set().union(*(e.frame.numbers.tolist() for e in dataset.examples)) - set(energies_of_atoms)
        used = "their energies are the reference energies"
        if lacking:
            energies_of_atoms = None
            used = f"{', '.join(chemical_symbols[z] for z in sorted(lacking))} is missing: references are fitted"
        progress(f"{len(atoms)} isolated atoms ({symbols_of(atoms)}), neither trained on nor tested: {used}")
    start = [] if previous is None else [previous]
    if foundation is not None:
        # its weights are of its own cutoff
        settings = replace(settings, r_max=foundation.card.cutoff)
        start = [foundation.file]
        progress(
            f"fine-tunes {foundation.file.name}: architecture and cutoff ({settings.r_max:g} Å) are that model's; "
            f"r_max, {' and '.join(MODEL_SETTINGS)} of the settings are not used"
        )
    plan = make_plan(dataset, settings, start, energies_of_atoms, foundation)
    # beside `out`: a rename works within one file system only
    work = out.with_name(f"{out.name}.parts")
    if finished(out, dataset, plan):
        shutil.rmtree(work, ignore_errors=True)
        return out
    open_folder(work, dataset)
    if not finished(work / out.name, dataset, plan):
        about = {"trained_on": "REF_energy, REF_forces", "command": command, **added(dataset)}
        progress(train_member(0, work, settings, plan, start, about, out.name))
    _, measured = held_out(dataset, [work / out.name])
    amend_card(work / out.name, held_out=measured)
    progress(f"{out}: {format_errors(measured)}")
    # inside the bundle: a baseline is one folder, which can be moved as a whole
    dataset.write(work / out.name)
    # the finished bundle appears in one step, with its dataset and its errors
    os.replace(work / out.name, out)
    shutil.rmtree(work)
    return out


def _energies_of(atoms: Sequence[Example]) -> dict[int, float]:
    """Energy (eV) by atomic number. Raises LabelError where two of one element differ."""
    found: dict[int, Example] = {}
    for e in atoms:
        # the first one is named beside the other, so that a user can find both
        first = found.setdefault(int(e.frame.numbers[0]), e)
        if abs(first.energy - e.energy) > SAME_ENERGY_EV:
            raise LabelError(
                f"the isolated atom in {first.place} has {first.energy:.4f} eV, the one in {e.place} {e.energy:.4f}: "
                "one element has one reference energy",
                "remove one of them",
            )
    return {z: e.energy for z, e in found.items()}
