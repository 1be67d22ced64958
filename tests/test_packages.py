"""What to install for a part that needs more is what this beadwork declares."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from beadwork import packages
from beadwork.packages import pip_install


def test_versions_are_those_declared() -> None:
    """A package of an extra and one of the rest, with their bounds quoted for a shell, and none of beadwork itself."""
    assert pip_install("parsl") == "pip install parsl==2026.10.26"
    assert pip_install("mace-torch", "scikit-learn").startswith("pip install mace-torch==0.3.16 'scikit-learn")
    assert pip_install("symmetrix-xl") == "pip install symmetrix-xl==0.1.1"


def test_from_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is known of what it declares the names alone are said, and no error hides the one to be told."""

    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "requires", requires)
    assert pip_install("pyscf", "parsl") == "pip install pyscf parsl"
