"""Find equal structures, wherever they come from: a frame that was trained on must not be used as a test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from beadwork.frame import FloatArray, Frame

#: Å, in every coordinate: far above the rounding of files, far below the displacement in a step of a simulation
SAME_COORDINATE = 1e-3
#: the same of one that is turned to lie on another: what files with five digits leave. Among turned frames of few atoms
#: many are close by chance, and a chain of them would be one
SAME_TURNED = 2e-5


def firsts(frames: Sequence[Frame]) -> list[int]:
    """For each frame the index of the first equal one: its own where there is none before it.

    Equal frames have the same atomic numbers in the same order and the same periodicity, and positions (after removing
    a common translation, and of each atom whole cell vectors) and periodic cell vectors that differ by less than
    SAME_COORDINATE, or by less than SAME_TURNED when one is turned or mirrored (`turn`). Charge and spin do not count,
    since no model that is trained here uses them.
    """
    found = list(range(len(frames)))
    groups: dict[bytes, list[int]] = {}
    for index, frame in enumerate(frames):
        # only frames of the same atoms in the same order can be equal
        key = np.asarray(frame.numbers, dtype=np.int64).tobytes() + bytes(map(bool, frame.pbc))
        groups.setdefault(key, []).append(index)
    for group in groups.values():
        points = np.stack([_vectors(frames[index]) for index in group])
        atoms = len(frames[group[0]].numbers)
        # which no rotation changes
        lengths = np.linalg.norm(points, axis=2)
        # compare only frames whose projections on a random direction are close: n log n instead of n^2 comparisons
        direction = np.random.default_rng(0).normal(size=lengths.shape[1])
        shadow = lengths @ direction
        # two equal frames cannot project further apart than this
        longer = 2 * np.sqrt(3) * SAME_COORDINATE
        width = longer * np.abs(direction).sum()
        order = shadow.argsort()
        low = np.searchsorted(shadow[order], shadow - width)
        high = np.searchsorted(shadow[order], shadow + width, side="right")
        for place in range(1, len(group)):
            others = order[low[place] : high[place]]
            others = np.sort(others[others < place])
            others = others[np.abs(lengths[others] - lengths[place]).max(axis=1) < longer]
            same = _apart(points[others], points[place], atoms).max(axis=(1, 2), initial=0.0) < SAME_COORDINATE
            if not same.all():
                turned = points[others] @ _onto(points[others], points[place], atoms)
                same |= _apart(turned, points[place], atoms).max(axis=(1, 2)) < SAME_TURNED
            # the first of a chain stands for all, so that equal to the same is equal
            if (near := np.flatnonzero(same)).size:
                found[group[place]] = found[group[int(others[near[0]])]]
    return found


def turn(some: FloatArray, onto: FloatArray) -> FloatArray:
    """(…, 3, 3) the rotations, with a reflection or without, by which sets of vectors (…, K, 3) come closest to others
    (K, 3), as `some @ turn` (Schönemann, Psychometrika 31, 1, 1966)."""
    left, _, right = np.linalg.svd(np.swapaxes(some, -1, -2) @ onto)
    result: FloatArray = left @ right
    return result


def same_turn(one: Frame, other: Frame) -> tuple[FloatArray, FloatArray]:
    """Of two equal frames the `turn` (3, 3) that brings the second onto the first, none where it lies there already,
    and how far (N,) in Å each atom of it then is from where it is in the first."""
    onto, some, atoms = _vectors(one), _vectors(other), len(one.numbers)
    turned = np.eye(3)
    if _apart(some, onto, atoms).max() >= SAME_COORDINATE:
        turned = _onto(some, onto, atoms)
    return turned, np.linalg.norm(_apart(some @ turned, onto, atoms)[:atoms], axis=1)


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


def _vectors(frame: Frame) -> FloatArray:
    """(K, 3) Å: of all atoms from their centre, or, in a cell, in their nearest images from the first atom; and of the
    cell where it is periodic."""
    # files shift structures by a constant, and fold atoms into the cell, which changes nothing that a model sees
    if not any(frame.pbc):
        centred: FloatArray = frame.positions - frame.positions.mean(axis=0)
        return centred
    from ase.geometry import find_mic

    nearest = find_mic(frame.positions - frame.positions[0], frame.cell, frame.pbc)[0]
    return np.concatenate((nearest, frame.cell[np.array(frame.pbc, dtype=bool)]))


def _apart(some: FloatArray, onto: FloatArray, atoms: int) -> FloatArray:
    """(…, K, 3) how far, in each coordinate, sets of `_vectors` are from others (K, 3), without a common translation
    and whole cell vectors. atoms: how many of the vectors are of these."""
    ways = some - onto
    if len(cell := onto[atoms:]):
        way = ways[..., :atoms, :]
        # of an atom half a cell away either image may be the nearest
        way = way - np.round(way @ np.linalg.pinv(cell)) @ cell
        ways = np.concatenate((way - way.mean(axis=-2, keepdims=True), ways[..., atoms:, :]), axis=-2)
    return np.abs(ways)


def _onto(some: FloatArray, onto: FloatArray, atoms: int) -> FloatArray:
    """The `turn` of sets of `_vectors`: by the cell where it has three vectors, whichever images the atoms are in."""
    whole = atoms if len(onto) == atoms + 3 else 0
    return turn(some[..., whole:, :], onto[whole:])
