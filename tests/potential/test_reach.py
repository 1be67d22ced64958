"""docs/longrange.md: what the shipped models say of two ions and two molecules beyond their cutoff."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beadwork.frame import Frame
from beadwork.potential.additions import open_additions
from beadwork.potential.graph import build
from beadwork.potential.load import load
from beadwork.units import BOHR, HARTREE

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models" / "water-revpbe0-d3"
#: Å, the oxygen atom first
HYDRONIUM = np.array([[0, 0, 0.0], [0.94, 0, -0.3], [-0.47, 0.81, -0.3], [-0.47, -0.81, -0.3]])
HYDROXIDE = np.array([[0, 0, 0.0], [0, 0, 0.97]])
WATER = np.array([[0, 0, 0.0], [0.76, 0, 0.59], [-0.76, 0, 0.59]])
FAR = 30.0


def told() -> dict[float, list[float]]:
    """The rows of the page's table by distance."""
    rows = [line.strip("| ").replace("−", "-").split(" | ") for line in page().splitlines() if line.startswith("| ")]
    return {float(row[0]): [float(x) for x in row[1:]] for row in rows if row[0].isdigit()}


def page() -> str:
    """The page's text."""
    return (ROOT / "docs" / "longrange.md").read_text()


@pytest.mark.slow
def test_the_table_is_what_the_models_say():
    """Each number of the page to its digits: flat beyond the cutoff, a spread that does not rise, and the tails that
    formulas have."""
    rows = told()
    assert list(rows) == [3, 4, 5, 6, 8, 12, 20]
    away = [*rows, FAR]

    def pairs(one, other):
        numbers = np.array([8 if not atom.any() else 1 for atom in (*one, *other)])
        places = [np.concatenate((one, other + np.array((0, 0, d)))) for d in away]
        return [Frame(numbers, place, np.zeros((3, 3)), (False,) * 3) for place in places]

    potential = load(MODELS / "baseline", [MODELS / "delta-0", MODELS / "delta-1"], "torchscript")
    ions, waters = (potential.evaluate(pairs(one, other)) for one, other in ((HYDRONIUM, HYDROXIDE), (WATER, WATER)))
    tail = open_additions({"d3bj": "revPBE0"}, [1, 8])[0].evaluate(build(pairs(WATER, WATER), 0.0)).energies
    parts = (ions.baseline.energies, ions.delta.energies, waters.energies, tail)
    baseline, delta, water, d3 = (1e3 * (x - x[-1]) for x in parts)
    for k, (d, row) in enumerate(rows.items()):
        coulomb = -1e3 * HARTREE * BOHR / d
        now = [baseline[k], delta[k], 1e3 * ions.energy_spread[k], coulomb, water[k], d3[k]]
        assert row == pytest.approx(now, rel=2e-2, abs=0.06)
        if d >= 6:
            assert abs(baseline[k] + delta[k]) < 1e-6
            assert ions.energy_spread[k] == pytest.approx(ions.energy_spread[-1], rel=1e-6)
