"""A potential whose energy, forces and virial are known on paper, and which sees the periodic images."""

from __future__ import annotations

import numpy as np

from beadwork.potential.engine import Energies


class Pair:
    """A smooth pair potential with known derivative: E = strength / 4 sum over directed edges of (1 - (r/rc)^2)^3."""

    elements: tuple[int, ...] = ()

    def __init__(self, strength: float, cutoff: float = 3.5, power: int = 3, offset: float = 0.0) -> None:
        self.name = f"pair {strength} {power} {cutoff}"
        self.strength, self.cutoff, self.power, self.offset = strength, cutoff, power, offset

    def evaluate(self, graph):
        """The sum over edges, and edge forces by the chain rule."""
        graph = graph.within(self.cutoff)
        x = 1 - (graph.lengths / self.cutoff) ** 2
        node = np.bincount(graph.center, weights=x**self.power, minlength=len(graph.numbers)) * self.strength / 4
        slope = self.strength / 4 * self.power * x ** (self.power - 1) * -2 / self.cutoff**2
        return self.sum_edges(graph, node + self.offset, -slope[:, None] * graph.vectors)

    @staticmethod
    def sum_edges(graph, node, edge):
        """Energies, forces and virials of node energies (A,) and the forces (E, 3) of edges on their neighbors."""
        forces, virials = np.zeros((len(node), 3)), np.zeros((len(graph), 3, 3))
        np.add.at(forces, graph.neighbor, edge)
        np.subtract.at(forces, graph.center, edge)
        np.add.at(virials, graph.system[graph.center], edge[:, :, None] * graph.vectors[:, None, :])
        energies = np.bincount(graph.system, weights=node, minlength=len(graph))
        return Energies(energies, forces, (virials + virials.transpose(0, 2, 1)) / 2)
