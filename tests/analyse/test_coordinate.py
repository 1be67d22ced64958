"""Coordinates against distances by hand and by ASE, and what is refused of a text."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from beadwork.analyse.coordinate import parse
from beadwork.errors import ConfigError

#: H5O2+, Å: O, O, then two H at each, and the shared one
ZUNDEL = np.array(
    [
        [0.0, 0.0, 0.0],
        [2.4, 0.0, 0.0],
        [-0.5, 0.8, 0.1],
        [-0.5, -0.8, 0.2],
        [2.9, 0.8, -0.1],
        [2.9, -0.8, 0.3],
        [1.1, 0.1, 0.0],
    ]
)
NUMBERS = np.array([8, 8, 1, 1, 1, 1, 1])
SKEWED = np.array([[6.0, 0.0, 0.0], [5.5, 6.0, 0.0], [-4.0, 3.0, 7.0]])


def of(text: str, positions: np.ndarray = ZUNDEL[None], cells: np.ndarray | None = None) -> np.ndarray:
    """The values in H5O2+."""
    return parse(text).values(NUMBERS, positions, cells)


def test_the_shared_proton_by_hand() -> None:
    """The coordinates of H5O2+ as its free energies are published: dc over all five H, d_OO, and the proton's."""
    far = np.linalg.norm(ZUNDEL[None, 2:] - ZUNDEL[:2, None], axis=2)
    switch = 1 / (1 + (far / 1.4) ** 6)
    wanted = switch[0].sum() - switch[1].sum()
    for text in ("dc:O1,O2", "dc(O1, O2)", "dc(0, 1, of=H, r0=1.4, power=6)", "coordination(O1) - coordination(O2, H)"):
        assert of(text).tolist() == [[pytest.approx(wanted, abs=1e-12)]]
    assert of("dc:O2,O1")[0, 0] == pytest.approx(-wanted)
    assert of("distance:O1,O2")[0, 0] == pytest.approx(2.4)
    shift = np.linalg.norm(ZUNDEL[6]) - np.linalg.norm(ZUNDEL[6] - ZUNDEL[1])
    assert of("transfer:O1,H5,O2")[0, 0] == pytest.approx(shift)
    assert of("transfer(0, 6, 1)")[0, 0] == pytest.approx(shift)
    assert of("2 * distance(O1, O2) ** 2 - 0.5")[0, 0] == pytest.approx(2 * 2.4**2 - 0.5)
    assert of("-distance(O1, O2) / (1 + 1)")[0, 0] == pytest.approx(-1.2)


def test_elements_stand_for_each_of_their_atoms() -> None:
    """Every pair once, no atom with itself; the two nearest O of each proton; angles between different H."""
    assert of("distance(O1, H)").shape == (1, 5)
    assert of("distance(H, H)").shape == (1, 10)
    assert sorted(of("distance(H, H)")[0]) == pytest.approx(
        sorted(np.linalg.norm(ZUNDEL[i] - ZUNDEL[j]) for i in range(2, 7) for j in range(2, i))
    )
    assert of("coordination(O)").shape == (1, 2)
    assert of("coordination(H, H)").shape == (1, 5)
    near = of("transfer(O, H, O)")
    assert near.shape == (1, 5)
    assert (near <= 0).all()
    assert near[0, 4] == pytest.approx(-abs(of("transfer:O1,H5,O2")[0, 0]))
    assert of("angle(H1, O1, H2)")[0, 0] == pytest.approx(Atoms(NUMBERS, ZUNDEL).get_angle(2, 0, 3), abs=1e-9)
    assert of("angle(H, O1, H)").shape == (1, 10)


def test_nearest_images_are_those_of_ase() -> None:
    """In a cell so skewed that rounding alone is wrong, with atoms far outside, in cells that change: as ASE's."""
    rng = np.random.default_rng(0)
    cells = np.array([SKEWED * scale for scale in (1.0, 0.97, 1.05)])
    positions = rng.uniform(-2, 2, (3, 7, 3)) @ cells
    found = of("distance(H, H)", positions, cells)
    assert not np.allclose(found, of("distance(H, H)", positions))
    for k in range(3):
        atoms = Atoms(NUMBERS, positions[k], cell=cells[k], pbc=True)
        assert found[k] == pytest.approx(
            [atoms.get_distance(i, j, mic=True) for i in range(2, 7) for j in range(i + 1, 7)]
        )
    moved = positions + rng.integers(-2, 3, (3, 7, 3)) @ cells
    for text in ("angle(H1, O1, H2)", "dc:O1,O2", "transfer:O1,H5,O2"):
        assert np.allclose(of(text, moved, cells), of(text, positions, cells), atol=1e-9)


def test_many_frames_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fits into memory at once: the same values."""
    positions = ZUNDEL + np.random.default_rng(1).normal(0, 0.1, (50, 7, 3))
    whole = of("dc:O1,O2", positions)
    monkeypatch.setattr("beadwork.analyse.coordinate._AT_ONCE", 3 * 49 * 7)
    assert np.array_equal(of("dc:O1,O2", positions), whole)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("distance:O1,O2", "Å"),
        ("2 * distance(O1,O2) - 1.2", "Å"),
        ("distance(O1,H1) - distance(O2,H1)", "Å"),
        ("distance(O1,H1) / distance(O2,H1)", ""),
        ("dc:O1,O2", ""),
        ("dc(O1,O2) ** 2", ""),
        ("angle(H1,O1,H2)", "degrees"),
        ("distance(O1,O2) ** 2", "mixed units"),
        ("dc(O1,O2) + distance(O1,O2)", "mixed units"),
    ],
)
def test_units_are_told(text: str, unit: str) -> None:
    """A picture's axis says what its numbers are, and does not guess."""
    assert parse(text).unit == unit


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no expression"),
        ("1 + 2", "names no atoms"),
        ("O1", "O1 is nothing that it may have"),
        ("__import__('os').system('true')", "is nothing that it may have"),
        ("distance(O1, O2).__class__", "is nothing that it may have"),
        ("[distance(O1, O2) for x in y]", "is nothing that it may have"),
        ("distance(O1, O2) if 1 else 2", "is nothing that it may have"),
        ("distance(O1, open('x'))", r"open\('x'\) is no atom"),
        ("distance(O1, Xy2)", "Xy2 is no atom"),
        ("distance(O1, O0)", "O0 is no atom"),
        ("distance(O1, -1)", "-1 is no atom"),
        ("distance(O1)", "misses B"),
        ("distance(O1, O2, O3)", "has 3 arguments"),
        ("distance(A=O1, A=O2)", "each once, and got A"),
        ("distance(O1, A=O2)", "each once, and got A"),
        ("distance(*O1)", "is no atom"),
        ("distance(**O1)", r"got \*\*"),
        ("dc(O1, O2, r0=-1)", "no number above 0"),
        ("dc(O1, O2, r0=O1)", "no number above 0"),
        ("9" * 5000 + "*distance(O1,O2)", "no expression"),
        ("(" * 3000 + "1" + ")" * 3000, "no expression"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, said: str) -> None:
    """A sentence, and nothing is run."""
    with pytest.raises(ConfigError, match=said):
        parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("distance(O1, O3)", "names atom O3, and the structure has 7 atoms, 5 H, 2 O"),
        ("distance(O1, 7)", "names atom 7"),
        ("distance(O1, Cl)", "names atom Cl"),
        ("distance(O1, O1)", "one atom twice"),
        ("distance(O1, H) + distance(H, H)", "have 5 and 10 values a frame"),
        ("distance(O1, O2) / (distance(O1, O2) - distance(O1, O2))", "in frame 0"),
    ],
)
def test_atoms_that_are_not_there_are_named(text: str, said: str) -> None:
    """Where the structure does not fit the text, the message has both."""
    with pytest.raises(ConfigError, match=said):
        of(text)


@given(st.text(max_size=40) | st.text(alphabet="distanceOH12(),:+-*/.= ", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_parses_or_is_refused(text: str) -> None:
    """Nothing but ConfigError comes of what somebody types."""
    try:
        coordinate = parse(text)
    except ConfigError:
        return
    assert coordinate.unit in ("Å", "degrees", "", "mixed units")
