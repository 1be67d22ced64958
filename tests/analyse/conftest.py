"""A run whose averages are known exactly, drawn once a session."""

from __future__ import annotations

import pytest

from support.exact_runs import RingPolymer, draw_ring_polymer


@pytest.fixture(scope="session")
def ring_polymer(tmp_path_factory: pytest.TempPathFactory) -> RingPolymer:
    """2000 independent frames of a harmonic ring polymer."""
    return draw_ring_polymer(tmp_path_factory.mktemp("ring"))
