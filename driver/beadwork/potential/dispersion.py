"""Dispersion by formula, a third summand beside baseline and Δ: Grimme's D3 and D4, by s-dftd3 and dftd4.

    E = E_base + E_D + E_Δ

D3: J. Chem. Phys. 132, 154104 (2010), with rational damping J. Comput. Chem. 32, 1456 (2011); D4: J. Chem. Phys. 150,
154122 (2019). Pairs are summed up to the libraries' own cutoffs (60 Bohr), which no graph has to hold.
"""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from beadwork.errors import ModelError
from beadwork.frame import FloatArray
from beadwork.packages import pip_install
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph, complete
from beadwork.potential.state import CHARGE, untold
from beadwork.units import BOHR, FORCE, HARTREE


class Kind(NamedTuple):
    """A library's package, its class of damping parameters, and whether three-body terms (ATM) are summed."""

    package: str
    damping: str
    three_body: bool


KINDS = {
    "d3bj": Kind("dftd3", "RationalDampingParam", three_body=False),
    "d3bj-atm": Kind("dftd3", "RationalDampingParam", three_body=True),
    "d3zero": Kind("dftd3", "ZeroDampingParam", three_body=False),
    "d3zero-atm": Kind("dftd3", "ZeroDampingParam", three_body=True),
    "d4": Kind("dftd4", "DampingParam", three_body=True),
}


class Dispersion:
    """D3 or D4 with the parameters of a functional, as an engine that knows any element up to the library's last.

    kind: of KINDS. method: the functional, as the library knows it (upper or lower case). hash: what stands for it in
    the hash of all models. wants: as `Inputs` has it. Raises ModelError for a functional without parameters or a
    package that is missing.
    """

    #: it needs no edges
    cutoff = 0.0
    elements: tuple[int, ...] = ()

    def __init__(self, kind: str, method: str, hash: str) -> None:
        package, damping, atm = KINDS[kind]
        try:
            library = importlib.import_module(f"{package}.interface")
        except ImportError as error:
            raise ModelError(
                f"{kind} needs {package}, which cannot be imported ({error})", pip_install(package)
            ) from error
        # made anew at each evaluation: the library cannot free what lives until Python ends, and prints that it cannot
        self._damping = partial(getattr(library, damping), method=method, atm=atm)
        try:
            self._damping()
        except RuntimeError as error:
            raise ModelError(
                f"{package} has no parameters of {method!r} for {kind} ({str(error).strip()})",
                "name a functional as it does, such as PBE or revPBE",
            ) from error
        self._model: Any = library.DispersionModel
        self.wants = (CHARGE,) if package == "dftd4" else ()
        self.name = f"{kind}={method} ({package} {version(package)})"
        self.hash = hash

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate every system of the graph, as many at a time as PyTorch has threads. Raises ModelError for D4 of a
        system whose charge is not told, that of an ion being another one by a quarter, and of one with one or two
        periodic directions, where dftd4 has charges of none or of three."""
        if self.wants and any(charge is None for charge, _ in graph.states):
            raise untold(CHARGE, self.name)
        directions = graph.pbc.sum(axis=1)
        if self.wants and (partly := np.flatnonzero((directions > 0) & (directions < 3))).size:
            raise ModelError(
                f"{graph.where(int(partly[0]))} is periodic in {int(directions[partly[0]])} directions, and the "
                f"charges of {self.name} are those of three or none",
                "make all three periodic, with a wide cell, or none, or add d3bj",
            )
        damping = self._damping()
        # the libraries let other threads run meanwhile; dftd4 has threads of its own inside
        threads = 1 if self.wants else min(len(graph), torch.get_num_threads())
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(lambda system: self._of(graph, system, damping), range(len(graph))))
        virials = -HARTREE * np.array([one["virial"] for one in found])  # theirs is the energy's slope by the strain
        return Energies(
            HARTREE * np.array([float(one["energy"]) for one in found]),
            -FORCE * np.concatenate([one["gradient"] for one in found]),
            0.5 * (virials + virials.transpose(0, 2, 1)),
        )

    def _of(self, graph: Graph, system: int, damping: Any) -> Any:
        """What the library answers of one system, in its units: energy, gradient and virial."""
        atoms = slice(graph.ptr[system], graph.ptr[system + 1])
        positions = graph.positions[atoms]
        periodic = graph.pbc[system]
        told: dict[str, Any] = {}
        if periodic.any():
            cell, positions = _around(graph.cells[system], periodic, positions)
            told = {"lattice": cell / BOHR, "periodic": np.array(periodic)}
        if self.wants:
            told["charge"] = float(graph.states[system][0] or 0.0)
        model = self._model(graph.numbers[atoms], positions / BOHR, **told)
        return model.get_dispersion(damping, grad=True)


def _around(cell: FloatArray, pbc: NDArray[np.bool_], positions: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The cell (3, 3) with vectors round all atoms where it is not periodic, and the positions (N, 3) inside of these.

    The library folds atoms into the cell, whether it is periodic there or not, and makes NaN of a vector that is 0.
    """
    a, b, c = map(bool, pbc)
    whole = complete(cell, (a, b, c))
    along = positions @ np.linalg.inv(whole)
    low, high = along.min(axis=0) - 1.0, along.max(axis=0) + 1.0  # Å, where the vectors are unit vectors
    return whole * np.where(pbc, 1.0, high - low)[:, None], positions - np.where(pbc, 0.0, low) @ whole
