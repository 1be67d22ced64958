"""Baseline plus the mean of a Δ committee, and how far the committee's members disagree."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from beadwork.config import SENSE, ServeConfig, sensible, weighs
from beadwork.errors import ModelError, NonFiniteError, ResourceError
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.potential import memory
from beadwork.potential.auto_engine import AutoEngine, open_engine
from beadwork.potential.bundle import COMMITTEE, Card, load_card, load_committee, members_of
from beadwork.potential.engine import Energies, Engine, Weighted, together
from beadwork.potential.graph import Graph, GraphBuilder
from beadwork.potential.weighting import RADIUS, Neighbourhoods, weigh

#: evaluations after a refusal of memory until more is tried; twice as many after each further one
AGAIN = 1000

# Members' energies, forces and virials stand with the member first: (M, S), (M, A, 3), (M, S, 3, 3).


@dataclass(frozen=True, slots=True)
class Spread:
    """How far M >= 2 members disagree about S systems of A atoms, after alpha: that of energies, or that of forces.

    members: (M, S) eV, their Δ energies. energy: (S,) eV. force: (A,) eV/Å. largest: (S,) the largest force spread of
    a system, of its atom `atom` (S,), counted within the system. usual: `Potential`'s.
    """

    members: FloatArray
    energy: FloatArray
    force: FloatArray
    largest: FloatArray
    atom: IntArray
    usual: float | None = None


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
        """The part to which an atom, counted through all systems, is newest: its labels are wanted."""
        return max(self.of, key=lambda part: float(self.of[part][atom]))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """S systems of A atoms in all, evaluated by a baseline and M members. eV and Å; virials as in `Energies`.

    energies (S,), forces (A, 3), virials (S, 3, 3): the sum. baseline, delta: its two parts, None where there are no
    such models; delta holds the weighted-baseline factor where one is used. ptr: (S + 1,) atoms of each system.
    spread: None with fewer than two members; so are the properties that read it. of_atoms: as in `Energies`.
    member_forces (M, A, 3), member_virials (M, S, 3, 3): the exact derivatives of spread.members, deviations scaled by
    the alpha of energies as those are; only when asked for. novelty: None where no model knows what it was trained on.
    models: hashes of the models that answered, baseline first; empty where they came from no bundles. weights: of the
    members, where they are not equal.
    closest: (S,) Å, the smallest distance between two atoms of each system, inf where none is within the cutoff.
    notes: sentences for the log, about what was found while evaluating.
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
    models: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    closest: FloatArray = field(default_factory=lambda: np.empty(0))
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def member_totals(self) -> FloatArray | None:
        """(M, S) eV: baseline + Δ_m, what i-PI's ffcommittee takes as `committee_pot` where the sum is served."""
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


class Potential:
    """E = E_base + sum_m w_m E_m, with the committee's spread.

    weights: one for each member, scaled to sum 1; None for equal ones. With weights w the mean of x is
    sum_m w_m x_m and its variance sum_m w_m (x_m - mean)^2 / (1 - sum_m w_m^2), which for equal weights is the sample
    variance that i-PI's ffcommittee computes. The force spread of an atom is
    sqrt(sum_m w_m |F_m - mean|^2 / (3 (1 - sum_m w_m^2))).

    alpha, energy_alpha: scale the members' deviations from their mean (Musil et al., J. Chem. Theory Comput. 15, 906,
    2019): alpha in the force spread, energy_alpha in all that is an energy or the derivative of one: the energy spread,
    the members' energies, forces and virials, and the variance of the weighted baseline. energy_alpha None: alpha.

    usual: eV/Å after alpha, the largest force spread of a frame like those that the committee learned from; None where
    that is not known.

    baseline_uncertainty: s in eV a system, or None. With it the sum is V_base + E_ref + s^2/(s^2 + var) (V_Δ - E_ref),
    and force and virial are its exact derivatives (Imbalzano et al., J. Chem. Phys. 154, 074102, 2021, with E_ref = 0).
    atom_uncertainty: s in eV an atom, or None: the same for the energy of each atom's neighbourhood
    (`weighting.Neighbourhoods`), so that parts of a system which are far apart have the energies that they have alone.
    reference: atomic number -> eV, what an atom adds to V_Δ whatever its environment, and so to E_ref. A constant times
    a factor that falls where the committee disagrees would be a force.

    max_edges: evaluate in pieces of no more edges than this (a single system is never cut), None for all at once; it is
    lowered where memory is refused, and tried twice as large after some time, for others may have taken it meanwhile.
    Raises ModelError for no models at all, weights that do not fit, or a weighted baseline without two members.
    """

    def __init__(
        self,
        baseline: Engine | None,
        members: Sequence[Engine] = (),
        weights: Sequence[float] | None = None,
        alpha: float = 1.0,
        baseline_uncertainty: float | None = None,
        max_edges: int | None = None,
        reference: Mapping[int, float] | None = None,
        usual: float | None = None,
        energy_alpha: float | None = None,
        atom_uncertainty: float | None = None,
    ) -> None:
        self.reference = dict(reference or {})
        self.usual = usual
        self.baseline = baseline
        self.members = tuple(members)
        self.alpha = alpha
        self.energy_alpha = alpha if energy_alpha is None else energy_alpha
        self.baseline_uncertainty = baseline_uncertainty
        self.atom_uncertainty = atom_uncertainty
        self.max_edges = max_edges
        self._most = max_edges  # what memory was found to hold at the start
        self._wait = AGAIN  # evaluations from a refusal to the next trial
        self._left = 0  # of them
        #: sentences for the log: what was found beside the models
        self.notes: list[str] = []
        #: the cards of baseline and members, where they came from bundles
        self.cards: tuple[Card, ...] = ()
        if baseline is None and not members:
            raise ModelError("there is no model to evaluate: give a baseline, Δ models, or both")
        if baseline_uncertainty is not None and atom_uncertainty is not None:
            raise ModelError(
                "the baseline's uncertainty is given for the whole system and for an atom; give one of them"
            )
        for s, unit in ((baseline_uncertainty, "eV"), (atom_uncertainty, "eV an atom")):
            if s is not None and (baseline is None or len(members) < 2 or not s > 0):
                raise ModelError(
                    f"a weighted baseline (uncertainty {s} {unit}) needs a baseline, at least two Δ models and a "
                    "positive uncertainty"
                )
        if atom_uncertainty is not None:
            for member in members:
                if not isinstance(member, Weighted):
                    raise ModelError(f"{member.name} cannot weigh an atom's energy; give the uncertainty of the system")
        raw = np.ones(len(members)) if weights is None else np.array(weights, dtype=np.float64)
        if raw.shape != (len(members),) or not all(map(weighs, raw)) or not (raw.any() or not members):
            raise ModelError(
                f"weights {list(weights or ())} do not fit {len(members)} Δ models; give each a number {SENSE}, or 0"
            )
        scales = {
            "alpha": alpha,
            "energy_alpha": self.energy_alpha,
            "baseline_uncertainty": baseline_uncertainty,
            "baseline_uncertainty_atom": atom_uncertainty,
        }
        for name, scale in scales.items():
            if scale is not None and not sensible(scale):
                raise ModelError(f"{name} is {scale}; it must be {SENSE}")
        self.weights = raw / raw.sum() if len(raw) else raw
        if len(members) > 1 and not (self.weights**2).sum() < 1 - 1e-12:
            raise ModelError(f"weights {raw.tolist()} leave one Δ model alone, so there is no spread; drop the others")
        farthest = max(e.cutoff for e in self.engines)
        self.builder = GraphBuilder(farthest if atom_uncertainty is None else max(farthest, RADIUS))

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The baseline, where there is one, and the members."""
        return self.members if self.baseline is None else (self.baseline, *self.members)

    @property
    def baseline_cards(self) -> tuple[Card, ...]:
        """What stands before the members' cards: the baseline's, which the part that serves Δ alone has too."""
        return self.cards[: len(self.cards) - len(self.members)]

    @property
    def member_cards(self) -> tuple[Card, ...]:
        """The members' cards, in their order."""
        return self.cards[len(self.cards) - len(self.members) :]

    @property
    def weighs(self) -> bool:
        """Whether what drives is the weighted baseline, and not the plain sum."""
        return self.baseline_uncertainty is not None or self.atom_uncertainty is not None

    @property
    def spread_of_delta_alone(self) -> bool:
        """Whether what the baseline misses of its own reference is not in the spread.

        It is in it where every member learned label minus the answer of this baseline, which is what `beadwork train`
        lets them learn; its cards name their data set. Of others that is not known, so it is not claimed.
        """
        known = all("dataset" in card.about for card in self.member_cards)
        return bool(self.baseline_cards) and len(self.member_cards) > 1 and not known

    @property
    def knows_novelty(self) -> bool:
        """Whether any of the models knows what it was trained on."""
        return any(getattr(engine, "training_set", None) is not None for engine in self.engines)

    @property
    def cutoff(self) -> float:
        """The largest cutoff of all models, Å, and of what is weighed."""
        return self.builder.cutoff

    def check_species(self, numbers: Sequence[int] | IntArray) -> None:
        """Raise ModelError, naming the element and the model, for an atomic number that some model lacks."""
        for z in sorted({int(n) for n in numbers}):
            for engine in self.engines:
                if engine.elements and z not in engine.elements:
                    known = ", ".join(_symbol(e) for e in engine.elements)
                    raise ModelError(
                        f"the system has {_symbol(z)} (atomic number {z}), which the model {engine.name} does not know "
                        f"(it knows {known}); use models trained with {_symbol(z)}"
                    )

    def with_committee(self, other: Potential) -> Potential:
        """This one's baseline with another's members, weights and alpha. Raises ModelError as the class does."""
        whole = Potential(
            self.baseline,
            other.members,
            other.weights.tolist(),
            other.alpha,
            self.baseline_uncertainty,
            reference=other.reference,
            usual=other.usual,
            energy_alpha=other.energy_alpha,
            atom_uncertainty=self.atom_uncertainty,
        )
        whole.share_room(self)
        whole.cards = (*self.baseline_cards, *other.cards)
        return whole

    def without_baseline(self) -> Potential:
        """The committee alone, without cards, weighed as it is beside the baseline."""
        alone = Potential(
            None,
            self.members,
            self.weights.tolist(),
            self.alpha,
            reference=self.reference,
            usual=self.usual,
            energy_alpha=self.energy_alpha,
        )
        alone.baseline_uncertainty, alone.atom_uncertainty = self.baseline_uncertainty, self.atom_uncertainty
        alone.builder = GraphBuilder(self.cutoff)
        alone.share_room(self)
        return alone

    def share_room(self, other: Potential) -> None:
        """Take no more at once than another one does on the same device."""
        self.max_edges, self._most = other.max_edges, other._most
        self._wait, self._left = other._wait, other._left

    def fit(self, frame: Frame, device: str, structures: int) -> list[str]:
        """Choose max_edges by what this structure takes and what is free; say where so many do not fit at once."""
        graph = self._graph([frame])
        self.max_edges = self._most = memory.fitting(self.engines, graph, device)
        if self.max_edges is None or self.max_edges >= structures * len(graph.neighbor):
            return []
        count = max(1, self.max_edges // len(graph.neighbor))
        return [f"{count} of {structures} structures are evaluated at once, by what they take and what memory is free"]

    def settle(self, frame: Frame) -> list[str]:
        """Let every engine that has a choice choose on this structure; return a sentence for each.

        Raises ModelError where the native engine was asked for and does not agree with TorchScript.
        """
        graph = self._graph([frame])
        return [e.settle(graph) for e in self.engines if isinstance(e, AutoEngine)]

    def evaluate(self, frames: Sequence[Frame], member_forces: bool = False) -> Evaluation:
        """Evaluate frames in one pass, in their order.

        member_forces: also return every member's forces and virials. Raises GeometryError, ModelError for an unknown
        species or an engine that fails, NonFiniteError for a model that answers NaN or infinity, ResourceError where
        memory does not suffice for a single structure.
        """
        started = time.perf_counter()
        try:
            graph = self._graph(frames)
            evaluation = self.evaluate_graph(graph, member_forces)
        except MemoryError as error:  # of what is ours, not a model's
            raise ResourceError(
                f"there is no memory for the pairs of atoms of {len(frames)} structures ({error}); "
                "let fewer come at once (<batch_size>), or give the job more memory"
            ) from error
        evaluation.seconds["graph"] = time.perf_counter() - started - sum(evaluation.seconds.values())
        return evaluation

    def look_ahead(self) -> None:
        """Do now, while nobody waits, what the next evaluation would have to do before it can begin."""
        self.builder.look_ahead()

    def evaluate_graph(self, graph: Graph, member_forces: bool = False) -> Evaluation:
        """Evaluate a graph that was built with a cutoff of at least `cutoff`."""
        seconds: dict[str, float] = {}
        limit = self.max_edges = self._limit(graph)
        graphs = {cutoff: graph.within(cutoff) for cutoff in {engine.cutoff for engine in self.engines}}  # once for all
        baseline = None if self.baseline is None else self._run(self.baseline, graphs, seconds)
        answers = [self._run(member, graphs, seconds) for member in self.members]
        started = time.perf_counter()
        before = sum(seconds.values())
        evaluation = self._combine(graph, graphs, baseline, answers, member_forces, seconds)
        novelty = _novelty(graph, baseline, answers)
        _check_finite("the sum of the models", graph, evaluation)
        seconds["reduce"] = time.perf_counter() - started - (sum(seconds.values()) - before)
        models = tuple(card.hash for card in self.cards)
        notes: tuple[str, ...] = ()
        if self.max_edges != limit:
            self._left, self._wait = self._wait, 2 * self._wait
            notes = (
                f"{len(graph)} structures at once were more than memory holds: for the next {self._left} evaluations "
                f"{self.max_edges} edges at once of their {len(graph.neighbor)}, with the same result",
            )
        weights = tuple(self.weights.tolist()) if len(set(self.weights.tolist())) > 1 else ()
        found = replace(evaluation, novelty=novelty, models=models, weights=weights)
        return replace(found, closest=graph.closest, notes=notes, seconds=seconds)

    def _limit(self, graph: Graph) -> int | None:
        """max_edges of this evaluation: twice as many when a refusal is long enough ago."""
        if self.max_edges is None or self.max_edges == self._most:
            return self.max_edges
        self._left -= 1
        if self._left > 0:
            return self.max_edges
        self._left = self._wait
        more = 2 * self.max_edges
        return self._most if more >= (self._most or len(graph.neighbor)) else more

    def _graph(self, frames: Sequence[Frame]) -> Graph:
        graph = self.builder.build(frames)
        self.check_species(np.flatnonzero(np.bincount(graph.numbers)))
        return graph

    def _run(
        self,
        engine: Engine,
        graphs: Mapping[float, Graph],
        seconds: dict[str, float],
        weights: FloatArray | None = None,
    ) -> Energies:
        started = time.perf_counter()
        graph = graphs[engine.cutoff]
        answer, self.max_edges = memory.evaluate(engine, graph, self.max_edges, weights)
        _check_finite(f"the model {engine.name}", graph, answer)
        seconds[engine.name] = seconds.get(engine.name, 0.0) + time.perf_counter() - started
        return answer

    def _combine(
        self,
        graph: Graph,
        graphs: Mapping[float, Graph],
        baseline: Energies | None,
        answers: Sequence[Energies],
        member_forces: bool,
        seconds: dict[str, float],
    ) -> Evaluation:
        if not answers:
            if baseline is None:
                raise ModelError("there is no model to evaluate")
            b = baseline
            return Evaluation(b.energies, b.forces, b.virials, graph.ptr, baseline, of_atoms=b.of_atoms)
        if len(answers) == 1:
            return _sum(graph, baseline, answers[0])
        w = self.weights
        norm = 1.0 - float((w**2).sum())
        energy = np.array([a.energies for a in answers])
        force = np.array([a.forces for a in answers])
        virial = np.array([a.virials for a in answers])
        mean = Energies(
            np.tensordot(w, energy, axes=1),
            np.tensordot(w, force, axes=1),
            np.tensordot(w, virial, axes=1),
            together([a.of_atoms for a in answers], lambda parts: np.tensordot(w, parts, axes=1)),
        )
        for x, centre in ((energy, mean.energies), (force, mean.forces), (virial, mean.virials)):
            x -= centre
            x *= self.energy_alpha
        # from here on energy, force and virial are deviations after the alpha of energies
        variance = np.tensordot(w, energy**2, axes=1) / norm
        force_spread = np.sqrt(w @ np.einsum("mai,mai->ma", force, force) / (3 * norm))
        force_spread *= self.alpha / self.energy_alpha
        largest = np.maximum.reduceat(force_spread, graph.ptr[:-1])
        delta = mean
        if self.atom_uncertainty is not None:
            delta = self._by_atom(graph, graphs, answers, self.atom_uncertainty, seconds)
        elif self.baseline_uncertainty is not None:
            reference = np.add.reduceat(self._lone(graph), graph.ptr[:-1])
            factor, pull = weigh(mean.energies - reference, energy, w, self.baseline_uncertainty)
            delta = Energies(
                reference + factor * (mean.energies - reference),
                factor[graph.system, None] * mean.forces + np.einsum("ma,mai->ai", pull[:, graph.system], force),
                factor[:, None, None] * mean.virials + np.einsum("ms,msij->sij", pull, virial),
            )
        return _sum(
            graph,
            baseline,
            delta,
            spread=Spread(
                mean.energies + energy,
                np.sqrt(variance),
                force_spread,
                largest,
                _first_index(force_spread, largest, graph),
                self.usual,
            ),
            member_forces=mean.forces + force if member_forces else None,
            member_virials=mean.virials + virial if member_forces else None,
        )

    def _lone(self, graph: Graph) -> FloatArray:
        """(A,) eV: what each atom adds to Δ whatever its environment."""
        return np.array([self.reference.get(z, 0.0) for z in graph.numbers.tolist()])

    def _by_atom(
        self,
        graph: Graph,
        graphs: Mapping[float, Graph],
        answers: Sequence[Energies],
        s: float,
        seconds: dict[str, float],
    ) -> Energies:
        """Δ with the energy of each atom's neighbourhood weighed: a second pass of every member, with weights."""
        missing = [e.name for e, a in zip(self.members, answers, strict=True) if a.of_atoms is None]
        if missing:
            raise ModelError(f"{missing[0]} does not say an atom's energy; give the uncertainty of the whole system")
        w, lone = self.weights, self._lone(graph)
        deviations = np.array([a.of_atoms for a in answers])
        own = w @ deviations - lone
        deviations -= own + lone
        deviations *= self.energy_alpha
        around = Neighbourhoods(graph)
        mine, apart = around.gather(own[None])[0], around.gather(deviations)
        factor, pull = weigh(mine, apart, w, s)
        # Σ_i factor_i d(mine_i) + Σ_mi pull_mi d(apart_mi), the deviations' mean being 0 and so that of pull
        weights = w[:, None] * around.spread(factor[None]) + self.energy_alpha * around.spread(pull)
        parts = [self._run(m, graphs, seconds, c) for m, c in zip(self.members, weights, strict=True)]
        forces, virials = around.pull(np.vstack((factor, pull)), np.vstack((own, deviations)))
        of_atoms = lone + factor * mine
        return Energies(
            np.add.reduceat(of_atoms, graph.ptr[:-1]),
            np.sum([part.forces for part in parts], axis=0) + forces,
            np.sum([part.virials for part in parts], axis=0) + virials,
            of_atoms,
        )


def load(
    baseline: str | Path | None = None,
    delta: Sequence[str | Path] = (),
    engine: str = "auto",
    dtype: str = "float64",
    device: str = "cpu",
    weights: Sequence[float] | None = None,
    alpha: float | None = None,
    baseline_uncertainty: float | None = None,
    energy_alpha: float | None = None,
    baseline_uncertainty_atom: float | None = None,
) -> Potential:
    """Load a baseline bundle and Δ bundles as one potential.

    delta: bundles, or one committee's folder, or one pointer to such a folder (`members_of`). weights, alpha and
    energy_alpha, where not given, come from the committee.toml beside the Δ bundles, if it is about exactly these; else
    they are equal and 1. An alpha that is given is that of energies too, unless they have their own. Raises ModelError
    for bundles that are damaged or do not go together.
    """
    paths = members_of(delta)
    members = [load_card(p) for p in paths]
    cards = ([load_card(baseline)] if baseline is not None else []) + members
    _check_together(cards, members)
    committee = load_committee(paths) if paths else None
    notes = []
    usual = None
    if committee is not None:
        if energy_alpha is None:
            energy_alpha = committee.energy_alpha if alpha is None else alpha
        if alpha is None:
            alpha = committee.alpha
        if weights is None:
            weights = [committee.weights[p.resolve().name] for p in paths]
        usual = None if committee.usual is None else committee.usual * alpha / committee.alpha
        notes.append(
            f"committee.toml: alpha {committee.alpha:g} of forces and {committee.energy_alpha:g} of energies, weights "
            f"{dict(committee.weights)}"
        )
    elif any((path.resolve().parent / COMMITTEE).exists() for path in paths):
        notes.append(
            f"the {COMMITTEE} beside the Δ models is about other members than these, so its alpha and weights are not "
            "used: the spread is not calibrated"
        )
    opened = [open_engine(card.path, engine, dtype, device) for card in cards]
    base = opened.pop(0) if baseline is not None else None
    alpha = 1.0 if alpha is None else alpha
    potential = Potential(
        base,
        opened,
        weights,
        alpha,
        baseline_uncertainty,
        usual=usual,
        energy_alpha=energy_alpha,
        atom_uncertainty=baseline_uncertainty_atom,
    )
    for weight, member in zip(potential.weights.tolist(), opened, strict=True):
        for z, energy in member.reference.items():
            potential.reference[z] = potential.reference.get(z, 0.0) + weight * energy
    potential.cards = tuple(cards)
    potential.notes = notes
    if unknown := [card.name for card in cards if card.novelty is None]:
        notes.append(
            f"what {', '.join(unknown)} learned from is not known, so nothing is said of which atoms are new to it "
            "(beadwork models novelty)"
        )
    return potential


def load_for(config: ServeConfig) -> Potential:
    """Load what a configuration names. Raises ModelError."""
    return load(
        config.baseline,
        config.delta,
        config.engine,
        config.dtype,
        config.device,
        config.weights,
        config.alpha,
        config.baseline_uncertainty,
        config.energy_alpha,
        config.baseline_uncertainty_atom,
    )


def _check_together(cards: Sequence[Card], members: Sequence[Card]) -> None:
    for card in members[1:]:
        first = members[0]
        if card.elements != first.elements:
            raise ModelError(
                f"{card.path} knows {_names(card.elements)} but {first.path} knows {_names(first.elements)}; "
                "the members of a committee must be trained for the same elements"
            )
        if card.dtype != first.dtype:
            raise ModelError(
                f"{card.path} was trained in {card.dtype} but {first.path} in {first.dtype}; "
                "the members of a committee must be trained in one precision"
            )
    if len(cards) > len(members):
        check_baseline(cards[0], members)
    if len(cards) > len(members) and members and not set(cards[0].elements) & set(members[0].elements):
        raise ModelError(
            f"the baseline {cards[0].path} knows {_names(cards[0].elements)} and {members[0].path} knows "
            f"{_names(members[0].elements)}: no element in common, so they cannot be summed"
        )
    paths = [card.path.resolve() for card in members]
    if len(set(paths)) < len(paths):
        raise ModelError("a Δ model is given twice; each member of the committee must be another one")


def check_baseline(baseline: Card, members: Sequence[Card]) -> None:
    """Raise ModelError for a Δ whose card says that it is the difference to another baseline."""
    for card in members:
        made_for = card.about.get("baseline")
        if isinstance(made_for, str) and made_for.startswith("sha256:") and made_for != baseline.hash:
            raise ModelError(
                f"{card.path} is the difference to the baseline {made_for[:19]}…, and {baseline.path} is "
                f"{baseline.hash[:19]}…: their sum means nothing; give the baseline that it was trained against, or "
                "train it again (where it is the same model imported anew, write its hash into the Δ's card)"
            )


def _sum(graph: Graph, baseline: Energies | None, delta: Energies, **rest: object) -> Evaluation:
    total = delta
    if baseline is not None:
        total = Energies(
            baseline.energies + delta.energies,
            baseline.forces + delta.forces,
            baseline.virials + delta.virials,
            together([baseline.of_atoms, delta.of_atoms], sum),
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


def _novelty(graph: Graph, baseline: Energies | None, answers: Sequence[Energies]) -> Novelty | None:
    of = {} if baseline is None or baseline.novelty is None else {"baseline": baseline.novelty}
    if members := [answer.novelty for answer in answers if answer.novelty is not None]:
        of["delta"] = np.maximum.reduce(members)
    if not of:
        return None
    atoms = np.maximum.reduce(list(of.values()))
    largest = np.maximum.reduceat(atoms, graph.ptr[:-1])
    return Novelty(of, atoms, largest, _first_index(atoms, largest, graph))


def _first_index(values: FloatArray, largest: FloatArray, graph: Graph) -> IntArray:
    """For each system, the atom (counted within it) that has the largest value."""
    at = np.flatnonzero(values == largest[graph.system])
    systems, first = np.unique(graph.system[at], return_index=True)
    return at[first] - graph.ptr[systems]


def _check_finite(model: str, graph: Graph, answer: Energies | Evaluation) -> None:
    if np.isfinite(answer.energies).all() and np.isfinite(answer.forces).all() and np.isfinite(answer.virials).all():
        return
    good = np.isfinite(answer.forces).all(axis=1)
    if good.all():
        bad = ~np.isfinite(answer.energies) | ~np.isfinite(answer.virials).all(axis=(1, 2))
        system = int(np.argmax(bad))
        what = "energy or virial"
    else:
        atom = int(np.argmin(good))
        system = int(graph.system[atom])
        what = f"force on atom {atom - int(graph.ptr[system])}"
    raise NonFiniteError(
        f"{model} answered NaN or infinity for {graph.where(system)} ({what}); nothing was sent. "
        "The structure is far from what the model knows, or the model is broken"
    )


def _symbol(z: int) -> str:
    from ase.data import chemical_symbols

    return str(chemical_symbols[z]) if 0 < z < len(chemical_symbols) else f"Z={z}"


def _names(elements: Sequence[int]) -> str:
    return ", ".join(_symbol(z) for z in elements)
