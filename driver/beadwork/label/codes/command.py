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
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import FloatArray, Frame
from beadwork.label.constants import BOHR, HARTREE
from beadwork.label.label import Label, as_json
from beadwork.processes import last_line, run
from beadwork.settings import NOT_NEGATIVE, required, setting

#: the file of the command's stdout and stderr
OUTPUT = "output"
_KCAL = 4184.0 / 96485.33212331  # eV in one kcal/mol: J in a kcal, C in a mole of electrons
ENERGIES = {"ev": 1.0, "hartree": HARTREE, "rydberg": HARTREE / 2, "kcal/mol": _KCAL, "kj/mol": _KCAL / 4.184}
LENGTHS = {"angstrom": 1.0, "bohr": BOHR}
#: names in the templates by which a program may learn charge or spin
_CHARGE, _SPIN = {"charge", "electrons", "up", "down"}, {"spin", "multiplicity", "up", "down"}
#: what Fortran and C print where a number should be
_NO_NUMBER = r"[-+]?(?:\*{3,}|nan\b|inf(?:inity)?\b)"
_NUMBER = re.compile(rf"\d\.|\.\d|{_NO_NUMBER}", re.IGNORECASE)


@dataclass(frozen=True)
class Pattern:
    """Where numbers stand, of an energy or of forces.

    Of an energy: the groups `value`, and `error` where there is one (standard error). Of forces: one match an atom
    with `x`, `y`, `z` (and `ex`, `ey`, `ez`), or one match a component with `value` (and `error`), atom by atom.
    Errors that are named must be found, and be above 0 (or 0, of a component that is 0 by symmetry). Raises
    ConfigError.
    """

    regex: str = field(
        metadata=required("Python's, with `^` and `$` at lines; the last match counts, of forces the last block")
    )
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

    def find(self, folder: Path, count: int = 1) -> list[re.Match[str]]:
        """The last `count` matches, as one block: programs print an energy, or forces, for each iteration.

        What does not match, as columns that touch or are full of `*`, must not let numbers of an earlier iteration take
        its place. So there are whole blocks only, the rows of one have as much between them, and nothing that looks
        like a row; and no line behind the last block begins as its first row does and goes on with what is no number.
        Raises LabelError where this is not so, or the file cannot be read.
        """
        file = folder / self.file
        try:
            text = file.read_text(errors="replace")
        except OSError as error:
            raise LabelError(f"the command left no {self.file} in {folder}: {error.strerror}") from error
        matches = list(re.finditer(self.regex, text, re.MULTILINE))
        if not matches:
            raise LabelError(f"nothing in {file} matches {self.regex!r}")
        if len(matches) % count:
            raise LabelError(
                f"{file} has {len(matches)} matches of {self.regex!r}, and {count} are wanted, or several blocks of "
                "so many",
                _EVERY_ROW,
            )
        block = matches[-count:]
        self._check_block(text, block, file)
        self._check_rest(text, block, file)
        return block

    def _check_block(self, text: str, block: Sequence[re.Match[str]], file: Path) -> None:
        """Refuse rows between which a row is missing, or that are of two blocks."""
        each = 3 if "value" in block[0].groupdict() else 1  # matches an atom
        seen: dict[int, tuple[int, int]] = {}
        for number, (one, other) in enumerate(pairwise(block)):
            # whole lines between them: without the end of one row and the beginning of the next
            gap = text[one.end() - one[0].endswith("\n") : other.start() + other[0].startswith("\n")]
            lines = [line for line in gap.split("\n")[1:-1] if line.strip()]
            # from x to y, from y to z and from z to the next atom's x there may be different texts
            shape = len(lines), len(_NUMBER.findall(gap))
            if any(map(_NUMBER.search, lines)) or seen.setdefault(number % each, shape) != shape:
                between = " / ".join(" ".join(line.split()) for line in lines or gap.split("\n"))
                raise LabelError(
                    f"{file}: matches {number + 1} and {number + 2} of the last {len(block)} of {self.regex!r} are not "
                    f"rows of one block: between them is {between[:100]!r}",
                    _EVERY_ROW,
                )

    def _check_rest(self, text: str, block: Sequence[re.Match[str]], file: Path) -> None:
        """Refuse a later energy or block that has no numbers."""
        first = block[0]
        line = text.rfind("\n", 0, first.start()) + 1
        # what stands on its line before the first number, as "total energy =" or "1 O"
        value = min(first.start(name) for name in first.groupdict() if first[name] is not None)
        words = text[line:value].rpartition("\n")[2].split()
        no_number = _NO_NUMBER if words else _NO_NUMBER.replace(r"\*{3,}|", "")  # a line of stars may be an ornament
        again = re.compile(
            rf"^[ \t]*{''.join(re.escape(word) + chr(92) + 's*' for word in words)}{no_number}.*",
            re.MULTILINE | re.IGNORECASE,
        )
        if found := again.search(text, block[-1].end()):
            raise LabelError(
                f"{file}: behind the last match of {self.regex!r} is {' '.join(found[0].split())[:100]!r}, which is no "
                "number",
                "look at what the program says of it there",
            )


_EVERY_ROW = (
    "look at the rows there: the pattern has to match each of them and nothing else, also where columns touch; text "
    "that belongs between two rows can be a part of it"
)


@dataclass(frozen=True)
class Command:
    """A labeller that runs a command in a folder of its own for every frame.

    The templates know `$atoms` (a line an atom, as `atom` says), `$natoms`, `$charge`, `$spin` (unpaired electrons),
    `$multiplicity`, `$electrons`, `$up`, `$down`, and `$cell` (three lines) where frames are periodic; `$$` is a dollar
    sign. A frame whose charge or spin no template has is refused: a fixed `charge 0` would be computed for an ion too.
    Raises ConfigError.
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
    sets_spin: int = setting(
        0, "for which the templates are set, where none has `$spin`", "unpaired electrons", rule=NOT_NEGATIVE
    )
    ignores_charge: bool = setting(False, "it knows nothing of charge and spin, as a model that sees atoms only")

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
        """Refuse a cell, charge or spin that the command is not told, and those that do not fit. Raises LabelError."""
        if any(frame.pbc) and not self.periodic:
            raise LabelError(f"{self.code} is not told the cell: cut a cluster, or set periodic = true and use $cell")
        if self.ignores_charge:
            if charge or spin:
                raise LabelError(
                    f"{self.code} ignores charge and spin, but the frame has {charge} and {spin}",
                    "if its result is valid all the same, set charge = 0 and spin = 0 in the TOML",
                )
            return
        self._inputs(frame, charge, spin)
        # most programs take an ion for a neutral molecule, or a closed shell, and converge
        if charge and not self._told & _CHARGE:
            raise LabelError(
                f"{self.code} is not told the charge, and the frame has {charge}",
                "write $charge where the template has a number, or $electrons, or $up and $down",
            )
        if spin != self.sets_spin and not self._told & _SPIN:
            raise LabelError(
                f"{self.code} is not told the spin, and the frame has {spin} unpaired electrons",
                "write $spin or $multiplicity where the template has a number, or $up and $down; where other words of "
                f"it set the spin, say sets_spin = {spin}",
            )

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

    @cached_property
    def _told(self) -> set[str]:
        """The names in the templates."""
        found = (match for text in self.files.values() for match in string.Template.pattern.finditer(text))
        return {match["named"] or match["braced"] for match in found}

    def _inputs(self, frame: Frame, charge: int, spin: int) -> dict[str, str]:
        scale = LENGTHS[self.length]
        symbols = [chemical_symbols[number] for number in frame.numbers]
        valences = [int(z) - self.core.get(s, 0) for z, s in zip(frame.numbers, symbols, strict=True)]
        # valence electrons alone: the rest are in the pseudopotential
        electrons = sum(valences) - charge
        # an odd number of electrons cannot be all paired: halving it would lose one
        if not self.ignores_charge and (not 0 <= spin <= electrons or (electrons - spin) % 2):
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
        (match,) = self.energy.find(folder)
        factor = self.energy.factor(forces=False)
        energy, error = _number(match, "value", folder), 0.0
        if "error" in match.groupdict():
            error = _number(match, "error", folder)
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
        matches = self.forces.find(folder, atoms if whole else 3 * atoms)
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
