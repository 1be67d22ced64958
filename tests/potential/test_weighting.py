"""The weighted baseline by atom: energies that add up, exact forces and virials, and where it is the system's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.errors import ModelError
from beadwork.frame import Frame
from beadwork.potential.analytic import Harmonic
from beadwork.potential.bundle import check
from beadwork.potential.graph import build
from beadwork.potential.load import load
from beadwork.potential.potential import Potential
from beadwork.potential.torchscript import TorchScriptEngine
from beadwork.potential.weighting import AVERAGING_RADIUS, Neighbourhoods, weigh

MODELS = Path(__file__).parents[2] / "models" / "water-highlevel"
#: eV/atom, about what the members' neighbourhoods are apart in the clusters below
S = 0.01
WATER = np.array([[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]])


def cluster(*molecules: tuple[str, float], seed: int = 0) -> Frame:
    """Molecules along x, each so many Å from the last, shaken: 'water', 'H3O' or 'H2'."""
    rng = np.random.default_rng(seed)
    shapes = {
        "water": ([8, 1, 1], WATER),
        "H3O": ([8, 1, 1, 1], np.array([[0, 0, 0.1], [0.94, 0, -0.2], [-0.47, 0.81, -0.2], [-0.47, -0.81, -0.2]])),
        "H2": ([1, 1], np.array([[0, 0, 0.37], [0, 0, -0.37]])),
    }
    numbers, positions, x = [], [], 0.0
    for name, apart in molecules:
        x += apart
        z, shape = shapes[name]
        numbers += z
        positions.append(shape + rng.normal(0, 0.06, shape.shape) + [x, 0, 0])
    return Frame(np.array(numbers), np.concatenate(positions), np.zeros((3, 3)), (False,) * 3)


def beside(*frames: Frame) -> Frame:
    """Put structures into one, 40 Å apart."""
    moved = [frame.positions + np.array([0.0, 40.0 * k, 0.0]) for k, frame in enumerate(frames)]
    return Frame(np.concatenate([f.numbers for f in frames]), np.concatenate(moved), np.zeros((3, 3)), (False,) * 3)


TRIMER = cluster(("water", 0), ("water", 2.8), ("H3O", 2.6))


@pytest.fixture(scope="module")
def by_atom() -> Potential:
    """The shipped committee of clusters, whose reference energies are of 2.7 eV an oxygen; scaled by 4, not by what its
    card says, so that the sizes below are those of the models and S goes with them."""
    return load(MODELS / "baseline", [MODELS], "torchscript", energy_alpha=4.0, baseline_uncertainty_atom=S)


def again(known: Potential, **settings: object) -> Potential:
    """The same models, weighed otherwise."""
    same = {"weights": known.weights, "alpha": known.alpha, "energy_alpha": known.energy_alpha}
    return Potential(known.baseline, known.members, reference=known.reference, **{**same, **settings})  # type: ignore[arg-type]


def test_n_copies_have_n_times_the_energy(by_atom: Potential) -> None:
    """1, 2, 4 and 16 copies 40 Å apart: energy an atom equal to 1e-9 eV, forces and virial those of one. With s of the
    whole system, the same for one, Δ is lost on the way."""
    one = by_atom.evaluate([TRIMER])
    copies = (2, 4, 16)
    for n, answer in zip(copies, (by_atom.evaluate([beside(*[TRIMER] * n)]) for n in copies), strict=True):
        assert abs(answer.energies[0] / n - one.energies[0]) / len(TRIMER.numbers) < 1e-9
        assert np.allclose(answer.forces.reshape(n, -1, 3), one.forces, rtol=0, atol=1e-9)
        assert np.allclose(answer.virials[0], n * one.virials[0], rtol=0, atol=1e-7)
    assert abs(one.energies[0] - again(by_atom).evaluate([TRIMER]).energies[0]) > 0.03, "the weighing must matter, eV"
    whole = again(by_atom, baseline_uncertainty=S * len(TRIMER.numbers))
    alone, many = (whole.evaluate([beside(*[TRIMER] * n)]).energies[0] / n for n in (1, 16))
    assert abs(many - alone) > 0.04


def test_energies_of_different_parts_add_up(by_atom: Potential) -> None:
    """E(A + B) = E(A) + E(B) for a part that the members agree about beside one that they do not, to 1e-9 eV/atom;
    s of the whole system, or s times the number of atoms, gives neither."""
    a, b = cluster(("water", 0), ("water", 2.8)), cluster(("H3O", 0), ("H2", 2.5), seed=3)
    parts, whole = by_atom.evaluate([a, b]), by_atom.evaluate([beside(a, b)])
    atoms = len(a.numbers) + len(b.numbers)
    assert abs(parts.energies.sum() - whole.energies[0]) / atoms < 1e-9
    assert np.allclose(parts.forces, whole.forces, rtol=0, atol=1e-9)
    for uncertainty in (lambda frame: 0.2, lambda frame: S * len(frame.numbers)):
        energies = [
            again(by_atom, baseline_uncertainty=uncertainty(frame)).evaluate([frame]).energies[0]
            for frame in (a, b, beside(a, b))
        ]
        assert abs(energies[0] + energies[1] - energies[2]) > 0.005


@pytest.mark.parametrize(("engine", "periodic"), [("torchscript", False), ("torchscript", True), ("auto", True)])
def test_forces_and_virial_are_exact(by_atom: Potential, engine: str, periodic: bool) -> None:
    """Against differences of the energy, in a cluster and in a cell smaller than the neighbourhood's radius, with
    unequal weights, with the compiled engine too."""
    frame = TRIMER
    if periodic:
        cell = np.array([[8.6, 0, 0], [1.1, 5.2, 0], [0.4, -0.6, 5.4]])
        frame = Frame(TRIMER.numbers, TRIMER.positions, cell, (True,) * 3)
        assert cell[1, 1] < AVERAGING_RADIUS
    known = by_atom if engine == "torchscript" else load(MODELS / "baseline", [MODELS], engine)
    potential = again(known, weights=[1.0, 2.0, 1.0, 0.5], atom_uncertainty=S)
    got = potential.evaluate([frame])
    plain = potential.baseline.evaluate(build([frame], AVERAGING_RADIUS))
    assert np.abs(got.forces - plain.forces).max() > 0.05  # Δ is there
    h = 2e-4
    points, slopes = (-2, -1, 1, 2), np.array([1, -8, 8, -1]) / 12 / h

    def slope(moved: list[Frame]) -> float:
        return -float(potential.evaluate(moved).energies @ slopes)

    rng = np.random.default_rng(4)
    for _ in range(3):
        step = rng.normal(size=frame.positions.shape)
        along = slope([replace(frame, positions=frame.positions + s * h * step) for s in points])
        assert abs(along - (got.forces * step).sum()) < 2e-6 * np.linalg.norm(step)
    for i, j in ((0, 0), (1, 1), (0, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = h
        changes = [np.eye(3) + s * strain for s in points]
        moved = [replace(frame, positions=frame.positions @ d, cell=frame.cell @ d) for d in changes]
        assert abs(slope(moved) - got.virials[0, i, j] * (1 if i == j else 2)) < 5e-6


def test_it_is_the_system_s_own_where_atoms_are_alike(by_atom: Potential) -> None:
    """H2, whose two atoms are each other's image: s an atom is half of s of the system, in energy, forces and virial,
    and so what i-PI's ffcommittee makes of it (its parity is held by the end-to-end tests)."""
    apart = [0.7, 0.76, 0.9]
    frames = [Frame(np.array([1, 1]), np.array([[0, 0, 0], [0, 0, r]]), np.zeros((3, 3)), (False,) * 3) for r in apart]
    one, two = again(by_atom, baseline_uncertainty=2 * S).evaluate(frames), by_atom.evaluate(frames)
    assert np.allclose(one.energies, two.energies, rtol=0, atol=1e-9)
    assert np.allclose(one.forces, two.forces, rtol=0, atol=1e-9)
    assert np.allclose(one.virials, two.virials, rtol=0, atol=1e-9)


def test_many_at_once_are_each_alone(by_atom: Potential) -> None:
    """Structures of one evaluation, cut into pieces for memory or not, have the answers that they have alone."""
    frames = [cluster(("water", 0), ("H3O", 2.6), seed=k) for k in range(3)] + [cluster(("H2", 0))]
    together = by_atom.evaluate(frames)
    small = again(by_atom, atom_uncertainty=S)
    small.max_edges = 40
    for answer in (together, small.evaluate(frames)):
        for k, frame in enumerate(frames):
            alone = by_atom.evaluate([frame])
            assert abs(answer.energies[k] - alone.energies[0]) < 1e-9
            assert np.allclose(answer.forces[answer.ptr[k] : answer.ptr[k + 1]], alone.forces, rtol=0, atol=1e-9)
            assert np.allclose(answer.virials[k], alone.virials[0], rtol=0, atol=1e-9)


def test_weighing_is_the_formula_and_its_derivative() -> None:
    """f and p against f = s²/(s² + var) with NumPy's own weighted variance, and against differences of f x."""
    rng = np.random.default_rng(2)
    weights = np.array([0.4, 0.35, 0.25])
    x, raw = rng.normal(size=5), rng.normal(scale=0.3, size=(3, 5))
    deviations = raw - weights @ raw
    factor, pull = weigh(x, deviations, weights, 0.2)
    variance = np.array([np.cov(raw[:, k], aweights=weights) for k in range(5)])
    assert np.allclose(factor, 0.04 / (0.04 + variance), rtol=1e-12)
    step = rng.normal(size=(3, 5))
    h = 1e-5
    up, down = (x * weigh(x, deviations + s * h * step, weights, 0.2)[0] for s in (1, -1))
    assert np.allclose((up - down) / (2 * h), (pull * step).sum(axis=0), rtol=1e-6, atol=1e-9)


def test_neighbourhoods_share_out_everything(shapes) -> None:
    """What all atoms get is what all have, in every system; the weights' way back is the transpose."""
    frames = [shapes.structure(kind, 3) for kind in ("triclinic", "tiny", "cluster", "lone")]
    graph = build(frames, AVERAGING_RADIUS)
    around = Neighbourhoods(graph)
    rng = np.random.default_rng(0)
    have, weights = rng.normal(size=(2, len(graph.numbers))), rng.normal(size=(2, len(graph.numbers)))
    got = around.gather(have)
    assert np.allclose(np.add.reduceat(got, graph.ptr[:-1], axis=1), np.add.reduceat(have, graph.ptr[:-1], axis=1))
    assert np.isclose((weights * got).sum(), (around.spread(weights) * have).sum())


def test_an_engine_s_weights(made, shapes) -> None:
    """Weights of 1 change nothing; others give the weighted sum of the atoms' energies and its exact derivative."""
    engine = TorchScriptEngine(check(made["vector"].bundle))
    frames = [shapes.structure(kind, 3) for kind in ("triclinic", "lone", "cluster")]
    graph = build(frames, 5.0)
    plain = engine.evaluate(graph)
    ones = engine.weighted(graph, np.ones(len(graph.numbers)))
    for name in ("energies", "forces", "virials", "of_atoms"):
        assert np.allclose(getattr(ones, name), getattr(plain, name), rtol=0, atol=1e-10), name
    weights = np.random.default_rng(0).normal(size=len(graph.numbers))
    got = engine.weighted(graph, weights)
    assert plain.of_atoms is not None
    assert np.allclose(got.energies, np.add.reduceat(weights * plain.of_atoms, graph.ptr[:-1]), rtol=0, atol=1e-10)
    step = np.zeros_like(frames[2].positions)
    step[1] = [0.3, -0.7, 0.2]
    h = 1e-4
    up, down = (
        engine.weighted(
            build([*frames[:2], replace(frames[2], positions=frames[2].positions + s * h * step)], 5.0), weights
        )
        for s in (1, -1)
    )
    along = -(up.energies[2] - down.energies[2]) / (2 * h)
    assert along == pytest.approx(float((got.forces[graph.ptr[2] :] * step).sum()), abs=1e-6)


def test_what_cannot_be_weighed_is_refused() -> None:
    """No baseline, both uncertainties, and engines that know no atom's energy."""
    toys = [Harmonic(1.0), Harmonic(2.0)]
    for settings, sentence in (
        ({"baseline": None, "atom_uncertainty": 0.1}, "needs a baseline"),
        ({"baseline": Harmonic(1.0), "atom_uncertainty": 0.0}, r"uncertainty 0.0 eV/atom\) needs"),
        ({"baseline": Harmonic(1.0), "atom_uncertainty": 0.1, "baseline_uncertainty": 0.1}, "give one of them"),
        ({"baseline": Harmonic(1.0), "atom_uncertainty": 0.1}, "cannot weigh an atom's energy"),
    ):
        with pytest.raises(ModelError, match=sentence):
            Potential(members=toys, **settings)
