"""Noise is handled, not hidden: real MACE models, trained on exact labels to which known noise was added."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.potential.load import load
from beadwork.train.committee import train_committee
from beadwork.train.settings import TrainSettings
from support import truth

pytestmark = pytest.mark.slow

#: three members are three seeds and three draws
SMALL = TrainSettings(members=3, epochs=40, hidden_irreps="8x0e", r_max=4.0, held_out=0.0, seed=11)
#: eV/atom and eV/Å; of every other label
NOISE = 0.05, 1.0


def force_errors(members: list[Path], count: int = 40) -> tuple[list[float], float, float]:
    """Root mean square force error of each member against the exact Δ of new clusters, of their mean, and of no Δ."""
    frames = truth.clusters(count, 99, most=2)
    exact = np.concatenate([truth.delta(f)[1] for f in frames])
    errors = [load(None, [m], engine="torchscript").evaluate(frames).forces - exact for m in members]
    size = [float(np.sqrt((e**2).mean())) for e in [*errors, np.mean(errors, axis=0), exact]]
    return size[:-2], size[-2], size[-1]


def test_weights_recover_the_better_model(tmp_path: Path):
    """Half of the labels are noisy. Told so by their error bars, every member beats every one that was not, by 30 %."""
    told = []
    for n, frame in enumerate(truth.clusters(50, 4, most=2)):
        energy, forces = (NOISE[0] * len(frame.numbers), NOISE[1]) if n % 2 else (0.0, 0.0)
        told.append(truth.example(frame, n, energy_noise=energy, forces_noise=forces))
    hidden = [replace(e, label=replace(e.label, energy_error=0.0, forces_error=None)) for e in told]
    weighted, _, _ = force_errors(train_committee(told, truth.BASELINE, tmp_path / "told", SMALL))
    equal, _, nothing = force_errors(train_committee(hidden, truth.BASELINE, tmp_path / "hidden", SMALL))
    print(f"force errors, eV/Å: weighted {weighted}, equal {equal}, without Δ {nothing}")
    assert max(weighted) < min(equal)
    assert np.mean(weighted) < 0.7 * np.mean(equal)


def test_noisy_energies_alone_lower_the_force_error(tmp_path: Path):
    """Quantum Monte Carlo as it often is: energies with error bars, no forces.

    Every member's forces are better than none at all, and those of the committee, which are served, by 40 %.
    """
    noise = 0.005  # eV/atom
    examples = [
        truth.example(f, n, energy_noise=noise * len(f.numbers), forces=False)
        for n, f in enumerate(truth.clusters(80, 5, most=2))
    ]
    two = replace(SMALL, members=2)
    members, mean, nothing = force_errors(train_committee(examples, truth.BASELINE, tmp_path / "c", two))
    print(f"force errors, eV/Å: from energies alone {members}, their mean {mean}, without Δ {nothing}")
    assert max(members) < nothing
    assert mean < 0.6 * nothing
