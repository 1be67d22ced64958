"""A plan as i-PI's XML: its lines, a whole input with it, and the plan that an input is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from ipi.inputs.normalmodes import InputNormalModes
from ipi.inputs.thermostats import InputThermo
from ipi.utils.io.inputs.io_xml import xml_parse_string
from ipi.utils.units import unit_to_user

from beadwork.config import ServeConfig
from beadwork.doctor.harmonic import BOLTZMANN, CENTROID_TAU, ColoredNoise, Plan
from beadwork.errors import SimulationError
from beadwork.ipi.simulation import Component, Simulation, System, as_xml
from beadwork.units import FEMTOSECOND, HARTREE

#: the ensembles of <dynamics> whose averages are those of the plain ring polymer
ENSEMBLES = ("nve", "nvt", "npt", "nst")


def xml_lines(plan: Plan, simulation: Simulation, config: ServeConfig, piglet: Path | None) -> Iterator[str]:
    """The lines that go into the input, and what goes into the run's TOML file."""
    dynamics = next(ElementTree.fromstring(as_xml(simulation.path)).iter("dynamics"))
    yield f"<initialize nbeads='{plan.beads}'>, <dynamics mode='{_ensemble(dynamics)}' splitting='baoab'>"
    for text in fragments(plan, simulation, config, piglet):
        yield f"the nm_gle thermostat of {piglet}" if "nm_gle" in text else text
    if plan.apart:
        yield 'run.toml: at = { baseline = "baseline", delta = "delta" }'
    elif config.at:
        yield "run.toml: without at"


def _ensemble(dynamics: ElementTree.Element) -> str:
    mode = dynamics.get("mode", "nve")
    return "nvt" if mode == "nve" else mode


def fragments(plan: Plan, simulation: Simulation, config: ServeConfig, piglet: Path | None = None) -> list[str]:
    """What the input has otherwise for a plan: its elements, each as XML."""
    socket = simulation.socket(next(iter(config.at), None))
    mode = "" if socket.mode == "inet" else f" mode='{socket.mode}'"
    pbc = " pbc='True'" if socket.pbc else ""
    timeout = f"<timeout>{socket.timeout:g}</timeout>" if socket.timeout else ""

    def listens(name: str, address: str, port: int, beads: int) -> str:
        where = f"<address>{address}</address>" + (f"<port>{port}</port>" if socket.mode == "inet" else "")
        batch = f"<batch_size>{beads}</batch_size>" if beads > 1 else ""
        return f"<ffsocket name='{name}'{mode}{pbc}>{where}{batch}{timeout}<latency>1e-3</latency></ffsocket>"

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
        found.append(_local(next(ElementTree.fromstring(as_xml(simulation.path)).iter("dynamics")).find("thermostat")))
    return found


def _local(thermostat: ElementTree.Element | None) -> str:
    """PILE with noise on each atom's centroid, which is what is judged; as strong as the input has it."""
    kept = f"<tau units='femtosecond'>{CENTROID_TAU:g}</tau>"
    if thermostat is not None and thermostat.get("mode", "").startswith("pile"):
        parts = [element for element in thermostat if element.tag in ("tau", "pile_lambda")]
        kept = "".join(ElementTree.tostring(element, encoding="unicode").strip() for element in parts)
    return f"<thermostat mode='pile_l'>{kept}</thermostat>".replace('"', "'")


def changed(plan: Plan, simulation: Simulation, config: ServeConfig, piglet: Path | None = None) -> ElementTree.Element:
    """The input with a plan in it, whole. Raises SimulationError where it has no <dynamics> or <initialize>."""
    root = ElementTree.fromstring(as_xml(simulation.path))
    system, start, dynamics = root.find("system"), root.find("system/initialize"), next(root.iter("dynamics"), None)
    motion = root.find("system/motion")
    if system is None or start is None or dynamics is None or motion is None:
        raise SimulationError(f"{simulation.path} has no <system> with <initialize> and <dynamics>", "plan by hand")
    start.set("nbeads", str(plan.beads))
    dynamics.set("splitting", "baoab")
    dynamics.set("mode", _ensemble(dynamics))
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
    try:
        thermostat = _fetched(InputThermo(), element)
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


def _fetched(source: Any, element: ElementTree.Element) -> Any:
    """What i-PI makes of an element, by the input class that it has for it."""
    source.parse(xml_parse_string(ElementTree.tostring(element)).fields[0][1])
    return source.fetch()


def beyond(simulation: Simulation, system: System) -> Iterator[tuple[str, str]]:
    """What an input has for which no plan can be judged, and what to do."""
    root = ElementTree.fromstring(as_xml(simulation.path))
    if len(system.motions) != 1 or system.motions[0] not in ENSEMBLES or next(root.iter("dynamics"), None) is None:
        yield (
            f"the motion of {simulation.path} is {' and '.join(system.motions) or 'none'}",
            f"plan with one <dynamics>, of mode {', '.join(ENSEMBLES)}",
        )
    for element in root.iter("normal_modes"):
        modes = _fetched(InputNormalModes(), element)
        if len(modes.open_paths):
            yield f"{simulation.path} has open paths, and averages here are those of closed ones", "plan without them"
        if len(modes.bosons):
            yield f"{simulation.path} has bosons, and averages here are those without exchange", "plan without them"
    if any((e.text or "").strip(" []\n") for tag in ("fixatoms", "fixatoms_dof") for e in root.iter(tag)):
        yield f"{simulation.path} holds atoms where they are, and vibrations here are those of all", "plan without that"
    scales = " ".join((e.text or "").strip(" []\n").replace(",", " ") for e in root.iter("hamiltonian_weights"))
    if any(part.weight != 1 for part in system.forces) or any(float(scale) != 1 for scale in scales.split()):
        yield (
            f"{simulation.path} gives a force a weight, and vibrations here are those of the models as they are",
            "plan without weights",
        )
    if any(e.get("mode", "dummy") != "dummy" for e in root.iter("smotion")):
        yield f"{simulation.path} has an <smotion>, which changes the ensemble", "plan without it"


def plan_of(simulation: Simulation, system: System, roles: Mapping[str, str]) -> Plan | None:
    """The input as it is; None where it is none of the plans that this knows. roles: of the forcefields.

    A global thermostat of the centroid (pile_g) is taken for one on each atom (pile_l). Of that tau and pile_lambda do
    not matter: averages are the same for every friction.
    """
    root = ElementTree.fromstring(as_xml(simulation.path))
    dynamics = next(root.iter("dynamics"))
    element, springs = dynamics.find("thermostat"), next(root.iter("normal_modes"), None)
    piled = element is not None and element.get("mode", "").startswith("pile") and dynamics.get("mode", "nve") != "nve"
    apart = _apart(system, roles)
    if element is None or not piled or system.timestep is None or apart is None:
        return None
    modes = _fetched(InputNormalModes(), ElementTree.Element("normal_modes") if springs is None else springs)
    thermostat = _fetched(InputThermo(), element)
    if modes.mode not in ("rpmd", "eco") or modes.propagator == "bab" or thermostat.pilect > 0:
        return None
    inner, contracted = apart
    return Plan(
        system.nbeads,
        system.timestep / inner,
        "eco" if modes.mode == "eco" else "ordinary",
        inner,
        contracted,
        modes.propagator == "cayley",
        float(unit_to_user("frequency", "inversecm", modes.nm_freqs[0])) if modes.mode == "eco" else 0.0,
        splitting=dynamics.get("splitting", "obabo"),
    )


def _apart(system: System, roles: Mapping[str, str]) -> tuple[int, int] | None:
    """The baseline's steps in one of Δ and Δ's beads (0 for all); None where parts act otherwise than a plan has it."""

    def acts(part: Component, level: int) -> bool:
        weights = part.mts_weights or (1.0,)
        return all(weight == (k == level) for k, weight in enumerate(weights)) and level < len(weights)

    parts = {roles[part.forcefield]: part for part in system.forces}
    levels = system.nmts
    if len(levels) > 2 or (len(levels) == 2 and levels[0] > 1):
        return None
    if len(parts) == 1:
        (whole,) = parts.values()
        return (1, 0) if levels == (1,) and acts(whole, 0) and whole.nbeads == system.nbeads else None
    baseline, delta = parts["baseline"], parts["delta"]
    if baseline.nbeads < system.nbeads or not acts(baseline, len(levels) - 1) or not acts(delta, 0):
        return None
    return (levels[1] if len(levels) == 2 else 1), (delta.nbeads if delta.nbeads < system.nbeads else 0)
