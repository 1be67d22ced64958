"""beadwork's client where other people's tests expect theirs: analytic potentials behind the engines' contract.

As a program it takes the options of i-PI's Fortran driver, `i-pi-driver`, as far as its tests use them, or with
`--wait SOCKET` answers for many of these.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
from pathlib import Path

import numpy as np

import beadwork.serve.server
from beadwork.errors import ConnectionLost
from beadwork.events import Evaluated, Event
from beadwork.frame import FloatArray, IntArray
from beadwork.ipi.messages import HangUp, Incoming, PosData
from beadwork.ipi.transport import Address, Line, Peer
from beadwork.potential.analytic import FreeParticle, Harmonic
from beadwork.potential.engine import Energies, Engine
from beadwork.potential.graph import Graph
from beadwork.potential.potential import Potential
from beadwork.serve.server import Server
from beadwork.serve.service import Service
from beadwork.units import BOHR, HARTREE

#: a file that gets a character for every structure we answer: the proof that it was our client that was tested
COUNT = "BEADWORK_SUITES_COUNT"
#: seconds in which the tests' server must be there
PATIENCE = 20.0


class Gas(FreeParticle):
    """The ideal gas as i-PI's Fortran driver has it: its virial is 1e-200 Hartree.

    A zero virial is what i-PI takes for a code that has none.
    """

    name = "gas"

    def evaluate(self, graph: Graph) -> Energies:
        """Zeros, but for that."""
        zeros = super().evaluate(graph)
        return Energies(zeros.energies, zeros.forces, zeros.virials + 1e-200 * HARTREE)


class Unknown(Server):
    """Serves a system that no input file describes, over one connection, until that ends: as those drivers do."""

    over = False

    def _handle(self, events: list[tuple[Peer, Incoming]]) -> None:
        for peer, event in events:
            service = self._of[id(peer.line)]
            if isinstance(event, PosData) and not len(service.numbers):
                service.numbers = np.ones(event.positions.shape[1], dtype=np.int_)
            self.over = self.over or isinstance(event, HangUp)
        super()._handle(events)


def serve(
    engine: Engine, address: Address, *, numbers: IntArray | None = None, periodic: bool = False, shared: bool = False
) -> None:
    """Answer whoever listens there until it hangs up or says EXIT. Raises BeadworkError."""
    count = os.environ.get(COUNT, os.devnull)

    def watch(event: Event) -> None:
        if isinstance(event, Evaluated):
            with open(count, "a") as file:
                file.write("x" * event.evaluated)

    service = Service(
        Line(address, shared=shared),
        Potential(engine),
        np.zeros(0, dtype=np.int_) if numbers is None else numbers,
        None,
        ring_polymer=False,
        periodic=periodic,
    )
    server = Unknown([service], patience=PATIENCE, watch=watch, stopped=lambda: server.over)
    server.run()


def ase_units() -> None:
    """Convert with ASE's constants, which differ from i-PI's in the ninth digit: its tests ask for eleven."""
    from ase import units

    beadwork.serve.server.BOHR = units.Bohr
    beadwork.serve.server.HARTREE = units.Hartree
    beadwork.serve.server.FORCE = units.Hartree / units.Bohr


class Calculated:
    """Any ASE calculator behind the engines' contract, a system after the other."""

    cutoff = 0.0
    elements: tuple[int, ...] = ()

    def __init__(self, calculator: object, stress: bool) -> None:
        self.name = type(calculator).__name__
        self._calculator = calculator
        self._stress = stress

    def evaluate(self, graph: Graph) -> Energies:
        """Energies, forces and, where they were asked for, virials."""
        from ase import Atoms

        energies: list[float] = []
        forces: list[FloatArray] = []
        virials: list[FloatArray] = []
        for s in range(len(graph)):
            own = slice(graph.ptr[s], graph.ptr[s + 1])
            atoms = Atoms(graph.numbers[own], graph.positions[own], cell=graph.cells[s], pbc=graph.pbc[s])
            atoms.calc = self._calculator
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces())
            virials.append(-atoms.get_volume() * atoms.get_stress(voigt=False) if self._stress else np.zeros((3, 3)))
        return Energies(np.array(energies), np.concatenate(forces), np.array(virials))


def engine(model: str, parameters: list[float]) -> Engine:
    """The potential of this name; parameters in atomic units."""
    if model == "gas":
        return Gas()
    if model in ("harm3d", "harmonic") and len(parameters) == 1:
        return Harmonic(parameters[0] * HARTREE / BOHR**2)
    raise SystemExit(f"no potential {model!r} with {len(parameters)} parameters in here: gas, or harm3d with one")


def wait(path: str) -> None:
    """Fork a client for every `thin.py` that asks at this unix socket: what takes seconds has been imported by then."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended but thin.py, over its connection
    while True:
        asking, _ = listener.accept()
        told = json.loads(asking.makefile().readline())
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # beadwork waits for a process of its own
            os.environ[COUNT] = told["count"]
            code = 1
            try:
                code = main(told["arguments"])
            finally:
                asking.sendall(bytes([code]))
                os._exit(code)
        asking.close()


def main(arguments: list[str]) -> int:
    """`i-pi-driver -m harm3d -h ADDRESS -u -o 0.1`."""
    parser = argparse.ArgumentParser(prog="i-pi-driver", add_help=False)
    parser.add_argument("-u", "--unix", action="store_true")
    parser.add_argument("-h", "-a", "--address", default="localhost")
    parser.add_argument("-p", "--port", type=int, default=31415)
    parser.add_argument("-S", "--sockets_prefix", default="/tmp/ipi_")
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-o", "--param", default="")
    parser.add_argument("-v", "--verbose", action="count")
    parser.add_argument("--shm", action="store_true")
    options = parser.parse_args(arguments)
    where = (
        Address(path=Path(options.sockets_prefix + options.address))
        if options.unix or options.shm
        else Address(host=options.address, port=options.port)
    )
    try:
        serve(engine(options.model, [float(x) for x in options.param.split(",") if x]), where, shared=options.shm)
    except ConnectionLost as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--wait":
        wait(sys.argv[2])
    sys.exit(main(sys.argv[1:]))
