"""A plan as i-PI's XML: its lines, a whole input with it, and the plan that an input is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from ipi.inputs.thermostats import InputThermo
from ipi.utils.io.inputs.io_xml import xml_parse_string

from beadwork.config import ServeConfig
from beadwork.doctor.harmonic import BOLTZMANN, CENTROID_TAU, ColoredNoise, Plan
from beadwork.errors import SimulationError
from beadwork.ipi.simulation import Simulation, System, as_xml
from beadwork.units import FEMTOSECOND, HARTREE


def xml_lines(plan: Plan, simulation: Simulation, config: ServeConfig, piglet: Path | None) -> Iterator[str]:
    """The lines that go into the input, and what goes into the run's TOML file."""
    yield f"<initialize nbeads='{plan.beads}'>, <dynamics ... splitting='baoab'>"
    for text in fragments(plan, simulation, config, piglet):
        yield f"the nm_gle thermostat of {piglet}" if "nm_gle" in text else text
    if plan.apart:
        yield 'run.toml: at = { baseline = "baseline", delta = "delta" }'


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


def plan_of(simulation: Simulation, system: System, highest: float) -> Plan | None:
    """The input as it is; None where it is none of the plans that this knows. highest: cm^-1, where it says none."""
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
    if style == "eco" and frequencies is not None and frequencies.get("units") == "inversecm":
        highest = float((frequencies.text or "").strip(" []\n"))
    fewest = min(part.nbeads for part in parts)
    springs = next(root.iter("normal_modes"), None)
    return Plan(
        system.nbeads,
        system.timestep / inner,
        "eco" if style == "eco" else "ordinary",
        inner,
        fewest if fewest < system.nbeads else 0,
        springs is not None and springs.get("propagator") == "cayley",
        highest if style == "eco" else 0.0,
        splitting="obabo" if dynamics is None else dynamics.get("splitting", "obabo"),
    )
