"""The ASE calculator does what people do with MACE's own: it is copied, pickled, and asked for each atom's energy."""

from __future__ import annotations

import copy
import pickle
import shutil

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError

import beadwork
from beadwork.errors import ModelError
from beadwork.potential.auto_engine import open_engine
from beadwork.potential.load import load
from beadwork.potential.potential import Potential
from support.charges import Charged

ENGINES = ("torchscript", "native")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_copy_answers_what_the_calculator_answers(made, shapes, engine):
    """Deep copies and pickles, made before the first structure or after it, alone or with the atoms: bit for bit."""
    if engine == "native":
        pytest.importorskip("symmetrix")
    atoms = shapes.structure("liquid", 1).to_atoms()
    atoms.calc = beadwork.BeadworkCalculator(load(made["invariant"].bundle, engine=engine))
    before = pickle.loads(pickle.dumps(atoms.calc))
    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
    after = [before, copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc)), copy.deepcopy(atoms).calc]
    for calculator in after:
        fresh = atoms.copy()
        fresh.calc = calculator
        fresh.calc.reset()  # a copy has the answers of its original
        assert np.array_equal(fresh.get_forces(), forces)
        assert fresh.get_potential_energy() == energy
        assert fresh.calc.potential.engines[0].name == f"invariant ({engine}, float64)"


def test_a_copy_is_no_other_model(made, tmp_path):
    """A bundle that was replaced between copying and opening is refused: its model would not be the original's."""
    bundle = shutil.copytree(made["vector"].bundle, tmp_path / "bundle")
    kept = pickle.dumps(load(bundle, engine="torchscript"))
    shutil.rmtree(bundle)
    shutil.copytree(made["invariant"].bundle, bundle)
    with pytest.raises(ModelError, match="has changed since the engine that was copied was opened"):
        pickle.loads(kept)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["invariant", "vector"])
def test_energies_of_atoms_are_those_of_maces_calculator(made, reference, shapes, model, engine):
    """Each atom's part of the energy, with its reference energy and the mean shift, as MACECalculator has it."""
    if engine == "native":
        pytest.importorskip("symmetrix")
    atoms = shapes.structure("triclinic", 1).to_atoms()
    atoms.calc = reference[model]
    expected = atoms.get_potential_energies()
    atoms.calc = beadwork.BeadworkCalculator(load(made[model].bundle, engine=engine))
    got = atoms.get_potential_energies()
    assert np.abs(got - expected).max() < 1e-8
    assert np.ptp(got) > 400  # eV: those of oxygen and of hydrogen
    assert got.sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_energies_of_atoms_add_up(made, shapes):
    """Baseline and the mean of the members are summed atom by atom; a weighted baseline has no such parts, and none."""
    engines = [open_engine(made[name].bundle, "torchscript") for name in ("invariant", "vector")]
    frame = shapes.structure("liquid", 1)
    one, two = (Potential(engine).evaluate([frame]).of_atoms for engine in engines)
    whole = Potential(engines[0], engines, [1.0, 3.0])
    got = whole.evaluate([frame])
    assert np.abs(got.of_atoms - (one + (one + 3 * two) / 4)).max() < 1e-9
    atoms = frame.to_atoms()
    whole.baseline_uncertainty = 0.1
    atoms.calc = beadwork.BeadworkCalculator(whole)
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energies()


def test_another_charge_or_spin_is_another_structure(shapes):
    """ASE compares no info: after a change of charge or spin there the energy is computed anew, and else it is not."""
    atoms = shapes.structure("liquid", 1).to_atoms()
    engine = Charged()
    atoms.calc = beadwork.BeadworkCalculator(Potential(engine))
    atoms.info.update(charge=1, spin=0)
    cation = atoms.get_potential_energy()
    assert not atoms.calc.calculation_required(atoms, ["energy"])
    for name, value, more in (("charge", -1, -2.0), ("spin", 2, -1.8), ("charge", 1, 0.2)):
        atoms.info[name] = value
        assert atoms.calc.calculation_required(atoms, ["energy"])
        assert atoms.get_potential_energy() - cation == pytest.approx(more, abs=1e-9)
    atoms.info = {"total_charge": 1, "total_spin": 3, "name": "the same in other words"}
    atoms.get_forces()
    assert engine.told == [((1, 0),), ((-1, 0),), ((-1, 2),), ((1, 2),)]
