"""The hall between the wings: what is told besides forces. Sockets are in end_to_end/."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from ipi.interfaces.sockets import Driver
from ipi.utils.units import unit_to_internal

from beadwork.errors import ConnectionLost
from beadwork.events import Evaluated, Event, Moment, Note
from beadwork.frame import Frame
from beadwork.ipi.transport import Address, Line
from beadwork.observe.last import LastFrames
from beadwork.potential.additions import open_additions
from beadwork.potential.analytic import Harmonic
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph
from beadwork.potential.potential import Potential
from beadwork.serve.reply import extra_keys, extras
from beadwork.serve.server import Server
from beadwork.serve.service import Service
from support.conversation import request
from support.pair_potential import Pair

# i-PI 3.3.1 cannot bear these: `raw` is its own, the others crash ffcommittee's thread
FORBIDDEN = {"raw", "pot", "force", "virial", "uncertainty"}


def committee(members: int = 3) -> Potential:
    """Harmonic toys that disagree."""
    return Potential(Harmonic(1.0), [Harmonic(0.1 * (m + 1)) for m in range(members)], alpha=1.5, energy_alpha=2.0)


def frames(count: int = 2) -> list[Frame]:
    """Some atoms in a box."""
    rng = np.random.default_rng(5)
    return [Frame(np.array([8, 1, 1]), rng.normal(size=(3, 3)), 10 * np.eye(3)) for _ in range(count)]


def service(ring: int | None, start: np.ndarray | None = None) -> Service:
    """A service that no socket reaches."""
    return Service(Line(Address(Path("nowhere"))), committee(), np.array([8, 1, 1]), ring, start=start)


def test_extras_are_in_atomic_units_and_total() -> None:
    """What ffcommittee and the reweighting tool read: baseline + Δ_m in Hartree, deviations after energy_alpha,
    the forces their derivatives; the force spread has its own alpha."""
    potential = committee()
    answer = potential.evaluate(frames(), member_forces=True)
    notes = [json.loads(note) for note in extras(answer, potential)]
    hartree, bohr = unit_to_internal("energy", "electronvolt", 1.0), unit_to_internal("length", "angstrom", 1.0)
    for k, frame in enumerate(frames()):
        square = float((frame.positions**2).sum()) / 2
        members = np.array([0.1, 0.2, 0.3]) * square
        totals = square + members.mean() + 2.0 * (members - members.mean())
        assert np.allclose(notes[k]["committee_pot"], totals * hartree, rtol=1e-12)
        assert notes[k]["energy_spread"] == pytest.approx(np.std(2.0 * members, ddof=1) * hartree, rel=1e-12)
        slopes = np.array([0.1, 0.2, 0.3])
        slopes = slopes.mean() + 2.0 * (slopes - slopes.mean())
        forces = -(1.0 + slopes)[:, None] * frame.positions.ravel() * hartree / bohr
        assert np.allclose(notes[k]["committee_force"], forces, rtol=1e-12, atol=1e-14)
        atom = int(np.linalg.norm(frame.positions, axis=1).argmax())
        assert notes[k]["force_spread_atom"] == atom
        largest = np.linalg.norm(frame.positions, axis=1).max() * 1.5 * np.std([0.1, 0.2, 0.3], ddof=1) / np.sqrt(3)
        assert notes[k]["force_spread_max"] == pytest.approx(largest * hartree / bohr, rel=1e-12)
        assert (notes[k]["alpha"], notes[k]["energy_alpha"]) == (1.5, 2.0)


def knowing(members: bool) -> Potential:
    """The same, each saying of two structures of three atoms how new they are to it."""

    class Knowing(Harmonic):
        training_set = "known"

        def __init__(self, strength: float, novelty: list[float]) -> None:
            super().__init__(strength)
            self.novelty = np.array(novelty)

        def evaluate(self, graph: Graph) -> Energies:
            return replace(super().evaluate(graph), novelty=self.novelty)

    delta = [Knowing(0.1, [0.1, 0.2, 0.3, 0.4, 0.5, 1.5]), Knowing(0.2, [0.2, 0.1, 0.3, 0.4, 0.5, 0.9])]
    return Potential(Knowing(1.0, [0.9, 1.2, 0.3, 0.4, 0.5, 7.0]), delta if members else ())


@pytest.mark.parametrize("members", [True, False])
def test_novelty_travels_and_is_told_once(members: bool) -> None:
    """Each structure's largest, its atom and each part's go to i-PI, of a baseline alone only its own, so that two
    forcefields have no key in common; the first new atom of an element is told with its bead and whose it is, and
    later ones are counted only."""
    told: list[Event] = []
    potential = knowing(members)
    answer = potential.evaluate([replace(frame, bead=n) for n, frame in enumerate(frames())])
    notes = [json.loads(note) for note in extras(answer, potential)]
    assert [note["novelty_max_baseline"] for note in notes] == [1.2, 7.0]
    assert [note.get("novelty_max") for note in notes] == ([1.2, 7.0] if members else [None, None])
    assert [note.get("novelty_atom") for note in notes] == ([1, 2] if members else [None, None])
    assert [note.get("novelty_max_delta") for note in notes] == ([0.3, 1.5] if members else [None, None])
    assert set(notes[0]) == set(extra_keys(potential, False))
    one = Service(Line(Address(Path("nowhere"))), potential, np.array([8, 1, 1]), 2)
    server = Server([one], watch=told.append)
    for step in range(3):
        beads = [replace(frame, bead=n) for n, frame in enumerate(frames())]
        server._after(one, Moment(step), beads, answer, [], {})
    server.transport.close()
    (note,) = [event for event in told if isinstance(event, Note)]
    parts = "7.00 for the baseline" + " and 1.50 for Δ" * members
    assert f"step 0, bead 1: the novelty of atom 2 (H) is {parts}" in note.text
    assert ("Δ was trained on no atom like it" in note.text) == members
    seen = [event for event in told if isinstance(event, Evaluated)]
    assert [(event.new_structures, event.new_atoms) for event in seen] == [(2, 2)] * 3
    assert seen[0].element_novelty == {"H": 7.0, "O": 0.9}
    assert seen[0].novelty["baseline"] == 7.0


def test_an_ipi_that_comes_back_with_other_atoms() -> None:
    """Positions sent again, of a RESTART, and folded by the cell are those of before; exchanged molecules are said."""
    told: list[Event] = []
    one = service(2)
    server = Server([one], watch=told.append)
    before = frames()
    server._remember(LastFrames("nowhere", 3, before, None))
    lattices = np.array([frame.cell for frame in before])
    for moved in (0.0, 0.5, np.array([10.0, -20.0, 0.0])):
        server._compare(one, np.array([frame.positions for frame in before]) + moved, lattices)
    assert told == []
    server._compare(one, np.array([frame.positions for frame in before]) + np.array([0.0, 5.0, 0.0]), lattices)
    (note,) = told
    assert isinstance(note, Note)
    assert "come back with half of its atoms" in note.text
    server.transport.close()


def test_an_end_is_no_lost_connection(tmp_path: Path) -> None:
    """i-PI takes one more connection in the instant in which it ends, and lets it go without a word."""
    path = tmp_path / "socket"
    told: list[Event] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def ipi() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(b"STATUS".ljust(12))
                assert client.recv(12)
                client.sendall(b"EXIT".ljust(12))
            late, _ = listener.accept()  # it is dialled once more, for i-PI may take a slow client back
            path.unlink()
            late.close()

        thread = threading.Thread(target=ipi)
        thread.start()
        one = Service(Line(Address(path)), committee(), np.array([8, 1, 1]), 2)
        Server([one], patience=30.0, watch=told.append).run()
        thread.join(5)
        assert not thread.is_alive()
    assert told == []


def chatter(listener: socket.socket, ended: threading.Event) -> None:
    """Ask how we are, again and again, and never for anything."""
    client, _ = listener.accept()
    with client, suppress(OSError):
        while not ended.is_set():
            client.sendall(b"STATUS".ljust(12))
            client.recv(12)
            time.sleep(0.02)


def revolving(listener: socket.socket, ended: threading.Event) -> None:
    """Shake hands, hang up, and be there again soon."""
    listener.settimeout(0.1)
    while not ended.is_set():
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        with client:
            client.sendall(b"STATUS".ljust(12))
            client.recv(12)
        time.sleep(0.1)


def late(listener: socket.socket, ended: threading.Event) -> None:
    """Shake hands, be gone for longer than anybody may be silent, and come back to end."""
    for word, seconds in ((b"STATUS", 1.5), (b"EXIT", 0.0)):
        client, _ = listener.accept()
        with client:
            client.sendall(word.ljust(12))
            client.recv(12)
        time.sleep(seconds)
    listener.close()


@pytest.mark.parametrize("peer", [chatter, revolving, late])
def test_silence_is_to_ask_for_nothing(
    peer: Callable[[socket.socket, threading.Event], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that speaks without asking, or whose connections come and go, has the time that --silence gives, no more;
    one that was away for longer than that is not ended when it comes back, for this was the patience's."""
    monkeypatch.setattr("beadwork.serve.server.AWAY_SECONDS", 0.3)
    path, ended = tmp_path / "socket", threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=peer, args=(listener, ended))
        thread.start()
        server = Server([Service(Line(Address(path)), committee(), np.array([8, 1, 1]), 2)], patience=5.0, silence=0.8)
        begin = time.monotonic()
        try:
            if peer is late:
                server.run()
            else:
                with pytest.raises(ConnectionLost, match=r"and asked for nothing: see whether it still runs"):
                    server.run()
                assert 0.8 <= time.monotonic() - begin < 20
        finally:
            ended.set()
            thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("member_forces", [False, True])
def test_keys_are_constant_and_allowed(member_forces: bool) -> None:
    """i-PI wants the same keys always, and dies of some; a potential without a committee sends none."""
    potential = committee()
    answer = potential.evaluate(frames(), member_forces=member_forces)
    for note in extras(answer, potential):
        assert set(json.loads(note)) == set(extra_keys(potential, member_forces))
    assert not FORBIDDEN & set(extra_keys(potential, member_forces))
    alone = Potential(Harmonic(1.0))
    assert extras(alone.evaluate(frames()), alone) == [b"", b""]
    assert extra_keys(alone, member_forces) == ()


def several(ring: int, servers: int, start: np.ndarray | None = None) -> Service:
    """One of several servers."""
    line = Line(Address(Path("nowhere")))
    return Service(line, committee(), np.array([8, 1, 1]), ring, start=start, servers=servers)


def test_one_of_several_claims_no_bead_and_waits_for_no_ring() -> None:
    """It sees a part of the ring, so it knows of no bead, and answers what its connections have sent."""
    one = several(8, 2)
    assert one.beads is None
    one.gather.join("a")  # type: ignore[arg-type]
    one.gather.arrived("a", 3, now=0.0)  # type: ignore[arg-type]
    assert one.gather.take(0.0) == ["a"]
    assert several(8, 1).beads is not None


def by_hand(strength: float, positions: np.ndarray, columns: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces (eV/Å) and virial (eV) of `Pair`, over all atoms and images, without a neighbour list.

    positions: (n, 3) Å. columns: (3, 3) Å, the lattice vectors as i-PI has them.
    """
    energy, forces, virial = 0.0, np.zeros_like(positions), np.zeros((3, 3))
    for image in product((-2, -1, 0, 1, 2), repeat=3):
        for i, j in product(range(len(positions)), repeat=2):
            way = positions[j] + columns @ image - positions[i]
            r = np.linalg.norm(way)
            if 0 < r < 3.5:
                x = 1 - (r / 3.5) ** 2
                energy += strength / 4 * x**3
                force = strength / 4 * 6 * x**2 / 3.5**2 * way  # on j
                forces[j] += force
                forces[i] -= force
                virial += np.outer(way, force)
    return energy, forces, virial


@pytest.mark.parametrize("add", [{}, {"d3bj": "revPBE"}])
def test_a_batch_in_tilted_cells_through_ipi_s_own_driver(tmp_path: Path, add: dict[str, str]) -> None:
    """What i-PI gets for each bead of a batch is what that bead has, in atomic units: energy, forces, virial, extras;
    with what is added by formula, of which the library's own ASE calculator gives the same.

    i-PI has the lattice vectors in columns and sends them so, and a Frame has them in rows: tilted cells, where atoms
    see images, show a transposition. i-PI fills the batch up with copies of the last bead, which are answered and not
    evaluated.
    """
    rng = np.random.default_rng(3)
    angstrom = unit_to_internal("length", "angstrom", 1.0)
    hartree = unit_to_internal("energy", "electronvolt", 1.0)
    columns = [np.array([[5.0, 1.5, -1.0 - 0.1 * k], [0.0, 5.2, 1.4], [0.0, 0.0, 5.6]]) for k in range(3)]  # Å
    beads = [rng.uniform(0, 5, (6, 3)) * [1, 0.9, 0.8] for _ in columns]
    requests = [request(rng, k) for k in range(3)]
    for one, where, cell in zip(requests, beads, columns, strict=True):
        one["pos"], one["active"] = where.ravel() * angstrom, np.arange(18)
        one["cell"] = cell * angstrom, np.linalg.inv(cell * angstrom)
        one["pars"] = "batch_size:5"
    frames: list[Frame] = []
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def ipi() -> None:
            client, _ = listener.accept()
            driver = Driver(client)
            driver.batch_size = 5
            driver.get_status()
            driver.dispatch_send_batch(requests)
            driver.dispatch_recv_batch(requests)
            listener.close()
            path.unlink()
            driver.shutdown()
            driver.close()
            client.close()

        thread = threading.Thread(target=ipi)
        thread.start()
        more = {"additions": open_additions(add, [1, 8]), "charge": 1, "spin": 2}
        potential = Potential(Pair(2.0), [Pair(0.2), Pair(0.6)], energy_alpha=2.0, **more)
        one = Service(Line(Address(path)), potential, np.array([8, 1, 1] * 2), 3)
        Server([one], patience=30.0, harvest=lambda address, moment, asked, evaluation: frames.extend(asked)).run()
        thread.join(10)
        assert not thread.is_alive()
    assert len(frames) == 3
    for n, (asked, where, cell) in enumerate(zip(requests, beads, columns, strict=True)):
        assert (frames[n].bead, frames[n].charge, frames[n].spin) == (n, 1, 2)
        assert np.allclose(frames[n].cell, cell.T, rtol=1e-14)
        assert np.allclose(frames[n].positions, where, rtol=1e-14)
        assert not np.allclose(by_hand(2.4, where, cell.T)[0], by_hand(2.4, where, cell)[0], rtol=1e-3)
        energy, forces, virial = by_hand(2.0 + 0.4, where, cell)
        members = np.array([by_hand(2.0 + 0.4 + 2.0 * d, where, cell)[0] for d in (-0.2, 0.2)])
        near, part = 1e-12, 0.0
        if add:
            atoms = frames[n].to_atoms()
            atoms.calc = pytest.importorskip("dftd3.ase").DFTD3(method="revPBE", damping="d3bj")
            near, part = 1e-6, atoms.get_potential_energy()  # ASE has an older Hartree
            assert abs(part) > 1e-2
            forces = forces + atoms.get_forces()
            virial = virial - atoms.get_volume() * atoms.get_stress(voigt=False)
        got = asked["result"]
        assert got[0] == pytest.approx((energy + part) * hartree, rel=near)
        assert np.allclose(got[1], forces.ravel() * hartree / angstrom, rtol=1e2 * near, atol=1e-14 + 1e-3 * near)
        assert np.allclose(got[2], virial * hartree, rtol=1e2 * near, atol=1e-14 + 1e-2 * near)
        assert np.allclose(got[3]["committee_pot"], (members + part) * hartree, rtol=near)
