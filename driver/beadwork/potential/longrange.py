"""Models whose electrostatics reach over the whole system (PolarMACE): what they take besides edges, and their strain.

mace-torch 0.3.16 strains the edges and nothing else: positions, reciprocal cell and volume, of which the sum over
reciprocal vectors is made, stay as they are, so that its virial is that of the short range. Here all of them are
functions of one strain, and forces and virial are the slopes of the energy by positions and by it. graph-longrange
0.4.0 writes functions of the reciprocal vectors in place, which PyTorch cannot differentiate: the same functions stand
here in another form.

In a system without periodic directions the sum is over all pairs, in one with three over reciprocal vectors. The two do
not go together in one call of the module, nor do periodic systems gain by that: each would take the others' reciprocal
vectors too.
"""

from __future__ import annotations

import importlib
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from beadwork.errors import ModelError
from beadwork.packages import pip_install
from beadwork.potential.graph import Graph

#: the classes of mace-torch that are meant
LONG_RANGE = ("PolarMACE",)
#: versions of graph-longrange whose functions take what mace-torch 0.3.16 gives them
KNOWN = ("0.4.0",)
PACKAGE = "graph-longrange"
#: reciprocal vectors beyond its cutoff, in a cell of this length (Å) none but zero is within any cutoff
_NO_CELL = 0.01


def check_package(what: str) -> None:
    """Raise ModelError where what makes the reciprocal sum is not installed, or is another version."""
    try:
        here = version(PACKAGE)
        importlib.import_module("graph_longrange.kspace")
    except (PackageNotFoundError, ImportError) as error:
        raise ModelError(f"{what} needs {PACKAGE}, which is not installed", pip_install(PACKAGE)) from error
    if here not in KNOWN:
        raise ModelError(
            f"{what} needs {PACKAGE} {' or '.join(KNOWN)}, whose functions take what mace-torch 0.3.16 gives them, and "
            f"{here} is installed",
            pip_install(PACKAGE),
        )


def prepare(module: Any) -> None:
    """Let an eager module's functions of reciprocal vectors be differentiated; what they answer stays the same."""
    for part in module.modules():
        name = type(part).__name__
        if name == "RadialIntegralDirect":
            part.forward = partial(_radial, part)
        elif name == "GTOBasis":
            part._prepare_k_moduli = _lengths


def _radial(part: Any, lengths: torch.Tensor) -> torch.Tensor:
    """(K, widths, degrees): the Fourier transforms of Gaussians, of lengths (K,) of reciprocal vectors."""
    decay = torch.exp(-0.5 * (lengths * lengths).unsqueeze(-1) * part.sigma2)
    terms = [part.pref0 * decay]
    if part.max_l:
        terms.append(part.pref1 * lengths.unsqueeze(-1) * decay)
    return torch.stack(terms, dim=-1)


def _lengths(squares: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """(K,) the roots of squares (K,), where `zero` (K,) says 0; a root has no slope there."""
    none = zero > 0.0
    return torch.where(
        none, torch.zeros_like(squares), torch.sqrt(torch.where(none, torch.ones_like(squares), squares))
    )


def by_differences(module: Any) -> bool:
    """Whether it has dipoles of atoms, or fields at them, which graph-longrange makes by differences in a cluster.

    A dipole is two charges 0.02 Å apart there, a field the difference of two potentials 0.1 Å apart, one of each pair
    at the atom itself: neither turns exactly with the cluster, nor do energy and forces, MACE's own among them.
    """
    degrees = (getattr(module, key, 0) for key in ("atomic_multipoles_max_l", "field_feature_max_l"))
    return type(module).__name__ in LONG_RANGE and any(degrees)


def place(graph: Graph, data: dict[str, torch.Tensor], dtype: torch.dtype, device: torch.device) -> None:
    """Put into `data`, which has a graph's edges, what the module takes besides, without a strain.

    Positions (A, 3) lie in the cell or, of a cluster, about its centre, so that float32 has them exactly enough. Raises
    ModelError for a system with one or two periodic directions.
    """
    some, every = np.asarray(graph.pbc.any(axis=1)), np.asarray(graph.pbc.all(axis=1))
    if (partly := np.flatnonzero(some & ~every)).size:
        raise ModelError(
            f"{graph.where(int(partly[0]))} is periodic in {int(graph.pbc[partly[0]].sum())} directions, and the sum "
            "over charges is made for three or none",
            "make all three periodic, with a wide cell, or none",
        )
    cells = np.where(every[:, None, None], graph.cells, _NO_CELL * np.eye(3))
    positions = graph.positions - centres(graph)[graph.system]
    inside = np.einsum("ai,aij->aj", positions, np.linalg.inv(cells)[graph.system])
    folded = positions - np.einsum("ai,aij->aj", np.floor(inside), cells[graph.system])
    positions = np.where(every[graph.system, None], folded, positions)
    shifts = -graph.vectors - (positions[graph.center] - positions[graph.neighbor])

    def tensor(array: Any) -> torch.Tensor:
        return torch.as_tensor(array, dtype=dtype, device=device)

    data |= {
        "positions": tensor(positions),
        "shifts": tensor(shifts),
        "cell": tensor(cells.reshape(-1, 3)),
        "pbc": torch.as_tensor(np.array(graph.pbc), device=device),
        # mace-torch's names of what is not asked for
        "fermi_level": tensor(np.zeros(len(graph))),
        "external_field": tensor(np.zeros((len(graph), 3))),
    }
    _follow(data)


def _follow(data: dict[str, torch.Tensor]) -> None:
    """Make reciprocal cell and volume those of the cell."""
    cells = data["cell"].view(-1, 3, 3)
    data["rcell"] = (2 * torch.pi * torch.linalg.inv(cells).mT).reshape(-1, 3)
    data["volume"] = torch.linalg.det(cells).abs()  # a left-handed cell has no negative energy


def strain(data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make all of `data` functions of positions (A, 3) and a strain of each system (S, 3, 3), and return these two."""
    positions = data["positions"].requires_grad_(True)
    free = torch.zeros((len(data["ptr"]) - 1, 3, 3), dtype=positions.dtype, device=positions.device, requires_grad=True)
    both = 0.5 * (free + free.mT)
    of_atom = both[data["batch"]]
    data["positions"] = positions + torch.einsum("ai,aij->aj", positions, of_atom)
    data["shifts"] = data["shifts"] + torch.einsum("ei,eij->ej", data["shifts"], of_atom[data["edge_index"][0]])
    cells = data["cell"].view(-1, 3, 3)
    data["cell"] = (cells + cells @ both).reshape(-1, 3)
    _follow(data)
    return positions, free


def together(graph: Graph) -> bool:
    """Whether the module may take all systems of the graph in one call."""
    return len(graph) == 1 or not graph.pbc.any()


def centres(graph: Graph) -> np.ndarray:
    """(S, 3) Å."""
    sums: np.ndarray = np.add.reduceat(graph.positions, graph.ptr[:-1])
    return sums / np.diff(graph.ptr)[:, None]
