"""Which structures are the same one, whoever wrote them down: what was learned from once is no test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from beadwork.frame import Frame

#: Å, of every coordinate: far above what files round off, far below what steps of a simulation move
SAME_COORDINATE = 1e-3


def firsts(frames: Sequence[Frame]) -> list[int]:
    """For each frame the index of the first one that is the same: its own where there is none before it.

    The same are equal atomic numbers in one order and equal periodicity, with positions (but for a shift of the whole)
    and periodic cell vectors that differ by less than SAME_COORDINATE. Charge and spin, which no model sees, do not
    count.
    """
    found = list(range(len(frames)))
    groups: dict[bytes, list[int]] = {}
    for index, frame in enumerate(frames):
        key = np.asarray(frame.numbers, dtype=np.int64).tobytes() + bytes(map(bool, frame.pbc))
        groups.setdefault(key, []).append(index)
    for group in groups.values():
        points = np.stack([_point(frames[index]) for index in group])
        # only those are compared whose projections on one direction are as near as two of the same can be
        direction = np.random.default_rng(0).normal(size=points.shape[1])
        shadow = points @ direction
        width = SAME_COORDINATE * np.abs(direction).sum()
        order = shadow.argsort()
        low = np.searchsorted(shadow[order], shadow - width)
        high = np.searchsorted(shadow[order], shadow + width, side="right")
        for place in range(1, len(group)):
            others = order[low[place] : high[place]]
            others = np.sort(others[others < place])
            apart = np.abs(points[others] - points[place]).max(axis=1)
            if (near := np.flatnonzero(apart < SAME_COORDINATE)).size:
                found[group[place]] = found[group[int(others[near[0]])]]
    return found


def among(frames: Sequence[Frame], known: Sequence[Frame]) -> list[bool]:
    """Whether each frame is one of those that are known."""
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
    return np.concatenate(((frame.positions - frame.positions.mean(axis=0)).ravel(), vectors.ravel()))
