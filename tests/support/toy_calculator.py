"""A calculator for the tests of labelling: springs, a diary of who called it, and faults on demand.

WHERE/calls       a line a call begun: process and energy
WHERE/ends        a line a call ended
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator, FileIOCalculator, all_changes


class Springs(Calculator):
    """Every atom on a spring to the origin, 1 eV/Å².

    seconds: of a call. fail: energies below it cannot be computed. suicide: the process that computes this energy
    kills itself. wrong: answer nonsense.
    """

    implemented_properties = ("energy", "forces")

    def __init__(
        self, where: str, seconds: float = 0.0, fail: float = -1.0, wrong: str = "", suicide: str = ""
    ) -> None:
        super().__init__()
        self.where, self.seconds, self.fail, self.wrong = Path(where), seconds, fail, wrong
        self.suicide = suicide

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """See ASE."""
        super().calculate(atoms, properties, system_changes)
        energy = 0.5 * float((self.atoms.positions**2).sum())
        self.note("calls", energy)
        time.sleep(self.seconds)
        if self.suicide == f"{energy:.12f}":
            os.kill(os.getpid(), signal.SIGKILL)
        if energy < self.fail:
            raise RuntimeError(f"{energy:.3f} eV is too low")
        self.results = {"energy": energy, "forces": -self.atoms.positions.copy()}
        if self.wrong == "nan":
            self.results["energy"] = np.nan
        if self.wrong == "shape":
            self.results["forces"] = np.zeros((1, 3))
        self.note("ends", energy)

    def note(self, name: str, energy: float) -> None:
        """One write of one short line: whole, whoever else writes."""
        with (self.where / name).open("a") as diary:
            diary.write(f"{os.getpid()} {energy:.12f}\n")


class Charged(Springs):
    """The springs, told a charge and a spin, which they do not feel."""

    def __init__(self, charge: int, spin: int = 0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.charge, self.spin = charge, spin


def mixed(**arguments: Any) -> Any:
    """Two calculators in one, as corrections are added: the springs by way of files, and nothing."""
    from ase.calculators.lj import LennardJones
    from ase.calculators.mixing import SumCalculator

    return SumCalculator([Files(**arguments), LennardJones(epsilon=0.0)])


class Files(FileIOCalculator):
    """The springs by way of files of one name; `command` makes springs.out of springs.inp."""

    implemented_properties = ("energy", "forces")

    def write_input(self, atoms: Any, properties: Any = None, system_changes: Any = None) -> None:
        """See ASE."""
        super().write_input(atoms, properties, system_changes)
        (Path(self.directory) / "springs.inp").write_text(repr(0.5 * float((atoms.positions**2).sum())))

    def read_results(self) -> None:
        """See ASE."""
        energy = float((Path(self.directory) / "springs.out").read_text())
        self.results = {"energy": energy, "forces": -self.atoms.positions.copy()}
