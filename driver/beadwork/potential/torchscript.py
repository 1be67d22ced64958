"""PyTorch's engines: any MACE module on our graph, on the CPU or on CUDA; and TorchScript as one of them."""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beadwork.errors import ModelError
from beadwork.frame import FloatArray
from beadwork.packages import pip_install
from beadwork.potential.architecture import class_of, default_dtype
from beadwork.potential.bundle import FILES, MODEL, Card, Checked, check, reopen
from beadwork.potential.device import DeviceGraph, bring, to_host
from beadwork.potential.engine import Energies, Response, join
from beadwork.potential.first_run import announce
from beadwork.potential.graph import Graph
from beadwork.potential.heads import Heads, load_heads, said
from beadwork.potential.longrange import LONG_RANGE, place, prepare, strain, together
from beadwork.potential.memory import reason
from beadwork.potential.novelty import TrainingSet, load_training_set, read_features
from beadwork.potential.reference_answer import hold
from beadwork.potential.state import Wants, trained_on

#: edges evaluated at once on the CPU: larger pieces do not fit into its caches and take up to twice as long per atom
CPU_EDGES_PER_PIECE = 12_000
#: modules that bring operators which TorchScript of older MACE models names, and the packages that have them
OPERATORS = {"torch_scatter": "torch-scatter"}
#: the positions by which a module's outputs can be derived, beside these
DERIVED_BY = "derived_by"
#: bytes: no part of a model's TorchScript is longer
MAX_CODE_BYTES = 2**24

#: makes a response of a graph, of the module's outputs for it, and of the positions by which these can be derived
Respond = Callable[[Graph, Mapping[str, Any], torch.Tensor], Response]


class ModuleEngine:
    """A bundle's model as a module of PyTorch; `TorchScriptEngine` and `eager.EagerEngine` open it.

    dtype: 'float64' or 'float32', whatever it was trained in: the weights are cast. In float32 the atoms' reference
    energies and all sums over atoms stay in float64, but where the energy is no sum of atoms' (a dipole model, an
    embedding with a readout): its total is MACE's own. reference: eV of an atom of each element, independent of its
    environment: its reference energy and the model's mean shift. head: of a committee on one trunk, to be this head
    instead of the mean of all; it knows no novelty. heads: how many the mean has, 0 for a model that is none.
    Raises ModelError for a file that is no MACE model, or a device that is not there.
    """

    #: what the engine is called
    kind = ""
    #: what its model wants to be told of each system (`state.wanted`)
    wants: tuple[str, ...]

    @staticmethod
    def open_module(card: Card, device: str) -> Any:
        """The bundle's module, its files being those of the card. Raises ModelError."""
        raise NotImplementedError

    def __init__(self, card: Checked, dtype: str = "float64", device: str = "cpu", head: int | None = None) -> None:
        if "energy" not in card.answers:
            raise ModelError(
                f"{card.path} answers {' and '.join(card.answers)} and no energy",
                f"give it as --also {card.answers[0]}=…",
            )
        if why := card.without(self.kind):
            raise ModelError(f"{card.path} has nothing for the engine {self.kind!r}: {why}", "take another --engine")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ModelError(f"device {device!r} was requested, but PyTorch finds no CUDA device", "use device 'cpu'")
        module = self.open_module(card, device)
        elements, cutoff = tuple(sorted(module.atomic_numbers.tolist())), float(module.r_max)
        if elements != card.elements or abs(cutoff - card.cutoff) > 1e-6:
            raise ModelError(
                f"the card of {card.path} says elements {card.elements} and cutoff {card.cutoff:g} Å, but the model "
                f"has {elements} and {cutoff:g} Å: the card is another model's",
                "import the model again",
            )
        self._opened = (card.path.absolute(), card.sha256, dtype, device, head)  # for copies, see __reduce__
        self.name = f"{card.name}{said(head)} ({self.kind}, {dtype})"
        self.cutoff = card.cutoff
        self.elements = card.elements
        heads = load_heads(card.heads, card.elements) if card.heads else None
        if head is not None:
            _become(module, card, heads, head)
            heads = None
        self.heads = 0 if heads is None else len(heads)
        self.reference = _reference(module, card.head)
        self.training_set = load_training_set(card.novelty, card.hash) if card.novelty and head is None else None
        self._evaluator = ModuleEvaluator(module, card.head, dtype, device, self.training_set, heads)
        self.wants = self._evaluator.wants.names
        self._piece = CPU_EDGES_PER_PIECE if device == "cpu" else None
        hold(self, card, FILES[self.kind], dtype, head)
        # only now: the structure of the reference answer may have a charge that the model was not trained on
        self._evaluator.wants.known = trained_on(card)

    def evaluate(self, graph: Graph, respond: Respond | None = None) -> Energies:
        """Evaluate every system of the graph: on CUDA all at once, on the CPU a few systems at a time.

        respond: makes `Energies.response` of each part.
        """
        graph = graph.within(self.cutoff)
        pieces = graph.pieces(self._piece)
        return join([self._evaluator.evaluate(graph.part(a, b), respond=respond) for a, b in pieces])

    def weighted(self, graph: Graph, weights: FloatArray) -> Energies:
        """The sum of the atoms' energies, each times its weight (A,), and its derivatives; as `evaluate` otherwise."""
        graph = graph.within(self.cutoff)
        pieces = graph.pieces(self._piece)
        return join(
            [self._evaluator.evaluate(graph.part(a, b), weights[graph.ptr[a] : graph.ptr[b]]) for a, b in pieces]
        )

    def open_head(self, number: int, *, weighing: bool) -> ModuleEngine:
        """One of the heads; each can weigh."""
        bundle, _, dtype, device, _ = self._opened
        return type(self)(check(bundle), dtype, device, number)

    @property
    def module(self) -> Any:
        """The model, without the atoms' reference energies."""
        return self._evaluator.module

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled by opening the bundle again: modules with compiled parts cannot be pickled."""
        return reopen, (type(self), *self._opened)

    def features(self, graph: Graph) -> FloatArray:
        """(A, F): the features by which this model tells atoms apart and novelty is measured (`potential.novelty`)."""
        graph = graph.within(self.cutoff)
        return np.concatenate([self._evaluator.features(graph.part(a, b)) for a, b in graph.pieces(self._piece)])


class NoTorchScriptError(ModelError):
    """PyTorch itself no longer reads TorchScript, whatever the file."""


class TorchScriptEngine(ModuleEngine):
    """A bundle's model.pt."""

    kind = "torchscript"

    @staticmethod
    def open_module(card: Card, device: str) -> Any:
        """As `ModuleEngine` has it."""
        announce(card.path / MODEL)
        return load_module(card.path / MODEL, device)


class Inputs:
    """Makes what a MACE module, scripted or eager, takes of a graph.

    head: its number. known: total charges and multiplicities that the model was trained on, where that is known.
    """

    def __init__(
        self, module: Any, head: int, dtype: str, device: str, known: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        self.wants = Wants(module, known or {})
        self.dtype, self.device = getattr(torch, dtype), torch.device(device)
        #: whether it wants fixed charges of the atoms, which its dipole begins from
        self._dipoles = class_of(module) in ("EnergyDipolesMACE", "AtomicDipolesMACE")
        #: whether its electrostatics take positions and cells, besides edges
        self.long_range = class_of(module) in LONG_RANGE
        numbers = module.atomic_numbers.cpu()
        attrs = torch.zeros((int(numbers.max()) + 1, len(numbers)), dtype=self.dtype)
        attrs[numbers, torch.arange(len(numbers))] = 1.0
        self._attrs = attrs.to(self.device)
        self._head = torch.tensor([head], device=self.device)

    def of(self, graph: Graph) -> dict[str, torch.Tensor]:
        """By mace-torch's names, on the device, without waiting for it."""
        given = bring(graph, self.dtype, self.device)
        systems, atoms = len(given.ptr) - 1, len(given.numbers)
        # All positions are put at zero and the edges' vectors take the place of unit shifts in a cell of unit vectors:
        # differences of large (unwrapped) coordinates are then never formed in float32, and the model's own
        # derivatives by positions and strain are the forces and the virial as ever.
        # Edges run from the neighbor to the center, so that messages are summed in order.
        data = {
            "positions": torch.zeros((atoms, 3), dtype=self.dtype, device=self.device),
            "unit_shifts": given.vectors,
            "shifts": given.vectors,
            "cell": given.cell,
            "edge_index": given.edge_index,
            "node_attrs": self._attrs[given.numbers],
            "batch": given.batch,
            "ptr": given.ptr,
            "head": self._head.expand(systems),
            # no energy depends on these charges, and `potential.response` adds what they give to a dipole
            **({"charges": torch.zeros(atoms, dtype=self.dtype, device=self.device)} if self._dipoles else {}),
            **self.wants.of(graph, self.dtype, self.device),
        }
        if self.long_range:
            place(graph, data, self.dtype, self.device)
        return data


class ModuleEvaluator:
    """Runs any MACE module, scripted or eager, on a graph.

    With its training set it returns novelty too, and with the heads whose mean it is, the energies of these.
    """

    def __init__(
        self,
        module: Any,
        head: str | None,
        dtype: str,
        device: str,
        training_set: TrainingSet | None = None,
        heads: Heads | None = None,
    ) -> None:
        name = class_of(module)
        #: whether its energy is the sum of what it says of the atoms
        self._of_atoms = name in ("MACE", "ScaleShiftMACE") and not hasattr(module, "embedding_readout")
        index = _head(module, head)
        self._inputs = Inputs(module, index, dtype, device)
        self.wants, self._dtype, self._device = self._inputs.wants, self._inputs.dtype, self._inputs.device
        numbers = module.atomic_numbers.cpu()
        # Reference energies of hundreds of eV would cost float32 its last digits: take them out, add them in float64.
        energies = module.atomic_energies_fn.atomic_energies.detach().cpu().double()
        # Looked up by atomic number, on the device; an element that the model does not know gets NaN.
        reference = torch.full((int(numbers.max()) + 1,), torch.nan, dtype=torch.float64)
        reference[numbers] = torch.atleast_2d(energies)[index]
        self._reference = reference.to(self._device)
        self.module = module.to(self._device, self._dtype).eval()
        if self._inputs.long_range:
            prepare(module)
        with torch.no_grad():
            module.atomic_energies_fn.atomic_energies.zero_()
        # forces are derivatives by positions alone: gradients of the weights would take time and memory for nothing
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._training_set, self._heads = training_set, heads
        self._layers = [] if training_set is None and heads is None else self._find_features()

    def _find_features(self) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        found = read_features(self.module.state_dict())
        return [(torch.from_numpy(columns).to(self._device), matrix) for columns, matrix in found]

    def features(self, graph: Graph) -> FloatArray:
        """(A, F): the scalars of all layers, as `read_features` has them. Raises ModelError where there are none."""
        self._layers = self._layers or self._find_features()
        if self._inputs.long_range and not together(graph):
            return np.concatenate([self.features(graph.part(s, s + 1)) for s in range(len(graph))])
        return to_host(self._read_features(self.outputs(graph)))

    def _read_features(self, out: dict[str, Any]) -> torch.Tensor:
        if out.get("node_feats") is None:
            raise ModelError("the model gives no node features; it is no MACE model of mace-torch 0.3")
        feats = out["node_feats"].detach().double()
        layers = [feats[:, columns] for columns, _ in self._layers]
        return torch.cat([x if up is None else x @ up for x, (_, up) in zip(layers, self._layers, strict=True)], dim=1)

    def evaluate(self, graph: Graph, weights: FloatArray | None = None, respond: Respond | None = None) -> Energies:
        """Evaluate a graph whose cutoff is the model's: one copy in, one copy out, and one wait for the device.

        weights: (A,), of the atoms' energies in the whole result; None for 1. respond: makes `Energies.response`.
        """
        if self._inputs.long_range and not together(graph):
            return join([self.evaluate(graph.part(s, s + 1), weights, respond) for s in range(len(graph))])
        systems, atoms = len(graph), len(graph.numbers)
        if weights is not None and not self._of_atoms:
            raise ModelError("the model's energy is not the sum of its atoms', so these cannot be weighed")
        out = self.outputs(graph, weights, respond is not None)
        packed = self._reduce(out, bring(graph, self._dtype, self._device), weights)
        # the second pass of the weighted baseline has the same features, and novelty is known from the first
        known, heads = (self._training_set, self._heads) if weights is None else (None, None)
        features = None if known is None and heads is None else self._read_features(out)
        if known is not None and features is not None:
            packed = torch.cat((packed, known.novelty(features, graph)))
        if heads is not None and features is not None:
            packed = torch.cat((packed, heads.deviations(features, graph.numbers).flatten()))
        ends = np.cumsum((systems, 3 * atoms, 9 * systems, atoms, 0 if known is None else atoms))
        energies, forces, virials, of_atoms, novelty, of_heads = np.split(to_host(packed), ends)
        return Energies(
            energies,
            forces.reshape(atoms, 3),
            virials.reshape(systems, 3, 3),
            of_atoms if self._of_atoms else None,
            None if known is None else novelty,
            None if heads is None else energies + np.add.reduceat(of_heads.reshape(-1, atoms), graph.ptr[:-1], axis=1),
            None if respond is None else respond(graph, out, out[DERIVED_BY]),
        )

    def outputs(self, graph: Graph, weights: FloatArray | None = None, keep: bool = False) -> dict[str, Any]:
        """The module's outputs for a graph, under MACE's names, on the device, without waiting for it.

        The energies are without the atoms' reference energies, and unweighted; forces and virials are those of the
        weighted sum. keep: so that more can be derived, by `DERIVED_BY`.
        """
        data = self._inputs.of(graph)
        if self._inputs.long_range:
            by = strain(data)
            with default_dtype(self._dtype):
                out = self._call(data, derive=False, displace=False)
        elif weights is None and not keep:
            return self._call(data, derive=True)
        else:
            positions = data["positions"].requires_grad_(True)
            out = self._call(data, derive=False)
            by = positions, out["displacement"]  # MACE's name for the strain
        total = out["energy"]
        if weights is not None:
            total = out["node_energy"] * torch.as_tensor(weights, dtype=total.dtype, device=self._device)
        return {**out, DERIVED_BY: by[0], **_derived(total.sum(), by, keep)}

    def _call(self, data: dict[str, torch.Tensor], *, derive: bool, displace: bool = True) -> dict[str, Any]:
        # TorchScript's profiler would make the first three calls three times slower, and gains nothing after
        with torch.jit.optimized_execution(False):
            out: dict[str, Any] = self.module(
                data, training=False, compute_force=derive, compute_virials=derive, compute_displacement=displace
            )
        return out

    def _reduce(self, out: dict[str, Any], given: DeviceGraph, weights: FloatArray | None) -> torch.Tensor:
        """Energies, forces, virials and atoms' energies in one float64 array, without waiting for the device."""
        systems = len(given.ptr) - 1
        with torch.no_grad():
            # MACE's own total is summed in the model's precision: summed here in float64 instead
            node = self._reference[given.numbers]
            if self._of_atoms:
                node = out["node_energy"].double() + self._reference[given.numbers]
            if weights is not None:
                node = node * torch.as_tensor(weights, dtype=torch.float64, device=self._device)
            energies = torch.zeros(systems, dtype=torch.float64, device=self._device).index_add_(0, given.batch, node)
            if not self._of_atoms:
                energies = energies + out["energy"].double()
            virials = out["virials"]
            if len(virials) != systems or virials.device != energies.device:
                # MACE answers one zero matrix, on the CPU, where nothing depends on the strain
                virials = torch.zeros((systems, 3, 3), device=self._device)
            virials = virials.double()
            # i-PI keeps the upper triangle alone, so rounding must not make the two differ
            virials = 0.5 * (virials + virials.transpose(1, 2))
            return torch.cat((energies, out["forces"].double().flatten(), virials.flatten(), node))


def _derived(total: torch.Tensor, by: tuple[torch.Tensor, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Forces and virials: minus the slopes of an energy by positions and strains. keep: what can be derived."""
    # a lone atom's energy depends on neither: there is nothing to derive, and zeros are right
    found = (None, None)
    if total.requires_grad:
        found = torch.autograd.grad(total, by, allow_unused=True, retain_graph=keep)
    slopes = [torch.zeros_like(x) if slope is None else -slope for slope, x in zip(found, by, strict=True)]
    return dict(zip(("forces", "virials"), slopes, strict=True))


def _become(module: Any, card: Card, heads: Heads | None, head: int) -> None:
    """Make the module of a mean into that of one of its heads."""
    if heads is None or not 0 <= head < len(heads):
        raise ModelError(f"{card.path} has no head {head} on its trunk")
    state = module.state_dict()
    with torch.no_grad():
        for name, value in heads.put({key: tensor.cpu() for key, tensor in state.items()}, head).items():
            state[name].copy_(value)


def _head(module: Any, head: str | None) -> int:
    heads = list(getattr(module, "heads", None) or ["Default"])
    if head is not None and head not in heads:
        raise ModelError(f"the model has no head {head!r}", f"it has {', '.join(heads)}")
    return heads.index(head) if head is not None else 0


def _reference(module: Any, head: str | None) -> dict[int, float]:
    index = _head(module, head)
    energies = torch.atleast_2d(module.atomic_energies_fn.atomic_energies.detach().cpu().double())[index]
    if hasattr(module, "scale_shift"):
        shifts = torch.atleast_1d(module.scale_shift.shift.detach().cpu().double())
        energies = energies + shifts[index if len(shifts) > 1 else 0]
    return dict(zip(module.atomic_numbers.tolist(), energies.tolist(), strict=True))


def _load_operators(file: Path) -> bool:
    """Load the operators of other packages that a TorchScript file names; whether there are any.

    Raises ModelError where the package is not installed, or does not fit this PyTorch.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            parts = [part for part in archive.infolist() if part.filename.endswith(".py")]
            code = [archive.read(part) for part in parts if part.file_size <= MAX_CODE_BYTES]
    except (zipfile.BadZipFile, OSError):
        return False
    found = [name for name in OPERATORS if any(f"ops.{name}.".encode() in text for text in code)]
    for name in found:
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # the last two: it was built for another PyTorch
            raise ModelError(
                f"{file} uses operators of {OPERATORS[name]}, which cannot be loaded ({reason(error)})",
                f"{pip_install(OPERATORS[name])} --no-build-isolation (it is compiled for the PyTorch that is here, "
                "which takes minutes), or import the eager model",
            ) from error
    return bool(found)


def load_module(file: Path, device: str = "cpu") -> Any:
    """Read a TorchScript MACE model. Raises ModelError for anything else, or a device that is not there."""
    try:
        try:
            module = torch.jit.load(str(file), map_location=device)
        except RuntimeError:
            if not _load_operators(file):
                raise
            module = torch.jit.load(str(file), map_location=device)
    except (DeprecationWarning, AttributeError) as error:  # where warnings are errors, or torch.jit is no more
        raise NoTorchScriptError(
            f"{file} is TorchScript, which PyTorch {torch.__version__} does not read ({error})"
        ) from error
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]  # a C++ stack trace follows
        raise ModelError(f"{file} is no readable TorchScript model ({first})", "import the model again") from error
    for name in ("r_max", "atomic_numbers", "atomic_energies_fn"):
        if not hasattr(module, name):
            raise ModelError(f"{file} is TorchScript but no MACE energy model: it has no {name!r}")
    return module
