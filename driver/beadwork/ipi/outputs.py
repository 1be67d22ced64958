"""What i-PI wrote in a run's folder, read back: properties, trajectories, extras."""

from __future__ import annotations

import io
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from ipi.engine.properties import Trajectories
from ipi.utils.io import read_file_raw
from ipi.utils.io.io_units import auto_units
from ipi.utils.units import unit_to_internal
from numpy.typing import NDArray

from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.units import BOHR, FEMTOSECOND

_COLUMN = re.compile(r"#\s*(?:column|cols\.)\s+(\d+)(?:-(\d+))?\s+-->\s+(\S.*?)\s+(?::|$)")
#: a property as the input asks for it: a name, its unit and its arguments in either order, and one of several columns
_ASKED = re.compile(r"(\w+)((?:\{[\w/]*\}|\([^()]*\))*)((?:\[\d+\])?)")
_STEP = re.compile(r"Step:\s*(\d+)")
_EXTRAS = re.compile(r"#EXTRAS\(([^()]*)\)#\s*Step:\s*(\d+)")
#: keys of beadwork's extras that are one number
SINGLE_EXTRAS = {
    "energy_spread", "force_spread_max", "force_spread_atom", "alpha", "energy_alpha", "novelty_max", "novelty_atom",
    "novelty_max_baseline", "novelty_max_delta", "dipole_spread", "polarizability_spread", "BEC_spread",
}  # fmt: skip
#: lines of a frame in i-PI's formats besides one an atom
_FRAMING = {".xyz": 2, ".pdb": 3}
#: names of isotopes that are no symbols of elements, as i-PI knows them
ISOTOPES = {"D": 1, "T": 1, "Z": 1}
#: atoms of a trajectory that are read at most, all beads together; of longer ones every n-th step is taken
MOST_ATOMS = 2_000_000


def read_table(path: Path) -> tuple[list[str], FloatArray]:
    """The lines of a text file that begin with #, and its numbers, (rows, columns); (0, 0) without any.

    A line that a killed process tore, at the end or before what its successor wrote, has another number of columns or
    no newline, and is left out.
    """
    comments: list[str] = []
    tables: dict[int, array[float]] = {}  # by columns; a run of weeks has millions of rows
    with open(path, errors="replace") as lines:
        for line in lines:
            if line.startswith("#"):
                comments.append(line)
            elif line.endswith("\n") and (words := line.split()):
                with suppress(ValueError):
                    tables.setdefault(len(words), array("d")).extend([float(word) for word in words])
    if not tables:
        return comments, np.empty((0, 0))
    columns = max(tables, key=lambda width: len(tables[width]) // width)
    return comments, np.array(tables[columns]).reshape(-1, columns)


@dataclass(frozen=True, slots=True)
class Series:
    """One of i-PI's properties over a run. steps: (F,), i-PI's. values: (F,), in this unit."""

    steps: FloatArray
    values: FloatArray
    unit: str


def read_properties(
    path: Path, asked: Sequence[str] = (), stride: int = 1, first: int = 0, time_step: float | None = None
) -> dict[str, Series]:
    """Read an i-PI property file: the whole system's properties by their names.

    Those with arguments have them in the name, `kinetic_cv(H)`, and those of several columns a number, `stress_cv[0]`.
    asked: what the input asks for, a word a column (of several `stress_cv{bar}[0]`, …): i-PI writes no header into a
    file that it begins at a RESTART.
    stride: steps from row to row, and first: the step at which the run began; by these, or by a column of times and
    time_step (fs), steps are told where there is no column of them. Steps grow from row to row: where i-PI went back to
    a RESTART, the rows that it had written beyond it are left out.
    """
    comments, table = read_table(path)
    named = []
    for match in filter(None, map(_COLUMN.match, comments)):
        begin, end = int(match[1]), int(match[2] or match[1])
        for column in range(begin, end + 1):
            name, unit = _named(match[3])
            named.append((column - 1, f"{name}[{column - begin}]" if match[2] else name, unit))
    if not comments:
        named = [(at, *_named(word)) for at, word in enumerate(asked) if word]
    columns = {name: (table[:, at], unit) for at, name, unit in named if name and at < table.shape[1]}
    if "step" in columns:
        steps = columns["step"][0]
    elif "time" in columns and time_step:
        times, unit = columns["time"]
        scale = 1.0 if unit == "atomic units" else float(unit_to_internal("time", unit, 1.0))
        steps = np.rint(times * scale * FEMTOSECOND / time_step)
    else:  # i-PI writes where its step is a multiple of the stride
        begin = 0 if comments else first // stride + 1
        steps = stride * (begin + np.arange(len(table), dtype=np.float64))
    # of later rows the earliest step
    later = np.append(np.fmin.accumulate(steps[::-1])[::-1][1:], np.inf)
    rows = np.flatnonzero(steps < later)
    return {name: Series(steps[rows], values[rows], unit) for name, (values, unit) in columns.items()}


def _named(asked: str) -> tuple[str, str]:
    """Name, with its arguments if it has any, and unit of a property that is asked for so; '' where it is none."""
    match = _ASKED.fullmatch(asked.strip())
    if match is None:
        return "", ""
    arguments = re.search(r"\(([^()]*)\)", match[2])
    unit = re.search(r"\{([\w/]+)\}", match[2])
    name = f"{match[1]}({arguments[1].replace(' ', '')})" if arguments and arguments[1].strip() else match[1]
    return name + match[3], unit[1] if unit else "atomic units"


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A quantity of all atoms over a run: what files there are, and which steps of them will be read.

    quantity: i-PI's name of it. files: one a bead, or one alone of what is no bead's. every: steps; those that are
    multiples of it are read, in whatever place of a file they are: after a kill the beads' files may have a frame more
    or less.
    """

    quantity: str
    files: tuple[Path, ...]
    every: int = 1

    def __iter__(self) -> Iterator[tuple[int, int, Frame]]:
        """Of positions: step of i-PI, bead's place in `files`, and the structure in Å, file by file."""
        for bead, path in enumerate(self.files):
            for step, raw in _frames(path, self.every):
                yield step, bead, structure(raw, path.suffix[1:])

    def vectors(self) -> Iterator[tuple[int, int, NDArray[np.str_], FloatArray]]:
        """Of anything: step of i-PI, bead's place in `files`, names (n,) and values (n, 3) in atomic units.

        Names are i-PI's, by which it knows isotopes and masses apart.
        """
        # not i-PI's own reader, which takes m/s for atomic units: its pattern of a unit has no stroke
        unit = re.compile(rf"(?<!\w){self.quantity}\{{([^{{}}]*)\}}")
        dimension = Trajectories().traj_dict[self.quantity]["dimension"]
        for bead, path in enumerate(self.files):
            scales = {"": 1.0}
            for step, raw in _frames(path, self.every):
                found = unit.search(raw["comment"])
                name = found[1] if found else ""
                if name not in scales:
                    scales[name] = float(unit_to_internal(dimension, name, 1.0))
                yield step, bead, np.array(raw["names"], dtype=np.str_), raw["data"].reshape(-1, 3) * scales[name]


def write_down(into: dict[int, Any], step: int, value: Any) -> None:
    """Put the value of a step behind those of the steps before it.

    Where i-PI went back to a RESTART, to this step or an earlier one, what was there beyond it was given up."""
    while into and next(reversed(into)) >= step:
        into.popitem()
    into[step] = value


def find_positions(folder: Path, stem: str) -> Trajectory | None:
    """The files of bead positions among i-PI's outputs that begin with `stem`; None without any. Thinned if long."""
    return find_trajectory(folder, stem, "positions", MOST_ATOMS)


def find_trajectory(folder: Path, stem: str, quantity: str, most: int | None = None) -> Trajectory | None:
    """The files of this quantity among i-PI's outputs that begin with `stem`, xyz or pdb; None without any.

    i-PI names a trajectory's files as the user likes, but says in every frame what it is. most: atoms that are read,
    all beads together; None reads all.
    """
    files = []
    for path in _outputs(folder, stem, ".*"):
        if path.suffix in _FRAMING:
            with open(path, errors="replace") as lines:
                if any(re.search(rf"Bead:.*(?<![\w]){quantity}(?![\w])", line) for line in islice(lines, 2)):
                    files.append(path)
    # one output of all beads; where the user asked for several, that with the most digits, and the longest files
    groups: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        groups.setdefault((re.sub(r"_\d+$", "", path.stem), path.suffix), []).append(path)
    if not groups:
        return None
    chosen = max(groups.values(), key=lambda of: (len(of), of[0].suffix == ".xyz", of[0].stat().st_size))
    if most is None:
        return Trajectory(quantity, tuple(chosen))
    with open(chosen[0], errors="replace") as lines:
        atoms, size = _size(lines, chosen[0].suffix)
    frames = max(1, round(chosen[0].stat().st_size / max(1, size)))  # of a bead, about
    thin = max(1, -(-frames * atoms * len(chosen) // most))
    # i-PI writes where its step is a multiple of the stride, which two steps in a row thus tell
    stride = math.gcd(*(step for step, _ in islice(_frames(chosen[0]), 4)))
    return Trajectory(quantity, tuple(chosen), thin * max(1, stride) if thin > 1 else 1)


def _outputs(folder: Path, stem: str, pattern: str) -> list[Path]:
    """i-PI's files with this prefix, which may be empty, a path, or hold what a pattern would take for its own."""
    prefix = folder / stem if stem else folder / "_"
    return sorted(prefix.parent.glob(escape(prefix.name) + pattern if stem else pattern.replace(".*", "*", 1)))


def _size(lines: Iterator[str], suffix: str) -> tuple[int, int]:
    """Atoms and bytes of the first frame."""
    if suffix == ".xyz":
        first = next(lines, "0")
        atoms = int(first)
        return atoms, len((first + "".join(islice(lines, atoms + 1))).encode())
    text = ""
    for line in lines:
        text += line
        if line.startswith("END"):
            break
    return text.count("\nATOM"), len(text.encode())


def _frames(path: Path, every: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
    """The frames whose step is a multiple of this, as i-PI's reader gives them, with their steps; a frame that a killed
    i-PI tore is left out.
    """
    with open(path, errors="replace") as lines:
        atoms, _ = _size(lines, path.suffix)
    length = atoms + _FRAMING[path.suffix]
    with open(path, errors="replace") as lines:
        block: list[str] = []
        while True:
            block += islice(lines, length + 1 - len(block))  # and the line after it, by which its last one is whole
            if len(block) < length or not block[length - 1].endswith("\n"):
                return
            if not block[-1].endswith("\n"):
                del block[length:]  # of a frame that was just being written
            found = _STEP.search("".join(block[:2]))
            step = int(found[1]) if found else -1
            if step % every and all(_begins(block[row : row + 2], atoms) for row in range(0, len(block), length)):
                block = block[length:]
                continue
            begins = [row for row in range(len(block)) if _begins(block[row : row + 2], atoms)]
            if begins != [0, length][: 1 + (len(block) > length)]:  # torn: go on where the next one begins
                block = block[next((row for row in begins if row), len(block)) :]
                continue
            yield step, read_file_raw(path.suffix[1:], io.StringIO("".join(block[:length])))
            block = block[length:]


def structure(raw: dict[str, Any], mode: str) -> Frame:
    """The structure of what i-PI's reader (`read_file_raw`) found in a file of this mode, in its units."""
    # not by i-PI's `process_units`, whose objects cost three times as much as reading does
    dimension, units, cell_units = auto_units(raw["comment"], mode=mode)
    cell = np.array(raw["cell"], dtype=np.float64).T * unit_to_internal("length", cell_units, 1.0) * BOHR
    return Frame(
        numbers_of(raw["names"]),
        raw["data"].reshape(-1, 3) * unit_to_internal(dimension, units, 1.0) * BOHR,
        cell,
        (bool(np.linalg.det(cell) > 0),) * 3,  # i-PI writes a negative unit box where there is none
    )


def _begins(lines: Sequence[str], atoms: int) -> bool:
    """Whether a frame begins with these lines: an xyz with the number of its atoms, a pdb with its title."""
    count, title = lines[0].strip() == str(atoms), lines[0].startswith("TITLE")
    return title or (count and (len(lines) == 1 or "Step:" in lines[1]))


def numbers_of(names: Any) -> IntArray:
    """Atomic numbers; isotopes and labels that carry digits count as their element."""
    symbols = [re.sub(r"\d+$", "", str(name)) for name in names]
    return np.array([ISOTOPES.get(symbol, atomic_numbers.get(symbol, 0)) for symbol in symbols], dtype=np.int_)


@dataclass(frozen=True, slots=True)
class Potentials:
    """The committee's energies of every bead, from the extras that i-PI wrote.

    by_step: step -> (M,) Hartree, the mean over the beads, which is what the ring polymer feels. resolution: Hartree,
    the last digit that was written.
    """

    by_step: dict[int, FloatArray]
    resolution: float


def read_potentials(folder: Path, stem: str, beads: int) -> Potentials | None:
    """Read the outputs of `extra_type='committee_pot'`; None where not every bead has one, or there are none."""
    series, resolution = _extras(folder, stem, "committee_pot", beads)
    return Potentials(series, resolution) if series else None


def read_extra(folder: Path, stem: str, key: str, beads: int) -> dict[int, FloatArray]:
    """Read the outputs of `extra_type=KEY`: step -> (n,) its numbers, row by row, their mean over the beads.

    Empty where not every bead has one, or there are none.
    """
    return _extras(folder, stem, key, beads)[0]


def _extras(folder: Path, stem: str, key: str, beads: int) -> tuple[dict[int, FloatArray], float]:
    """The mean over the beads, and the value of the last digit.

    i-PI writes several keys, `extra_type='committee_pot,energy_spread'`, side by side: the others have to be of one
    number, or nobody knows which numbers are the key's.
    """
    groups: dict[str, list[dict[int, FloatArray]]] = {}
    resolution = 0.0
    for path in _outputs(folder, stem, ".*_[0-9]*"):
        with open(path, errors="replace") as lines:
            head = _EXTRAS.search(next(lines, ""))
        keys = [one.strip() for one in head[1].split(",")] if head else []
        if key not in keys or not SINGLE_EXTRAS.union([key]).issuperset(keys):
            continue
        before = keys.index(key)
        series, digit = _of_bead(path, before, len(keys) - 1 - before)
        resolution = max(resolution, digit)
        groups.setdefault(re.sub(r"_\d+$", "", path.name), []).append(series)
    whole = [group for group in groups.values() if len(group) == beads]
    if not whole:
        return {}, resolution
    steps = set.intersection(*(set(series) for series in whole[0]))
    return {step: np.mean([series[step] for series in whole[0]], axis=0) for step in sorted(steps)}, resolution


def _of_bead(path: Path, before: int, behind: int) -> tuple[dict[int, FloatArray], float]:
    """One bead's series, step -> (n,), and the value of the last digit. What was given up at a RESTART does not count;
    a step with fewer numbers than others is torn, and left out.

    before, behind: how many numbers of other keys there are.
    """
    series: dict[int, list[float]] = {}
    step, resolution = None, 0.0
    with open(path, errors="replace") as lines:
        for line in lines:
            if titles := _EXTRAS.findall(line):
                # the last: before it may be what a kill left of another
                step = int(titles[-1][1])
                write_down(series, step, [])
            elif step is not None and line.strip() and line.endswith("\n"):
                with suppress(ValueError):  # torn, and written into by its successor
                    series[step] += list(map(float, line.split()))
                words = line.split()
                if not resolution and series[step] and len(words) > before:
                    mantissa, _, exponent = words[before].lower().partition("e")
                    resolution = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    full = max(map(len, series.values()), default=0)
    whole = {at: row for at, row in series.items() if row and len(row) == full}
    return {at: np.array(row[before : len(row) - behind]) for at, row in whole.items()}, resolution
