"""Molecules, ions, charges and clusters, told from the atoms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest

from beadwork.errors import ConfigError, LabelError
from beadwork.frame import Frame
from beadwork.label.clusters import Cut, charge, cut, most_uncertain, units

INPUTS = Path(__file__).parents[2] / "inputs"
WATER = np.array([[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])
HYDRONIUM = np.array([[0, 0, 0], [0, 0, 0.97], [0.94, 0, -0.25], [-0.47, 0.82, -0.25]])
AWAY = np.array([1.0, 0, 0])
#: at rest, by experiment
PEROXIDE = np.array([[0, 0, 0], [1.45, 0, 0], [-0.168, 0.95, 0], [1.618, -0.356, 0.881]])
#: a proton in the middle of two oxygens 2.4 Å apart
ZUNDEL = np.array(
    [[0, 0, 0], [2.4, 0, 0], [1.2, 0, 0], [-0.4, 0.8, 0.3], [-0.4, -0.8, 0.3], [2.8, 0.8, 0], [2.8, -0.8, 0]]
)


def gas(*parts: tuple[Sequence[int], np.ndarray], cell: np.ndarray | None = None) -> Frame:
    """Molecules side by side, 4 Å apart."""
    numbers = np.concatenate([numbers for numbers, _ in parts])
    positions = np.concatenate([at + np.array([4.0 * k, 0, 0]) for k, (_, at) in enumerate(parts)])
    if cell is None:
        return Frame(numbers, positions, np.zeros((3, 3)), (False, False, False))
    return Frame(numbers, positions, cell)


def start(name: str) -> Frame:
    """A start structure that ships with the project; i-PI's comment line holds its cell."""
    path = INPUTS / name / "init.xyz"
    atoms = ase.io.read(path, format="xyz")
    sides = [float(word) for word in path.read_text().splitlines()[1].split(":")[1].split()[:6]]
    atoms.set_cell(sides)
    atoms.pbc = True
    return Frame.from_atoms(atoms)


def wrapped(frame: Frame) -> Frame:
    """Every atom in the cell, whatever molecule that tears."""
    atoms = frame.to_atoms()
    atoms.wrap()
    return Frame.from_atoms(atoms)


@pytest.mark.parametrize(
    ("parts", "charges"),
    [
        ([([8, 1, 1], WATER)], [0]),
        ([([8, 1, 1, 1], HYDRONIUM)], [1]),
        ([([8, 1], HYDRONIUM[:2])], [-1]),
        ([([1, 1], np.array([[0, 0, 0], [0, 0, 0.74]]))], [0]),
        ([([8, 8, 1, 1, 1, 1, 1], ZUNDEL)], [1]),
        ([([8, 8, 1, 1, 1], ZUNDEL[[0, 1, 2, 3, 5]])], [-1]),
        ([([8, 8, 1, 1], PEROXIDE)], [0]),
        ([([8, 8, 1, 1], PEROXIDE), ([8, 1, 1, 1], HYDRONIUM), ([8, 1], HYDRONIUM[:2])], [0, 1, -1]),
        ([([8, 1], HYDRONIUM[:2]), ([8, 1, 1, 1], HYDRONIUM)] * 2, [-1, 1] * 2),
        (
            [([8, 1, 1], WATER), ([8, 1, 1, 1], HYDRONIUM), ([8, 1], HYDRONIUM[:2]), ([1, 1], WATER[1:] / 2)],
            [0, 1, -1, 0],
        ),
    ],
)
def test_ions_are_told(parts: list[tuple[list[int], np.ndarray]], charges: list[int]) -> None:
    """Water, hydronium, hydroxide, hydrogen, shared protons; in whatever order the atoms come."""
    frame = gas(*parts)
    order = np.random.default_rng(3).permutation(len(frame.numbers))
    shuffled = Frame(frame.numbers[order], frame.positions[order], frame.cell, frame.pbc)
    for one in (frame, shuffled):
        assert sorted(unit.charge for unit in units(one)) == sorted(charges)
        assert charge(one) == sum(charges)
    assert sorted(atom for unit in units(shuffled) for atom in unit.atoms) == list(range(len(order)))


@pytest.mark.parametrize(
    ("numbers", "positions", "said"),
    [
        ([8], [[0, 0, 0]], "0 hydrogens"),
        ([1], [[0, 0, 0]], "hydrogen 0 is more than"),
        ([8, 1, 1], [[0, 0, 0], [0, 0, 0.96], [0, 0, -2.0]], "hydrogen 2 is more than"),
        ([1, 1, 1], [[0, 0, 0], [0, 0, 0.8], [0, 0, 1.7]], "no H2"),
        ([8, 1, 1, 1, 1], [[0, 0, 0], [0, 0, 1], [0, 0, -1], [0, 1, 0], [0, -1, 0]], "4 hydrogens"),
        ([6, 1, 1, 1, 1], [[0, 0, 0], [0, 0, 1], [0, 0, -1], [0, 1, 0], [0, -1, 0]], r"elements \[6\]"),
        ([8, 8], [[0, 0, 0], [0, 0, 1.2]], "oxygens 0 and 1 are 1.20 Å apart, and no H2O2"),
        ([8, 8, 1], PEROXIDE[:3], "oxygens 0 and 1 are 1.45 Å"),  # HO2- or HO2
        ([8, 8, 8], [[0, 0, 0], [0, 0, 1.28], [0, 1.1, -0.6]], "no H2O2"),
        # H2O2 with a proton more, H2O3, and H2O2 stretched
        ([8, 8, 1, 1, 1], [*PEROXIDE, [-0.168, -0.5, 0.8]], "no H2O2"),
        ([8, 8, 8, 1, 1], [[0, 0, 0], [1.4, 0, 0], [1.9, 1.3, 0], [-0.2, 0.9, 0], [1.6, 1.7, 0.8]], "no H2O2"),
        ([8, 8, 1, 1], PEROXIDE + np.outer([0, 1, 0, 1], [0.4, 0, 0]), "1.85 Å apart, and no H2O2"),
        # squeezed water; OH and H2O2 beside each other, whose OH may be anything
        ([8, 1, 1, 8, 1, 1], [*WATER, *(WATER * [1, 1, -1] + [0, 0, 2.2])], "1.97 Å apart, and no H2O2"),
        # H2O2 in two, and hydrogen out of two water molecules
        ([8, 1, 8, 1], [*HYDRONIUM[:2], *(HYDRONIUM[:2] + 3 * AWAY)], "2 OH and 0 positive ions: its charge cannot"),
        ([8, 1, 8, 1, 1, 1], [*HYDRONIUM[:2], *(HYDRONIUM[:2] + 3 * AWAY), [6, 0, 0], [6, 0, 0.74]], "2 OH and 0"),
        (
            [8, 1, 8, 1, 8, 1, 1, 1],
            [*HYDRONIUM[:2], *(HYDRONIUM[:2] + 3 * AWAY), *(HYDRONIUM + 6 * AWAY)],
            "2 OH and 1 positive ions",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(numbers: list[int], positions: list[list[float]], said: str) -> None:
    """Lone atoms, torn molecules and other elements get no guessed charge: a wrong one is a wrong label."""
    frame = Frame(np.array(numbers), np.array(positions, dtype=float), np.zeros((3, 3)), (False,) * 3)
    with pytest.raises(LabelError, match=said):
        charge(frame)


@pytest.mark.parametrize(
    ("name", "total", "kinds"),
    [
        ("water", 0, {("H2O", 0): 32}),
        ("h2-water", 0, {("H2O", 0): 31, ("H2", 0): 1}),
        ("zundel-water", 1, {("H2O", 0): 31, ("H3O", 1): 1}),
    ],
)
def test_liquids_fall_into_the_molecules_put_in(name: str, total: int, kinds: dict[tuple[str, int], int]) -> None:
    """Liquid water with its solutes falls into the molecules that were put in, however it is wrapped."""
    frame = start(name)
    for one in (frame, wrapped(frame)):
        found = units(one)
        told = Counter(
            (ase.Atoms(numbers=one.numbers[list(unit.atoms)]).get_chemical_formula(), unit.charge) for unit in found
        )
        assert told == kinds
        assert charge(one) == total
        for unit in found:  # whole: no molecule is longer than a Zundel ion
            assert np.ptp(unit.positions, axis=0).max() < 5


@pytest.mark.parametrize("name", ["water", "h2-water", "zundel-water"])
def test_clusters_of_liquids(name: str) -> None:
    """Every cluster is whole, of true distances, round its atom, and the nearest: against ASE's images."""
    frame = wrapped(start(name))
    atoms = frame.to_atoms()
    for centre in (0, 1, 40, len(frame.numbers) - 1):
        cluster = cut(frame, centre, Cut(molecules=6))
        assert centre in cluster.atoms
        np.testing.assert_allclose(cluster.frame.positions[cluster.atoms.index(centre)], frame.positions[centre])
        assert list(cluster.atoms) == sorted(set(cluster.atoms))
        np.testing.assert_array_equal(cluster.frame.numbers, frame.numbers[list(cluster.atoms)])
        assert cluster.frame.pbc == (False,) * 3
        assert not cluster.frame.cell.any()
        assert len(units(cluster.frame)) == 6  # nothing was torn or merged
        assert charge(cluster.frame) == cluster.charge
        # every atom sits in one of its periodic images
        shifts = (cluster.frame.positions - frame.positions[list(cluster.atoms)]) / 9.86
        np.testing.assert_allclose(shifts, np.rint(shifts), atol=1e-9)
        # a molecule left out is no nearer than any that is in
        lengths = atoms.get_distances(centre, range(len(atoms)), mic=True)
        far = [lengths[list(unit.atoms)].min() for unit in units(frame)]
        inside = [set(unit.atoms) <= set(cluster.atoms) for unit in units(frame)]
        assert max(d for d, i in zip(far, inside, strict=True) if i) < min(
            d for d, i in zip(far, inside, strict=True) if not i
        )


@pytest.mark.parametrize(
    ("cell", "pbc", "half"),
    [
        ([[10, 0, 0], [0, 0, 10], [0, 20, 0]], (True, True, False), 5.0),
        ([[10, 0, 0], [0, 12, 12], [0, 0, 30]], (True, True, False), 5.0),
        ([[12, 0, 12], [0, 14, 0], [30, 0, 0]], (True, True, False), 7.0),
        ([[0, 0, 30], [30, 0, 0], [0, 6, 8]], (False, False, True), 5.0),
        ([[10, 0, 0], [5, 8, 0], [0, 0, 9]], (True, True, True), 4.0),
    ],
    ids=["x, z", "tilted out of the plane", "out of the plane, the shorter one", "a wire", "bulk"],
)
def test_a_radius_of_a_slab_or_a_wire(cell: list[list[float]], pbc: tuple[bool, bool, bool], half: float) -> None:
    """Half of the cell is measured along what is periodic, however that lies in space: vacuum along y beside a vector
    along z, and vectors that are tilted out of the plane of x and y."""
    frame = Frame(np.array([8, 1, 1]), WATER + 1.0, np.array(cell, dtype=float), pbc)
    assert cut(frame, 0, Cut(radius=half - 0.001)).atoms == (0, 1, 2)
    with pytest.raises(ConfigError, match=rf"half of the cell, {half:.3f} Å"):
        cut(frame, 0, Cut(radius=half + 0.001))


def test_a_radius_takes_all_within_and_nothing_beyond() -> None:
    """All within the radius and nothing beyond; the same molecules as by number; too large a one is refused."""
    frame = wrapped(start("water"))
    cluster = cut(frame, 5, Cut(radius=3.5))
    atoms = frame.to_atoms()
    near = atoms.get_distances(5, range(len(atoms)), mic=True) <= 3.5
    wanted = {atom for unit in units(frame) if near[list(unit.atoms)].any() for atom in unit.atoms}
    assert set(cluster.atoms) == wanted
    assert cut(frame, 5, Cut(molecules=len(units(cluster.frame)))).atoms == cluster.atoms
    with pytest.raises(ConfigError, match=r"half of the cell, 4\.930"):
        cut(frame, 5, Cut(radius=5.0))


def test_the_nearest_image_is_found_in_a_skew_cell() -> None:
    """The nearest image is the nearest in a skew cell too, where rounding fractions finds another."""
    cell = np.array([[6.0, 0, 0], [5.0, 5.0, 0], [0, 0, 12.0]])
    near = WATER + 0.55 * cell[0] - 0.45 * cell[1]
    frame = gas(([8, 1, 1], WATER), ([8, 1, 1], near - np.array([4, 0, 0])), cell=cell)
    whole = cut(frame, 0, Cut(molecules=2))
    gap = np.linalg.norm(whole.frame.positions[3] - whole.frame.positions[0])
    images = [near[0] - WATER[0] + i * cell[0] + j * cell[1] for i in range(-3, 4) for j in range(-3, 4)]
    assert gap == pytest.approx(min(np.linalg.norm(images, axis=1)))


def test_cut_of_a_gas_and_of_all() -> None:
    """A cluster can be cut from a cluster; more molecules than there are is all of them."""
    frame = gas(([8, 1, 1], WATER), ([8, 1, 1, 1], HYDRONIUM), ([8, 1, 1], WATER))
    assert cut(frame, 3, Cut(molecules=1)).charge == 1
    everything = cut(frame, 0, Cut(molecules=9))
    assert everything.atoms == tuple(range(10))
    np.testing.assert_array_equal(everything.frame.positions, frame.positions)


def test_a_shared_proton_is_not_cut() -> None:
    """One molecule round a Zundel ion is the whole ion."""
    frame = gas(([8, 8, 1, 1, 1, 1, 1], ZUNDEL), ([8, 1, 1], WATER + np.array([3.0, 0, 0])))
    cluster = cut(frame, 3, Cut(molecules=1))
    assert (cluster.atoms, cluster.charge) == (tuple(range(7)), 1)


def test_a_peroxide_is_not_cut() -> None:
    """One molecule round an oxygen of H2O2 is the whole H2O2, also through the border of the cell."""
    cell = 9.0 * np.eye(3)
    frame = wrapped(gas(([8, 8, 1, 1], PEROXIDE - 0.7 * AWAY), ([8, 1, 1], WATER + 0.5 * AWAY), cell=cell))
    for centre in (0, 1):
        cluster = cut(frame, centre, Cut(molecules=1))
        assert (cluster.atoms, cluster.charge) == ((0, 1, 2, 3), 0)
        ways = cluster.frame.positions - cluster.frame.positions[0]
        np.testing.assert_allclose(ways, PEROXIDE - PEROXIDE[0], atol=1e-9)


@pytest.mark.parametrize("settings", [{}, {"molecules": 2, "radius": 3.0}, {"molecules": 0}, {"radius": -1.0}])
def test_cuts_that_make_no_sense(settings: dict[str, float]) -> None:
    """Neither, both, nothing: refused when the file is read."""
    with pytest.raises(ConfigError):
        Cut(**settings)  # type: ignore[arg-type]


def test_cell_too_small() -> None:
    """A molecule that is its own neighbour is no cluster."""
    chain = Frame(np.array([8, 1]), np.array([[0, 0, 0], [1.2, 0, 0]]), np.diag([2.4, 9, 9]))
    with pytest.raises(LabelError, match="own image"):
        units(chain)


def test_most_uncertain_atom() -> None:
    """NaN, which a model answered, is the most uncertain of all."""
    assert most_uncertain(np.array([0.1, 0.3, 0.2])) == 1
    assert most_uncertain(np.array([0.1, 0.3, np.nan])) == 2
