"""What the tests of learning share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def _beside(name: str) -> Any:
    """Make a helper in this folder importable under its own name (pytest's importlib mode adds no paths)."""
    full = f"learn_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


_beside("truth")

_queues = _beside("queues")
fill, diary, springs = _queues.fill, _queues.diary, _queues.springs
