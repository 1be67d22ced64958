"""Which of the frames just evaluated are worth a label. Decides, and does nothing: no I/O, no clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

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

    def holds(self, force_spread: FloatArray, energy_spread: FloatArray) -> NDArray[np.bool_]:
        """(S,): which of S frames are in the band; one whose spread is not finite is not."""
        marks = (self.force_low, self.energy_low, self.force_high, self.energy_high)
        low, energy_low, high, energy_high = (np.inf if mark is None else mark for mark in marks)
        enough = (force_spread >= low) | (energy_spread >= energy_low)
        too_much = (force_spread >= high) | (energy_spread >= energy_high)
        return enough & ~too_much & np.isfinite(force_spread) & np.isfinite(energy_spread)


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
    ) -> list[tuple[int, Signature]]:
        """Decide about the S frames of one evaluation, the most uncertain first.

        max_force_spread: (S,) eV/Å. energy_spread: (S,) eV an atom. step: any count that grows with the
        simulation; one that goes backwards (a simulation restarted) ends the cool-down. Returns the places of the
        frames to be kept, in their order, and their signatures. They count as kept until `forget` is told otherwise.
        """
        inside = np.flatnonzero(self.band.holds(max_force_spread, energy_spread))
        found: list[tuple[int, Signature]] = []
        for index in map(int, inside[np.argsort(-max_force_spread[inside], kind="stable")]):
            if self._last_step is not None and 0 <= step - self._last_step < self.cooldown:
                break
            if self.limit is not None and self.kept >= self.limit:
                break
            sign = signature(frames[index])
            if all(distance(sign, known) >= self.min_distance for known in (*self._known, *self._elsewhere)):
                self._known.append(sign)
                self._last_step = step
                found.append((index, sign))
        return sorted(found, key=itemgetter(0))

    def forget(self, sign: Signature) -> None:
        """Take a frame back: it could not be stored, so a later one like it is welcome."""
        self._known = [known for known in self._known if known is not sign]
