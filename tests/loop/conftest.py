"""Real i-PI, and labels that are computed in a moment, for the tests of the loop."""

from __future__ import annotations

import pytest

from support import loop_project
from support.queues import springs  # noqa: F401
from support.real_ipi import _environment, ipi  # noqa: F401


@pytest.fixture(autouse=True)
def _truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process can import the truth as well."""
    monkeypatch.syspath_prepend(loop_project.HERE)
