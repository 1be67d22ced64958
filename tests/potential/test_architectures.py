"""Every architecture that mace-torch can build, in every engine that takes it, against MACE itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from beadwork.potential.torchscript import ModuleEvaluator

_spec = importlib.util.spec_from_file_location("architectures", Path(__file__).with_name("architectures.py"))
architectures = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = architectures  # where dataclasses look for it
_spec.loader.exec_module(architectures)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", architectures.ROWS)
def test_an_architecture(name, tmp_path):
    """Energies and forces are MACE's own in float64, to what each engine allows; eager takes every row.

    docs/architectures.md, where it was written, has the row with the same engines.
    """
    row = architectures.measure(name, tmp_path)
    assert "eager" not in row.without
    assert all(row.without.values()), "an engine without a reason"
    for (engine, dtype), (energy, force) in row.errors.items():
        if dtype == "float64":
            assert energy < architectures.ALLOWED[engine][0], engine
            assert force < architectures.ALLOWED[engine][1], engine
        else:
            assert energy < 1e-4, engine
            assert force < 1e-2, engine
    if not architectures.PAGE.exists():
        return
    line = next(line for line in architectures.PAGE.read_text().splitlines() if line.startswith(f"| {name} |"))
    told = [cell.strip() == "no" for cell in line.split("|")[2:-1]]
    assert told == [engine in row.without for engine in architectures.FILES]


class Evaluated:
    """A module evaluator as an engine: what the contract check wants."""

    name, elements = "evaluated", (1, 8)

    def __init__(self, model) -> None:
        self.cutoff = float(model.r_max)
        self._evaluator = ModuleEvaluator(model, None, "float64", "cpu")

    def evaluate(self, graph):
        return self._evaluator.evaluate(graph.within(self.cutoff))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["EnergyDipolesMACE, its energy", "charge and spin embedded"])
def test_the_contract_of_models_whose_energy_is_no_sum_of_atoms(name, check_contract):
    """Forces and virials are the slopes of the energy, a batch of ions and boxes is what each is alone."""
    check_contract(Evaluated(architectures.make(name)), architectures.frames())
