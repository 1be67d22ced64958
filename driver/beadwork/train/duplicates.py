"""Find equal structures, wherever they come from: a frame that was trained on must not be used as a test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from beadwork.frame import Frame

#: Å, in every coordinate: far above the rounding of files, far below the displacement in a step of a simulation
SAME_COORDINATE = 1e-3


def firsts(frames: Sequence[Frame]) -> list[int]:
    """For each frame the index of the first equal one: its own where there is none before it.

    Equal frames have the same atomic numbers in the same order and the same periodicity, and positions (after removing
    a common translation) and periodic cell vectors that differ by less than SAME_COORDINATE. Charge and spin do not
    count, since no model that is trained here uses them.
    """
    found = list(range(len(frames)))
    groups: dict[bytes, list[int]] = {}
    for index, frame in enumerate(frames):
        # only frames of the same atoms in the same order can be equal
        key = np.asarray(frame.numbers, dtype=np.int64).tobytes() + bytes(map(bool, frame.pbc))
        groups.setdefault(key, []).append(index)
    for group in groups.values():
        points = np.stack([_point(frames[index]) for index in group])
        # compare only frames whose projections on a random direction are close: n log n instead of n^2 comparisons
        direction = np.random.default_rng(0).normal(size=points.shape[1])
        shadow = points @ direction
        # two equal frames cannot project further apart than this
        width = SAME_COORDINATE * np.abs(direction).sum()
        order = shadow.argsort()
        low = np.searchsorted(shadow[order], shadow - width)
        high = np.searchsorted(shadow[order], shadow + width, side="right")
        for place in range(1, len(group)):
            others = order[low[place] : high[place]]
            others = np.sort(others[others < place])
            apart = np.abs(points[others] - points[place]).max(axis=1)
            # the first of a chain stands for all, so that equal to the same is equal
            if (near := np.flatnonzero(apart < SAME_COORDINATE)).size:
                found[group[place]] = found[group[int(others[near[0]])]]
    return found


def among(frames: Sequence[Frame], known: Sequence[Frame]) -> list[bool]:
    """Whether each frame is equal to one of the known ones."""
    return [first < len(known) for first in firsts([*known, *frames])[len(known) :]]


def frames_hash(frames: Sequence[Frame]) -> str:
    """`sha256:` and the hash of these structures in this order: atomic numbers, positions, cells and periodicity."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(bytes(map(bool, frame.pbc)))
        for values, kind in ((frame.numbers, "<i8"), (frame.positions, "<f8"), (frame.cell, "<f8")):
            digest.update(np.ascontiguousarray(values, dtype=kind).tobytes())
    return f"sha256:{digest.hexdigest()}"


def _point(frame: Frame) -> np.ndarray:
    vectors = frame.cell[np.array(frame.pbc, dtype=bool)]
    # files shift structures by a constant, which changes nothing that a model sees
    return np.concatenate(((frame.positions - frame.positions.mean(axis=0)).ravel(), vectors.ravel()))
