"""Select the frames of an evaluation that should be labelled. Pure decisions: no I/O, no clock.

A frame is selected by the committee's spread, or by novelty, inside a selection window: below it the models are good
enough, above it the structure is unphysical and would teach them nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from beadwork.config import SelectionSettings
from beadwork.errors import ConfigError
from beadwork.events import Moment
from beadwork.frame import FloatArray, Frame
from beadwork.harvest.distance import Signature, distance, signature

#: eV/Å: the lower threshold where neither the user nor the committee's card gives one
DEFAULT_FORCE_THRESHOLD = 0.05
#: why a frame at or above a lower threshold is not kept (`events.PassedOver`)
Why = Literal["above", "cooldown", "limit", "alike"]


@dataclass(frozen=True, slots=True)
class SelectionWindow:
    """The selection window: for which spreads and novelties a frame should be labelled.

    force_low, force_high: eV/Å, on the largest force spread of any atom. energy_low, energy_high: eV/atom, on the
    energy spread. novelty_low: on the largest novelty of any atom. A frame is in the window when it is at or above the
    lower threshold of ANY criterion that has one, and below EVERY upper threshold. Raises ConfigError where no lower
    threshold is given or the thresholds contradict each other.
    """

    force_low: float | None = None
    force_high: float | None = None
    energy_low: float | None = None
    energy_high: float | None = None
    novelty_low: float | None = None

    @classmethod
    def of(cls, config: SelectionSettings, mark_spread: float, usual: float | None = None) -> SelectionWindow:
        """The configured window; a threshold that was not given is None.

        Without `keep-force` it begins at `usual`, the force spread of the committee on frames like those it learned
        from (`DEFAULT_FORCE_THRESHOLD` where that is not known), and ends at `mark_spread`, eV/Å, the safety
        threshold of the spread.
        """
        # one value is a window without an upper end
        force_low, force_high = (*force_window(config.keep_force, mark_spread, usual), None, None)[:2]
        energy_low, energy_high = (*config.keep_energy, None, None)[:2]
        novelty_low = config.keep_novelty if math.isfinite(config.keep_novelty) else None
        return cls(force_low, force_high, energy_low, energy_high, novelty_low)

    def __post_init__(self) -> None:
        if self.force_low is None and self.energy_low is None and self.novelty_low is None:
            raise ConfigError(
                "the selection window has no lower threshold, so no frame would be kept",
                "give force_low, energy_low or novelty_low",
            )
        for name, low, high in (
            ("force", self.force_low, self.force_high),
            ("energy", self.energy_low, self.energy_high),
        ):
            for mark, value in ((f"{name}_low", low), (f"{name}_high", high)):
                if value is not None and not (math.isfinite(value) and value >= 0):
                    raise ConfigError(
                        f"{mark} of the selection window is {value}", "give a number that is not negative"
                    )
            if low is not None and high is not None and low >= high:
                raise ConfigError(
                    f"{name}_low of the selection window is {low}, {name}_high {high}",
                    "the low threshold must be lower",
                )

    def classify(
        self, force_spread: FloatArray, energy_spread: FloatArray, novelty: FloatArray | float = 0.0
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(S,) and (S,): which of S frames are in the window, and which above it; the others are below.

        A frame whose spread is not finite is above it.
        """
        marks = (self.force_low, self.energy_low, self.novelty_low, self.force_high, self.energy_high)
        low, energy_low, new, high, energy_high = (np.inf if mark is None else mark for mark in marks)
        enough = (force_spread >= low) | (energy_spread >= energy_low) | (novelty >= new)
        too_much = (force_spread >= high) | (energy_spread >= energy_high)
        # comparisons with NaN are False, which would count as below the window
        too_much |= ~(np.isfinite(force_spread) & np.isfinite(energy_spread))
        return enough & ~too_much, too_much

    def excess(
        self, force_spread: FloatArray, energy_spread: FloatArray, novelty: FloatArray | float = 0.0
    ) -> FloatArray:
        """(S,): each frame's value over the lower threshold, for the criterion where this ratio is largest."""
        marks = ((self.force_low, force_spread), (self.energy_low, energy_spread), (self.novelty_low, novelty))
        found = np.zeros(len(force_spread))
        for mark, value in marks:
            if mark is not None:  # a threshold of 0 keeps everything: no division by it
                # as a ratio, so that eV/Å, eV/atom and novelty can be compared; fmax passes over NaN
                found = np.fmax(found, np.asarray(value) / max(mark, 1e-12))
        return found

    def reasons(self, force_spread: float, energy_spread: float, novelty: float = 0.0) -> tuple[str, ...]:
        """Why a frame in the window is kept: 'spread', 'novelty' or both."""
        spread = (self.force_low is not None and force_spread >= self.force_low) or (
            self.energy_low is not None and energy_spread >= self.energy_low
        )
        new = self.novelty_low is not None and novelty >= self.novelty_low
        return ("spread",) * spread + ("novelty",) * new


def force_window(keep_force: list[float] | None, mark_spread: float, usual: float | None) -> list[float]:
    """`keep-force` as it was given, or the default that follows from the committee."""
    return default_window(usual, mark_spread) if keep_force is None else keep_force


def default_window(usual: float | None, mark: float) -> list[float]:
    """The default of `keep-force`: from `usual`, or DEFAULT_FORCE_THRESHOLD, to `mark`, the safety threshold of the
    spread, where that is higher.
    """
    low = DEFAULT_FORCE_THRESHOLD if usual is None else usual
    # above the safety threshold the run ends, so nothing is lost between window and threshold
    return [low, mark] if low < mark < math.inf else [low]


@dataclass(frozen=True, slots=True)
class Choice:
    """The decision about the frames of one evaluation, except those below the window.

    kept: indices and signatures, in their order. passed: indices of the others, by the reason.
    """

    kept: list[tuple[int, Signature]]
    passed: dict[Why, list[int]]


@dataclass(slots=True)
class Selector:
    """Remembers which frames of this run were kept, and decides about the next ones.

    window: see `SelectionWindow`. cooldown: after a frame was kept, all others of its step and of the steps less than
    this many later are passed over, whatever their bead: neighbouring beads and steps teach the same. 0: no cool-down.
    Where a step is known only within a blur, the cool-down is longer by the blur.
    committee: whose frames are asked for now, any name. limit: frames kept per run and committee at most, None for no
    limit: what one committee was unsure of takes no place of its successor's. min_distance: Å, a frame closer than this
    to one already kept is the same frame (see `distance`).

    The distance, which takes milliseconds, is computed only for frames that pass all other tests.
    """

    window: SelectionWindow
    cooldown: int = 0
    limit: int | None = None
    min_distance: float = 0.03
    committee: str = ""
    #: of this run, by the committee that asked for them
    _known: dict[str, list[Signature]] = field(default_factory=dict)
    _elsewhere: list[Signature] = field(default_factory=list)
    #: of each simulation: when its frames were kept, and their signatures
    _kept: dict[str, list[tuple[Moment, Signature]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cooldown < 0:
            raise ConfigError(f"the cool-down is {self.cooldown} steps", "give 0 or more")
        if self.limit is not None and self.limit < 0:
            raise ConfigError(f"the limit is {self.limit} frames a run", "give 0 or more")
        if not (math.isfinite(self.min_distance) and self.min_distance >= 0):
            raise ConfigError(f"the smallest distance is {self.min_distance} Å", "give a number that is not negative")

    @property
    def kept(self) -> int:
        """Frames of this run that the committee of now has kept, those of earlier processes included."""
        return len(self._known.get(self.committee, ()))

    def seed(self, frames: Iterable[tuple[str, Frame]], elsewhere: Iterable[Frame] = ()) -> None:
        """Register frames that the queue holds already: all as known, those of this run, each with the committee that
        asked for it, towards the limit too."""
        for committee, frame in frames:
            self._known.setdefault(committee, []).append(signature(frame))
        self._elsewhere.extend(signature(frame) for frame in elsewhere)

    def consider(
        self,
        moment: Moment,
        frames: Sequence[Frame],
        max_force_spread: FloatArray,
        energy_spread: FloatArray,
        novelty: FloatArray | float = 0.0,
        simulation: str = "",
    ) -> Choice:
        """Decide about the S frames of one evaluation, the one with the largest excess first.

        max_force_spread: (S,) eV/Å. energy_spread: (S,) eV/atom. novelty: (S,), the largest of any atom. moment: its
        step is any count that grows with the simulation; one that goes backwards (a simulation restarted) ends the
        cool-down. simulation: which of several it is; each cools down by itself, so that none takes the place of one
        that is less known. Selected frames count as kept until they are passed to `forget`.
        """
        looks = (max_force_spread, energy_spread, novelty)
        inside, above = map(np.flatnonzero, self.window.classify(*looks))
        excess = self.window.excess(*looks)
        found: list[tuple[int, Signature]] = []
        passed: dict[Why, list[int]] = {"above": above.tolist()} if len(above) else {}
        # most uncertain first: where the limit or the cool-down leaves one place, it gets it
        for index in map(int, inside[np.argsort(-excess[inside], kind="stable")]):
            # the cheap tests first: a signature needs a neighbour list
            if self._cools(moment, simulation):
                passed.setdefault("cooldown", []).append(index)
                continue
            if self.limit is not None and self.kept >= self.limit:
                passed.setdefault("limit", []).append(index)
                continue
            sign = signature(frames[index])
            if any(
                distance(sign, known) < self.min_distance for known in chain(*self._known.values(), self._elsewhere)
            ):
                passed.setdefault("alike", []).append(index)
                continue
            self._known.setdefault(self.committee, []).append(sign)
            self._kept.setdefault(simulation, []).append((moment, sign))
            found.append((index, sign))
        return Choice(sorted(found, key=itemgetter(0)), passed)

    def _cools(self, moment: Moment, simulation: str) -> bool:
        if not (kept := self._kept.get(simulation)):
            return False
        last, _ = kept[-1]
        # without steps nothing is known to be near in time
        if last.step is None or moment.step is None:
            return False
        # the last frame may be of the last step of its blur, and this one of the first step of its own
        # negative where i-PI was started again from an earlier RESTART: another trajectory begins
        return 0 <= moment.step - last.step < self.cooldown + (last.blur if self.cooldown else 0)

    def forget(self, sign: Signature) -> None:
        """Forget a frame that could not be stored: a later one like it can be kept, and none waits for it to cool."""
        # by identity: two frames may have equal signatures where min_distance is 0
        for committee, known in self._known.items():
            self._known[committee] = [one for one in known if one is not sign]
        for name, kept in self._kept.items():
            self._kept[name] = [one for one in kept if one[1] is not sign]
