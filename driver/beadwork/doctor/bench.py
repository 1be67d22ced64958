"""Measure the parts of a step of the user's simulation, in another folder, and say what would make it faster.

    print(format_bench(bench(config, steps=20, threads=set_threads(2))))

i-PI runs in a temporary folder, at addresses of its own, so that a running simulation is not disturbed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from xml.etree import ElementTree

from beadwork.config import ModelSettings, ServeConfig
from beadwork.errors import SimulationError
from beadwork.events import Event
from beadwork.ipi.advice import advice
from beadwork.ipi.named_files import forcefield_files
from beadwork.ipi.simulation import SOCKET_TAGS, Simulation, as_xml, read_simulation, set_total_steps
from beadwork.json_form import Form, Part
from beadwork.observe.pace import TIME_PARTS, nanoseconds_per_day
from beadwork.observe.progress import format_event

#: a part that takes more than this fraction of a step gets a hint
LARGE_FRACTION = 0.2


@dataclass(frozen=True)
class Piece(Part):
    """A part of a step."""

    name: Annotated[str, "idle (i-PI, and waiting for it), graph, reduce, pack, send, aside, or a model and its engine"]
    told: Annotated[str, "the same in words"]
    seconds: Annotated[float, "s in a step, mean"]
    share: Annotated[float, "of the step; they add up to 1"]


@dataclass(frozen=True)
class Bench(Form):
    """`beadwork bench --json`."""

    KIND = "bench"
    steps: Annotated[int, "timed, without the first"]
    seconds_per_step: Annotated[float, "s, mean"]
    parts: Annotated[list[Piece], "of a step, the longest first"]
    evaluations_per_step: Annotated[float, "calls in which i-PI asked for the forces of one step; 1 is best"]
    structures_per_second: Annotated[float, "structures evaluated in a second"]
    time_step_fs: Annotated[float | None, "fs, of the simulation"]
    ns_per_day: Annotated[float | None, "ns of simulated time in a day"]
    hints: Annotated[list[str], "what would help, in words"]
    notes: Annotated[list[str], "what was said of engines and threads, in words"]


def bench(config: ServeConfig, steps: int, threads: str) -> Bench:
    """Run so many steps and time them. threads: the message of `set_threads`.

    Raises SimulationError where i-PI does not finish them, or the BeadworkError with which the run ends.
    """
    simulation = read_simulation(Path(config.simulation), config.sockets_prefix)
    with tempfile.TemporaryDirectory(prefix="beadwork-bench-") as folder:
        summary, notes = run(config, simulation, steps, threads, Path(folder))
    return measured(summary, simulation, config, notes, config.servers, config.member_forces)


def run(
    config: ServeConfig, simulation: Simulation, steps: int, threads: str, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Run in a folder, as `bench` does; return the summary, and the messages about engines and threads."""
    from beadwork.serve.session import Session

    named = [*simulation.files, *forcefield_files(simulation)]
    files = [file for file in named if not file.is_absolute()]
    # as deep as the files' names go up (../x), so that their copies stay inside the folder
    folder = folder.joinpath(*["in"] * max((file.parts.count("..") for file in files), default=0))
    folder.mkdir(parents=True, exist_ok=True)
    shorten(simulation, steps, folder / "bench.xml")
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(simulation.directory / file, folder / file)
    for output in read_simulation(folder / "bench.xml", directory=folder).outputs:
        (folder / output.name).parent.mkdir(parents=True, exist_ok=True)
    events: list[Event] = []
    # no queue: frames of a few steps of practice are not those that the user wants labelled
    asked = replace(_elsewhere(config), simulation="bench.xml", queue=None, out="ours")
    # the run's own words say the same as the report below, in another form
    with _inside(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = Session(asked, threads, [events.append]).run(start_ipi=True)
        summary = json.loads(Path("ours", "summary.json").read_text())
        if code or not summary["steps"]:
            # before the temporary folder is gone, and i-PI's log with it
            log = Path("ours", "i-pi.log").read_text(errors="replace").strip().splitlines()
            raise SimulationError(
                f"i-PI ended with code {code} after {summary['steps']} steps: {' | '.join(log[-2:])}",
                f"does i-pi {simulation.path.name} run by itself?",
            )
    return summary, [note for event in events for note in format_event(event).splitlines()]


def shorten(simulation: Simulation, steps: int, file: Path) -> None:
    """Write the input again as `file`: so many steps from its first one, and sockets that nobody else listens on."""
    root = ElementTree.fromstring(as_xml(simulation.path))  # i-PI's own classes have read it before
    # those that a RESTART has behind it count too
    set_total_steps(root, simulation.step + steps)
    for output in root.iter("output"):  # a prefix may be a path to the outputs of the real run
        output.set("prefix", "bench")
    for k, entry in enumerate(entry for tag in SOCKET_TAGS for entry in root.iter(tag)):
        address = entry.find("address")
        if address is None:
            address = ElementTree.SubElement(entry, "address")
        if entry.get("mode", "inet") == "inet":
            port = entry.find("port")
            if port is None:
                port = ElementTree.SubElement(entry, "port")
            # at the input's own address a run of the user's may be listening, and its server would be answered
            address.text, port.text = "localhost", str(_free_port())
        else:
            # by process and number: another bench at the same time has other names
            address.text = f"beadwork-bench-{os.getpid()}-{k}"
    ElementTree.ElementTree(root).write(file, encoding="unicode")


def measured(
    summary: Mapping[str, Any],
    simulation: Simulation,
    models: ModelSettings,
    notes: Sequence[str] = (),
    servers: int = 0,
    member_forces: bool = False,
) -> Bench:
    """The parts of a step, the simulated time per day, and hints, from the summary of a run."""
    total = summary["seconds_per_step"]
    parts = sorted(summary["seconds_per_step_by_part"].items(), key=lambda part: -part[1])
    timestep = simulation.systems[0].timestep
    return Bench(
        steps=summary["steps"],
        seconds_per_step=total,
        parts=[
            Piece(name, TIME_PARTS[name][0] if name in TIME_PARTS else name, seconds, seconds / total)
            for name, seconds in parts
        ],
        evaluations_per_step=summary["evaluations_per_step"],
        # summary.json leaves step 0 out of both, which loads and compiles
        structures_per_second=summary["structures_evaluated"] / summary["steps"] / total,
        time_step_fs=timestep or None,
        ns_per_day=nanoseconds_per_day(timestep, total) if timestep else None,
        hints=[
            *map(str, advice(simulation, servers or 1)),
            *_hints(summary, simulation, models, member_forces),
        ],
        notes=list(notes),
    )


def format_bench(found: Bench) -> str:
    """The same as text."""
    lines = [*found.notes, f"{found.steps} steps, {found.seconds_per_step:.4g} s each:"]
    lines += [f"  {1e3 * part.seconds:9.2f} ms  {100 * part.share:5.1f} %  {part.told}" for part in found.parts]
    lines.append(f"{found.structures_per_second:.4g} structures a second")
    if found.ns_per_day is not None:
        lines.append(f"{found.ns_per_day:.4g} ns/day at {found.time_step_fs:g} fs per step")
    return "\n".join([*lines, "what would help:", *(f"  - {hint}" for hint in found.hints)])


def _hints(
    summary: Mapping[str, Any], simulation: Simulation, models: ModelSettings, member_forces: bool
) -> Iterator[str]:
    parts = summary["seconds_per_step_by_part"]
    total = summary["seconds_per_step"]
    share = {name: seconds / total for name, seconds in parts.items()}
    engines = {name: part for name, part in share.items() if name not in TIME_PARTS}
    batched = any(entry.batch_size > 1 for entry in simulation.sockets)
    evaluations = summary["evaluations_per_step"]
    # 1 where every step comes as one batch; i-PI's polling thread often wakes before all beads are queued
    if batched and evaluations > 1.1:
        slowest = max(entry.latency for entry in simulation.sockets)
        yield (
            f"i-PI sends a step in {evaluations:.2f} pieces on average: with a <latency> of {10 * slowest:g} (it is "
            f"{slowest:g} s) more of its beads are queued when it looks; it then waits that long in every step"
        )
    if share.get("idle", 0) > LARGE_FRACTION:
        yield (
            f"{100 * share['idle']:.0f} % of the time is i-PI's: write less often (stride of <properties> and "
            "<trajectory>), and see what else runs on this machine"
        )
    # on a GPU the native engine needs a package of its own (docs/running.md)
    if any("(torchscript" in name for name in engines) and models.device == "cpu":
        yield "a model runs as TorchScript; as native it would be several times faster (see above why it does not)"
    if sum(engines.values()) > 0.5 and models.dtype == "float64":
        yield "the models take most of the time; --dtype float32 is faster: hold its forces to float64 first"
    if share.get("pack", 0) > LARGE_FRACTION and member_forces:
        yield "the members' forces in the extras are costly; without --member-forces only their energies are sent"
    if share.get("graph", 0) > LARGE_FRACTION:
        yield "the graph takes much of the time: are other programs using these cores?"
    if sum(engines.values()) > 1 - LARGE_FRACTION:
        yield "the rest is close to its minimum: only smaller models, fewer members or a faster machine would help"


def _elsewhere(config: ServeConfig) -> ServeConfig:
    """The same with paths that hold in any folder."""

    def absolute(name: str) -> str:
        return str(Path(name).absolute())

    baseline = None if config.baseline is None else absolute(config.baseline)
    delta = [absolute(name) for name in config.delta]
    also = {role: absolute(name) for role, name in config.also.items()}
    # without metrics: the real run may have that port; no host: this i-PI runs here, wherever the real one does
    return replace(config, baseline=baseline, delta=delta, also=also, host=None, metrics=None)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])
