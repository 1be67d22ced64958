"""Safety thresholds on an evaluation: atoms too close, forces too large, members that disagree too much.

A model returns finite numbers for any structure, however unphysical, and i-PI integrates them. Beyond a threshold the
result is certainly wrong. (Which frames are uncertain enough to be labelled is decided elsewhere, by the selection
window of `harvest.select`.) No ordinary ring polymer reaches the defaults:

- distance 0.3 Å: the ground state of H2 (a Morse oscillator of 4.75 eV, 1.94 1/Å, 0.741 Å) is closer than that with a
  probability of 6e-10, and closer than 0.4 Å with 2e-6, which a long run would meet; O-H and all else stays farther;
- force 100 eV/Å: what O-H feels at 0.53 Å (5.4 eV, 2.2 1/Å, 0.97 Å), where it is with a probability below 1e-14, and
  H2 below 0.2 Å;
- force spread 5 eV/Å: ten times the largest that the shipped committee of clusters has on frames held out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase.data import chemical_symbols

from beadwork.config import LimitSettings
from beadwork.errors import BeadworkError, ThresholdError
from beadwork.events import WHOSE
from beadwork.frame import Frame
from beadwork.potential.evaluation import Evaluation
from beadwork.potential.graph import build
from beadwork.potential.memory import evaluate
from beadwork.potential.potential import Potential

Kind = Literal["distance", "force", "spread", "novelty"]
UNITS: dict[Kind, str] = {"distance": "Å", "force": "eV/Å", "spread": "eV/Å", "novelty": "of the edge of training"}

#: what to do about a new atom, by the part of the potential that it is new to
NOVELTY_REMEDIES = {
    "baseline": "the baseline was trained on no atom like it, so the sum cannot be trusted there; train the baseline "
    "on labels of such frames",
    "delta": "Δ was trained on no atom like it, so its spread may be far too small there; label such frames",
}


@dataclass(frozen=True, slots=True)
class Breach:
    """A threshold that structure number `system` of an evaluation exceeds, with the worst value of that structure."""

    kind: Kind
    system: int
    value: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Thresholds:
    """distance: Å, the smallest between two atoms. force, spread: eV/Å, and novelty: the largest of any atom. inf, or
    0 Å: no threshold.

    stop: end the run at the first breach; False: count the breaches and go on.
    """

    distance: float = 0.3
    force: float = 100.0
    spread: float = 5.0
    novelty: float = math.inf
    stop: bool = True

    @classmethod
    def of(cls, limits: LimitSettings) -> Thresholds:
        """What a user has set."""
        return cls(
            limits.mark_distance,
            limits.mark_force,
            limits.mark_spread,
            limits.mark_novelty,
            limits.on_mark == "stop",
        )

    def breaches(self, evaluation: Evaluation) -> list[Breach]:
        """All structures beyond a threshold, kind by kind.

        This runs at every step, so it makes only a few passes over the atoms; distances were found with the graph.
        """
        found: list[Breach] = []
        # inf where no two atoms are within the cutoff, and never below a threshold
        near, least = evaluation.closest, self.distance
        found += [Breach("distance", int(s), float(near[s]), least) for s in np.flatnonzero(near < least)]
        forces = evaluation.forces
        # no force is longer than sqrt(3) times the largest component, which is found in a fifth of the time
        if 3 * max(forces.max(initial=0.0), -forces.min(initial=0.0)) ** 2 > self.force**2:
            squares = np.einsum("ai,ai->a", forces, forces)
            most = np.sqrt(np.maximum.reduceat(squares, evaluation.ptr[:-1]))
            found += [Breach("force", int(s), float(most[s]), self.force) for s in np.flatnonzero(most > self.force)]
        if evaluation.spread is not None:
            far = evaluation.spread.largest
            found += [Breach("spread", int(s), float(far[s]), self.spread) for s in np.flatnonzero(far > self.spread)]
        if evaluation.novelty is not None:
            new = evaluation.novelty.largest
            found += [
                Breach("novelty", int(s), float(new[s]), self.novelty) for s in np.flatnonzero(new > self.novelty)
            ]
        return found


def format_breach(breach: Breach, frame: Frame, when: str, potential: Potential) -> str:
    """Format one breach: when, which bead, which atoms, and the force of each model. when: 'step 7', for the message.

    Evaluates that one structure again with every model by itself, since the sum does not show which model is wrong.
    """
    where = f"{when}, " + ("a structure of unknown bead" if frame.bead is None else f"bead {frame.bead}")
    try:
        graph = build([frame], potential.cutoff)
        alone = [(engine.name, evaluate(engine, graph)[0].forces) for engine in potential.engines]
        result = potential.evaluate_graph(graph)
    except BeadworkError as error:  # a device that fails now must not hide that a threshold was exceeded
        return (
            f"{where}: the {breach.kind} of {breach.value:.4g} is beyond the threshold of {breach.threshold:g}; the "
            f"atom could not be found ({error})"
        )
    names = [f"atom {a} ({chemical_symbols[z]})" for a, z in enumerate(frame.numbers)]
    if breach.kind == "distance":
        # the shortest edge, which is the pair that was found too close
        edge = int(np.argmin(graph.lengths))
        atom, other = int(graph.center[edge]), int(graph.neighbor[edge])
        pair = f"{names[atom]} and {names[other]}"
        what = f"{pair} are {breach.value:.3g} Å apart, closer than the threshold of {breach.threshold:g} Å"
    else:
        atom = int(np.einsum("ai,ai->a", result.forces, result.forces).argmax())
        what = "force"
        if breach.kind == "spread" and result.spread is not None:
            atom, what = int(result.spread.atom[0]), "force spread"
        what = (
            f"the {what} on {names[atom]} is {breach.value:.4g} eV/Å, above the threshold of {breach.threshold:g} eV/Å"
        )
        if breach.kind == "novelty" and result.novelty is not None:
            atom = int(result.novelty.atom[0])
            what = f"{format_novelty(result, frame, atom)}, above the threshold of {breach.threshold:g}"
    models = ", ".join(f"{name} {np.linalg.norm(forces[atom]):.3g}" for name, forces in alone)
    return f"{where}: {what}; the models' own forces on atom {atom}, eV/Å: {models}"


def format_novelty(evaluation: Evaluation, frame: Frame, atom: int) -> str:
    """Format the novelty of an atom, counted through all systems of an evaluation, for each part of the potential."""
    if evaluation.novelty is None:
        return "novelty is not known"
    # users count atoms within their structure, an evaluation counts through all of them
    first = int(evaluation.ptr[np.searchsorted(evaluation.ptr, atom, side="right") - 1])
    # the largest first: that part decides what is to be done
    values = sorted(((float(of[atom]), WHOSE[part]) for part, of in evaluation.novelty.of.items()), reverse=True)
    listed = " and ".join(f"{value:.2f} for {whose}" for value, whose in values)
    symbol = chemical_symbols[frame.numbers[atom - first]]
    # no atom of the element is less new than their average, and so it is the average that is new
    same = evaluation.novelty.atoms[first : first + len(frame.numbers)][frame.numbers == frame.numbers[atom - first]]
    if len(same) > 1 and (same >= evaluation.novelty.atoms[atom]).all():
        return f"the novelty of all {symbol} together is {listed}"
    return f"the novelty of atom {atom - first} ({symbol}) is {listed}"


def threshold_error(breach: Breach, frame: Frame, when: str, potential: Potential) -> ThresholdError:
    """The error with which a run ends when a threshold is exceeded."""
    return ThresholdError(
        f"{format_breach(breach, frame, when, potential)}. Nothing was sent to i-PI. Look at the last frames for a "
        "wrong start structure, too long a time step, or structures that the models were not trained on",
        f"--mark-{breach.kind} sets the threshold; with --on-mark count the run goes on",
    )
