"""Small clusters of water with exact labels: a pair potential stands for Δ, so that no other code is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from beadwork.frame import Frame
from beadwork.label.label import Label
from beadwork.potential.bundle import load_card
from beadwork.train.dataset import Example

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / "models" / "water-revpbe0-d3" / "baseline"
#: eV of a pair at contact, and eV of each atom, by atomic numbers
PAIRS = {(1, 1): 0.4, (1, 8): -1.5, (8, 8): 6.0}
ATOMS = {1: -0.7, 8: 1.9}
RANGE = 0.8  # Å


def clusters(count: int, seed: int, most: int = 3, charged: bool = False) -> list[Frame]:
    """Clusters of one to `most` molecules from the shipped box of water, each atom moved by 0.08 Å.

    charged: every third one has a proton too much.
    """
    import ase.io

    box = ase.io.read(ROOT / "inputs" / "water" / "init.xyz")
    length = 9.86
    rng = np.random.default_rng(seed)
    molecules = box.positions.reshape(-1, 3, 3)
    frames = []
    for n in range(count):
        centre = rng.integers(len(molecules))
        shift = molecules[:, 0] - molecules[centre, 0]
        away = np.rint(shift / length) * length
        near = np.argsort(np.linalg.norm(shift - away, axis=1))[: 1 + n % most]
        positions = (molecules[near] - away[near, None]).reshape(-1, 3)
        numbers = np.tile([8, 1, 1], len(near))
        if charged and n % 3 == 0:
            oxygen, one, two = positions[:3]
            out = 2 * oxygen - one - two
            positions = np.vstack([positions, oxygen + out / np.linalg.norm(out)])
            numbers = np.append(numbers, 1)
        positions = positions + rng.normal(scale=0.08, size=positions.shape)
        frames.append(Frame(numbers.astype(np.int_), positions, np.zeros((3, 3)), (False, False, False)))
    return frames


def delta(frame: Frame) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å) of the pair potential A exp(-r / RANGE)."""
    energy = sum(ATOMS[int(z)] for z in frame.numbers)
    forces = np.zeros_like(frame.positions)
    for i in range(len(frame.numbers)):
        for j in range(i):
            way = frame.positions[i] - frame.positions[j]
            r = float(np.linalg.norm(way))
            a, b = sorted((int(frame.numbers[i]), int(frame.numbers[j])))
            value = PAIRS[a, b] * np.exp(-r / RANGE)
            energy += value
            forces[i] += value / RANGE * way / r
            forces[j] -= value / RANGE * way / r
    return float(energy), forces


def example(
    frame: Frame, row: int, energy_noise: float = 0.0, forces: bool = True, forces_noise: float = 0.0, seed: int = 0
) -> Example:
    """An example whose label is exact but for Gaussian noise of this size (eV; eV/Å), which it declares."""
    rng = np.random.default_rng([seed, row])
    exact, force = delta(frame)
    energy = exact + energy_noise * rng.normal()
    force = force + forces_noise * rng.normal(size=force.shape)
    label = Label(
        energy=energy,
        forces=force if forces else None,
        energy_error=energy_noise,
        forces_error=np.full(force.shape, forces_noise) if forces and forces_noise else None,
        method="pair potential",
        code="test",
        version="1",
        charge=(frame.numbers == 1).sum().item() - 2 * (frame.numbers == 8).sum().item(),
        spin=0,
        input=f"range {RANGE}",
        seconds=0.0,
        extra={},
    )
    # a baseline that says zero, so that label and difference are the same
    return Example(frame, label, energy, label.forces, "test", row, None, load_card(BASELINE).hash)
