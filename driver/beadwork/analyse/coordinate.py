"""Coordinates of a structure that a free energy is wanted along, from a text that a user types.

    distance(A, B)                       |r_A - r_B|, Å
    angle(A, B, C)                       at B, degrees
    transfer(A, H, B)                    |r_H - r_A| - |r_H - r_B|, Å: the proton-transfer coordinate
    coordination(A, of, r0, power)       sum over `of` of s(|r - r_A|), s(r) = 1 / (1 + (r / r0)^power)
    dc(A, B, of, r0, power)              coordination(A, of) - coordination(B, of)

and what + - * / ** and numbers make of these; of is H, r0 1.4 Å and power 6 unless said otherwise. An atom is its
index, from 0, or an element with its number among its kind, from 1: O2 is the second oxygen. An element alone stands
for each of its atoms in turn, so that a frame has several values, all of which count. `transfer(O, H, O)` is, for each
H, of the two O that are nearest to it, the nearer one first. `dc:O1,O2` is short for `dc(O1, O2)`.

The text is parsed and never run: what is not in this list is refused.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from ase.geometry.minkowski_reduction import minkowski_reduce

from beadwork.errors import ConfigError
from beadwork.frame import FloatArray, IntArray

_SHORT = re.compile(r"\s*([a-z]+)\s*:(.*)", re.DOTALL)
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
#: numbers that a frame's distances have at most, so that many are computed at once and memory does not end
_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class _Kind:
    """A function of the list above: names of its atoms, what these are by default, the same of its numbers, a unit."""

    atoms: tuple[str, ...]
    unit: str
    of: str | None = None
    numbers: tuple[tuple[str, float], ...] = ()


_SWITCH = (("r0", 1.4), ("power", 6.0))
_KINDS = {
    "distance": _Kind(("A", "B"), "Å"),
    "angle": _Kind(("A", "B", "C"), "degrees"),
    "transfer": _Kind(("A", "H", "B"), "Å"),
    "coordination": _Kind(("A", "of"), "", "H", _SWITCH),
    "dc": _Kind(("A", "B", "of"), "", "H", _SWITCH),
}


@dataclass(frozen=True, slots=True)
class _Call:
    kind: str
    atoms: tuple[str, ...]
    numbers: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Operation:
    of: Callable[[Any, Any], Any]
    left: _Call | _Operation | float
    right: _Call | _Operation | float


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A coordinate that was asked for as `text`. unit: 'Å', 'degrees', '' for a number, or 'mixed units'."""

    text: str
    unit: str
    _tree: _Call | _Operation | float

    @property
    def label(self) -> str:
        """Text and unit, as on an axis."""
        return f"{self.text} ({self.unit or 'no unit'})"

    def values(self, numbers: IntArray, positions: FloatArray, cells: FloatArray | None = None) -> FloatArray:
        """Return (F, V), the V values of each of F frames.

        numbers: (n,) atomic numbers. positions: (F, n, 3) Å. cells: (F, 3, 3) Å, a lattice vector a row, for distances
        to the nearest image in any cell; None in vacuum. Raises ConfigError for atoms that are not there, and for a
        value that is not finite.
        """
        if cells is not None:
            # a basis whose vectors are as short as can be, that of the first cell for all
            cells = np.einsum("ij,fjk->fik", minkowski_reduce(cells[0])[1], cells)
        # 27: each pair is looked at through the 26 neighbouring cells too
        pairs = len(numbers) ** 2 * (1 if cells is None else 27)
        size = max(1, _AT_ONCE // (3 * pairs))
        found = []
        for begin in range(0, len(positions), size):
            part = slice(begin, begin + size)
            space = _Space(self.text, numbers, positions[part], None if cells is None else cells[part])
            # a division by 0 is told below, with the frame where it happens
            with np.errstate(all="ignore"):
                found.append(np.asarray(space.value(self._tree), dtype=np.float64))
            if not np.isfinite(found[-1]).all():
                frame = begin + int(np.argwhere(~np.isfinite(found[-1]))[0][0])
                raise ConfigError(
                    f"{self.text} is {found[-1][frame - begin].tolist()} in frame {frame}",
                    "give a coordinate that is finite everywhere",
                )
        return np.concatenate(found)


@dataclass(frozen=True, slots=True)
class _Space:
    """Frames in which a coordinate called `text` is computed."""

    text: str
    numbers: IntArray
    positions: FloatArray
    cells: FloatArray | None

    def value(self, tree: _Call | _Operation | float) -> Any:
        """(F, V), or a number."""
        if isinstance(tree, float):
            return tree
        if isinstance(tree, _Call):
            return _COMPUTED[tree.kind](self, tree)
        left, right = self.value(tree.left), self.value(tree.right)
        # one value a frame goes with any number of them, two numbers of values do not
        widths = {one.shape[1] for one in (left, right) if not isinstance(one, float)} - {1}
        if len(widths) > 1:
            raise ConfigError(
                f"parts of {self.text} have {min(widths)} and {max(widths)} values a frame",
                "name single atoms, as O1, in all of them but one",
            )
        return tree.of(left, right)

    def atoms(self, name: str) -> list[int]:
        """Indices of those that are meant."""
        if name.isdecimal():
            found = [int(name)] if int(name) < len(self.numbers) else []
        else:
            symbol, number = re.fullmatch(r"([A-Za-z]+)(\d*)", name).groups()  # type: ignore[union-attr]
            found = np.flatnonzero(self.numbers == atomic_numbers[symbol]).tolist()
            # a slice: empty where there is no such atom
            found = found[int(number) - 1 : int(number)] if number else found
        if not found:
            there = ", ".join(
                f"{np.count_nonzero(self.numbers == z)} {chemical_symbols[z]}" for z in np.unique(self.numbers)
            )
            raise ConfigError(
                f"{self.text} names atom {name}, and the structure has {len(self.numbers)} atoms, {there}",
                "name an index from 0, or an element with a number from 1",
            )
        return found

    def every(self, *names: str) -> Iterator[tuple[int, ...]]:
        """Each choice of different atoms; of two alike at the ends one order only."""
        alike = names[0] == names[-1]
        choices = [
            chosen
            for chosen in product(*map(self.atoms, names))
            # a distance from O to O is that from the other O as well: it counts once
            if len(set(chosen)) == len(chosen) and not (alike and chosen[0] > chosen[-1])
        ]
        if not choices:
            raise ConfigError(f"{self.text} names one atom twice", "name different ones")
        return zip(*choices, strict=True)

    def vectors(self, begin: Any, end: Any) -> FloatArray:
        """(F, V, 3) from atoms to atoms, Å, to the nearest image where there is a cell."""
        apart: FloatArray = self.positions[:, list(end)] - self.positions[:, list(begin)]
        if self.cells is None:
            return apart
        # in a skew cell this may miss the nearest image, in a reduced basis by one cell at most
        apart = apart - np.round(apart @ np.linalg.inv(self.cells)) @ self.cells
        shifts = np.array(list(product((-1.0, 0.0, 1.0), repeat=3)))
        images = apart[:, :, None, :] + (shifts @ self.cells)[:, None]
        nearest = np.argmin(np.einsum("fvik,fvik->fvi", images, images), axis=2)
        found: FloatArray = np.take_along_axis(images, nearest[:, :, None, None], axis=2)[:, :, 0]
        return found

    def distances(self, begin: Any, end: Any) -> FloatArray:
        """(F, V) Å."""
        result: FloatArray = np.linalg.norm(self.vectors(begin, end), axis=2)
        return result

    def coordination(self, atom: int, call: _Call) -> FloatArray:
        """(F,) of one atom."""
        # its distance from itself is 0, and would always count 1
        others = [other for other in self.atoms(call.atoms[-1]) if other != atom]
        distances = self.distances([atom] * len(others), others)
        result: FloatArray = (1 / (1 + (distances / call.numbers["r0"]) ** call.numbers["power"])).sum(axis=1)
        return result


def _distance(space: _Space, call: _Call) -> FloatArray:
    return space.distances(*space.every(*call.atoms))


def _angle(space: _Space, call: _Call) -> FloatArray:
    one, middle, other = space.every(*call.atoms)
    left, right = space.vectors(middle, one), space.vectors(middle, other)
    cosine = (left * right).sum(axis=2) / np.linalg.norm(left, axis=2) / np.linalg.norm(right, axis=2)
    # rounding makes cosines of 1 + 1e-16, of which there is no angle
    degrees: FloatArray = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return degrees


def _transfer(space: _Space, call: _Call) -> FloatArray:
    ends, protons = space.atoms(call.atoms[0]), space.atoms(call.atoms[1])
    # elements at both ends: which two of them, the proton decides in each frame
    if call.atoms[0] == call.atoms[2] and len(ends) > 1:
        pairs = product(protons, ends)
        near = np.sort(space.distances(*zip(*pairs, strict=True)).reshape(-1, len(protons), len(ends)), axis=2)
        nearest: FloatArray = near[:, :, 0] - near[:, :, 1]
        return nearest
    one, proton, other = space.every(*call.atoms)
    return space.distances(one, proton) - space.distances(other, proton)


def _coordination(space: _Space, call: _Call) -> FloatArray:
    return np.stack([space.coordination(atom, call) for atom in space.atoms(call.atoms[0])], axis=1)


def _difference(space: _Space, call: _Call) -> FloatArray:
    one, other = space.every(*call.atoms[:2])
    # each atom once, however many pairs it is in
    of = {atom: space.coordination(atom, call) for atom in {*one, *other}}
    return np.stack([of[a] - of[b] for a, b in zip(one, other, strict=True)], axis=1)


_COMPUTED = {
    "distance": _distance,
    "angle": _angle,
    "transfer": _transfer,
    "coordination": _coordination,
    "dc": _difference,
}


def parse(text: str) -> Coordinate:
    """Read a coordinate as the module describes it. Raises ConfigError with what is not understood."""
    short = _SHORT.fullmatch(text)
    typed = f"{short[1]}({short[2]})" if short else text
    try:
        # Python's own parser for the grammar; what it finds is checked node by node and never evaluated
        tree = _build(ast.parse(typed.strip(), mode="eval").body, text)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise _not_understood(text, f"it is no expression ({error})") from error
    unit = _unit(tree)
    if unit is None:
        raise _not_understood(text, "it names no atoms")
    return Coordinate(text.strip(), unit, tree)


def _not_understood(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"the coordinate {text!r} is not understood: {why}",
        f"give {', '.join(_KINDS)} of atoms, as distance(O1, O2) or dc:O1,O2, or sums and products of them",
    )


def _build(node: ast.AST, text: str) -> _Call | _Operation | float:
    """The tree of what is allowed."""
    if (number := _typed(node)) is not None:
        return number
    # -x is -1 times x
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return _Operation(operator.mul, -1.0 if isinstance(node.op, ast.USub) else 1.0, _build(node.operand, text))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _Operation(_OPERATORS[type(node.op)], _build(node.left, text), _build(node.right, text))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _KINDS:
        return _call(node, node.func.id, text)
    raise _not_understood(text, f"{ast.unparse(node)} is nothing that it may have")


def _call(node: ast.Call, name: str, text: str) -> _Call:
    kind = _KINDS[name]
    given: dict[str, str | float] = {}
    named = [(keyword.arg or "**", keyword.value) for keyword in node.keywords]
    wanted = (*kind.atoms, *(key for key, _ in kind.numbers))
    if len(node.args) > len(wanted):
        raise _not_understood(text, f"{name} has {len(node.args)} arguments, and takes {', '.join(wanted)}")
    for key, value in [*zip(wanted, node.args, strict=False), *named]:
        if key not in wanted or key in given:
            raise _not_understood(text, f"{name} takes {', '.join(wanted)}, each once, and got {key}")
        given[key] = _atom(value, text) if key in kind.atoms else _number(value, text)
    if kind.of:
        given.setdefault("of", kind.of)
    if missing := [key for key in kind.atoms if key not in given]:
        raise _not_understood(text, f"{name} misses {', '.join(missing)}")
    numbers = {key: float(given.get(key, default)) for key, default in kind.numbers}
    return _Call(name, tuple(str(given[key]) for key in kind.atoms), numbers)


def _atom(node: ast.AST, text: str) -> str:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return str(node.value)
    if isinstance(node, ast.Name):
        # from 1: O0 would be the last one by the rules of Python
        match = re.fullmatch(r"([A-Z][a-z]?)([1-9]\d*)?", node.id)
        if match and match[1] in atomic_numbers:
            return node.id
    raise _not_understood(text, f"{ast.unparse(node)} is no atom")


def _number(node: ast.AST, text: str) -> float:
    if (number := _typed(node)) is not None and number > 0:
        return number
    raise _not_understood(text, f"{ast.unparse(node)} is no number above 0")


def _typed(node: ast.AST) -> float | None:
    """A number as it is typed; True is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return float(node.value)
    return None


def _unit(tree: _Call | _Operation | float) -> str | None:
    """None of a number that is typed."""
    if isinstance(tree, float):
        return None
    if isinstance(tree, _Call):
        return _KINDS[tree.kind].unit
    left, right = _unit(tree.left), _unit(tree.right)
    units = {unit for unit in (left, right) if unit is not None}
    if not units or units == {""}:
        return next(iter(units), None)
    linear = tree.of in (operator.add, operator.sub)
    scaled = (tree.of is operator.mul and None in (left, right)) or (tree.of is operator.truediv and right is None)
    # sums of one unit keep it, and so does a multiple; a ratio has none
    if len(units) == 1 and (linear or scaled):
        return units.pop()
    return "" if tree.of is operator.truediv and left == right else "mixed units"
