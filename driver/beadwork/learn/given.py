"""Frames that the user brings, put into a queue to be labelled: what a first committee learns from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
from ipi.utils.io import iter_file_raw

from beadwork.errors import BeadworkError, ConfigError
from beadwork.frame import Frame
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import Kept
from beadwork.observe.outputs import structure

#: what only i-PI writes into the line before a frame's atoms; other programs' readers would miss its units and cell
_IPI = re.compile(r"CELL[\[({]|cell\{|positions\{|Bead:")


def add(queue: Queue, path: Path, every: int = 1, periodic: bool | None = None) -> tuple[int, int]:
    """Put every `every`-th frame of a file into the queue; return how many were stored, and how many it had already.

    path: whatever ASE reads, or i-PI's xyz and pdb with their units and cells. periodic: as the file says if None.
    Nothing is known of their spread: it is NaN, they have no models, and the hash of the file stands for the
    simulation's. Raises ConfigError for a file that cannot be read or a frame that cannot be computed, and QueueError;
    all of the file is stored, or nothing.
    """
    if every < 1:
        raise ConfigError(f"every is {every}; it wants 1 or more")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        frames = list(_frames(path))
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
        raise ConfigError(f"there are no frames in {path}")
    stored = sum(row is not None for row in queue.add_all(kept))
    return stored, len(kept) - stored


def _frames(path: Path) -> Iterator[Frame]:
    mode = path.suffix.lower().lstrip(".")
    with open(path, errors="replace") as lines:
        head = [next(lines, ""), next(lines, "")]
    if mode not in ("xyz", "pdb") or not any(map(_IPI.search, head)):
        yield from (Frame.from_atoms(atoms) for atoms in ase.io.read(path, ":"))
        return
    with open(path) as lines:
        for number, raw in enumerate(iter_file_raw(mode, lines)):
            said = raw["comment"]
            if "{" in said.replace("cell{", "") and "positions{" not in said:
                raise ConfigError(f"frame {number} of {path} has no positions, but this: {said.strip()}")
            yield structure(raw, mode)


def _checked(frame: Frame, where: str, number: int, digest: str) -> Kept:
    try:
        frame.check()
    except BeadworkError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not frame.numbers.all():
        raise ConfigError(f"{where} has atoms of no known element, or fewer than it says; take it out of the file")
    unknown = np.full(len(frame.numbers), np.nan)
    return Kept(frame, number, np.nan, unknown, np.empty(0), (), digest)
