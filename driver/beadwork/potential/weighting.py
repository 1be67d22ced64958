"""The weighted baseline: Δ counts for less where its members disagree.

After Imbalzano et al., J. Chem. Phys. 154, 074102 (2021). An energy x (eV, without its constant part) whose members
deviate by d_m with the variance v gets the factor f = s² / (s² + v). The derivative of f x is exact:

    d(f x) = f dx + Σ_m p_m dd_m,    p_m = - x f²/s² 2 w_m d_m / (1 - Σ w²)

x is the energy of a whole system, or that of each atom's neighbourhood (`Neighbourhoods`).
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array

from beadwork.frame import FloatArray
from beadwork.potential.graph import Graph

#: Å: atoms' energies are averaged within this radius. How a model divides the energy of a molecule among its atoms is
#: arbitrary, and members that agree about molecules divide it differently: in liquid water the variance of 192 atoms'
#: own energies is 40,000 times that of 192 parts of the total. Within 6 Å most of that cancels: a factor of 4 is left
#: (docs/formulas.md).
AVERAGING_RADIUS = 6.0


def weigh(x: FloatArray, deviations: FloatArray, weights: FloatArray, s: float) -> tuple[FloatArray, FloatArray]:
    """f (n,) and p (M, n), for x (n,) and deviations (M, n) in eV, weights (M,) of sum 1, and s in eV."""
    norm = 1.0 - float((weights**2).sum())
    factor = s**2 / (s**2 + weights @ deviations**2 / norm)
    return factor, -(x * factor**2 / s**2) * 2 / norm * weights[:, None] * deviations


class Neighbourhoods:
    """Distributes each atom's value among the atoms around it, so that the sum over a system stays the same.

    Atom i gets K_ij of what atom j has: K_ij = k_ij / Σ_l k_lj with k_ij = (1 - (r_ij / radius)²)³ below radius, and
    k_jj = 1. Systems, and parts of one that are further apart than radius, have nothing of each other.
    """

    def __init__(self, graph: Graph, radius: float = AVERAGING_RADIUS) -> None:
        self._graph = graph = graph.within(radius)
        self._radius = radius
        atoms = np.arange(len(graph.numbers))
        near = 1.0 - (graph.lengths / radius) ** 2
        self._slope = -6.0 * near**2 / radius**2  # dk/dr over r
        rows, columns = np.concatenate((graph.center, atoms)), np.concatenate((graph.neighbor, atoms))
        kernel = np.concatenate((near**3, np.ones(len(atoms))))
        # each column is divided by its own sum: that keeps Σ_i x_i, and so the total energy where members agree
        self._sums = np.bincount(columns, weights=kernel, minlength=len(atoms))
        self._shares = coo_array((kernel / self._sums[columns], (rows, columns)), shape=(len(atoms),) * 2).tocsr()
        self._edge_shares = near**3 / self._sums[graph.neighbor]

    def gather(self, values: FloatArray) -> FloatArray:
        """(n, A) -> (n, A): the averaged values."""
        found: FloatArray = (self._shares @ values.T).T
        return found

    def spread(self, weights: FloatArray) -> FloatArray:
        """(n, A) -> (n, A): weights of averaged values as weights of the original ones; the transpose of `gather`."""
        found: FloatArray = (self._shares.T @ weights.T).T
        return found

    def pull(self, weights: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Forces (A, 3), eV/Å, and virials (S, 3, 3), eV, of Σ_n weights · gather(values) at constant values.

        weights, values: (n, A) each, of which the values are in eV.
        """
        graph = self._graph
        center, neighbor = graph.center, graph.neighbor
        atoms = len(graph.numbers)
        # d/dK_ij is Σ_n weights_i values_j; a column's shares keep the sum 1
        own = np.einsum("ni,ni->i", weights, values)
        edges = np.einsum("ne,ne->e", weights[:, center], values[:, neighbor])
        mean = np.bincount(neighbor, weights=edges * self._edge_shares, minlength=atoms) + own / self._sums
        # chain rule through the normalisation: moving one neighbour changes the shares of all others too
        along = -(edges - mean[neighbor]) / self._sums[neighbor] * self._slope
        on_neighbor = along[:, None] * graph.vectors
        forces = np.zeros((atoms, 3))
        # add.at, since an atom has many edges, and += with an index array counts each atom once
        np.add.at(forces, neighbor, on_neighbor)
        np.subtract.at(forces, center, on_neighbor)
        virials = np.zeros((len(graph), 3, 3))
        np.add.at(virials, graph.system[center], on_neighbor[:, :, None] * graph.vectors[:, None, :])
        return forces, virials
