"""Identify molecules and ions, determine their charges, and cut clusters from periodic frames.

This is possible for closed-shell hydrogen and oxygen. Every hydrogen belongs to its nearest oxygen, or to another
hydrogen where the two are closer to each other than to any oxygen (H2). An oxygen then has one (OH-), two (H2O) or
three (H3O+) hydrogens. A proton shared by two oxygens makes them one ion (H5O2+, H3O2-), which is never divided. Two
oxygens bound to each other, each with one hydrogen of its own, are H2O2. The charge of a unit is the number of its
hydrogens minus twice that of its oxygens; of H2 and H2O2 it is 0. For everything else, including single atoms, other
bonds between oxygens (O2, HO2) and radicals, the user must give charge and spin.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import FloatArray, Frame
from beadwork.settings import setting

#: Å; a hydrogen farther than this from every oxygen is not bound to one
MAX_OH_BOND = 1.5
#: Å; a proton within this distance of two oxygens is shared by them
MAX_SHARED_OH = 1.35
#: Å; two OH within this distance are H2O2 (1.45 Å at rest; to here coupled cluster's T1 diagnostic is below 0.015)
MAX_OO_BOND = 1.8
#: Å; without a bond oxygens come no closer; those that share a proton to 2.2 Å (path integrals of H5O2+ at 300 K)
MIN_OO_APART = 2.0


@dataclass(frozen=True, slots=True)
class Unit:
    """A molecule or ion. atoms: indices in the frame, ascending. positions: (k, 3) Å, whole. charge: e."""

    atoms: tuple[int, ...]
    positions: FloatArray
    charge: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The size of a cluster: so many molecules, or all within a radius in Å. Raises ConfigError for both or neither.

    The nearest molecules are taken; the distance of a molecule is that of its nearest atom from the central atom.
    """

    molecules: int | None = setting(None, "so many, the nearest first", "molecules")
    radius: float | None = setting(None, "all whose nearest atom is within it", "Å")

    def __post_init__(self) -> None:
        if (self.molecules is None) == (self.radius is None):
            raise ConfigError("a cut wants molecules or radius, one of the two")
        if not (self.molecules or self.radius or 0) > 0:
            raise ConfigError(f"a cut wants a positive number, got {self.molecules or self.radius}")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A structure for a code without periodic boundaries. atoms: the index of each of its atoms in the whole frame."""

    frame: Frame
    atoms: tuple[int, ...]
    charge: int


def units(frame: Frame) -> list[Unit]:
    """Divide a frame into molecules and ions. Raises LabelError where charges cannot be determined from the atoms."""
    # a guessed charge would give a wrong label, so elements of several valences are the user's to say
    others = sorted(set(frame.numbers.tolist()) - {1, 8})
    if others:
        raise LabelError(f"charges can be determined for H and O only, not for elements {others}: give charge and spin")
    bonds = _bonds(frame)
    found, seen = [], set()
    for start in range(len(frame.numbers)):
        if start not in seen:
            unit = _unit(frame, start, bonds)
            seen |= set(unit.atoms)
            found.append(unit)
    return found


def charge(frame: Frame) -> int:
    """Total charge in e, from the atoms, for closed shells. Raises LabelError where it cannot be determined.

    One OH of closed shells is OH-. Two may be radicals as well (H2O2 leaves such), with the same parity of electrons:
    they are ions where as many positive ones balance them, or where the frame says its charge, which the caller is to
    compare with this.
    """
    charges = [unit.charge for unit in units(frame)]
    total, negative = sum(charges), -sum(q for q in charges if q < 0)
    if frame.charge is None and total < 0 and negative > 1:
        raise LabelError(
            f"the frame has {negative} OH and {total + negative} positive ions: its charge cannot be determined, since "
            "OH may be an ion or a radical",
            "give charge and spin",
        )
    return total


def cut(frame: Frame, centre: int, how: Cut) -> Cluster:
    """Cut whole molecules and ions round an atom: unwrapped, in the order of the frame, pbc False.

    The central atom keeps its position. Every unit is taken once, in its image nearest to the central atom. Raises
    LabelError for unknown charges, ConfigError for a radius of more than half of the cell.
    """
    if how.radius is not None and any(frame.pbc):
        # half of the smallest distance between opposite faces: beyond it a molecule and its image would both be inside.
        # A direction that is not periodic limits nothing, so the distances are those in the span of the others
        half = 0.5 / np.linalg.norm(np.linalg.pinv(frame.cell[np.array(frame.pbc)]), axis=0).max()
        if how.radius > half:
            raise ConfigError(f"a cut of {how.radius} Å does not fit into half of the cell, {half:.3f} Å")
    placed = []
    for number, unit in enumerate(units(frame)):
        ways = _nearest(unit.positions - frame.positions[centre], frame)
        lengths = np.linalg.norm(ways, axis=1)
        first = int(lengths.argmin())
        shift = frame.positions[centre] + ways[first] - unit.positions[first]
        # the unit of the central atom comes first, however its other atoms lie
        placed.append((0.0 if centre in unit.atoms else float(lengths[first]), number, unit, shift))
    placed.sort(key=lambda item: item[:2])  # the number breaks ties, so that the same frame is cut in the same way
    taken = placed[: how.molecules] if how.molecules else [p for p in placed if p[0] <= float(how.radius or 0)]
    atoms = np.concatenate([unit.atoms for _, _, unit, _ in taken])
    positions = np.concatenate([unit.positions + shift for _, _, unit, shift in taken])
    # in the order of the frame: a label's arrays can be compared with the frame's
    order = atoms.argsort()
    atoms = atoms[order]
    return Cluster(
        Frame(frame.numbers[atoms], positions[order], np.zeros((3, 3)), (False, False, False), frame.bead),
        tuple(int(atom) for atom in atoms),
        sum(unit.charge for _, _, unit, _ in taken),
    )


def _bonds(frame: Frame) -> dict[int, list[tuple[int, FloatArray]]]:
    """Bonds of each atom: the other atom, and the way to it in Å."""
    from ase.neighborlist import neighbor_list

    # with images: a bond may go through the border of the cell
    reach = {("H", "H"): MAX_OH_BOND, ("H", "O"): MAX_OH_BOND, ("O", "O"): MIN_OO_APART}
    first, second, ways, lengths = neighbor_list("ijDd", frame.to_atoms(), reach)
    bonds: dict[int, list[tuple[int, FloatArray]]] = {atom: [] for atom in range(len(frame.numbers))}

    def tie(pair: int) -> None:
        a, b = int(first[pair]), int(second[pair])
        bonds[a].append((b, ways[pair]))
        bonds[b].append((a, -ways[pair]))

    mates: dict[int, tuple[float, int]] = {}  # for a hydrogen closer to another than to any oxygen: distance and pair
    for atom in np.flatnonzero(frame.numbers == 1).tolist():
        mine = np.flatnonzero(first == atom)
        # stable, so that equal distances give the same bonds each time
        mine = mine[lengths[mine].argsort(kind="stable")]
        oxygens = mine[frame.numbers[second[mine]] == 8]
        hydrogens = mine[frame.numbers[second[mine]] == 1]
        if len(hydrogens) and (not len(oxygens) or lengths[hydrogens[0]] < lengths[oxygens[0]]):
            mates[atom] = (float(lengths[hydrogens[0]]), int(hydrogens[0]))
        elif not len(oxygens):
            raise LabelError(
                f"hydrogen {atom} is more than {MAX_OH_BOND} Å from every oxygen and from another hydrogen: its charge "
                "cannot be determined",
                "give charge and spin, or leave this frame out",
            )
        else:
            for rank, pair in enumerate(oxygens):
                # the nearest oxygen has it; a second one only where it shares the proton
                if rank == 0 or lengths[pair] <= MAX_SHARED_OH:
                    tie(int(pair))
    for atom, (_, pair) in mates.items():
        other = int(second[pair])
        if other not in mates or int(second[mates[other][1]]) != atom:
            raise LabelError(
                f"hydrogen {atom} is nearest to hydrogen {other}, but they are no H2: charges cannot be determined",
                "give charge and spin, or leave this frame out",
            )
        # each pair once
        if atom < other:
            tie(pair)
    close = np.flatnonzero((frame.numbers[first] == 8) & (frame.numbers[second] == 8) & (first <= second)).tolist()
    # before any of them is tied: each oxygen has one hydrogen, of which no other has a part, and one such neighbour
    alone = [len(mine) == 1 and len(bonds[mine[0][0]]) == 1 for mine in bonds.values()]
    neighbours = Counter(int(atom) for pair in close for atom in (first[pair], second[pair]))
    for pair in close:
        both = int(first[pair]), int(second[pair])
        if lengths[pair] > MAX_OO_BOND or not all(alone[atom] and neighbours[atom] == 1 for atom in both):
            raise LabelError(
                f"oxygens {both[0]} and {both[1]} are {lengths[pair]:.2f} Å apart, and no H2O2: their charge cannot be "
                "determined",
                "give charge and spin",
            )
        tie(pair)
    return bonds


def _unit(frame: Frame, start: int, bonds: dict[int, list[tuple[int, FloatArray]]]) -> Unit:
    """Follow the bonds from an atom, and unwrap the molecule where the cell's boundary divides it."""
    where = {start: frame.positions[start]}
    ahead = deque([start])
    while ahead:
        atom = ahead.popleft()
        for other, way in bonds[atom]:
            if other not in where:
                where[other] = where[atom] + way
                ahead.append(other)
            # two ways to one atom that end in different images: the molecule goes round the cell
            elif np.abs(where[other] - where[atom] - way).max() > 1e-6:
                raise LabelError(f"atom {other} is bound to its own image: the cell is too small to cut molecules from")
    atoms = sorted(where)
    oxygens = [atom for atom in atoms if frame.numbers[atom] == 8]
    hydrogens = len(atoms) - len(oxygens)
    for oxygen in oxygens:
        # a shared proton counts half for each of its oxygens
        count = sum(1.0 / len(bonds[other]) for other, _ in bonds[oxygen] if frame.numbers[other] == 1)
        if not 1 <= count <= 3:
            raise LabelError(
                f"oxygen {oxygen} has {count:g} hydrogens: its charge cannot be determined", "give charge and spin"
            )
    # oxidation numbers: +1 of H, -2 of O, and one less negative for a bond to another O; of H2 all are 0
    bound = sum(frame.numbers[other] == 8 for oxygen in oxygens for other, _ in bonds[oxygen])
    total = hydrogens - 2 * len(oxygens) + int(bound) if oxygens else 0
    return Unit(tuple(atoms), np.array([where[atom] for atom in atoms]), total)


def _nearest(ways: FloatArray, frame: Frame) -> FloatArray:
    """The shortest image of each vector."""
    if not any(frame.pbc):
        return ways
    from ase.geometry import find_mic

    # by ASE: in a skew cell rounding fractions does not always find the nearest image
    shortest: FloatArray = find_mic(ways, frame.cell, frame.pbc)[0]
    return shortest


def most_uncertain(force_spread: FloatArray) -> int:
    """The atom around which to cut; a spread that is not finite counts as the largest."""
    return int(np.where(np.isfinite(force_spread), force_spread, np.inf).argmax())
