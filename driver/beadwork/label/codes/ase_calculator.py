"""Labels by any ASE calculator, named by its import path."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import BaseCalculator

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import Frame
from beadwork.label.label import Label, as_json, check_electrons, structure
from beadwork.settings import NOT_NEGATIVE, required, setting


@dataclass(frozen=True)
class AseCalculator:
    """A labeller that asks an ASE calculator in this process.

    Where the calculator has a free energy, it is the label's energy: its derivative are the forces. Every label has a
    folder of its own, so that two at the same time do not read each other's files; paths in the arguments are to be
    absolute. Raises ConfigError where there is no such class, charge and spin reach it nowhere, or its arguments name
    the folder.
    """

    calculator: str = field(metadata=required("`module:Class`, or `module:function` that returns a calculator"))
    theory: str = field(metadata=required("level of theory in full"))
    arguments: Mapping[str, Any] = setting(
        {},
        "its keyword arguments; a value `{charge}`, `{spin}` (unpaired electrons) or `{multiplicity}` is the frame's",
    )
    forces: bool = setting(True, "compute them")
    sets_spin: int = setting(
        0,
        "for which its other arguments are set, where none of them is `{spin}` or `{multiplicity}`",
        "unpaired electrons",
        rule=NOT_NEGATIVE,
    )
    ignores_charge: bool = setting(False, "it knows nothing of charge and spin, as a model that sees atoms only")
    directory: Path | None = setting(None, "where the folders are made", unset="the system's temporary folder")
    estimate: float = setting(60.0, "time of a label, for --dry-run", "s")

    def __post_init__(self) -> None:
        made = self._made  # a wrong path ends here, not with the first frame
        if "directory" in self.arguments:
            raise ConfigError(
                f"the arguments of {self.calculator} name a directory, in which two labels would overwrite each other",
                "set directory beside them: each label gets a folder of its own there",
            )
        # most calculators take an ion for a neutral molecule, and converge
        if not self.ignores_charge and "{charge}" not in self.arguments.values():
            raise ConfigError(
                f"{self.calculator} does not get the charge: set an argument of it to '{{charge}}' (and one to "
                "'{spin}' or '{multiplicity}'), or set ignores_charge = true"
            )
        known = getattr(made, "implemented_properties", None)
        if self.forces and isinstance(known, (list, tuple)) and known and "forces" not in known:
            raise ConfigError(f"{self.calculator} has no forces (it has {', '.join(known)}): set forces = false")
        with contextlib.suppress(ValueError):  # compiled classes have no signature that Python can read
            signature = inspect.signature(made)
            try:
                signature.bind(**self.arguments)
            except TypeError as error:
                raise ConfigError(f"{self.calculator} does not take these arguments: {error}") from error

    @cached_property
    def _made(self) -> Any:
        module, colon, name = self.calculator.partition(":")
        if not colon:
            raise ConfigError(
                f"calculator is {self.calculator!r}", "it wants module:Class, as in ase.calculators.emt:EMT"
            )
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"there is no calculator {self.calculator}: {error}") from error

    @property
    def method(self) -> str:
        """The level of theory that the user named."""
        return self.theory

    def check(self, frame: Frame, charge: int, spin: int) -> None:
        """Refuse a charge or spin that the calculator would ignore, or the electrons cannot have. Raises LabelError."""
        if self.ignores_charge and (charge or spin):
            raise LabelError(
                f"{self.calculator} ignores charge and spin, but the frame has {charge} and {spin}",
                "if its result is valid all the same, set charge = 0 and spin = 0 in the TOML",
            )
        if self.ignores_charge:
            return
        check_electrons(frame, charge, spin)
        # most calculators compute closed shells unless they are told, and converge
        if spin != self.sets_spin and not {"{spin}", "{multiplicity}"} & set(map(str, self.arguments.values())):
            raise LabelError(
                f"{self.calculator} does not get the spin, and the frame has {spin} unpaired electrons",
                "set an argument of it to '{spin}' or '{multiplicity}', or, where other arguments set them, say "
                "sets_spin = " + str(spin),
            )

    def label(self, frame: Frame, charge: int, spin: int) -> Label:
        """Compute one label. Raises LabelError with the calculator's message."""
        self.check(frame, charge, spin)
        start = time.perf_counter()
        # multiplicity is 2 S + 1, with S half of the unpaired electrons
        given = {"{charge}": charge, "{spin}": spin, "{multiplicity}": spin + 1}
        arguments = {
            name: given.get(value, value) if isinstance(value, str) else value for name, value in self.arguments.items()
        }
        atoms = frame.to_atoms()
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        # two labels at the same time in one folder would read each other's files
        folder = Path(tempfile.mkdtemp(prefix="label-", dir=self.directory)).absolute()
        try:
            # a new one each time: calculators keep results of the atoms before
            atoms.calc = self._made(**arguments)
            for one in _parts(atoms.calc):
                if hasattr(one, "directory"):
                    one.directory = folder
            # forces first: one calculation gives both, where the energy first would make some codes run twice
            forces = np.array(atoms.get_forces(), dtype=np.float64) if self.forces else None
            energy = float(atoms.get_potential_energy())
            # with smeared occupations the forces are the derivatives of the free energy, not of the energy
            energy = float(atoms.calc.results.get("free_energy", energy))
            # some, as VASP's, give the energy of the last iteration all the same
            if any(getattr(one, "converged", None) is False for one in _parts(atoms.calc)):
                raise LabelError(
                    f"{self.calculator} says that its calculation did not converge{_see(folder)}",
                    "give it more iterations, or other settings of its convergence",
                )
        except LabelError:
            raise
        except Exception as error:  # calculators can raise anything; it becomes the reason in the queue
            raise LabelError(
                f"{self.calculator} could not label: {type(error).__name__}: {error}{_see(folder)}"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # empty for a calculator without files; else it is kept for the user after an error
        shutil.rmtree(folder, ignore_errors=True)
        return Label(
            energy=energy,
            forces=forces,
            energy_error=0.0,
            forces_error=None,
            method=self.method,
            code=self.calculator,
            version=_version(self.calculator),
            charge=charge,
            spin=spin,
            input=as_json({"arguments": arguments, "structure": structure(frame)}),
            seconds=time.perf_counter() - start,
            extra={},
        )

    def seconds(self, frame: Frame) -> float:
        """The user's estimate."""
        return self.estimate


def _parts(calculator: Any, depth: int = 3) -> Iterator[Any]:
    """A calculator and the calculators of which it is composed, as in a sum of them, or a D3 on top of one."""
    yield calculator
    # depth 3 ends loops of references
    for part in vars(calculator).values() if depth and hasattr(calculator, "__dict__") else ():
        for one in part if isinstance(part, (list, tuple)) else (part,):
            if isinstance(one, BaseCalculator) or type(one).__module__.startswith("ase.calculators."):
                yield from _parts(one, depth - 1)


def _see(folder: Path) -> str:
    return f"; see {folder}" if any(folder.iterdir()) else ""


def _version(calculator: str) -> str:
    package = calculator.partition(":")[0].partition(".")[0]
    known = getattr(import_module(package), "__version__", None)
    with contextlib.suppress(metadata.PackageNotFoundError):
        # an importable name need not be that of its distribution
        known = known or metadata.version(package)
    return f"{package} {known or 'of unknown version'}"
