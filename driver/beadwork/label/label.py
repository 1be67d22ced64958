"""Labels and labellers: the contract between the codes that compute and the training that uses their results.

Units are eV and Å. A label names the method by which it was made: labels of two methods are never mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Protocol

import numpy as np

from beadwork.errors import LabelError
from beadwork.frame import FloatArray, Frame
from beadwork.harvest.row import Row

#: of the largest component, up to which a polarizability's two halves may differ by rounding
ASYMMETRY = 1e-4


@dataclass(frozen=True, slots=True)
class Label:
    """Energy, and forces where the method has them, of one structure.

    energy: eV, on the method's own scale (total energies, not cohesive ones). forces: (N, 3) eV/Å, or None.
    energy_error: standard error in eV, 0 for a deterministic method. forces_error: (N, 3) eV/Å, or None where there
    are no forces or they are exact. method: level of theory in full, e.g. `CCSD/cc-pVDZ, all electrons`; labels
    are comparable exactly when it is equal. code, version: what computed it. charge: e. spin: unpaired electrons.
    Either is None where nobody said it: a file, or a run whose labeller does not use it.
    input: the code's input, enough to run it again. seconds: wall time.
    extra: other results of the method (trial function, acceptance, seed, …): plain JSON values.
    dipole: (3,) e Å, Σ q r with r as the structure has it: that of an ion is about the origin of the positions; or
    None. polarizability: (3, 3) e Å²/V, symmetric, or None.
    Raises LabelError for shapes that do not fit, NaN, infinity or a negative error.
    """

    energy: float
    forces: FloatArray | None
    energy_error: float
    forces_error: FloatArray | None
    method: str
    code: str
    version: str
    charge: int | None
    spin: int | None
    input: str
    seconds: float
    extra: Mapping[str, Any]
    dipole: FloatArray | None = None
    polarizability: FloatArray | None = None

    def __post_init__(self) -> None:
        # here, and not where codes are read: whatever makes a label, none without numbers can exist
        if not (np.isfinite(self.energy) and np.isfinite(self.energy_error) and self.energy_error >= 0):
            raise LabelError(
                f"{self.code} gave an energy of {self.energy} eV with an error of {self.energy_error}",
                "look at its output before you label again",
            )
        for name in ("forces", "forces_error"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.ndim != 2 or values.shape[1] != 3 or not np.isfinite(values).all():
                raise LabelError(
                    f"{self.code} gave {name} of shape {values.shape}, or not finite", "they must be finite and (N, 3)"
                )
        if self.forces_error is not None and (
            self.forces is None or self.forces_error.shape != self.forces.shape or (self.forces_error < 0).any()
        ):
            raise LabelError(f"{self.code} gave errors of forces that do not fit its forces, or negative ones")
        for name, shape in (("dipole", (3,)), ("polarizability", (3, 3))):
            values = getattr(self, name)
            if values is not None and (values.shape != shape or not np.isfinite(values).all()):
                raise LabelError(
                    f"{self.code} gave a {name} of shape {values.shape}, or not finite",
                    f"it must be finite and {shape}",
                )
        alpha = self.polarizability
        if alpha is not None and np.abs(alpha - alpha.T).max() > ASYMMETRY * np.abs(alpha).max():
            raise LabelError(
                f"{self.code} gave a polarizability that is not symmetric",
                "it is a static one, in which alpha_xy and alpha_yx are one number",
            )

    @property
    def hash(self) -> str:
        """`sha256:` and the hash of everything but the wall time."""
        # without the time, the same calculation on two machines is the same label
        values = {name: value for name, value in self.to_dict().items() if name != "seconds"}
        return "sha256:" + hashlib.sha256(as_json(values).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The label as the queue stores it; arrays stay arrays. What is None by default is not there, so that the hash
        of a label does not depend on what it could have had besides."""
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"extra": dict(self.extra)}
        return {name: value for name, value in values.items() if value is not None or name not in _OPTIONAL}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Label:
        """Read what `to_dict` wrote, from arrays or from lists.

        Raises LabelError for keys missing or unknown, and for what is no array of numbers.
        """
        known = {f.name for f in fields(cls)}
        # a label of another version is not half read: a field that is missing has no safe default
        if lacking := (known - _OPTIONAL) ^ (set(stored) - _OPTIONAL):
            raise LabelError(
                f"a label lacks {sorted(lacking & known)} or has the unknown {sorted(lacking - known)}: "
                "it was not written by this version of beadwork"
            )
        values = dict(stored)
        return cls(**values | {name: _array(values[name]) for name in _ARRAYS & set(values)})


#: fields of a label that it may lack
_OPTIONAL = {f.name for f in fields(Label) if f.default is not MISSING}
_ARRAYS = {"forces", "forces_error", "dipole", "polarizability"}


class Labeller(Protocol):
    """Computes labels. Independent of the queue; one object may be used by one thread at a time."""

    @property
    def method(self) -> str:
        """Level of theory, as each of its labels will name it."""

    def check(self, frame: Frame, charge: int, spin: int) -> None:
        """Refuse frames that are known to fail, without computing anything. Raises LabelError as `label` would."""

    def label(self, frame: Frame, charge: int, spin: int) -> Label:
        """Compute one label. Raises LabelError with the code's reason where it cannot."""

    def seconds(self, frame: Frame) -> float:
        """A rough estimate of the wall time of one label, for `--dry-run`."""


def check_electrons(frame: Frame, charge: int, spin: int) -> None:
    """Raise LabelError for unpaired electrons that a structure of this charge cannot have."""
    electrons = int(frame.numbers.sum()) - charge
    if not 0 <= spin <= electrons or (electrons - spin) % 2:
        formula = frame.to_atoms().symbols.get_chemical_formula()
        raise LabelError(
            f"{formula} with charge {charge} has {electrons} electrons, of which {spin} cannot be unpaired",
            "correct charge and spin",
        )


def structure(frame: Frame) -> dict[str, Any]:
    """A structure as queue, cache and inputs store it: Å, arrays stay arrays, charge and spin where they are said."""
    # all digits: a label is found again by a hash of this
    stored = {"numbers": frame.numbers, "positions": frame.positions, "cell": frame.cell, "pbc": list(frame.pbc)}
    said = {"charge": frame.charge, "spin": frame.spin}
    return stored | {name: value for name, value in said.items() if value is not None}


def frame_of(stored: Mapping[str, Any]) -> Frame:
    """The frame that `structure` stored, from arrays or from lists."""
    pbc = stored["pbc"]
    return Frame(
        np.array(stored["numbers"], dtype=np.int_),
        np.array(stored["positions"], dtype=np.float64),
        np.array(stored["cell"], dtype=np.float64),
        (bool(pbc[0]), bool(pbc[1]), bool(pbc[2])),
        charge=stored.get("charge"),
        spin=stored.get("spin"),
    )


def computed(row: Row) -> tuple[Frame, Label]:
    """The structure that was computed for a labelled row, and its label.

    It is the row's frame, or the cluster that was cut from it. Raises LabelError for a row without a valid label.
    """
    stored = dict(row.label or {})
    # the queue adds it to a label whose cluster was cut
    cut = stored.pop("structure", None)
    frame = row.kept.frame if cut is None else frame_of(cut)
    try:
        return frame, Label.from_dict(stored)
    except LabelError as error:
        raise LabelError(f"row {row.id}: {error.what}", error.remedy) from error


def _array(values: Any) -> FloatArray | None:
    try:
        return None if values is None else np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LabelError(f"a label has {values!r}, where numbers belong ({error})") from error


def as_json(values: Any) -> str:
    """JSON with sorted keys, so that equal values always give the same text; arrays become lists."""
    return json.dumps(values, sort_keys=True, default=plain)


def plain(value: Any) -> Any:
    """NumPy arrays and numbers as plain Python, for `json.dumps(default=plain)`. Raises TypeError for other types."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
