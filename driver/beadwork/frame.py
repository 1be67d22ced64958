"""One structure, in the form that all of beadwork uses: Å, lattice vectors as rows, atomic numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beadwork.errors import GeometryError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int_]


@dataclass(frozen=True, slots=True)
class Frame:
    """A structure of n atoms.

    numbers: (n,) atomic numbers. positions: (n, 3) Å, anywhere (not wrapped). cell: (3, 3) Å, one lattice vector a
    row; zeros where there is none. pbc: (3,) bool. bead: index in the ring polymer, None where it is not known.
    charge: e, of the whole structure. spin: its unpaired electrons. None where they are not said.
    """

    numbers: IntArray
    positions: FloatArray
    cell: FloatArray
    pbc: tuple[bool, bool, bool] = (True, True, True)
    bead: int | None = None
    charge: int | None = None
    spin: int | None = None

    @classmethod
    def from_atoms(cls, atoms: Any) -> Frame:
        """Take numbers, positions, cell and pbc from an `ase.Atoms`, and charge and spin from its info.

        There they are `charge` and `spin`, or, as MACE calls them, `total_charge` and `total_spin`, the multiplicity.
        What is no whole number there says nothing.
        """
        charge, spin, multiplicity = (
            _whole(atoms.info, *names) for names in (("charge", "total_charge"), ("spin",), ("total_spin",))
        )
        if spin is None and multiplicity is not None:
            spin = multiplicity - 1
        return cls(
            atoms.numbers.astype(np.int_),
            np.array(atoms.positions, dtype=np.float64),
            np.array(atoms.cell.array, dtype=np.float64),
            (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
            charge=charge,
            spin=spin,
        )

    def to_atoms(self) -> Any:
        """Return the same structure as an `ase.Atoms`."""
        import ase

        return ase.Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc)

    def check(self) -> None:
        """Refuse structures for which a model would return finite numbers that mean nothing.

        Raises GeometryError for no atoms, non-finite or absurdly far positions (1e6 Å), a non-finite cell, or a
        periodic direction without volume. Atoms on top of each other are found where distances are known
        (`potential.graph`).
        """
        where = "" if self.bead is None else f" of bead {self.bead}"
        if len(self.numbers) == 0:
            raise GeometryError(f"the structure{where} has no atoms", "check the simulation's start structure")
        worst = np.abs(self.positions).max()
        if not worst < 1e6:  # also true for NaN
            finite = np.isfinite(self.positions).all(axis=1)
            atom = int(np.argmin(finite)) if not finite.all() else int(np.abs(self.positions).max(axis=1).argmax())
            raise GeometryError(
                f"atom {atom}{where} is at {self.positions[atom].tolist()} Å",
                "the simulation has exploded: lower the time step or look at the last frames kept",
            )
        if any(self.pbc):
            lattice = self.cell[np.array(self.pbc)]
            lengths = np.linalg.norm(lattice, axis=1)
            # the volume of the periodic directions alone, so that slabs and wires pass
            gram = np.linalg.det(lattice @ lattice.T) if np.isfinite(lattice).all() else np.nan
            if not (gram > 0 and np.sqrt(gram) > 1e-3 * lengths.prod() and lengths.min() > 0.1):
                raise GeometryError(
                    f"the cell{where} has no volume in its periodic directions: {self.cell.tolist()} Å",
                    "give a proper cell, or the option --not-periodic (pbc False in Python)",
                )


def _whole(info: Mapping[str, Any], *names: str) -> int | None:
    """The first of these entries that is a whole number."""
    for name in names:
        value = info.get(name)
        if (
            isinstance(value, (int, float, np.integer, np.floating))
            and not isinstance(value, bool)
            and float(value).is_integer()
        ):
            return int(value)
    return None
