"""The truth of the loop's tests: a baseline plus a pair potential, and a diary of who asked for what.

WHERE/calls, WHERE/ends   a line a call begun and ended: the structure's hash
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

import beadwork


class Truth(Calculator):
    """baseline: a bundle. seconds: what a call takes at least."""

    implemented_properties = ("energy", "forces")

    def __init__(self, baseline: str, where: str, seconds: float = 0.0) -> None:
        super().__init__()
        self.potential = beadwork.load(baseline, engine="torchscript")
        self.where, self.seconds = Path(where), seconds

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """See ASE."""
        super().calculate(atoms, properties, system_changes)
        name = hashlib.sha256(np.round(self.atoms.positions, 9).tobytes()).hexdigest()
        self.note("calls", name)
        time.sleep(self.seconds)
        answer = self.potential.evaluate([beadwork.Frame.from_atoms(self.atoms)])
        energy, forces = float(answer.energies[0]), answer.forces.copy()
        ways = self.atoms.get_all_distances(mic=True, vector=True)
        lengths = np.linalg.norm(ways, axis=-1)
        for i in range(len(self.atoms)):
            for j in range(i):
                value = 0.2 * np.exp(-lengths[i, j] / 0.8)
                energy += value
                pull = value / 0.8 * ways[j, i] / lengths[i, j]  # from j to i
                forces[i] += pull
                forces[j] -= pull
        self.results = {"energy": energy, "forces": forces}
        self.note("ends", name)

    def note(self, file: str, name: str) -> None:
        """One write of one short line: whole, whoever else writes."""
        with (self.where / file).open("a") as diary:
            diary.write(name + "\n")
