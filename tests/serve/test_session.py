"""What a run says when it is over; whole runs are in end_to_end/."""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beadwork.config import ServeConfig
from beadwork.errors import ConfigError, GeometryError, SimulationError
from beadwork.ipi.outputs import SINGLE_EXTRAS
from beadwork.ipi.simulation import read_simulation
from beadwork.ipi.transport import Address, Line
from beadwork.log import taken_apart
from beadwork.potential.analytic import Harmonic
from beadwork.potential.bundle import committee_hash, load_card
from beadwork.potential.novelty import load_training_set
from beadwork.potential.potential import Potential
from beadwork.serve import assemble
from beadwork.serve.assemble import _check_gathered, join
from beadwork.serve.reply import extra_keys
from beadwork.serve.service import Service
from beadwork.serve.session import Session, _elements, _facts, _unnamed
from support.charges import Charged

WATER = Path(__file__).parents[2] / "inputs" / "water"
STRANGERS = Path(__file__).parents[1] / "strangers"


def test_a_torn_restart_ends_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An i-PI that had to be killed as it wrote RESTART: its steps are not counted, and one line says which file."""
    for name in ("input.xml", "init.xyz"):
        shutil.copy(WATER / name, tmp_path)
    simulation = read_simulation(tmp_path / "input.xml")
    session = Session(ServeConfig(simulation=str(simulation.path), baseline="b"), "threads")
    session._ipi = object()  # type: ignore[assignment]  # one that we have started
    restart = tmp_path / "RESTART"
    text = (WATER / "input.xml").read_text().replace("<total_steps>", "<step>7</step><total_steps>")
    restart.write_text(text)
    assert session._steps_done(simulation) == 7
    restart.write_text(text[: len(text) // 2])
    os.utime(restart, (0, 0))
    assert session._steps_done(simulation) is None
    (line,) = capfd.readouterr().err.splitlines()
    level, said = taken_apart(line)
    assert level == logging.WARNING
    assert said.startswith(f"beadwork: i-PI's steps cannot be counted: {restart} ends in the middle")


def test_the_committee_that_is_named_is_the_one_that_is_swapped() -> None:
    """Where the first forcefield serves the baseline, the status still follows Δ."""
    shipped = WATER.parents[1] / "models" / "water-revpbe0-d3"
    cards = [load_card(shipped / name) for name in ("baseline", "delta-0", "delta-1")]
    base, delta = Potential(Harmonic(1.0)), Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    base.cards = delta.cards = tuple(cards)
    services = [Service(Line(Address(Path("x"))), p, np.array([8]), 1) for p in (base, delta)]
    before = _facts(services)["committee"]
    services[1].potential = fresh = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    fresh.cards = tuple(cards[::-1])
    assert _facts(services)["committee"] != before
    weighted = Potential(None, [Harmonic(1.0), Harmonic(2.0)], [1.0, 3.0])
    weighted.cards = delta.cards
    services[1].potential = weighted
    assert _facts(services)["committee"] == committee_hash([card.hash for card in cards], [0.25, 0.75]) != before
    assert _facts(services)["spread_of_delta_alone"]


def test_members_that_name_no_baseline_are_noted() -> None:
    """For the report: those that are summed with one, by name; without a baseline there is nothing to name."""
    shipped = WATER.parents[1] / "models" / "water-revpbe0-d3"
    base, first, second = (load_card(shipped / name) for name in ("baseline", "delta-0", "delta-1"))
    second = replace(second, about={key: value for key, value in second.about.items() if key != "baseline"})
    for cards, names in (((base, first, second), ["delta-1"]), ((first, second), []), ((base, first, first), [])):
        potential = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
        potential.cards = cards
        assert _unnamed(potential) == names


def test_columns_by_element_where_there_is_a_number_for_them() -> None:
    """A baseline alone that knows what it was trained on has a novelty by element; one that does not has nothing."""
    base = Potential(Harmonic(1.0))
    services = [Service(Line(Address(Path("x"))), base, np.array([1, 8]), 1)]
    assert _elements(services) == []
    shipped = WATER.parents[1] / "models" / "water-revpbe0-d3"
    base.baseline.training_set = load_training_set(shipped / "baseline" / "novelty.npz")  # type: ignore[union-attr]
    assert _elements(services) == ["O", "H"]


SOCKET = "<ffsocket name='{0}' mode='unix'><address>{0}</address></ffsocket>"


@pytest.mark.parametrize(
    ("tags", "potential", "forces", "said"),
    [
        ("", {"weights": [1.0, 3.0]}, True, "plain mean"),
        ("", {"baseline_uncertainty": 0.1}, True, "plain mean"),
        ("<alpha>2.0</alpha>", {"alpha": 1.5}, True, "by its alpha 2, and beadwork by 1.5"),
        ("<baseline_name>base</baseline_name><baseline_uncertainty>1</baseline_uncertainty>", {}, False, "--member-fo"),
        (SOCKET.format("more"), {}, False, "--member-forces"),
        (
            "<baseline_name>base</baseline_name><baseline_uncertainty>1</baseline_uncertainty>",
            {"reference": {8: 2.7}},
            True,
            "O 2.7 eV",
        ),
        ("", {}, False, ""),
        ("<baseline_name>base</baseline_name><baseline_uncertainty>1</baseline_uncertainty>", {}, True, ""),
    ],
)
def test_what_an_ffcommittee_makes_of_our_members(
    tmp_path: Path, tags: str, potential: dict[str, Any], forces: bool, said: str
) -> None:
    """i-PI would take the plain mean of weighted members, scale them twice, or die in its polling thread: refused."""
    shutil.copy(WATER / "init.xyz", tmp_path)
    text = (WATER / "input.xml").read_text()
    own = text[text.index("<ffsocket") : text.index("</ffsocket>") + len("</ffsocket>")]
    name = re.search(r"name='(\w+)'", own)
    assert name is not None
    base = SOCKET.format("base") if "base" in tags else ""
    inside = f"<ffcommittee name='all'><parse_json>True</parse_json>{tags}{SOCKET.format('ours')}{base}</ffcommittee>"
    text = text.replace(own, inside).replace(f"forcefield='{name[1]}'", "forcefield='all'")
    (tmp_path / "input.xml").write_text(text)
    socket = read_simulation(tmp_path / "input.xml").socket("ours")
    served = Potential(Harmonic(1.0), [Harmonic(1.0), Harmonic(2.0)], **potential)
    service = Service(Line(Address(Path("x"))), served, np.array([8]), 1, member_forces=forces)
    if said:
        with pytest.raises(SimulationError, match=said):
            _check_gathered(socket, service)
    else:
        _check_gathered(socket, service)


def test_parts_that_are_served_apart_are_told_charge_and_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Baseline and Δ in forcefields of their own are of the same system, and either may be the model that wants to know
    its charge."""
    base, delta = Charged(), Charged(0.1)
    whole = Potential(base, [delta], charge=1, spin=2)
    monkeypatch.setattr(assemble, "load_for", lambda _, born: whole)
    simulation = read_simulation(STRANGERS / "bias.xml")
    config = ServeConfig(
        simulation=str(simulation.path), baseline="b", delta=["d"], at={"short": "baseline", "long": "delta"}
    )
    services, _ = join(config, simulation)
    frame = simulation.systems[0].frame(periodic=False)
    for service, engine in zip(services, (base, delta), strict=True):
        engine.told.clear()
        energy = service.potential.evaluate([frame]).energies[0]
        assert energy == pytest.approx(0.5 * engine.k * (frame.positions**2).sum() + 1.2)
        assert engine.told == [((1, 2),)]


@pytest.mark.parametrize(("order", "share"), [(("baseline", "delta"), None), (("delta", "baseline"), 0.25)])
def test_what_is_recorded_of_members_is_of_the_part_that_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, order: tuple[str, str], share: float | None
) -> None:
    """Runs go on as one as long as the committee's alpha is the same, and a baseline served apart has none: recorded as
    1 of every run it would join runs of different error bars. So does the weight of the members' own `<force>`; in a
    bias they have none in the potential."""
    whole = Potential(Harmonic(1.0), [Harmonic(1.0), Harmonic(2.0)], alpha=2.0, energy_alpha=3.0)
    monkeypatch.setattr(assemble, "load_for", lambda _, born: whole)
    text = (STRANGERS / "bias.xml").read_text()
    (tmp_path / "input.xml").write_text(
        text.replace("<force forcefield='short'", "<force forcefield='short' weight='0.25'")
    )
    shutil.copy(STRANGERS / "water.xyz", tmp_path)
    simulation = read_simulation(tmp_path / "input.xml")
    at = dict(zip(("short", "long"), order, strict=True))
    config = ServeConfig(simulation=str(simulation.path), baseline="b", delta=["d"], at=at, out=str(tmp_path))
    services, _ = join(config, simulation)
    keys = {key for service in services for key in extra_keys(service.potential, member_forces=False)}
    # which the reader of i-PI's files has to know as one number each
    assert keys - {"committee_pot", "committee"} <= SINGLE_EXTRAS
    about = Session(config, "1 thread")._about(simulation, services)
    assert about["energy_alpha"] == 3.0
    assert about["committee_share"] == share


def test_a_weighted_baseline_that_is_served_in_parts() -> None:
    """It would be dropped without a word: each part is served as it is."""
    config = ServeConfig(
        simulation="x", baseline="b", delta=["d"], at={"a": "baseline", "b": "delta"}, baseline_uncertainty=0.1
    )
    with pytest.raises(ConfigError, match="serves them apart"):
        join(config, read_simulation(WATER / "input.xml"))


def test_what_is_not_periodic_is_looked_at_as_such(tmp_path: Path) -> None:
    """The cell of a cluster is often a placeholder: what is tried on the start must not fold atoms into it."""
    shutil.copy(WATER / "input.xml", tmp_path)
    lines = ["3", "# CELL(abcABC): 1 1 1 90 90 90 cell{angstrom} positions{angstrom}", "O 1 1 1", "H 1.96 1 1"]
    (tmp_path / "init.xyz").write_text("\n".join([*lines, "H 0.76 1.93 1", ""]))
    names = [
        str(WATER.parents[1] / "models" / "water-revpbe0-d3" / name) for name in ("baseline", "delta-0", "delta-1")
    ]
    config = ServeConfig(
        simulation=str(tmp_path / "input.xml"), baseline=names[0], delta=names[1:], engine="torchscript", periodic=False
    )
    ((service,), _) = join(config, read_simulation(tmp_path / "input.xml"))
    assert not service.periodic
    with pytest.raises(GeometryError, match="apart"):  # so it would be, folded
        join(replace(config, periodic=True), read_simulation(tmp_path / "input.xml"))
