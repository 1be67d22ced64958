"""Radial distribution functions, and their error from the disagreement of a committee's members.

The members are reweighted by the cumulant expansion, as in i-PI's `i-pi-committee-reweight` (Imbalzano et al.,
J. Chem. Phys. 154, 074102, 2021; Ceriotti et al., Proc. R. Soc. A 468, 2, 2012). For a ring polymer the potential is
the mean over its beads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement, groupby

import numpy as np
from ase.data import chemical_symbols

from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.ipi.outputs import write_down

#: Å, and the number of bins: 0.05 Å each
MAX_DISTANCE, BINS = 6.0, 120


@dataclass(frozen=True, slots=True)
class Radial:
    """g(r) of every pair of elements.

    distances: (K,) Å, the centres of the bins. pairs: "OH" -> (F, K), one row per frame (a step, its beads averaged).
    steps: (F,).
    """

    distances: FloatArray
    pairs: dict[str, FloatArray]
    steps: IntArray

    @property
    def reach(self) -> float:
        """Å, up to where pairs were counted."""
        return float(self.distances[0] + self.distances[-1])


def radial(frames: Iterable[tuple[int, int, Frame]]) -> Radial | None:
    """Radial distribution functions of periodic structures (step, bead, structure), of one composition, one bead after
    the other.

    Counted up to 6 Å or half the first cell's smallest width, if that is less. None without a periodic structure.
    """
    farthest = 0.0
    edges = np.empty(0)
    sums: dict[int, dict[str, FloatArray]] = {}
    beads: Counter[int] = Counter()
    for _, one_bead in groupby(frames, key=lambda of: of[1]):
        mine: dict[int, dict[str, FloatArray]] = {}
        for step, _, frame in one_bead:
            if not all(frame.pbc):
                continue
            if not farthest:
                # beyond half the smallest width an atom would be counted together with its own images
                widths = 1 / np.linalg.norm(np.linalg.inv(frame.cell), axis=0)
                farthest = min(MAX_DISTANCE, float(widths.min()) / 2)
                edges = np.linspace(0.0, farthest, BINS + 1)
            write_down(mine, step, _one(frame, edges))
        beads.update(mine.keys())
        for step, found in mine.items():
            into = sums.setdefault(step, {})
            for pair, values in found.items():
                into[pair] = into.get(pair, np.zeros(BINS)) + values
    if not sums:
        return None
    # a run that was killed may have written a step for some beads only: their average would weigh them differently
    most = max(beads.values())
    whole = [step for step in sorted(sums) if beads[step] == most]
    names = list(sums[whole[0]])
    pairs = {name: np.array([sums[step][name] for step in whole]) / most for name in names}
    return Radial((edges[1:] + edges[:-1]) / 2, pairs, np.array(whole))


def _one(frame: Frame, edges: FloatArray) -> dict[str, FloatArray]:
    """g(r) of one structure: pairs found over pairs expected of an ideal gas of the same density."""
    # imported here: vesin imports torch where that is installed, which takes longer than most commands
    from vesin import NeighborList

    lists = NeighborList(cutoff=float(edges[-1]), full_list=True)
    first, second, distance = lists.compute(points=frame.positions, box=frame.cell, periodic=True, quantities="ijd")
    volume = abs(np.linalg.det(frame.cell))
    # volumes of the shells between the edges
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    found = {}
    kinds = np.unique(frame.numbers)[::-1]  # OO, OH, HH
    for a, b in combinations_with_replacement(kinds, 2):
        here = (frame.numbers[first] == a) & (frame.numbers[second] == b)
        # an atom is no pair with itself
        others = np.count_nonzero(frame.numbers == b) - (a == b)
        expected = np.count_nonzero(frame.numbers == a) * others * shells / volume
        if others > 0:
            name = chemical_symbols[a] + chemical_symbols[b]
            found[name] = np.histogram(distance[here], edges)[0] / expected
    return found


def deviations(potentials: FloatArray, thermal: float) -> FloatArray:
    """The members' potentials about their mean over kT, (F, M), from (F, M) energies and kT in one unit.

    The constant part of a member's deviation is left out: it changes no average (`offsets`).
    """
    apart = (potentials - potentials.mean(axis=1, keepdims=True)) / thermal
    result: FloatArray = apart - apart.mean(axis=0)
    return result


def offsets(potentials: FloatArray) -> FloatArray:
    """(M,): each member's deviation from the mean of members, averaged over F frames (F, M)."""
    result: FloatArray = (potentials - potentials.mean(axis=1, keepdims=True)).mean(axis=0)
    return result


def reweight(potentials: FloatArray, observable: FloatArray, thermal: float) -> FloatArray:
    """Each member's average (K, M) of an observable (F, K), from potentials (F, M) and kT in one unit.

    The cumulant expansion: <a>_m = <a> - <a h_m> + <a> <h_m>, h_m the `deviations`, whose mean is 0.
    """
    h = deviations(potentials, thermal)
    result: FloatArray = observable.mean(axis=0)[:, None] - observable.T @ h / len(h)
    return result


def matched(found: Radial, by_step: Mapping[int, FloatArray]) -> tuple[IntArray, FloatArray] | None:
    """Rows of `found` whose step has potentials, and these (F, M); None where fewer than two have."""
    rows = np.array([row for row, step in enumerate(found.steps) if int(step) in by_step], dtype=np.int_)
    if len(rows) < 2:
        return None
    return rows, np.array([by_step[int(found.steps[row])] for row in rows])
