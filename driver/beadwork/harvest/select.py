"""Which of the frames just evaluated are worth a label. Decides, and does nothing: no I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from beadwork.config import ServeConfig
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray, Frame
from beadwork.harvest.distance import Signature, distance, signature


@dataclass(frozen=True, slots=True)
class Band:
    """Between knowing and nonsense: the spreads for which a frame is worth a label.

    force_low, force_high: eV/Å, on the largest force spread of any atom. energy_low, energy_high: eV an atom, on the
    energy spread. A frame is in the band when it is at or above the low mark of ANY criterion that has one, and below
    EVERY high mark that is given: an exploded frame teaches nothing. Raises ConfigError where no low mark is given
    or the marks contradict each other.
    """

    force_low: float | None = None
    force_high: float | None = None
    energy_low: float | None = None
    energy_high: float | None = None

    @classmethod
    def of(cls, config: ServeConfig) -> Band:
        """The band that was configured; a mark that was not given is None."""
        return cls(*(*config.keep_force, None, None)[:2], *(*config.keep_energy, None, None)[:2])

    def __post_init__(self) -> None:
        if self.force_low is None and self.energy_low is None:
            raise ConfigError("the band has no low mark, so no frame would be kept; give force_low or energy_low")
        for name, low, high in (
            ("force", self.force_low, self.force_high),
            ("energy", self.energy_low, self.energy_high),
        ):
            for mark, value in ((f"{name}_low", low), (f"{name}_high", high)):
                if value is not None and not (math.isfinite(value) and value >= 0):
                    raise ConfigError(f"{mark} of the band is {value}; give a number that is not negative")
            if low is not None and high is not None and low >= high:
                raise ConfigError(f"{name}_low of the band is {low}, {name}_high {high}; the low mark must be lower")

    def place(self, force_spread: float, energy_spread: float) -> Verdict:
        """Say where a frame lies: KEEP stands for in the band. A spread that is not finite lies above."""
        given = ((force_spread, self.force_low, self.force_high), (energy_spread, self.energy_low, self.energy_high))
        if not (math.isfinite(force_spread) and math.isfinite(energy_spread)):
            return Verdict.ABOVE
        if any(high is not None and value >= high for value, _, high in given):
            return Verdict.ABOVE
        if any(low is not None and value >= low for value, low, _ in given):
            return Verdict.KEEP
        return Verdict.BELOW


class Verdict(Enum):
    """What became of a frame."""

    KEEP = "kept"
    BELOW = "below the band"
    ABOVE = "above the band"
    COOLDOWN = "cooling down"
    LIMIT = "limit of the run reached"
    TWICE = "like one already kept"


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What is to be done with frame number `index` of those considered; `signature` is there for frames kept."""

    index: int
    verdict: Verdict
    signature: Signature | None = None

    @property
    def keep(self) -> bool:
        """True where the frame is to be kept."""
        return self.verdict is Verdict.KEEP


@dataclass(slots=True)
class Selector:
    """Remembers what was kept in this run and decides about the next frames.

    band: see `Band`. cooldown: after a frame was kept, all others of its step and of the steps less than this many
    later are passed over, whatever their bead: neighbouring beads and steps teach the same. 0 keeps all there are.
    limit: frames a run at most, None for no limit. min_distance: Å, a frame closer than this to one already kept is
    the same frame (see `distance`).

    The distance is computed only for frames that have passed all the rest.
    """

    band: Band
    cooldown: int = 0
    limit: int | None = None
    min_distance: float = 0.03
    _known: list[Signature] = field(default_factory=list)
    _elsewhere: list[Signature] = field(default_factory=list)
    _last_step: int | None = None

    def __post_init__(self) -> None:
        if self.cooldown < 0:
            raise ConfigError(f"the cool-down is {self.cooldown} steps; give 0 or more")
        if self.limit is not None and self.limit < 0:
            raise ConfigError(f"the limit is {self.limit} frames a run; give 0 or more")
        if not (math.isfinite(self.min_distance) and self.min_distance >= 0):
            raise ConfigError(f"the smallest distance is {self.min_distance} Å; give a number that is not negative")

    @property
    def kept(self) -> int:
        """Frames of this run that are kept, those of earlier processes included."""
        return len(self._known)

    def seed(self, frames: Iterable[Frame], elsewhere: Iterable[Frame] = ()) -> None:
        """Take in frames that the queue holds already: those from this run count for the limit and as known, those from
        elsewhere as known."""
        self._known.extend(signature(frame) for frame in frames)
        self._elsewhere.extend(signature(frame) for frame in elsewhere)

    def consider(
        self, step: int, frames: Sequence[Frame], max_force_spread: FloatArray, energy_spread: FloatArray
    ) -> list[Decision]:
        """Decide about the S frames of one evaluation, the most uncertain first.

        max_force_spread: (S,) eV/Å. energy_spread: (S,) eV an atom. step: any count that grows with the
        simulation; one that goes backwards (a simulation restarted) ends the cool-down. Returns S decisions in the
        order of the frames. A frame decided to be kept counts as kept until `forget` is told otherwise.
        """
        decisions: list[Decision] = []
        for index in map(int, np.argsort(-max_force_spread, kind="stable")):
            decisions.append(
                self._judge(index, step, frames[index], float(max_force_spread[index]), float(energy_spread[index]))
            )
        return sorted(decisions, key=lambda decision: decision.index)

    def forget(self, decision: Decision) -> None:
        """Take a decision to keep back: the frame could not be stored, so a later one like it is welcome."""
        self._known = [known for known in self._known if known is not decision.signature]

    def _judge(self, index: int, step: int, frame: Frame, force_spread: float, energy_spread: float) -> Decision:
        place = self.band.place(force_spread, energy_spread)
        if place is not Verdict.KEEP:
            return Decision(index, place)
        if self._last_step is not None and 0 <= step - self._last_step < self.cooldown:
            return Decision(index, Verdict.COOLDOWN)
        if self.limit is not None and self.kept >= self.limit:
            return Decision(index, Verdict.LIMIT)
        sign = signature(frame)
        if any(distance(sign, known) < self.min_distance for known in (*self._known, *self._elsewhere)):
            return Decision(index, Verdict.TWICE)
        self._known.append(sign)
        self._last_step = step
        return Decision(index, Verdict.KEEP, sign)
