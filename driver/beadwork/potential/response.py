"""How a system answers an electric field: dipoles, Born charges and polarizabilities by models of a role of their own.

    mu = Σ_i mu_i + e Σ_i N_i r_i        Z_ijk = (1/e) ∂mu_k / ∂r_ij        F = F_0 + e Σ_k Z_ijk E_k

mu_i is what a network gives atom i, of its neighbours and so the same in every cell. N_i are oxidation numbers,
integers of each element (Stocco, Carbogno and Rossi, arXiv:2502.02413): along a path that carries an atom from one cell
into the next mu changes by e N_i a, the quantum of polarization, so that each of its branches is right and Z has none.
Positions are taken as they are sent: i-PI does not fold them unless its `<ffsocket pbc='True'>` says so.

AtomicDielectricMACE and PolarMACE have charges of their own in place of N_i, which are no integers. Their sum over a
periodic system means nothing, and it is refused there; a polarizability is not touched by that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.constants
import torch
from ase.data import atomic_numbers, chemical_symbols

from beadwork.config import ALSO
from beadwork.errors import ModelError
from beadwork.frame import FloatArray
from beadwork.potential.architecture import answers_of, default_dtype
from beadwork.potential.auto_engine import AutoEngine
from beadwork.potential.bundle import Checked, reopen
from beadwork.potential.device import bring, to_host
from beadwork.potential.eager import load_weights
from beadwork.potential.engine import Energies, Response, join
from beadwork.potential.evaluation import Quantity
from beadwork.potential.graph import Graph
from beadwork.potential.longrange import centres
from beadwork.potential.state import trained_on
from beadwork.potential.torchscript import CPU_EDGES_PER_PIECE, Inputs, ModuleEngine
from beadwork.units import BOHR, HARTREE

#: e Å in the unit that a model's labels had, by its name in a card; mace-torch's own Debye
DIPOLE_UNITS = {"debye": 1e-11 / scipy.constants.c / scipy.constants.e, "eang": 1.0, "atomic_unit": BOHR}
#: e Å²/V in the same; the polarizability volume is that over 4 π ε0
POLARIZABILITY_UNITS = {"eang2/V": 1.0, "ang3": 1.0 / (HARTREE * BOHR), "atomic_unit": BOHR**2 / HARTREE}
#: entries of a card about these, besides `answers`
DIPOLE_UNIT, POLARIZABILITY_UNIT, OXIDATION = "dipole_unit", "polarizability_unit", "oxidation"
#: what mace-torch's own sums of charges times positions are in, of each class
OWN_UNIT = {
    "EnergyDipolesMACE": "debye",
    "AtomicDipolesMACE": "debye",
    "AtomicDielectricMACE": "eang",
    "PolarMACE": "eang",
}


class ResponseEvaluator:
    """Runs an eager module that gives dipoles on a graph; answers in the units of `Response`.

    about: entries of a card: `dipole_unit`, `polarizability_unit`, `oxidation`. whole: dipoles too; else the
    polarizability alone. born: Born charges with the dipoles. known: as `Inputs` has it. Raises ModelError for entries
    that make no sense.
    """

    def __init__(
        self,
        module: Any,
        dtype: str,
        device: str,
        about: Mapping[str, Any],
        *,
        whole: bool = True,
        born: bool = True,
        known: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.inputs = Inputs(module, 0, dtype, device, known or {})
        self.module = module.to(self.inputs.device, self.inputs.dtype).eval()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._whole, self._born = whole, whole and born
        #: whether its dipole is made of charges that it gives the atoms itself
        self._tensor = "polarizability" in answers_of(module)
        self._charged = self._tensor or self.inputs.long_range
        self._dipole = DIPOLE_UNITS[_unit(about, DIPOLE_UNIT, DIPOLE_UNITS)]
        if self._tensor:
            self._polarizability = POLARIZABILITY_UNITS[_unit(about, POLARIZABILITY_UNIT, POLARIZABILITY_UNITS)]
        self._oxidation = _by_number(about.get(OXIDATION), sorted(module.atomic_numbers.tolist()))
        if self._charged and self._oxidation is not None:
            raise ModelError("the model gives its atoms charges of its own", "take its oxidation numbers away")

    def evaluate(self, graph: Graph) -> Response:
        """Evaluate a graph whose cutoff is the model's. Raises ModelError as `check` does."""
        data = self.inputs.of(graph)
        self.check(graph)
        # the module makes the positions a variable; vectors are positions' differences plus what stands for shifts
        constants = default_dtype(self.inputs.dtype) if self.inputs.long_range else nullcontext()
        with torch.set_grad_enabled(self._born), constants:
            out = self.module(data, training=False, compute_force=False)
        return self.respond(graph, out, data["positions"])

    def check(self, graph: Graph) -> None:
        """Raise ModelError for a periodic system that there is no dipole of, or a charge that its atoms do not have."""
        if self._charged and self._whole:
            self._check_images(graph)
        if self._oxidation is not None:
            _check_charge(graph, np.add.reduceat(self._oxidation[graph.numbers], graph.ptr[:-1]))

    def respond(self, graph: Graph, out: Mapping[str, Any], positions: torch.Tensor) -> Response:
        """The response of a graph of which the module's outputs are, as functions of positions (A, 3)."""
        charges, polarizabilities = None, None
        fixed = None if self._oxidation is None else self._oxidation[graph.numbers]
        if self._tensor:
            polarizabilities = self._polarizability * to_host(out["polarizability"].detach().double())
        if not self._whole:
            return Response(None, None, polarizabilities)
        dipole = out["dipole"]
        if self._charged:
            charges = out["charges"]
            if not self.inputs.long_range:  # whose positions are those about the centre
                dipole = dipole + self._of_charges(charges, graph)
        found = [dipole.detach().flatten()]
        if self._born:
            found += [
                torch.stack(
                    [torch.autograd.grad(dipole[:, k].sum(), positions, retain_graph=k < 2)[0] for k in range(3)],
                    dim=2,
                ).flatten()
            ]
        dipoles, tensors = np.split(self._dipole * to_host(torch.cat(found).double()), [3 * len(graph)])
        dipoles, tensors = dipoles.reshape(-1, 3), tensors.reshape(-1, 3, 3)
        if charges is not None:
            # float64: what its centre adds is the same for all charges that add up to the same
            totals = np.add.reduceat(to_host(charges.detach().double()), graph.ptr[:-1])
            dipoles = dipoles + self._dipole * totals[:, None] * centres(graph)
        if fixed is not None:
            dipoles = dipoles + np.add.reduceat(fixed[:, None] * graph.positions, graph.ptr[:-1])
            if self._born:
                tensors = tensors + fixed[:, None, None] * np.eye(3)
        return Response(dipoles, tensors if self._born else None, polarizabilities)

    def _of_charges(self, charges: torch.Tensor, graph: Graph) -> torch.Tensor:
        """(S, 3) Σ_i q_i (r_i - c) of each system about its centre c, as a function of the charges alone.

        The module itself adds Σ_i q_i x_i, with positions x that are zero and have the derivatives q_i.
        """
        places = graph.positions - centres(graph)[graph.system]
        given = bring(graph, self.inputs.dtype, self.inputs.device)
        terms = charges[:, None] * torch.as_tensor(places, dtype=charges.dtype, device=charges.device)
        return torch.zeros((len(graph), 3), dtype=terms.dtype, device=terms.device).index_add(0, given.batch, terms)

    def _check_images(self, graph: Graph) -> None:
        crossing = graph.system[graph.neighbor[(graph.images != 0).any(axis=1)[graph.image]]]
        if self.inputs.long_range:  # its charges depend on all images, whether edges cross or not
            crossing = np.flatnonzero(graph.pbc.any(axis=1))
        if len(crossing):
            system = int(crossing[0])
            raise ModelError(
                f"{graph.where(system)} is periodic, and the model's dipole is a sum over charges that are no whole "
                "numbers, which depends on the images that the positions stand for",
                "serve its polarizability alone (--also polarizability=BUNDLE), or a model of dipoles of atoms "
                "(AtomicDipolesMACE) with oxidation numbers",
            )


class ResponseEngine:
    """A bundle's model of dipoles or polarizabilities, in mace-torch's own modules.

    role: 'dipole' or 'polarizability', of which the first brings the second where the model has both. born: Born
    charges with dipoles, which cost three derivatives. energy: an engine of the energy of the same bundle, in the same
    precision and on the same device: `joint` is then both in one evaluation, with one copy of the weights; else None.
    name, cutoff, elements: as `Engine` has them. Raises ModelError for a bundle of no such model.
    """

    def __init__(
        self,
        card: Checked,
        role: str,
        dtype: str = "float64",
        device: str = "cpu",
        born: bool = True,
        energy: ModuleEngine | AutoEngine | None = None,
    ) -> None:
        if role not in card.answers:
            raise ModelError(
                f"{card.path} answers {' and '.join(card.answers)}, and is given as {role} (--also)",
                f"give a model that was trained on the {role}, or import it again, if it was imported by an "
                "older beadwork",
            )
        if why := card.without("eager"):
            raise ModelError(f"{card.path} has nothing for the engine 'eager': {why}", "import the model again")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ModelError(f"device {device!r} was requested, but PyTorch finds no CUDA device", "use device 'cpu'")
        exact = energy.exact if isinstance(energy, AutoEngine) else energy
        module = load_weights(card) if exact is None else exact.module
        self._opened = (card.path.absolute(), card.sha256, role, dtype, device, born)
        self.name = f"{card.name} ({role}, eager, {dtype})"
        self.cutoff, self.elements, self.role, self.born = card.cutoff, card.elements, role, born
        #: what it answers besides its role
        self.answers = tuple(one for one in card.answers if one in ALSO) if role == "dipole" else (role,)
        try:
            self._evaluator = ResponseEvaluator(
                module, dtype, device, card.about, whole=role == "dipole", born=born, known=trained_on(card)
            )
        except ModelError as error:
            raise ModelError(f"the card of {card.path}: {error.what}", error.remedy or "import it again") from error
        self.joint = None if energy is None or exact is None else Joint(energy, exact, self._evaluator)
        self.wants = self._evaluator.inputs.wants.names
        #: whether its dipole is another one where an atom is sent in another cell
        self.of_images = role == "dipole" and card.about.get(OXIDATION) is not None
        self._piece = CPU_EDGES_PER_PIECE if device == "cpu" else None

    @property
    def module(self) -> Any:
        """The model."""
        return self._evaluator.module

    def evaluate(self, graph: Graph) -> Response:
        """Evaluate every system of the graph: on CUDA all at once, on the CPU a few systems at a time."""
        graph = graph.within(self.cutoff)
        return join([self._evaluator.evaluate(graph.part(a, b)) for a, b in graph.pieces(self._piece)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled by opening the bundle again."""
        return reopen, (ResponseEngine, *self._opened)


class Joint:
    """A model's energy and its response in one evaluation: an engine that answers `Energies.response` too.

    of: the engine of the energy, which it stands for. name, cutoff, elements: that engine's.
    """

    def __init__(self, of: ModuleEngine | AutoEngine, exact: ModuleEngine, evaluator: ResponseEvaluator) -> None:
        self.of, self.name, self.cutoff, self.elements = of, of.name, of.cutoff, of.elements
        self._exact, self._evaluator = exact, evaluator

    def evaluate(self, graph: Graph) -> Energies:
        """As `ModuleEngine` does. Raises ModelError as `ResponseEvaluator.check` does."""
        self._evaluator.check(graph.within(self.cutoff))
        return self._exact.evaluate(graph, self._evaluator.respond)


@dataclass(frozen=True, slots=True)
class Role:
    """The models of one role, with weights that sum to 1."""

    name: str
    engines: tuple[ResponseEngine, ...]
    weights: FloatArray

    @property
    def quantities(self) -> tuple[str, ...]:
        """What they answer, by the names that `combine` has for it."""
        also = ("polarizability",) if "polarizability" in self.engines[0].answers else ()
        born = ("born",) if self.engines[0].born else ()
        return ("dipole", *born, *also) if self.name == "dipole" else also

    def combine(self, results: Sequence[Response]) -> dict[str, Quantity]:
        """'dipole' (S, 3), 'born' (A, 3, 3) and 'polarizability' (S, 3, 3), those that there are, as `Response` has
        them."""
        found = {}
        for name in self.quantities:
            members = np.array([getattr(result, name) for result in results])
            mean = np.tensordot(self.weights, members, axes=1)
            spread = None
            if len(members) > 1:
                squares = ((members - mean) ** 2).reshape(len(members), len(mean), -1).mean(axis=2)
                spread = np.sqrt(self.weights @ squares / (1.0 - float((self.weights**2).sum())))
            found[name] = Quantity(mean, members, spread)
        return found


def _unit(about: Mapping[str, Any], key: str, known: Mapping[str, float]) -> str:
    unit = about.get(key)
    if unit not in known:
        raise ModelError(f"{key} is {unit!r}", f"choose from {', '.join(known)}")
    return str(unit)


def _by_number(oxidation: Any, elements: Sequence[int]) -> FloatArray | None:
    """(largest atomic number + 1,) e: oxidation numbers by atomic number; None where there are none."""
    if oxidation is None:
        return None
    symbols = [chemical_symbols[z] for z in elements]
    if not isinstance(oxidation, Mapping) or sorted(oxidation) != sorted(symbols):
        raise ModelError(f"oxidation is {oxidation!r}", f"it wants a number for each of {', '.join(symbols)}")
    if not all(type(number) is int and abs(number) <= 9 for number in oxidation.values()):
        raise ModelError(f"oxidation is {dict(oxidation)!r}", "it wants whole numbers from -9 to 9")
    found = np.zeros(max(elements) + 1)
    for symbol, number in oxidation.items():
        found[atomic_numbers[symbol]] = number
    return found


def _check_charge(graph: Graph, totals: FloatArray) -> None:
    """Raise ModelError where oxidation numbers do not add up to the charge that is told."""
    for system, (charge, _) in enumerate(graph.states):
        if charge is not None and charge != totals[system]:
            raise ModelError(
                f"the oxidation numbers of {graph.where(system)} add up to {totals[system]:+g} e, and its charge is "
                f"{charge:+d} e",
                "correct the charge (--charge), or import the model with other oxidation numbers",
            )
