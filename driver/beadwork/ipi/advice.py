"""What an i-PI input should have otherwise: settings that can hang a run, or that cost speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from beadwork.ipi.simulation import Simulation, Socket


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting that should be otherwise.

    key: which it is, for code that has something of its own to say of it: an element or attribute of i-PI's, or what is
    wrong with the whole. what: what is wrong with it. remedy: what to do, empty where there is nothing. socket: the
    ffsocket that it belongs to, None where it is of the whole simulation.
    """

    key: str
    what: str
    remedy: str = ""
    socket: str | None = None

    @property
    def text(self) -> str:
        """What is wrong, and of which ffsocket."""
        return self.what if self.socket is None else f"{self.socket}: {self.what}"

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


def advice(simulation: Simulation, servers: int = 1) -> list[Advice]:
    """Return what to say of each setting that can hang this simulation or that costs speed.

    servers: how many share its beads.
    """
    found = []
    if simulation.step >= simulation.total_steps:
        reached = f"step {simulation.step} has reached total_steps {simulation.total_steps}: i-PI will not start"
        found.append(Advice("total_steps", reached, "raise total_steps"))
    for socket in simulation.sockets:
        count = simulation.structures(socket)
        if count == 0:
            found.append(Advice("unused", "no <force> uses it, so i-PI will never ask it", socket=socket.name))
            continue
        found += [Advice(*one, socket=socket.name) for one in _advice(socket, count, servers)]
    return found


def _advice(socket: Socket, count: int, servers: int) -> Iterator[tuple[str, str, str]]:
    """Key, what is wrong, and the remedy."""
    batched = socket.batch_size > 1
    share = -(-count // servers)
    # the copies made by an <ffrotations> are unknown here, and a cavity's beads come one by one whatever is set
    counted = not socket.rotated and socket.photons is None
    if socket.timeout > 0:
        yield (
            "timeout",
            f"timeout {socket.timeout:g} s drops a client that computes for longer and sends its beads again, for "
            "ever if every step is that slow",
            "set <timeout> 0",
        )
    if counted and servers > count:
        yield (
            "servers",
            f"{servers} servers share the {count} structures of a step: some have nothing to do",
            "start fewer",
        )
    if counted and not batched and share > 1:
        yield (
            "batch_size",
            f"without batching, {count} structures a step need {count} connections and as many messages",
            f"<batch_size> {share} sends them in {'one' if servers == 1 else 'one a server'} (i-PI 3.3)",
        )
    if counted and batched and socket.batch_size != share:
        yield (
            "batch_size",
            f"batch_size {socket.batch_size} does not equal the {count} structures of a step, so batches are padded "
            "or come in turns"
            if servers == 1
            else f"batch_size {socket.batch_size} does not cut the {count} structures of a step into one piece for "
            f"each of {servers} servers, so that some wait for others",
            f"set <batch_size> {share}",
        )
    if counted and not batched and socket.slots < min(count, 5):
        yield (
            "slots",
            f"slots {socket.slots} lets fewer clients queue than the {count} connections that will dial",
            f"set <slots> {min(count, 5)}",
        )
    if batched and socket.matching == "lock":
        yield "matching", "matching='lock' ties beads to clients, which batching ignores", "leave it out"
    if socket.exit_on_disconnect:  # which matching='lock' brings along
        yield (
            "exit_on_disconnect",
            "i-PI ends when a client disconnects, so a server that is restarted loses the run",
            "",
        )
    if batched and socket.latency < 1e-3:
        yield (
            "latency",
            f"latency {socket.latency:g} s lets i-PI send a batch before all beads are queued (1.5 to 2 evaluations "
            "a step)",
            "set <latency> 1e-3",
        )
    if socket.pbc:
        yield (
            "pbc",
            "pbc='True' folds atoms into the cell before they are sent, so that neighbour lists are rebuilt whenever "
            "one crosses the border",
            "leave it out",
        )
