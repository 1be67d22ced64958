"""beadwork: a force-field server for path-integral molecular dynamics with i-PI.

From Python, without i-PI:

    import beadwork
    potential = beadwork.load("models/water/baseline", ["models/water/delta-0", "models/water/delta-1"])
    result = potential.evaluate([beadwork.Frame.from_atoms(atoms) for atoms in frames])
    result.energies, result.forces, result.virials, result.energy_spread, result.force_spread
    atoms.calc = beadwork.BeadworkCalculator(potential)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beadwork.frame import Frame
    from beadwork.potential.calculator import BeadworkCalculator
    from beadwork.potential.load import load

    __version__: str

__all__ = ["BeadworkCalculator", "Frame", "__version__", "load"]

_HOME = {"load": "potential.load", "BeadworkCalculator": "potential.calculator", "Frame": "frame"}


def __getattr__(name: str) -> Any:
    """Import on first use: the wire must not wait for PyTorch."""
    if name == "__version__":
        from importlib.metadata import version  # a tenth of a second, which no server needs to spend

        return version("beadwork")
    if name not in _HOME:
        raise AttributeError(f"module 'beadwork' has no attribute {name!r}")
    return getattr(importlib.import_module(f"beadwork.{_HOME[name]}"), name)
