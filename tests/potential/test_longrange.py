"""PolarMACE: MACE's own energies and forces, and a virial that is the slope of the energy, which MACE's own is not."""

from __future__ import annotations

import copy
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from beadwork.errors import ModelError
from beadwork.potential import longrange
from beadwork.potential.architecture import describe, rebuild
from beadwork.potential.bundle import check
from beadwork.potential.eager import EagerEngine
from beadwork.potential.engine import Energies
from beadwork.potential.graph import build
from beadwork.potential.importer import import_model
from beadwork.potential.load import load
from beadwork.potential.response import ResponseEngine, ResponseEvaluator
from beadwork.potential.torchscript import ModuleEvaluator

pytest.importorskip("graph_longrange")

_spec = importlib.util.spec_from_file_location(
    "architectures_of_long_range", Path(__file__).with_name("architectures.py")
)
architectures = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = architectures  # where dataclasses look for it
_spec.loader.exec_module(architectures)

CUTOFF = 4.5
#: with dipoles of atoms and two steps of charges in their own field
WHOLE = f"{architectures.POLAR}, dipoles, two steps"
ION, BOX = architectures.frames()
#: eV by a strain, eV/Å by a step; and how far the slopes may be from central differences with it
STEP, NEAR = 2e-4, 2e-5


@pytest.fixture(scope="module")
def model():
    """With random weights, eager."""
    return architectures.make(WHOLE)


@pytest.fixture(scope="module")
def evaluate(model):
    """Frames in one graph, in float64."""
    evaluator = ModuleEvaluator(copy.deepcopy(model), None, "float64", "cpu")
    return lambda *frames: evaluator.evaluate(build(frames, CUTOFF))


def strained(frame, strain):
    """The frame with its cell, strained."""
    moved = np.eye(3) + strain
    return replace(frame, positions=frame.positions @ moved, cell=frame.cell @ moved)


def test_the_virial_is_the_slope_of_the_energy(evaluate):
    """Of a box, where MACE's own virial is eV off for this model; and a force of an ion and of the box."""
    shear = np.zeros((3, 3))
    shear[1, 2] = shear[2, 1] = STEP / 2
    shear[0, 0] = STEP
    up, down, here = (evaluate(strained(BOX, x)) for x in (shear, -shear, 0.0))
    slope = -(up.energies[0] - down.energies[0]) / (2 * STEP)
    assert slope == pytest.approx((here.virials[0] * shear).sum() / STEP, abs=NEAR)
    for frame, forces in ((ION, evaluate(ION).forces), (BOX, here.forces)):
        moved = np.zeros_like(frame.positions)
        moved[1, 2] = STEP
        up, down = (evaluate(replace(frame, positions=frame.positions + x)) for x in (moved, -moved))
        assert -(up.energies[0] - down.energies[0]) / (2 * STEP) == pytest.approx(forces[1, 2], abs=NEAR)


def test_a_batch_is_what_each_is_alone(evaluate):
    """Ions and boxes in one graph, in any order; and the images that positions stand for, and a left-handed cell."""
    alone = {id(frame): evaluate(frame) for frame in (ION, BOX)}
    for some in ((BOX, ION), (ION, ION)):
        whole = evaluate(*some)
        told = Energies.joined([alone[id(frame)] for frame in some])
        for part in ("energies", "forces", "virials"):
            assert getattr(whole, part) == pytest.approx(getattr(told, part), abs=1e-10)
    unwrapped = BOX.positions.copy()
    unwrapped[5] += BOX.cell[0] - 2 * BOX.cell[2]
    mirrored = replace(BOX, positions=unwrapped, cell=BOX.cell[[1, 0, 2]])
    found = evaluate(mirrored)
    assert found.energies == pytest.approx(alone[id(BOX)].energies, abs=1e-9)
    assert found.forces == pytest.approx(alone[id(BOX)].forces, abs=1e-9)


def test_what_it_must_be_told(evaluate):
    """Charge and spin, and that they fit the atoms; and three periodic directions or none."""
    for frame, words in (
        (replace(ION, charge=None), "wants the total charge of the system, and none is given; give --charge"),
        (replace(ION, spin=None), "wants the number of unpaired electrons"),
        (replace(ION, spin=1), r"H3O with the charge \+1 e has 10 electrons, and cannot have 1 unpaired ones"),
        (replace(BOX, pbc=(True, True, False)), r"periodic in 2 directions, .* three or none; make all three"),
    ):
        with pytest.raises(ModelError, match=words):
            evaluate(frame)


def test_the_package_and_its_version(monkeypatch, model):
    """Another graph-longrange than fits mace-torch, none, or a description that its weights do not fit: a sentence."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    told = describe(model)
    for change in (
        {"num_recursion_steps": 3},
        {"field_feature_widths": [1.0]},
        {"field_readout_config": {"type": "os"}},
    ):
        with pytest.raises(ModelError, match="it describes no model of mace-torch's"):
            rebuild(told | change, state)
    monkeypatch.setattr(longrange, "version", lambda name: "0.4.4")
    with pytest.raises(ModelError, match=r"needs graph-longrange 0\.4\.0, .* and 0\.4\.4 is installed"):
        rebuild(told, state)
    monkeypatch.setitem(sys.modules, "graph_longrange.kspace", None)
    with pytest.raises(ModelError, match="a PolarMACE needs graph-longrange, which is not installed"):
        rebuild(told, state)


@pytest.mark.slow
def test_the_contract(evaluate, check_contract):
    """Forces and virials are the slopes of the energy, a batch of ions and boxes is what each is alone."""

    class Evaluated:
        name, elements, cutoff = "polar", (1, 8), CUTOFF

        def evaluate(self, graph):
            return evaluator.evaluate(graph.within(CUTOFF))

    evaluator = ModuleEvaluator(architectures.make(WHOLE), None, "float64", "cpu")
    check_contract(Evaluated(), [ION, BOX])


def test_its_dipole_of_a_cluster(model):
    """Of charges and dipoles of the atoms about the origin; Born charges are its slopes; none of a box."""
    evaluator = ResponseEvaluator(copy.deepcopy(model), "float64", "cpu", {"dipole_unit": "eang"})
    moved = np.zeros_like(ION.positions)
    moved[2, 0] = STEP
    # two in a batch, one of them far from the origin, where a charged system has another dipole
    some = [replace(ION, positions=ION.positions + x) for x in (0.0, moved, -moved, 7.0)]
    found = evaluator.evaluate(build(some, CUTOFF))
    assert found.dipole[3] - found.dipole[0] == pytest.approx(7.0 * np.ones(3), abs=1e-9)
    slopes = (found.dipole[1] - found.dipole[2]) / (2 * STEP)
    assert found.born[2, 0] == pytest.approx(slopes, abs=1e-5)
    assert found.born[:4].sum(axis=0) == pytest.approx(np.eye(3), abs=1e-9)
    with pytest.raises(ModelError, match="is periodic, and the model's dipole is a sum over charges that are no whole"):
        evaluator.evaluate(build([BOX], CUTOFF))


@pytest.mark.slow
def test_a_bundle(model, tmp_path):
    """Imported, opened and evaluated in both precisions, with MACE's own dipole; the card says why the other engines do
    not take it."""
    evaluator = ResponseEvaluator(copy.deepcopy(model), "float64", "cpu", {"dipole_unit": "eang"})
    own = architectures.dipole(model, ION)
    assert evaluator.evaluate(build([ION], CUTOFF)).dipole[0] == pytest.approx(own, abs=1e-8)
    torch.save(model, tmp_path / "polar.model")
    card = import_model(tmp_path / "polar.model", tmp_path / "polar", trust_pickle=True, charges=[0, 1], spins=[0])
    assert card.answers == ("energy", "dipole")
    assert not card.without("eager")
    assert card.without("native")
    assert card.without("torchscript")
    # what MACE's own differences of potentials in a cluster cost
    assert 1e-4 < card.about["dipole_unturned"] < 1e-1
    exact, rough = (
        EagerEngine(check(card.path), dtype).evaluate(build([ION, BOX], CUTOFF)) for dtype in ("float64", "float32")
    )
    assert np.abs(exact.forces - rough.forces).max() < 1e-3
    with pytest.raises(ModelError, match="was trained on 0, 1 e as total charge, not on -1"):
        EagerEngine(check(card.path)).evaluate(build([replace(ION, charge=-1)], CUTOFF))
    # as potential and as dipole: each ion, and each box, in one call of the module
    both = load(card.path, also={"dipole": card.path})
    calls = []
    both.baseline.exact.module.register_forward_hook(lambda *_: calls.append(1))
    together = both.evaluate([ION, ION])
    assert len(calls) == 1
    alone = EagerEngine(check(card.path)).evaluate(build([ION, ION], CUTOFF))
    for part in ("energies", "forces", "virials"):
        assert getattr(together, part) == pytest.approx(getattr(alone, part), abs=1e-11)
    dipoles = ResponseEngine(check(card.path), "dipole").evaluate(build([ION, ION], CUTOFF))
    assert together.response["dipole"].mean == pytest.approx(dipoles.dipole, abs=1e-11)
    assert together.response["born"].mean == pytest.approx(dipoles.born, abs=1e-11)
    with pytest.raises(ModelError, match="is periodic, and the model's dipole is a sum over charges"):
        both.evaluate([BOX])
