"""Labels by any program: input files from templates, a command, and patterns that find the numbers in its output."""

from __future__ import annotations

import re
import shutil
import string
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import FloatArray, Frame
from beadwork.label.constants import BOHR, HARTREE
from beadwork.label.label import Label, as_json
from beadwork.processes import last_line, run
from beadwork.settings import required, setting

#: the file of the command's stdout and stderr
OUTPUT = "output"
_KCAL = 4184.0 / 96485.33212331  # eV in one kcal/mol: J in a kcal, C in a mole of electrons
ENERGIES = {"ev": 1.0, "hartree": HARTREE, "rydberg": HARTREE / 2, "kcal/mol": _KCAL, "kj/mol": _KCAL / 4.184}
LENGTHS = {"angstrom": 1.0, "bohr": BOHR}


@dataclass(frozen=True)
class Pattern:
    """Where numbers stand, of an energy or of forces.

    Of an energy: the groups `value`, and `error` where there is one (standard error). Of forces: one match an atom
    with `x`, `y`, `z` (and `ex`, `ey`, `ez`), or one match a component with `value` (and `error`), atom by atom.
    Errors that are named must be found, and be above 0 (or 0, of a component that is 0 by symmetry). Raises
    ConfigError.
    """

    regex: str = field(metadata=required("Python's, with `^` and `$` at lines; the last match counts"))
    unit: str = field(
        metadata=required(
            "`eV`, `Hartree`, `Rydberg`, `kcal/mol`, `kJ/mol`; of forces such a one, then `/angstrom` or `/bohr`"
        )
    )
    file: str = setting(OUTPUT, "in the working directory; `output` is what the command printed")
    gradient: bool = setting(False, "what stands there are gradients, the negative of forces; not of energies")

    def check(self, forces: bool) -> None:
        """Refuse units and groups that are not known. Raises ConfigError."""
        if self.gradient and not forces:
            raise ConfigError(
                f"the energy's pattern {self.regex!r} has gradient = true, which would change the energy's sign: "
                "leave it out, it is for forces only"
            )
        try:
            groups = set(re.compile(self.regex).groupindex)
        except re.error as error:
            raise ConfigError(f"{self.regex!r} is no regular expression: {error}") from error
        allowed = [{"value"}, {"value", "error"}]
        allowed += [{"x", "y", "z"}, {"x", "y", "z", "ex", "ey", "ez"}] if forces else []
        if groups not in allowed:
            raise ConfigError(
                f"{self.regex!r} has the groups {sorted(groups)}", f"it wants one of {list(map(sorted, allowed))}"
            )
        self.factor(forces)

    def factor(self, forces: bool) -> float:
        """eV, or eV/Å, in one unit."""
        energy, _, length = self.unit.lower().rpartition("/") if forces else (self.unit.lower(), "", "angstrom")
        if energy not in ENERGIES or length not in LENGTHS:
            wanted = f"{' or '.join(ENERGIES)}" + (f" over {' or '.join(LENGTHS)}" if forces else "")
            raise ConfigError(f"the unit {self.unit!r} is not known", f"give {wanted}")
        return ENERGIES[energy] / LENGTHS[length] * (-1.0 if self.gradient else 1.0)

    def find(self, folder: Path) -> list[re.Match[str]]:
        """All matches. Raises LabelError where the file cannot be read."""
        try:
            text = (folder / self.file).read_text(errors="replace")
        except OSError as error:
            raise LabelError(f"the command left no {self.file} in {folder}: {error.strerror}") from error
        return list(re.finditer(self.regex, text, re.MULTILINE))


@dataclass(frozen=True)
class Command:
    """A labeller that runs a command in a folder of its own for every frame.

    The templates know `$atoms` (a line an atom, as `atom` says), `$natoms`, `$charge`, `$spin` (unpaired electrons),
    `$multiplicity`, `$electrons`, `$up`, `$down`, and `$cell` (three lines) where frames are periodic; `$$` is a dollar
    sign. Raises ConfigError.
    """

    theory: str = field(metadata=required("level of theory in full"))
    code: str = field(metadata=required("what runs"))
    version: str = field(metadata=required("of the code"))
    command: Sequence[str] = field(metadata=required("program and arguments"))
    files: Mapping[str, str] = field(metadata=required("the input files by name, each a template"))
    energy: Pattern = field(metadata=required("where it is found, see below"))
    forces: Pattern | None = setting(None, "the same")
    atom: str = setting(
        "{symbol} {x:.10f} {y:.10f} {z:.10f}",
        "a line of `{symbol}`, `{number}`, `{valence}`, `{x}`, `{y}`, `{z}` with Python's formats",
    )
    length: str = setting("angstrom", "unit of x, y, z and the cell: `angstrom` or `bohr`")
    core: Mapping[str, int] = setting({}, "electrons that a pseudopotential stands for, by element", "electrons")
    timeout: float = setting(86400.0, "time of a label at most", "s")
    estimate: float = setting(600.0, "time of a label, for --dry-run", "s")
    directory: Path | None = setting(None, "where the folders are made", unset="the system's temporary folder")
    keep: bool = setting(False, "keep the folders of good labels too")
    periodic: bool = setting(False, "takes periodic frames")

    def __post_init__(self) -> None:
        if not self.command or not self.timeout > 0:
            raise ConfigError("a command wants a program, and a timeout above 0 s")
        if "/" in self.command[0] and not Path(self.command[0]).is_absolute():
            raise ConfigError(
                f"the command begins with {self.command[0]!r}, but each label is computed in a folder of its own: give "
                "the program's absolute path, or its name alone"
            )
        if self.length not in LENGTHS:
            raise ConfigError(f"the length {self.length!r} is not known", f"give {' or '.join(LENGTHS)}")
        for name in self.files:
            if Path(name).name != name or name == OUTPUT:
                raise ConfigError(
                    f"an input file cannot be called {name!r}", f"give a plain name other than {OUTPUT!r}"
                )
        self.energy.check(forces=False)
        if self.forces is not None:
            self.forces.check(forces=True)
        probe = Frame(np.array([1]), np.zeros((1, 3)), np.eye(3), (False,) * 3)
        # a template with a typing error is refused when the file is read, not with the first frame
        self._inputs(probe, 0, 1)

    @property
    def method(self) -> str:
        """The level of theory that the user named."""
        return self.theory

    def find(self) -> None:
        """Look for the program on this machine. Raises ConfigError where there is none."""
        if shutil.which(self.command[0]) is None:
            raise ConfigError(f"there is no program {self.command[0]!r} to be run: check command, and PATH")

    def check(self, frame: Frame, charge: int, spin: int) -> None:
        """Refuse a cell that the command is not told, and charge and spin that do not fit. Raises LabelError."""
        if any(frame.pbc) and not self.periodic:
            raise LabelError(f"{self.code} is not told the cell: cut a cluster, or set periodic = true and use $cell")
        self._inputs(frame, charge, spin)

    def label(self, frame: Frame, charge: int, spin: int) -> Label:
        """Compute one label.

        Raises LabelError where charge and spin do not fit, the command fails, or its numbers are not found or nonsense.
        """
        self.check(frame, charge, spin)
        start = time.perf_counter()
        inputs = self._inputs(frame, charge, spin)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="label-", dir=self.directory))
        for name, text in inputs.items():
            (folder / name).write_text(text)
        self._run(folder)
        energy, error = self._energy(folder)
        forces, forces_error = self._forces(folder, len(frame.numbers))
        label = Label(
            energy=energy,
            forces=forces,
            energy_error=error,
            forces_error=forces_error,
            method=self.method,
            code=self.code,
            version=self.version,
            charge=charge,
            spin=spin,
            input=as_json({"command": list(self.command), "files": inputs}),
            seconds=time.perf_counter() - start,
            extra={},
        )
        # an error leaves by an exception before this: its folder stays to be looked at
        if not self.keep:
            shutil.rmtree(folder)
        return label

    def seconds(self, frame: Frame) -> float:
        """What the user said."""
        return self.estimate

    def _inputs(self, frame: Frame, charge: int, spin: int) -> dict[str, str]:
        scale = LENGTHS[self.length]
        symbols = [chemical_symbols[number] for number in frame.numbers]
        valences = [int(z) - self.core.get(s, 0) for z, s in zip(frame.numbers, symbols, strict=True)]
        # valence electrons alone: the rest are in the pseudopotential
        electrons = sum(valences) - charge
        # an odd number of electrons cannot be all paired: halving it would lose one
        if not 0 <= spin <= electrons or (electrons - spin) % 2:
            raise LabelError(
                f"the spin is {spin} unpaired electrons, which {electrons} electrons (charge {charge}, core "
                f"{dict(self.core)}) cannot have: correct charge, spin or core"
            )
        try:
            lines = [
                self.atom.format(symbol=s, number=int(z), valence=v, x=at[0], y=at[1], z=at[2])
                for s, z, v, at in zip(symbols, frame.numbers, valences, frame.positions / scale, strict=True)
            ]
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(f"the line of an atom {self.atom!r} cannot be filled in: {error!r}") from error
        known = {
            "atoms": "\n".join(lines),
            "cell": "\n".join(" ".join(f"{x:.10f}" for x in vector) for vector in frame.cell / scale),
            "natoms": len(symbols),
            "ntypes": len(set(symbols)),
            "charge": charge,
            "spin": spin,
            "multiplicity": spin + 1,
            "electrons": electrons,
            "up": (electrons + spin) // 2,
            "down": (electrons - spin) // 2,
        }
        filled = {}
        for name, template in self.files.items():
            try:
                filled[name] = string.Template(template).substitute(known)
            except (KeyError, ValueError) as error:
                raise ConfigError(
                    f"the template of {name} wants {error}", f"known are ${', $'.join(known)}, and $$ for a dollar sign"
                ) from error
        return filled

    def _run(self, folder: Path) -> None:
        try:
            # in a process group of its own, killed with all that it has started after the timeout
            code = run(self.command, folder / OUTPUT, folder, self.timeout)
        except OSError as error:
            raise LabelError(f"{self.command[0]} cannot be started: {error.strerror}") from error
        except subprocess.TimeoutExpired:
            raise LabelError(f"{self.code} was stopped after {self.timeout:g} s", f"see {folder}") from None
        if code:
            raise LabelError(f"{self.code} ended with code {code}: {last_line(folder / OUTPUT)[:300]}", f"see {folder}")

    def _energy(self, folder: Path) -> tuple[float, float]:
        matches = self.energy.find(folder)
        if not matches:
            raise LabelError(f"no energy in {folder / self.energy.file}: nothing matches {self.energy.regex!r}")
        factor = self.energy.factor(forces=False)
        # the last match: programs print an energy for each iteration
        energy, error = _number(matches[-1], "value", folder), 0.0
        if "error" in matches[-1].groupdict():
            error = _number(matches[-1], "error", folder)
            if not error > 0:  # 0 would mean an exact label, with the full weight in training
                raise LabelError(
                    f"{folder / self.energy.file} has an energy with a standard error of {error}, which must be above "
                    "0: sample longer, or leave the group 'error' out of the pattern where energies are exact"
                )
        return energy * factor, error * factor

    def _forces(self, folder: Path, atoms: int) -> tuple[FloatArray | None, FloatArray | None]:
        if self.forces is None:
            return None, None
        whole = "value" not in re.compile(self.forces.regex).groupindex
        count = atoms if whole else 3 * atoms
        # the last ones, as of the energy: forces may be printed more than once
        matches = self.forces.find(folder)[-count:]
        if len(matches) != count:
            raise LabelError(
                f"{folder / self.forces.file} has {len(matches)} matches of {self.forces.regex!r}, {count} are wanted"
            )
        factor = self.forces.factor(forces=True)

        def gather(names: Sequence[str]) -> FloatArray:
            values = [_number(match, name, folder) for match in matches for name in names]
            return np.array(values).reshape(atoms, 3)

        forces = gather(("x", "y", "z") if whole else ("value",))
        of_errors = ("ex", "ey", "ez") if whole else ("error",)
        if of_errors[0] not in matches[0].groupdict():
            return forces * factor, None
        errors = gather(of_errors)
        # a component that symmetry makes 0 is exact, any other is not, nor are all of them
        if not (errors.any() and ((errors > 0) | ((errors == 0) & (forces == 0))).all()):
            raise LabelError(
                f"{folder / self.forces.file} has forces with a standard error of {errors.min()}, which must be above "
                f"0 unless the component is 0 by symmetry: sample longer, or leave the groups {', '.join(of_errors)} "
                "out of the pattern where forces are exact"
            )
        # gradients have a negative factor, errors no sign
        return forces * factor, errors * abs(factor)


def _number(match: re.Match[str], group: str, folder: Path) -> float:
    """Read a group. Raises LabelError for no number, or None where the group took no part in the match."""
    try:
        return float(re.sub("[dD]", "e", match[group]))  # Fortran writes 1.0D-3
    except (TypeError, ValueError) as error:
        raise LabelError(
            f"{match[group]!r} was found for a number in {folder}, by the group {group!r}", "mend the pattern"
        ) from error
