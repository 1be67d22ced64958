"""i-PI inputs as other people write them: what they ask is served, and what they ask of others is left to these."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ipi.utils.units import unit_to_internal

from beadwork.config import ServeConfig
from beadwork.doctor import report as doctor
from beadwork.doctor.bench import shorten
from beadwork.doctor.finding import AMBER, Finding
from beadwork.errors import SimulationError
from beadwork.ipi.advice import advice
from beadwork.ipi.simulation import Component, Extra, Simulation, read_simulation
from beadwork.potential.analytic import Harmonic
from beadwork.potential.potential import Potential
from beadwork.serve import assemble as services
from beadwork.serve.assemble import join
from beadwork.serve.server import Server
from beadwork.units import BOHR, HARTREE

HERE = Path(__file__).parent


def joined(
    monkeypatch: pytest.MonkeyPatch,
    simulation: Simulation,
    at: Mapping[str, str],
    prefix: str | None = None,
    member_forces: bool = False,
) -> tuple[list[services.Service], list[str]]:
    """What serves each forcefield: a harmonic baseline and two harmonic Δ in place of models."""
    potential = Potential(Harmonic(1.0), [Harmonic(0.1), Harmonic(0.2)])
    monkeypatch.setattr(services, "load_for", lambda _, born: potential)
    config = ServeConfig(
        simulation=str(simulation.path), baseline="baseline", delta=["delta"], at=dict(at), sockets_prefix=prefix
    )
    return join(replace(config, member_forces=member_forces), simulation)


def looked_at(monkeypatch: pytest.MonkeyPatch, path: Path, at: Mapping[str, str]) -> list[Finding]:
    """What the doctor says without models."""
    monkeypatch.setattr(doctor, "_models", lambda *_: iter(()))
    return list(doctor.examine(ServeConfig(simulation=str(path), baseline="baseline", delta=["delta"], at=dict(at))))


def test_a_forcefield_of_bias_alone_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """i-PI asks a forcefield that only `<bias>` names: it gets its two structures per step, and nothing is wrong."""
    simulation = read_simulation(HERE / "bias.xml")
    (system,) = simulation.systems
    assert [part.forcefield for part in system.forces] == ["short"]
    assert system.bias == (Component("long", 2, 1.0, ()),)
    _, long = simulation.sockets
    assert [simulation.structures(socket) for socket in simulation.sockets] == [4, 2]
    assert simulation.numbers(long).tolist() == [8, 1, 1]
    assert "unused" not in [one.key for one in advice(simulation)]
    served, notes = joined(monkeypatch, simulation, {"short": "baseline", "long": "delta"})
    assert [service.ring for service in served] == [4, 2]
    assert not [note for note in notes if "is not served here" in note]


def test_a_forcefield_of_bias_that_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """i-PI waits for ever for the other one: the log says so, and the doctor is amber."""
    simulation = read_simulation(HERE / "bias.xml")
    assert simulation.unserved(["short"]) == ("long",)
    _, notes = joined(monkeypatch, simulation, {"short": "baseline"})
    assert [note for note in notes if note.startswith("'long' is not served here, and i-PI waits for a client there")]
    found = [
        f for f in looked_at(monkeypatch, HERE / "bias.xml", {"short": "baseline"}) if "is not served here" in f.text
    ]
    assert [(f.colour, f.text.partition(":")[0]) for f in found] == [(AMBER, "long")]


def test_bias_of_replicas_counts_with_its_weights_and_in_the_outermost_step() -> None:
    """Bias of weight 0 is not asked in a step; of three replicas two ask a committee in their bias. It is asked once a
    step where the physical forces are asked four times, whatever the forces' levels are.
    """
    simulation = read_simulation(HERE / "bias-of-replicas.xml")
    assert [part.weight for system in simulation.systems for part in system.bias] == [0, 1, 1, 1, 1, 1]
    sockets = {socket.name: socket for socket in simulation.sockets}
    assert {name: simulation.structures(socket) for name, socket in sockets.items()} == {
        "physical": 6,
        "one": 4,
        "two": 4,
    }
    assert {name: simulation.calls(socket) for name, socket in sockets.items()} == {"physical": 4, "one": 1, "two": 1}
    assert simulation.unserved(["physical"]) == ("one", "two")


def test_forces_without_a_weight_each_are_refused(tmp_path: Path) -> None:
    """i-PI stops at a weight too few with an IndexError, of the bias or of a scaled Hamiltonian; a forcefield that is
    not defined is named as in <forces>.
    """
    (tmp_path / "water.xyz").write_text((HERE / "water.xyz").read_text())
    text = (HERE / "bias-of-replicas.xml").read_text()
    path = tmp_path / "input.xml"
    path.write_text(text.replace("[W, 1]", "[1]"))
    with pytest.raises(
        SimulationError, match="has 2 forces in <bias> and 1 numbers in <bias_weights>; give one for each force"
    ):
        read_simulation(path)
    path.write_text(
        text.replace("<forces>", "<forces><force forcefield='plumed'/>").replace(
            "[W, 1]</bias_weights>", "[W, 1]</bias_weights><hamiltonian_weights>[1]</hamiltonian_weights>"
        )
    )
    with pytest.raises(SimulationError, match="has 2 forces in <forces> and 1 numbers in <hamiltonian_weights>; give"):
        read_simulation(path)
    path.write_text(text.replace("<force forcefield='umbrella'/>", "<force forcefield='brolly'/>"))
    with pytest.raises(SimulationError, match="names the forcefield 'brolly', which the input does not define"):
        read_simulation(path)


def test_extras_that_others_send_are_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """PLUMED's collective variables and another program's dipole are no business of ours; where nobody but us could
    send them, they are missed before i-PI stops with a KeyError.
    """
    simulation = read_simulation(HERE / "extras-of-others.xml")
    assert set(simulation.extras) == {
        Extra("distance", ("plumed",)),
        Extra("mtd.bias", ("plumed",)),
        Extra("dipole", ("theirs",)),
        Extra("dipole", ("ours", "theirs")),
    }
    served, _ = joined(monkeypatch, simulation, {"ours": "sum"})
    assert len(served) == 1
    with pytest.raises(
        SimulationError, match=r"writes the extras dipole, which will not be sent: alpha, .* will; take"
    ):
        joined(monkeypatch, simulation, {"ours": "sum", "theirs": "delta"})


@pytest.mark.parametrize(
    ("output", "force", "said"),
    [
        (
            "extras",
            "",
            "committee_pot where there will be none: i-PI drops those of a forcefield with weight 0 or fewer",
        ),
        ("extras", "<interpolate_extras>[committee_pot]</interpolate_extras>", None),
        ("extras_component_raw(0)", "", None),
        ("extras_bias", "", "committee_pot where there will be none"),
        ("extras", "<interpolate_extras>[committee_pot, dipole]</interpolate_extras>", "writes the extras dipole"),
        ("extras_component_raw()", "", "i-PI refuses .*input.xml"),
    ],
)
def test_extras_of_contracted_beads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, force: str, said: str | None
) -> None:
    """i-PI drops the extras of a forcefield on fewer beads than the system has, unless it may interpolate them, and
    stops at the output that wants them.
    """
    (tmp_path / "water.xyz").write_text((HERE / "water.xyz").read_text())
    path = tmp_path / "input.xml"
    text = re.sub("<bias>.*</bias>", "", (HERE / "bias.xml").read_text())
    text = text.replace("<force forcefield='short'/>", f"<force forcefield='short' nbeads='2'>{force}</force>")
    text = text.replace(
        "<simulation>",
        f"<simulation><output><trajectory filename='x' extra_type='committee_pot'>{output}</trajectory></output>",
    )
    path.write_text(text)
    if said is None:
        joined(monkeypatch, read_simulation(path), {"short": "sum"})
    else:
        with pytest.raises(SimulationError, match=said):
            joined(monkeypatch, read_simulation(path), {"short": "sum"})


@pytest.mark.parametrize("around", ["{}", "<ffcommittee name='all'><parse_json>True</parse_json>{}</ffcommittee>"])
def test_forces_of_members_that_nobody_sends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, around: str) -> None:
    """Outputs of the members' forces want --member-forces, of a forcefield and of the ffcommittee around it alike: i-PI
    would stop at the first of them.
    """
    (tmp_path / "water.xyz").write_text((HERE / "water.xyz").read_text())
    path = tmp_path / "input.xml"
    text = re.sub("<bias>.*</bias>|<ffsocket name='long'.*</ffsocket>", "", (HERE / "bias.xml").read_text())
    text = re.sub("<ffsocket.*</ffsocket>", lambda socket: around.format(socket[0]), text)
    text = text.replace("forcefield='short'", f"forcefield='{'short' if around == '{}' else 'all'}'")
    outputs = "".join(
        f"<trajectory filename='{key}' extra_type='{key}'>extras</trajectory>"
        for key in ("committee_pot", "committee_force")
    )
    path.write_text(text.replace("<simulation>", f"<simulation><output>{outputs}</output>"))
    simulation = read_simulation(path)
    with pytest.raises(SimulationError, match=r"extras committee_force, which will .* out, or add --member-forces$"):
        joined(monkeypatch, simulation, {"short": "sum"})
    joined(monkeypatch, simulation, {"short": "sum"}, member_forces=True)


@pytest.mark.parametrize(
    ("settings", "at", "lacking"),
    [
        ("", {"one": "delta", "two": "delta"}, "committee_dipole, o3grid_pots, wb_mixing"),
        ("<baseline_name>one</baseline_name><baseline_uncertainty>0.1</baseline_uncertainty>",
         {"one": "baseline", "two": "delta"}, "committee_dipole, o3grid_pots"),
        ("", {"one": "delta"}, None),  # the last one's extras are what an ffcommittee takes along
    ],
)  # fmt: skip
def test_extras_of_an_ffcommittee(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: str, at: dict[str, str], lacking: str | None
) -> None:
    """i-PI's ffcommittee makes extras of its own, and prefixes those of its last member: what else an output wants of
    it is missed where all of that is ours, and left to others where it is not.
    """
    (tmp_path / "water.xyz").write_text((HERE / "water.xyz").read_text())
    path = tmp_path / "input.xml"
    keys = ["committee_pot", "committee_virial", "committee_raw", "committee_alpha", "committee_dipole", "wb_mixing"]
    output = f"<trajectory filename='x' extra_type='{', '.join([*keys, 'o3grid_pots'])}'>extras_bias</trajectory>"
    text = (HERE / "bias-of-replicas.xml").read_text().replace("<simulation>", f"<simulation><output>{output}</output>")
    text = text.replace("<force forcefield='plumed' nbeads='1'/>", "").replace("[W, 1]", "[1]")
    path.write_text(text.replace("<ffcommittee name='umbrella'>", f"<ffcommittee name='umbrella'>{settings}"))
    simulation = read_simulation(path)
    if lacking is None:
        joined(monkeypatch, simulation, {"physical": "sum", **at})
    else:
        with pytest.raises(SimulationError, match=f"writes the extras {lacking}, which will not be sent"):
            joined(monkeypatch, simulation, {"physical": "sum", **at})


def test_the_photons_of_a_cavity_stay_with_ipi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An `<ffcavphsocket>` sends the atoms without its photons, bead after bead: one connection, no word of batches. A
    benchmark of it has an address of its own.
    """
    simulation = read_simulation(HERE / "cavity.xml")
    (socket,) = simulation.sockets
    assert (socket.photons, socket.active) == (2, (0, 1, 2))
    assert simulation.numbers(socket).tolist() == [8, 1, 1]
    assert simulation.structures(socket) == 2
    assert advice(simulation) == []
    (service,), _ = joined(monkeypatch, simulation, {"cavity": "sum"})
    assert (service.line.wanted, service.ring, service.numbers.tolist()) == (1, 2, [8, 1, 1])
    (tmp_path / "water-in-a-cavity.xyz").write_text((HERE / "water-in-a-cavity.xyz").read_text())
    shorten(simulation, 7, tmp_path / "bench.xml")
    assert read_simulation(tmp_path / "bench.xml").socket().path != socket.path


@pytest.mark.slow
def test_a_cavity_with_real_ipi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """i-PI's potential is ours of the molecule and that of light and matter, 1/2 w^2 (q + e d / w^2)^2 by axis (Li,
    Subotnik and Nitzan, PNAS 117, 18324, 2020), of the last positions that it wrote.
    """
    for name in ("cavity.xml", "water-in-a-cavity.xyz"):
        (tmp_path / name).write_text((HERE / name).read_text())
    monkeypatch.chdir(tmp_path)
    prefix = f"{tmp_path}/"
    simulation = read_simulation("cavity.xml", prefix)
    services_, _ = joined(monkeypatch, simulation, {"cavity": "baseline"}, prefix)
    command = [Path(sys.executable).with_name("i-pi"), "-S", prefix, "cavity.xml"]
    with open("log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        Server(services_, stopped=lambda: process.poll() is not None).run()
        assert process.wait(60) == 0, Path("log").read_text()
    finally:
        process.kill()
        process.wait()
    where = read_simulation("RESTART").systems[0].positions / BOHR
    atoms, light = where[:, :3], where[:, 3:]
    omega, coupling = unit_to_internal("frequency", "inversecm", 3550), 4e-4
    dipole = np.einsum("a,bai->bi", [-0.8, 0.4, 0.4], atoms)
    matter = 0.5 * 1.0 / HARTREE * BOHR**2 * (atoms**2).sum(axis=(1, 2))
    free = 0.5 * omega**2 * (light**2).sum(axis=(1, 2))
    coupled = np.stack([light[:, 0, 0], light[:, 1, 1]], axis=1)
    bound = (coupling * coupled * dipole[:, :2]).sum(axis=1) + (coupling * dipole[:, :2] / omega) ** 2 @ [0.5, 0.5]
    potential = np.loadtxt("run.out")[-1, 1]
    np.testing.assert_allclose(potential, (matter + free + bound).mean(), rtol=1e-12)
