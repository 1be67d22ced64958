"""The last frames of the ring polymer, written by a run that did not end normally."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
from ase.calculators.singlepoint import SinglePointCalculator

from beadwork.disk import rotate_file, writing
from beadwork.errors import BeadworkError
from beadwork.frame import Frame
from beadwork.potential.evaluation import Evaluation

NAME = "last-frames.extxyz"


@dataclass(frozen=True, slots=True)
class LastFrames:
    """The structures evaluated last at one address. step: None where it is not known. evaluation: None for frames whose
    evaluation failed.
    """

    address: str
    step: int | None
    frames: Sequence[Frame]
    evaluation: Evaluation | None


def save_last_frames(last: Sequence[LastFrames], folder: Path) -> Path:
    """Write them as extended XYZ with step, bead and address, and with energy (eV) and forces (eV/Å) where known.

    The file of an earlier run is rotated. Raises ResourceError or ConfigError where the file cannot be written.
    """
    structures = []
    for one in last:
        for k, frame in enumerate(one.frames):
            atoms = frame.to_atoms()
            atoms.info["address"] = one.address
            atoms.info["step"] = "unknown" if one.step is None else one.step
            atoms.info["bead"] = "unknown" if frame.bead is None else frame.bead
            if one.evaluation is not None:
                # forces of all structures stand one after another; ptr has where each begins
                a, b = one.evaluation.ptr[[k, k + 1]]
                energy, forces = float(one.evaluation.energies[k]), one.evaluation.forces[a:b]
                atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
            structures.append(atoms)
    path = folder / NAME
    rotate_file(path)
    try:
        with writing(path):
            ase.io.write(path, structures, format="extxyz")
    except BeadworkError:
        path.unlink(missing_ok=True)  # half a file would be read as all frames
        raise
    return path
