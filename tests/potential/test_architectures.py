"""Every architecture that mace-torch can build, in every engine that takes it, against MACE itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from beadwork.potential.architecture import describe, rebuild
from beadwork.potential.graph import build
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

    docs/architectures.md has the row with the same engines.
    """
    if architectures.POLAR in name:
        pytest.importorskip("graph_longrange")
    row = architectures.measure(name, tmp_path)
    assert "eager" not in row.without
    assert all(row.without.values()), "an engine without a reason"
    for (engine, dtype), errors in row.errors.items():
        allowed = architectures.ALLOWED[engine] if dtype == "float64" else architectures.ROUGH
        assert np.less(errors, allowed).all(), (engine, dtype, errors)
    assert told()[name] == [engine in row.without for engine in architectures.FILES]


@pytest.mark.slow
@pytest.mark.parametrize("kind", architectures.RESPONSES)
def test_a_model_of_dipoles(kind, tmp_path):
    """Dipole, Born charges and polarizability are MACE's own, in float64 and float32 to what the page says."""
    if kind == architectures.POLAR:
        pytest.importorskip("graph_longrange")
    for dtype, errors in architectures.measure_response(kind, tmp_path).items():
        assert np.less(errors, architectures.RESPONSE_ALLOWED[dtype][: len(errors)]).all(), (dtype, errors)


#: rows of parts that no other fast test evaluates
FEW = ("density-normalised", "max_ell 1")


@pytest.mark.parametrize("name", FEW)
def test_an_architecture_made_again_from_its_description(name):
    """A few of the rows, without the import: what `eager` makes of description and weights answers as MACE does."""
    model, frames = architectures.make(name), architectures.frames()
    made = rebuild(describe(model), {key: value.clone() for key, value in model.state_dict().items()})
    evaluator = ModuleEvaluator(made, None, "float64", "cpu")
    for one, frame in zip(architectures.exact(model, frames), frames, strict=True):
        assert np.less(one.apart(evaluator.evaluate(build([frame], 4.5))), architectures.ALLOWED["eager"]).all()


def test_the_page_has_every_row():
    """docs/architectures.md is of the rows as they are, eager takes each, and each `no` has its reason."""
    page, rows = architectures.PAGE.read_text(), told()
    assert list(rows) == list(architectures.ROWS)
    assert all(f"\n| {kind} | " in page.partition(architectures.RESPONSES_TITLE)[2] for kind in architectures.RESPONSES)
    assert not any(cells[list(architectures.FILES).index("eager")] for cells in rows.values())
    for name, cells in rows.items():
        for engine, missing in zip(architectures.FILES, cells, strict=True):
            assert missing == (f"\n- {name}, {engine}: " in page)


def told() -> dict[str, list[bool]]:
    """Of each row of the page, for each engine, whether it says `no`."""
    page = architectures.PAGE.read_text().partition(architectures.RESPONSES_TITLE)[0]
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {name: [cell == "no" for cell in rest] for name, *rest in cells}


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
