"""What a bundle's model answers for one small structure, in its card: every engine is held to it when it is opened.

A card calls its model by the hash of the weights. Files that are made from them (TorchScript, a native model) have
hashes of their own, which say nothing of whose weights they hold, and no hash says what another version of mace-torch
makes of the same weights. What each of them answers does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from beadwork.errors import GeometryError, ModelError
from beadwork.frame import Frame
from beadwork.potential import memory
from beadwork.potential.bundle import MADE_WITH, REFERENCE_ANSWER, Card
from beadwork.potential.engine import USUAL_FORCE, Energies, Engine
from beadwork.potential.graph import Graph, build
from beadwork.potential.state import sample

#: (eV/atom, eV/Å) that an engine may differ by, whatever its kind, for forces up to USUAL_FORCE: rounding and splines,
#: far less than what two trainings of one model differ by
ALLOWED = {"float64": (1e-6, 1e-5), "float32": (1e-4, 1e-2)}
#: more than the structure has for a model of all elements; a card that anyone wrote cannot ask for more
MOST_ATOMS = 200
#: packages that make a model's answer
PACKAGES = ("mace-torch", "e3nn", "torch", "symmetrix-xl")


class OtherAnswerError(ModelError):
    """A file of a bundle does not answer what its card says."""


def make(evaluate: Callable[[Graph], Energies], elements: Iterable[int], cutoff: float, module: Any) -> dict[str, Any]:
    """The card's entry: a cluster of these elements and what its model answers.

    evaluate: by the model in float64. cutoff: Å. module: tells which charges and spins it embeds (`state.sample`).
    """
    known = sorted(elements)
    # a fixed seed: the same model has the same card
    rng = np.random.default_rng(1)
    side = max(2, math.ceil(len(known) ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)
    # as dense as liquids, and without any symmetry; for each element is there
    places = 0.36 * cutoff * (grid + rng.uniform(-0.2, 0.2, grid.shape))
    frame = Frame(np.resize(known, len(grid)).astype(np.int_), places.round(4), np.zeros((3, 3)), (False,) * 3)
    charge, spin = sample(module, frame.numbers.tolist())[0]
    answer = evaluate(_graph(frame.numbers.tolist(), frame.positions.tolist(), charge, spin, cutoff))
    entry = {
        "numbers": frame.numbers.tolist(),
        "positions": frame.positions.tolist(),
        "charge": charge,
        "spin": spin,
        "energy": float(answer.energies[0]),
        "forces": answer.forces.tolist(),
    }
    if answer.of_heads is not None:
        entry["energies_of_heads"] = answer.of_heads[:, 0].tolist()
    return entry


def made_with() -> dict[str, str]:
    """The versions that are installed here of what makes a model's answer."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hold(engine: Engine, card: Card, file: str, dtype: str, head: int | None = None) -> None:
    """Raise OtherAnswerError where an engine does not answer what the card says that the model does.

    An older card, which has no answer, holds nothing. file: of the bundle, what the engine runs. head: of a committee
    on one trunk, whose energy the card has. Raises ModelError for an answer in the card that cannot be read.
    """
    if REFERENCE_ANSWER not in card.about:
        return
    told = card.about[REFERENCE_ANSWER]
    try:
        graph = _graph(told["numbers"], told["positions"], told["charge"], told["spin"], card.cutoff)
        energy = float(told["energy"] if head is None else told["energies_of_heads"][head])
        forces = np.array(told["forces"], dtype=np.float64).reshape(len(graph.numbers), 3)
        of_heads = np.array(told.get("energies_of_heads", ()), dtype=np.float64)
        if unknown := set(graph.numbers.tolist()) - set(card.elements):
            raise ValueError(f"atomic numbers {unknown} are none of the card's")
    except (
        GeometryError,
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        OverflowError,
    ) as error:
        raise ModelError(
            f"{card.path}: the card's {REFERENCE_ANSWER} cannot be read ({type(error).__name__}: {error})",
            "import the model again",
        ) from error
    answer = memory.evaluate(engine, graph)[0]
    energies = [float(answer.energies[0]) - energy]
    if answer.of_heads is not None and len(answer.of_heads) == len(of_heads):
        energies += (answer.of_heads[:, 0] - of_heads).tolist()
    apart = float(np.abs(energies).max()) / len(graph.numbers)
    # of one head the card has no forces
    away = 0.0 if head is not None else float(np.abs(answer.forces - forces).max())
    rough = max(1.0, float(np.abs(forces).max()) / USUAL_FORCE)
    most, strongest = (rough * allowed for allowed in ALLOWED[dtype])
    if apart <= most and away <= strongest:  # False for NaN
        return
    raise OtherAnswerError(
        f"{card.path / file} does not answer what the card says that this model answers ({apart:.1e} eV/atom and "
        f"{away:.1e} eV/Å away; allowed {most:.0e} and {strongest:.0e}): {_suspects(card.about.get(MADE_WITH))}",
        "copy the whole bundle again, or import the model again; another --engine runs another file",
    )


def _graph(numbers: Any, positions: Any, charge: Any, spin: Any, cutoff: float) -> Graph:
    """The graph of a cluster. Raises ValueError for what is none."""
    places = np.array(positions, dtype=np.float64)
    if not 0 < len(numbers) <= MOST_ATOMS or places.shape != (len(numbers), 3):
        raise ValueError(f"{len(numbers)} atoms with positions of shape {places.shape}")
    if not all(type(value) is int for value in (*numbers, charge, spin)):
        raise ValueError("numbers, charge and spin are whole numbers")
    frame = Frame(np.array(numbers), places, np.zeros((3, 3)), (False,) * 3, charge=charge, spin=spin)
    return build([frame], cutoff)


def _suspects(before: Any) -> str:
    """What may be the reason, by the versions that the card names."""
    here = made_with()
    changed = [
        f"{name} {was}, here {here.get(name, 'not installed')}"
        for name, was in (before.items() if isinstance(before, Mapping) else ())
        if here.get(name) != was
    ]
    if changed:
        return (
            f"it holds other weights, or a version computes otherwise (when the card was written {'; '.join(changed)})"
        )
    return "it holds the weights of another model"
