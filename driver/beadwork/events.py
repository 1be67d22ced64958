"""What a server tells those who watch it. Plain data; watchers change nothing.

Times are seconds of a monotonic clock, energies eV, forces eV/Å.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person should read once: which engine was chosen, a connection lost, a frame set aside."""

    text: str


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation has been answered.

    step: complete rings answered before this one, the start structure being step 0. requested: distinct structures in
    it. evaluated: structures that a model saw. energy: mean potential energy a structure. energy_spread: mean over
    the structures, None without a committee. force_spread: the largest of any atom. seconds: where the time went, by
    name ("idle" is i-PI's).
    """

    address: str
    step: int
    requested: int
    evaluated: int
    energy: float
    energy_spread: float | None
    force_spread: float | None
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kept:
    """A frame is in the queue, committed."""

    row: int
    step: int
    bead: int | None
    force_spread: float


Event = Note | Evaluated | Kept
