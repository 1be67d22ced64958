"""What a server tells those who watch it. Plain data; watchers change nothing.

Times are seconds of a monotonic clock, energies eV, forces eV/Å.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: the parts of a potential that may know what they were trained on, as a person calls them
WHOSE = {"baseline": "the baseline", "delta": "Δ"}


@dataclass(frozen=True, slots=True)
class Moment:
    """Where in i-PI's run something belongs.

    step: counted from the one that the simulation's file begins with, that start being step 0 (by a server that came to
    an i-PI under way, and cannot know that, from its own first); None where it is not known. blur: the step is this one
    or one of so many after it, as i-PI's outputs are written with a stride.
    """

    step: int | None
    blur: int = 0

    @property
    def exact(self) -> int | None:
        """The step where it is known, and None where it is blurred."""
        return None if self.blur else self.step


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person should read once: which engine was chosen, a connection lost, a frame set aside."""

    text: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation has been answered.

    step, blur: see `Moment`. evaluated: distinct structures in
    it. energy: mean potential energy a structure. energy_spread: mean over the structures, None without a committee.
    force_spread: the largest of any atom. seconds: where the time went, by name ("idle" is i-PI's). element_spread:
    root mean square of the force spread over the atoms of an element in all structures, by its symbol. novelty: the
    largest of any atom, by the part that it is new to ('baseline', 'delta'); element_novelty: by the atom's symbol;
    new_structures, new_atoms: how many are above `potential.novelty.NOVELTY_EDGE`.
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
class Kept:
    """A frame is in the queue, committed. why: 'spread', 'novelty' or both."""

    row: int
    step: int | None
    bead: int | None
    force_spread: float
    why: tuple[str, ...] = ("spread",)


@dataclass(frozen=True, slots=True)
class Waiting:
    """So many frames wait in memory, because the queue cannot be written, and why; none of them: it can be again."""

    frames: int
    why: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """A frame worth keeping could not be: the queue does not keep up, or cannot be written."""

    step: int | None


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Frames of one evaluation that were worth a look and are not kept.

    why: 'above' the band, within the 'cooldown', beyond the 'limit', or 'alike' one kept before. force_spread: the
    largest of any of them.
    """

    step: int | None
    why: str
    frames: int
    force_spread: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A connection to i-PI has ended without EXIT, and will be dialled again. left: how many are still there."""

    address: str
    why: str
    left: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The first structures that came are not the file's start: i-PI was under way, and its step is not known."""

    address: str


@dataclass(frozen=True, slots=True)
class TakenUp:
    """From this step on, this committee answers at this address.

    step: None where it is not known. evaluation: the first that it answers, counted from 1. committee: the first digits
    of its hash, as the extras have it; None where the models came from no bundles. folder: where its bundles lie.
    found: what was found out before, in words.
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
    """One structure of an answer has passed one of the guard's marks, and the run goes on as the user chose.

    kind: 'distance' (Å), 'force', 'spread' (eV/Å) or 'novelty'. bead: None where it is not known.
    """

    kind: str
    step: int | None
    bead: int | None
    value: float


Event = Note | Joined | ThresholdPassed | Evaluated | Kept | PassedOver | TakenUp | Refused | Waiting | Dropped | Lost
