"""The reference engine: TorchScript MACE on the CPU or on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beadwork.errors import ModelError
from beadwork.potential.bundle import MODEL, check
from beadwork.potential.engine import Energies, join
from beadwork.potential.graph import Graph

#: edges evaluated at once on the CPU: larger pieces leave its caches and take up to twice as long an atom
CPU_PIECE = 12_000

#: a MACE model, scripted or eager
Module = Callable[..., dict[str, Any]]


class TorchScriptEngine:
    """A bundle's model.pt.

    dtype: 'float64' or 'float32', whatever it was trained in: the weights are cast. In float32 the atoms' reference
    energies and all sums over atoms stay in float64.
    Raises ModelError for a bundle that fails its check, no MACE model, or a device that is not there.
    """

    def __init__(self, bundle: str | Path, dtype: str = "float64", device: str = "cpu") -> None:
        card = check(bundle)
        module = load_module(card.path / MODEL, device)
        elements, cutoff = tuple(sorted(module.atomic_numbers.tolist())), float(module.r_max)
        if elements != card.elements or abs(cutoff - card.cutoff) > 1e-6:
            raise ModelError(
                f"the card of {card.path} says elements {card.elements} and cutoff {card.cutoff:g} Å, but the model "
                f"has {elements} and {cutoff:g} Å: the card is another model's; import the model again"
            )
        self.name = f"{card.name} (torchscript, {dtype})"
        self.cutoff = card.cutoff
        self.elements = card.elements
        self._evaluator = ModuleEvaluator(module, card.head, dtype, device)
        self._piece = CPU_PIECE if device == "cpu" else None

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate every system of the graph: on CUDA all at once, on the CPU a few systems at a time."""
        graph = graph.within(self.cutoff)
        return join([self._evaluator.evaluate(graph.part(a, b)) for a, b in graph.pieces(self._piece)])


class ModuleEvaluator:
    """Runs any MACE module, scripted or eager, on a graph."""

    def __init__(self, module: Any, head: str | None, dtype: str, device: str) -> None:
        heads = list(getattr(module, "heads", None) or ["Default"])
        if head is not None and head not in heads:
            raise ModelError(f"the model has no head {head!r}; it has {', '.join(heads)}")
        index = heads.index(head) if head is not None else 0
        self._dtype = getattr(torch, dtype)
        self._device = torch.device(device)
        numbers = module.atomic_numbers.cpu().numpy()
        self._type_of = np.full(int(numbers.max()) + 1, -1)
        self._type_of[numbers] = np.arange(len(numbers))
        # Reference energies of hundreds of eV would cost float32 its last digits: take them out, add them in float64.
        reference = module.atomic_energies_fn.atomic_energies
        self._reference = np.atleast_2d(reference.detach().cpu().double().numpy())[index].copy()
        self._module = module.to(self._dtype).eval()
        with torch.no_grad():
            module.atomic_energies_fn.atomic_energies.zero_()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._head = index

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate a graph whose cutoff is the model's."""
        systems, atoms = len(graph), len(graph.numbers)
        types = self._type_of[graph.numbers]
        node_attrs = torch.zeros((atoms, len(self._reference)), dtype=self._dtype, device=self._device)
        node_attrs[torch.arange(atoms), torch.from_numpy(types)] = 1.0
        # All positions are put at zero and the edges' vectors take the place of unit shifts in a cell of unit vectors:
        # differences of large (unwrapped) coordinates are then never formed in float32, and the model's own
        # derivatives by positions and strain are the forces and the virial as ever.
        # Edges run from the neighbor to the center, so that messages are summed in order.
        data = {
            "positions": torch.zeros((atoms, 3), dtype=self._dtype, device=self._device),
            "unit_shifts": self._tensor(-graph.vectors),
            "shifts": self._tensor(-graph.vectors),
            "cell": torch.eye(3, dtype=self._dtype, device=self._device).repeat(systems, 1),
            "edge_index": torch.from_numpy(np.stack((graph.neighbor, graph.center), dtype=np.int64)).to(self._device),
            "node_attrs": node_attrs,
            "batch": torch.from_numpy(graph.system).to(self._device),
            "ptr": torch.from_numpy(graph.ptr).to(self._device),
            "head": torch.full((systems,), self._head, dtype=torch.long, device=self._device),
        }
        # TorchScript's profiler would make the first three calls three times slower, and gains nothing after
        with torch.jit.optimized_execution(False):
            out = self._module(
                data, training=False, compute_force=True, compute_virials=True, compute_displacement=True
            )
        node = self._array(out["node_energy"]) + self._reference[types]
        energies = np.add.reduceat(node, graph.ptr[:-1])
        forces = self._array(out["forces"])
        virials = self._array(out["virials"])
        if len(virials) != systems:  # MACE answers one zero matrix where nothing depends on the strain
            virials = np.zeros((systems, 3, 3))
        return Energies(energies, forces, 0.5 * (virials + virials.transpose(0, 2, 1)))

    def _tensor(self, array: np.ndarray[Any, np.dtype[np.float64]]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, self._dtype)

    def _array(self, tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        array: np.ndarray[Any, np.dtype[np.float64]] = tensor.detach().cpu().double().numpy()
        return array


def load_module(file: Path, device: str = "cpu") -> Any:
    """Read a TorchScript MACE model. Raises ModelError for anything else, or a device that is not there."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {device!r} was asked for, but PyTorch sees no CUDA device; use device 'cpu'")
    try:
        module = torch.jit.load(str(file), map_location=device)
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{file} is no readable TorchScript model ({first}); import the model again") from error
    for name in ("r_max", "atomic_numbers", "atomic_energies_fn"):
        if not hasattr(module, name):
            raise ModelError(f"{file} is TorchScript but no MACE energy model: it has no {name!r}")
    return module
