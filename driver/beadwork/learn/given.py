"""Frames that the user brings, put into a queue to be labelled: what a first committee learns from."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ipi.utils.io import read_file_raw

from beadwork.errors import BeadworkError, ConfigError
from beadwork.frame import Frame
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import Kept
from beadwork.observe.outputs import structure

#: what only i-PI writes into the line before a frame's atoms; other programs' readers would miss its units and cell
_IPI = re.compile(r"CELL[\[({]|cell\{|positions\{|Bead:")
#: without these words i-PI takes an xyz for Bohr
_UNITS = re.compile(r"positions\{\w+\}.*cell\{\w+\}|cell\{\w+\}.*positions\{\w+\}")


@dataclass(frozen=True, slots=True)
class Added:
    """How many frames were stored, and how many the queue had already. torn: whether the file's last one was left out,
    as it may not be whole.
    """

    stored: int
    known: int
    torn: bool


def add(queue: Queue, path: Path, every: int = 1, periodic: bool | None = None) -> Added:
    """Put every `every`-th frame of a file into the queue.

    path: whatever ASE reads, or i-PI's xyz and pdb, which must name their units; the last frame of one that is being
    written is left out. periodic: as the file says if None. Nothing is known of the frames' spread: it is NaN, they
    have no models, and the hash of the file stands for the simulation's. Raises ConfigError for a file that cannot be
    read or a frame that cannot be computed, and QueueError; all frames are stored, or none.
    """
    if every < 1:
        raise ConfigError(f"every is {every}; it wants 1 or more")
    try:
        text = path.read_bytes()
        digest = hashlib.sha256(text).hexdigest()
        frames, torn = _read(path, text)
    except BeadworkError:
        raise
    except Exception as error:  # whatever the many readers raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"cannot read frames from {path}: {said}; give a file that ASE reads, or i-PI's") from error
    kept = []
    for number, frame in list(enumerate(frames))[::every]:
        if periodic is not None:
            frame = Frame(frame.numbers, frame.positions, frame.cell, (periodic,) * 3)
        kept.append(_checked(frame, f"frame {number} of {path}", number, digest))
    if not kept:
        raise ConfigError(f"there is no whole frame in {path}")
    stored = sum(row is not None for row in queue.add_all(kept))
    return Added(stored, len(kept) - stored, torn)


def _read(path: Path, text: bytes) -> tuple[list[Frame], bool]:
    mode = path.suffix.lower().lstrip(".")
    lines = text.decode(errors="replace").splitlines(keepends=True) if mode in ("xyz", "pdb") else []
    if not any(map(_IPI.search, lines[:2])):
        return [Frame.from_atoms(atoms) for atoms in ase.io.read(path, ":")], False
    frames = []
    blocks, torn = _blocks(path, lines) if mode == "xyz" else _pdb_blocks(lines)
    for number, block in enumerate(blocks):
        where = f"frame {number} of {path}"
        title = block[1] if mode == "xyz" else block[0]
        if "{" in re.sub(r"cell\{|CELL\{", "", title) and "positions{" not in title:
            raise ConfigError(f"{where} has no positions, but this: {title.strip()}")
        if mode == "xyz" and not _UNITS.search(title):
            raise ConfigError(
                f"{where} does not say its units, and i-PI would take Bohr: write, as it is, positions{{angstrom}} "
                f"cell{{angstrom}} or atomic_unit into its second line, {title.strip()!r}"
            )
        frames.append(structure(read_file_raw(mode, io.StringIO("".join(block))), mode))
        if len(frames[-1].numbers) != len(frames[0].numbers):
            raise ConfigError(f"{where} has {len(frames[-1].numbers)} atoms, the first {len(frames[0].numbers)}")
    return frames, torn


def _blocks(path: Path, lines: Sequence[str]) -> tuple[list[list[str]], bool]:
    """The lines of each frame of an xyz, and whether the last one was torn."""
    blocks: list[list[str]] = []
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        if not lines[at].strip().isdigit():
            raise ConfigError(
                f"line {at + 1} of {path} is {lines[at].strip()[:60]!r}, where the number of atoms belongs"
            )
        block = list(lines[at : at + int(lines[at]) + 2])
        at += len(block)
        if len(block) < int(block[0]) + 2 or not block[-1].endswith("\n"):
            return blocks, True
        if any(len(line.split()) < 4 for line in block[2:]):
            raise ConfigError(f"a frame of {path} that ends in line {at} is torn; take it out")
        blocks.append(block)
    return blocks, False


def _pdb_blocks(lines: Sequence[str]) -> tuple[list[list[str]], bool]:
    """The lines of each frame of a pdb, and whether the last one was torn."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        blocks[-1].append(line)
        if line.startswith("END"):
            blocks.append([])
    return blocks[:-1], any(line.strip() for line in blocks[-1])


def _checked(frame: Frame, where: str, number: int, digest: str) -> Kept:
    try:
        frame.check()
    except BeadworkError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not frame.numbers.all():
        raise ConfigError(f"{where} has atoms of no known element; take it out of the file")
    unknown = np.full(len(frame.numbers), np.nan)
    return Kept(frame, number, np.nan, unknown, np.empty(0), (), digest)
