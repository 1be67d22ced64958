"""Faults are provoked with the means of tests/end_to_end: real i-PI, random-weight models, programs that end."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def _shared() -> Any:
    """The other folder's conftest: pytest's importlib mode adds no paths, and a conftest is seen in its folder only."""
    spec = spec_from_file_location("end_to_end_conftest", Path(__file__).parents[1] / "end_to_end" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


shared = _shared()
_environment = shared._environment
ipi, models, serve, start = shared.ipi, shared.models, shared.serve, shared.start
