"""Every architecture of mace-torch with random weights, in every engine, against MACE itself.

    .venv/bin/python tests/potential/architectures.py

measures all and writes docs/architectures.md; `test_architectures.py` holds the same measurements to bounds.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.stress import voigt_6_to_full_3x3_stress

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from beadwork.frame import Frame
from beadwork.potential.auto_engine import open_engine
from beadwork.potential.bundle import FILES, check
from beadwork.potential.engine import Energies
from beadwork.potential.graph import build
from beadwork.potential.importer import import_model
from beadwork.potential.response import DIPOLE_UNITS, POLARIZABILITY_UNITS, ResponseEngine
from support.random_models import random_mace
from support.response import KINDS, random_response

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
RESPONSES_TITLE = "## Dipoles, Born charges, polarizabilities"
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
BLOCKS = ("interaction_cls_first", "interaction_cls")
AWARE = {
    "total_charge": {"type": "categorical", "num_classes": 5, "offset": 2, "emb_dim": 4, "per": "graph"},
    "total_spin": {"type": "continuous", "in_dim": 1, "emb_dim": 4, "per": "graph"},
}


def _same(block: str) -> dict[str, str]:
    return dict.fromkeys(BLOCKS, block)


def _bias() -> dict[str, Any]:
    from mace.modules import blocks

    return {"readout_cls": blocks.NonLinearBiasReadoutBlock}


POLAR = "PolarMACE"
#: of a strain, by which MACE's energies are differentiated where its own virial is wrong
STEP = 5e-4
#: what differs from a ScaleShiftMACE of two residual interactions, L = 0, max_ell 3 and correlation 3, by row
ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "ScaleShiftMACE, L = 0": dict,
    "L = 1": lambda: {"hidden_irreps": "4x0e+4x1o"},
    "L = 2": lambda: {"hidden_irreps": "4x0e+4x1o+4x2e"},
    "one interaction": lambda: {"num_interactions": 1},
    "three interactions": lambda: {"num_interactions": 3},
    "correlation 2": lambda: {"correlation": 2},
    "max_ell 1": lambda: {"max_ell": 1},
    "max_ell 2": lambda: {"max_ell": 2},
    "first interaction not residual": lambda: {"interaction_cls_first": "RealAgnosticInteractionBlock"},
    "density-normalised": lambda: {
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    },
    "attention": lambda: _same("RealAgnosticAttResidualInteractionBlock"),
    "non-linear blocks": lambda: _same(NONLINEAR),
    "readout with biases": _bias,
    "Agnesi": lambda: {"distance_transform": "Agnesi"},
    "Soft": lambda: {"distance_transform": "Soft"},
    "Gaussian basis": lambda: {"radial_type": "gaussian"},
    # polynomials of the distance in Å, which random weights make 1e30 eV/Å beyond some 2 Å
    "Chebyshev basis, cutoff 1.6 Å": lambda: {"radial_type": "chebyshev", "cutoff": 1.6},
    "ZBL": lambda: {"zbl": True},
    "two heads, the second served": lambda: {"heads": ["first", "second"]},
    "charge and spin embedded": lambda: {"embedding_specs": AWARE, "use_embedding_readout": True},
    "MACE": lambda: {"kind": "MACE"},
    "EnergyDipolesMACE, its energy": lambda: {
        "kind": "EnergyDipolesMACE",
        "hidden_irreps": "4x0e+4x1o",
        "MLP_irreps": "4x0e+4x1o",
    },
    # random charges that add up to nearly zero are divided by their sum, and scalars alone make that likely
    POLAR: lambda: {"kind": "PolarMACE", "hidden_irreps": "4x0e+4x1o"},
    f"{POLAR}, dipoles, two steps": lambda: {
        "kind": "PolarMACE",
        "hidden_irreps": "4x0e+4x1o",
        "atomic_multipoles_max_l": 1,
        "field_feature_max_l": 1,
        "field_feature_widths": [1.0, 1.5],
        "num_recursion_steps": 2,
        "add_local_electron_energy": True,
    },
}
#: (eV/atom, eV/Å, eV of virial an atom) that each engine may differ from MACE by in float64; and all of them in float32
ALLOWED = {"eager": (1e-9, 1e-8, 1e-7), "torchscript": (1e-9, 1e-8, 1e-7), "native": (1e-7, 1e-6, 1e-5)}
ROUGH = (1e-4, 1e-2, 1e-1)
#: models of dipoles, in the engine that takes them, and what their dipoles are in
RESPONSES = {"EnergyDipolesMACE": "debye", "AtomicDipolesMACE": "debye", "AtomicDielectricMACE": "eang", POLAR: "eang"}
#: e Å, e, e Å²/V by precision: what those may differ by; and Å, the step of the differences of MACE's dipoles
RESPONSE_ALLOWED = {"float64": (1e-8, 1e-7, 1e-8), "float32": (1e-4, 1e-4, 1e-4)}
MOVE = 5e-3


@dataclass
class Row:
    """What was measured of one architecture: by engine, why it does not run there, or how far from MACE it is.

    errors: eV/atom, eV/Å, and eV of the virial an atom, by engine and precision.
    """

    name: str
    without: dict[str, str] = field(default_factory=dict)
    errors: dict[tuple[str, str], tuple[float, float, float]] = field(default_factory=dict)


def frames() -> list[Frame]:
    """H3O+ alone, and 24 atoms of water in a skew periodic cell, with the charge and spin that they have."""
    rng = np.random.default_rng(5)
    ion = np.array([[0, 0, 0.1], [0.94, 0, -0.2], [-0.47, 0.81, -0.2], [-0.47, -0.81, -0.25]])
    cell = np.array([[6.2, 0.1, 0.0], [-0.3, 6.1, 0.2], [0.4, -0.2, 6.3]])
    water = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.05]])
    sites = np.stack(np.meshgrid(*[(0.0, 0.5)] * 3), axis=-1).reshape(-1, 3) @ cell
    turned = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in sites]
    box = np.concatenate([site + water @ turn for site, turn in zip(sites, turned, strict=True)])
    return [
        Frame(np.array([8, 1, 1, 1]), ion, np.zeros((3, 3)), (False,) * 3, charge=1, spin=0),
        Frame(np.array([8, 1, 1] * 8), box, cell, charge=0, spin=0),
    ]


def make(name: str) -> Any:
    """The eager model of a row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return random_mace(
            **{
                **{"seed": 3, "cutoff": 4.5, "scale": 8.0, "shift": 0.1, "neighbors": 12.0, "channels": 4},
                **{"energies": (-13.6, -442.0)},
                **ROWS[name](),
            }
        )


@dataclass
class Exact:
    """What MACE's own calculator answers for a frame, in float64: eV, eV/Å, eV; it has no virial of a cluster."""

    energy: float
    forces: np.ndarray
    virial: np.ndarray | None

    def apart(self, answer: Energies) -> tuple[float, float, float]:
        """How far an answer for this frame alone is from it, as `Row` has it."""
        virial = 0.0 if self.virial is None else np.abs(answer.virials[0] - self.virial).max()
        return (
            float(abs(answer.energies[0] - self.energy) / len(self.forces)),
            float(np.abs(answer.forces - self.forces).max()),
            float(virial / len(self.forces)),
        )


@contextlib.contextmanager
def calculator(model: Any) -> Iterator[Callable[[Frame], tuple[dict[str, Any], float]]]:
    """MACE's own, in float64: gives the results for a frame, and its volume (Å³), 0 of a cluster."""
    guard = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mace.calculators import MACECalculator

        name = type(model).__name__
        keys = {key: key for key in ("total_charge", "total_spin", "external_field", "fermi_level")}
        heads = getattr(model, "heads", None) or ["Default"]
        own = MACECalculator(
            models=[copy.deepcopy(model)],
            device="cpu",
            default_dtype="float64",
            model_type={**KINDS, POLAR: POLAR}.get(name, "MACE"),
            info_keys=keys,
            head=heads[-1],
        )

        def answer(frame: Frame) -> tuple[dict[str, Any], float]:
            atoms = frame.to_atoms()
            atoms.info = {"total_charge": frame.charge, "total_spin": (frame.spin or 0) + 1}
            own.calculate(atoms)
            return own.results, atoms.get_volume() if any(frame.pbc) else 0.0

        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)  # graph-longrange takes it as the precision of fields
        try:
            yield answer
        finally:
            torch.set_default_dtype(before)
    if guard is None:
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)


def exact(model: Any, some: Sequence[Frame]) -> list[Exact]:
    """What MACE's own calculator answers for each frame; of PolarMACE the virial is from differences of its energy."""
    found = []
    with calculator(model) as answer:
        for frame in some:
            # a dipole model's results are of the charges that it is given, none
            known, volume = answer(frame)
            energy, forces, virial = float(known["energy"]), np.array(known["forces"]), None
            if volume and type(model).__name__ == POLAR:
                virial = strained(frame, lambda one: float(answer(one)[0]["energy"]))
            elif volume:
                virial = -volume * voigt_6_to_full_3x3_stress(known["stress"])
            found.append(Exact(energy, forces, virial))
    return found


def dipole(model: Any, frame: Frame) -> np.ndarray:
    """(3,) e Å: what MACE's own calculator answers of a PolarMACE."""
    with calculator(model) as answer:
        return np.array(answer(frame)[0]["dipole"])


def measure_response(kind: str, folder: Path) -> dict[str, tuple[float, ...]]:
    """By precision, how far a class is from MACE's own calculator: dipole (e Å), Born charges (e) and, where there is
    one, polarizability (e Å²/V); Born charges of the first atoms from MACE's dipoles, by differences of fourth order.

    Of H3O+, and of the box where its dipole is none of charges.
    """
    unit = DIPOLE_UNITS[RESPONSES[kind]]
    model = make(POLAR) if kind == POLAR else random_response(kind)
    torch.save(model, folder / "row.model")
    tensor = {"polarizability_unit": "ang3"} if kind == "AtomicDielectricMACE" else {}
    card = import_model(
        folder / "row.model", folder / "bundle", trust_pickle=True, dipole_unit=RESPONSES[kind], **tensor
    )
    opened = {dtype: ResponseEngine(check(card.path), "dipole", dtype) for dtype in RESPONSE_ALLOWED}
    worst = {dtype: np.zeros(2 + len(tensor)) for dtype in opened}
    for frame in frames()[: 2 if RESPONSES[kind] == "debye" else 1]:
        with calculator(model) as answer:
            known = answer(frame)[0]
            dipole, alpha = unit * np.array(known["dipole"]), known.get("polarizability")
            born = np.zeros((3, 3, 3))
            for i, j in np.ndindex(3, 3):
                for times, weight in ((1, 8.0), (-1, -8.0), (2, -1.0), (-2, 1.0)):
                    positions = frame.positions.copy()
                    positions[i, j] += times * MOVE
                    there = answer(replace(frame, positions=positions))[0]["dipole"]
                    born[i, j] += weight * unit * np.array(there) / (12 * MOVE)
        for dtype, engine in opened.items():
            found = engine.evaluate(build([frame], engine.cutoff))
            apart = [np.abs(found.dipole[0] - dipole).max(), np.abs(found.born[:3] - born).max()]
            if tensor:
                apart += [np.abs(found.polarizability[0] - POLARIZABILITY_UNITS["ang3"] * np.array(alpha)).max()]
            worst[dtype] = np.maximum(worst[dtype], apart)
    return {dtype: tuple(errors.tolist()) for dtype, errors in worst.items()}


def strained(frame: Frame, energy: Callable[[Frame], float]) -> np.ndarray:
    """(3, 3) eV: minus the slopes of the energy by a symmetric strain, by central differences of fourth order."""
    virial = np.zeros((3, 3))
    for i, j in np.argwhere(np.triu(np.ones((3, 3)))):
        slope = 0.0
        for times, weight in ((1, 8.0), (2, -1.0)):
            for sign in (1, -1):
                moved = np.eye(3)
                moved[i, j] += times * sign * STEP / 2
                moved[j, i] += times * sign * STEP / 2
                one = replace(frame, positions=frame.positions @ moved, cell=frame.cell @ moved)
                slope += sign * weight * energy(one) / (12 * STEP)
        virial[i, j] = virial[j, i] = -slope
    return virial


def measure(name: str, folder: Path) -> Row:
    """Import a row's model and run it in every engine that takes it, in both precisions."""
    model, some = make(name), frames()
    expected = exact(model, some)
    torch.save(model, folder / "row.model")
    heads = getattr(model, "heads", None) or ["Default"]
    card = import_model(
        folder / "row.model", folder / "bundle", trust_pickle=True, head=heads[-1] if len(heads) > 1 else None
    )
    row = Row(name)
    for engine in FILES:
        if why := card.without(engine):
            row.without[engine] = why.removeprefix("no (").removesuffix(")")
            continue
        for dtype in ("float64", "float32"):
            opened = open_engine(card.path, engine, dtype)
            answers = [opened.evaluate(build([frame], card.cutoff)) for frame in some]
            apart = [one.apart(answer) for one, answer in zip(expected, answers, strict=True)]
            energy, force, virial = np.max(apart, axis=0).tolist()
            row.errors[engine, dtype] = energy, force, virial
    return row


def table(rows: Sequence[Row], responses: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The page."""

    def cell(row: Row, engine: str) -> str:
        if engine in row.without:
            return "no"
        return "; ".join(", ".join(f"{x:.0e}" for x in row.errors[engine, d]) for d in ("float64", "float32"))

    lines = [
        "# Architectures",
        "",
        "Which models of mace-torch 0.3.16 run in which engine, and how far each engine is from MACE's own",
        "calculator in float64: eV/atom, eV/Å, and eV of the virial an atom; the first three in float64, the others in",
        "float32. Random weights, 4 channels, H and O, cutoff 4.5 Å, forces of some eV/Å; H3O+ alone and 24 atoms of",
        "water in a skew cell. Each row differs from the first in what it names. Bounds in float64: 1e-9 eV/atom,",
        "1e-8 eV/Å and 1e-7 eV for eager and torchscript, a hundred times as much for native, which interpolates its",
        "radial functions; in float32 1e-4, 1e-2 and 1e-1. Written by `python tests/potential/architectures.py`.",
        "",
        f"| model | {' | '.join(FILES)} |",
        f"|---{'|---' * len(FILES)}|",
        *(f"| {row.name} | {' | '.join(cell(row, engine) for engine in FILES)} |" for row in rows),
        "",
        RESPONSES_TITLE,
        "",
        "By the engine `eager`, which alone takes them (`--also`): e Å of the dipole, e of Born charges, e Å²/V of the",
        "polarizability, in float64; in float32, from MACE's own calculator. It gives Born charges of one class alone,",
        "and so they are held to differences of its dipoles. Bounds: 1e-8, 1e-7 and 1e-8, in float32 1e-4. H3O+; of",
        "the first two, whose dipoles are none of charges, the box too.",
        "",
        "| model | dipole | Born charges | polarizability |",
        "|---|---|---|---|",
        *(
            f"| {kind} | "
            + " | ".join(
                "; ".join(f"{of[dtype][k]:.0e}" for dtype in RESPONSE_ALLOWED) if k < len(of["float64"]) else "has none"
                for k in range(3)
            )
            + " |"
            for kind, of in responses.items()
        ),
        "",
        "## Why not",
        "",
        "What `beadwork models import` says of each `no`:",
        "",
        *(f"- {row.name}, {engine}: {why}" for row in rows for engine, why in row.without.items()),
        "",
        "PolarMACE needs graph-longrange 0.4.0 (the extra `longrange`). MACE's own calculator strains its edges alone,",
        "and its virial lacks the long range: here the virial is held to differences of MACE's energy in its place.",
        "MACELES needs `les`, which is in no package registry. What is converted for cuequivariance is to be converted",
        "back first.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every row and write the page."""
    torch.set_num_threads(1)
    rows, responses = [], {}
    for kind in RESPONSES:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            responses[kind] = measure_response(kind, Path(folder))
        print(kind, responses[kind], flush=True)
    for name in ROWS:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            rows.append(measure(name, Path(folder)))
        print(rows[-1], flush=True)
        PAGE.write_text(table(rows, responses), encoding="utf-8")


if __name__ == "__main__":
    main()
