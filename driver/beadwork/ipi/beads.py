"""Identify beads. i-PI's protocol does not name them, but it queues them in order, and a bead moves little in a step.

So the ring of the file's start is known, and a ring that comes whole, in one batch over one connection, is in order;
all other structures are identified by continuity with the ring before. Several connections deliver in any order, as
i-PI's threads happen to run. Where the assignment is not clear, the bead is unknown (None), never guessed.
"""

from __future__ import annotations

import numpy as np

from beadwork.frame import FloatArray

#: Å; a structure within this of one of the file's start is that one: files and contractions are rounded
SAME_STRUCTURE = 1e-4


class Beads:
    """Follows one ring polymer of `count` beads through the structures of one forcefield.

    start: (count, N, 3) Å, the beads as the simulation's file has them; None where they are all in one place.
    """

    def __init__(self, count: int, start: FloatArray | None = None) -> None:
        self._count = count
        self._start = None if start is None else start.reshape(count, -1)
        self._ring: FloatArray | None = None  # (count, 3 N) as last seen

    def identify(self, positions: FloatArray, *, in_order: bool = True) -> list[int | None]:
        """Name the beads of distinct structures, positions (S, N, 3), and remember where they are now.

        in_order: if these are a whole ring, they are its beads from the first to the last.
        """
        flat = positions.reshape(len(positions), -1)
        if self._ring is None or self._ring.shape[1] != flat.shape[1]:
            self._ring = self._begin(flat, in_order)
            if self._ring is None:
                return [None] * len(flat)
        beads = _closest(flat, self._ring)
        for index, bead in enumerate(beads):
            if bead is not None:
                self._ring[bead] = flat[index]
        if beads.count(None) and len(flat) == self._count:
            self._ring = None  # continuity is lost (a jump of all beads): begin again with the next whole ring
        return beads

    def _begin(self, flat: FloatArray, in_order: bool) -> FloatArray | None:
        """The ring that these structures belong to; None where that is not known."""
        # a partly filled first batch can be identified by the file's start, a whole ring by its order
        if self._start is not None and self._start.shape[1] == flat.shape[1]:
            beads = _closest(flat, self._start)
            if None not in beads and np.abs(flat - self._start[np.array(beads)]).max() < SAME_STRUCTURE:
                return self._start.copy()
        return flat.copy() if in_order and len(flat) == self._count else None


def _closest(flat: FloatArray, ring: FloatArray) -> list[int | None]:
    # |a - b|^2 = a a + b b - 2 a b: one matrix product instead of P^2 differences; relative to the centroid, because
    # the coordinates of unwrapped atoms are large and would cancel
    centroid = ring.mean(axis=0)
    one, two = flat - centroid, ring - centroid
    square = (one**2).sum(axis=1)[:, None] + (two**2).sum(axis=1) - 2 * one @ two.T
    beads: list[int | None] = []
    for row in square:
        bead = int(row.argmin())
        others = np.delete(row, bead)
        # clear: the second nearest is at least twice as far (4 in squares), and no other structure took this bead
        clear = bead not in beads and (len(others) == 0 or others.min() >= 4.0 * row[bead])
        beads.append(bead if clear else None)
    return beads
