"""ZBL by formula: the published screening, slopes of the energy, and all beads at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from beadwork.errors import ConfigError
from beadwork.frame import Frame
from beadwork.potential.additions import open_additions
from beadwork.potential.graph import build
from beadwork.potential.zbl import pair

FAR = np.array([1e9])
#: three atoms close to each other, and a cell that is small enough for images to be near
CLOSE = Frame(
    np.array([8, 1, 26]), np.array([[0.0, 0, 0], [0.5, 0.1, 0], [-0.3, 0.9, 0.4]]), np.zeros((3, 3)), (False,) * 3
)
CELL = Frame(
    np.array([8, 14]),
    np.array([[0.1, 0.0, 0.2], [0.9, 0.4, 0.3]]),
    np.array([[1.7, 0.1, 0], [-0.2, 1.6, 0.1], [0, 0, 2]]),
)


@pytest.fixture(scope="module")
def engine():
    """For all elements of the frames."""
    return open_additions({"zbl": "1"}, [1, 8, 14, 26])[0]


@pytest.mark.parametrize(("one", "other"), [(1, 8), (14, 14), (8, 92)])
def test_the_published_function(one, other):
    """With the four digits and a = 0.8854 Bohr / (Z1^0.23 + Z2^0.23) of the book, and e²/4πε0 = 14.39964 eV Å."""
    r = np.array([0.02, 0.1, 0.4, 0.8, 1.5])
    x = r * (one**0.23 + other**0.23) / (0.8854 * 0.529177)
    book = 0.1818 * np.exp(-3.2 * x) + 0.5099 * np.exp(-0.9423 * x) + 0.2802 * np.exp(-0.4029 * x)
    book = 14.39964 * one * other / r * (book + 0.02817 * np.exp(-0.2016 * x))
    numbers = (np.full(len(r), one), np.full(len(r), other))
    assert pair(*numbers, r, FAR)[0] == pytest.approx(book, rel=1e-3)
    # bare nuclei, and what ends at 2 Å: value and slope are zero there, and change little far inside
    assert pair(*numbers, np.full(len(r), 1e-6), FAR)[0] * 1e-6 == pytest.approx(14.39964 * one * other, rel=1e-4)
    value, slope = pair(*(n[:1] for n in numbers), np.array([2.0]), np.array([2.0]))
    assert value == pytest.approx(0.0, abs=1e-12)
    assert slope == pytest.approx(0.0, abs=1e-12)
    assert pair(*(n[:1] for n in numbers), r[:1], np.array([2.0]))[0] == pytest.approx(book[:1], rel=1e-3)


def test_the_contract(engine, check_contract):
    """Forces and virials are slopes of the energy, a batch is what each is alone; for forces of 100 eV/Å."""
    check_contract(engine, [CLOSE, CELL, replace(CLOSE, positions=20 * CLOSE.positions)], tolerance=2e-3)


def test_each_pair_counts_once(engine):
    """Energies are the sum over pairs within their own ends, by a loop; atoms have half of each."""
    answer = engine.evaluate(graph := build([CLOSE], engine.cutoff))
    radii = {1: 0.31, 8: 0.66, 26: 1.32}
    total = 0.0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        one, other = (int(CLOSE.numbers[k]) for k in (i, j))
        r = np.linalg.norm(CLOSE.positions[i] - CLOSE.positions[j])
        total += float(
            pair(np.array([one]), np.array([other]), np.array([r]), np.array([radii[one] + radii[other]]))[0][0]
        )
    assert answer.energies == pytest.approx([total])
    assert answer.of_atoms.sum() == pytest.approx(total)
    assert len(graph.numbers) == 3


def test_what_is_no_number():
    """A value that multiplies nothing is a sentence."""
    for value in ("covalent", "-1", "nan"):
        with pytest.raises(ConfigError, match=f"add has zbl={value}; it wants the number that multiplies"):
            open_additions({"zbl": value}, [1])
