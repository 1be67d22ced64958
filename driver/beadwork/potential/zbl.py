"""The repulsion of close nuclei by Ziegler, Biersack and Littmark, as a summand beside baseline and Δ.

    v(r) = Z1 Z2 e²/(4πε0 r) φ(r/a) f(r/c)        a = 0.46850 Å / (Z1^0.23 + Z2^0.23)
    φ(x) = 0.18175 exp(-3.19980 x) + 0.50986 exp(-0.94229 x) + 0.28022 exp(-0.40290 x) + 0.02817 exp(-0.20162 x)

The Stopping and Range of Ions in Solids (Pergamon, 1985), with the digits of LAMMPS's pair_style zbl. It ends at the
sum c of the two covalent radii (Cordero et al., Dalton Trans. 2832, 2008), times a number, by MACE's polynomial
f(x) = 1 - 28 x^6 + 48 x^7 - 21 x^8, of which value and first two slopes vanish at 1. The ZBL inside mace-torch's models
(pair_repulsion) is another one: its a is 0.2403 Å / (Z1^0.3 + Z2^0.3), half of this one and less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase.data import covalent_radii

from beadwork.config import sensible
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray, IntArray
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph
from beadwork.units import BOHR, HARTREE

#: of φ: factors, and exponents of x
FACTORS, RATES = np.array([0.18175, 0.50986, 0.28022, 0.02817]), np.array([3.19980, 0.94229, 0.40290, 0.20162])
#: Å, and of Z
LENGTH, POWER = 0.46850, 0.23
#: of f
ENVELOPE = 6


class Zbl:
    """The repulsion as an engine. value: the number that multiplies the sums of covalent radii, as text.

    elements: atomic numbers that it may meet, for the cutoff. hash: what stands for it in the hash of all models.
    Raises ConfigError for no such number.
    """

    elements: tuple[int, ...] = ()

    def __init__(self, value: str, elements: Sequence[int], hash: str) -> None:
        try:
            self._times = float(value)
        except ValueError:
            self._times = np.nan
        if not sensible(self._times):
            raise ConfigError(
                f"add has zbl={value}", "it wants the number that multiplies the sum of two covalent radii, as zbl=1"
            )
        self.name = f"zbl={value}"
        self.hash = hash
        self.cutoff = 2 * self._times * float(covalent_radii[list(elements)].max())

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate every system of the graph, all pairs at once."""
        one, other = graph.numbers[graph.center], graph.numbers[graph.neighbor]
        ends = self._times * (covalent_radii[one] + covalent_radii[other])
        near = np.flatnonzero(graph.lengths < ends)
        r, u, center = graph.lengths[near], graph.vectors[near], graph.center[near]
        value, slope = pair(one[near], other[near], r, ends[near])
        # each pair has two edges: half its energy belongs to each end, and each end has its force from its own edge
        pull = (slope / r)[:, None] * u
        of_atoms, forces = np.zeros(len(graph.numbers)), np.zeros((len(graph.numbers), 3))
        virials = np.zeros((len(graph), 3, 3))
        np.add.at(of_atoms, center, 0.5 * value)
        np.add.at(forces, center, pull)
        np.add.at(virials, graph.system[center], -0.5 * pull[:, :, None] * u[:, None, :])
        virials = 0.5 * (virials + virials.transpose(0, 2, 1))
        return Energies(np.add.reduceat(of_atoms, graph.ptr[:-1]), forces, virials, of_atoms)


def pair(one: IntArray, other: IntArray, r: FloatArray, ends: FloatArray) -> tuple[FloatArray, FloatArray]:
    """v in eV and its slope in eV/Å of pairs (P,) with atomic numbers one and other, at r Å, which end at `ends` Å."""
    a = LENGTH / (one**POWER + other**POWER)
    x = (r / a)[:, None]
    parts = FACTORS * np.exp(-RATES * x)
    screened, its_slope = parts.sum(axis=1), -(RATES * parts).sum(axis=1) / a
    bare = HARTREE * BOHR * one * other / r
    p, y = ENVELOPE, r / ends
    envelope = 1 - (p + 1) * (p + 2) / 2 * y**p + p * (p + 2) * y ** (p + 1) - p * (p + 1) / 2 * y ** (p + 2)
    of_envelope = -p * (p + 1) * (p + 2) / 2 * y ** (p - 1) * (1 - y) ** 2 / ends
    value = bare * screened * envelope
    slope = bare * (its_slope * envelope + screened * of_envelope) - value / r
    return value, slope
