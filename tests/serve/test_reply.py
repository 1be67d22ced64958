"""What models of other roles answer, as i-PI's own classes read it from the extras."""

from __future__ import annotations

import json
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
from ipi.engine.motion.driven_dynamics import BEC, ElectricDipole
from ipi.engine.outputs import TrajectoryOutput
from ipi.interfaces.utils import parse_extra
from ipi.utils.depend import depend_value, dstrip
from ipi.utils.units import unit_to_internal

from beadwork.frame import Frame
from beadwork.potential.analytic import Harmonic
from beadwork.potential.engine import Response
from beadwork.potential.graph import Graph
from beadwork.potential.potential import Potential
from beadwork.potential.response import Role
from beadwork.serve.assemble import _carrier
from beadwork.serve.reply import extra_keys, extras
from support.response import Charges

ATOMS, BEADS = 3, 2


class Tensors(Charges):
    """Of any size and no symmetry; the Born charges of a structure add up to zero, as i-PI checks."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__({8: -0.8, 1: 0.4}, 1.0)
        self.seed = seed

    def evaluate(self, graph: Graph) -> Response:
        """As `Charges`."""
        rng = np.random.default_rng(self.seed)
        born = rng.normal(size=(len(graph), ATOMS, 3, 3))
        born -= born.mean(axis=1, keepdims=True)
        return Response(rng.normal(size=(len(graph), 3)), born.reshape(-1, 3, 3), rng.normal(size=(len(graph), 3, 3)))


def beads() -> list[Frame]:
    """Two of water."""
    positions = np.random.default_rng(1).normal(size=(BEADS, ATOMS, 3))
    return [Frame(np.array([8, 1, 1]), x, np.zeros((3, 3)), (False,) * 3) for x in positions]


def test_driven_dynamics_reads_dipole_and_born_charges() -> None:
    """i-PI's own classes: its force in a field is e Σ_k (∂mu_k / ∂r) E_k of the right atom and direction, its dipole is
    ours in e Bohr; polarizabilities are Bohr³."""
    potential = Potential(Harmonic(1.0), also=[Role("dipole", (Tensors(),), np.ones(1))])
    answer = potential.evaluate(beads())
    notes = extras(answer, potential)
    parsed = [parse_extra(note.decode()) for note in notes]
    assert {key for one in parsed for key in one} == {"raw", *extra_keys(potential, False)}
    forces = SimpleNamespace(extras={key: [one[key] for one in parsed] for key in parsed[0]})
    charges, dipole = BEC(cbec=True), ElectricDipole()
    charges.nbeads, charges.natoms, charges.forces = BEADS, ATOMS, forces
    dipole._nbeads, dipole.ens = depend_value(name="nbeads", value=BEADS), SimpleNamespace(forces=forces)
    field = np.array([0.1, -0.2, 0.4])
    theirs = (dstrip(charges._get_driver_BEC()) @ field).reshape(BEADS, ATOMS, 3)
    born = answer.response["born"].mean.reshape(BEADS, ATOMS, 3, 3)
    np.testing.assert_allclose(theirs, np.einsum("saij,j->sai", born, field), rtol=1e-12)
    bohr = 1 / unit_to_internal("length", "angstrom", 1.0)
    np.testing.assert_allclose(dipole._get_dipole() * bohr, answer.response["dipole"].mean, rtol=1e-12)
    # one e Å²/V is e² Å² / eV, and 14.3996 Å³ over 4 π ε0
    volume = np.array([one["polarizability"] for one in parsed]) * bohr**3
    np.testing.assert_allclose(volume, 14.399645 * answer.response["polarizability"].mean, rtol=1e-6)


def test_members_of_a_committee_and_how_far_they_are_apart() -> None:
    """Members' dipoles and polarizabilities average to what is sent, and of Born charges the largest spread of an atom
    is told; the keys are those that are promised."""
    role = Role("dipole", (Tensors(0), Tensors(1), Tensors(2)), np.ones(3) / 3)
    potential = Potential(Harmonic(1.0), [Harmonic(0.1), Harmonic(0.2)], also=[role])
    answer = potential.evaluate(beads())
    for bead, note in enumerate(json.loads(note) for note in extras(answer, potential)):
        assert set(note) == set(extra_keys(potential, False))
        for key in ("dipole", "polarizability"):
            members = np.array(note[f"committee_{key}"])
            np.testing.assert_allclose(members.mean(axis=0), np.ravel(note[key]), rtol=1e-12)
            spread = np.sqrt(members.var(axis=0, ddof=1).mean())
            assert note[f"{key}_spread"] == pytest.approx(spread, rel=1e-12)
        of_atoms = answer.response["born"].spread[bead * ATOMS : (bead + 1) * ATOMS]
        assert note["BEC_spread"] == pytest.approx(of_atoms.max())
        assert "committee_BEC" not in note


def test_ipi_writes_every_key() -> None:
    """`<trajectory extra_type=KEY> extras` of any key: i-PI's own writer takes it, and has all its numbers. Of more
    than rows and columns it raises, and the simulation is over."""
    role = Role("dipole", (Tensors(0), Tensors(1), Tensors(2)), np.ones(3) / 3)
    potential = Potential(Harmonic(1.0), [Harmonic(0.1), Harmonic(0.2)], also=[role])
    notes = extras(potential.evaluate(beads(), True), potential)
    parsed = [parse_extra(note.decode()) for note in notes]
    data = {key: [one[key] for one in parsed] for key in parsed[0]}
    for key in extra_keys(potential, True):
        writer, written = TrajectoryOutput("run", extra_type=key), StringIO()
        writer.system = SimpleNamespace(simul=SimpleNamespace(step=0))
        writer.write_traj(data, "extras", written, b=1, flush=False)
        numbers = written.getvalue().partition("\n")[2].split()
        value = parsed[1][key]
        if not isinstance(value, str) and value is not None:
            np.testing.assert_allclose(np.array(numbers, dtype=float), np.ravel(value), rtol=1e-7, err_msg=key)


def test_one_role_for_polarizabilities_alone() -> None:
    """A model of its own for polarizabilities takes the place of those of the dipole's."""
    roles = [
        Role("dipole", (Tensors(0), Tensors(1)), np.ones(2) / 2),
        Role("polarizability", (Tensors(5),), np.ones(1)),
    ]
    potential = Potential(Harmonic(1.0), also=roles)
    answer = potential.evaluate(beads())
    note = json.loads(extras(answer, potential)[0])
    assert set(note) == {"dipole", "dipole_spread", "committee_dipole", "BEC", "BEC_spread", "polarizability"}
    assert set(note) == set(extra_keys(potential, False))
    np.testing.assert_array_equal(answer.response["polarizability"].mean, Tensors(5).evaluate([0, 1]).polarizability)


def test_one_forcefield_has_them() -> None:
    """Of several forcefields the first role's has dipoles, but one on fewer beads, whose extras i-PI drops, or one
    without a weight only where there is no other: with two i-PI would make one list of both."""

    def chosen(**beads: tuple[int, float]) -> str:
        parts = {name: [SimpleNamespace(nbeads=n, weight=w)] for name, (n, w) in beads.items()}
        system = SimpleNamespace(nbeads=4, parts=lambda name: parts[name])
        simulation = SimpleNamespace(
            socket=lambda name: SimpleNamespace(name=name, parent=None), served=lambda socket: ((system, 4),)
        )
        return _carrier(simulation, {name: name.partition("_")[0] for name in beads})

    assert chosen(delta=(4, 1.0), baseline=(4, 1.0)) == "baseline"
    assert chosen(delta=(4, 1.0), baseline=(2, 1.0)) == "delta"
    assert chosen(delta=(4, 0.0), baseline=(2, 1.0)) == "baseline"
    assert chosen(baseline=(4, 0.0), sum_a=(4, 1.0), sum_b=(4, 1.0)) == "sum_a"
