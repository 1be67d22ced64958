"""What i-PI wrote in a run's folder, read back: properties, trajectories, extras."""

from __future__ import annotations

import io
import math
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from ipi.engine.properties import Properties, Trajectories
from ipi.utils.io import read_file_raw
from ipi.utils.io.io_units import auto_units
from ipi.utils.units import unit_to_internal
from numpy.typing import NDArray

from beadwork.errors import SimulationError
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.log import logger
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
#: what to do where an older record does not say which files are its own
_BY_INPUT = "name the i-PI input (XML) of this run instead of its folder, or move the files of other runs away"
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
    asked: what the input asks for, a word a column (of several `stress_cv{bar}[0]`, …): i-PI writes no header where it
    goes on from a RESTART, in which other properties may be asked for than at the start. Each property is of the rows
    that have it; a warning says which rows are left out since nobody knows what they are.
    stride: steps from row to row, and first: the step at which the run began; by these, or by a column of times and
    time_step (fs), steps are told where there is no column of them. Steps grow from row to row: where i-PI went back to
    a RESTART, the rows that it had written beyond it are left out.
    """
    blocks = _named_blocks(path, _blocks(path), [_named(word) for word in asked], first > 0)
    begin = 0 if any(block.header for block in blocks) else first // stride + 1
    steps = np.empty(0)
    for block in blocks:
        steps = np.append(steps, _steps(block, begin + len(steps), stride, time_step))
    # of later rows the earliest step
    counts = steps < np.append(np.fmin.accumulate(steps[::-1])[::-1][1:], np.inf)
    found: dict[str, list[Series]] = {}
    at = 0
    for block in blocks:
        rows = slice(at, at := at + len(block.table))
        here = counts[rows]
        for name, (column, unit) in block.columns.items():
            found.setdefault(name, []).append(Series(steps[rows][here], block.table[here, column], unit))
    return {name: _joined(name, pieces) for name, pieces in found.items()}


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows of a property file that follow each other. names: of each column the name and the unit, '' of one that is
    not known. header: whether they are the file's own. table: (rows, columns)."""

    names: Sequence[tuple[str, str]]
    header: bool
    table: FloatArray

    @property
    def columns(self) -> dict[str, tuple[int, str]]:
        """Place and unit by name; of a property that is there twice the last."""
        return {name: (column, unit) for column, (name, unit) in enumerate(self.names) if name}


def _blocks(path: Path) -> list[_Block]:
    """The rows under one header and of one number of columns together, by the header before them, in their order."""
    header: dict[int, tuple[str, str]] = {}
    found: list[tuple[dict[int, tuple[str, str]], int, array[float]]] = []  # a run of weeks has millions of rows
    with open(path, errors="replace") as lines:
        for line in lines:
            if match := _COLUMN.match(line):
                begin, end = int(match[1]), int(match[2] or match[1])
                name, unit = _named(match[3])
                several = [f"{name}[{place}]" for place in range(end - begin + 1)] if match[2] else [name]
                told = {begin + place: (one, unit) for place, one in enumerate(several)}
                header = told if begin == 1 else header | told
            elif line.endswith("\n") and not line.startswith("#") and (words := line.split()):
                with suppress(ValueError):  # torn
                    row = [float(word) for word in words]
                    if not found or found[-1][0] is not header or found[-1][1] != len(row):
                        found.append((header, len(row), array("d")))
                    found[-1][2].extend(row)
    return [
        _Block([of[column] for column in sorted(of)], bool(of), np.array(values).reshape(-1, width))
        for of, width, values in found
    ]


def _named_blocks(
    path: Path, blocks: Sequence[_Block], asked: Sequence[tuple[str, str]], continued: bool
) -> list[_Block]:
    """The blocks of which every column is known, by the header or by what is asked for.

    A row alone that has another number of columns than both was torn by a kill. continued: whether the input that asks
    for these goes on from a RESTART, so that its rows have no header.
    """
    headers = [block.names for block in blocks if block.header]
    if continued and not any(_alike(header, asked) for header in headers):
        for header in headers:
            if len(header) == len(asked):
                logger.warning(
                    "%s: nothing is read, since its header names %s, the input asks for %s, and nothing tells which "
                    "rows are of which; put the header that i-PI would write (# column 1 --> %s …) before the first "
                    "row of the second",
                    path,
                    ", ".join(name for name, _ in header),
                    ", ".join(name for name, _ in asked),
                    asked[0][0],
                )
                return []
    found = []
    unknown: dict[int, int] = {}
    for block in blocks:
        rows, width = block.table.shape
        if block.header and width == len(block.names):
            found.append(block)
        elif width == len(asked) and (rows > 1 or not block.header):
            found.append(_Block(asked, False, block.table))
        elif rows > 1 and (block.header or asked):
            unknown[width] = unknown.get(width, 0) + rows
    known = sorted({len(names) for names in (*headers, asked) if names})
    for width, rows in unknown.items():
        logger.warning(
            "%s: %d rows of %d numbers are left out, since its header and the input name %s columns; put the header "
            "that i-PI would write (# column 1 --> step …) before the first of them",
            path,
            rows,
            width,
            " or ".join(map(str, known)),
        )
    return found


def _alike(one: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]]) -> bool:
    """Whether two sets of columns are the same, as far as both are known: older records have no name of some."""
    return len(one) == len(other) and all(
        here == there or not here[0] or not there[0] for here, there in zip(one, other, strict=True)
    )


def _steps(block: _Block, at: int, stride: int, time_step: float | None) -> FloatArray:
    """(rows,) i-PI's steps. at: how many rows the first one is behind step 0, where nothing else tells."""
    columns = block.columns
    if "step" in columns:
        return block.table[:, columns["step"][0]]
    if "time" in columns and time_step:
        column, unit = columns["time"]
        return np.asarray(np.rint(block.table[:, column] * _factor("time", unit) * FEMTOSECOND / time_step))
    # i-PI writes where its step is a multiple of the stride
    return stride * (at + np.arange(len(block.table), dtype=np.float64))


def _joined(name: str, pieces: Sequence[Series]) -> Series:
    """One series of what a property is in all blocks, in the unit that it has in the last."""
    unit = pieces[-1].unit
    values = [
        one.values if one.unit == unit else one.values * (_factor(name, one.unit) / _factor(name, unit))
        for one in pieces
    ]
    return Series(np.concatenate([one.steps for one in pieces]), np.concatenate(values), unit)


def _factor(name: str, unit: str) -> float:
    """The unit of a property in atomic units."""
    about = Properties().property_dict.get(re.split(r"[(\[]", name)[0], {})
    asked = "atomic_unit" if unit == "atomic units" else unit
    return float(unit_to_internal(about.get("dimension", "undefined"), asked, 1.0))


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
            for step, raw in _frames(path, self.quantity, self.every):
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
            for step, raw in _frames(path, self.quantity, self.every):
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


@dataclass(frozen=True, slots=True)
class Files:
    """Where the trajectories of a run, and its extras, are.

    folder: where i-PI ran. prefix: of its outputs, which may be empty or a path. beads: of the ring polymer, None where
    that is not known. names: by the input, relative to the folder, those of one output together; None where an older
    record does not say them. A folder may hold files of other runs: i-PI moves away those alone that it writes anew.
    """

    folder: Path
    prefix: str
    beads: int | None = None
    names: tuple[tuple[str, ...], ...] | None = None

    def outputs(self, is_of: Callable[[Path], bool]) -> list[list[Path]]:
        """The files that are of something, those of one output together, by bead.

        Without names: those whose own begin with the prefix. Raises SimulationError where these can be of another run.
        """
        if self.names is not None:
            own = [[path for one in names if (path := self.folder / one).is_file()] for names in self.names]
            return [found for paths in own if (found := list(filter(is_of, paths)))]
        groups: dict[tuple[str, str], list[Path]] = {}
        for path in sorted((self.folder / (self.prefix or "_")).parent.glob("*")):
            begin = f"{Path(self.prefix).name}." if self.prefix else ""
            # extras have no ending
            split = re.fullmatch(rf"{re.escape(begin)}(.+?)(?:_\d+)?(\.(?:xyz|pdb))?", path.name)
            if split and path.is_file() and is_of(path):
                groups.setdefault((split[1], split[2] or ""), []).append(path)
        # run.long.pos_0.xyz may be long.pos of the prefix run, or pos of another run, run.long
        if plain := {key: paths for key, paths in groups.items() if "." not in key[0]}:
            groups = plain
        for (name, _), paths in groups.items():
            self._check(name, paths)
        if len({name for name, _ in groups}) > 1:
            here, there = [paths[0] for paths in groups.values()][:2]
            raise SimulationError(
                f"{here.name} and {there.name} in {here.parent} hold the same quantity, and the record of this run "
                "does not say which of them is its own",
                _BY_INPUT,
            )
        return list(groups.values())

    def _check(self, name: str, paths: Sequence[Path]) -> None:
        """Raise SimulationError where files of this name, found by the prefix, are not those of this run's beads."""
        if "." in name:
            raise SimulationError(
                f"{paths[0]} may be of another run whose prefix begins as this one's, {self.prefix!r}, and the record "
                "of this run does not say which files are its own",
                _BY_INPUT,
            )
        numbers = [match[1] for path in paths if (match := re.search(r"_(\d+)(?:\.\w+)?$", path.name))]
        beads = self.beads
        if beads and any(len(one) != len(str(beads)) or int(one) >= beads for one in numbers):
            raise SimulationError(
                f"{paths[0].parent} holds files of {len(numbers)} beads, {paths[0].name} to {paths[-1].name}, and this "
                f"run has {beads}, so some are of another run",
                "move the files of the other run away",
            )


def find_positions(files: Files) -> Trajectory | None:
    """The files of bead positions of a run; None without any. Thinned if long. Raises SimulationError as `Files`."""
    return find_trajectory(files, "positions", MOST_ATOMS)


def find_trajectory(files: Files, quantity: str, most: int | None = None) -> Trajectory | None:
    """The files of this quantity of a run, xyz or pdb; None without any.

    i-PI names a trajectory's files as the user likes, but says in every frame what it is. most: atoms that are read,
    all beads together; None reads all. Raises SimulationError as `Files.outputs`.
    """
    titled = _titled(quantity)

    def is_of(path: Path) -> bool:
        if path.suffix not in _FRAMING:
            return False
        with open(path, errors="replace") as lines:
            return any(map(titled, islice(lines, 2)))

    groups = files.outputs(is_of)
    if not groups:
        return None
    # where the user asked for several, that with the most beads, and the longest files
    chosen = max(groups, key=lambda of: (len(of), of[0].suffix == ".xyz", of[0].stat().st_size))
    if most is None:
        return Trajectory(quantity, tuple(chosen))
    with open(chosen[0], errors="replace") as lines:
        atoms, size = _size(lines, chosen[0].suffix)
    frames = max(1, round(chosen[0].stat().st_size / max(1, size)))  # of a bead, about
    thin = max(1, -(-frames * atoms * len(chosen) // most))
    # i-PI writes where its step is a multiple of the stride, which two steps in a row thus tell
    stride = math.gcd(*(step for step, _ in islice(_frames(chosen[0], quantity), 4)))
    return Trajectory(quantity, tuple(chosen), thin * max(1, stride) if thin > 1 else 1)


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


def _titled(quantity: str) -> Callable[[str], object]:
    """What finds a frame's title that says that it is of this quantity."""
    return re.compile(rf"Bead:.*(?<!\w){quantity}(?!\w)").search


def _frames(path: Path, quantity: str, every: int = 1) -> Iterator[tuple[int, dict[str, Any]]]:
    """The frames of this quantity whose step is a multiple of `every`, as i-PI's reader gives them, with their steps; a
    frame that a killed i-PI tore is left out, and what an edited RESTART had it write under the same name.
    """
    is_of = _titled(quantity)
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
            if any(map(is_of, block[:2])):
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


def read_potentials(files: Files) -> Potentials | None:
    """Read the outputs of `extra_type='committee_pot'`; None where not every bead has one, or there are none.

    Raises SimulationError as `Files.outputs`.
    """
    series, resolution = _extras(files, "committee_pot")
    return Potentials(series, resolution) if series else None


def read_extra(files: Files, key: str) -> dict[int, FloatArray]:
    """Read the outputs of `extra_type=KEY`: step -> (n,) its numbers, row by row, their mean over the beads.

    Empty where not every bead has one, or there are none. Raises SimulationError as `Files.outputs`.
    """
    return _extras(files, key)[0]


def _extras(files: Files, key: str) -> tuple[dict[int, FloatArray], float]:
    """The mean over the beads, and the value of the last digit.

    i-PI writes several keys, `extra_type='committee_pot,energy_spread'`, side by side: the others have to be of one
    number, or nobody knows which numbers are the key's.
    """

    def is_of(path: Path) -> bool:
        if not re.search(r"_\d+$", path.name):
            return False
        with open(path, errors="replace") as lines:
            head = _EXTRAS.search(next(lines, ""))
        return head is not None and _around(key, head[1]) is not None

    whole = [paths for paths in files.outputs(is_of) if len(paths) == files.beads]
    if not whole:
        return {}, 0.0
    beads = [_of_bead(path, key) for path in whole[0]]
    steps = set.intersection(*(set(series) for series, _ in beads))
    means = {step: np.mean([series[step] for series, _ in beads], axis=0) for step in sorted(steps)}
    return means, max(digit for _, digit in beads)


def _around(key: str, title: str) -> tuple[int, int] | None:
    """How many numbers stand before and behind the key's own; None where that is not known, or they are not there."""
    keys = [one.strip() for one in title.split(",")]
    if key not in keys or not SINGLE_EXTRAS.union([key]).issuperset(keys):
        return None
    return keys.index(key), len(keys) - 1 - keys.index(key)


def _of_bead(path: Path, key: str) -> tuple[dict[int, FloatArray], float]:
    """One bead's series, step -> (n,), and the value of the last digit. What was given up at a RESTART does not count;
    a step with fewer numbers than others is torn, and left out.

    Which keys there are is what each step says: a RESTART may have been edited.
    """
    series: dict[int, tuple[tuple[int, int], list[float]]] = {}
    step, resolution = None, 0.0
    with open(path, errors="replace") as lines:
        for line in lines:
            if titles := _EXTRAS.findall(line):
                # the last: before it may be what a kill left of another
                title, step = titles[-1][0], int(titles[-1][1])
                write_down(series, step, (_around(key, title), []))
            elif step is not None and line.strip() and line.endswith("\n"):
                around, row = series[step]
                with suppress(ValueError):  # torn, and written into by its successor
                    row += list(map(float, line.split()))
                words = line.split()
                if not resolution and row and around and len(words) > around[0]:
                    mantissa, _, exponent = words[around[0]].lower().partition("e")
                    resolution = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    own = {at: row[around[0] : len(row) - around[1]] for at, (around, row) in series.items() if around and row}
    full = max(map(len, own.values()), default=0)
    return {at: np.array(row) for at, row in own.items() if len(row) == full}, resolution
