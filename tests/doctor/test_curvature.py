"""Vibrations are measured right: of springs that are known, and of a matrix that is given."""

from __future__ import annotations

import numpy as np
import pytest

from beadwork.doctor import curvature
from beadwork.doctor.curvature import PER_DALTON, lanczos, vibrations
from beadwork.doctor.harmonic import Plan, compress, errors, without_barriers
from beadwork.doctor.search import Cost, Costs, Search
from beadwork.frame import Frame
from beadwork.potential.analytic import FreeParticle, Harmonic
from beadwork.potential.potential import Potential

MASSES = np.array([16.0, 1.0, 1.0])
FRAME = Frame(np.array([8, 1, 1]), np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]), np.eye(3) * 9)


@pytest.mark.parametrize("whole", [True, False])
def test_atoms_on_springs(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Baseline and Δ of known springs: frequencies, the part of Δ and each element's weights, whole and sampled."""
    if not whole:
        monkeypatch.setattr(curvature, "WHOLE", 0)
        monkeypatch.setattr(curvature, "PRODUCTS", 1)  # a random start of one element is an eigenvector here
    potential = Potential(Harmonic(20.0), [Harmonic(2.0)])
    modes = vibrations(potential, FRAME, ["O", "H", "H"], MASSES)
    for name, mass in (("O", 16.0), ("H", 1.0)):
        weight = modes.weights[name]
        assert weight.sum() == pytest.approx(1)
        assert weight @ modes.omega2 == pytest.approx(22 * PER_DALTON / mass, rel=1e-6)
        assert weight @ modes.delta2 == pytest.approx(2 * PER_DALTON / mass, rel=1e-6)
    assert modes.counts == {"O": 1, "H": 2}
    assert Potential(Harmonic(20.0)).models == ()
    assert not vibrations(Potential(Harmonic(20.0)), FRAME, ["O", "H", "H"], MASSES).delta2.any()


@pytest.mark.parametrize("whole", [True, False])
def test_the_most_of_delta_is_its_own(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Δ that differs from atom to atom is averaged in vibrations that all atoms share; its extreme is that of one."""
    atoms = 90
    rng = np.random.default_rng(0)
    delta = np.diag(0.1 * rng.normal(size=3 * atoms))
    shared = rng.normal(size=delta.shape) * 0.1 / np.sqrt(len(delta))
    total = np.eye(len(delta)) + (shared + shared.T) / 2
    monkeypatch.setattr(curvature, "WHOLE", np.inf if whole else 0)
    monkeypatch.setattr(curvature, "_products", lambda *_: lambda v: (v @ total, v @ delta))
    frame = Frame(np.ones(atoms, dtype=int), rng.normal(size=(atoms, 3)), np.eye(3) * 9)
    modes = vibrations(Potential(Harmonic(1.0)), frame, ["H"] * atoms, np.ones(atoms))
    assert modes.most == pytest.approx(np.abs(np.diag(delta)).max(), rel=0.02)
    assert modes.most > 3 * np.abs(modes.delta2).max()
    assert compress(modes).most == modes.most
    assert without_barriers(modes, 300)[0].most == modes.most


@pytest.mark.parametrize("whole", [True, False])
def test_atoms_without_a_force(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond every cutoff has no curvature, and classical averages whatever the beads: numbers, and no NaN."""
    if not whole:
        monkeypatch.setattr(curvature, "WHOLE", 0)
    modes = vibrations(Potential(FreeParticle()), FRAME, ["O", "H", "H"], MASSES)
    assert not modes.omega2.any()
    for plan in (Plan(1, 0.5), Plan(16, 1.0, inner=2, contracted=4)):
        assert {name: abs(error) for name, error in errors(modes, plan, 300).items()} == pytest.approx(
            {"kinetic O": 0, "kinetic H": 0, "force O": 0, "force H": 0, "potential": 0}, abs=1e-9
        )
    costs = Costs(Cost(0.0, 1.0))
    assert Search(modes, costs, 300).cheapest(0.01, 0.03)[0].plan.beads == 1


def test_a_sample_has_the_averages_of_the_whole() -> None:
    """Lanczos' quadrature of a smooth function of a matrix is that of its eigenvectors, and so is the part of Δ."""
    rng = np.random.default_rng(3)
    total, delta = (a @ a.T / 60 for a in rng.normal(size=(2, 60, 60)))
    start = rng.normal(size=(2, 60))
    values, of_delta, weights = lanczos(lambda v: (v @ total, v @ delta), start, 25)
    exact, vectors = np.linalg.eigh(total)
    for k in (0, 1):
        first = start[k] / np.linalg.norm(start[k])
        expected = (vectors.T @ first) ** 2 @ np.tanh(exact)
        assert weights[k] @ np.tanh(values[k]) == pytest.approx(expected, rel=1e-6)
        assert weights[k].sum() == pytest.approx(1)
    whole = lanczos(lambda v: (v @ total, v @ delta), start, 60)
    np.testing.assert_allclose(np.sort(whole[0][0]), exact, atol=1e-8)
    np.testing.assert_allclose(whole[1][0], np.einsum("ij,ik,kj->j", vectors, delta, vectors), atol=1e-6)
    assert of_delta.shape == (2, 25)
