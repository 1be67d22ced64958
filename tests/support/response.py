"""Models of dipoles and polarizabilities: of mace-torch with random weights, and a toy whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from beadwork.frame import FloatArray
from beadwork.potential.engine import Response
from beadwork.potential.graph import Graph
from support.random_models import random_mace

#: the classes of mace-torch, MACECalculator's names for them, and what differs from a random ScaleShiftMACE
KINDS = {
    "EnergyDipolesMACE": "EnergyDipoleMACE",
    "AtomicDipolesMACE": "DipoleMACE",
    "AtomicDielectricMACE": "DipolePolarizabilityMACE",
}
_LAYERS = {
    "EnergyDipolesMACE": ("4x0e+4x1o", "4x0e+4x1o"),
    "AtomicDipolesMACE": ("4x0e+4x1o", "4x1o"),
    "AtomicDielectricMACE": ("4x0e+4x1o+4x2e", "4x0e+4x1o+4x2e"),
}


def random_response(kind: str, seed: int = 3, **options: Any) -> Any:
    """An eager model of this class for H and O, with random weights."""
    hidden, readout = _LAYERS[kind]
    return random_mace(
        **{
            **{"kind": kind, "seed": seed, "cutoff": 4.5, "scale": 8.0, "shift": 0.1, "neighbors": 12.0},
            **{"energies": (-13.6, -442.0), "channels": 4, "max_ell": 2, "correlation": 2},
            **{"hidden_irreps": hidden, "MLP_irreps": readout, **options},
        }
    )


class Charges:
    """Fixed charges by atomic number (e): the dipole is their sum times positions, Born charges and polarizability are
    the charges and `alpha` (e Å²/V) times one; an engine of `beadwork.potential.response.Role`."""

    cutoff = 0.0
    elements: tuple[int, ...] = ()
    wants: tuple[str, ...] = ()
    of_images = True
    born = True
    joint = None

    def __init__(self, charges: dict[int, float], alpha: float | None = None) -> None:
        self.name = f"charges {charges}"
        self.answers = ("dipole",) if alpha is None else ("dipole", "polarizability")
        self._charges, self._alpha = charges, alpha

    def evaluate(self, graph: Graph) -> Response:
        """As `ResponseEngine` has it."""
        q = np.array([self._charges[z] for z in graph.numbers.tolist()])
        dipole: FloatArray = np.add.reduceat(q[:, None] * graph.positions, graph.ptr[:-1])
        alpha = None if self._alpha is None else np.tile(self._alpha * np.eye(3), (len(graph), 1, 1))
        return Response(dipole, q[:, None, None] * np.eye(3), alpha)
