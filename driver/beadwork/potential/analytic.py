"""Test potentials with an engine's contract, whose energies and forces are known analytically."""

from __future__ import annotations

import numpy as np

from beadwork.frame import FloatArray
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph


class Harmonic:
    """Every atom is tied to a site by a spring: E = k/2 sum |r - r0|^2, k in eV/Å^2.

    sites: (n, 3) Å for systems of n atoms, or None for the origin. The sites are fixed in space, so the virial,
    sum of r F, is that of a strain of the atoms alone.
    """

    elements: tuple[int, ...] = ()
    cutoff = 0.0

    def __init__(self, k: float, sites: FloatArray | None = None) -> None:
        self.name = f"harmonic (k = {k} eV/Å^2)"
        self.k = k
        self.sites = sites

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate every system of the graph."""
        r = graph.positions
        # coordinates as they come, never wrapped: a spring to a fixed site has no periodic images
        away = r if self.sites is None else r - np.tile(self.sites, (len(graph), 1))
        starts = graph.ptr[:-1]
        forces = -self.k * away
        energies = 0.5 * self.k * np.add.reduceat((away**2).sum(axis=1), starts)
        virials = np.add.reduceat(r[:, :, None] * forces[:, None, :], starts, axis=0)
        return Energies(energies, forces, 0.5 * (virials + virials.transpose(0, 2, 1)))


class FreeParticle:
    """No potential at all."""

    elements: tuple[int, ...] = ()
    cutoff = 0.0
    name = "free particle"

    def evaluate(self, graph: Graph) -> Energies:
        """Zeros for every system of the graph."""
        systems = len(graph)
        return Energies(np.zeros(systems), np.zeros((len(graph.numbers), 3)), np.zeros((systems, 3, 3)))
