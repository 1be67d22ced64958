"""The same potential as an ASE calculator."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from beadwork.frame import Frame
from beadwork.potential.potential import Potential


class BeadworkCalculator(Calculator):  # type: ignore[misc]
    """Energy (eV), forces (eV/Å), stress (eV/Å^3, Voigt) and the atoms' energies (eV) of one structure.

    The atoms' energies are MACE's, with their reference energies; a weighted baseline, whose factor is the whole
    system's, has none. `results` also holds 'energy_spread' (eV) and 'force_spread' (n,) (eV/Å) where there are at
    least two Δ models. A copy, pickled or not, opens the bundles again, which must be where they were.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "energies", "forces", "stress"]

    def __init__(self, potential: Potential, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.potential = potential

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = tuple(all_changes)
    ) -> None:
        """Evaluate `atoms`; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        answer = self.potential.evaluate([Frame.from_atoms(self.atoms)])
        energy = float(answer.energies[0])
        self.results = {"energy": energy, "free_energy": energy, "forces": answer.forces}
        if answer.of_atoms is not None:
            self.results["energies"] = answer.of_atoms
        if self.atoms.cell.rank == 3:
            stress = -answer.virials[0] / self.atoms.get_volume()
            self.results["stress"] = stress.ravel()[[0, 4, 8, 5, 2, 1]]
        if answer.energy_spread is not None and answer.force_spread is not None:
            self.results["energy_spread"] = float(answer.energy_spread[0])
            self.results["force_spread"] = np.array(answer.force_spread)
