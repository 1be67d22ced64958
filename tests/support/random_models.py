"""MACE models with random weights, and folders that are made once for all workers of a test run.

tests/conftest.py puts this module where every other conftest can import it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def random_mace(
    *,
    seed: int,
    cutoff: float,
    scale: float,
    shift: float,
    neighbors: float,
    energies: Sequence[float],
    elements: Sequence[int] = (1, 8),
    channels: int = 8,
    order: int = 0,
    zbl: bool = False,
    dtype: str = "float64",
    heads: Sequence[str] | None = None,
    kind: str = "ScaleShiftMACE",
    **options: Any,
) -> Any:
    """An eager MACE of the architecture that the native engine takes: max_ell 3, correlation 3, two interactions.

    kind: the name of its class.

    order: the largest L of the hidden features. zbl: repulsion of close atoms. energies: of the atoms alone, eV.
    options: MACE's own, in place of what is chosen here; an interaction block by its name.
    """
    import torch

    from beadwork.potential.architecture import mace_imported

    with mace_imported():
        from e3nn import o3
        from mace import modules

        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, dtype))
        torch.manual_seed(seed)
        chosen = {
            "interaction_cls": "RealAgnosticResidualInteractionBlock",
            "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
            "hidden_irreps": f"{channels}x0e" + (f"+{channels}x1o" if order else ""),
            "max_ell": 3,
            "correlation": 3,
            "num_polynomial_cutoff": 5,
            "gate": torch.nn.functional.silu,
            "num_interactions": 2,
            "MLP_irreps": "8x0e",
            **options,
        }
        for key in ("interaction_cls", "interaction_cls_first"):
            chosen[key] = modules.interaction_classes[chosen[key]]
        for key in {"hidden_irreps", "edge_irreps", "MLP_irreps"} & chosen.keys():
            chosen[key] = o3.Irreps(chosen[key])
        reference = np.resize(energies, len(elements))
        chosen |= {
            "r_max": cutoff,
            "num_bessel": 6,
            "num_elements": len(elements),
            "atomic_energies": reference if heads is None else np.stack([reference] * len(heads)),
            "avg_num_neighbors": neighbors,
            "atomic_numbers": list(elements),
            "radial_MLP": [16, 16],
        }
        if kind in ("MACE", "ScaleShiftMACE", "PolarMACE"):
            chosen |= {"pair_repulsion": zbl, "heads": heads}
        if kind.startswith("Atomic"):
            chosen["atomic_energies"] = None
        if kind in ("ScaleShiftMACE", "PolarMACE"):
            chosen["atomic_inter_scale"] = scale if heads is None else [scale] * len(heads)
            chosen["atomic_inter_shift"] = shift if heads is None else [shift] * len(heads)
        model = getattr(modules, kind)(**chosen)
        torch.set_default_dtype(before)
    return model


def write_bundle(model: Any, folder: Path, name: str) -> Path:
    """Save the eager model as NAME.model, make a bundle NAME of it, and return that."""
    import torch

    from beadwork.potential.importer import import_model

    torch.save(model, folder / f"{name}.model")
    import_model(folder / f"{name}.model", folder / name, trust_pickle=True)
    return folder / name


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that whoever comes first fills, of all workers and conftests of this test run; to be read only."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = root / name
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = root / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)  # of one that failed
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder
