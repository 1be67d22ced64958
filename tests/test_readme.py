"""What the README tells a newcomer to type is what works."""

from __future__ import annotations

import re
from pathlib import Path

import ase.io
import numpy as np
import pytest

from beadwork import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_lines_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few lines from Python, as they stand, on the shipped models."""
    block = re.search(r"## From Python\n\n((?:    .*\n)+)", README)
    assert block is not None
    lines = [line[4:] for line in block[1].splitlines()]
    monkeypatch.chdir(ROOT)
    water = ase.io.read(ROOT / "inputs" / "water" / "init.xyz")
    water.set_cell([9.86, 9.86, 9.86])
    water.set_pbc(True)
    names: dict[str, object] = {"frames": [water, water], "atoms": water}
    exec("\n".join(lines), names)
    answer = names["answer"]
    assert answer.energies.shape == (2,)  # type: ignore[attr-defined]
    assert answer.force_spread.shape == (2 * 96,)  # type: ignore[attr-defined]
    assert water.get_potential_energy() == pytest.approx(answer.energies[0], abs=1e-9)  # type: ignore[attr-defined]
    # the mean of the frames that were trained on: -469.205 eV a molecule, and -0.170 eV of D3
    assert np.allclose(answer.energies / 32, -469.375, atol=0.3)  # type: ignore[attr-defined]


def test_options_are_real() -> None:
    """Every option that README names is one of the command line."""
    parser = cli._parser()
    known = set()
    stack = [parser]
    while stack:
        for action in stack.pop()._actions:
            known |= set(action.option_strings)
            if isinstance(action.choices, dict):
                stack += action.choices.values()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known


def test_links_lead_somewhere() -> None:
    """Every file that README links to is there."""
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
