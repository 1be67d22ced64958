"""The contract of an engine: a graph of many systems in, energies and their derivatives out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from beadwork.errors import ModelError
from beadwork.frame import FloatArray
from beadwork.potential.graph import Graph
from beadwork.potential.novelty import TrainingSet

#: edges that one head of a trunk evaluates at once: compiled kernels keep their buffers, and there are many heads
HEAD_EDGES = 24_000
#: eV/Å: tolerances hold for forces up to this, the largest in ordinary dynamics; where forces are larger they grow
USUAL_FORCE = 10.0


@dataclass(frozen=True, slots=True)
class Energies:
    """One model's result for every system in a graph of S systems and A atoms in all.

    energies: (S,) eV. forces: (A, 3) eV/Å, systems one after the other. virials: (S, 3, 3) eV, symmetric, minus
    stress times volume (positive under compression), the sign that i-PI's wire has. of_atoms: (A,) eV, each atom's part
    of the energy, its reference energy included; None where the engine has none. novelty: (A,) how far each atom is
    from those that the model was trained on, 1 at their edge (`potential.novelty`); None where that is not known.
    of_heads: (M, S) eV, energies of the heads where the model is the mean of M (`potential.heads`); else None.
    response: what the same evaluation says of an electric field, where that was asked (`response.Joint`); else None.
    """

    energies: FloatArray
    forces: FloatArray
    virials: FloatArray
    of_atoms: FloatArray | None = None
    novelty: FloatArray | None = None
    of_heads: FloatArray | None = None
    response: Response | None = None

    @staticmethod
    def joined(pieces: Sequence[Energies]) -> Energies:
        """The results of consecutive runs of systems as one."""
        responses = [p.response for p in pieces if p.response is not None]
        return Energies(
            np.concatenate([p.energies for p in pieces]),
            np.concatenate([p.forces for p in pieces]),
            np.concatenate([p.virials for p in pieces]),
            combine_known([p.of_atoms for p in pieces], np.concatenate),
            combine_known([p.novelty for p in pieces], np.concatenate),
            combine_known([p.of_heads for p in pieces], lambda parts: np.concatenate(parts, axis=1)),
            Response.joined(responses) if responses else None,
        )


@dataclass(frozen=True, slots=True)
class Response:
    """One model's answer to an electric field, of a graph of S systems and A atoms in all (`potential.response`).

    dipole: (S, 3) e Å. born: (A, 3, 3) e: born[i, j, k] is the derivative of the dipole's component k by position
    component j of atom i. polarizability: (S, 3, 3) e Å²/V, the derivative of the dipole by the field. None where the
    model was not asked, or has none.
    """

    dipole: FloatArray | None
    born: FloatArray | None
    polarizability: FloatArray | None

    @staticmethod
    def joined(pieces: Sequence[Response]) -> Response:
        """The results of consecutive runs of systems as one."""
        return Response(
            *(
                combine_known([getattr(p, name) for p in pieces], np.concatenate)
                for name in ("dipole", "born", "polarizability")
            )
        )


Answer = TypeVar("Answer", Energies, Response)
Answer_co = TypeVar("Answer_co", Energies, Response, covariant=True)


class Evaluates(Protocol[Answer_co]):
    """Whatever answers a graph: `Engine`, or `response.ResponseEngine`."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    @property
    def cutoff(self) -> float:
        """Å."""
        ...

    def evaluate(self, graph: Graph) -> Answer_co:
        """Evaluate every system of the graph in one call."""
        ...


def join(pieces: Sequence[Answer]) -> Answer:
    """Concatenate the results of consecutive runs of systems."""
    return pieces[0] if len(pieces) == 1 else type(pieces[0]).joined(pieces)


def combine_known(parts: Sequence[FloatArray | None], put: Callable[[list[FloatArray]], Any]) -> FloatArray | None:
    """Combine parts with `put`; None where one of them is None, since a sum or mean of some would mean nothing."""
    known = [part for part in parts if part is not None]
    return put(known) if len(known) == len(parts) else None


@runtime_checkable
class Weighted(Protocol):
    """An engine that can weigh the atoms' energies one by one."""

    def weighted(self, graph: Graph, weights: FloatArray) -> Energies:
        """The energy Σ_i weights_i (energy of atom i), with its derivatives. weights: (A,)."""
        ...


@runtime_checkable
class Trunk(Protocol):
    """An engine whose model is the mean of M heads on one trunk (`potential.heads`): it answers `of_heads`.

    heads: M; 0 for a model that is no such mean.
    """

    name: str
    cutoff: float
    elements: tuple[int, ...]
    heads: int

    def open_head(self, number: int, *, weighing: bool) -> Engine:
        """One of the heads as an engine of its own; weighing: `Weighted`, where there is such a one."""
        ...


class Engine(Protocol):
    """Anything that evaluates a graph: TorchScript MACE, compiled kernels, a harmonic test potential.

    Every engine passes the same contract check (tests/support/contract.py). An engine keeps no state between
    calls that a caller can see; it need not be safe to call from two threads at once.
    """

    #: its name in messages, e.g. "delta-2 (native, float64)"
    name: str
    #: Å; the graph may have been built with a larger one, the engine ignores longer edges
    cutoff: float
    #: atomic numbers it knows, ascending; empty means any
    elements: tuple[int, ...]

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate every system of the graph in one call."""
        ...


class Addition(Engine, Protocol):
    """An engine without a bundle, whose energy is added to the baseline's."""

    #: what stands for it in the hash of all models, prefixed
    hash: str


class FeatureEngine(Engine, Protocol):
    """An engine that gives the features by which its model tells atoms apart."""

    #: what the model was trained on, where its bundle says; `evaluate` then returns novelty
    training_set: TrainingSet | None

    def features(self, graph: Graph) -> FloatArray:
        """(A, F): the node features' scalars of every atom, the same in every engine (`potential.novelty`)."""
        ...


class Head:
    """One head of a trunk as an engine, opened when it is first asked. It says no novelty: that is its trunk's."""

    def __init__(self, trunk: Trunk, number: int) -> None:
        self.name = f"{trunk.name.partition(' (')[0]}, head {number}"  # whatever engine the trunk will select
        self.cutoff, self.elements = trunk.cutoff, trunk.elements
        self._trunk, self._number = trunk, number
        self._opened: dict[bool, Engine] = {}

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate every system of the graph with this head, some at a time."""
        engine = self._engine(weighing=False)
        return join([engine.evaluate(graph.part(a, b)) for a, b in graph.pieces(HEAD_EDGES)])

    def weighted(self, graph: Graph, weights: FloatArray) -> Energies:
        """As `Weighted` has it."""
        engine = self._engine(weighing=True)
        if not isinstance(engine, Weighted):
            raise ModelError(f"{self.name} cannot weigh an atom's energy")
        return engine.weighted(graph, weights)

    def _engine(self, *, weighing: bool) -> Engine:
        # both kinds may be wanted: the compiled one cannot weigh, and torchscript is slower
        if weighing not in self._opened:
            self._opened[weighing] = self._trunk.open_head(self._number, weighing=weighing)
        return self._opened[weighing]
