"""`beadwork plan`: its lines are an input that i-PI takes, and its figures are those of the user's models and input."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from beadwork.config import ServeConfig
from beadwork.doctor import plan as module
from beadwork.doctor import search
from beadwork.doctor.harmonic import Modes, Plan
from beadwork.doctor.plan import Asked, format_plan, plan
from beadwork.doctor.plan_xml import changed, colored_noise
from beadwork.errors import SimulationError
from beadwork.ipi.simulation import read_simulation
from beadwork.json_form import as_json
from beadwork.potential.analytic import Harmonic
from beadwork.potential.potential import Potential
from support.json_forms import checked

INPUTS = Path(__file__).parents[2] / "inputs"
PIGLET = INPUTS / "water-piglet" / "input.xml"
MODELS = Path(__file__).parents[2] / "models" / "water-revpbe0-d3"


@pytest.mark.parametrize(
    ("name", "plan_"),
    [
        ("water", Plan(1, 1.0)),
        ("water", Plan(16, 0.5, "eco", highest=4100.0, cayley=True)),
        ("water", Plan(6, 0.5, "piglet", noise=colored_noise(PIGLET, 300))),
        ("water-inet", Plan(16, 0.5, "eco", 4, 6, highest=4100.0)),
        ("water-mts", Plan(8, 0.75, contracted=2)),
        ("water-mts", Plan(8, 0.75, inner=2)),
        ("water-mts", Plan(12, 0.5)),
    ],
)
def test_lines_are_an_input(name: str, plan_: Plan, tmp_path: Path) -> None:
    """i-PI's own classes read the input with a plan in it, and find its beads, steps, contraction and springs."""
    simulation = read_simulation(INPUTS / name / "input.xml")
    config = ServeConfig(at={"baseline": "baseline", "delta": "delta"} if name == "water-mts" else {})
    root = changed(plan_, simulation, config, PIGLET)
    # what is written of the old beads is no part of a plan
    for output in root.iter("output"):
        for trajectory in output.findall("trajectory"):
            output.remove(trajectory)
    path = tmp_path / "plan.xml"
    ElementTree.ElementTree(root).write(path, encoding="unicode")
    planned = read_simulation(path, directory=simulation.directory)
    system = planned.systems[0]
    assert system.nbeads == plan_.beads
    assert system.timestep == pytest.approx(plan_.outer)
    assert system.nmts == ((1, plan_.inner) if plan_.inner > 1 else (1,))
    assert [part.nbeads for part in system.forces] == [plan_.beads, plan_.delta_beads][: 1 + plan_.apart]
    assert [planned.structures(socket) for socket in planned.sockets] == [s.batch_size for s in planned.sockets]
    if plan_.inner > 1:
        assert [planned.calls(socket) for socket in planned.sockets] == [plan_.inner, 1]
    assert len({(socket.address, socket.port) for socket in planned.sockets}) == len(planned.sockets)
    text = path.read_text()
    assert ("style='eco'" in text.replace('"', "'")) == (plan_.springs == "eco")
    assert ("nm_gle" in text) == (plan_.springs == "piglet")


def test_matrices_of_another_temperature_are_refused() -> None:
    """Colored noise holds for one temperature, and an input without it has none."""
    with pytest.raises(SimulationError, match=re.escape("are for 300.0 K, and this simulation is at 280 K")):
        colored_noise(PIGLET, 280)
    with pytest.raises(SimulationError, match="no thermostat of mode nm_gle"):
        colored_noise(INPUTS / "water" / "input.xml", 300)


@pytest.fixture
def springs(monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    """The input of water with every atom on a spring, hydrogen at 3300 cm^-1, and few plans to choose from."""
    monkeypatch.setattr(search, "BEADS", (1, 8, 16))
    monkeypatch.setattr(search, "TIMESTEPS", (0.5,))
    monkeypatch.setattr(search, "INNER", (1, 2))
    monkeypatch.setattr(module, "load_for", lambda config: Potential(Harmonic(40.0), [Harmonic(0.8)]))
    return ServeConfig(simulation=str(INPUTS / "water" / "input.xml"), baseline="b", delta=["d"])


def test_what_is_said(springs: ServeConfig) -> None:
    """As text and JSON: the input as it is, plans in the order of their speed, their lines, and what is not known."""
    told = checked(as_json(plan(springs, Asked(0.05, 0.2, PIGLET), "one thread")), "plan")
    assert told["highest"] == pytest.approx(3310, abs=10)
    assert told["atoms"] == {"O": 32, "H": 64}
    assert told["now"]["beads"] == 16
    assert told["now"]["splitting"] == "obabo"
    assert told["now"]["error"]["kinetic H"] < -0.07
    assert {found["springs"] for found in told["plans"]} == {"eco", "piglet"}
    speeds = [found["ns_per_day"] for found in told["plans"]]
    assert speeds == sorted(speeds, reverse=True)
    for found in told["plans"]:
        assert any(str(PIGLET) in line for line in found["xml"]) == (found["springs"] == "piglet")
        assert max(map(len, found["xml"])) < 300  # the matrices are in their file
        assert found["judged"]["kinetic H"] <= 0.05
    assert any("--measure" in text for text in told["unknown"])
    text = format_plan(plan(springs, Asked(0.05, 0.2), "one thread"))
    assert "<frequencies style='eco' units='inversecm'>[3500]</frequencies>" in text
    assert "64 H, 32 O" in text or "32 O, 64 H" in text
    assert "no plan holds that" in format_plan(plan(springs, Asked(1e-6, 1e-6), "one thread"))


def test_what_cannot_be_planned_for(springs: ServeConfig, tmp_path: Path) -> None:
    """Without a temperature there are no averages, and where others move the atoms too the models are not the whole."""
    shutil.copy(INPUTS / "water" / "init.xyz", tmp_path)
    text = (INPUTS / "water" / "input.xml").read_text()
    path = tmp_path / "input.xml"
    path.write_text(re.sub(r"<ensemble>.*?</ensemble>", "", text, flags=re.S))
    with pytest.raises(SimulationError, match="has no temperature"):
        plan(replace(springs, simulation=str(path)), Asked(), "")
    path.write_text(
        text.replace(
            "<force forcefield='beadwork'/>", "<force forcefield='beadwork'/><force forcefield='other'/>"
        ).replace("  <system>", "  <ffdirect name='other'><pes>dummy</pes></ffdirect>\n  <system>")
    )
    with pytest.raises(SimulationError, match="more acts on the atoms"):
        plan(replace(springs, simulation=str(path)), Asked(), "")


@pytest.mark.slow
def test_the_shipped_water(tmp_path: Path) -> None:
    """The shipped models on shipped water, and the cheapest plan with real i-PI: what it finds is what is known of
    water (32 ordinary beads lack some 2 % of hydrogen's kinetic energy), and i-PI's own step is measured."""
    config = ServeConfig(
        simulation=str(INPUTS / "water" / "input.xml"),
        baseline=str(MODELS / "baseline"),
        delta=[str(MODELS)],
        threads=1,
    )
    told = checked(as_json(plan(config, Asked(0.02, 0.06, PIGLET, 4), "one thread")), "plan")
    assert 3500 < told["highest"] < 4200
    assert -0.09 < told["now"]["error"]["kinetic H"] < -0.04
    ordinary = [found for found in told["plans"] if found["springs"] == "ordinary"]
    assert min(found["beads"] for found in ordinary) >= 32
    assert min(found["beads"] for found in told["plans"] if found["springs"] == "eco") <= 20
    assert any(found["springs"] == "piglet" for found in told["plans"])
    assert told["measured"]["steps"] == 4
    assert told["measured"]["seconds_per_step"] > 0
    assert set(told["measured"]["kinetic"]) == {"O", "H"}
    assert np.isfinite(told["measured"]["drift"])


def test_modes_have_the_share_of_all_atoms() -> None:
    """The potential is weighed by how many atoms of each element there are."""
    modes = Modes(
        np.array([1.0, 4.0]), np.zeros(2), {"H": np.array([0.25, 0.75]), "O": np.array([1.0, 0.0])}, {"H": 2, "O": 1}
    )
    assert modes.share.tolist() == pytest.approx([0.5, 0.5])
