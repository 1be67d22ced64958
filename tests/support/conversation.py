"""i-PI's own side of a conversation: its Driver classes on one end of a socket pair, our Machine on the other."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field

import numpy as np
from ipi.engine.forcefields import ForceRequest
from ipi.interfaces.sockets import Driver, SHMDriver

from beadwork.ipi.messages import ForceReady, PosData
from beadwork.ipi.protocol import Machine

ATOMS = 5


@dataclass
class Talk:
    """What one conversation left: bytes that i-PI sent, structures we saw, requests as i-PI has them answered."""

    sent: bytes = b""
    seen: list[PosData] = field(default_factory=list)
    answered: list[ForceRequest] = field(default_factory=list)
    machine: Machine | None = None


def answer(data: PosData) -> ForceReady:
    """Something that depends on every number of the request and has a virial that is not symmetric by chance."""
    count = len(data.positions)
    virials = np.arange(9.0).reshape(1, 3, 3) + data.cells.sum(axis=(1, 2))[:, None, None]
    extras = [f'{{"bead": {k}, "name": "é"}}'.encode() for k in range(count)]
    return ForceReady((data.positions**2).sum(axis=(1, 2)), -2.0 * data.positions, virials, extras)


def request(rng: np.random.Generator, identity: int) -> ForceRequest:
    """One bead as i-PI's forcefield queues it."""
    cell = np.triu(rng.normal(size=(3, 3))) + 20 * np.eye(3)
    fields = {
        "id": identity,
        "pos": rng.normal(size=3 * ATOMS) * 30,
        "active": np.arange(3 * ATOMS),
        "cell": (cell, np.linalg.inv(cell)),
        "pars": " ",
        "result": None,
        "status": "Queued",
        "start": -1,
        "offset": 0.0,
        "t_queued": 0,
        "t_dispatched": 0,
        "t_finished": 0,
    }
    return ForceRequest(fields)


def converse(mode: str, batch: int, *, steps: int = 3, chunk: int = 1 << 16) -> Talk:
    """Let i-PI's own code drive our Machine for some steps. mode: consolidated, legacy or shm."""
    theirs, ours = socket.socketpair()
    theirs.settimeout(5.0)
    driver = SHMDriver(theirs) if mode == "shm" else Driver(theirs)
    driver.batch_size = batch
    rng = np.random.default_rng(7)
    talk = Talk(machine=Machine(shared=mode == "shm", atoms=ATOMS))

    def ipi() -> None:
        driver.get_status()
        for step in range(steps):
            if batch > 1:
                beads = [request(rng, k) for k in range(max(1, batch - step))]  # later batches come padded
                driver.dispatch_send_batch(beads)
                driver.dispatch_recv_batch(beads)
            elif mode == "legacy":
                beads = [request(rng, step)]
                driver.dispatch(beads[0])
            else:
                beads = [request(rng, step)]
                driver.dispatch_send(beads[0])
                driver.dispatch_recv(beads[0])
            talk.answered += beads
        driver.shutdown()

    thread = threading.Thread(target=ipi, daemon=True)
    thread.start()
    machine = talk.machine
    assert machine is not None
    while True:
        data = ours.recv(chunk)
        talk.sent += data
        machine.receive(data)
        while (event := machine.next_event()) is not None:
            if isinstance(event, PosData):
                talk.seen.append(event)
                machine.answer(answer(event))
        if machine.owes:
            ours.sendall(machine.data_to_send())
        if machine.state.name == "CLOSED":
            break
    thread.join(5)
    machine.close()
    for end in (theirs, ours, driver):
        end.close()
    return talk
