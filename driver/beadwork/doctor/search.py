"""Which plans hold a stated error, cheapest first.

    Search(modes, Costs(whole, baseline, delta), temperature=300).cheapest(error=0.01, force_error=0.03)

Errors of beads, of a contraction and of the time step are added without their signs: what cancels for one structure
does not for another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from beadwork.doctor.harmonic import ColoredNoise, Modes, Plan, compress, errors, stable

BEADS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128)
#: economised beads; with more the fit of their springs is flat, and they are converged
MOST_ECONOMISED = 32
#: fs
TIMESTEPS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
INNER = (1, 2, 3, 4, 6, 8)
#: fs; of Δ's step
LONGEST = 8.0
#: fs; a time step without an error of its own
TINY = 0.02
#: what a real vibration may be above the highest that was measured
MARGIN = 1.05


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of an evaluation: first + each x structures."""

    first: float
    each: float

    def of(self, structures: int) -> float:
        """Seconds of one evaluation of so many."""
        return self.first + self.each * structures


@dataclass(frozen=True, slots=True)
class Judged:
    """A plan with its errors, signed and as they are judged (without signs), and seconds of the models for 1 fs."""

    plan: Plan
    errors: Mapping[str, float]
    judged: Mapping[str, float]
    seconds: float

    @property
    def speed(self) -> float:
        """ns/day."""
        return 86400e-6 / self.seconds

    def holds(self, error: float, force_error: float) -> bool:
        """Whether each error is known and within its limit."""
        limits = {name: force_error if name.startswith("force") else error for name in self.judged}
        return all(found <= limits[name] for name, found in self.judged.items())


@dataclass(frozen=True, slots=True)
class Costs:
    """Of an evaluation of the sum, and of its two parts; None where there are no two."""

    whole: Cost
    baseline: Cost | None = None
    delta: Cost | None = None

    def of(self, plan: Plan) -> float:
        """Seconds of the models for 1 fs."""
        if self.baseline is None or self.delta is None or not plan.apart:
            return self.whole.of(plan.beads) / plan.timestep
        return (plan.inner * self.baseline.of(plan.beads) + self.delta.of(plan.delta_beads)) / plan.outer


class Search:
    """Finds the cheapest plans that hold; what plans have in common is computed once."""

    def __init__(self, modes: Modes, costs: Costs, temperature: float, noise: ColoredNoise | None = None) -> None:
        self.modes = compress(modes)
        self.costs = costs
        self.temperature = temperature
        self.noise = noise
        #: cm^-1; of the economised springs, in hundreds
        self.highest = 100.0 * max(1, math.ceil(MARGIN * modes.highest / 100))
        self._known: dict[Plan, dict[str, float]] = {}

    def judge(self, plan: Plan) -> Judged:
        """The errors of a plan."""
        beads = self._errors(replace(plan, timestep=TINY, inner=1, contracted=0, cayley=False, splitting="baoab"))
        static = self._errors(replace(plan, timestep=TINY, inner=1, cayley=False, splitting="baoab"))
        whole = self._errors(plan)
        judged = {k: abs(beads[k]) + abs(static[k] - beads[k]) + abs(whole[k] - static[k]) for k in whole}
        return Judged(plan, whole, judged, self.costs.of(plan))

    def _errors(self, plan: Plan) -> dict[str, float]:
        if plan not in self._known:
            self._known[plan] = errors(self.modes, plan, self.temperature)
        return self._known[plan]

    def plans(self) -> Iterator[Plan]:
        """All that are looked at, cheapest first."""
        found = []
        apart = self.costs.baseline is not None
        for kind in ("ordinary", "eco") + (() if self.noise is None else ("piglet",)):
            counts: tuple[int, ...] = BEADS
            if kind == "eco":
                counts = tuple(count for count in BEADS if 1 < count <= MOST_ECONOMISED)
            if self.noise is not None and kind == "piglet":
                counts = (len(self.noise.drift),)
            highest, noise = self.highest if kind == "eco" else 0.0, self.noise if kind == "piglet" else None
            for count, timestep, cayley, inner in itertools.product(counts, TIMESTEPS, (False, True), INNER):
                if inner * timestep > LONGEST or (inner > 1 and not apart) or (count == 1 and cayley):
                    continue
                for contracted in (0, *(c for c in BEADS if c < count and apart)):
                    found.append(Plan(count, timestep, kind, inner, contracted, cayley, highest, noise=noise))
        return iter(sorted(found, key=self.costs.of))

    def cheapest(self, error: float, force_error: float) -> list[Judged]:
        """The cheapest of each kind of springs with Δ apart, and with one forcefield, in the order of their cost.

        What is made for harmonic vibrations alone comes last.
        """
        found: dict[tuple[str, bool], Judged] = {}
        hopeless: set[Plan] = set()
        most = max(self.modes.most, float(np.abs(self.modes.delta2).max()))

        def fails(plan: Plan) -> bool:
            if plan not in hopeless and not self.judge(plan).holds(error, force_error):
                hopeless.add(plan)
            return plan in hopeless

        for plan in self.plans():
            if (plan.springs, plan.apart) in found:
                continue
            # what does not hold with smaller steps and all beads of Δ does not hold without
            simpler = (
                replace(plan, timestep=TINY, inner=1, contracted=0, cayley=False),
                replace(plan, timestep=TINY, inner=1, cayley=False),
                replace(plan, inner=1, contracted=0),
            )
            if not any(map(fails, (*simpler, plan))) and stable(plan, self.temperature, self.highest, most):
                found[plan.springs, plan.apart] = self.judge(plan)
        return sorted(found.values(), key=lambda judged: (judged.plan.harmonic_only, judged.seconds))
