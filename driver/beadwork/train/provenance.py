"""Trace a model back to its labels: card -> dataset -> frames -> label, code, input, simulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from beadwork.errors import LabelError
from beadwork.potential.bundle import load_card
from beadwork.train.dataset import DATASET, Dataset, Example


def chain(bundle: Path, frames: bool = False) -> str:
    """Format in a few lines what a model was trained on; with `frames`, a line for each of them too.

    Empty for a model whose card names no dataset. Raises LabelError for a dataset that is missing, was changed, or is
    not the one that the card names.
    """
    named = load_card(bundle).about.get("dataset")
    if named is None:
        return ""
    # a baseline has its dataset inside, members have it beside them
    folder = next((f for f in (bundle, bundle.resolve().parent) if (f / DATASET).exists()), None)
    if folder is None:
        raise LabelError(f"{bundle} learned from the dataset {named}, but {DATASET} lies neither in nor beside it")
    dataset = Dataset.read(folder)
    if dataset.hash != named:
        raise LabelError(f"{bundle} learned from the dataset {named}, but {folder / DATASET} is {dataset.hash}")
    lines = [
        f"dataset {dataset.hash}: {len(dataset.examples)} frames, {len(dataset.testing)} of them held out "
        f"({folder / DATASET})",
        f"  labels: {dataset.method}; differences to the model {dataset.baseline or 'none: the labels themselves'}",
    ]
    chains: tuple[tuple[str, Callable[[Example], str]], ...] = (
        ("computed by", lambda e: f"{e.label.code} {e.label.version}".strip()),
        ("input", lambda e: _first(e.label.input)),
        ("from", lambda e: e.source),
        ("simulation", lambda e: e.simulation or "unknown"),
    )
    for what, key in chains:
        found = Counter(key(e) for e in dataset.examples)
        lines += [f"  {what} {name} ({count} frames)" for name, count in found.most_common(5)]
        if len(found) > 5:
            lines.append(f"  {what} {len(found) - 5} others")
    if frames:
        lines += [
            _line(e, out)
            for e, out in sorted(zip(dataset.examples, dataset.held_out, strict=True), key=lambda p: p[0].row)
        ]
    return "\n".join(lines)


def _line(e: Example, out: bool) -> str:
    forces = "" if e.label.forces is None else ", forces"
    error = f" ± {e.energy_error:.4f}" if e.energy_error else ""
    return (
        f"  {e.source} {e.row}: {e.composition}, {e.label.energy:.4f}{error} eV{forces}; label {e.label.hash}; "
        f"{e.label.code} {e.label.version}; simulation {e.simulation or 'unknown'}"
        f"{'' if e.step is None else f', step {e.step}'}{'; held out' if out else ''}"
    )


def _first(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
