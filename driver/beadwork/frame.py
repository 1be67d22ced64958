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

#: names of the total charge in the info of an `ase.Atoms`, ours and MACE's, and of a spin (ours, MACE's, others); each
#: with the difference of its number from that of e or unpaired electrons
CHARGES = {"charge": 0, "total_charge": 0}
SPINS = {"spin": 0, "total_spin": 1, "multiplicity": 1, "spin_multiplicity": 1}


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
        """Take numbers, positions, cell and pbc from an `ase.Atoms`, and charge and spin from its info (`state_of`).

        Raises GeometryError for a charge or a spin that is none.
        """
        charge, spin = state_of(atoms.info)
        return cls(
            atoms.numbers.astype(np.int_),
            np.array(atoms.positions, dtype=np.float64),
            np.array(atoms.cell.array, dtype=np.float64),
            (bool(atoms.pbc[0]), bool(atoms.pbc[1]), bool(atoms.pbc[2])),
            charge=charge,
            spin=spin,
        )

    def to_atoms(self) -> Any:
        """Return the same structure as an `ase.Atoms`, without charge and spin, for which each program has names and
        meanings of its own."""
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


def state_of(info: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Charge (e) and unpaired electrons that the info of an `ase.Atoms` says, under any of `CHARGES` and `SPINS`.

    None where it says nothing. Raises GeometryError for what is no whole number, and for names that contradict.
    """
    return _said(info, CHARGES), _said(info, SPINS)


def _said(info: Mapping[str, Any], names: Mapping[str, int]) -> int | None:
    found = {name: _whole(name, info[name], more) - more for name, more in names.items() if info.get(name) is not None}
    if len(set(found.values())) > 1:
        listed = " and ".join(f"{name}={value + names[name]}" for name, value in found.items())
        raise GeometryError(f"the structure has {listed}: one of them is wrong", "remove it")
    return next(iter(found.values()), None)


def _whole(name: str, value: Any, more: int) -> int:
    values = np.ravel(value)
    number = len(values) == 1 and values.dtype.kind in "iuf"
    # files write whole numbers as 1.0, too
    if number and float(values[0]).is_integer():
        return int(values[0])
    told = f"{values[0]:g}" if number else repr(" ".join(map(str, values)))
    what = (
        "the total charge in e" if name in CHARGES else "a multiplicity" if more else "a number of unpaired electrons"
    )
    raise GeometryError(f"{name} is {told}", f"it must be {what}, a whole number")
