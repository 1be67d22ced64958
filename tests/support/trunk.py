"""A toy trunk: its heads are springs of different strength, their mean is the spring of mean strength."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from beadwork.potential.analytic import Harmonic
from beadwork.potential.engine import Energies


class Springs:
    """The mean of springs (eV/Å²) on the origin. evaluations: of the mean, and opened: which heads were opened."""

    name = "springs"
    cutoff = 0.0
    elements: tuple[int, ...] = ()

    def __init__(self, strengths=(1.0, 1.1, 1.3)) -> None:
        self.strengths = tuple(strengths)
        self.heads = len(self.strengths)
        self.evaluations = 0
        self.opened: list[int] = []
        self.asked = 0  # evaluations of head 0

    def evaluate(self, graph) -> Energies:
        """What the mean says, with each head's energy."""
        self.evaluations += 1
        answer = Harmonic(float(np.mean(self.strengths))).evaluate(graph)
        return replace(answer, of_heads=np.array([Harmonic(k).evaluate(graph).energies for k in self.strengths]))

    def open_head(self, number: int, *, weighing: bool):
        """One spring, which counts its evaluations where it is the first."""
        assert not weighing
        self.opened.append(number)
        spring, trunk = Harmonic(self.strengths[number]), self

        class Counted(Harmonic):
            def evaluate(self, graph):
                trunk.asked += number == 0
                return spring.evaluate(graph)

        return Counted(1.0)
