"""`beadwork plan`: how many beads, which springs, time steps and contraction hold a stated error, as lines for the XML.

    print(plan(config, Asked(), threads))

`curvature` measures the vibrations of the user's structure and what an evaluation costs, `harmonic` says which errors a
plan has for these, `search` finds the cheapest that hold.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from ipi.inputs.thermostats import InputThermo
from ipi.utils.io.inputs.io_xml import xml_parse_string

from beadwork.config import ServeConfig
from beadwork.doctor import bench
from beadwork.doctor.curvature import cost, vibrations
from beadwork.doctor.harmonic import BOLTZMANN, CENTROID_TAU, ColoredNoise, Modes, Plan, quantum
from beadwork.doctor.search import Costs, Judged, Search
from beadwork.errors import SimulationError
from beadwork.frame import FloatArray
from beadwork.ipi.outputs import read_table
from beadwork.ipi.simulation import Simulation, System, as_xml, read_simulation
from beadwork.potential.load import load_for
from beadwork.potential.potential import Potential
from beadwork.units import FEMTOSECOND, HARTREE

UNKNOWN = (
    "errors are those of harmonic vibrations about this structure; a distribution (g(r), a proton's) is not looked at",
    "averages over an element: the few atoms of a solute can need more beads than it (look at --json, or plan for a "
    "cluster around it)",
    "how fast an average converges: a longer time step and another thermostat change that too",
    "dynamics: economised springs, PIGLET and contraction are for averages; spectra want ordinary springs",
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
    as_json: bool = False


def plan(config: ServeConfig, asked: Asked, threads: str) -> str:
    """Measure, search, and return the text. Raises SimulationError for an input that this cannot plan for."""
    simulation = read_simulation(Path(config.simulation), config.sockets_prefix)
    system = _system(simulation, config)
    temperature = float(system.temperature or 0)
    noise = None if asked.piglet is None else colored_noise(asked.piglet, temperature)
    potential = load_for(config)
    potential.check_species(system.numbers)
    frame = system.frame(periodic=config.periodic)
    notes = [threads, *potential.select_backends(frame), *potential.fit(frame, config.device, 16)]
    modes = vibrations(potential, frame, system.names, system.masses)
    search = Search(modes, _costs(potential, config, system), temperature, noise)
    now = _now(simulation, system, search)
    found = search.cheapest(asked.error, asked.force_error)
    measured = measure(config, simulation, found[0], asked, threads) if asked.measure and found else None
    if asked.as_json:
        return json.dumps(_data(search, asked, now, found, measured, simulation, config), indent=1, allow_nan=False)
    return "\n".join([*notes, *_text(search, asked, now, found, measured, simulation, config)])


def _system(simulation: Simulation, config: ServeConfig) -> System:
    """The one system that this can plan for. Raises SimulationError."""
    names = set(config.at) or {simulation.socket().name}
    system = simulation.systems[0]
    if len(simulation.systems) > 1:
        raise SimulationError(f"{simulation.path} has {len(simulation.systems)} systems", "plan for one of them")
    if system.temperature is None:
        raise SimulationError(f"{simulation.path} has no temperature", "give the <ensemble> one")
    served = [simulation.socket(name) for name in sorted(names)]
    if (
        any(socket.active is not None or socket.parent or socket.photons is not None for socket in served)
        or {part.forcefield for part in system.forces} != names
        or system.bias
        or not system.numbers.all()
    ):
        raise SimulationError(
            f"in {simulation.path} more acts on the atoms than the forcefields {', '.join(sorted(names))}, or on some",
            "plan with an input in which these models alone move all atoms",
        )
    return system


def _costs(potential: Potential, config: ServeConfig, system: System) -> Costs:
    frame, every = system.frame(periodic=config.periodic), config.force_spread_every
    whole = cost(potential, frame, every)
    # a baseline that is weighted is no sum of two forcefields
    if potential.baseline is None or not potential.models or potential.weighs:
        return Costs(whole)
    baseline = Potential(potential.baseline, cards=potential.baseline_cards)
    return Costs(whole, cost(baseline, frame, every), cost(potential.without_baseline(), frame, every))


def colored_noise(path: Path, temperature: float) -> ColoredNoise:
    """The matrices of the nm_gle thermostat in an i-PI input. Raises SimulationError where it has none for this T."""
    root = ElementTree.fromstring(as_xml(path))
    element = next((e for e in root.iter("thermostat") if e.get("mode", "").startswith("nm_gle")), None)
    if element is None:
        raise SimulationError(f"{path} has no thermostat of mode nm_gle", "name an input with the matrices of PIGLET")
    source = InputThermo()
    try:
        source.parse(xml_parse_string(ElementTree.tostring(element)).fields[0][1])
        thermostat = source.fetch()
        drift, covariance = np.array(thermostat.A) / FEMTOSECOND, np.array(thermostat.C) * HARTREE
    except (ValueError, TypeError, AttributeError) as error:
        raise SimulationError(f"i-PI does not read the thermostat of {path} ({error})", "see i-PI's manual") from error
    meant = covariance[0, 0, 0] / BOLTZMANN / len(drift)
    if abs(meant - temperature) > 1e-3 * temperature:
        raise SimulationError(
            f"the matrices of {path} are for {meant:.1f} K, and this simulation is at {temperature:g} K",
            "take those for its temperature (GLE4MD makes them)",
        )
    return ColoredNoise(drift, covariance)


def _now(simulation: Simulation, system: System, search: Search) -> Judged | None:
    """The input as it is; None where it is none of the plans that this knows."""
    root = ElementTree.fromstring(as_xml(simulation.path))
    style = next((e.get("style", "rpmd") for e in root.iter("frequencies")), "rpmd")
    thermostat = next((e.get("mode", "") for e in root.iter("thermostat")), "")
    parts, levels = system.forces, system.nmts
    if system.timestep is None or style not in ("rpmd", "eco") or not thermostat.startswith("pile"):
        return None
    inner = int(np.prod(levels))
    if len(levels) > 2 or (len(levels) == 2 and levels[0] > 1) or len(parts) > 2 or (inner > 1 and len(parts) < 2):
        return None
    dynamics = next(root.iter("dynamics"), None)
    frequencies = next(root.iter("frequencies"), None)
    highest = search.highest
    if style == "eco" and frequencies is not None and frequencies.get("units") == "inversecm":
        highest = float((frequencies.text or "").strip(" []\n"))
    fewest = min(part.nbeads for part in parts)
    springs = next(root.iter("normal_modes"), None)
    return search.judge(
        Plan(
            system.nbeads,
            system.timestep / inner,
            "eco" if style == "eco" else "ordinary",
            inner,
            fewest if fewest < system.nbeads else 0,
            springs is not None and springs.get("propagator") == "cayley",
            highest if style == "eco" else 0.0,
            splitting="obabo" if dynamics is None else dynamics.get("splitting", "obabo"),
        )
    )


def fragments(plan: Plan, simulation: Simulation, config: ServeConfig, piglet: Path | None = None) -> list[str]:
    """What the input has otherwise for a plan: its elements, each as XML."""
    socket = simulation.socket(next(iter(config.at), None))
    mode = "" if socket.mode == "inet" else f" mode='{socket.mode}'"

    def listens(name: str, address: str, port: int, beads: int) -> str:
        where = f"<address>{address}</address>" + (f"<port>{port}</port>" if socket.mode == "inet" else "")
        batch = f"<batch_size>{beads}</batch_size>" if beads > 1 else ""
        return f"<ffsocket name='{name}'{mode}>{where}{batch}<latency>1e-3</latency></ffsocket>"

    found, levels = [], plan.inner > 1
    if plan.apart:
        found += [
            listens("baseline", f"{socket.address}-baseline" if mode else socket.address, socket.port, plan.beads),
            listens("delta", f"{socket.address}-delta" if mode else socket.address, socket.port + 1, plan.delta_beads),
        ]
        inner, outer = (f"<mts_weights>{w}</mts_weights>" if levels else "" for w in ("[0, 1]", "[1, 0]"))
        found.append(
            f"<forces><force forcefield='baseline'>{inner}</force>"
            f"<force forcefield='delta' nbeads='{plan.delta_beads}'>{outer}</force></forces>"
        )
    else:
        found += [
            listens("beadwork", socket.address, socket.port, plan.beads),
            "<forces><force forcefield='beadwork'/></forces>",
        ]
    eco = f"<frequencies style='eco' units='inversecm'>[{plan.highest:g}]</frequencies>" if plan.highest else ""
    propagator = " propagator='cayley'" if plan.cayley else ""
    if eco or propagator:
        found.append(f"<normal_modes{propagator}>{eco}</normal_modes>")
    found.append(f"<timestep units='femtosecond'>{plan.outer:g}</timestep>")
    if levels:
        found.append(f"<nmts>[1, {plan.inner}]</nmts>")
    if plan.springs == "piglet" and piglet is not None:
        root = ElementTree.fromstring(as_xml(piglet))
        element = next(e for e in root.iter("thermostat") if e.get("mode", "").startswith("nm_gle"))
        found.append(ElementTree.tostring(element, encoding="unicode"))
    else:
        found.append(f"<thermostat mode='pile_g'><tau units='femtosecond'>{CENTROID_TAU:g}</tau></thermostat>")
    return found


def changed(plan: Plan, simulation: Simulation, config: ServeConfig, piglet: Path | None = None) -> ElementTree.Element:
    """The input with a plan in it, whole. Raises SimulationError where it has no <dynamics> or <initialize>."""
    root = ElementTree.fromstring(as_xml(simulation.path))
    system, start, dynamics = root.find("system"), root.find("system/initialize"), next(root.iter("dynamics"), None)
    motion = root.find("system/motion")
    if system is None or start is None or dynamics is None or motion is None:
        raise SimulationError(f"{simulation.path} has no <system> with <initialize> and <dynamics>", "plan by hand")
    start.set("nbeads", str(plan.beads))
    dynamics.set("splitting", "baoab")
    if dynamics.get("mode", "nve") == "nve":
        dynamics.set("mode", "nvt")
    for parent, tags in (
        (root, ("ffsocket",)),
        (system, ("forces", "normal_modes")),
        (dynamics, ("timestep", "nmts", "thermostat")),
    ):
        for child in [child for child in parent if child.tag in tags]:
            parent.remove(child)
        for text in fragments(plan, simulation, config, piglet):
            element = ElementTree.fromstring(text)
            if element.tag in tags:
                parent.append(element)
    return root


def measure(config: ServeConfig, simulation: Simulation, judged: Judged, asked: Asked, threads: str) -> dict[str, Any]:
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
    kinetic = {}
    for k, name in enumerate(names):
        blocks = np.array([block.mean() for block in np.array_split(half[:, 2 + k], 8)]) / counts[name]
        kinetic[name] = [float(blocks.mean()), float(blocks.std(ddof=1) / np.sqrt(len(blocks)))]
    return {
        "steps": summary["steps"],
        "seconds_per_step": summary["seconds_per_step"],
        "ns_per_day": 86400e-6 * judged.plan.outer / summary["seconds_per_step"],
        "drift_ev_per_atom_ps": _slope(values[:, 1]) / judged.plan.outer * 1000 / sum(counts.values()),
        "kinetic_ev_per_atom": kinetic,
    }


def _slope(values: FloatArray) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else math.nan


def _text(
    search: Search,
    asked: Asked,
    now: Judged | None,
    found: Sequence[Judged],
    measured: dict[str, Any] | None,
    simulation: Simulation,
    config: ServeConfig,
) -> Iterator[str]:
    modes, costs = search.modes, search.costs
    atoms = ", ".join(f"{count} {name}" for name, count in modes.counts.items())
    yield f"{atoms} at {search.temperature:g} K; vibrations up to {modes.highest:.0f} cm^-1"
    parts = [("an evaluation of S structures", costs.whole), ("the baseline", costs.baseline), ("Δ", costs.delta)]
    yield "; ".join(f"{name}: {1e3 * c.first:.3g} + {1e3 * c.each:.3g} S ms" for name, c in parts if c is not None)
    yield (
        f"wanted: kinetic energies and potential within {_percent(asked.error)}, mean squared forces within "
        f"{_percent(asked.force_error)}; shown is beads + contraction + time step, each without its sign"
    )
    yield ""
    yield from _table(modes, ([] if now is None else [("now", now)]) + [(str(k), j) for k, j in enumerate(found, 1)])
    if now is None:
        yield "the input as it is cannot be judged: its thermostat, forces or time steps are none of those above"
    if not found:
        yield "no plan holds that: ask for less (--error, --force-error), or look at the structure"
    kinds = {judged.plan.springs for judged in found}
    for number, judged in enumerate(found, 1):
        if judged.plan.springs in kinds:  # the cheapest of each kind
            kinds.remove(judged.plan.springs)
            yield f"\n{number}: {judged.plan.springs} beads"
            yield from (f"  {line}" for line in xml_lines(judged.plan, simulation, config, asked.piglet))
    if measured:
        kinetic = ", ".join(f"{k} {v[0]:.4f} ± {v[1]:.4f}" for k, v in measured["kinetic_ev_per_atom"].items())
        yield (
            f"\n1 with i-PI, {measured['steps']} steps: {measured['seconds_per_step']:.3g} s each, "
            f"{measured['ns_per_day']:.3g} ns/day; conserved quantity {measured['drift_ev_per_atom_ps']:.1e} "
            f"eV/atom/ps; kinetic energy in the second half {kinetic} eV/atom (harmonic: {_harmonic(search)})"
        )
    yield "\nwhat this does not know:"
    yield from (f"  - {text}" for text in _unknown(measured))


def _unknown(measured: object) -> list[str]:
    return [*UNKNOWN, *([] if measured else ["what i-PI itself takes: --measure STEPS runs the cheapest with it"])]


def _harmonic(search: Search) -> str:
    energies = quantum(search.modes.omega2, search.temperature)
    return ", ".join(f"{name} {3 * float(w @ energies):.4f}" for name, w in search.modes.weights.items())


def _table(modes: Modes, rows: Sequence[tuple[str, Judged]]) -> Iterator[str]:
    names = [*(f"kinetic {n}" for n in modes.weights), *(f"force {n}" for n in modes.weights), "potential"]
    heads = [*(f"T({n})" for n in modes.weights), *(f"F²({n})" for n in modes.weights), "V"]
    yield f"{'':4} {'ns/day':>8}  {'beads':<12} {'time step':<16} {'Δ':<22}" + "".join(f"{h:>8}" for h in heads)
    for number, judged in rows:
        plan = judged.plan
        step = f"{plan.timestep:g} fs" + (" Cayley" if plan.cayley else "")
        delta = f"every {plan.outer:g} fs, {plan.delta_beads} beads" if plan.apart else ""
        told = "".join(f"{_percent(judged.judged[name]):>8}" for name in names)
        yield f"{number:4} {judged.speed:8.3g}  {plan.beads:<3} {plan.springs:<8} {step:<16} {delta:<22}{told}"


def xml_lines(plan: Plan, simulation: Simulation, config: ServeConfig, piglet: Path | None) -> Iterator[str]:
    """The lines that go into the input, and what goes into the run's TOML file."""
    yield f"<initialize nbeads='{plan.beads}'>, <dynamics ... splitting='baoab'>"
    for text in fragments(plan, simulation, config, piglet):
        yield f"the nm_gle thermostat of {piglet}" if text.startswith("<thermostat mode='nm_gle") else text
    if plan.apart:
        yield 'run.toml: at = { baseline = "baseline", delta = "delta" }'


def _data(
    search: Search,
    asked: Asked,
    now: Judged | None,
    found: Sequence[Judged],
    measured: dict[str, Any] | None,
    simulation: Simulation,
    config: ServeConfig,
) -> dict[str, Any]:
    def told(judged: Judged) -> dict[str, Any]:
        plan = judged.plan
        return {
            "beads": plan.beads,
            "springs": plan.springs,
            "timestep": plan.timestep,
            "inner": plan.inner,
            "delta_beads": plan.delta_beads,
            "cayley": plan.cayley,
            "splitting": plan.splitting,
            "ns_per_day": judged.speed,
            "error": {name: _finite(value) for name, value in judged.errors.items()},
            "error_without_signs": {name: _finite(value) for name, value in judged.judged.items()},
            "xml": list(xml_lines(plan, simulation, config, asked.piglet)),
        }

    return {
        "atoms": dict(search.modes.counts),
        "temperature": search.temperature,
        "highest": search.modes.highest,
        "error": asked.error,
        "force_error": asked.force_error,
        "now": None if now is None else told(now),
        "plans": [told(judged) for judged in found],
        "measured": measured,
        "unknown": _unknown(measured),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(value: float) -> str:
    return f"{100 * value:.2g} %" if math.isfinite(value) else "grows"
