"""Which of the frames just evaluated are worth a label. Decides, and does nothing: no I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from beadwork.config import ServeConfig
from beadwork.errors import ConfigError
from beadwork.events import Moment
from beadwork.frame import FloatArray, Frame
from beadwork.harvest.distance import Signature, distance, signature

#: eV/Å: the low mark where neither the user nor the committee's card gives one
LOW = 0.05
#: why a frame that was worth a look is not kept (`events.PassedOver`)
Why = Literal["above", "cooldown", "limit", "alike"]


@dataclass(frozen=True, slots=True)
class Band:
    """Between knowing and nonsense: the spreads for which a frame is worth a label.

    force_low, force_high: eV/Å, on the largest force spread of any atom. energy_low, energy_high: eV/atom, on the
    energy spread. novelty_low: on the largest novelty of any atom. A frame is in the band when it is at or above the
    low mark of ANY criterion that has one, and below EVERY high mark that is given: an exploded frame teaches nothing.
    Raises ConfigError where no low mark is given or the marks contradict each other.
    """

    force_low: float | None = None
    force_high: float | None = None
    energy_low: float | None = None
    energy_high: float | None = None
    novelty_low: float | None = None

    @classmethod
    def of(cls, config: ServeConfig, usual: float | None = None) -> Band:
        """The band that was configured; a mark that was not given is None.

        Where nothing is said of forces it is from `usual`, the force spread that the committee itself has on frames
        like those it learned from (`LOW` where that is not known), up to the guard's mark.
        """
        force_low, force_high = (*force_marks(config, usual), None, None)[:2]
        energy_low, energy_high = (*config.keep_energy, None, None)[:2]
        novelty_low = config.keep_novelty if math.isfinite(config.keep_novelty) else None
        return cls(force_low, force_high, energy_low, energy_high, novelty_low)

    def __post_init__(self) -> None:
        if self.force_low is None and self.energy_low is None and self.novelty_low is None:
            raise ConfigError(
                "the band has no low mark, so no frame would be kept; give force_low, energy_low or novelty_low"
            )
        for name, low, high in (
            ("force", self.force_low, self.force_high),
            ("energy", self.energy_low, self.energy_high),
        ):
            for mark, value in ((f"{name}_low", low), (f"{name}_high", high)):
                if value is not None and not (math.isfinite(value) and value >= 0):
                    raise ConfigError(f"{mark} of the band is {value}; give a number that is not negative")
            if low is not None and high is not None and low >= high:
                raise ConfigError(f"{name}_low of the band is {low}, {name}_high {high}; the low mark must be lower")

    def place(
        self, force_spread: FloatArray, energy_spread: FloatArray, novelty: FloatArray | float = 0.0
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(S,) and (S,): which of S frames are in the band, and which above it, as one is whose spread is not finite.
        The others are below."""
        marks = (self.force_low, self.energy_low, self.novelty_low, self.force_high, self.energy_high)
        low, energy_low, new, high, energy_high = (np.inf if mark is None else mark for mark in marks)
        enough = (force_spread >= low) | (energy_spread >= energy_low) | (novelty >= new)
        too_much = (force_spread >= high) | (energy_spread >= energy_high)
        too_much |= ~(np.isfinite(force_spread) & np.isfinite(energy_spread))
        return enough & ~too_much, too_much

    def excess(
        self, force_spread: FloatArray, energy_spread: FloatArray, novelty: FloatArray | float = 0.0
    ) -> FloatArray:
        """(S,): by how many times each frame passes the low mark that it passes furthest."""
        marks = ((self.force_low, force_spread), (self.energy_low, energy_spread), (self.novelty_low, novelty))
        found = np.zeros(len(force_spread))
        for mark, value in marks:
            if mark is not None:
                found = np.fmax(found, np.asarray(value) / max(mark, 1e-12))
        return found

    def reasons(self, force_spread: float, energy_spread: float, novelty: float = 0.0) -> tuple[str, ...]:
        """What a frame in the band is kept for: 'spread', 'novelty' or both."""
        spread = (self.force_low is not None and force_spread >= self.force_low) or (
            self.energy_low is not None and energy_spread >= self.energy_low
        )
        new = self.novelty_low is not None and novelty >= self.novelty_low
        return ("spread",) * spread + ("novelty",) * new


def force_marks(config: ServeConfig, usual: float | None) -> list[float]:
    """`keep-force` as it was given, or as it follows from the committee."""
    return usual_band(usual, config.mark_spread) if config.keep_force is None else config.keep_force


def usual_band(usual: float | None, mark: float) -> list[float]:
    """The marks of `keep-force` that nobody gave: from `usual`, or LOW, to the guard's mark, where that is higher."""
    low = LOW if usual is None else usual
    return [low, mark] if low < mark < math.inf else [low]


@dataclass(frozen=True, slots=True)
class Choice:
    """What became of the frames of one evaluation, but for those below the band: each is in one of these.

    kept: places and signatures, in their order. passed: places of the others, by the reason.
    """

    kept: list[tuple[int, Signature]]
    passed: dict[Why, list[int]]


@dataclass(slots=True)
class Selector:
    """Remembers what was kept in this run and decides about the next frames.

    band: see `Band`. cooldown: after a frame was kept, all others of its step and of the steps less than this many
    later are passed over, whatever their bead: neighbouring beads and steps teach the same. 0 keeps all there are.
    Where a step is known within a blur only, it is as many after the last one as are sure.
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
    _last: Moment | None = None

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
        self,
        moment: Moment,
        frames: Sequence[Frame],
        max_force_spread: FloatArray,
        energy_spread: FloatArray,
        novelty: FloatArray | float = 0.0,
    ) -> Choice:
        """Decide about the S frames of one evaluation, the one first that passes a low mark furthest.

        max_force_spread: (S,) eV/Å. energy_spread: (S,) eV/atom. novelty: (S,), the largest of any atom. moment: its
        step is any count that grows with the simulation; one that goes backwards (a simulation restarted) ends the
        cool-down. Those to be kept count as kept until `forget` is told otherwise.
        """
        looks = (max_force_spread, energy_spread, novelty)
        inside, above = map(np.flatnonzero, self.band.place(*looks))
        excess = self.band.excess(*looks)
        found: list[tuple[int, Signature]] = []
        passed: dict[Why, list[int]] = {"above": above.tolist()} if len(above) else {}
        for index in map(int, inside[np.argsort(-excess[inside], kind="stable")]):
            if self._cools(moment):
                passed.setdefault("cooldown", []).append(index)
                continue
            if self.limit is not None and self.kept >= self.limit:
                passed.setdefault("limit", []).append(index)
                continue
            sign = signature(frames[index])
            if any(distance(sign, known) < self.min_distance for known in (*self._known, *self._elsewhere)):
                passed.setdefault("alike", []).append(index)
                continue
            self._known.append(sign)
            self._last = moment
            found.append((index, sign))
        return Choice(sorted(found, key=itemgetter(0)), passed)

    def _cools(self, moment: Moment) -> bool:
        last = self._last
        if last is None or last.step is None or moment.step is None:
            return False
        # it may have been the last step of its blur, and this the first of its own
        return 0 <= moment.step - last.step < self.cooldown + (last.blur if self.cooldown else 0)

    def forget(self, sign: Signature) -> None:
        """Take a frame back: it could not be stored, so a later one like it is welcome."""
        self._known = [known for known in self._known if known is not sign]
