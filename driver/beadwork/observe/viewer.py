"""The frames that were kept, in chemiscope, whole within the page: its program is copied from the installed package."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.neighborlist import natural_cutoffs, neighbor_list

from beadwork.frame import FloatArray, Frame

#: where chemiscope's Python package has its program, for Sphinx and for itself
_PROGRAM = "sphinx/static/chemiscope.min.js"
#: dark blue where the committee is sure, yellow where it is not
PALETTE = "plasma"
#: of the atoms; chemiscope shows no units at the colours' bar but those in the name
COLOUR = "force spread (meV/Å)"


@dataclass(frozen=True, slots=True)
class Shown:
    """A frame to be looked at. row: its number in the queue. force_spread: (n,) eV/Å. energy_spread: eV an atom."""

    frame: Frame
    row: int
    step: int | None
    force_spread: FloatArray
    energy_spread: float

    @property
    def largest(self) -> float:
        """Force spread of the atom that has most of it, eV/Å."""
        return float(self.force_spread.max())


def program() -> Path | None:
    """chemiscope's JavaScript; None where it is not installed (extra `report`)."""
    found = importlib.util.find_spec("chemiscope")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / _PROGRAM
    return path if path.exists() else None


def inlined(script: str) -> str:
    """A program in a form that may stand inside <script>: what would open or close a tag is written otherwise."""
    for sign in ("<!--", "<script", "</script"):
        script = script.replace(sign, "\\x3c" + sign[1:])
    return script


def data(rows: Sequence[Shown], name: str) -> str:
    """What chemiscope shows, as JSON that may stand inside <script>: structures, their spreads, where to begin."""
    import chemiscope

    structures = [_whole(row.frame) for row in rows]
    properties: dict[str, Any] = {
        "step": _property("structure", [_number(row.step) for row in rows], ""),
        "bead": _property("structure", [_number(row.frame.bead) for row in rows], ""),
        "queue row": _property("structure", [row.row for row in rows], ""),
        "largest force spread": _property("structure", [1e3 * row.largest for row in rows], "meV/Å"),
        "energy spread": _property("structure", [1e3 * row.energy_spread for row in rows], "meV an atom"),
        COLOUR: _property("atom", 1e3 * np.concatenate([row.force_spread for row in rows]), ""),
    }
    shown = {"color": {"property": COLOUR, "palette": PALETTE}, "spaceFilling": False}
    settings = chemiscope.quick_settings(
        x="step",
        y="largest force spread",
        map_color="largest force spread",
        periodic=all(row.frame.pbc[0] for row in rows),
        map_settings={"palette": PALETTE},
        structure_settings=shown,
    )
    settings["pinned"] = [max(range(len(rows)), key=lambda k: rows[k].largest)]  # the one to begin with
    # a name for what is missing, and not NaN, which is no JSON
    whole = {key: value for key, value in properties.items() if not _missing(value["values"])}
    if "step" not in whole:
        settings["map"]["x"] = {"property": "queue row"}
    made = chemiscope.create_input(
        structures=structures,
        properties=whole,
        environments=chemiscope.all_atomic_environments(structures),
        settings=settings,
        metadata={"name": name},
    )
    return json.dumps(made, allow_nan=False).replace("<", "\\u003c")


def _property(target: str, values: Any, unit: str) -> dict[str, Any]:
    return {"target": target, "values": values, **({"units": unit} if unit else {})}


def _number(value: int | None) -> float:
    return math.nan if value is None else value


def _missing(values: Any) -> bool:
    return bool(np.isnan(np.asarray(values, dtype=np.float64)).any())


def _whole(frame: Frame) -> Any:
    """The structure with its molecules in one piece and in the cell: i-PI lets them drift as far as they like."""
    atoms = frame.to_atoms()
    if not all(frame.pbc):
        return atoms
    first, second, shifts = neighbor_list("ijS", atoms, natural_cutoffs(atoms, mult=1.15))
    bonds: list[list[tuple[int, FloatArray]]] = [[] for _ in frame.numbers]
    for i, j, shift in zip(first, second, shifts, strict=True):
        bonds[i].append((int(j), shift))
    moved = np.full((len(bonds), 3), np.nan)
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
        moved[molecule] -= np.floor((scaled + moved)[molecule].mean(axis=0))
    atoms.positions = (scaled + moved) @ frame.cell
    return atoms
