"""Find out to which step of i-PI a request belongs, and whether it is the first of that step.

i-PI's protocol does not say it. Two sources do: the input, where every step requests the same structures (`pattern`),
and i-PI's output files, where it runs on this machine (`written`). Where neither does, the step is unknown (None).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from beadwork.events import Moment
from beadwork.frame import FloatArray
from beadwork.ipi.beads import SAME_STRUCTURE
from beadwork.ipi.output_steps import Written
from beadwork.ipi.simulation import Simulation, Socket

#: motions, as `System.motions` has them, that request the forces of one ring in each of their time steps
RING_MOTIONS = {"nve", "nvt", "nvt-cc", "npt", "nst", "eda-nve", "eda-nvt"}
#: motions that request no forces
IDLE_MOTIONS = {"t_ramp", "p_ramp", "alchemy"}
#: motions whose steps together give one result: a Hessian from two committees would be of no potential at all
ONE_RESULT_MOTIONS = {"vibrations", "scp", "normalmodes"}


@dataclass(frozen=True, slots=True)
class Pattern:
    """How many distinct structures i-PI sends to one forcefield: for its start, and in each step after it."""

    start: int
    step: int


def pattern(simulation: Simulation, socket: Socket) -> Pattern | None:
    """Return how many structures each step sends to this forcefield; None where that varies or is not known.

    Dynamics request the beads of each component once in each of its time steps; a component with as many beads as
    another of the same forcefield requests the same structures. Finite differences (estimators among the outputs,
    Suzuki-Chin forces), trial moves, searches and `<ffrotations>` request more, and a component of weight 0 less.
    """
    if socket.rotated or socket.photons is not None or any(output.asks for output in simulation.outputs):
        return None
    name = socket.parent or socket.name
    start = step = 0
    for system in simulation.systems:
        rings = [motion for motion in system.motions if motion not in IDLE_MOTIONS]
        if not rings or not RING_MOTIONS.issuperset(rings):
            return None
        calls: dict[int, int] = {}  # a step, by beads
        for part in system.parts(name):
            levels = [level for level, weight in enumerate(part.mts_weights or (1.0,)) if weight]
            if not part.weight or not levels:
                return None  # an output may want it
            # a force at an inner level of multiple time steps is needed in every step of that level
            often = int(np.prod(system.nmts[: max(levels) + 1]))
            calls[part.nbeads] = max(often, calls.get(part.nbeads, 0))
        start += sum(calls)
        step += len(rings) * sum(beads * often for beads, often in calls.items())
    return Pattern(start, step) if step else None


def one_result(simulation: Simulation) -> bool:
    """Whether all steps together give one result, which must come from one potential."""
    return any(ONE_RESULT_MOTIONS.intersection(system.motions) for system in simulation.systems)


class Steps:
    """Counts the steps of one forcefield.

    start: (K, N, 3) Å, the distinct ones of all structures that i-PI begins with, None where they are not known.
    folded: (3, 3) Å, the cell into which i-PI folds the atoms, None where it does not. servers: how many share the
    beads; each of several sees only a part of each step. one_result: a step begins nowhere but at the file's start.
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
        self.joined = False  #: i-PI was under way when we connected
        self._start = start
        self._folded = folded
        self._alone = servers == 1
        self._step = 0
        self._seen: set[bytes] = set()  # fingerprints of the structures evaluated in this step
        self._asked: set[Any] = set()  # the connections served in this step
        self._wanted = 0  # distinct structures of this step
        self._at_first = False  # this step is the file's start
        self._collapsed = False  # the start has fewer distinct structures than are requested: all beads in one place
        self._sure = self._alone  # the count of structures shows where a step begins
        self._numbered = True  # our count of steps is i-PI's step number
        self._new = True  # nothing was evaluated for this i-PI yet
        self._last: Moment | None = None  # the moment in i-PI's outputs when we last read them
        self._begun = False  # this i-PI began at the file's start

    def restarted(self) -> None:
        """Another i-PI has replaced the last one (a RESTART): a step begins, but its number is not known."""
        self._new, self._numbered, self._sure, self._last = True, False, self._alone, None
        self._step += bool(self._seen)
        self._seen.clear()
        self._asked.clear()

    def returned(self, names: Sequence[bytes]) -> None:
        """All connections were lost and come again. If a structure was seen before, it is the same i-PI, which repeats
        its last requests; if not, it may be another one.
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

        names: their fingerprints, by which repeated structures are recognised (i-PI sends them again after a connection
        was lost). positions: (S, N, 3) Å. written: i-PI's outputs, where they can be read. ours: i-PI was started by
        us. The second value is None where that is not known.
        """
        new = self._new
        moment, begins = self._place(names, positions, peers, written, ours)
        # a RESTART contains what was done of the one result, so only the file's start begins another
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
        """The result of `count` for motions whose steps may each be of another potential."""
        new, self._new = self._new, False
        begins: bool | None = self._count(new, names, positions, peers, ours)
        sure = self._sure and self.pattern is not None
        if sure and self._numbered:
            return Moment(self._step), begins
        # when it may be another i-PI the count is not its step; a server that joined late goes on with its own count
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
        """Count by the number of structures in a step; return whether a step begins."""
        if self.pattern is None:
            return new
        # i-PI waits for all results before it goes on, so structures that arrive together are of one step
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
        """The first structures of an i-PI: of the file's start, of a RESTART, or from the middle of a run."""
        at_start = self._at_start(positions)
        known = 0 if self._start is None else len(self._start)
        self._wanted = pattern.start
        self._collapsed = at_start and known < pattern.start
        self._at_first = at_start and known <= pattern.start
        # the i-PI that we started begins at the file's start even where its positions cannot be compared
        if self._numbered and not (ours or at_start):
            self._sure = whole
            self.joined = known > 0
            self._numbered = not self.joined

    def _ends(self, positions: FloatArray, peers: Sequence[Any]) -> bool:
        """Whether the present step was complete before these structures came."""
        if self._at_first and not self._at_start(positions):
            return True
        if self._at_first and self._collapsed:
            return False
        if not self._alone:  # we see only a part of the beads: a connection that comes again belongs to the next step
            return bool(self._asked & set(peers))
        return len(self._seen) >= self._wanted

    def _at_start(self, positions: FloatArray) -> bool:
        """Whether all of these are structures of the file's start, to the rounding of a file or a contraction."""
        if self._start is None:
            return False
        for one in positions:
            apart = self._start - one
            if self._folded is not None:  # rounding may fold an atom on the border to the other side
                apart = apart - np.round(apart @ np.linalg.inv(self._folded)) @ self._folded
            if not (np.abs(apart).max(axis=(1, 2)) < SAME_STRUCTURE).any():
                return False
        return True
