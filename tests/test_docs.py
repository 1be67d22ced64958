"""The reference pages say what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from beadwork.potential.analytic import Harmonic
from beadwork.potential.delta import Potential
from beadwork.server import extra_keys

DOCS = Path(__file__).parents[1] / "docs"


def pages() -> dict[str, str]:
    """What docs/make.py would write now."""
    spec = importlib.util.spec_from_file_location("make_docs", DOCS / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: page() for name, page in module.PAGES.items()}


@pytest.mark.parametrize("name", ["configuration.md", "exit-codes.md"])
def test_page_is_up_to_date(name: str) -> None:
    """A page that no longer holds is worse than none: run `python docs/make.py`."""
    assert (DOCS / name).read_text() == pages()[name]


def test_extras_are_all_described() -> None:
    """docs/extras.md has a row for each key that is sent, and no other."""
    potential = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    rows = [line.split("|")[1].strip() for line in (DOCS / "extras.md").read_text().splitlines() if line[:2] == "| "]
    assert sorted(rows[1:]) == sorted(extra_keys(potential, member_forces=True))
