"""The client that other people's tests are given is of today: `make suites` is run too seldom to say so first."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from beadwork.errors import ConnectionLost
from beadwork.ipi.transport import Address
from beadwork.potential.analytic import Harmonic


def test_the_client_looks_for_a_listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be made, and it looks for somebody who listens."""
    spec = spec_from_file_location("suites_client", Path(__file__).with_name("suites") / "client.py")
    assert spec is not None
    assert spec.loader is not None
    client = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "suites_client", client)
    spec.loader.exec_module(client)
    monkeypatch.setattr(client, "PATIENCE", 0.0)
    with pytest.raises(ConnectionLost, match="no i-PI at"):
        client.serve(Harmonic(1.0), Address(tmp_path / "nobody"))
