"""Join the forcefields of i-PI's input with the models that serve them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase.data import chemical_symbols

from beadwork.config import ROLES, ServeConfig
from beadwork.errors import ConfigError, SimulationError
from beadwork.frame import FloatArray, Frame
from beadwork.ipi.simulation import Simulation, Socket, System
from beadwork.ipi.steps import one_result, pattern
from beadwork.ipi.transport import Line, address_of
from beadwork.potential.device import unused_gpu
from beadwork.potential.load import load_for
from beadwork.potential.potential import Potential
from beadwork.serve.reply import MEMBER_FORCES, RESPONSES, extra_keys
from beadwork.serve.service import ALARM, Service

#: from so many atoms on a weighted baseline of the whole system gets a message: more than in the clusters it is meant
#: for
LARGE = 30


def join(config: ServeConfig, simulation: Simulation) -> tuple[list[Service], list[str]]:
    """Load the models, and return a service for each forcefield, with messages for the log.

    Raises SimulationError, ModelError, GeometryError or ConfigError for parts that do not fit each other.
    """
    roles = dict(config.at) or {simulation.socket().name: "sum" if config.baseline else "delta"}
    given = [config.baseline_uncertainty, config.baseline_uncertainty_atom]
    if given != [None, None] and set(roles.values()) != {"sum"}:
        raise ConfigError(
            f"baseline-uncertainty weighs baseline and Δ where their sum is served, but {roles} serves them apart",
            "leave it out, or serve the sum",
        )
    # three derivatives of every dipole, only where i-PI reads them
    whole = load_for(config, born=any(extra.key.startswith("BEC") for extra in simulation.extras))
    notes = [*whole.notes, *unused_gpu(config.device)]
    parts = {"sum": whole}
    if "baseline" in roles.values():
        parts["baseline"] = whole.without_delta()
    if "delta" in roles.values():
        parts["delta"] = whole.without_baseline()
    notes += [
        f"{name!r} is not served here, and i-PI waits for a client there: serve it too (--at {name}=ROLE), unless "
        "another program does"
        for name in simulation.unserved(roles)
    ]
    services = []
    answering: dict[str, list[tuple[Socket, Service]]] = {}  # by what systems name
    carrier = _carrier(simulation, roles)
    for name, role in roles.items():
        socket = simulation.socket(name)
        potential = parts[role]
        if whole.also:
            potential = potential.with_also(whole.also if name == carrier else ())
        service = _service(config, simulation, socket, potential)
        # what i-PI would refuse or misread comes first: selecting backends takes seconds a model
        _check_gathered(socket, service)
        service.potential.check_species(service.numbers)
        # one structure is enough: species and cell are those of every bead
        start = simulation.served(socket)[0][0].frame(active=socket.active, periodic=config.periodic)
        notes += service.potential.select_backends(start)
        notes += service.potential.fit(start, config.device, simulation.structures(socket))
        notes += _of_the_whole(service.potential, start)
        notes += _between(service)
        if service.dipole_jumps:
            notes.append(
                f"i-PI folds atoms into the cell (pbc='True' of ffsocket {name!r}), and with each the dipole in the "
                "extras jumps by a quantum: no spectrum can be made of it; leave pbc out"
            )
        services.append(service)
        answering.setdefault(socket.parent or name, []).append((socket, service))
    _check_extras(simulation, answering)
    return services, notes


def _carrier(simulation: Simulation, roles: Mapping[str, str]) -> str:
    """The forcefield whose extras have what models of other roles answer: of several i-PI would make a longer list.

    It drops the extras of a forcefield without a weight, or on fewer beads than the system has.
    """

    def rank(name: str) -> tuple[bool, int]:
        socket = simulation.socket(name)
        pairs = [
            (system, part) for system, _ in simulation.served(socket) for part in system.parts(socket.parent or name)
        ]
        return not all(part.weight and part.nbeads == system.nbeads for system, part in pairs), ROLES.index(roles[name])

    return min(roles, key=rank)


def _of_the_whole(potential: Potential, start: Frame) -> list[str]:
    """A sentence where the weighted baseline is that of the whole of a large system."""
    s, atoms = potential.baseline_uncertainty, len(start.numbers)
    if s is None or atoms < LARGE:
        return []
    spread = potential.evaluate([start]).spread
    # the weight of Δ in docs/formulas.md, s² / (s² + var)
    factor = 1.0 if spread is None else s**2 / (s**2 + float(spread.energy[0]) ** 2)
    return [
        f"the baseline's uncertainty of {s:g} eV is that of all {atoms} atoms together: at the start Δ counts with "
        f"{factor:.2g}, and for n times the system with less; --baseline-uncertainty-atom weighs alike at any size"
    ]


def _between(service: Service) -> list[str]:
    """A sentence where the spread of forces is not evaluated at every step."""
    potential, every = service.potential, service.force_spread_every
    if potential.trunk is None or potential.weighs or service.member_forces or every == 1:
        return []
    return [
        f"{len(potential.members)} members on one trunk: their spread of forces is evaluated every {every} evaluations "
        "(--force-spread-every), for frames that are kept, and as soon as the spread of energies has grown "
        f"{ALARM:g}-fold; between, the safety thresholds and the selection window look at novelty and energies"
    ]


def _service(config: ServeConfig, simulation: Simulation, socket: Socket, potential: Potential) -> Service:
    numbers = simulation.numbers(socket)
    structures = simulation.structures(socket)
    servers = config.servers or 1
    # more connections than the ring has batches would never be used, or by one server alone
    # to a cavity with photons i-PI sends one bead after the other: a second connection would stay idle
    at_once = structures if socket.photons is None else 1
    wanted = config.connections or max(1, -(-at_once // (socket.batch_size * servers)))
    line = Line(address_of(simulation, socket, config.host), wanted, socket.mode == "shm", len(numbers))
    parts = [part for system in simulation.systems for part in system.parts(socket.parent or socket.name)]
    # used in two components, or rotated, a forcefield gets different numbers of structures at a time
    steady = len(parts) == len(simulation.systems) and not socket.rotated
    served = [system for system, _ in simulation.served(socket)]
    return Service(
        line,
        potential,
        numbers,
        structures if steady else None,
        len(served) == 1 and structures == served[0].nbeads,
        _starts(served, socket),
        config.periodic,
        config.member_forces,
        servers,
        served[0].cell if socket.pbc else None,
        pattern(simulation, socket),
        one_result(simulation),
        config.force_spread_every,
        socket.parent or socket.name,
    )


def _starts(served: Sequence[System], socket: Socket) -> FloatArray | None:
    """The distinct structures of the file's start as i-PI will send them, (K, N, 3) Å; None where that is not known.

    served: the systems that this socket serves.
    """
    atoms = slice(None) if socket.active is None else list(socket.active)
    starts = np.concatenate([_sent(system, socket)[:, atoms] for system in served])
    first = sorted(np.unique(starts.reshape(len(starts), -1), axis=0, return_index=True)[1])
    # a contraction begins with other structures, but for beads in one place; and one cell folds one system
    parts = [(part, system) for system in served for part in system.parts(socket.parent or socket.name)]
    told = len(first) <= len(served) or all(part.nbeads == system.nbeads for part, system in parts)
    told &= not socket.pbc or all(np.array_equal(system.cell, served[0].cell) for system in served)
    return starts[first] if told else None


def _sent(system: System, socket: Socket) -> FloatArray:
    """The positions of a system's beads as its first request will have them, Å: folded into the cell if i-PI does."""
    positions = system.positions
    if socket.pbc:
        positions = positions - np.round(positions @ np.linalg.inv(system.cell)) @ system.cell
    return positions


def _check_gathered(socket: Socket, service: Service) -> None:
    """Refuse what an `<ffcommittee>` with parse_json would make something else of: it takes the plain mean of our
    members, and dies in its polling thread where it lacks their forces.
    """
    committee, potential = socket.committee, service.potential
    if committee is None or not committee.parse_json or len(potential.members) < 2:
        return
    name = f"the <ffcommittee> {socket.parent!r}"
    # i-PI knows no weights of members, and would undo ours
    if np.ptp(potential.weights) or potential.weighs:
        weighed = "weighed" if potential.weighs else "not weighed"
        raise SimulationError(
            f"{name} reads the members (parse_json) and takes their plain mean, but they have weights "
            f"{[round(w, 4) for w in potential.weights.tolist()]}, and Δ is {weighed} against the baseline",
            "set parse_json to False, or serve equal weights without it",
        )
    # both scale the same deviations, so the spread would be scaled twice
    if committee.alpha != 1.0:
        raise SimulationError(
            f"{name} scales the members by its alpha {committee.alpha:g}, and beadwork by {potential.energy_alpha:g} "
            "before",
            "set its <alpha> to 1, and give ours with --energy-alpha",
        )
    if committee.baseline and max(map(abs, potential.reference.values()), default=0.0) > 1e-3:
        told = ", ".join(f"{chemical_symbols[z]} {e:.3g} eV" for z, e in sorted(potential.reference.items()))
        raise SimulationError(
            f"{name} weighs Δ against its baseline with Δ's reference energies in it ({told}), which "
            "drives the system to where the members disagree",
            "serve the sum instead, with --baseline-uncertainty",
        )
    # i-PI needs them for a gradient of the weighted baseline, and to average over more than one of its own members
    if not service.member_forces and (committee.baseline or committee.members > 1):
        raise SimulationError(f"{name} wants the forces of every member, or i-PI hangs", "add --member-forces")


def _lacking(wanted: set[str], answering: list[tuple[Socket, Service]], order: Sequence[Socket]) -> set[str]:
    """Return which of the wanted keys will not be in the extras of a forcefield that we answer, alone or as one or more
    of the sockets within it. order: theirs in the input.
    """
    socket = answering[0][0]
    # i-PI adds the key `raw` itself: the text as it came
    sent = {one.name: {"raw", *extra_keys(service.potential, service.member_forces)} for one, service in answering}
    if socket.parent is None:
        return wanted - sent[socket.name]
    if socket.committee is None:  # an ffrotations
        return wanted - sent[socket.name] - {"o3grid_pots"}
    committee = socket.committee
    members = [one.name for one in order if one.parent == socket.parent and one.name != committee.baseline]
    # it has the members' forces of all or of none
    torn = committee.parse_json and any(
        "committee_pot" in sent[name] and not sent[name].issuperset(MEMBER_FORCES) for name in members if name in sent
    )
    without = set(MEMBER_FORCES) if torn else set()
    if len(members) < committee.members or members[-1] not in sent:
        return wanted & without  # the other keys are those of a member that others answer
    own = {"committee_pot", "committee_uncertainty", *MEMBER_FORCES} - without
    if committee.baseline:
        own |= {"baseline_pot", "baseline_force", "baseline_virial", "baseline_extras", "wb_mixing"}
    unpacked = set(MEMBER_FORCES) if committee.parse_json else set()
    return wanted - own - {f"committee_{key}" for key in sent[members[-1]] - unpacked}


def _check_extras(simulation: Simulation, answering: Mapping[str, list[tuple[Socket, Service]]]) -> None:
    """Refuse extras that are looked for and that no reply will have: i-PI would die with a KeyError at the first.

    answering: what we answer, by the names that systems have for it; of the rest nothing is known.
    """
    wanted = {extra.key for extra in simulation.extras}
    lacking = {name: _lacking(wanted, ours, simulation.sockets) for name, ours in answering.items()}
    missing = {
        extra for extra in simulation.extras if all(extra.key in lacking.get(name, ()) for name in extra.forcefields)
    }
    # a forcefield that contributes nothing, or whose beads are interpolated: i-PI keeps no extras of it
    if dropped := sorted({extra.key for extra in missing if not extra.forcefields}):
        raise SimulationError(
            f"{simulation.path} writes the extras {', '.join(dropped)} where there will be none: i-PI drops those of a "
            "forcefield with weight 0 or fewer beads than the system",
            "name them in the <interpolate_extras> of its <force>, or take those outputs out",
        )
    if keys := sorted({extra.key for extra in missing}):
        services = [service for ours in answering.values() for _, service in ours]
        sent = sorted({key for service in services for key in extra_keys(service.potential, service.member_forces)})
        remedy = "add --member-forces" if set(keys) <= set(MEMBER_FORCES) else "give a committee (--delta)"
        if responses := {key.removeprefix("committee_").removesuffix("_spread") for key in keys} & set(RESPONSES):
            role = "polarizability" if responses == {"polarizability"} else "dipole"
            remedy = f"give a model of them (--also {role}=BUNDLE), several in a committee's folder for their spread"
        raise SimulationError(
            f"{simulation.path} writes the extras {', '.join(keys)}, which will not be sent: "
            f"{', '.join(sent) or 'nothing'} will",
            f"take those outputs out, or {remedy}",
        )
