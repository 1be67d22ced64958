"""Add the user's own frames to a queue for labelling, for instance to train a first committee."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.geometry import minkowski_reduce
from ase.io.formats import filetype, ioformats
from ase.neighborlist import neighbor_list
from ipi.utils.io import read_file_raw

from beadwork.errors import BeadworkError, ConfigError, GeometryError
from beadwork.frame import Frame
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.ipi.outputs import ISOTOPES, structure
from beadwork.label.lines import PROPERTIES, decoded, element, last_row_is_complete, lines_of, unlike, with_elements

#: marks of i-PI in the line before a frame's atoms; readers of other programs would miss its units and cell
_IPI = re.compile(r"CELL[\[({]|cell\{|positions\{|Bead:")
#: without these entries i-PI reads an xyz in Bohr
_UNITS = re.compile(r"positions\{\w+\}.*cell\{\w+\}|cell\{\w+\}.*positions\{\w+\}")
#: Å; atoms are never closer; forces or velocities that are read as positions often are
_NEAR = 0.2
#: Å; an atom and its own image are never closer: what has such a cell has none, or not in Å
_OWN_IMAGE = 1.0
#: kinds of frames that are listed
_KINDS = 8


@dataclass(frozen=True, slots=True)
class Added:
    """How many frames were stored, and how many the queue had already.

    torn: whether the file's last frame was left out because it may be incomplete. isotopes: whether D or T was read as
    H. single: the format's name, where ASE reads one structure of its files, whatever else is in them. kinds: a line
    for each formula and periodicity of the frames.
    """

    stored: int
    known: int
    torn: bool
    isotopes: bool = False
    kinds: tuple[str, ...] = ()
    single: str = ""

    def __str__(self) -> str:
        text = "1 frame waits for its label" if self.stored == 1 else f"{self.stored} frames wait for labels"
        text += f", {self.known} were there already" * bool(self.known)
        text += "; the last one of the file may be incomplete, and was left out" * self.torn
        text += "; D and T were read as H, since no label depends on masses" * self.isotopes
        text += f"; of a file in this format ({self.single}) one structure is read" * bool(self.single)
        return "\n  ".join([text, *self.kinds])


def add(queue: Queue, path: Path, every: int = 1, periodic: bool | None = None) -> Added:
    """Put every `every`-th frame of a file into the queue.

    path: any format that ASE reads, or i-PI's xyz and pdb, which must name their units; the last frame of an xyz, pdb
    or LAMMPS dump that is still being written is left out. periodic: None for what the file says. The frames have no
    models and a spread of NaN, and the hash of the file takes the place of the simulation's. Raises ConfigError for a
    file that cannot be read or a frame that cannot be computed, and QueueError; all frames are stored, or none.
    """
    if every < 1:
        raise ConfigError(f"every is {every}", "it wants 1 or more")
    try:
        text = path.read_bytes()
        # of the bytes that are read, not of a path that may be written to meanwhile
        digest = hashlib.sha256(text).hexdigest()
        read = _read(path, text)
    except BeadworkError:
        raise
    except Exception as error:  # ASE's many readers can raise anything
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, KeyError) and re.fullmatch(r"\w{1,4}", str(error.args[0])):
            message = f"an atom is called {error.args[0]!r}, which is no element"
        raise ConfigError(
            f"cannot read frames from {path}: {message}", "give a file that ASE reads, or i-PI's"
        ) from error
    kept = []
    # checked before any is stored: a file that is half added would be added again with its corrected version
    for number, frame in list(enumerate(read.frames))[::every]:
        if periodic is not None:
            frame = replace(frame, pbc=(periodic,) * 3)
        kept.append(_checked(frame, f"frame {number} of {path}", number, digest))
    if not kept:
        ends = "; it ends within one, or without a newline, so that the last number may be cut" * read.torn
        raise ConfigError(f"there is no whole frame in {path}{ends}")
    # in one transaction: all frames of a file or none
    stored = sum(row is not None for row in queue.add_all(kept))
    return Added(stored, len(kept) - stored, read.torn, read.isotopes, _kinds([one.frame for one in kept]), read.single)


@dataclass(slots=True)
class _Read:
    """What a file holds."""

    frames: list[Frame]
    torn: bool = False
    isotopes: bool = False
    single: str = ""


def _read(path: Path, text: bytes) -> _Read:
    mode = path.suffix.lower().lstrip(".")
    # by content where possible: LAMMPS dumps have any suffix
    lines = lines_of(decoded(text, "replace"))
    if lines and lines[0].startswith("ITEM: "):
        return _dump(path, lines)
    if mode in ("xyz", "extxyz"):
        return _xyz(path, lines)
    if mode == "gro":
        return _gro(path, lines)
    if mode in ("sdf", "mol"):
        return _Read([_of_ase(one, where) for one, where in _records(path, lines, mode)])
    if mode == "pdb":
        return _pdb(path, lines)
    if mode == "g96" and sum(line.startswith("POSITION") for line in lines) > 1:
        raise ConfigError(f"{path} has several structures, of which ASE makes one: write each into a file of its own")
    whole = ase.io.read(path, ":", do_not_split_by_at_sign=True)
    named = filetype(str(path))
    read = _Read([_of_ase(atoms, f"frame {n} of {path}") for n, atoms in enumerate(whole)])
    return replace(read, single=named if ioformats[named].single else "")


def _records(path: Path, lines: Sequence[str], mode: str) -> list[tuple[Any, str]]:
    """Of an SDF every structure that ASE reads, which would take the first one alone, and where it is."""
    records: list[list[str]] = [[]]
    for line in lines:
        if line.startswith("$$$$"):
            records.append([])
        else:
            records[-1].append(line)
    if not "".join(records[-1]).strip():  # behind the last end
        records.pop()
    return [
        (ase.io.read(io.StringIO("".join(record)), format=mode), f"frame {number} of {path}")
        for number, record in enumerate(records)
    ]


def _gro(path: Path, lines: Sequence[str]) -> _Read:
    """A gro file, or a trajectory of such: a title, the number of atoms, these, and the box. Raises ConfigError."""
    read, at = _Read([]), 0
    end = max((number for number, line in enumerate(lines, 1) if line.strip()), default=0)
    while at < end:
        where = f"frame {len(read.frames)} of {path}"
        if at + 1 >= len(lines) or re.fullmatch(r"\s*[0-9]{1,9}\s*", lines[at + 1]) is None:
            raise ConfigError(f"{where} has no number of atoms in line {at + 2} of the file")
        block = lines[at : at + 3 + int(lines[at + 1])]
        at += len(block)
        if len(block) < 3 + int(block[1]) or not block[-1].strip():
            read.torn = True
            break
        atoms = ase.io.read(io.StringIO("".join(block)), format="gromacs")
        # a gro file has names only, and ASE reads MW, the dummy site of a water, as tungsten
        elements = [element(str(name), where) for name in atoms.arrays["atomtypes"]]
        atoms.symbols = [symbol for symbol, _ in elements]
        read.isotopes |= any(isotope for _, isotope in elements)
        if not np.any(atoms.cell.array):  # the format has a box in any case
            atoms.pbc = False
        read.frames.append(_of_ase(atoms, where))
    return read


def _pdb(path: Path, lines: Sequence[str]) -> _Read:
    """A pdb of i-PI, or of any other program."""
    blocks, torn = _pdb_blocks(lines)
    plain = [[_protium(line) for line in block] for block in blocks]
    isotopes = plain != blocks
    if any(map(_IPI.search, lines[:2])):
        frames = [_of_ipi(block, "pdb", f"frame {n} of {path}") for n, block in enumerate(plain)]
        return _Read(frames, torn, isotopes)
    for number, block in enumerate(plain):
        for line in block:  # without the element's column ASE guesses from the name
            if _is_atom(line) and not line[76:78].strip():
                name = line[12:16].strip()
                unlike(name, name, f"frame {number} of {path}")
    whole = io.StringIO("".join(line for block in plain for line in block))
    atoms = ase.io.read(whole, ":", format="proteindatabank")
    return _Read([_of_ase(one, f"frame {n} of {path}") for n, one in enumerate(atoms)], torn, isotopes)


def _xyz(path: Path, lines: Sequence[str]) -> _Read:
    """XYZ of all kinds: i-PI's, extended, and plain."""
    blocks, torn = _blocks(path, lines)
    ipi = any(map(_IPI.search, lines[:2])) and not PROPERTIES.search("".join(lines[:2]))
    if ipi and "_forces_" in path.name and "Traj: positions" in lines[1]:
        raise ConfigError(f"{path} has no positions: i-PI writes the forces of an instanton under the name positions")
    read = _Read([], torn)
    for number, block in enumerate(blocks):
        where = f"frame {number} of {path}"
        block, isotopes = with_elements(block, where)
        read.isotopes |= isotopes
        if ipi:
            read.frames.append(_of_ipi(block, "xyz", where))
            if len(read.frames[-1].numbers) != len(read.frames[0].numbers):
                raise ConfigError(
                    f"{where} has {len(read.frames[-1].numbers)} atoms, the first {len(read.frames[0].numbers)}"
                )
        else:
            try:
                # one block at a time: an error then names its frame, and a torn end is seen by us
                atoms = ase.io.read(io.StringIO("".join(block)), format="extxyz")
            except Exception as error:  # of all kinds too
                raise ConfigError(f"{where} cannot be read as extended XYZ: {' '.join(str(error).split())}") from error
            read.frames.append(_of_ase(atoms, where))
    return read


def _of_ase(atoms: Any, where: str) -> Frame:
    """One frame as ASE has read it. Raises ConfigError for a charge or a spin that is none, or if it is disordered."""
    sites = atoms.info.get("occupancy")
    if isinstance(sites, dict):  # of a CIF: the parts of each element on each kind of site
        parts = [part for site in sites.values() for part in site.items()]
    else:  # of a PDB, in which 0 is unknown
        parts = [part for part in zip(atoms.symbols, atoms.arrays.get("occupancy", ()), strict=False) if part[1]]
    if disordered := [f"{symbol} of which {part:g} is there" for symbol, part in parts if part < 1]:
        raise ConfigError(
            f"{where} has a site with {disordered[0]} (its occupancy): a disordered structure is an average "
            "over several ones, and has more sites than atoms",
            "give one of these, in which every site has one whole atom",
        )
    try:
        return Frame.from_atoms(atoms)
    except GeometryError as error:
        raise ConfigError(f"{where}: {error.what}", error.remedy) from error


def _of_ipi(block: Sequence[str], mode: str, where: str) -> Frame:
    """One frame written by i-PI. Raises ConfigError where it has no positions, or no units."""
    title = block[1] if mode == "xyz" else block[0]
    if "{" in re.sub(r"cell\{|CELL\{", "", title) and "positions{" not in title:
        raise ConfigError(f"{where} has no positions, but this: {title.strip()}")
    if mode == "xyz" and not _UNITS.search(title):
        raise ConfigError(
            f"{where} does not name its units, and i-PI would assume Bohr: write positions{{angstrom}} "
            f"cell{{angstrom}}, or atomic_unit, into its second line, {title.strip()!r}"
        )
    # i-PI's own reader knows its units and its cell in the title
    return structure(read_file_raw(mode, io.StringIO("".join(block))), mode)


def _protium(line: str) -> str:
    """A line of a pdb with H in place of an isotope's name, in the columns of the name and of the element."""
    if not _is_atom(line) or line[12:16].strip().rstrip("0123456789") not in ISOTOPES:
        return line
    return line[:12] + re.sub("[A-Z]", "H", line[12:16]) + line[16:76] + re.sub("[DTZ]", "H", line[76:78]) + line[78:]


def _dump(path: Path, lines: Sequence[str]) -> _Read:
    """A LAMMPS dump. Raises ConfigError where it has types without elements, or units that are not Å."""
    starts = [row for row, line in enumerate(lines) if line.startswith("ITEM: TIMESTEP")]
    # LAMMPS writes its units only where it is told to; its usual ones for molecules are in Å
    units = next((after.strip() for line, after in pairwise(lines) if line.startswith("ITEM: UNITS")), "")
    if units not in ("", "real", "metal"):
        raise ConfigError(f"{path} is in LAMMPS's units {units!r}", "write it in Å (real, metal)")
    read = _Read([], torn=lines[-1].startswith("I") and not lines[-1].endswith("\n"))  # of the next frame
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(lines)], strict=True)):
        block = lines[start:end]
        head = next((row for row, line in enumerate(block) if line.startswith("ITEM: ATOMS")), None)
        count = next((row for row, line in enumerate(block) if line.startswith("ITEM: NUMBER OF ATOMS")), len(block))
        columns = block[head].split()[2:] if head is not None else []
        atoms = block[head + 1 :] if head is not None else []
        atoms = [line for line in atoms if not line.startswith("ITEM: ") and len(line.split()) == len(columns)]
        if head is None or len(atoms) != int(block[count + 1]) or not last_row_is_complete(atoms):
            if end == len(lines):
                read.torn = True
                break
            raise ConfigError(f"frame {number} of {path} is incomplete", "remove it")
        # ASE takes a type for an atomic number: type 1 would be hydrogen, whatever it is
        if not {"element", "mass"} & set(columns):
            raise ConfigError(
                f"frame {number} of {path} has types instead of elements: let LAMMPS write the column element "
                "(dump_modify ID element O H)"
            )
        whole = io.StringIO("".join(block))
        read.frames.append(_of_ase(ase.io.read(whole, format="lammps-dump-text"), f"frame {number} of {path}"))
    return read


def _blocks(path: Path, lines: Sequence[str]) -> tuple[list[list[str]], bool]:
    """The lines of each frame of an xyz, and whether the last one was torn."""
    blocks: list[list[str]] = []
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        if re.fullmatch(r"\s*[0-9]{1,9}\s*", lines[at]) is None:  # "²" is a digit too, and of 5,000 no int is made
            raise ConfigError(
                f"line {at + 1} of {path} is {lines[at].strip()[:60]!r}, where the number of atoms belongs"
            )
        block = list(lines[at : at + int(lines[at]) + 2])
        at += len(block)
        if len(block) < int(block[0]) + 2 or not last_row_is_complete(block[2:]):
            return blocks, True
        if any(len(line.split()) < 4 for line in block[2:]):
            raise ConfigError(f"a frame of {path} that ends in line {at} is incomplete", "remove it")
        while at < len(lines) and lines[at].lstrip().startswith("VEC"):  # the cell in the form of some programs
            block.append(lines[at])
            at += 1
        blocks.append(block)
    return blocks, False


def _pdb_blocks(lines: Sequence[str]) -> tuple[list[list[str]], bool]:
    """The lines of each frame of a pdb, and whether the last one was torn. One without any END is one frame.

    A frame without a cell has that of the frame before: the format has it once, above all models. Where there is none
    the format has one of 1 Å, and some programs write 0 (wwPDB, Atomic Coordinate Entry Format 3.30, CRYST1).
    """
    blocks: list[list[str]] = [[]]
    cell, told = None, False  # told: in this block
    for line in lines:
        if line.startswith("CRYST1"):
            cell = line
            with contextlib.suppress(ValueError):  # what is no number there is told by the reader
                sides, angles = (
                    [float(line[k : k + n]) for k in at] for n, at in ((9, (6, 15, 24)), (7, (33, 40, 47)))
                )
                if sides in ([1.0] * 3, [0.0] * 3) and angles == [90.0] * 3:
                    cell = None
                    continue
            told = True
        if cell and not told and _is_atom(line):
            blocks[-1].append(cell)
            told = True
        blocks[-1].append(line)
        if line.startswith("END"):
            blocks.append([])
            told = False
    rest = blocks.pop()  # atoms after the last END are of a frame that is still being written
    cut = any(map(_is_atom, rest))
    if not blocks and cut and rest[-1].endswith("\n"):
        return [rest], False
    # the END behind the last ENDMDL is no frame
    return [block for block in blocks if any(map(_is_atom, block))], cut


def _is_atom(line: str) -> bool:
    return line.startswith(("ATOM", "HETATM"))


def _checked(frame: Frame, where: str, number: int, digest: str) -> KeptFrame:
    try:
        frame.check()
    except BeadworkError as error:
        raise ConfigError(f"{where}: {error.what}", "correct it, or remove it") from error
    if not frame.numbers.all():
        raise ConfigError(f"{where} has atoms of no known element", "remove it from the file")
    if any(frame.pbc):
        lengths = np.linalg.norm(minkowski_reduce(frame.cell, frame.pbc)[0], axis=1)[np.array(frame.pbc)]
        if lengths.min() < _OWN_IMAGE:
            raise ConfigError(
                f"{where} has a cell in which each atom is {lengths.min():.4f} Å from its own image",
                "correct the cell, which is in Å; where there is none, add the file with --not-periodic",
            )
    # with images: too small a cell brings atoms together as well
    first, second, far = neighbor_list("ijd", frame.to_atoms(), _NEAR)
    if len(far):
        pair = int(far.argmin())
        raise ConfigError(
            f"{where} has atoms {first[pair]} and {second[pair]} {far[pair]:.4f} Å apart",
            "remove it; or are these no positions in Å, but forces, velocities, or fractional coordinates?",
        )
    # nobody has evaluated it: NaN, since 0 would mean that the members agree
    unknown = np.full(len(frame.numbers), np.nan)
    return KeptFrame(frame, number, np.nan, unknown, np.empty(0), (), digest)


def _kinds(frames: Iterable[Frame]) -> tuple[str, ...]:
    """For instance `20 of H128O64, periodic, cell 12.42 12.42 12.42 Å, 90 90 90°`, the most frequent first."""
    kinds: dict[tuple[str, tuple[bool, bool, bool]], list[Any]] = {}
    for frame in frames:
        atoms = frame.to_atoms()
        kinds.setdefault((atoms.get_chemical_formula(), frame.pbc), []).append(atoms.cell.cellpar())
    lines = []
    for (formula, pbc), cells in sorted(kinds.items(), key=lambda kind: -len(kind[1])):
        line = f"{len(cells)} of {formula}, "
        if any(pbc):
            low, high = np.min(cells, axis=0), np.max(cells, axis=0)
            along = " and ".join(axis for axis, whether in zip("abc", pbc, strict=True) if whether)
            line += "periodic" + ("" if all(pbc) else f" along {along}")
            line += f", cell {_six(low)}" + (f" to {_six(high)}" if (high - low).max() > 5e-3 else "")
        else:
            line += "not periodic" + " (the file has no cell)" * (not np.any(np.array(cells)[:, :3]))
        lines.append(line)
    more = len(lines) - _KINDS
    return (*lines[:_KINDS], *([f"and {more} more formulas"] if more > 0 else []))


def _six(cell: Any) -> str:
    return f"{' '.join(f'{x:.2f}' for x in cell[:3])} Å, {' '.join(f'{x:g}' for x in np.round(cell[3:], 2))}°"
