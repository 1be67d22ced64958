"""One forcefield of i-PI's and what answers it."""

from __future__ import annotations

from dataclasses import dataclass, field

from beadwork.frame import FloatArray, IntArray
from beadwork.ipi.batching import Gather
from beadwork.ipi.beads import Beads
from beadwork.ipi.messages import PosData
from beadwork.ipi.steps import Pattern, Steps
from beadwork.ipi.transport import Line, Peer
from beadwork.potential.potential import Potential


@dataclass(eq=False)
class Service:
    """One forcefield of the simulation and the potential that answers it.

    numbers: (N,) atomic numbers of the atoms that travel. ring: structures that are asked for at once, None where that
    differs. ring_polymer: they are the beads of one, in order. start: (K, N, 3) Å, the distinct ones of them at the
    file's start. folded: (3, 3) Å, the cell into which i-PI folds the atoms, None where it does not. servers: how many
    share them. One of several gets now this part and now that, as the others come and go, so it cannot tell which bead
    is which, nor wait for a whole ring. pattern: what every step asks for, where it is known. one_result: see
    `ipi.steps`.
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
    steps: Steps = field(init=False)
    gather: Gather[Peer] = field(init=False)
    beads: Beads | None = field(init=False)
    waiting: dict[Peer, tuple[PosData, list[bytes]]] = field(default_factory=dict)
    left: bool = field(init=False, default=True)  # i-PI has hung up everywhere, or not come yet
    process: int | None = field(init=False, default=None)  # i-PI's, where it can be told
    told_joined: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        alone = self.servers == 1
        self.gather = Gather(self.ring if alone else None)
        if self.ring and self.ring_polymer and alone:
            whole = self.start is not None and len(self.start) == self.ring
            self.beads = Beads(self.ring, self.start if whole else None)
        else:
            self.beads = None
        self.steps = Steps(
            self.pattern, self.start, folded=self.folded, servers=self.servers, one_result=self.one_result
        )

    @property
    def joined(self) -> bool:
        """Whether i-PI had begun before we came."""
        return self.steps.joined
