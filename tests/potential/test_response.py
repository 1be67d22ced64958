"""Dipoles, Born charges and polarizabilities against MACE's own calculator, finite differences, and each other."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beadwork.errors import BeadworkError, ModelError, NonFiniteError
from beadwork.frame import Frame
from beadwork.potential.analytic import Harmonic
from beadwork.potential.architecture import describe
from beadwork.potential.bundle import amend_card, check, load_card, write_card
from beadwork.potential.eager import load_weights
from beadwork.potential.engine import Response
from beadwork.potential.evaluation import Evaluation, check_finite
from beadwork.potential.graph import build
from beadwork.potential.importer import import_model
from beadwork.potential.load import load
from beadwork.potential.potential import Potential
from beadwork.potential.response import (
    DIPOLE_UNITS,
    POLARIZABILITY_UNITS,
    ResponseEngine,
    ResponseEvaluator,
    Role,
)
from beadwork.potential.weights import write_weights
from beadwork.toml import tomllib
from beadwork.train.dataset import Dataset
from beadwork.train.response import errors_of
from support.response import KINDS, Charges, random_response

MODELS = Path(__file__).parents[2] / "models"
WATER = {"H": 1, "O": -2}
ABOUT = {"dipole_unit": "debye", "oxidation": WATER}
ION = Frame(
    np.array([8, 1, 1, 1]),
    np.array([[0, 0, 0.1], [0.94, 0, -0.2], [-0.47, 0.81, -0.2], [-0.47, -0.81, -0.25]]),
    np.zeros((3, 3)),
    (False,) * 3,
    charge=1,
    spin=0,
)
CELL = np.array([[4.2, 0.1, 0.0], [-0.3, 4.1, 0.2], [0.4, -0.2, 4.3]])
#: two waters in a skew cell smaller than twice the cutoff, so that atoms see images
BOX = Frame(
    np.array([8, 1, 1, 8, 1, 1]),
    np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.05], [2.1, 2.0, 2.2], [2.9, 2.4, 2.4], [1.5, 2.6, 2.6]]),
    CELL,
)


@pytest.fixture(scope="module")
def dipoles() -> Any:
    """A small AtomicDipolesMACE."""
    return random_response("AtomicDipolesMACE", max_ell=1)


def about(kind: str) -> dict[str, Any]:
    """A card's entries for a model of this class."""
    if kind == "AtomicDielectricMACE":
        return {"dipole_unit": "eang", "polarizability_unit": "ang3"}
    return {"dipole_unit": "debye", **({"oxidation": WATER} if kind == "AtomicDipolesMACE" else {})}


def answer(module: Any, frame: Frame, entries: dict[str, Any] = ABOUT, dtype: str = "float64") -> Response:
    """What the evaluator says of one frame."""
    module = module if dtype == "float64" else copy.deepcopy(module)
    evaluator = ResponseEvaluator(module, dtype, "cpu", entries)
    return evaluator.evaluate(build([frame], float(module.r_max)))


def by_mace(module: Any, frame: Frame, entries: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None, Any]:
    """Dipole (e Å), polarizability (e Å²/V) and its calculator, by MACECalculator, in float64."""
    from mace.calculators import MACECalculator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calculator = MACECalculator(
            models=[module],
            device="cpu",
            default_dtype="float64",
            model_type=KINDS[type(module).__name__],
            info_keys={"total_charge": "total_charge"},
            arrays_keys={"charges": "Qs"},
        )
        atoms = frame.to_atoms()
        atoms.info["total_charge"] = frame.charge
        if "oxidation" in entries:
            atoms.arrays["Qs"] = np.where(atoms.numbers == 1, 1.0, -2.0)
        calculator.calculate(atoms)
    dipole = DIPOLE_UNITS[entries["dipole_unit"]] * calculator.results["dipole"]
    if "polarizability_unit" not in entries:
        return dipole, None, calculator
    unit = POLARIZABILITY_UNITS[entries["polarizability_unit"]]
    return dipole, unit * calculator.results["polarizability"], calculator


def slopes(module: Any, frame: Frame, entries: dict[str, Any], atoms: int, step: float = 1e-4) -> np.ndarray:
    """(atoms, 3, 3): Born charges of the first atoms by central differences."""
    found = np.zeros((atoms, 3, 3))
    evaluator = ResponseEvaluator(module, "float64", "cpu", entries)
    moved = []
    for i in range(atoms):
        for j in range(3):
            for sign in (1, -1):
                positions = frame.positions.copy()
                positions[i, j] += sign * step
                moved.append(replace(frame, positions=positions))
    of = evaluator.evaluate(build(moved, float(module.r_max))).dipole.reshape(atoms, 3, 2, 3)
    found[:] = (of[:, :, 0] - of[:, :, 1]) / (2 * step)
    return found


def test_dipoles_are_mace_s_and_born_charges_their_slopes(dipoles) -> None:
    """An AtomicDipolesMACE with oxidation numbers, periodic: MACECalculator's dipole to 1e-8 e Å with the same charges,
    Born charges the finite differences, a row for each position component and a column for each of the dipole's, and
    their sum the total charge."""
    found = answer(dipoles, BOX)
    dipole, _, _ = by_mace(dipoles, BOX, ABOUT)
    assert np.abs(found.dipole[0] - dipole).max() < 1e-8
    assert np.abs(found.born[:2] - slopes(dipoles, BOX, ABOUT, 2)).max() < 1e-8
    assert np.abs(found.born - found.born.transpose(0, 2, 1)).max() > 1e-4, "a transposed tensor would pass"
    np.testing.assert_allclose(found.born.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(answer(dipoles, ION).born.sum(axis=0), np.eye(3), atol=1e-12)


def test_branches_differ_by_quanta_and_forces_in_a_field_do_not(dipoles) -> None:
    """An atom that is carried by a lattice vector: mu changes by e N a exactly, Born charges by nothing, and on the way
    mu and the forces in a field are continuous; folded back into the cell they are what they were."""
    here = answer(dipoles, BOX)
    for atom, number in ((1, 1), (3, -2)):
        for vector in CELL:
            positions = BOX.positions.copy()
            positions[atom] += vector
            there = answer(dipoles, replace(BOX, positions=positions))
            np.testing.assert_allclose(there.dipole - here.dipole, [number * vector], atol=1e-12)
            np.testing.assert_allclose(there.born, here.born, atol=1e-12)
    ways = np.linspace(0, 1, 401)
    path = [replace(BOX, positions=BOX.positions + np.outer(np.arange(6) == 1, s * CELL[0])) for s in ways]
    evaluator = ResponseEvaluator(dipoles, "float64", "cpu", ABOUT)
    # the atom passes through others on its way, where a model of random weights is as smooth as elsewhere
    path = [frame for frame in path if apart(frame) > 0.25]
    along = evaluator.evaluate(build(path, float(dipoles.r_max)))
    steps = np.array([frame.positions[1] for frame in path])
    near = np.linalg.norm(np.diff(steps, axis=0), axis=1) < 0.011
    forces = np.einsum("sijk,k->sij", along.born.reshape(len(path), 6, 3, 3), [0.1, -0.2, 0.3])
    assert near.sum() > 300
    assert np.abs(np.diff(along.dipole, axis=0)[near]).max() < 0.1
    assert np.abs(np.diff(forces, axis=0)[near]).max() < 0.1 * np.abs(forces).max()


def apart(frame: Frame) -> float:
    """The smallest distance of atom 1 to another, Å."""
    atoms = frame.to_atoms()
    return float(np.delete(atoms.get_distances(1, range(6), mic=True), 1).min())


def test_charges_that_are_no_whole_numbers() -> None:
    """AtomicDielectricMACE: a cluster has the dipole that it has wherever it is, plus charge times shift; a periodic
    system in which atoms see images is refused with a sentence, and its polarizability alone is not."""
    module = random_response("AtomicDielectricMACE")
    entries = about("AtomicDielectricMACE")
    found = answer(module, ION, entries)
    dipole, polarizability, _ = by_mace(module, ION, entries)
    assert np.abs(found.dipole[0] - dipole).max() < 1e-8
    assert np.abs(found.polarizability[0] - polarizability).max() < 1e-8
    assert np.abs(found.born[:1] - slopes(module, ION, entries, 1)).max() < 1e-7
    shifted = answer(module, replace(ION, positions=ION.positions + np.array([0.0, 100.0, 0.0])), entries)
    np.testing.assert_allclose(shifted.dipole - found.dipole, [[0, 100, 0]], atol=1e-11)
    np.testing.assert_allclose(shifted.born, found.born, atol=1e-11)
    neutral = replace(BOX, charge=0)
    with pytest.raises(ModelError, match=r"periodic.*no whole numbers.*polarizability="):
        answer(module, neutral, entries)
    alone = ResponseEvaluator(module, "float64", "cpu", entries, whole=False)
    periodic = alone.evaluate(build([neutral], float(module.r_max)))
    assert periodic.dipole is None
    assert np.isfinite(periodic.polarizability).all()
    with pytest.raises(ModelError, match=r"total charge.*none is given"):
        answer(module, replace(ION, charge=None), entries)


def test_oxidation_numbers_and_charge_agree(dipoles) -> None:
    """A charge that the oxidation numbers do not add up to is refused: one of the two is wrong."""
    with pytest.raises(ModelError, match=r"oxidation numbers.*\+1 e, and its charge is \+0 e"):
        answer(dipoles, replace(ION, charge=0))
    for wrong in ({"H": 1}, {"H": 0.5, "O": -1}, "H=1"):
        with pytest.raises(ModelError, match="oxidation is"):
            answer(dipoles, ION, {**ABOUT, "oxidation": wrong})
    with pytest.raises(ModelError, match=r"dipole_unit is 'cm'.*debye"):
        answer(dipoles, ION, {"dipole_unit": "cm"})


def test_a_batch_is_what_each_is_alone(dipoles) -> None:
    """Systems of one graph do not mix, and in float32 a dipole far from the origin loses no digits."""
    evaluator = ResponseEvaluator(dipoles, "float64", "cpu", ABOUT)
    frames = [BOX, ION, replace(BOX, positions=BOX.positions[:, ::-1].copy())]
    together = evaluator.evaluate(build(frames, float(dipoles.r_max)))
    alone = [answer(dipoles, frame) for frame in frames]
    np.testing.assert_allclose(together.dipole, np.concatenate([one.dipole for one in alone]), atol=1e-13)
    np.testing.assert_allclose(together.born, np.concatenate([one.born for one in alone]), atol=1e-13)
    far = replace(BOX, positions=BOX.positions + 1e4)
    single = answer(dipoles, far, dtype="float32")
    assert np.abs(single.dipole - answer(dipoles, far).dipole).max() < 1e-5
    assert np.abs(single.born - answer(dipoles, far).born).max() < 1e-5


def test_what_is_not_finite_is_named() -> None:
    """A NaN is refused with the structure and the atom, for each quantity."""
    graph = build([replace(BOX, bead=4)], 3.0)
    good = Response(np.zeros((1, 3)), np.zeros((6, 3, 3)), np.zeros((1, 3, 3)))
    check_finite("m", graph, good)
    for name, what in (("dipole", "dipole"), ("born", "Born charges of atom 0"), ("polarizability", "polarizability")):
        values = getattr(good, name).copy()
        values.flat[0] = np.nan
        with pytest.raises(NonFiniteError, match=rf"bead 4 \({what}\)"):
            check_finite("m", graph, replace(good, **{name: values}))


def test_a_committee_is_the_mean_and_its_spread() -> None:
    """Members with charges of q (1, 2, 3): mean and sample standard deviation by component; with unequal weights, which
    an uneven number tells apart, the weighted ones. What the potential's other parts answer is as without them."""
    frame = replace(BOX, charge=None)
    engines = tuple(Charges({1: 0.2 * k, 8: -0.4 * k}, 0.1 * k) for k in (1.0, 2.0, 4.0))
    plain = Potential(Harmonic(1.0)).evaluate([frame, frame])
    for weights in (np.ones(3) / 3, np.array([0.5, 0.3, 0.2])):
        role = Role("dipole", engines, weights)
        got = Potential(Harmonic(1.0), also=[role]).evaluate([frame, frame])
        np.testing.assert_array_equal(got.forces, plain.forces)
        for name in ("dipole", "born", "polarizability"):
            each = np.array([getattr(one.evaluate(build([frame, frame], 3.0)), name) for one in engines])
            mean = np.einsum("m,m...->...", weights, each)
            variance = np.einsum("m,m...->...", weights, (each - mean) ** 2) / (1 - (weights**2).sum())
            quantity = got.response[name]
            np.testing.assert_allclose(quantity.mean, mean, atol=1e-14)
            np.testing.assert_allclose(quantity.members, each, atol=1e-14)
            spread = np.sqrt(variance.reshape(len(variance), -1).mean(axis=1))
            np.testing.assert_allclose(quantity.spread, spread, rtol=1e-12)
    alone = Potential(Harmonic(1.0), also=[Role("dipole", engines[:1], np.ones(1))]).evaluate([frame])
    assert alone.response["dipole"].spread is None


def fake(folder: Path, answers: list[str]) -> Path:
    """A bundle with a card of what it answers, and nothing that could be loaded."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"none")
    entries = {"name": folder.name, "elements": [1, 8], "cutoff": 4.5, "dtype": "float64"}
    write_card(folder, entries if answers == ["energy"] else {**entries, "answers": answers})
    return folder


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    """An energy model given as dipole, a dipole model given for forces, and dipoles for polarizabilities: a sentence
    each, before anything is loaded."""
    energy, dipole = fake(tmp_path / "energy", ["energy"]), fake(tmp_path / "dipole", ["dipole"])
    with pytest.raises(ModelError, match=r"energy answers energy, and is given as dipole"):
        ResponseEngine(check(energy), "dipole")
    with pytest.raises(ModelError, match=r"dipole answers dipole, and is given as polarizability"):
        ResponseEngine(check(dipole), "polarizability")
    for engine in ("auto", "torchscript", "eager"):
        with pytest.raises(ModelError, match="dipole answers dipole and no energy; give it as --also dipole="):
            load(dipole, engine=engine)
    assert load_card(energy).answers == ("energy",)


def counted(potential: Potential, frames: list[Frame]) -> tuple[int, Evaluation]:
    """How often the modules of a potential are called for these frames, and its answer."""
    calls = []
    engines = (*potential.engines, *(engine for role in potential.also for engine in role.engines))
    modules = {getattr(engine, "module", None) for engine in engines} - {None}
    hooks = [module.register_forward_hook(lambda *_: calls.append(1)) for module in modules]
    answer = potential.evaluate(frames)
    for hook in hooks:
        hook.remove()
    return len(calls), answer


def test_a_model_that_is_both_is_evaluated_once(tmp_path: Path) -> None:
    """An EnergyDipolesMACE as potential and as dipole: one call of its module for all beads, with the energy, forces
    and dipoles that each role has alone, by two calls; what the role refuses is refused; where another Δ takes its
    place, the role is a call of its own, and without the role there is one."""
    module, bundle = random_response("EnergyDipolesMACE", max_ell=1), tmp_path / "both"
    bundle.mkdir()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    write_weights(bundle / "model.safetensors", state, describe(module))
    entries = {"name": "both", "elements": [1, 8], "cutoff": 4.5, "dtype": "float64", "answers": ["energy", "dipole"]}
    write_card(bundle, {**entries, **ABOUT})
    beads = [replace(BOX, charge=0), replace(BOX, positions=1.01 * BOX.positions)]
    for where in ({"baseline": bundle}, {"delta": [bundle]}):
        both = load(**where, engine="eager", also={"dipole": bundle})
        calls, together = counted(both, beads)
        assert calls == 1
        role = Role("dipole", (ResponseEngine(check(bundle), "dipole"),), np.ones(1))
        calls, apart = counted(load(**where, engine="eager").with_also([role]), beads)
        assert calls == 2
        for name in ("energies", "forces", "virials"):
            np.testing.assert_allclose(getattr(together, name), getattr(apart, name), rtol=1e-13, atol=1e-12)
        for name in ("dipole", "born"):
            np.testing.assert_allclose(together.response[name].mean, apart.response[name].mean, rtol=0, atol=1e-13)
        assert np.abs(together.forces).max() > 1e-3
        with pytest.raises(ModelError, match=r"oxidation numbers.*\+0 e, and its charge is \+1 e"):
            both.evaluate([replace(BOX, charge=1)])
    # the Δ of the last one is exchanged: its dipoles stay, by a call of their own
    calls, after = counted(both.with_committee(Potential(None, [Harmonic(1.0)])), beads)
    assert calls == 1
    np.testing.assert_allclose(after.response["born"].mean, together.response["born"].mean, rtol=0, atol=1e-13)
    assert counted(both.with_also(()), beads)[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_class_from_its_file(kind: str, tmp_path: Path) -> None:
    """Imported, loaded and evaluated in float64: MACECalculator's dipole and polarizability to 1e-8 e Å and e Å²/V,
    Born charges its own where it has them, and the finite differences; float32 within 1e-4 of it."""
    module = random_response(kind)
    torch.save(module, tmp_path / "file.model")
    entries = about(kind)
    card = import_model(tmp_path / "file.model", tmp_path / "bundle", trust_pickle=True, **entries)
    assert card.about["dipole_unit"] == ("eang" if kind == "AtomicDielectricMACE" else "debye")
    exact, single = (ResponseEngine(check(card.path), "dipole", dtype) for dtype in ("float64", "float32"))
    assert exact.of_images == ("oxidation" in entries)
    frames = [ION] if kind == "AtomicDielectricMACE" else [ION, replace(BOX, charge=0)]
    for frame in frames:
        graph = build([frame], exact.cutoff)
        found, rough = exact.evaluate(graph), single.evaluate(graph)
        dipole, polarizability, calculator = by_mace(module, frame, entries)
        assert np.abs(found.dipole[0] - dipole).max() < 1e-8
        assert np.abs(found.born[:3] - slopes(module, frame, entries, 3)).max() < 1e-7
        assert np.abs(rough.dipole - found.dipole).max() < 1e-4
        assert np.abs(rough.born - found.born).max() < 1e-4
        if polarizability is not None:
            assert np.abs(found.polarizability[0] - polarizability).max() < 1e-8
            assert np.array_equal(np.round(found.polarizability, 9), np.round(found.polarizability.swapaxes(1, 2), 9))
            theirs, _ = calculator.get_dielectric_derivatives()
            assert np.abs(found.born - theirs.transpose(1, 2, 0)).max() < 1e-8
    # without its unit, or with a number that is none, nothing is opened
    amend_card(card.path, dipole_unit="furlong")
    with pytest.raises(BeadworkError, match="dipole_unit is 'furlong'"):
        ResponseEngine(check(card.path), "dipole")


@pytest.mark.slow
def test_import_wants_the_unit_and_an_equivariant_model(tmp_path: Path) -> None:
    """No unit of polarizabilities, a polarizability that is no tensor, and an AtomicDielectricMACE made with
    use_polarizability=False, whose dipole is columns of other quantities: refused, each with a sentence."""
    module = random_response("AtomicDielectricMACE")
    torch.save(module, tmp_path / "file.model")
    with pytest.raises(ModelError, match="--polarizability-unit"):
        import_model(tmp_path / "file.model", tmp_path / "a", trust_pickle=True)
    module.change_of_basis[-1] *= 2.0
    torch.save(module, tmp_path / "file.model")
    with pytest.raises(ModelError, match=r"polarizability of .* does not turn with the atoms"):
        import_model(tmp_path / "file.model", tmp_path / "b", trust_pickle=True, polarizability_unit="ang3")
    module.use_polarizability = False
    torch.save(module, tmp_path / "file.model")
    with pytest.raises(ModelError, match=r"use_polarizability=False.*columns of other quantities"):
        import_model(tmp_path / "file.model", tmp_path / "b", trust_pickle=True, polarizability_unit="ang3")
    assert not (tmp_path / "b").exists()


def test_the_shipped_committee_is_as_good_as_its_card_says() -> None:
    """models/water-dipole on the labels of PySCF that it never saw: errors are those in its committee.toml, of dipoles
    below a thirtieth of what they are; no Born charges where they are not asked for."""
    folder = MODELS / "water-dipole" / "model"
    testing = Dataset.read(folder).testing
    card = tomllib.loads((folder / "committee.toml").read_text(encoding="utf-8"))
    engines = tuple(ResponseEngine(check(folder / name), "dipole", born=False) for name in card["members"])
    assert engines[0].evaluate(build([testing[0].frame], engines[0].cutoff)).born is None
    role = Role("dipole", engines, np.ones(len(engines)) / len(engines))
    measured = errors_of(testing, role, ("dipole", "polarizability"), 1000)
    assert measured.keys() == card["held_out"].keys()
    for key, value in card["held_out"].items():
        assert measured[key] == pytest.approx(value, abs=2e-6)
    assert measured["dipole_rmse_e_angstrom"][0] < measured["labels_dipole_rmse_e_angstrom"][0] / 30


@pytest.mark.slow
def test_the_shipped_model_answers_as_mace() -> None:
    """models/water-dipole on a dimer: dipole and polarizability are MACECalculator's to 1e-8 e Å and e Å²/V, turn with
    the atoms as a vector and a tensor, and Born charges are the dipole's slopes."""
    folder = MODELS / "water-dipole" / "model"
    card = check(folder / "dipole-0")
    module, about = load_weights(card), dict(card.about)
    dimer = next(e.frame for e in Dataset.read(folder).testing if len(e.frame.numbers) == 6)
    found = answer(module, dimer, about)
    dipole, alpha, _ = by_mace(module, dimer, about)
    assert found.polarizability is not None
    assert np.abs(found.dipole[0] - dipole).max() < 1e-8
    assert np.abs(found.polarizability[0] - alpha).max() < 1e-8
    turn = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [-0.48, -0.64, -0.6]])
    turned = answer(module, replace(dimer, positions=dimer.positions @ turn.T), about)
    np.testing.assert_allclose(turned.dipole[0], turn @ found.dipole[0], atol=1e-6)
    np.testing.assert_allclose(turned.polarizability[0], turn @ found.polarizability[0] @ turn.T, atol=1e-7)
    assert np.abs(found.born[:2] - slopes(module, dimer, about, 2)).max() < 1e-6
