"""Opening a bundle with one of the engines, and admitting the native one only where it agrees with the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from beadwork.config import DTYPES, ENGINES
from beadwork.errors import ModelError
from beadwork.potential.bundle import check
from beadwork.potential.engine import Energies, Engine
from beadwork.potential.graph import Graph
from beadwork.potential.native import NativeEngine, available
from beadwork.potential.torchscript import TorchScriptEngine

#: (eV an atom, eV/Å) within which native must agree with torchscript in the same precision
TOLERANCE = {"float64": (1e-6, 1e-5), "float32": (2e-5, 2e-3)}
#: Å: the virial an atom must agree within this times the tolerance of forces; a sum over some fifty neighbours
VIRIAL = 10.0


def open_engine(
    bundle: str | Path, engine: str = "auto", dtype: str = "float64", device: str = "cpu"
) -> TorchScriptEngine | AutoEngine:
    """Open a bundle. All but 'torchscript' decide at the first structure, and `choice` says which it took, and why.

    Raises ModelError for an unknown engine or precision, a bundle that fails its check, or a native model that cannot
    be run where 'native' was asked for.
    """
    if engine not in ENGINES:
        raise ModelError(f"engine {engine!r} is unknown; take one of {', '.join(ENGINES)}")
    if dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; take one of {', '.join(DTYPES)}")
    if engine == "torchscript":
        return TorchScriptEngine(bundle, dtype, device)
    return AutoEngine(bundle, dtype, device, required=engine == "native")


class AutoEngine:
    """Native where it is there and agrees with torchscript on the first structure; else torchscript.

    required: else a ModelError, here or on the first structure. choice: a sentence for the log, empty until `settle` or
    `evaluate` was called.
    """

    def __init__(
        self, bundle: str | Path, dtype: str = "float64", device: str = "cpu", *, required: bool = False
    ) -> None:
        card = check(bundle)
        self.cutoff = card.cutoff
        self.elements = card.elements
        self.choice = ""
        #: whether the native model was taken, and whether there is one that does not agree; False until it is settled
        self.native = self.disagrees = False
        self._dtype = dtype
        self._card = card
        self._required = required
        self._native: NativeEngine | None = NativeEngine(bundle, dtype, device) if required else None
        torchscript = TorchScriptEngine(bundle, dtype, device)
        self._engine: Engine = torchscript
        self.name, self.reference = torchscript.name, torchscript.reference
        if required:
            return
        if not card.native:
            self.choice = f"{self.name}: the bundle has no native model ({card.about.get('native', 'not extracted')})"
        elif not available():
            self.choice = f"{self.name}: symmetrix-xl is not installed (pip install 'beadwork[native]')"
        else:
            try:
                self._native = NativeEngine(bundle, dtype, device)
            except ModelError as error:
                self.choice = f"{self.name}: {error}"

    def settle(self, graph: Graph) -> str:
        """Decide on the first system of this graph, unless that is done; return `choice`.

        Raises ModelError where the native model is required and does not agree.
        """
        if self._native is not None:
            agreed, reason = admit(self._native, self._engine, graph.part(0, 1), TOLERANCE[self._dtype])
            if self._required and not agreed:
                raise ModelError(f"{self._card.path}: {reason}; import the model again, or use --engine torchscript")
            if agreed:
                self._engine = self._native
            self.native, self.disagrees = agreed, not agreed
            self._native = None
            self.name = self._engine.name
            self.choice = f"{self.name}: {reason}"
        return self.choice

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate with the engine that was chosen, choosing first where that is still to be done."""
        self.settle(graph)
        return self._engine.evaluate(graph)


def admit(native: Engine, torchscript: Engine, graph: Graph, tol: tuple[float, float]) -> tuple[bool, str]:
    """Whether two engines agree on a graph within (eV an atom, eV/Å), and a sentence that says by how much."""
    one, two = native.evaluate(graph), torchscript.evaluate(graph)
    energy = float(np.max(np.abs(one.energies - two.energies) / np.diff(graph.ptr)))
    force = float(np.max(np.abs(one.forces - two.forces)))
    # a virial sums the forces on the pairs times their lengths, of which an atom has many
    virial = float(np.max(np.abs(one.virials - two.virials) / np.diff(graph.ptr)[:, None, None]))
    agreed = bool(energy <= tol[0] and force <= tol[1] and virial <= VIRIAL * tol[1])  # False for NaN
    word = "agrees" if agreed else "does NOT agree"
    return agreed, (
        f"native {word} with torchscript on the first structure ({energy:.1e} eV an atom, {force:.1e} eV/Å; "
        f"allowed {tol[0]:.0e} and {tol[1]:.0e}; virial an atom {virial:.1e} eV, allowed {VIRIAL * tol[1]:.0e})"
    )
