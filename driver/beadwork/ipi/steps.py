"""Which step of i-PI's an answer belongs to, and whether it is the first of that step. The wire says neither.

Two know it: the input, where every step asks for the same structures (`pattern`), and what i-PI writes, where it runs
on this machine (`written`). Where neither does, nothing is said of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from beadwork.events import Moment
from beadwork.frame import FloatArray
from beadwork.ipi.beads import SAME
from beadwork.ipi.output_steps import Written
from beadwork.ipi.simulation import Simulation, Socket

#: motions, as `System.motions` has them, that ask for one ring in each of their time steps
RING = {"nve", "nvt", "nvt-cc", "npt", "nst", "eda-nve", "eda-nvt"}
#: and those that ask for nothing
NOTHING = {"t_ramp", "p_ramp", "alchemy"}
#: those whose steps are parts of one result: a Hessian of two committees would be nobody's
RESULT = {"vibrations", "scp", "normalmodes"}


@dataclass(frozen=True, slots=True)
class Pattern:
    """How many distinct structures i-PI sends to one forcefield: for its start, and in each step after it."""

    start: int
    step: int


def pattern(simulation: Simulation, socket: Socket) -> Pattern | None:
    """Return what each step sends to this forcefield; None where that differs from step to step, or is not known.

    Dynamics ask once for the beads of each component in each of its time steps; a component with as many beads as
    another of the same forcefield asks for the same structures. Finite differences (estimators among the outputs,
    Suzuki-Chin forces), trial moves, searches and `<ffrotations>` ask for more, and what has no weight for less.
    """
    if socket.rotated or socket.photons is not None or any(output.asks for output in simulation.outputs):
        return None
    name = socket.parent or socket.name
    start = step = 0
    for system in simulation.systems:
        rings = [motion for motion in system.motions if motion not in NOTHING]
        if not rings or not RING.issuperset(rings):
            return None
        calls: dict[int, int] = {}  # a step, by beads
        for part in system.parts(name):
            levels = [level for level, weight in enumerate(part.mts_weights or (1.0,)) if weight]
            if not part.weight or not levels:
                return None  # an output may want it
            often = int(np.prod(system.nmts[: max(levels) + 1]))
            calls[part.nbeads] = max(often, calls.get(part.nbeads, 0))
        start += sum(calls)
        step += len(rings) * sum(beads * often for beads, often in calls.items())
    return Pattern(start, step) if step else None


def one_result(simulation: Simulation) -> bool:
    """Whether all steps together make one result, which is to be of one potential."""
    return any(RESULT.intersection(system.motions) for system in simulation.systems)


class Steps:
    """Counts the steps of one forcefield.

    start: (K, N, 3) Å, the distinct ones of all structures that i-PI begins with, None where they are not known.
    folded: (3, 3) Å, the cell into which i-PI folds the atoms, None where it does not. servers: how many share the
    beads; one of several sees a part of each step. one_result: nothing begins but with the file's start.
    """

    def __init__(
        self,
        pattern: Pattern | None,
        start: FloatArray | None = None,
        *,
        folded: FloatArray | None = None,
        servers: int = 1,
        one_result: bool = False,
    ) -> None:
        self.pattern = pattern
        self._one_result = one_result
        self.joined = False  #: i-PI had begun before we came
        self._start = start
        self._folded = folded
        self._alone = servers == 1
        self._step = 0
        self._seen: set[bytes] = set()  # fingerprints of the structures answered in this step
        self._asked: set[Any] = set()  # the connections that were answered in this step
        self._wanted = 0  # distinct structures of this step
        self._at_first = False  # this step is the file's start
        self._collapsed = False  # which has fewer distinct structures than are asked for
        self._sure = self._alone  # a step begins where the count of structures says so
        self._numbered = True  # it has the number that the count of steps says
        self._new = True  # nothing was answered of this i-PI yet
        self._last: Moment | None = None  # what i-PI had written when we last looked
        self._begun = False  # it begins with the file's start

    def restarted(self) -> None:
        """Another i-PI has come in place of the last one: it begins a step, which may be any."""
        self._new, self._numbered, self._sure, self._last = True, False, self._alone, None
        self._step += bool(self._seen)
        self._seen.clear()
        self._asked.clear()

    def returned(self, names: Sequence[bytes]) -> None:
        """All connections were lost. The i-PI that asks for these is the same if it sends something again, and may be
        another if not.
        """
        if self._seen.isdisjoint(names):
            self._sure = self._numbered = False

    def count(
        self,
        names: Sequence[bytes],
        positions: FloatArray,
        peers: Sequence[Any] = (),
        written: Written | None = None,
        *,
        ours: bool = False,
    ) -> tuple[Moment, bool | None]:
        """Count these structures of these connections; return their moment, and whether a step begins with them.

        names: their fingerprints, by which is known what i-PI sends again, as its connection was lost. positions:
        (S, N, 3) Å. written: what i-PI writes, where that can be read. ours: i-PI was started by us. The second is None
        where nobody can tell.
        """
        new = self._new
        moment, begins = self._place(names, positions, peers, written, ours)
        # a RESTART has what was done of the one result, so only the file's start begins another
        kept = begins and self._one_result and not (new and self._at_start(positions))
        return moment, None if kept else begins

    def _place(
        self,
        names: Sequence[bytes],
        positions: FloatArray,
        peers: Sequence[Any],
        written: Written | None,
        ours: bool,
    ) -> tuple[Moment, bool | None]:
        """What `count` says where each step may be of another potential."""
        new, self._new = self._new, False
        begins: bool | None = self._count(new, names, positions, peers, ours)
        sure = self._sure and self.pattern is not None
        if sure and self._numbered:
            return Moment(self._step), begins
        # once it may be another i-PI the count says nothing; a count of what we have answered goes on
        counted = self.pattern is not None and (self._numbered or self.joined)
        moment = Moment(self._step if counted else None)
        if written is not None:
            moment = written.look()
            if new:
                self._begun = ours or self._start is None or self._at_start(positions)
            if moment.step == 0 and not self._begun:
                moment = Moment(None)  # nothing is written, and it does not begin with the file's start
            last, self._last = self._last, moment
            if not sure:
                grown = last is not None and moment.step is not None and moment != last
                begins = new or grown or (None if moment.step is None else False)
        elif not sure:
            begins = new or None
        return moment, begins if self._alone else None

    def _count(
        self, new: bool, names: Sequence[bytes], positions: FloatArray, peers: Sequence[Any], ours: bool
    ) -> bool:
        """Count by what a step asks for; return whether a step begins."""
        if self.pattern is None:
            return new
        # i-PI waits for all that it has sent before it goes on, so what comes at once is of one step
        whole = self._alone and len(names) == self.pattern.step == self.pattern.start
        if new:
            self._begin(self.pattern, positions, ours, whole)
        elif not self._seen.issuperset(names) and (self._ends(positions, peers) or (whole and not self._sure)):
            self._step += 1
            self._wanted = self.pattern.step
            self._at_first, self._sure = False, self._sure or whole
            self._seen.clear()
            self._asked.clear()
            new = True
        self._seen.update(names)
        self._asked.update(peers)
        return new

    def _begin(self, pattern: Pattern, positions: FloatArray, ours: bool, whole: bool) -> None:
        """The first of an i-PI's structures have come: of the file's start, of a RESTART, or from its midst."""
        at_start = self._at_start(positions)
        known = 0 if self._start is None else len(self._start)
        self._wanted = pattern.start
        self._collapsed = at_start and known < pattern.start
        self._at_first = at_start and known <= pattern.start
        if self._numbered and not (ours or at_start):  # a restarted one, which is not numbered, begins anew
            self._sure = whole
            self.joined = known > 0
            self._numbered = not self.joined

    def _ends(self, positions: FloatArray, peers: Sequence[Any]) -> bool:
        """Whether the step that is being answered was over before these came."""
        if self._at_first and not self._at_start(positions):
            return True
        if self._at_first and self._collapsed:
            return False
        if not self._alone:
            return bool(self._asked & set(peers))
        return len(self._seen) >= self._wanted

    def _at_start(self, positions: FloatArray) -> bool:
        """Whether all of these are structures of the file's start, to the rounding of a file or a contraction."""
        if self._start is None:
            return False
        for one in positions:
            apart = self._start - one
            if self._folded is not None:  # by a whole cell, where an atom lies on the border
                apart = apart - np.round(apart @ np.linalg.inv(self._folded)) @ self._folded
            if not (np.abs(apart).max(axis=(1, 2)) < SAME).any():
                return False
        return True
