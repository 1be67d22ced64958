"""beadwork's own wire, gather, reply and extras, with models that answer zero. Arguments: XML, committee members."""

from __future__ import annotations

import sys

from beadwork.ipi.simulation import read_simulation
from beadwork.ipi.transport import Address, Line
from beadwork.potential.analytic import FreeParticle
from beadwork.potential.potential import Potential
from beadwork.serve.server import Server
from beadwork.serve.service import Service

simulation = read_simulation(sys.argv[1])
socket = simulation.socket()
numbers = simulation.numbers(socket)
line = Line(Address(path=socket.path), 1, socket.mode == "shm", len(numbers))
potential = Potential(FreeParticle(), [FreeParticle() for _ in range(int(sys.argv[2]))])
Server([Service(line, potential, numbers, simulation.structures(socket))]).run()
