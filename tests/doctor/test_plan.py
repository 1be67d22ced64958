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
from beadwork.doctor.plan_xml import changed, colored_noise, plan_of, xml_lines
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


def edited(name: str, folder: Path, *edits: tuple[str, str]) -> Path:
    """A copy of one of inputs/ with other words in it."""
    shutil.copy(INPUTS / name / "init.xyz", folder)
    text = (INPUTS / name / "input.xml").read_text()
    for old, new in edits:
        text, count = re.subn(old, new, text, count=1, flags=re.S)
        assert count == 1
    path = folder / "input.xml"
    path.write_text(text)
    return path


SPLIT = {"baseline": "baseline", "delta": "delta"}


@pytest.mark.parametrize(
    ("name", "edits", "expected"),
    [
        ("water", [], Plan(16, 0.5, splitting="obabo")),
        ("water-mts", [], Plan(16, 0.5, inner=4, contracted=4)),
        # i-PI's units: 4000 cm^-1 is 119.917 THz or 0.0182253 atomic units
        ("water-eco", [], Plan(16, 0.5, "eco", highest=4000)),
        ("water-eco", [(r"'inversecm'>\[4000\]", "'terahertz'>[119.917]")], Plan(16, 0.5, "eco", highest=4000)),
        ("water-eco", [(r" units='inversecm'>\[4000\]", ">[0.0182253]")], Plan(16, 0.5, "eco", highest=4000)),
        # the thermostat of the barostat is another one
        (
            "water-npt",
            [("<thermostat mode='pile_g'>.*?</thermostat>(.*?)</dynamics>", r"\1<thermostat mode='pile_l'><tau "
              "units='femtosecond'>50</tau></thermostat></dynamics>")],
            Plan(16, 0.5, splitting="obabo"),
        ),
        # the one forcefield contracted; a baseline on fewer beads than there are; Δ at the inner steps
        ("water", [("'beadwork'/>", "'beadwork' nbeads='4'/>")], None),
        ("water-mts", [("<force forcefield='baseline'", "<force forcefield='baseline' nbeads='2'")], None),
        ("water-mts", [(r"\[0, 1\](.*?)\[1, 0\]", r"[1, 0]\1[0, 1]")], None),
        ("water", [("mode='nvt'", "mode='nve'")], None),
        ("water", [("pile_g", "langevin")], None),
        ("water", [("<forces>", "<normal_modes propagator='bab'/><forces>")], None),
        ("water", [("</tau>", "</tau><pile_centroid_t units='kelvin'>600</pile_centroid_t>")], None),
    ],
)  # fmt: skip
def test_the_input_as_it_is(name: str, edits: list[tuple[str, str]], expected: Plan | None, tmp_path: Path) -> None:
    """What an input says is the plan that is judged for it, in whatever units; None where it is another kind of run."""
    simulation = read_simulation(edited(name, tmp_path, *edits))
    roles = SPLIT if name == "water-mts" else {"beadwork": "sum"}
    found = plan_of(simulation, simulation.systems[0], roles)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        got, want = vars_of(found), vars_of(expected)
        assert got == pytest.approx(want, rel=1e-5)


def vars_of(plan_: Plan) -> dict[str, object]:
    """Its fields, text as numbers that differ where the text does."""
    fields = {name: getattr(plan_, name) for name in Plan.__slots__ if name != "noise"}
    return {name: hash(value) if isinstance(value, str) else value for name, value in fields.items()}


def test_roles_and_not_the_order_tell_baseline_and_delta(tmp_path: Path) -> None:
    """With the roles of its two forcefields exchanged, an input that contracts Δ contracts the baseline."""
    simulation = read_simulation(edited("water-mts", tmp_path))
    roles = {"baseline": "delta", "delta": "baseline"}
    assert plan_of(simulation, simulation.systems[0], roles) is None


def test_lines_say_all_that_changes(tmp_path: Path) -> None:
    """The thermostat is the one that is judged, NVE becomes NVT, and roles of two forcefields go where there is one."""
    simulation = read_simulation(edited("water", tmp_path, ("mode='nvt'", "mode='nve'")))
    lines = list(xml_lines(Plan(8, 0.5), simulation, ServeConfig(), None))
    assert lines[0] == "<initialize nbeads='8'>, <dynamics mode='nvt' splitting='baoab'>"
    assert "<thermostat mode='pile_l'><tau units='femtosecond'>100</tau></thermostat>" in lines
    strong = "<tau units='picosecond'>1</tau><pile_lambda>0.2</pile_lambda>"
    simulation = read_simulation(edited("water", tmp_path, ("<tau.*?</tau>", strong)))
    assert f"<thermostat mode='pile_l'>{strong}</thermostat>" in xml_lines(
        Plan(8, 0.5), simulation, ServeConfig(), None
    )
    kept = ("mode='unix'", "mode='unix' pbc='True'"), ("<latency>", "<timeout>600</timeout><latency>")
    sockets = read_simulation(edited("water", tmp_path, *kept))
    assert any(
        "pbc='True'" in line and "<timeout>600<" in line
        for line in xml_lines(Plan(8, 0.5), sockets, ServeConfig(), None)
    )
    assert not any("at" in line.split() for line in lines)
    simulation = read_simulation(INPUTS / "water-mts" / "input.xml")
    assert "run.toml: without at" in xml_lines(Plan(8, 0.5), simulation, ServeConfig(at=SPLIT), None)
    simulation = read_simulation(INPUTS / "water-npt" / "input.xml")
    assert "mode='npt'" in next(xml_lines(Plan(8, 0.5), simulation, ServeConfig(), None))


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
    """As text and JSON: the input as it is, plans in the order of their speed, their lines, and what is not known.
    PIGLET is the fastest here, and last and marked, since nothing bounds its error where vibrations are anharmonic."""
    planned = plan(springs, Asked(0.05, 0.2, PIGLET), "one thread")
    told = checked(as_json(planned), "plan")
    assert told["highest"] == pytest.approx(3310, abs=10)
    assert told["atoms"] == {"O": 32, "H": 64}
    assert told["now"]["beads"] == 16
    assert told["now"]["splitting"] == "obabo"
    assert told["now"]["error"]["kinetic H"] < -0.07
    assert {found["springs"] for found in told["plans"]} == {"eco", "piglet"}
    ranks = [(found["harmonic_only"], -found["ns_per_day"]) for found in told["plans"]]
    assert ranks == sorted(ranks)
    assert max(told["plans"], key=lambda found: found["ns_per_day"])["springs"] == "piglet"
    assert [found["harmonic_only"] for found in told["plans"]] == [f["springs"] == "piglet" for f in told["plans"]]
    assert not told["plans"][0]["harmonic_only"]
    for found in told["plans"]:
        assert any(str(PIGLET) in line for line in found["xml"]) == (found["springs"] == "piglet")
        assert max(map(len, found["xml"])) < 300  # the matrices are in their file
        assert found["judged"]["kinetic H"] <= 0.05
    assert any("--measure" in text for text in told["unknown"])
    lines = format_plan(planned).splitlines()
    assert any("piglet *" in line for line in lines)
    assert any(line.startswith("* last, whatever its speed") for line in lines)
    text = format_plan(plan(springs, Asked(0.05, 0.2), "one thread"))
    assert "* last" not in text
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
    with pytest.raises(SimulationError, match="roles in at are baseline, and together they are not the sum"):
        plan(replace(springs, at={"beadwork": "baseline"}), Asked(), "")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("mode='nvt'", "mode='sc'", "the motion of .* is sc"),
        ("<forces>", "<normal_modes><open_paths>[3]</open_paths></normal_modes><forces>", "has open paths"),
        (
            "<forces>",
            "<normal_modes propagator='bab'><bosons id='index'>[1, 2]</bosons></normal_modes><forces>",
            "has bosons",
        ),
        ("<dynamics", "<fixcom>False</fixcom><fixatoms>[0, 1, 2]</fixatoms><dynamics", "holds atoms where they are"),
        ("'beadwork'/>", "'beadwork' weight='0.5'/>", "gives a force a weight"),
        ("</ensemble>", "<hamiltonian_weights>[0.5]</hamiltonian_weights></ensemble>", "gives a force a weight"),
        ("</system>", "</system><smotion mode='metad'/>", "has an <smotion>"),
        ("'beadwork'/>", "'beadwork'/><force forcefield='beadwork'/>", "more acts on the atoms"),
    ],
)
def test_what_the_averages_are_not_of(springs: ServeConfig, tmp_path: Path, old: str, new: str, what: str) -> None:
    """An input whose averages are not those of a plain ring polymer of the models as they are is refused."""
    path = edited("water", tmp_path, (old, new))
    with pytest.raises(SimulationError, match=what):
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
