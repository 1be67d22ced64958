"""The ways in which i-PI speaks."""

from __future__ import annotations

import pytest


@pytest.fixture(params=[("consolidated", 1), ("legacy", 1), ("consolidated", 4), ("shm", 1), ("shm", 4)], ids=str)
def mode(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Every way in which i-PI 3.3.1 speaks."""
    return request.param
