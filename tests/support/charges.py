"""An engine that wants charge and spin, and whose energy tells both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from beadwork.potential.analytic import Harmonic
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph


class Charged(Harmonic):
    """Springs whose energy (eV) has the charge (e) and a tenth of the unpaired electrons added; both must be given.

    told: what it was given, a list for each evaluation.
    """

    def __init__(self, k: float = 1.0) -> None:
        super().__init__(k)
        self.told: list[tuple[tuple[int | None, int | None], ...]] = []

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate every system of the graph; TypeError where something is not given."""
        self.told.append(graph.states)
        answer = super().evaluate(graph)
        return replace(answer, energies=answer.energies + np.array([q + 0.1 * s for q, s in graph.states]))
