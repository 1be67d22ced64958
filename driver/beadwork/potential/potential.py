"""Baseline plus the mean of a Δ committee, and how far the committee's members disagree."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from beadwork.config import SENSE, sensible, weighs
from beadwork.errors import ModelError, ResourceError
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.potential import memory
from beadwork.potential.auto_engine import AutoEngine
from beadwork.potential.bundle import Card, committee_hash
from beadwork.potential.engine import (
    Addition,
    Answer,
    Energies,
    Engine,
    Evaluates,
    Head,
    Trunk,
    Weighted,
    combine_known,
)
from beadwork.potential.evaluation import Evaluation, Quantity, Spread, check_finite, first_index, novelty_of, summed
from beadwork.potential.graph import Graph, GraphBuilder
from beadwork.potential.response import ResponseEngine, Role
from beadwork.potential.weighting import AVERAGING_RADIUS, Neighbourhoods, weigh

#: evaluations after an out-of-memory error until more edges at once are tried; doubled after each further error
RETRY_AFTER_EVALUATIONS = 1000
#: characters of a committee's hash that extras and log show: `sha256:` and twelve digits, enough to tell it apart
SHORT_HASH_CHARACTERS = 19

# Members' energies, forces and virials have the member as their first index: (M, S), (M, A, 3), (M, S, 3, 3).


class Potential:
    """E = E_base + sum_m w_m E_m, with the committee's spread (formulas: docs/formulas.md).

    weights: one for each member, scaled to sum 1; None for equal ones. With weights w the mean of x is
    sum_m w_m x_m and its variance sum_m w_m (x_m - mean)^2 / (1 - sum_m w_m^2), which for equal weights is the sample
    variance that i-PI's ffcommittee computes. The force spread of an atom is
    sqrt(sum_m w_m |F_m - mean|^2 / (3 (1 - sum_m w_m^2))).

    alpha, energy_alpha: scale the members' deviations from their mean (Musil et al., J. Chem. Theory Comput. 15, 906,
    2019): alpha in the force spread, energy_alpha in all that is an energy or the derivative of one: the energy spread,
    the members' energies, forces and virials, and the variance of the weighted baseline. energy_alpha None: alpha.

    usual: eV/Å after alpha, the largest force spread of a frame like those that the committee learned from; None where
    that is not known.

    baseline_uncertainty: s in eV per system, or None. With it the sum is
    V_base + E_ref + s^2/(s^2 + var) (V_Δ - E_ref), and force and virial are its exact derivatives (Imbalzano et al.,
    J. Chem. Phys. 154, 074102, 2021, with E_ref = 0).
    atom_uncertainty: s in eV/atom, or None: the same for the energy of each atom's neighbourhood
    (`weighting.Neighbourhoods`), so that parts of a system which are far apart have the energies that they have alone.
    reference: atomic number -> eV, what an atom adds to V_Δ whatever its environment, and so to E_ref. A constant times
    a factor that falls where the committee disagrees would be a force.

    max_edges: evaluate in pieces of no more edges than this (a single system is never cut), None for all at once. It is
    lowered after an out-of-memory error and doubled again after some time, because the error may have been due to
    another process.

    members: M models, or the one that is the mean of M heads on one trunk (`engine.Trunk`), of equal weights: then the
    heads are the members, models has their mean, and trunk is it; else models are the members, and trunk is None.

    charge, spin: e and unpaired electrons of every frame, for models that want them; a frame that says others is
    refused. None where they are not given, and each frame must say its own.

    also: models of dipoles or polarizabilities, which are evaluated with the rest.

    additions: what is added to the baseline by formula (`potential.dispersion`); part of it in all that is told.

    cards: of the baseline and the models, in this order, where they come from bundles. notes: sentences for the log.
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
        cards: Sequence[Card] = (),
        notes: Sequence[str] = (),
        charge: int | None = None,
        spin: int | None = None,
        also: Sequence[Role] = (),
        additions: Sequence[Addition] = (),
    ) -> None:
        self.also = tuple(also)
        self.additions = tuple(additions)
        #: their names and hashes, which the part that serves Δ alone has too
        self.added = {one.name: one.hash for one in additions}
        self.charge, self.spin = charge, spin
        self.reference = dict(reference or {})
        self.usual = usual
        self.baseline = baseline
        self.models = tuple(members)
        first = self.models[0] if len(self.models) == 1 else None
        self.trunk = first if isinstance(first, Trunk) and first.heads > 1 else None
        if self.trunk is None and (among := [e.name for e in self.models if isinstance(e, Trunk) and e.heads > 1]):
            raise ModelError(f"{among[0]} is a whole committee on one trunk", "serve it as the only Δ model")
        heads = 0 if self.trunk is None else self.trunk.heads
        self.members = tuple(Head(self.trunk, m) for m in range(heads)) if self.trunk else self.models
        self.alpha = alpha
        self.energy_alpha = alpha if energy_alpha is None else energy_alpha
        self.baseline_uncertainty = baseline_uncertainty
        self.atom_uncertainty = atom_uncertainty
        self.max_edges = max_edges
        self._most = max_edges  # what the memory that was free at the start can hold
        self._wait = RETRY_AFTER_EVALUATIONS  # evaluations from an out-of-memory error to the next trial
        self._left = 0  # evaluations that remain until that trial
        self.notes = list(notes)
        self.cards = tuple(cards)
        if baseline is None and not members:
            raise ModelError("there is no model to evaluate: give a baseline, Δ models, or both")
        if additions and baseline is None:
            raise ModelError(f"{additions[0].name} is added to a baseline, and there is none", "give a baseline")
        self._check_weighted_baseline()
        self.weights = self._shares(weights, len(members))
        self._check_scales()
        # one graph for all: the largest cutoff decides, and models with a shorter one filter its edges
        farthest = max(e.cutoff for e in self._all_engines)
        self.builder = GraphBuilder(farthest if atom_uncertainty is None else max(farthest, AVERAGING_RADIUS))

    def _check_weighted_baseline(self) -> None:
        """Refuse a weighted baseline of models that cannot be weighed against each other. Raises ModelError."""
        whole, of_atoms = self.baseline_uncertainty, self.atom_uncertainty
        if whole is not None and of_atoms is not None:
            raise ModelError(
                "the baseline's uncertainty is given for the whole system and for an atom", "give one of them"
            )
        for s, unit in ((whole, "eV"), (of_atoms, "eV/atom")):
            if s is not None and (self.baseline is None or len(self.members) < 2 or not s > 0):
                raise ModelError(
                    f"a weighted baseline (uncertainty {s} {unit}) needs a baseline, at least two Δ models and a "
                    "positive uncertainty"
                )
        if of_atoms is not None:
            # the factor of each neighbourhood needs the derivative of every atom's energy, which not all engines have
            for member in self.members:
                if not isinstance(member, Weighted):
                    raise ModelError(
                        f"{member.name} cannot weigh an atom's energy", "give the uncertainty of the system"
                    )

    def _shares(self, weights: Sequence[float] | None, models: int) -> FloatArray:
        """(M,) The members' weights, which sum to 1. models: Δ models, of which a trunk is one. Raises ModelError."""
        raw = np.ones(models) if weights is None else np.array(weights, dtype=np.float64)
        if self.trunk and raw.shape != (models,):
            raise ModelError(
                f"weights {raw.tolist()} are given, and the {len(self.members)} heads of a trunk have equal ones, of "
                "which its mean is made",
                "leave them out, or train separate members",
            )
        if raw.shape != (models,) or not all(map(weighs, raw)) or not (raw.any() or not models):
            raise ModelError(
                f"weights {list(weights or ())} do not fit {models} Δ models", f"give each a number {SENSE}, or 0"
            )
        raw = np.ones(len(self.members)) if self.trunk else raw  # what is trained together has one weight
        shares: FloatArray = raw / raw.sum() if len(raw) else raw
        # the sample variance divides by 1 - sum w^2, which is 0 where one member has all the weight
        if len(self.members) > 1 and not (shares**2).sum() < 1 - 1e-12:
            raise ModelError(
                f"weights {raw.tolist()} leave one Δ model alone, so there is no spread", "drop the others"
            )
        return shares

    def _check_scales(self) -> None:
        """Refuse numbers with which squares and sums would leave nothing of the rest. Raises ModelError."""
        scales = {
            "alpha": self.alpha,
            "energy_alpha": self.energy_alpha,
            "baseline_uncertainty": self.baseline_uncertainty,
            "baseline_uncertainty_atom": self.atom_uncertainty,
        }
        for name, scale in scales.items():
            if scale is not None and not sensible(scale):
                raise ModelError(f"{name} is {scale}", f"it must be {SENSE}")

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The baseline, where there is one, what is added to it, and the Δ models: the members, or their trunk."""
        return self.models if self.baseline is None else (self.baseline, *self.additions, *self.models)

    @property
    def _all_engines(self) -> tuple[Engine | ResponseEngine, ...]:
        """All that is evaluated: those, and the models of other roles, of which one that is both is there once."""
        rest = [e for role in self.also for e in role.engines if e.joint is None or e.joint.of not in self.engines]
        return (*map(self._jointly, self.engines), *rest)

    def _jointly(self, engine: Engine) -> Engine:
        """The engine, or the one that answers what is asked of its model in another role too."""
        joints = (e.joint for role in self.also for e in role.engines)
        return next((joint for joint in joints if joint is not None and joint.of is engine), engine)

    @property
    def identity(self) -> str | None:
        """One hash of the models that answer, with their weights, as the queue's rows have it; None without cards."""
        hashes = self._hashes()
        return committee_hash(hashes, self.weights.tolist()) if hashes else None

    def _hashes(self) -> list[str]:
        """Of all that drives i-PI, the baseline first, then what is added to it; none without cards."""
        hashes = [card.hash for card in self.cards]
        # of the part that serves the baseline the Δ models' cards stand behind its own: what is added has a baseline
        return [*hashes[:1], *(self.added.values() if hashes else ()), *hashes[1:]]

    @property
    def short_identity(self) -> str | None:
        """The same as the extras and the log have it: `sha256:` and twelve digits."""
        return (found := self.identity) and found[:SHORT_HASH_CHARACTERS]

    @property
    def folder(self) -> str:
        """Where the committee lies."""
        return str(self.cards[-1].path.parent) if self.cards else "no bundle"

    @property
    def baseline_cards(self) -> tuple[Card, ...]:
        """What stands before the Δ models' cards: the baseline's, which the part that serves Δ alone has too."""
        return self.cards[: len(self.cards) - len(self.models)]

    @property
    def member_cards(self) -> tuple[Card, ...]:
        """The cards of the Δ models, in their order."""
        return self.cards[len(self.cards) - len(self.models) :]

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
        # `beadwork train` alone writes this entry; what other programs trained against cannot be known from a card
        known = all("dataset" in card.about for card in self.member_cards)
        return bool(self.baseline_cards) and len(self.members) > 1 and not known

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
            for engine in self._all_engines:
                if engine.elements and z not in engine.elements:
                    known = ", ".join(_symbol(e) for e in engine.elements)
                    raise ModelError(
                        f"the system has {_symbol(z)} (atomic number {z}), which the model {engine.name} does not know "
                        f"(it knows {known})",
                        f"use models trained with {_symbol(z)}",
                    )

    def with_committee(self, other: Potential) -> Potential:
        """This one's baseline with another's members, weights and alpha. Raises ModelError as the class does."""
        # the uncertainties of the weighted baseline belong to the baseline, alpha and reference energies to the members
        whole = Potential(
            self.baseline,
            other.models,
            other._of_models(),
            other.alpha,
            self.baseline_uncertainty,
            reference=other.reference,
            usual=other.usual,
            energy_alpha=other.energy_alpha,
            atom_uncertainty=self.atom_uncertainty,
            cards=(*self.baseline_cards, *other.cards),
            charge=self.charge,
            spin=self.spin,
            also=self.also,
            additions=self.additions,
        )
        whole.members = other.members  # heads that are open stay so: to open them is no work for a step
        whole.share_memory_limit(self)
        return whole

    def without_baseline(self) -> Potential:
        """The committee alone, weighed as it is beside the baseline, with the cards of both."""
        alone = Potential(
            None,
            self.models,
            self._of_models(),
            self.alpha,
            reference=self.reference,
            usual=self.usual,
            energy_alpha=self.energy_alpha,
            cards=self.cards,
            charge=self.charge,
            spin=self.spin,
        )
        alone.added = self.added
        alone.members = self.members  # which would be opened, and be in memory, twice
        # set afterwards, because the constructor refuses a weighted baseline without a baseline: i-PI adds the baseline
        # itself here, from the forcefield that serves it, and Δ must have the same factor as in the sum
        alone.baseline_uncertainty, alone.atom_uncertainty = self.baseline_uncertainty, self.atom_uncertainty
        alone.builder = GraphBuilder(self.cutoff)
        alone.share_memory_limit(self)
        return alone

    def with_also(self, also: Sequence[Role]) -> Potential:
        """The same models, with these of other roles."""
        other = copy.copy(self)
        other.also = tuple(also)
        other.builder = GraphBuilder(max(self.cutoff, *(e.cutoff for e in other._all_engines)))
        return other

    def without_delta(self) -> Potential:
        """The baseline alone, with the cards of both: each part names all models that drive i-PI."""
        alone = Potential(self.baseline, cards=self.cards, charge=self.charge, spin=self.spin, additions=self.additions)
        alone.share_memory_limit(self)
        return alone

    def _of_models(self) -> list[float] | None:
        """The weights as the class takes them."""
        weights: list[float] = self.weights.tolist()
        return None if self.trunk else weights

    def share_memory_limit(self, other: Potential) -> None:
        """Evaluate no more edges at once than another potential does on the same device."""
        self.max_edges, self._most = other.max_edges, other._most
        self._wait, self._left = other._wait, other._left

    def fit(self, frame: Frame, device: str, structures: int) -> list[str]:
        """Choose max_edges from the memory that this structure needs and that is free; return a message where
        `structures` of them do not fit at once."""
        graph = self._graph([frame])
        # heads stay in memory once they are open, and take turns with the mean
        heads = self.members if self.trunk else ()
        self.max_edges = self._most = memory.edges_that_fit([*self._all_engines, *heads], graph, device)
        if self.max_edges is None or self.max_edges >= structures * len(graph.neighbor):
            return []
        count = max(1, self.max_edges // len(graph.neighbor))
        return [f"{count} of {structures} structures are evaluated at once, by what they take and what memory is free"]

    def select_backends(self, frame: Frame) -> list[str]:
        """Let each 'auto' engine select and verify its backend on this structure; return a message for each.

        Raises ModelError where the native engine was asked for and does not agree with TorchScript.
        """
        graph = self._graph([frame])
        return [e.select_backend(graph) for e in self.engines if isinstance(e, AutoEngine)]

    def evaluate(self, frames: Sequence[Frame], member_forces: bool = False, force_spread: bool = True) -> Evaluation:
        """Evaluate frames in one pass, in their order.

        member_forces: also return every member's forces and virials. force_spread: False leaves it out where the
        members are heads on one trunk and it would cost an evaluation of each (`Spread.of_system`); separate members,
        and heads by which the baseline is weighted, bring it with them. Raises GeometryError, ModelError for an unknown
        species or an engine that fails, NonFiniteError for a model that returns NaN or infinity, ResourceError where
        memory does not suffice for a single structure.
        """
        started = time.perf_counter()
        try:
            graph = self._graph(frames)
            evaluation = self.evaluate_graph(graph, member_forces, force_spread)
        except MemoryError as error:  # while the graph was built: a model's own error is handled in `memory.evaluate`
            raise ResourceError(
                f"there is no memory for the pairs of atoms of {len(frames)} structures ({error})",
                "let fewer come at once (<batch_size>), or give the job more memory",
            ) from error
        # all that no model and no reduction took: building the graph and filtering it for shorter cutoffs
        evaluation.seconds["graph"] = time.perf_counter() - started - sum(evaluation.seconds.values())
        return evaluation

    def prefetch(self) -> None:
        """Build the pair lists that the next evaluation will need, in the time in which i-PI integrates."""
        self.builder.prefetch()

    def evaluate_graph(self, graph: Graph, member_forces: bool = False, force_spread: bool = True) -> Evaluation:
        """Evaluate a graph that was built with a cutoff of at least `cutoff`."""
        seconds: dict[str, float] = {}
        limit = self.max_edges = self._limit(graph)
        # filtered once for each cutoff, not once for each model: all engines see the same object, so a device copy of
        # it is made once too (`device.bring`)
        graphs = {cutoff: graph.within(cutoff) for cutoff in {engine.cutoff for engine in self._all_engines}}
        baseline = None
        if self.baseline is not None:
            baseline = self._run(self._jointly(self.baseline), graphs, seconds)
            for addition in self.additions:
                baseline = _plus(baseline, self._run(addition, graphs, seconds))
        of_models = [self._run(self._jointly(model), graphs, seconds) for model in self.models]
        results = of_models
        whole = force_spread or member_forces or self.weighs
        if self.trunk is not None and whole:
            results = [self._run(head, graphs, seconds) for head in self.members]
        started = time.perf_counter()
        before = sum(seconds.values())
        if self.trunk is not None and not whole:
            evaluation = self._of_energies(graph, baseline, results[0])
        else:
            evaluation = self._combine(graph, graphs, baseline, results, member_forces, seconds)
        novelty = novelty_of(graph, baseline, of_models)
        told = {id(self.baseline): baseline} if self.baseline is not None else {}
        told |= {id(model): result for model, result in zip(self.models, of_models, strict=True)}
        response: dict[str, Quantity] = {}
        for role in self.also:
            answers = []
            for engine in role.engines:
                jointly = None if engine.joint is None else told.get(id(engine.joint.of))
                known = None if jointly is None else jointly.response
                answers.append(self._run(engine, graphs, seconds) if known is None else known)
            response |= role.combine(answers)
        # finite parts can have a sum that is not, and i-PI integrates NaN without a word
        check_finite("the sum of the models", graph, evaluation)
        # `_combine` may evaluate members again (weighted baseline by atom), which adds to their own seconds
        seconds["reduce"] = time.perf_counter() - started - (sum(seconds.values()) - before)
        models = tuple(self._hashes())
        notes: tuple[str, ...] = ()
        if self.max_edges != limit:
            self._left, self._wait = self._wait, 2 * self._wait
            notes = (
                f"{len(graph)} structures at once do not fit into memory: the next {self._left} evaluations take "
                f"{self.max_edges} of their {len(graph.neighbor)} edges at once, with the same result",
            )
        # equal weights are left out, so that a committee has one hash whether its card lists them or not
        weights = tuple(self.weights.tolist()) if len(set(self.weights.tolist())) > 1 else ()
        evaluation = replace(evaluation, novelty=novelty, response=response, models=models, weights=weights)
        return replace(evaluation, closest=graph.closest, notes=notes, seconds=seconds)

    def _limit(self, graph: Graph) -> int | None:
        """max_edges of this evaluation: twice as many when the last out-of-memory error is long enough ago."""
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
        # a bincount is far cheaper than np.unique on the numbers of all beads, and this runs at every step
        self.check_species(np.flatnonzero(np.bincount(graph.numbers)))
        if self.charge is None and self.spin is None:
            return graph
        for system, said in enumerate(graph.states):
            for what, its, given in zip(("charge", "spin"), said, (self.charge, self.spin), strict=True):
                if its is not None and given is not None and its != given:
                    raise ModelError(
                        f"{graph.where(system)} has the {what} {its}, and the models are told {given}",
                        "correct one of the two, or leave one out",
                    )
        own = ((self.charge if q is None else q, self.spin if s is None else s) for q, s in graph.states)
        return replace(graph, states=tuple(own))

    def _run(
        self,
        engine: Evaluates[Answer],
        graphs: Mapping[float, Graph],
        seconds: dict[str, float],
        weights: FloatArray | None = None,
    ) -> Answer:
        started = time.perf_counter()
        graph = graphs[engine.cutoff]
        result: Answer
        result, self.max_edges = memory.evaluate(engine, graph, self.max_edges, weights)
        # checked model by model, so that the message names the one that is broken
        check_finite(f"the model {engine.name}", graph, result)
        seconds[engine.name] = seconds.get(engine.name, 0.0) + time.perf_counter() - started
        return result

    def _combine(
        self,
        graph: Graph,
        graphs: Mapping[float, Graph],
        baseline: Energies | None,
        results: Sequence[Energies],
        member_forces: bool,
        seconds: dict[str, float],
    ) -> Evaluation:
        if not results:
            if baseline is None:
                raise ModelError("there is no model to evaluate")
            b = baseline
            return Evaluation(b.energies, b.forces, b.virials, graph.ptr, baseline, of_atoms=b.of_atoms)
        if len(results) == 1:
            return summed(graph, baseline, results[0])
        w = self.weights
        norm = 1.0 - float((w**2).sum())
        energy = np.array([r.energies for r in results])
        force = np.array([r.forces for r in results])
        virial = np.array([r.virials for r in results])
        mean = Energies(
            np.tensordot(w, energy, axes=1),
            np.tensordot(w, force, axes=1),
            np.tensordot(w, virial, axes=1),
            combine_known([r.of_atoms for r in results], lambda parts: np.tensordot(w, parts, axes=1)),
        )
        # in place: only the deviations from the mean are needed from here on
        for x, centre in ((energy, mean.energies), (force, mean.forces), (virial, mean.virials)):
            x -= centre
            x *= self.energy_alpha
        # from here on energy, force and virial are deviations after the alpha of energies
        variance = np.tensordot(w, energy**2, axes=1) / norm
        # 3: the spread of one Cartesian component, so that it compares with the force error as everyone reports it
        force_spread = np.sqrt(w @ np.einsum("mai,mai->ma", force, force) / (3 * norm))
        force_spread *= self.alpha / self.energy_alpha  # undo energies' alpha, apply that of forces
        largest = np.maximum.reduceat(force_spread, graph.ptr[:-1])
        delta = mean
        if self.atom_uncertainty is not None:
            delta = self._by_atom(graph, graphs, results, self.atom_uncertainty, seconds)
        elif self.baseline_uncertainty is not None:
            # reference energies of hundreds of eV times a factor below 1 would be a force towards disagreement
            reference = np.add.reduceat(self._lone(graph), graph.ptr[:-1])
            factor, pull = weigh(mean.energies - reference, energy, w, self.baseline_uncertainty)
            delta = Energies(
                reference + factor * (mean.energies - reference),
                factor[graph.system, None] * mean.forces + np.einsum("ma,mai->ai", pull[:, graph.system], force),
                factor[:, None, None] * mean.virials + np.einsum("ms,msij->sij", pull, virial),
            )
        return summed(
            graph,
            baseline,
            delta,
            spread=Spread(
                mean.energies + energy,
                np.sqrt(variance),
                force_spread,
                largest,
                first_index(force_spread, largest, graph),
                self.usual,
            ),
            member_forces=mean.forces + force if member_forces else None,
            member_virials=mean.virials + virial if member_forces else None,
        )

    def _of_energies(self, graph: Graph, baseline: Energies | None, mean: Energies) -> Evaluation:
        """Baseline and mean of a trunk, with the spread of its heads' energies alone."""
        if mean.of_heads is None:
            raise ModelError(f"the model {self.models[0].name} does not say what its heads answer")
        away = self.energy_alpha * (mean.of_heads - mean.energies)
        nan = np.full(len(graph.numbers) + len(graph), np.nan)

        def of_system(system: int) -> FloatArray:
            answer = self.evaluate_graph(graph.part(system, system + 1))
            return np.empty(0) if answer.spread is None else answer.spread.force

        spread = Spread(
            mean.energies + away,
            np.sqrt((away**2).sum(axis=0) / (len(away) - 1)),
            nan[len(graph) :],
            nan[: len(graph)],
            np.full(len(graph), -1),
            self.usual,
            of_system,
        )
        return summed(graph, baseline, mean, spread=spread)

    def _lone(self, graph: Graph) -> FloatArray:
        """(A,) eV: what each atom adds to Δ whatever its environment."""
        return np.array([self.reference.get(z, 0.0) for z in graph.numbers.tolist()])

    def _by_atom(
        self,
        graph: Graph,
        graphs: Mapping[float, Graph],
        results: Sequence[Energies],
        s: float,
        seconds: dict[str, float],
    ) -> Energies:
        """Δ with the energy of each atom's neighbourhood weighed: a second pass of every member, with weights."""
        missing = [e.name for e, r in zip(self.members, results, strict=True) if r.of_atoms is None]
        if missing:
            raise ModelError(f"{missing[0]} gives no energies of atoms", "give the uncertainty of the whole system")
        w, lone = self.weights, self._lone(graph)
        deviations = np.array([r.of_atoms for r in results])
        own = w @ deviations - lone
        deviations -= own + lone
        deviations *= self.energy_alpha
        around = Neighbourhoods(graph)
        mine, apart = around.gather(own[None])[0], around.gather(deviations)
        factor, pull = weigh(mine, apart, w, s)
        # Σ_i factor_i d(mine_i) + Σ_mi pull_mi d(apart_mi), the deviations' mean being 0 and so that of pull
        weights = w[:, None] * around.spread(factor[None]) + self.energy_alpha * around.spread(pull)
        # a member's forces with weighted atoms are no weighted sum of what it gave before: it must be derived again
        parts = [self._run(m, graphs, seconds, c) for m, c in zip(self.members, weights, strict=True)]
        forces, virials = around.pull(np.vstack((factor, pull)), np.vstack((own, deviations)))
        of_atoms = lone + factor * mine
        return Energies(
            np.add.reduceat(of_atoms, graph.ptr[:-1]),
            np.sum([part.forces for part in parts], axis=0) + forces,
            np.sum([part.virials for part in parts], axis=0) + virials,
            of_atoms,
        )


def _plus(one: Energies, two: Energies) -> Energies:
    """The sum, with the novelty of the first."""
    return replace(
        one,
        energies=one.energies + two.energies,
        forces=one.forces + two.forces,
        virials=one.virials + two.virials,
        of_atoms=combine_known([one.of_atoms, two.of_atoms], sum),
    )


def _symbol(z: int) -> str:
    from ase.data import chemical_symbols

    return str(chemical_symbols[z]) if 0 < z < len(chemical_symbols) else f"Z={z}"


def _names(elements: Sequence[int]) -> str:
    return ", ".join(_symbol(z) for z in elements)
