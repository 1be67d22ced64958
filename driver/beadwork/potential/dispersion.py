"""Dispersion by formula, a third summand beside baseline and Δ: Grimme's D3 and D4, by s-dftd3 and dftd4.

    E = E_base + E_D + E_Δ

D3: J. Chem. Phys. 132, 154104 (2010), with rational damping J. Comput. Chem. 32, 1456 (2011); D4: J. Chem. Phys. 150,
154122 (2019). Pairs are summed up to the libraries' own cutoffs (60 Bohr), which no graph has to hold.
"""

from __future__ import annotations

import hashlib
import importlib
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from beadwork.config import ADDITIONS
from beadwork.errors import ConfigError, ModelError
from beadwork.packages import pip_install
from beadwork.potential.bundle import prefixed
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph
from beadwork.units import BOHR, FORCE, HARTREE

#: by kind: the package, its class of damping parameters, and whether three-body terms (ATM) are summed
KINDS = dict(
    zip(
        ADDITIONS,
        (
            ("dftd3", "RationalDampingParam", False),
            ("dftd3", "RationalDampingParam", True),
            ("dftd3", "ZeroDampingParam", False),
            ("dftd3", "ZeroDampingParam", True),
            ("dftd4", "DampingParam", True),
        ),
        strict=True,
    )
)


class Dispersion:
    """D3 or D4 with the parameters of a functional, as an engine that knows any element up to the library's last.

    kind: of KINDS. method: the functional, as the library knows it (upper or lower case). hash: what stands for it in
    the hash of all models. Raises ConfigError for an unknown kind, ModelError for a functional without parameters or a
    package that is missing.
    """

    #: it needs no edges
    cutoff = 0.0
    elements: tuple[int, ...] = ()

    def __init__(self, kind: str, method: str) -> None:
        if kind not in KINDS:
            raise ConfigError(f"add names {kind!r}", f"it wants one of {', '.join(KINDS)}, as d3bj=PBE")
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
        self._charged = package == "dftd4"
        self.name = f"{kind}={method} ({package} {version(package)})"
        self.hash = prefixed(hashlib.sha256(f"{kind}={method.lower()}".encode()).hexdigest())

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate every system of the graph, one after the other."""
        damping = self._damping()
        energies, virials = np.empty(len(graph)), np.empty((len(graph), 3, 3))
        forces = np.empty((len(graph.numbers), 3))
        for s in range(len(graph)):
            atoms = slice(graph.ptr[s], graph.ptr[s + 1])
            periodic = graph.pbc[s]
            told: dict[str, Any] = {}
            if periodic.any():
                told = {"lattice": graph.cells[s] / BOHR, "periodic": np.array(periodic)}
            if self._charged:
                told["charge"] = float(graph.states[s][0] or 0)
            model = self._model(graph.numbers[atoms], graph.positions[atoms] / BOHR, **told)
            found = model.get_dispersion(damping, grad=True)
            energies[s] = HARTREE * float(found["energy"])
            forces[atoms] = -FORCE * found["gradient"]
            virials[s] = -HARTREE * found["virial"]  # the library's is the slope of the energy by the strain
        return Energies(energies, forces, 0.5 * (virials + virials.transpose(0, 2, 1)))
