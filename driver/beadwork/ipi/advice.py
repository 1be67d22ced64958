"""What an i-PI input should have otherwise: settings that can hang a run, or that cost speed."""

from __future__ import annotations

from collections.abc import Iterator

from beadwork.ipi.simulation import Simulation, Socket


def finished(simulation: Simulation) -> list[str]:
    """Return the sentence for a simulation that i-PI will not start, since it has its steps behind it; or nothing."""
    if simulation.step < simulation.total_steps:
        return []
    return [
        f"step {simulation.step} has reached total_steps {simulation.total_steps}: i-PI will not start; "
        "raise total_steps"
    ]


def advice(simulation: Simulation, servers: int = 1) -> list[str]:
    """Return one sentence for each setting that can hang this simulation or that costs speed.

    servers: how many share its beads.
    """
    lines = finished(simulation)
    for socket in simulation.sockets:
        count = simulation.structures(socket)
        if count == 0:
            lines.append(f"{socket.name}: no <force> uses it, so i-PI will never ask it")
            continue
        lines += [f"{socket.name}: {line}" for line in _advice(socket, count, servers)]
    return lines


def _advice(socket: Socket, count: int, servers: int) -> Iterator[str]:
    batched = socket.batch_size > 1
    share = -(-count // servers)
    # the copies made by an <ffrotations> are unknown here, and a cavity's beads come one by one whatever is set
    counted = not socket.rotated and socket.photons is None
    if socket.timeout > 0:
        yield (
            f"timeout {socket.timeout:g} s drops a client that computes for longer and sends its beads again, for "
            "ever if every step is that slow; set <timeout> 0"
        )
    if counted and servers > count:
        yield f"{servers} servers share the {count} structures of a step: some have nothing to do; start fewer"
    if counted and not batched and share > 1:
        yield (
            f"without batching, {count} structures a step need {count} connections and as many messages; "
            f"<batch_size> {share} sends them in {'one' if servers == 1 else 'one a server'} (i-PI 3.3)"
        )
    if counted and batched and socket.batch_size != share:
        yield (
            f"batch_size {socket.batch_size} does not equal the {count} structures of a step, so batches are padded "
            f"or come in turns; set <batch_size> {count}"
            if servers == 1
            else f"batch_size {socket.batch_size} does not cut the {count} structures of a step into one piece for "
            f"each of {servers} servers, so that some wait for others; set <batch_size> {share}"
        )
    if counted and not batched and socket.slots < min(count, 5):
        yield (
            f"slots {socket.slots} lets fewer clients queue than the {count} connections that will dial; "
            f"set <slots> {min(count, 5)}"
        )
    if batched and socket.matching == "lock":
        yield "matching='lock' ties beads to clients, which batching ignores; leave it out"
    if socket.exit_on_disconnect:  # which matching='lock' brings along
        yield "i-PI ends when a client disconnects, so a server that is restarted loses the run"
    if batched and socket.latency < 1e-3:
        yield (
            f"latency {socket.latency:g} s lets i-PI send a batch before all beads are queued (1.5 to 2 evaluations a "
            "step); set <latency> 1e-3"
        )
    if socket.pbc:
        yield (
            "pbc='True' folds atoms into the cell before they are sent, so that neighbour lists are rebuilt whenever "
            "one crosses the border; leave it out"
        )
