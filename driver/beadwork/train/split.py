"""Choose the held-out frames: by simulation and block of time, never within a given number of steps of training frames.

Consecutive frames of one simulation are alike: a test a few steps from a training frame tests nothing, and a hundred of
them are not a hundred independent tests. So frames are held out in blocks. A block is a part of one simulation without
a gap of `apart` steps, cut into pieces of MAX_BLOCK_LENGTH times `apart` steps where it is longer; a whole simulation
where the steps are not known; and a frame by itself where the simulation is not. Equal structures, wherever they come
from, are in one block. At the borders of a held-out piece, frames closer than `apart` steps are neither trained on nor
tested on. Periodic frames, beads and clusters count alike: beads of one step are 0 steps apart.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from beadwork.frame import IntArray
from beadwork.train.dataset import Dataset, Example, KnownFrame
from beadwork.train.duplicates import firsts

#: steps of a simulation: 50 fs where a step is 0.5 fs, about the time of a libration of a water molecule
APART = 100
#: in units of `apart`: a block of time is cut to at most the first, and never below the second
MAX_BLOCK_LENGTH, MIN_BLOCK_LENGTH = 10, 2


def split(
    examples: Sequence[Example], fraction: float, seed: int, before: Sequence[KnownFrame] = (), apart: int = APART
) -> tuple[bool | None, ...]:
    """For each example: True where it is held out, False where it is for training, None where it is used for neither.

    Held out is every k-th block, with the blocks ordered by size (in powers of two), solute, composition and a seeded
    shuffle: so each of these is held out in proportion, as far as blocks allow. A block of more than twice the wanted
    number of frames stays in training. None: closer than `apart` steps to the other side. before: the frames of earlier
    generations (`Dataset.past`). They stay where they were, since a frame that was once trained on is no test, and a
    new frame beside one goes to the same side.
    """
    kind = firsts([*(m.frame for m in before), *(e.frame for e in examples)])
    before = _loose(_placed(before, examples, kind), examples)
    met = [*before, *(e.known_frame(False) for e in examples)]
    unit = _joined(kind, blocks(met, apart, least=2 / fraction if fraction else 1))
    fixed: dict[int, bool] = {}
    for n, one in enumerate(before):
        # a frame that any earlier generation learned from is no test any more
        fixed[kind[n]] = fixed.get(kind[n], True) and one.held_out
    members: dict[int, list[int]] = {}
    for n in range(len(before), len(met)):
        # by kind: equal structures have one side, however often they occur
        if kind[n] not in fixed:
            members.setdefault(unit[n], []).append(n)
    old: dict[int, list[int]] = {}
    for n in range(len(met)):
        if kind[n] in fixed:
            old.setdefault(unit[n], []).append(n)
    mark = dict(fixed)
    # new frames of a block with frames of earlier generations go where the nearest of those are; in doubt, to training
    for name in members.keys() & old.keys():
        for n in members.pop(name):
            nearest = min(old[name], key=lambda m: (_distance(met[n], met[m]), fixed[kind[m]]))
            mark[kind[n]] = fixed[kind[nearest]]
    first = {name: examples[several[0] - len(before)] for name, several in members.items()}
    kinds = {name: {kind[n] for n in several} for name, several in members.items()}

    def place(name: int) -> tuple[object, ...]:
        e = first[name]
        return len(kinds[name]).bit_length(), e.solute, e.composition, _hash(f"{seed} {e.hash}")

    # a block that is too large to hold out leaves its turn to the next one (`owed`)
    most, owed = max(1.0, 2 * fraction * sum(map(len, kinds.values()))), 0
    # the phase depends on the seed, or every seed would hold out the same of few blocks; at least one is held out
    phase = max(int(_hash(str(seed))[:8], 16) / 2**32, 1 - fraction * len(members))
    for number, name in enumerate(sorted(members, key=place)):
        owed += int((number + 1) * fraction + phase) - int(number * fraction + phase)
        out = owed > 0 and len(kinds[name]) <= most
        owed -= out
        mark |= dict.fromkeys(kinds[name], out)
    # new frames only: those of earlier generations keep their side even where they are close to the other
    learned = [m for n, m in enumerate(met) if fixed.get(kind[n]) is False]
    lost = {kind[n] for n, near in enumerate(_near(met, learned, apart)) if near and mark[kind[n]]} - fixed.keys()
    # what was lost as a test makes none of its neighbours a loss
    tests = [m for n, m in enumerate(met) if mark[kind[n]] and kind[n] not in lost]
    lost |= {kind[n] for n, near in enumerate(_near(met, tests, apart)) if near and not mark[kind[n]]} - fixed.keys()
    return tuple(None if k in lost else mark[k] for k in kind[len(before) :])


def blocks(met: Sequence[KnownFrame | Example], apart: int, least: float = 1) -> IntArray:
    """Number of the block of each frame; pieces of a simulation are shorter where there would be less than `least`."""
    if apart == 0:
        return np.arange(len(met))
    simulations: dict[str, list[int]] = {}
    for n, one in enumerate(met):
        if one.simulation is not None:
            simulations.setdefault(one.simulation, []).append(n)
    length = MAX_BLOCK_LENGTH * apart
    while True:
        found = np.arange(len(met))
        for several in simulations.values():
            found[several] = several[0] + _pieces([met[n].step for n in several], apart, length)
        # one simulation of a few hundred steps would else be one block, with nothing to test on
        if len(np.unique(found)) >= least or length // 2 < MIN_BLOCK_LENGTH * apart:
            return found
        length //= 2


def unseen(examples: Sequence[Example], dataset: Dataset, apart: int = APART) -> list[Example]:
    """Those that a committee has not learned from, nor from a frame closer than `apart` steps."""
    learned = [m for m in dataset.past if not m.held_out]
    kind = firsts([*(m.frame for m in learned), *(e.frame for e in examples)])
    near = _near(examples, _placed(learned, examples, kind), apart)
    here = kind[len(learned) :]
    return [e for e, first, close in zip(examples, here, near, strict=True) if first >= len(learned) and not close]


def _placed(met: Sequence[KnownFrame], examples: Sequence[Example], kind: Sequence[int]) -> list[KnownFrame]:
    """What was met, with simulation and step of the equal example where it lacks them. kind: `firsts` of both.

    Steps were not always written: a dataset.json of the first committees has none.
    """
    known: dict[int, list[Example]] = {}
    for e, k in zip(examples, kind[len(met) :], strict=True):
        if e.step is not None:
            known.setdefault(k, []).append(e)
    found = []
    for one, k in zip(met, kind, strict=False):
        same = [e for e in known.get(k, ()) if one.simulation in (None, e.simulation)] if one.step is None else []
        found.append(replace(one, simulation=same[0].simulation, step=same[0].step) if same else one)
    return found


def _loose(before: Sequence[KnownFrame], examples: Sequence[Example]) -> list[KnownFrame]:
    """What was met, without its simulation where that would lay every frame of it beside one of unknown step.

    That is one whose other frames have steps, or lie on both sides already, as they did before there were blocks:
    nothing tells which of the new ones are near, and to leave them all out would be to learn nothing.
    """
    steps = {m.simulation for m in before if m.step is not None} | {
        e.simulation for e in examples if e.step is not None
    }
    sides = {held: {one.simulation for one in before if one.held_out is held} for held in (True, False)}
    loose = steps | (sides[True] & sides[False])
    return [replace(one, simulation=None) if one.step is None and one.simulation in loose else one for one in before]


def _pieces(steps: Sequence[int | None], apart: int, length: int) -> IntArray:
    """Number of the piece of each step of one simulation: less than that of steps, all 0 where some are not known."""
    known = np.array([step for step in steps if step is not None], dtype=np.int_)
    if len(known) < len(steps):
        return np.zeros(len(steps), dtype=np.int_)
    order = known.argsort(kind="stable")
    run = np.cumsum(np.diff(known[order], prepend=known[order[0]]) >= apart)
    names = np.empty(len(steps), dtype=np.int_)
    used = 0
    for number in range(run[-1] + 1):
        mine = order[run == number]
        start, span = known[mine[0]], known[mine[-1]] - known[mine[0]] + 1
        # pieces of equal length, as few as `length` allows
        _, piece = np.unique((known[mine] - start) * -(-span // length) // span, return_inverse=True)
        names[mine] = used + piece
        used += int(piece.max()) + 1
    return names


def _joined(kind: Sequence[int], block: IntArray) -> list[int]:
    """The same number for all frames that are connected by equal structures or blocks (union-find)."""
    parent = list(range(len(kind)))

    def root(n: int) -> int:
        while parent[n] != n:
            # halves the way to the root each time, so that long chains stay quick
            parent[n] = n = parent[parent[n]]
        return n

    first: dict[int, int] = {}
    for n, (k, b) in enumerate(zip(kind, block.tolist(), strict=True)):
        for other in (k, first.setdefault(b, n)):
            parent[root(n)] = root(other)
    return [root(n) for n in range(len(kind))]


def _distance(one: KnownFrame | Example, other: KnownFrame | Example) -> float:
    """Steps between two frames; 0 in one simulation whose steps are not known, infinity for two simulations."""
    if one.simulation is None or one.simulation != other.simulation:
        return np.inf
    return 0.0 if one.step is None or other.step is None else abs(one.step - other.step)


def _near(some: Sequence[KnownFrame | Example], others: Sequence[KnownFrame], apart: int) -> list[bool]:
    """Whether each is closer than `apart` steps to one of the others."""
    steps: dict[str, list[int]] = {}
    unknown: set[str] = set()
    for one in others:
        if one.simulation is not None:
            steps.setdefault(one.simulation, []).extend([] if one.step is None else [one.step])
            unknown |= {one.simulation} if one.step is None else set()
    for several in steps.values():
        several.sort()

    def near(one: KnownFrame | Example) -> bool:
        if apart == 0 or one.simulation is None or one.simulation not in steps:
            return False
        # it may be anywhere in that simulation, so it counts as near
        if one.step is None or one.simulation in unknown:
            return True
        # sorted: only the neighbours on both sides can be the nearest
        several = steps[one.simulation]
        at = bisect_left(several, one.step)
        return any(abs(step - one.step) < apart for step in several[max(0, at - 1) : at + 1])

    return [near(one) for one in some]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
