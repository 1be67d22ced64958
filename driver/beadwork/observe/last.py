"""The last frames of the ring polymer, which a run leaves behind that did not end by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
from ase.calculators.singlepoint import SinglePointCalculator

from beadwork.disk import put_aside, writing
from beadwork.errors import BeadworkError
from beadwork.frame import Frame
from beadwork.potential.evaluation import Evaluation

NAME = "last-frames.extxyz"


@dataclass(frozen=True, slots=True)
class Last:
    """What was evaluated last at one address. step: None where it is not known. evaluation: None for frames that have
    no answer.
    """

    address: str
    step: int | None
    frames: Sequence[Frame]
    evaluation: Evaluation | None


def save(last: Sequence[Last], folder: Path) -> Path:
    """Write them, with step, bead and address, and with energy (eV) and forces (eV/Å) where there are any.

    Those of an earlier run get a number. Raises ResourceError or ConfigError where the file cannot be written.
    """
    structures = []
    for one in last:
        for k, frame in enumerate(one.frames):
            atoms = frame.to_atoms()
            atoms.info["address"] = one.address
            atoms.info["step"] = "unknown" if one.step is None else one.step
            atoms.info["bead"] = "unknown" if frame.bead is None else frame.bead
            if one.evaluation is not None:
                a, b = one.evaluation.ptr[[k, k + 1]]
                energy, forces = float(one.evaluation.energies[k]), one.evaluation.forces[a:b]
                atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            structures.append(atoms)
    path = folder / NAME
    put_aside(path)
    try:
        with writing(path):
            ase.io.write(path, structures, format="extxyz")
    except BeadworkError:
        path.unlink(missing_ok=True)  # torn, it would be worse than none
        raise
    return path
