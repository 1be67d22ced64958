"""Kept frames that are told from each other by a seed."""

from __future__ import annotations

import numpy as np

from beadwork.frame import Frame
from beadwork.harvest.row import KeptFrame


def make_kept(seed: int) -> KeptFrame:
    """Make a kept frame of six atoms that is told from all others by its seed."""
    rng = np.random.default_rng(seed)
    frame = Frame(
        numbers=np.array([8, 1, 1, 8, 1, 1]),
        positions=rng.uniform(0, 6, (6, 3)),
        cell=np.array([[6.0, 0, 0], [0.5, 6, 0], [0, 0.3, 7]]),
        bead=None if seed % 5 == 4 else seed % 5,
    )
    return KeptFrame(
        frame=frame,
        evaluation=seed,
        energy_spread=float(rng.uniform(0, 0.01)),
        force_spread=rng.uniform(0, 1, 6),
        member_energies=rng.normal(-100, 0.1, 4),
        models=("a" * 64, "sha256:" + "b" * 64, "1" * 64),
        simulation="1e5".ljust(64, "0"),  # reads as a number: what ASE would refuse
        step=None if seed % 3 == 0 else 10 * seed,
        novelty={part: rng.uniform(0, 3, 6) for part in ("baseline", "delta")[: seed % 3]},
        why=(("spread",), ("novelty",), ("spread", "novelty"))[seed % 3],
    )
