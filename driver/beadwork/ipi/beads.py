"""Which bead is which. The wire does not say; i-PI queues beads in order, and a bead stays close to itself.

So a ring that comes whole and in one batch is in order, unless the positions say otherwise; everything else is told by
continuity with the ring before. Where neither says it clearly, the bead is unknown, and is not invented.
"""

from __future__ import annotations

import numpy as np

from beadwork.frame import FloatArray


class Beads:
    """Follows one ring polymer of `count` beads through the structures of one forcefield."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ring: FloatArray | None = None  # (count, 3 N) as last seen

    def identify(self, positions: FloatArray) -> list[int | None]:
        """Name the beads of distinct structures, positions (S, N, 3), and remember where they are now."""
        flat = positions.reshape(len(positions), -1)
        if self._ring is None or self._ring.shape[1] != flat.shape[1]:
            if len(flat) != self._count:
                return [None] * len(flat)
            self._ring = flat.copy()
            return list(range(self._count))
        beads = _closest(flat, self._ring)
        for index, bead in enumerate(beads):
            if bead is not None:
                self._ring[bead] = flat[index]
        if beads.count(None) and len(flat) == self._count:
            self._ring = None  # lost the thread: begin again with the next whole ring
        return beads


def _closest(flat: FloatArray, ring: FloatArray) -> list[int | None]:
    # |a - b|^2 = a a + b b - 2 a b, about the centroid so that nothing large cancels
    centroid = ring.mean(axis=0)
    one, two = flat - centroid, ring - centroid
    square = (one**2).sum(axis=1)[:, None] + (two**2).sum(axis=1) - 2 * one @ two.T
    beads: list[int | None] = []
    for row in square:
        bead = int(row.argmin())
        others = np.delete(row, bead)
        # clear means: the next nearest is at least twice as far, and nobody else has claimed this one
        clear = bead not in beads and (len(others) == 0 or others.min() >= 4.0 * row[bead])
        beads.append(bead if clear else None)
    return beads
