"""Marks that an answer must not pass: atoms too close, forces too large, members too far apart.

A model answers nonsense with a straight face, and i-PI integrates it. A mark is where nonsense surely begins, not where
a frame becomes worth a label (that is the harvest's band). The defaults are what no ordinary ring polymer reaches:

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

from beadwork.errors import BeadworkError, GuardError
from beadwork.events import WHOSE
from beadwork.frame import Frame
from beadwork.potential.evaluation import Evaluation
from beadwork.potential.graph import build
from beadwork.potential.memory import evaluate
from beadwork.potential.potential import Potential

Kind = Literal["distance", "force", "spread", "novelty"]
UNITS: dict[Kind, str] = {"distance": "Å", "force": "eV/Å", "spread": "eV/Å", "novelty": "of the edge of training"}

#: what a new atom asks for, by the part that it is new to
WANTED = {
    "baseline": "the baseline learned from no atom like it, so nothing speaks for the sum; it wants labels of its own",
    "delta": "Δ learned from no atom like it, so its spread says little there; such frames want labels",
}


@dataclass(frozen=True, slots=True)
class Breach:
    """A mark that structure number `system` of an evaluation has passed; the worst value of that structure."""

    kind: Kind
    system: int
    value: float
    mark: float


@dataclass(frozen=True, slots=True)
class Marks:
    """distance: Å, the least between two atoms. force, spread: eV/Å, and novelty: the most of any atom. inf, or 0 Å:
    no mark.

    stop: end the run at the first breach; False: count, and go on.
    """

    distance: float = 0.3
    force: float = 100.0
    spread: float = 5.0
    novelty: float = math.inf
    stop: bool = True

    def breaches(self, evaluation: Evaluation) -> list[Breach]:
        """All that passed a mark, kind by kind. A few passes over atoms; distances were found with the graph."""
        found: list[Breach] = []
        near, mark = evaluation.closest, self.distance
        found += [Breach("distance", int(s), float(near[s]), mark) for s in np.flatnonzero(near < mark)]
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


def describe(breach: Breach, frame: Frame, when: str, potential: Potential) -> str:
    """Say where and what in one sentence. when: 'step 7', as a person reads it.

    Evaluates that one structure again, with every model by itself.
    """
    where = f"{when}, " + ("a structure of unknown bead" if frame.bead is None else f"bead {frame.bead}")
    try:
        graph = build([frame], potential.cutoff)
        alone = [(engine.name, evaluate(engine, graph)[0].forces) for engine in potential.engines]
        answer = potential.evaluate_graph(graph)
    except BeadworkError as error:  # a device that fails now; the mark was passed all the same
        return (
            f"{where}: the {breach.kind} of {breach.value:.4g} is beyond the mark of {breach.mark:g}; where could not "
            f"be found out ({error})"
        )
    names = [f"atom {a} ({chemical_symbols[z]})" for a, z in enumerate(frame.numbers)]
    if breach.kind == "distance":
        edge = int(np.argmin(graph.lengths))
        atom, other = int(graph.center[edge]), int(graph.neighbor[edge])
        pair = f"{names[atom]} and {names[other]}"
        what = f"{pair} are {breach.value:.3g} Å apart, closer than the mark of {breach.mark:g} Å"
    else:
        atom = int(np.einsum("ai,ai->a", answer.forces, answer.forces).argmax())
        what = "force"
        if breach.kind == "spread" and answer.spread is not None:
            atom, what = int(answer.spread.atom[0]), "force spread"
        what = f"the {what} on {names[atom]} is {breach.value:.4g} eV/Å, above the mark of {breach.mark:g} eV/Å"
        if breach.kind == "novelty" and answer.novelty is not None:
            atom = int(answer.novelty.atom[0])
            what = f"{tell_new(answer, frame, atom)}, above the mark of {breach.mark:g}"
    models = ", ".join(f"{name} {np.linalg.norm(forces[atom]):.3g}" for name, forces in alone)
    return f"{where}: {what}; the models' own forces on atom {atom}, eV/Å: {models}"


def tell_new(evaluation: Evaluation, frame: Frame, atom: int) -> str:
    """Say of an atom, counted through all systems of an evaluation with novelty, to whom it is how new."""
    if evaluation.novelty is None:
        return "novelty is not known"
    first = int(evaluation.ptr[np.searchsorted(evaluation.ptr, atom, side="right") - 1])
    values = sorted(((float(of[atom]), WHOSE[part]) for part, of in evaluation.novelty.of.items()), reverse=True)
    told = " and ".join(f"{value:.2f} for {whose}" for value, whose in values)
    return f"the novelty of atom {atom - first} ({chemical_symbols[frame.numbers[atom - first]]}) is {told}"


def refusal(breach: Breach, frame: Frame, when: str, potential: Potential) -> GuardError:
    """What the run ends with."""
    return GuardError(
        f"{describe(breach, frame, when, potential)}. Nothing was sent. Look at the last frames: a wrong start or too "
        "long a time step shows there, and a model that does not know such structures",
        f"--mark-{breach.kind} sets the mark, and --on-mark count goes on",
    )
