"""Open a bundle with one of the engines; the native one is used only after it agreed with the reference engine.

The native engine is young and silent about what it does not support: it computes a model with an unknown part all the
same, and wrongly. So it is verified on every start, on the user's own structure and on a dense trial box.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import covalent_radii

from beadwork.config import DTYPES, ENGINES
from beadwork.errors import ModelError
from beadwork.frame import FloatArray, Frame
from beadwork.packages import pip_install
from beadwork.potential import memory
from beadwork.potential.bundle import Checked, check
from beadwork.potential.eager import EagerEngine, open_exact
from beadwork.potential.engine import USUAL_FORCE, Energies, Engine, FeatureEngine
from beadwork.potential.graph import Graph, build
from beadwork.potential.native import NativeEngine, available
from beadwork.potential.reference_answer import OtherAnswerError
from beadwork.potential.state import sample
from beadwork.potential.torchscript import ModuleEngine, TorchScriptEngine

#: (eV/atom, eV/Å) within which native must agree with torchscript in the same precision
TOLERANCE = {"float64": (1e-6, 1e-5), "float32": (2e-5, 2e-3)}
#: Å: the virial per atom must agree within this times the tolerance of forces: a sum over some fifty neighbours, each
#: with an error of its own, that grows as their root times a distance
VIRIAL_ARM = 10.0
#: relative difference allowed in an atom's novelty: far less than decides whether it is new
NOVELTY_TOLERANCE = 1e-2


def open_engine(
    bundle: str | Path, engine: str = "auto", dtype: str = "float64", device: str = "cpu"
) -> ModuleEngine | AutoEngine:
    """Check a bundle and open it (`open_checked`). Raises ModelError, also for one that fails its check."""
    return open_checked(check(bundle), engine, dtype, device)


def open_checked(
    card: Checked, engine: str = "auto", dtype: str = "float64", device: str = "cpu"
) -> ModuleEngine | AutoEngine:
    """Open a bundle. 'auto' and 'native' select a backend at the first structure; `choice` says which, and why.

    Raises ModelError for an unknown engine or precision, or a native model that cannot be run where 'native' was asked
    for.
    """
    if engine not in ENGINES:
        raise ModelError(f"engine {engine!r} is unknown", f"take one of {', '.join(ENGINES)}")
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown", f"take one of {', '.join(DTYPES)}")
    if engine == "torchscript":
        return TorchScriptEngine(card, dtype, device)
    if engine == "eager":
        return EagerEngine(card, dtype, device)
    return AutoEngine(card, dtype, device, required=engine == "native")


class AutoEngine:
    """Native where it is there and agrees with the exact engine on the first structure; else the exact one.

    The exact engine is torchscript where the bundle has it, else eager.

    required: native or a ModelError, here or on the first structure. choice: a message for the log, empty until
    `select_backend` or `evaluate` was called.
    """

    def __init__(self, card: Checked, dtype: str = "float64", device: str = "cpu", *, required: bool = False) -> None:
        self.cutoff = card.cutoff
        self.elements = card.elements
        self.choice = ""
        #: whether the native model was selected, and whether there is one that does not agree; False until verified
        self.native = self.disagrees = False
        self._dtype, self._device = dtype, device
        self._card = card
        self._required = required
        self._native: NativeEngine | None = NativeEngine(card, dtype, device) if required else None
        # always loaded too: it is the reference, and the only one that can weigh atoms' energies
        exact = open_exact(card, dtype, device)
        self._engine: FeatureEngine = exact
        self.exact = exact
        self.name, self.reference = exact.name, exact.reference
        self.wants = exact.wants
        self.training_set, self.heads = exact.training_set, exact.heads
        if required:
            return
        if not card.native:
            self.choice = f"{self.name}: the bundle has no native model ({card.about.get('native', 'not extracted')})"
            if exact.kind == "eager" and (why := card.about.get("torchscript")):
                self.choice += f" and no TorchScript ({why})"
        elif not available():
            self.choice = f"{self.name}: symmetrix-xl is not installed ({pip_install('symmetrix-xl')})"
        else:
            try:
                self._native = NativeEngine(card, dtype, device)
            except OtherAnswerError:  # a bundle whose files do not belong together is not served
                raise
            except ModelError as error:  # no C++ compiler, say: slower, but a run is possible
                self.choice = f"{self.name}: {error}"

    def select_backend(self, graph: Graph) -> str:
        """Verify the native model on the first system of this graph and on a trial of its elements; once only.

        A single molecule does not test all parts of a model: a planar one, such as water, hides every term that is odd
        under reflection in its plane. Returns `choice`. Raises ModelError where the native model is required and does
        not agree.
        """
        if self._native is not None:
            found = compare(self._native, self._engine, graph.part(0, 1), self._dtype)
            if found.agreed:
                elements = np.unique(graph.numbers).tolist()
                dense = compare_dense(self._native, self._engine, elements, self._dtype)
                found = found if dense.agreed else dense
            if self._required and not found.agreed:
                raise ModelError(
                    f"{self._card.path}: {found}", f"import the model again, or use --engine {self.exact.kind}"
                )
            if found.agreed:
                self._engine = self._native
            # a native engine that was not selected is freed
            self.native, self.disagrees = found.agreed, not found.agreed
            self._native = None
            self.name = self._engine.name
            self.choice = f"{self.name}: {found}"
        return self.choice

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate with the selected backend; select it first where that is not done yet."""
        self.select_backend(graph)
        return self._engine.evaluate(graph)

    def weighted(self, graph: Graph, weights: FloatArray) -> Energies:
        """By the exact engine, whatever was selected: native kernels have no derivative of one atom's energy."""
        return self.exact.weighted(graph, weights)

    def open_head(self, number: int, *, weighing: bool) -> Engine:
        """One of the heads, by the engine that was chosen for their mean, and by the exact one where it must weigh."""
        if weighing or not self.native:
            return self.exact.open_head(number, weighing=weighing)
        return NativeEngine(check(self._card.path), self._dtype, self._device, number)

    def features(self, graph: Graph) -> FloatArray:
        """(A, F): the model's features, by the selected backend."""
        self.select_backend(graph)
        return self._engine.features(graph)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far native is from the exact engine: eV/atom, eV/Å, eV/atom; allowed: (eV/atom, eV/Å); on: what.

    novelty: the largest relative difference of an atom's, 0 where there is none.
    """

    energy: float
    force: float
    virial: float
    novelty: float
    allowed: tuple[float, float]
    on: str
    exact: str = TorchScriptEngine.kind

    @property
    def agreed(self) -> bool:
        """Whether all is within what is allowed; False for NaN."""
        return self.within(1.0)

    def within(self, share: float) -> bool:
        """Whether energies, forces and virials are within this share of what is allowed; False for NaN."""
        energy, force = (share * allowed for allowed in self.allowed)
        # comparisons this way round, because every comparison with NaN is False
        close = self.energy <= energy and self.force <= force and self.virial <= VIRIAL_ARM * force
        return close and self.novelty <= NOVELTY_TOLERANCE

    def __str__(self) -> str:
        return (
            f"native {'agrees' if self.agreed else 'does NOT agree'} with {self.exact} on {self.on} "
            f"({self.energy:.1e} eV/atom, {self.force:.1e} eV/Å; allowed {self.allowed[0]:.0e} and "
            f"{self.allowed[1]:.0e}; virial an atom {self.virial:.1e} eV, allowed {VIRIAL_ARM * self.allowed[1]:.0e}"
            + (f"; novelty {self.novelty:.0e} of itself, allowed {NOVELTY_TOLERANCE:.0e})" if self.novelty else ")")
        )


def compare(
    native: Engine,
    torchscript: Engine,
    graph: Graph,
    dtype: str,
    on: str = "the first structure",
    usual: float = np.inf,
) -> Comparison:
    """Evaluate a graph with both, and return how far apart they are in the system where they differ most.

    usual: eV/Å; in a system with larger forces than this the tolerance grows with them. Raises ModelError where one of
    the two fails.
    """
    # through `memory`, because a start structure of many beads may not fit at once
    one, two = (memory.evaluate(engine, graph)[0] for engine in (native, torchscript))
    atoms, first = np.diff(graph.ptr), graph.ptr[:-1]
    energies = np.abs(one.energies - two.energies) / atoms
    if one.of_heads is not None and two.of_heads is not None:
        energies = np.maximum(energies, np.abs(one.of_heads - two.of_heads).max(axis=0) / atoms)
    forces = np.maximum.reduceat(np.abs(one.forces - two.forces).max(axis=1), first)
    # a virial sums the forces on the pairs times their lengths, of which an atom has many
    virials = np.abs(one.virials - two.virials).max(axis=(1, 2)) / atoms
    # rounding errors are relative: where forces are ten times the usual, so are the differences. fmax ignores NaN,
    # which must fail in the comparison itself and not widen the tolerance
    rough = np.fmax(1.0, np.maximum.reduceat(np.abs(two.forces).max(axis=1), first) / usual)
    strange = 0.0
    if one.novelty is not None and two.novelty is not None:
        strange = float(np.max(np.abs(one.novelty - two.novelty) / np.maximum(two.novelty, 1.0)))
    energy, force = TOLERANCE[dtype]
    worst = int(
        np.argmax(np.stack((energies / energy, forces / force, virials / (VIRIAL_ARM * force))).max(axis=0) / rough)
    )
    return Comparison(
        float(energies[worst]),
        float(forces[worst]),
        float(virials[worst]),
        strange,
        (float(rough[worst]) * energy, float(rough[worst]) * force),
        on,
        getattr(torchscript, "kind", TorchScriptEngine.kind),
    )


def compare_dense(native: Engine, torchscript: Engine, elements: Iterable[int], dtype: str) -> Comparison:
    """Compare on a trial of these elements, which tests every part of a model. Raises ModelError."""
    graph = trial(elements, torchscript.cutoff)
    return compare(
        native, torchscript, graph, dtype, "a dense box of its elements and close pairs of them", USUAL_FORCE
    )


def trial(elements: Iterable[int], cutoff: float, module: Any = None) -> Graph:
    """A dense periodic box of these elements at random sites, and pairs of them closer than a bond.

    Every atom of the box has some ninety neighbours within the cutoff (Å). The pairs test the short-range repulsion
    (ZBL) that some models have. module: each with several charges and spins, where it wants to be told of these
    (`state.sample`). The same at every call.
    """
    known = sorted(elements)
    # a fixed seed: a model that is accepted today is accepted tomorrow
    rng = np.random.default_rng(0)
    side = max(3, int(np.ceil(len(known) ** (1 / 3))))
    # 4/3 π / 0.36³ = 90 atoms in a sphere of the cutoff
    lattice = side * 0.36 * cutoff * (np.eye(3) + rng.uniform(-0.1, 0.1, (3, 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)
    positions = (grid + rng.uniform(-0.12, 0.12, grid.shape)) / side @ lattice
    # atoms are displaced from a distorted lattice, so that no symmetry makes a term vanish
    frames = [Frame(rng.permutation(np.resize(known, len(grid))).astype(np.int_), positions, lattice)]
    for z, other in zip(known, known[1:] + known[:1], strict=True):
        for pair in sorted({(z, z), (z, other)}):
            apart = 0.8 * float(covalent_radii[list(pair)].sum())
            ends = np.array([[0.0, 0.0, 0.0], [0.48, -0.6, 0.64]]) * apart
            frames.append(Frame(np.array(pair), ends, np.zeros((3, 3)), (False,) * 3))
    told = [replace(frame, charge=q, spin=s) for frame in frames for q, s in sample(module, frame.numbers.tolist())]
    return build(told, cutoff)
