"""The kept frames in chemiscope, self-contained in the page: its program is copied from the installed package."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.neighborlist import natural_cutoffs, neighbor_list

from beadwork.events import WHOSE
from beadwork.frame import FloatArray, Frame

#: chemiscope's JavaScript within its Python package
_PROGRAM = "sphinx/static/chemiscope.min.js"
#: dark blue where members agree or the atom is known, yellow where not; readable for colour-blind people
PALETTE = "plasma"
#: colour of the atoms; the unit is in the name, because chemiscope's colour bar shows nothing else
COLOUR = "force spread (meV/Å)"
#: largest values of a frame: the axes with which the map begins
SPREAD, NOVELTY = "largest force spread", "largest novelty"


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame in the viewer.

    row: its number in the queue. force_spread: (n,) eV/Å. energy_spread: eV/atom. Both NaN where there was no
    committee. novelty: (n,) by part, 'baseline' or 'delta'. why: it was kept for 'spread', 'novelty' or both.
    """

    frame: Frame
    row: int
    step: int | None
    force_spread: FloatArray
    energy_spread: float
    novelty: Mapping[str, FloatArray] = field(default_factory=dict)
    why: tuple[str, ...] = ("spread",)

    @property
    def largest(self) -> float:
        """The largest force spread of any atom, eV/Å."""
        return float(self.force_spread.max())

    @property
    def newest(self) -> float:
        """The largest novelty of any atom; NaN where it is not known."""
        return max((float(of.max()) for of in self.novelty.values()), default=math.nan)


def program() -> Path | None:
    """chemiscope's JavaScript; None where it is not installed."""
    found = importlib.util.find_spec("chemiscope")
    if found is None or found.origin is None:
        return None
    # where this version of chemiscope has it; another one may have it elsewhere
    path = Path(found.origin).parent / _PROGRAM
    return path if path.exists() else None


def inlined(script: str) -> str:
    """Escape a program so that it can stand inside <script>: no text in it may open or close a tag."""
    for sign in ("<!--", "<script", "</script"):
        # in JavaScript's strings \\x3c is the same sign
        script = script.replace(sign, "\\x3c" + sign[1:])
    return script


def data(rows: Sequence[Shown], name: str) -> str:
    """chemiscope's input as JSON that can stand inside <script>: structures, their spreads and novelty, the first view.

    It begins with novelty where that is known of all frames and one was kept for it, and with the spread elsewhere.
    """
    import chemiscope

    structures = [_whole(row.frame) for row in rows]
    properties: dict[str, Any] = {
        "step": _property("structure", [_number(row.step) for row in rows], ""),
        "bead": _property("structure", [_number(row.frame.bead) for row in rows], ""),
        "queue row": _property("structure", [row.row for row in rows], ""),
        SPREAD: _property("structure", [1e3 * row.largest for row in rows], "meV/Å"),
        "energy spread": _property("structure", [1e3 * row.energy_spread for row in rows], "meV/atom"),
        COLOUR: _property("atom", 1e3 * np.concatenate([row.force_spread for row in rows]), ""),
        NOVELTY: _property("structure", [row.newest for row in rows], ""),
    }
    for part in WHOSE:
        of = [row.novelty.get(part, np.full(len(row.frame.numbers), math.nan)) for row in rows]
        properties[novelty_name(part)] = _property("atom", np.concatenate(of), "")
    # properties with missing values are left out: JSON has no NaN
    whole = {key: value for key, value in properties.items() if not _missing(value["values"])}
    axis, colour = SPREAD, COLOUR
    first = max(range(len(rows)), key=lambda k: -math.inf if math.isnan(rows[k].largest) else rows[k].largest)
    if by_novelty(rows):
        axis, first = NOVELTY, max(range(len(rows)), key=lambda k: rows[k].newest)
        known = [part for part in WHOSE if novelty_name(part) in whole]
        if known:
            colour = novelty_name(max(known, key=lambda part: float(rows[first].novelty[part].max())))
    if NOVELTY in whole:
        whole["kept for"] = _property("structure", [" and ".join(row.why) for row in rows], "")
    shown = {"color": {"property": colour, "palette": PALETTE}, "spaceFilling": False}
    settings = chemiscope.quick_settings(
        x="step" if "step" in whole else "queue row",
        y=axis,
        map_color=axis,
        symbol="kept for" if len({row.why for row in rows}) > 1 and "kept for" in whole else None,
        periodic=all(row.frame.pbc[0] for row in rows),
        map_settings={"palette": PALETTE},
        structure_settings=shown,
    )
    settings["pinned"] = [first]  # the frame that is shown first
    made = chemiscope.create_input(
        structures=structures,
        properties=whole,
        environments=chemiscope.all_atomic_environments(structures),
        settings=settings,
        metadata={"name": name},
    )
    # a name in the data could close the script
    return json.dumps(made, allow_nan=False).replace("<", "\\u003c")


def by_novelty(rows: Sequence[Shown]) -> bool:
    """Whether the viewer begins with novelty."""
    return any("novelty" in row.why for row in rows) and not any(math.isnan(row.newest) for row in rows)


def novelty_name(part: str) -> str:
    """The name in the viewer of the atoms' novelty for a part."""
    return f"novelty for {WHOSE[part]}"


def _property(target: str, values: Any, unit: str) -> dict[str, Any]:
    return {"target": target, "values": values, **({"units": unit} if unit else {})}


def _number(value: int | None) -> float:
    return math.nan if value is None else value


def _missing(values: Any) -> bool:
    return bool(np.isnan(np.asarray(values, dtype=np.float64)).any())


def _whole(frame: Frame) -> Any:
    """The structure with its molecules whole and inside the cell: i-PI does not fold atoms back (pbc='False')."""
    atoms = frame.to_atoms()
    if not all(frame.pbc):
        return atoms
    # covalent radii and 15 %: bonds that are stretched by vibration still count
    first, second, shifts = neighbor_list("ijS", atoms, natural_cutoffs(atoms, mult=1.15))
    bonds: list[list[tuple[int, FloatArray]]] = [[] for _ in frame.numbers]
    for i, j, shift in zip(first, second, shifts, strict=True):
        bonds[i].append((int(j), shift))
    moved = np.full((len(bonds), 3), np.nan)
    # in fractions of the cell, where a translation by lattice vectors is a whole number
    scaled = np.linalg.solve(frame.cell.T, frame.positions.T).T
    for start in range(len(bonds)):
        if not np.isnan(moved[start, 0]):
            continue
        moved[start] = 0.0
        molecule, ahead = [start], deque([start])
        while ahead:
            here = ahead.popleft()
            for other, shift in bonds[here]:
                if np.isnan(moved[other, 0]):
                    moved[other] = moved[here] + shift
                    molecule.append(other)
                    ahead.append(other)
        # by its centre, so that a molecule on the boundary stays whole
        moved[molecule] -= np.floor((scaled + moved)[molecule].mean(axis=0))
    atoms.positions = (scaled + moved) @ frame.cell
    return atoms
