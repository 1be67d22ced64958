"""One forcefield of i-PI with the potential and the state that serve it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.ipi.batching import Gather
from beadwork.ipi.beads import Beads
from beadwork.ipi.messages import PosData
from beadwork.ipi.steps import Pattern, Steps
from beadwork.ipi.transport import Line, Peer
from beadwork.potential.evaluation import Evaluation
from beadwork.potential.potential import Potential

#: by so many times an energy spread may grow before the spread of forces is looked at out of turn
ALARM = 2.0


@dataclass(eq=False)
class Service:
    """One forcefield of the simulation and the potential that serves it.

    numbers: (N,) atomic numbers of the atoms that i-PI sends. ring: structures requested at once, None where that
    varies. ring_polymer: they are the beads of one, in order. start: (K, N, 3) Å, the distinct structures of the file's
    start. folded: (3, 3) Å, the cell into which i-PI folds the atoms, None where it does not. servers: how many share
    the beads. One of several gets changing parts of a ring, so it can neither identify beads nor wait for a whole ring.
    pattern: the requests of every step, where known. one_result: see `ipi.steps`. force_spread_every: evaluations
    of the ring from one that computes the forces of all heads of a trunk to the next. forcefield: what systems call it.
    """

    line: Line
    potential: Potential
    numbers: IntArray
    ring: int | None
    ring_polymer: bool = True
    start: FloatArray | None = None
    periodic: bool = True
    member_forces: bool = False
    servers: int = 1
    folded: FloatArray | None = None
    pattern: Pattern | None = None
    one_result: bool = False
    force_spread_every: int = 10
    forcefield: str = ""
    steps: Steps = field(init=False)
    gather: Gather[Peer] = field(init=False)
    beads: Beads | None = field(init=False)
    waiting: dict[Peer, tuple[PosData, list[bytes]]] = field(default_factory=dict)
    left: bool = field(init=False, default=True)  # i-PI has hung up everywhere, or not come yet
    process: int | None = field(init=False, default=None)  # i-PI's, where it can be told
    told_joined: bool = field(init=False, default=False)
    _since: int = field(init=False, default=0)  # structures since the last look at the forces of all members began
    _looked: bool = field(init=False, default=False)  # whether the last evaluation was a part of one
    _calm: float = field(init=False, default=0.0)  # eV, the largest energy spread of the last one
    _of: Potential | None = field(init=False, default=None)  # which it was of

    def __post_init__(self) -> None:
        alone = self.servers == 1
        # one of several servers gets a share of the ring that changes, so it cannot wait until the ring is complete
        self.gather = Gather(self.ring if alone else None)
        if self.ring and self.ring_polymer and alone:
            # beads that start in one place cannot be told apart by where they are
            whole = self.start is not None and len(self.start) == self.ring
            self.beads = Beads(self.ring, self.start if whole else None)
        else:
            self.beads = None
        self.steps = Steps(
            self.pattern, self.start, folded=self.folded, servers=self.servers, one_result=self.one_result
        )

    def evaluate(self, frames: Sequence[Frame]) -> Evaluation:
        """Evaluate; members on one trunk say the spread of forces every `force_spread_every` evaluations of a ring.

        Where a ring comes in parts, such a look lasts until all of it has come: else it could always meet the same
        beads. Between two of these it is asked for at once where the energies' spread has grown `ALARM`-fold: so the
        safety thresholds see it before the answer leaves.
        """
        ring = self.ring or len(frames)
        # another committee: what was calm for the old one says nothing of it
        if self._of is not self.potential:
            self._since, self._of = 0, self.potential
        whole = self._since < ring
        answer = self.potential.evaluate(frames, self.member_forces, whole)
        spread = answer.spread
        if spread is not None and not spread.of_forces and spread.energy.max() > ALARM * self._calm:
            answer = self.potential.evaluate(frames)
            spread = answer.spread
            self._since = 0
        if spread is not None:
            # over all parts of one look, so that the calmest part of a ring does not set the level
            if spread.of_forces:
                self._calm = max(float(spread.energy.max()), self._calm if self._looked else 0.0)
            self._looked = spread.of_forces
        self._since = (self._since + len(frames)) % (self.force_spread_every * ring)
        return answer

    @property
    def dipole_jumps(self) -> bool:
        """Whether i-PI folds atoms into the cell, and the dipole that is sent changes by a quantum with each."""
        engines = [engine for role in self.potential.also for engine in role.engines]
        return self.folded is not None and self.periodic and any(engine.of_images for engine in engines)

    @property
    def joined(self) -> bool:
        """Whether i-PI had begun before we came."""
        return self.steps.joined
