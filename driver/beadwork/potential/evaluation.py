"""The result of an evaluation: energies, forces, virials, how far members disagree, and how new atoms are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from beadwork.errors import NonFiniteError
from beadwork.frame import FloatArray, IntArray
from beadwork.potential.engine import Energies, Response, combine_known
from beadwork.potential.graph import Graph


@dataclass(frozen=True, slots=True)
class Spread:
    """How far M >= 2 members disagree about S systems of A atoms, after alpha: that of energies, or that of forces.

    members: (M, S) eV, their Δ energies. energy: (S,) eV. force: (A,) eV/Å. largest: (S,) the largest force spread of
    a system, of its atom `atom` (S,), counted within the system. usual: `Potential`'s.
    of_system: where forces were not asked of all heads of a trunk, gives the force spread (n,) of the atoms of one
    system, which evaluates them; force and largest are NaN then, and atom is -1. None where force is there.
    """

    members: FloatArray
    energy: FloatArray
    force: FloatArray
    largest: FloatArray
    atom: IntArray
    usual: float | None = None
    of_system: Callable[[int], FloatArray] | None = None

    @property
    def of_forces(self) -> bool:
        """Whether the force spread of all atoms is there."""
        return self.of_system is None

    def force_of(self, system: int, ptr: IntArray) -> FloatArray:
        """(n,) eV/Å: the force spread of the atoms of one system, evaluated now where it is not there."""
        if self.of_system is None:
            # a copy: a slice would keep the array of all beads alive for as long as one frame waits
            return self.force[ptr[system] : ptr[system + 1]].copy()
        return self.of_system(system)


@dataclass(frozen=True, slots=True)
class Novelty:
    """How far the A atoms of S systems are from what the models were trained on; 1 at the edge (`potential.novelty`).

    of: (A,) by part, 'baseline' or 'delta', for the parts that know; of several members the largest. atoms: (A,) the
    largest of the parts. largest: (S,) of a system, of its atom `atom` (S,), counted within the system.
    """

    of: Mapping[str, FloatArray]
    atoms: FloatArray
    largest: FloatArray
    atom: IntArray

    def whose(self, atom: int) -> str:
        """The part to which an atom, counted through all systems, is newest: this part needs labels of it."""
        return max(self.of, key=lambda part: float(self.of[part][atom]))


@dataclass(frozen=True, slots=True)
class Quantity:
    """One quantity by M models. mean: (...) their weighted mean. members: (M, ...). spread: (S,) or (A,), its first
    index: the root mean square over Cartesian components of the sample standard deviation; None with one model."""

    mean: FloatArray
    members: FloatArray
    spread: FloatArray | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """S systems of A atoms in all, evaluated by a baseline and M members. eV and Å; virials as in `Energies`.

    energies (S,), forces (A, 3), virials (S, 3, 3): the sum. baseline, delta: its two parts, None where there are no
    such models; delta holds the weighted-baseline factor where one is used. ptr: (S + 1,) atoms of each system.
    spread: None with fewer than two members; so are the properties that read it. of_atoms: as in `Energies`.
    member_forces (M, A, 3), member_virials (M, S, 3, 3): the exact derivatives of spread.members, deviations scaled by
    the alpha of energies as those are; only when asked for. novelty: None where no model knows what it was trained on.
    models: hashes of the models that were evaluated, baseline first; empty where they came from no bundles. weights: of
    the members, where they are not equal.
    closest: (S,) Å, the smallest distance between two atoms of each system, inf where none is within the cutoff.
    notes: messages for the log, about what was found while evaluating.
    response: what models of other roles answer: 'dipole' (S, 3) e Å, 'born' (A, 3, 3) e, 'polarizability' (S, 3, 3)
    e Å²/V, as `Response` has them; empty where there are no such models.
    seconds: where the time went: 'graph', each model by its name, 'reduce'.
    """

    energies: FloatArray
    forces: FloatArray
    virials: FloatArray
    ptr: IntArray
    baseline: Energies | None = None
    delta: Energies | None = None
    spread: Spread | None = None
    of_atoms: FloatArray | None = None
    member_forces: FloatArray | None = None
    member_virials: FloatArray | None = None
    novelty: Novelty | None = None
    response: Mapping[str, Quantity] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    closest: FloatArray = field(default_factory=lambda: np.empty(0))
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def member_totals(self) -> FloatArray | None:
        """(M, S) eV: baseline + Δ_m, what i-PI's ffcommittee takes as `committee_pot` where the sum is served."""
        # ffcommittee replaces our potential by the mean of these, so they must average to what was sent
        if self.spread is None or self.baseline is None:
            return None if self.spread is None else self.spread.members
        return self.baseline.energies + self.spread.members

    @property
    def energy_spread(self) -> FloatArray | None:
        """(S,) eV."""
        return None if self.spread is None else self.spread.energy

    @property
    def force_spread(self) -> FloatArray | None:
        """(A,) eV/Å."""
        return None if self.spread is None else self.spread.force


def summed(graph: Graph, baseline: Energies | None, delta: Energies, **rest: object) -> Evaluation:
    """Baseline plus Δ (the mean of its members), each of which stays beside the sum; `rest`: fields of Evaluation."""
    total = delta
    if baseline is not None:
        total = Energies(
            baseline.energies + delta.energies,
            baseline.forces + delta.forces,
            baseline.virials + delta.virials,
            # an engine may have no energies of atoms: then the sum has none either
            combine_known([baseline.of_atoms, delta.of_atoms], sum),
        )
    return Evaluation(
        total.energies,
        total.forces,
        total.virials,
        graph.ptr,
        baseline,
        delta,
        of_atoms=total.of_atoms,
        **rest,  # type: ignore[arg-type]
    )


def novelty_of(graph: Graph, baseline: Energies | None, results: Sequence[Energies]) -> Novelty | None:
    """The largest novelty of each atom over all models; None where no model has a training set to compare with."""
    of = {} if baseline is None or baseline.novelty is None else {"baseline": baseline.novelty}
    # members learned from the same frames on different features: the one that sees most of a difference counts
    if members := [result.novelty for result in results if result.novelty is not None]:
        of["delta"] = np.maximum.reduce(members)
    if not of:
        return None
    atoms = np.maximum.reduce(list(of.values()))
    largest = np.maximum.reduceat(atoms, graph.ptr[:-1])
    return Novelty(of, atoms, largest, first_index(atoms, largest, graph))


def first_index(values: FloatArray, largest: FloatArray, graph: Graph) -> IntArray:
    """For each system, the atom (counted within it) that has the largest value."""
    # exact equality is meant: `largest` was taken from these values
    at = np.flatnonzero(values == largest[graph.system])
    systems, first = np.unique(graph.system[at], return_index=True)
    return at[first] - graph.ptr[systems]


def check_finite(model: str, graph: Graph, result: Energies | Response | Evaluation) -> None:
    """Raise NonFiniteError, with the structure and the atom, where anything that would be sent is NaN or infinite."""
    if isinstance(result, Response):
        _check_response(model, graph, result)
        return
    if isinstance(result, Energies) and result.response is not None:
        _check_response(model, graph, result.response)
    if np.isfinite(result.energies).all() and np.isfinite(result.forces).all() and np.isfinite(result.virials).all():
        return
    # forces first, since they name the atom; an energy or a virial names the structure only
    good = np.isfinite(result.forces).all(axis=1)
    if good.all():
        bad = ~np.isfinite(result.energies) | ~np.isfinite(result.virials).all(axis=(1, 2))
        system = int(np.argmax(bad))
        what = "energy or virial"
    else:
        atom = int(np.argmin(good))
        system = int(graph.system[atom])
        what = f"force on atom {atom - int(graph.ptr[system])}"
    raise _not_finite(model, graph, system, what)


def _check_response(model: str, graph: Graph, result: Response) -> None:
    for what, values in (("dipole", result.dipole), ("polarizability", result.polarizability)):
        if values is not None and not (good := np.isfinite(values).reshape(len(graph), -1).all(axis=1)).all():
            raise _not_finite(model, graph, int(np.argmin(good)), what)
    if result.born is not None and not (good := np.isfinite(result.born).all(axis=(1, 2))).all():
        atom = int(np.argmin(good))
        system = int(graph.system[atom])
        raise _not_finite(model, graph, system, f"Born charges of atom {atom - int(graph.ptr[system])}")


def _not_finite(model: str, graph: Graph, system: int, what: str) -> NonFiniteError:
    return NonFiniteError(
        f"{model} returned NaN or infinity for {graph.where(system)} ({what})",
        "nothing was sent to i-PI. The structure is far from what the model was trained on, or the model is broken",
    )
