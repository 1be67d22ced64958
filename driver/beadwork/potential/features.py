"""What a bundle's model makes of each atom: the invariant node features of many frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from beadwork.errors import ModelError
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.potential.auto_engine import open_checked
from beadwork.potential.bundle import Checked
from beadwork.potential.graph import build

#: frames of one neighbour list
BATCH = 64


def features(frames: Sequence[Frame], card: Checked) -> tuple[FloatArray, IntArray, IntArray]:
    """Invariant node features (A, F), atomic numbers (A,) and the index of the frame (A,) of every atom.

    Raises ModelError for a model that does not give them.
    """
    if lacking := sorted({int(z) for f in frames for z in f.numbers} - set(card.elements)):
        raise ModelError(
            f"{card.path} does not know the atomic numbers {lacking}", "take a model that was trained with them"
        )
    engine = open_checked(card)
    heard = [engine.features(build(frames[at : at + BATCH], card.cutoff)) for at in range(0, len(frames), BATCH)]
    sizes = [len(f.numbers) for f in frames]
    return np.concatenate(heard), np.concatenate([f.numbers for f in frames]), np.repeat(np.arange(len(frames)), sizes)
