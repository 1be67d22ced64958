"""What some models want to know of a whole system besides its atoms: total charge and unpaired electrons.

mace-torch calls them total_charge (e) and total_spin, which is the multiplicity, 2 S + 1; here and in labels, spin is
the number of unpaired electrons, 2 S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from beadwork.errors import ModelError
from beadwork.potential.architecture import class_of
from beadwork.potential.bundle import Card
from beadwork.potential.graph import Graph

#: mace-torch's names
CHARGE, SPIN = "total_charge", "total_spin"


def wanted(module: Any) -> tuple[str, ...]:
    """What a module wants to be told of each system, by mace-torch's names."""
    # what the charges that it gives its atoms add up to, and the electrons of either spin
    always = {"AtomicDielectricMACE": (CHARGE,), "PolarMACE": (CHARGE, SPIN)}.get(class_of(module), ())
    return tuple(dict.fromkeys((*always, *(getattr(module, "embedding_specs", None) or ()))))


def embedded(spec: Mapping[str, Any]) -> range | None:
    """The values that an embedding has a row for; None for one that takes any."""
    if spec.get("type") != "categorical":
        return None
    low = -int(spec.get("offset", 0))
    return range(low, low + int(spec["num_classes"]))


def trained_on(card: Card) -> dict[str, list[int]]:
    """The total charges and multiplicities that a card says its model was trained on. Raises ModelError."""
    found = {}
    for key, name, more in (("charges", CHARGE, 0), ("spins", SPIN, 1)):
        if key in card.about:
            values = card.about[key]
            if not isinstance(values, list) or not all(type(value) is int for value in values):
                raise ModelError(
                    f"the card of {card.path} has {key} = {values!r}", "it must be a list of whole numbers"
                )
            found[name] = [value + more for value in values]
    return found


def check_trained_on(module: Any, about: Mapping[str, Any]) -> None:
    """Raise ModelError for entries of a card that name a charge or a spin for which the module has no embedding."""
    specs = getattr(module, "embedding_specs", None) or {}
    for key, name, more in (("charges", CHARGE, 0), ("spins", SPIN, 1)):
        rows = embedded(specs.get(name, {}))
        wrong = [] if rows is None else [value for value in about.get(key, ()) if value + more not in rows]
        if wrong and rows is not None:
            raise ModelError(
                f"{key} has {', '.join(map(str, wrong))}, and the model embeds {rows[0] - more} to {rows[-1] - more}",
                f"correct --{key}",
            )


def sample(module: Any, numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Charges and spins (unpaired electrons) that these atoms can have and the module embeds, to compare engines on.

    Where it wants none, no charge and the fewest unpaired electrons.
    """
    specs, nuclei = getattr(module, "embedding_specs", None) or {}, int(sum(numbers))
    asked = wanted(module)
    charges = sorted(embedded(specs.get(CHARGE, {})) or (-1, 0, 1), key=abs)[:3] if CHARGE in asked else [0]
    multiplicities = embedded(specs.get(SPIN, {}))
    found = []
    for charge in charges:
        lowest = (nuclei - charge) % 2
        for spin in (lowest, lowest + 2) if SPIN in asked else (lowest,):
            if spin <= nuclei - charge and (multiplicities is None or spin + 1 in multiplicities):
                found.append((charge, spin))
    return found


class Wants:
    """Tells one module the charge and spin of each system, and refuses those that it cannot know.

    known: total charges and multiplicities that the model was trained on, where that is known.
    """

    def __init__(self, module: Any, known: Mapping[str, Sequence[int]]) -> None:
        self.names = wanted(module)
        self.known = known
        self._specs = getattr(module, "embedding_specs", None) or {}

    def of(self, graph: Graph, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
        """(S,) each, by mace-torch's names; nothing where the module wants nothing.

        Raises ModelError where a charge or a spin is not given, is none that these atoms can have, or is none that the
        model was trained on.
        """
        if not self.names:
            return {}
        told: dict[str, list[int]] = {name: [] for name in self.names}
        nuclei = np.add.reduceat(graph.numbers, graph.ptr[:-1])
        for system, (charge, spin) in enumerate(graph.states):
            _check(graph, system, int(nuclei[system]), charge, spin)
            values = {CHARGE: charge, SPIN: None if spin is None else spin + 1}
            for name in self.names:
                value = values.get(name)
                if value is None:
                    raise untold(name)
                self._check_known(name, value)
                told[name].append(value)
        return {name: torch.tensor(values, dtype=dtype, device=device) for name, values in told.items()}

    def _check_known(self, name: str, value: int) -> None:
        # the embedding's range whatever the card says: beyond it is the memory of other numbers
        for known in (embedded(self._specs.get(name, {})), self.known.get(name)):
            if known is not None and value not in known:
                more = int(name == SPIN)
                listed = ", ".join(str(one - more) for one in sorted(known))
                what = "unpaired electrons" if more else "e as total charge"
                raise ModelError(f"the model was trained on {listed} {what}, not on {value - more}")


def untold(name: str, who: str = "the model") -> ModelError:
    """The error of a model that wants this, where it is not told."""
    if name not in (CHARGE, SPIN):
        return ModelError(f"{who} wants {name} of each system, which beadwork does not give")
    what, option = ("total charge", "charge") if name == CHARGE else ("number of unpaired electrons", "spin")
    return ModelError(
        f"{who} wants the {what} of the system, and none is given",
        f"give --{option}, or {option} in run.toml or in the info of frames",
    )


def _check(graph: Graph, system: int, nuclei: int, charge: int | None, spin: int | None) -> None:
    """Raise ModelError for more charge than the nuclei have, and for electrons that cannot be paired so.

    What is not given is not checked: a model that wants the charge alone asks nobody for the spin.
    """
    electrons = nuclei - (charge or 0)
    if charge is None or (spin is None and electrons >= 0):
        return
    if spin is not None and 0 <= spin <= electrons and (electrons - spin) % 2 == 0:
        return
    formula = Atoms(graph.numbers[graph.ptr[system] : graph.ptr[system + 1]]).get_chemical_formula()
    if electrons < 0:
        raise ModelError(f"{formula} has {nuclei} protons, and its charge is {charge:+d} e", "correct charge (e)")
    raise ModelError(
        f"{formula} with the charge {charge:+d} e has {electrons} electrons, and cannot have {spin} unpaired ones",
        "correct charge (e) or spin (unpaired electrons)",
    )
