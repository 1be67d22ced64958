"""The machine and i-PI: how long it will take, memory, disk, settings that cost speed or hang, and the address."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from beadwork.doctor.finding import AMBER, GREEN, RED, Finding, refused
from beadwork.errors import ResourceError, SimulationError
from beadwork.frame import Frame
from beadwork.ipi.advice import advice
from beadwork.ipi.simulation import Simulation, Socket
from beadwork.ipi.transport import dial_name
from beadwork.observe.pace import format_duration, nanoseconds_per_day
from beadwork.potential.memory import free_memory
from beadwork.potential.potential import Potential

#: evaluations that are timed, after a first one, which compiles kernels and fills caches
TIMED_EVALUATIONS = 3
#: Å; displacements of the beads from each other and from step to step: identical structures would be evaluated once,
#: and unmoved atoms would keep their pair lists
BEAD_SPREAD, STEP_DISPLACEMENT = 0.05, 0.005
#: seconds; a longer run gets a warning
MONTH_SECONDS = 30 * 86400.0
#: processor time over wall time below which other programs use the same cores
BUSY_FRACTION = 0.7
#: a latency above this fraction of an evaluation gets a warning
LATENCY_FRACTION = 0.1
#: bytes of a line of beadwork.out
RECORD_BYTES = 100
#: bytes; the longest path of a unix socket (sun_path without its final NUL)
MAX_SOCKET_NAME = 107


def timed(potential: Potential, frames: Sequence[Frame], every: int = 1) -> tuple[float, float]:
    """Seconds of one evaluation of all frames, as they would be in a run: apart from each other, and moving.

    every: evaluations to one in which heads on one trunk say the spread of forces; in the mean over so many.
    Returns those on the wall's clock, and how much computing all our threads got done in them.
    """
    rng = np.random.default_rng(0)
    where = [frame.positions + rng.normal(0, BEAD_SPREAD, frame.positions.shape) for frame in frames]
    taken = []
    # with heads on one trunk most evaluations leave the forces of the single heads out
    kinds = (True, False) if potential.trunk and every > 1 else (True,)
    for turn in range(len(kinds) * (1 + TIMED_EVALUATIONS)):
        where = [x + rng.normal(0, STEP_DISPLACEMENT, x.shape) for x in where]
        moved = [replace(frame, positions=x) for frame, x in zip(frames, where, strict=True)]
        begin, used = time.perf_counter(), time.process_time()
        potential.evaluate(moved, force_spread=kinds[turn % len(kinds)])
        taken.append((time.perf_counter() - begin, time.process_time() - used))
    # a median: one turn that another program disturbed does not count; the first turn of each kind compiles
    several = [[median(turns) for turns in zip(*taken[k :: len(kinds)][1:], strict=True)] for k in range(len(kinds))]
    whole, between = several[0], several[-1]
    # one of so many evaluations is of the expensive kind
    wall, computing = (w / every + b * (1 - 1 / every) for w, b in zip(whole, between, strict=True))
    return wall, computing


def duration(
    simulation: Simulation,
    sockets: Sequence[Socket],
    taken: Sequence[tuple[float, float]],
    servers: int = 0,
    device: str = "cpu",
) -> Iterator[Finding]:
    """How long all steps will take, from what `timed` found for this server's part of each socket's structures."""
    step, computing = (
        sum(seconds[k] * simulation.calls(socket) for socket, seconds in zip(sockets, taken, strict=True))
        for k in (0, 1)
    )
    steps, timestep = simulation.steps, simulation.systems[0].timestep
    # at most, since i-PI's own time comes on top
    speed = f"at most {nanoseconds_per_day(timestep, step):.3g} ns/day, " if timestep else ""
    shared = f", with {servers} servers as fast as this one" if servers > 1 else ""
    text = (
        f"{step:.3g} s per step for the models{shared}: {speed}at least {format_duration(steps * step)} for {steps} "
        "steps; i-PI adds its own"
    )
    if steps * step > MONTH_SECONDS:
        yield Finding(AMBER, "time", text, "`beadwork bench` says where a step's time goes and what would help")
    else:
        yield Finding(GREEN, "time", text)
    # a GPU computes while our threads wait, so their time says nothing there
    if device == "cpu" and computing < BUSY_FRACTION * step:
        yield Finding(
            AMBER,
            "time",
            f"of those {step:.3g} s only {computing:.3g} s were our computing: other programs use these cores",
            "look with top, and ask again on a quiet machine",
        )


def memory(servers: int = 0, device: str = "cpu") -> Iterator[Finding]:
    """The largest so far, which an evaluation of all that this server gets in a step has been part of."""
    # ru_maxrss is in bytes on macOS and in kB on Linux
    unit = 1 if sys.platform == "darwin" else 1024
    peak, room = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, _room()
    where = "" if device == "cpu" else " on the host; the GPU's memory is not looked at"
    part = "this server's part of the" if servers > 1 else "the whole"
    text = f"{peak / 1e9:.2f} GB with {part} ring polymer"
    if room is None:
        yield Finding(GREEN, "memory", f"{text}{where}")
        return
    text += f", of {room / 1e9:.3g} GB that can be had{where}"
    colour = RED if peak > 0.9 * room else AMBER if peak > 0.5 * room else GREEN
    remedy = "" if colour == GREEN else "a machine with more memory, fewer beads in a batch, or --dtype float32"
    yield Finding(colour, "memory", text, remedy, ResourceError.exit_code)


def _room() -> float | None:
    """Bytes that this process may have in all: what it has, and what is free; None where that cannot be told."""
    free = free_memory("cpu")
    if free is None:
        return None
    # the second number of statm: pages that are resident now
    return free + int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def settings(
    simulation: Simulation, seconds: Mapping[str, float], servers: int = 1, served: Collection[str] = ()
) -> Iterator[Finding]:
    """What i-PI's settings do to this run. seconds: of one evaluation by socket, where that is known.

    served: the forcefields that are, by name; empty where there is only one to serve.
    """
    found = [*_unserved(simulation, served), *_settings(simulation, seconds, servers)]
    yield from found or [Finding(GREEN, "i-PI", "none of its settings costs speed, and none can hang")]


def _unserved(simulation: Simulation, served: Collection[str]) -> Iterator[Finding]:
    for name in simulation.unserved(served) if served else ():
        yield Finding(
            AMBER,
            "i-PI",
            f"{name}: a <force> uses it, and it is not served here: i-PI waits for a client there for ever",
            f"serve it too (--at {name}=ROLE), unless another program does",
        )


def _settings(simulation: Simulation, seconds: Mapping[str, float], servers: int) -> Iterator[Finding]:
    found = advice(simulation, servers)
    for one in found:
        # i-PI would end at once, and with success
        if one.key == "total_steps":
            yield Finding(RED, "i-PI", one.text, one.remedy, SimulationError.exit_code)
    known_worse = set()  # timeouts that will certainly be exceeded: the general advice about them is left out
    for socket in simulation.sockets:
        taken = seconds.get(socket.name, 0.0)
        if 0 < socket.timeout <= 2 * taken:
            known_worse.add(socket.name)
            yield Finding(
                RED,
                "i-PI",
                f"{socket.name}: timeout {socket.timeout:g} s, but an evaluation takes {taken:.2g} s: i-PI would drop "
                "us and send the same beads for ever",
                "set <timeout> 0",
                SimulationError.exit_code,
            )
        # 2 ms: what we advise ourselves, 1e-3, gets no advice
        if taken and socket.latency > max(LATENCY_FRACTION * taken, 2e-3):
            yield Finding(
                AMBER,
                "i-PI",
                f"{socket.name}: i-PI waits {socket.latency:g} s (latency) in every step of {taken:.2g} s",
                "set <latency> 1e-3",
            )
    for one in found:
        if one.key != "total_steps" and not (one.key == "timeout" and one.socket in known_worse):
            yield Finding(AMBER, "i-PI", one.text, one.remedy)
    # it is i-PI's sign to stop, and i-PI does not remove it
    leftover = simulation.directory / "EXIT"
    if leftover.exists():
        yield Finding(AMBER, "i-PI", f"{leftover} would stop i-PI before its first step", f"rm {leftover}")


def address(socket: Socket, directory: Path = Path()) -> Iterator[Finding]:
    """Whether i-PI will get its address, found without connecting, so that a running simulation is not disturbed.

    directory: where i-PI is started, from which a relative path of a unix socket counts.
    """
    path = socket.path
    if path is None:
        if socket.port in _ports():
            yield Finding(
                AMBER,
                "address",
                f"something listens on port {socket.port} of this machine",
                "right if it is the i-PI to be served; if not, give another <port>",
            )
        else:
            yield Finding(GREEN, "address", f"port {socket.port} is free on this machine")
        return
    # the system knows a path as it was bound, which may be a relative one
    names = {os.path.normpath(path), os.path.normpath(directory / path)}
    longest = max(os.fsencode(path), os.fsencode(dial_name(directory / path)), key=len)  # i-PI's word for it, and ours
    path = directory / path
    if len(longest) > MAX_SOCKET_NAME:
        yield Finding(
            RED,
            "address",
            f"{os.fsdecode(longest)} has {len(longest)} bytes; a unix socket's path holds {MAX_SOCKET_NAME}",
            "a shorter <address> or sockets_prefix",
            SimulationError.exit_code,
        )
    elif not path.parent.is_dir():
        yield Finding(
            RED,
            "address",
            f"{path.parent} is no folder",
            "make it, or change sockets_prefix",
            SimulationError.exit_code,
        )
    elif not path.exists():
        yield Finding(GREEN, "address", f"{path} is free")
    elif names & _listeners():
        yield Finding(
            AMBER,
            "address",
            f"a process listens on {path}",
            "right if it is the i-PI to be served; if not, give another <address>",
        )
    else:
        yield Finding(
            AMBER,
            "address",
            f"{path} exists and no process listens on it: an i-PI that was killed left it",
            f"rm {path} (`beadwork run` does it itself)",
        )


def outputs(simulation: Simulation) -> Iterator[Finding]:
    """Whether i-PI can open what it is to write; nothing where it can."""
    try:
        simulation.check_outputs()
    except SimulationError as error:
        yield refused("outputs", error)


def _listeners() -> set[str]:
    """Unix sockets with a listener, by the paths with which they were bound (Linux); else none."""
    table = Path("/proc/net/unix")
    rows = [line.split(maxsplit=7) for line in table.read_text().splitlines()[1:]] if table.exists() else []
    # a socket without a path has seven columns; 0x10000 is the kernel's flag of one that listens (__SO_ACCEPTCON)
    return {os.path.normpath(row[7]) for row in rows if len(row) == 8 and int(row[3], 16) & 0x10000}


def _ports() -> set[int]:
    """TCP ports with a listener (Linux); empty elsewhere."""
    tables = [table for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if table.exists()]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    # 0A is the state of a socket that listens; addresses and ports are hexadecimal
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


def disk(simulation: Simulation, out: Path, kept: int) -> Iterator[Finding]:
    """What i-PI and beadwork will write, against what is free where it goes. out: our folder. kept: frames, at most."""
    calls = sum(simulation.calls(socket) for socket in simulation.sockets)
    frames = kept * 100 * max(len(system.numbers) for system in simulation.systems)
    need = simulation.steps * (simulation.bytes_per_step + RECORD_BYTES * calls) + frames
    # the run will make the folder; until then its file system is that of the folder above
    while not out.exists():
        out = out.parent
    # i-PI and beadwork may write to two disks; if the one with less room holds all of it, either does
    free = min(shutil.disk_usage(folder).free for folder in (out, simulation.directory))
    text = f"about {_size(need)} will be written, {_size(free)} are free"
    colour = RED if need > free else AMBER if need > free / 2 else GREEN
    remedy = "" if colour == GREEN else "write less often (stride of <trajectory> and <properties>), or make room"
    yield Finding(colour, "disk", text, remedy, ResourceError.exit_code)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
