"""Events of a running server, for the log, the status, the record and the metrics. Plain data; watchers change nothing.

Times are seconds of a monotonic clock, energies eV, forces eV/Å.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import INFO

#: the parts of a potential that may have a training set, with their names in messages
# the order counts: `serve.reply` pairs it with a potential's baseline and members
WHOSE = {"baseline": "the baseline", "delta": "Δ"}
#: an atom of a novelty above this is called new: it is beyond the edge of training (`potential.novelty`)
NOVELTY_EDGE = 1.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A position in i-PI's run.

    step: counted from the one that the simulation's file begins with, which is step 0 (a server that connected to an
    i-PI under way cannot know that, and counts from its own first); None where it is not known. blur: the step is this
    one or one of so many after it, since i-PI's outputs, from which it is read, are written with a stride.
    """

    step: int | None
    blur: int = 0

    @property
    def exact(self) -> int | None:
        """The step where it is known exactly, else None."""
        return None if self.blur else self.step


@dataclass(frozen=True, slots=True)
class Note:
    """A message for the log that is shown once: which backend was selected, a connection lost, a frame not kept.

    level: of the standard library's logging; WARNING where the user may have to do something.
    """

    text: str
    level: int = field(default=INFO, compare=False)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The result of one evaluation was sent.

    step, blur: see `Moment`. evaluated: distinct structures in it. energy: mean potential energy per structure.
    energy_spread: mean over the structures, None without a committee. force_spread: the largest of any atom. seconds:
    where the time went, by name ("idle" is i-PI's). element_spread: root mean square of the force spread over the atoms
    of an element in all structures, by its symbol. novelty: the largest of any atom, by the part that it is new to
    ('baseline', 'delta'); element_novelty: by the atom's symbol; new_structures, new_atoms: how many are above
    `NOVELTY_EDGE`.
    """

    address: str
    step: int | None
    evaluated: int
    energy: float
    energy_spread: float | None
    force_spread: float | None
    seconds: Mapping[str, float] = field(default_factory=dict)
    element_spread: Mapping[str, float] = field(default_factory=dict)
    blur: int = 0
    novelty: Mapping[str, float] = field(default_factory=dict)
    element_novelty: Mapping[str, float] = field(default_factory=dict)
    new_structures: int = 0
    new_atoms: int = 0


@dataclass(frozen=True, slots=True)
class FrameKept:
    """A frame is in the queue, committed. why: 'spread', 'novelty' or both."""

    row: int
    step: int | None
    bead: int | None
    force_spread: float
    why: tuple[str, ...] = ("spread",)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The queue cannot be written, and so many frames wait in memory; 0 frames: it can be written again."""

    frames: int
    why: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """A selected frame was lost: the queue is too slow, or cannot be written."""

    step: int | None


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Frames of one evaluation at or above a lower threshold that are not kept.

    why: 'above' the selection window, within the 'cooldown', beyond the 'limit', or 'alike' one kept before.
    force_spread: the largest of any of them, None where it is known of none.
    """

    step: int | None
    why: str
    frames: int
    force_spread: float | None


@dataclass(frozen=True, slots=True)
class Lost:
    """A connection to i-PI ended without EXIT and will be dialled again. left: the connections that remain."""

    address: str
    why: str
    left: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The first structures are not the file's start: i-PI was already under way, and its step is not known."""

    address: str


@dataclass(frozen=True, slots=True)
class Activated:
    """From this step on, this committee is evaluated at this address.

    step: None where it is not known. evaluation: the first with it, counted from 1. committee: the first digits of its
    hash, as in the extras; None where the models came from no bundles. folder: where its bundles lie. found: a message
    with the results of its verification.
    """

    address: str
    step: int | None
    committee: str | None
    folder: str
    found: str
    evaluation: int = 1


@dataclass(frozen=True, slots=True)
class Refused:
    """A new committee was not activated, and the old one goes on.

    folder: where the bundles of the old one lie. why: what is wrong with the new one, as a message.
    """

    folder: str
    why: str


@dataclass(frozen=True, slots=True)
class ThresholdPassed:
    """One structure exceeds a safety threshold, and the run goes on as the user chose (--on-mark count).

    kind: 'distance' (Å), 'force', 'spread' (eV/Å) or 'novelty'. bead: None where it is not known.
    """

    kind: str
    step: int | None
    bead: int | None
    value: float


Event = (
    Note
    | Joined
    | ThresholdPassed
    | Evaluated
    | FrameKept
    | PassedOver
    | Activated
    | Refused
    | Waiting
    | Dropped
    | Lost
)
