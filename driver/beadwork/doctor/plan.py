"""`beadwork plan`: how many beads, which springs, time steps and contraction hold a stated error, as lines for the XML.

    print(format_plan(plan(config, Asked(), threads)))

`curvature` measures the vibrations of the user's structure and what an evaluation costs, `harmonic` says which errors a
plan has for these, `search` finds the cheapest that hold.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import numpy as np

from beadwork.config import ServeConfig
from beadwork.digits import with_bar
from beadwork.doctor import bench
from beadwork.doctor.curvature import cost, vibrations
from beadwork.doctor.harmonic import quantum, without_barriers
from beadwork.doctor.plan_xml import beyond, changed, colored_noise, plan_of, xml_lines
from beadwork.doctor.search import Costs, Judged, Search
from beadwork.errors import SimulationError
from beadwork.frame import FloatArray
from beadwork.ipi.outputs import read_table
from beadwork.ipi.simulation import Simulation, System, read_simulation
from beadwork.json_form import Form, Part
from beadwork.potential.load import load_for
from beadwork.potential.potential import Potential

UNKNOWN = (
    "errors are those of harmonic vibrations about this structure; a distribution (g(r), a proton's) is not looked at",
    "whether this structure is a usual one: of a cluster of a few atoms errors differ from frame to frame by half of "
    "themselves, so look at several frames of a run, and hold --measure against their mean",
    "averages over an element: the few atoms of a solute can need more beads than it (look at --json, or plan for a "
    "cluster around it)",
    "PIGLET where vibrations are anharmonic, for which it comes last: hydrogens of the shipped water lacked some 5 % "
    "of their kinetic energy in a run, where less than 1 % is told here; hold it against economised beads",
    "how fast an average converges: a longer time step and another thermostat change that too",
    "dynamics: economised springs, PIGLET and contraction are for averages; spectra want ordinary springs",
    "pressures, and the volume of a cell that moves",
    "Δ that mixes vibrations: a contraction is judged by what Δ does to each of them",
    "a global thermostat of the centroid (pile_g): it is judged as one on each atom (pile_l), which the lines have",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """error: of kinetic energies and the potential, relative. force_error: of mean squared forces. piglet: an i-PI
    input with the matrices of an nm_gle thermostat. measure: steps of the cheapest plan with real i-PI; 0 for none.
    """

    error: float = 0.01
    force_error: float = 0.03
    piglet: Path | None = None
    measure: int = 0


@dataclass(frozen=True)
class Option(Part):
    """One way to run the simulation."""

    beads: Annotated[int, "of the ring polymer"]
    springs: Annotated[str, "ordinary, eco or piglet"]
    time_step_fs: Annotated[float, "fs, of the baseline"]
    outer_fs: Annotated[float, "fs, of Δ: i-PI's own step"]
    delta_beads: Annotated[int, "on which Δ is evaluated"]
    cayley: Annotated[bool, "whether the springs are propagated by Cayley's transform"]
    splitting: Annotated[str, "baoab or obabo"]
    harmonic_only: Annotated[
        bool, "whether nothing bounds its error where vibrations are anharmonic, as of PIGLET: such plans come last"
    ]
    ns_per_day: Annotated[float, "ns in a day, of the models alone"]
    error: Annotated[dict[str, float | None], "relative, signed; null where the time step is not stable"]
    judged: Annotated[dict[str, float | None], "the same of beads, contraction and time step added without signs"]
    xml: Annotated[list[str], "lines for the input and the TOML file"]


@dataclass(frozen=True)
class Measured(Part):
    """The cheapest plan with real i-PI."""

    steps: Annotated[int, "timed, without the first"]
    seconds_per_step: Annotated[float, "s, mean"]
    ns_per_day: Annotated[float, "ns in a day, with i-PI's own part"]
    drift: Annotated[float | None, "eV/atom/ps, of the conserved quantity"]
    kinetic: Annotated[dict[str, float], "eV/atom by element, mean of the second half"]
    kinetic_error: Annotated[dict[str, float | None], "eV/atom, statistical, from eight blocks"]


@dataclass(frozen=True)
class Planned(Form):
    """`beadwork plan --json`."""

    KIND = "plan"
    atoms: Annotated[dict[str, int], "by element"]
    temperature: Annotated[float, "K"]
    highest: Annotated[float, "cm^-1, of the vibrations"]
    kinetic: Annotated[dict[str, float], "eV/atom by element, exact for these vibrations"]
    seconds: Annotated[dict[str, list[float]], "s of an evaluation, by part: a, b of a + b x structures"]
    error: Annotated[float, "allowed, of kinetic energies and potential"]
    force_error: Annotated[float, "allowed, of mean squared forces"]
    now: Annotated[Option | None, "the input as it is; null where it is none of the plans that are known"]
    plans: Annotated[list[Option], "that hold, cheapest first; what is harmonic_only last"]
    measured: Annotated[Measured | None, "null without --measure"]
    unknown: Annotated[list[str], "what this does not know, in words"]
    notes: Annotated[list[str], "what was said of engines and threads, in words"]


def plan(config: ServeConfig, asked: Asked, threads: str) -> Planned:
    """Measure and search. Raises SimulationError for an input that this cannot plan for."""
    simulation = read_simulation(Path(config.simulation), config.sockets_prefix)
    roles = dict(config.at) or {simulation.socket().name: "sum"}
    system = _system(simulation, config, roles)
    temperature = float(system.temperature or 0)
    noise = None if asked.piglet is None else colored_noise(asked.piglet, temperature)
    potential = load_for(config)
    potential.check_species(system.numbers)
    frame = system.frame(periodic=config.periodic)
    notes = [threads, *potential.select_backends(frame), *potential.fit(frame, config.device, 16)]
    found_modes = vibrations(potential, frame, system.names, system.masses)
    modes, barriers = without_barriers(found_modes, temperature)
    exact = 3 * quantum(modes.omega2, temperature)
    search = Search(modes, _costs(potential, config, system), temperature, noise)
    now = plan_of(simulation, system, roles)
    found = search.cheapest(asked.error, asked.force_error)
    measured = measure(config, simulation, found[0], asked, threads) if asked.measure and found else None
    parts = {"sum": search.costs.whole, "baseline": search.costs.baseline, "delta": search.costs.delta}

    def option(judged: Judged) -> Option:
        plan = judged.plan
        return Option(
            plan.beads,
            plan.springs,
            plan.timestep,
            plan.outer,
            plan.delta_beads,
            plan.cayley,
            plan.splitting,
            plan.harmonic_only,
            judged.speed,
            dict(judged.errors),
            dict(judged.judged),
            list(xml_lines(plan, simulation, config, asked.piglet)),
        )

    return Planned(
        dict(modes.counts),
        temperature,
        modes.highest,
        {name: float(weight @ exact) for name, weight in modes.weights.items()},
        {name: [part.first, part.each] for name, part in parts.items() if part is not None},
        asked.error,
        asked.force_error,
        None if now is None else option(search.judge(now)),
        [option(judged) for judged in found],
        measured,
        [
            *map(_barrier, barriers),
            *UNKNOWN,
            *([] if measured else ["what i-PI itself takes: --measure STEPS runs the cheapest with it"]),
        ],
        notes,
    )


def _barrier(height: float) -> str:
    return f"a barrier of curvature {height:.0f}i cm^-1 is left out: nothing harmonic holds for it (a shared proton?)"


def _system(simulation: Simulation, config: ServeConfig, roles: Mapping[str, str]) -> System:
    """The one system that this can plan for. Raises SimulationError."""
    names = set(roles)
    system = simulation.systems[0]
    if len(simulation.systems) > 1:
        raise SimulationError(f"{simulation.path} has {len(simulation.systems)} systems", "plan for one of them")
    if system.temperature is None:
        raise SimulationError(f"{simulation.path} has no temperature", "give the <ensemble> one")
    served = [simulation.socket(name) for name in sorted(names)]
    if (
        any(socket.active is not None or socket.parent or socket.photons is not None for socket in served)
        or sorted(part.forcefield for part in system.forces) != sorted(names)
        or system.bias
        or not system.numbers.all()
    ):
        raise SimulationError(
            f"in {simulation.path} more acts on the atoms than the forcefields {', '.join(sorted(names))}, or on some",
            "plan with an input in which these models alone move all atoms",
        )
    alone = config.baseline is None or not config.delta
    if sorted(roles.values()) not in (["sum"], ["baseline", "delta"]) and not (alone and len(roles) == 1):
        raise SimulationError(
            f"the roles in at are {', '.join(sorted(roles.values()))}, and together they are not the sum of the models",
            "plan with the sum, or with one baseline and one delta",
        )
    for what, remedy in beyond(simulation, system):
        raise SimulationError(what, remedy)
    return system


def _costs(potential: Potential, config: ServeConfig, system: System) -> Costs:
    frame, every = system.frame(periodic=config.periodic), config.force_spread_every
    whole = cost(potential, frame, every)
    # a baseline that is weighted is no sum of two forcefields
    if potential.baseline is None or not potential.models or potential.weighs:
        return Costs(whole)
    apart = (potential.without_delta(), potential.without_baseline())
    return Costs(whole, *(cost(part, frame, every) for part in apart))


def measure(config: ServeConfig, simulation: Simulation, judged: Judged, asked: Asked, threads: str) -> Measured:
    """Run a plan with real i-PI: seconds of a step, drift of the conserved quantity, kinetic energies in the last half.

    Raises what `bench.run` raises.
    """
    root = changed(judged.plan, simulation, config, asked.piglet)
    output = root.find("output")
    names = list(dict.fromkeys(simulation.systems[0].names))
    columns = ", ".join(["step", "conserved{electronvolt}", *(f"kinetic_cv({n}){{electronvolt}}" for n in names)])
    if output is not None:
        root.remove(output)
    root.insert(
        0, ElementTree.fromstring(f"<output><properties filename='out' stride='1'>[{columns}]</properties></output>")
    )
    roles = {"baseline": "baseline", "delta": "delta"} if judged.plan.apart else {}
    with tempfile.TemporaryDirectory(prefix="beadwork-plan-") as name:
        folder = Path(name)
        ElementTree.ElementTree(root).write(folder / "plan.xml", encoding="unicode")
        planned = read_simulation(folder / "plan.xml", directory=simulation.directory)
        summary, _ = bench.run(replace(config, at=roles), planned, asked.measure, threads, folder / "run")
        values = read_table(next(folder.rglob("bench.out")))[1]
    half = values[len(values) // 2 :]
    counts = Counter(simulation.systems[0].names)
    blocks = np.array([block[:, 2:].mean(axis=0) for block in np.array_split(half, min(8, len(half)))])
    many = np.array([counts[name] for name in names])
    bars = blocks.std(axis=0, ddof=1) / np.sqrt(len(blocks)) if len(blocks) > 1 else np.full(len(names), np.nan)
    return Measured(
        summary["steps"],
        summary["seconds_per_step"],
        86400e-6 * judged.plan.outer / summary["seconds_per_step"],
        _slope(values[:, 1]) / judged.plan.outer * 1000 / sum(counts.values()),
        dict(zip(names, (blocks.mean(axis=0) / many).tolist(), strict=True)),
        dict(zip(names, (bars / many).tolist(), strict=True)),
    )


def _slope(values: FloatArray) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else math.nan


def format_plan(found: Planned) -> str:
    """The same as text."""
    return "\n".join(_text(found))


def _text(found: Planned) -> Iterator[str]:
    yield from filter(None, found.notes)
    atoms = ", ".join(f"{count} {name}" for name, count in found.atoms.items())
    yield f"{atoms} at {found.temperature:g} K; vibrations up to {found.highest:.0f} cm^-1"
    yield "an evaluation of S structures: " + "; ".join(
        f"{name} {1e3 * first:.3g} + {1e3 * each:.3g} S ms" for name, (first, each) in found.seconds.items()
    )
    yield (
        f"wanted: kinetic energies T and potential V within {_percent(found.error)}, mean squared forces F² within "
        f"{_percent(found.force_error)}; below are the errors of beads, contraction and time step, added without signs"
    )
    yield ""
    rows = [("now", found.now), *((str(k), option) for k, option in enumerate(found.plans, 1))]
    yield from _table([(name, option) for name, option in rows if option is not None])
    if any(option.harmonic_only for option in found.plans):
        yield "* last, whatever its speed: made for harmonic vibrations, and off by an unknown error where they are not"
    if found.now is None:
        yield "the input as it is cannot be judged: its thermostat, forces or time steps are none of those above"
    if not found.plans:
        yield "no plan holds that: ask for less (--error, --force-error), or look at the structure"
    for number, option in enumerate(found.plans, 1):
        yield f"\n{number}:"
        yield from (f"  {line}" for line in option.xml)
    if (run := found.measured) is not None:
        bars = (
            f"{name} {with_bar(value, run.kinetic_error[name])} (harmonic, at this start: {found.kinetic[name]:.4f})"
            for name, value in run.kinetic.items()
        )
        yield (
            f"\n1 with i-PI, {run.steps} steps: {run.seconds_per_step:.3g} s each, {run.ns_per_day:.3g} ns/day; "
            f"conserved quantity {run.drift:.1e} eV/atom/ps; kinetic energy in the second half, eV/atom: "
            f"{', '.join(bars)}"
        )
    yield "\nwhat this does not know:"
    yield from (f"  - {text}" for text in found.unknown)


def _table(rows: list[tuple[str, Option]]) -> Iterator[str]:
    names = list(rows[0][1].judged) if rows else []
    heads = [f"{'F²' if n.startswith('force') else 'T'}({n.split()[1]})" if " " in n else "V" for n in names]
    yield f"{'':4} {'ns/day':>8}  {'beads':<12} {'time step':<16} {'Δ':<22}" + "".join(f"{head:>8}" for head in heads)
    for number, option in rows:
        step = f"{option.time_step_fs:g} fs" + (" Cayley" if option.cayley else "")
        apart = option.outer_fs > option.time_step_fs or option.delta_beads < option.beads
        delta = f"every {option.outer_fs:g} fs, {option.delta_beads} beads" if apart else ""
        springs = option.springs + (" *" if option.harmonic_only else "")
        told = "".join(f"{_percent(option.judged[name]):>8}" for name in names)
        yield f"{number:4} {option.ns_per_day:8.3g}  {option.beads:<3} {springs:<8} {step:<16} {delta:<22}{told}"


def _percent(value: float | None) -> str:
    return f"{100 * value:.2g} %" if value is not None and math.isfinite(value) else "grows"
