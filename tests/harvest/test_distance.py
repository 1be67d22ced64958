"""The distance of structures: what it must not see, what it must see, and an independent computation of it."""

from __future__ import annotations

from dataclasses import replace

import ase.build
import ase.neighborlist
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from beadwork.frame import FloatArray, Frame
from beadwork.harvest.distance import MAX_DISTANCE, distance, fingerprint, signature

seeds = st.integers(0, 2**32 - 1)
periodicities = st.sampled_from([(True, True, True), (True, True, False), (False, True, False), (False, False, False)])


def random_frame(rng: np.random.Generator, pbc: tuple[bool, bool, bool]) -> Frame:
    """Make a frame of 2 to 12 atoms in a triclinic cell, some of them smaller than the reach."""
    n = int(rng.integers(2, 13))
    cell = np.diag(rng.uniform(3, 9, 3)) + rng.uniform(-1, 1, (3, 3))
    return Frame(rng.choice([1, 6, 8], n), rng.uniform(-1, 2, (n, 3)) @ cell, cell, pbc)


def reference(one: Frame, other: Frame) -> float:
    """Compute the distance anew: ASE's neighbour list, and lists of distances filled up with the reach."""

    def distances(frame: Frame, a: int, b: int) -> FloatArray:
        i, j, d = ase.neighborlist.neighbor_list("ijd", frame.to_atoms(), MAX_DISTANCE)
        z = frame.numbers
        # a full list has every pair of unlike atoms twice as (a, b) and (b, a), of like atoms twice as (a, a)
        found = d[(z[i] == a) & (z[j] == b)]
        return np.sort(found)[::2] if a == b else np.sort(found)

    worst = 0.0
    for a in set(one.numbers):
        for b in set(one.numbers):
            x, y = distances(one, a, b), distances(other, a, b)
            size = max(len(x), len(y))
            x, y = (np.pad(v, (0, size - len(v)), constant_values=MAX_DISTANCE) for v in (x, y))
            worst = max(worst, float(np.abs(x - y).max(initial=0.0)))
    return worst


def test_another_charge_or_spin_is_another_structure() -> None:
    """The same atoms with other electrons are as far apart as other atoms; what is not said may be the same."""
    frame = water(2)
    told = [(1, 0), (1, 2), (-1, 0), (1, None), (None, None)]
    signs = [signature(replace(frame, charge=charge, spin=spin)) for charge, spin in told]
    apart = [[distance(one, other) for other in signs] for one in signs]
    far = np.inf
    assert apart == [
        [0, far, far, 0, 0],
        [far, 0, far, 0, 0],
        [far, far, 0, far, 0],
        [0, 0, far, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert len({fingerprint(sign) for sign in signs}) == 5


@settings(max_examples=60, deadline=None)
@given(seeds, periodicities)
def test_same_structure_in_another_guise(seed: int, pbc: tuple[bool, bool, bool]) -> None:
    """Exchange of like atoms, translation, rotation with the cell, other images: distance 0, same fingerprint."""
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, pbc)
    order = rng.permutation(len(frame.numbers))
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    images = rng.integers(-3, 4, (len(order), 3)) * np.array(pbc)
    moved = (frame.positions[order] + images @ frame.cell + rng.normal(0, 5, 3)) @ turn.T
    guise = Frame(frame.numbers[order], moved, frame.cell @ turn.T, pbc)
    assert distance(signature(frame), signature(guise)) < 1e-9
    assert fingerprint(signature(frame)) == fingerprint(signature(guise))


@pytest.mark.parametrize(
    ("pbc", "stored"),
    [
        ((True, True, True), "c438c4236fc27adc38a5fbd72f27b762706cd77b74b6232ae7d2a1bc6c29fb6d"),
        ((True, True, False), "73aebafb9050df69af1419facafd467a91e669bd3f37d765e23f52d2747614c9"),
        ((False, True, False), "85585935db7a0f29bc65d80fe432562a91413d1ba80ed5a8c5f318bed9c9a714"),
        ((False, False, False), "31ddc0cf39bdddcf8968c1954de877a4570de3df7dd24321595a3220785d6a0d"),
    ],
)
def test_fingerprints_stay_as_they_are_stored(pbc: tuple[bool, bool, bool], stored: str) -> None:
    """A queue is older than the code that reads it: crystal, slab, wire and cluster in a left-handed cell."""
    cell = np.array([[7.0, 0.0, 0.3], [-1.0, 0.4, 5.0], [0.5, 8.0, -0.2]])
    positions = 4 * np.sin(1.0 + np.arange(24)).reshape(8, 3)
    frame = Frame(np.array([8, 1, 1, 8, 1, 1, 6, 1]), positions, cell, pbc)
    assert fingerprint(signature(frame)) == f"sha256:{stored}"


@settings(max_examples=60, deadline=None)
@given(seeds, periodicities)
def test_agrees_with_independent_computation(seed: int, pbc: tuple[bool, bool, bool]) -> None:
    """The same number as from ASE's neighbour list and padded lists, for any cell and periodicity."""
    rng = np.random.default_rng(seed)
    one = random_frame(rng, pbc)
    other = Frame(one.numbers, one.positions + rng.normal(0, 0.3, one.positions.shape), one.cell, pbc)
    assert distance(signature(one), signature(other)) == pytest.approx(reference(one, other), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_is_a_pseudometric(seed: int) -> None:
    """Symmetric, and no detour is shorter."""
    rng = np.random.default_rng(seed)
    first = random_frame(rng, (True, True, True))
    a, b, c = (
        signature(Frame(first.numbers, first.positions + rng.normal(0, s, first.positions.shape), first.cell))
        for s in (0.0, 0.2, 0.5)
    )
    assert distance(a, b) == distance(b, a)
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12


def water(n: int, seed: int = 0) -> Frame:
    """Make n**3 molecules at the density of water, turned at random."""
    rng = np.random.default_rng(seed)
    molecules = ase.build.molecule("H2O")
    atoms = ase.Atoms(cell=np.full(3, 3.107 * n), pbc=True)
    for site in np.ndindex(n, n, n):
        one = molecules.copy()
        one.positions = Rotation.random(random_state=int(rng.integers(2**31))).apply(one.positions)
        one.positions += 3.107 * np.array(site)
        atoms += one
    return Frame.from_atoms(atoms)


def test_one_proton_in_a_liquid_is_seen() -> None:
    """In 64 molecules of water, one proton moved by 0.3 Å is farther than noise of 0.01 Å on every coordinate."""
    frame = water(4)
    jitter = np.random.default_rng(1).normal(0, 0.01, frame.positions.shape)
    moved = frame.positions.copy()
    bond = moved[1] - moved[0]
    moved[1] += 0.3 * bond / np.linalg.norm(bond)
    here = signature(frame)
    noise = distance(here, signature(Frame(frame.numbers, frame.positions + jitter, frame.cell)))
    proton = distance(here, signature(Frame(frame.numbers, moved, frame.cell)))
    assert noise < 0.05 < 0.25 < proton


def test_different_structures_differ() -> None:
    """Another composition is infinitely far; two liquids with their molecules turned otherwise are far apart."""
    assert distance(signature(water(2)), signature(water(3))) == np.inf
    one, other = signature(water(3, seed=1)), signature(water(3, seed=2))
    assert distance(one, other) > 0.1
    assert fingerprint(one) != fingerprint(other)


def test_exchange_of_unlike_atoms_is_seen() -> None:
    """Unlike atoms exchanged make another structure: HCN is not HNC."""
    line = np.array([[0.0, 0, 0], [1.07, 0, 0], [2.22, 0, 0]])
    hcn = Frame(np.array([1, 6, 7]), line, np.zeros((3, 3)), (False,) * 3)
    hnc = Frame(np.array([1, 7, 6]), line, np.zeros((3, 3)), (False,) * 3)
    assert distance(signature(hcn), signature(hnc)) > 1.0


@pytest.mark.parametrize("gap", [MAX_DISTANCE - 1e-7, MAX_DISTANCE, MAX_DISTANCE + 1e-7])
def test_continuous_at_the_reach(gap: float) -> None:
    """A pair of atoms that leaves the reach does not make a jump; one atom alone has a signature too."""
    numbers, cell, pbc = np.array([1, 1]), np.zeros((3, 3)), (False,) * 3
    inside = signature(Frame(numbers, np.array([[0.0, 0, 0], [MAX_DISTANCE - 1e-6, 0, 0]]), cell, pbc))
    assert distance(inside, signature(Frame(numbers, np.array([[0.0, 0, 0], [gap, 0, 0]]), cell, pbc))) < 2e-6
    alone = signature(Frame(numbers[:1], np.zeros((1, 3)), cell, pbc))
    assert distance(alone, alone) == 0.0
