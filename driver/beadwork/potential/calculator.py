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

    def check_state(self, atoms: Any, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, in ASE's names; charge and spin, which ASE does not compare, as
        `info`."""
        changes: list[str] = super().check_state(atoms, tol)
        if not changes and _state(atoms) != _state(self.atoms):
            changes.append("info")
        return changes

    def calculate(
        self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = tuple(all_changes)
    ) -> None:
        """Evaluate `atoms`; called by ASE."""
        super().calculate(atoms, properties, system_changes)
        result = self.potential.evaluate([Frame.from_atoms(self.atoms)])
        energy = float(result.energies[0])
        # ASE's optimisers and filters ask for 'free_energy'; no electrons here, so it is the energy
        self.results = {"energy": energy, "free_energy": energy, "forces": result.forces}
        if result.of_atoms is not None:
            self.results["energies"] = result.of_atoms
        if self.atoms.cell.rank == 3:  # else there is no volume to divide by
            stress = -result.virials[0] / self.atoms.get_volume()
            self.results["stress"] = stress.ravel()[[0, 4, 8, 5, 2, 1]]  # Voigt: xx yy zz yz xz xy
        if result.energy_spread is not None and result.force_spread is not None:
            self.results["energy_spread"] = float(result.energy_spread[0])
            self.results["force_spread"] = np.array(result.force_spread)


def _state(atoms: Any) -> tuple[int | None, int | None]:
    frame = Frame.from_atoms(atoms)
    return frame.charge, frame.spin
