"""The dataset of a training: which examples are learned from, and which are held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ase.data import chemical_symbols

from beadwork.train.dataset import DATASET, Dataset, Example
from beadwork.train.duplicates import among
from beadwork.train.plan import settings_of
from beadwork.train.settings import TrainSettings
from beadwork.train.split import blocks, split


def divide(
    out: Path, bundles: Sequence[Path], examples: Sequence[Example], settings: TrainSettings, previous: Path | None
) -> Dataset:
    """The dataset of a training into `out`. bundles: those that may be there already. previous: of which committee or
    model the held-out frames stay held out.

    What was begun under the older rule of splitting is finished under it.
    """
    return _framewise(out, bundles, examples) or _dataset(examples, settings, previous)


def _dataset(examples: Sequence[Example], settings: TrainSettings, previous: Path | None) -> Dataset:
    """The examples without isolated atoms, and which of them are held out."""
    # an isolated atom has no forces and no differences to learn: its energy is a reference energy
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
    if not (out / DATASET).exists() or all("apart" in settings_of(bundle) for bundle in bundles if bundle.exists()):
        return None
    then = Dataset.read(out)
    marks = {e.hash: mark for e, mark in zip(then.examples, then.held_out, strict=True)}
    now = [e for e in examples if not e.isolated]
    if {e.hash for e in now} != set(marks):  # other examples: split by the present rule
        return None
    return Dataset(tuple(now), tuple(marks[e.hash] for e in now), then.before)


def format_division(
    out: Path,
    examples: Sequence[Example],
    dataset: Dataset,
    settings: TrainSettings,
    kind: str | None = None,
) -> str:
    """Format the size of the dataset and its split. kind: of what the labels are, where not of energies and forces."""
    count, testing = len(dataset.examples), dataset.testing
    forces = sum(e.forces is not None for e in dataset.examples)
    kind = kind or f"{forces} with forces and {count - forces} with energies alone"
    lost = sum(not e.isolated for e in examples) - count
    # nothing says which of these frames are neighbours in time
    alone = sum(e.simulation is None for e in dataset.examples)
    simulations = {e.simulation for e in dataset.examples} - {None}
    undated = sum(met.step is None and met.simulation in simulations for met in dataset.before)
    return (
        f"{out}: {count} labels, {kind}; "
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


def symbols_of(atoms: Sequence[Example]) -> str:
    """The elements of isolated atoms, for a message."""
    return ", ".join(chemical_symbols[z] for z in sorted({int(e.frame.numbers[0]) for e in atoms}))
