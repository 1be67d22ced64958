"""Before a long run: what is wrong, what is slow, how long it will take, and which line or option to change."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from ase.data import chemical_symbols

from beadwork.config import ServeConfig
from beadwork.doctor import machine, models, structure
from beadwork.doctor.finding import AMBER, GREEN, RED, Finding, refused
from beadwork.errors import BeadworkError, ModelError
from beadwork.frame import Frame
from beadwork.ipi.simulation import Simulation, Socket, read_simulation
from beadwork.json_form import Form, Part
from beadwork.log import colours
from beadwork.observe.pace import SPREAD_OF_DELTA_ALONE
from beadwork.potential.device import unused_gpu
from beadwork.potential.load import load_for
from beadwork.serve.assemble import join

#: characters before the sentence
MARGIN = 19
_PAINT = {GREEN: "\033[32m", AMBER: "\033[33m", RED: "\033[1;31m"}


@dataclass(frozen=True)
class Found(Part):
    """One thing looked at."""

    colour: Annotated[Literal["green", "amber", "red"], "red: a run would end, or be wrong; amber: look at it"]
    topic: Annotated[str, "what was looked at: input, cell, models, time, …"]
    told: Annotated[str, "what was found, in words that no script should read"]
    remedy: Annotated[str, "the line or option to change, in words; empty where nothing is to be done"]
    exit_code: Annotated[int, "if it is red, the exit code with which a run would end; else 0"]


@dataclass(frozen=True)
class Visit(Form):
    """`beadwork doctor --json`."""

    KIND = "doctor"
    exit_code: Annotated[int, "of the command: that of the first red finding; 0: nothing is red"]
    counts: Annotated[dict[str, int], "findings of each colour"]
    findings: Annotated[list[Found], "the quick ones first; what needs something that is red is left out"]


def visit(config: ServeConfig) -> Visit:
    """Look at everything, and return it as an object."""
    found = list(examine(config))
    told = [Found(one.colour, one.topic, one.text, one.remedy, one.code) for one in found]
    return Visit(_code(found), _counts(found), told)


def doctor(config: ServeConfig) -> int:
    """Print every finding as it comes, and return 0, or the exit code of the first red one."""
    # a file or a pipe gets whole lines, which can be searched
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    found = []
    # as it comes: the models take a minute, and what is wrong with the input stands there before
    for finding in examine(config):
        found.append(finding)
        print(line(finding, colours(sys.stdout), width), flush=True)
    print(verdict(found))
    return _code(found)


def _code(found: list[Finding]) -> int:
    # the first is the cause of what may follow; the code is that with which the run would end
    return next((finding.code for finding in found if finding.colour == RED), 0)


def _counts(found: list[Finding]) -> dict[str, int]:
    return {colour: sum(finding.colour == colour for finding in found) for colour in _PAINT}


def line(finding: Finding, coloured: bool = False, width: int = 0) -> str:
    """A finding in words, its remedy below it; folded at `width` characters, 0 for never."""
    told = _fold(finding.text, "", width) + (_fold(finding.remedy, "-> ", width) if finding.remedy else [])
    word = finding.colour.ljust(6)
    if coloured:
        word = f"{_PAINT[finding.colour]}{word}\033[0m"
    return f"{word} {finding.topic:<11} " + f"\n{'':{MARGIN}}".join(told)


def _fold(text: str, begin: str, width: int) -> list[str]:
    if width <= 2 * MARGIN:
        return [begin + text]
    return textwrap.wrap(begin + text, width - MARGIN, subsequent_indent=" " * len(begin), break_long_words=False)


def verdict(found: list[Finding]) -> str:
    """How many of each colour, and what that means."""
    counts = _counts(found)
    said = "do not start it like this" if counts[RED] else "it can be started"
    return ", ".join(f"{count} {colour}" for colour, count in counts.items()) + f": {said}"


def examine(config: ServeConfig) -> Iterator[Finding]:
    """Yield every finding, the quick ones first.

    What cannot be looked at, because something before is red, is left out; no BeadworkError leaves this.
    """
    try:
        simulation = read_simulation(Path(config.simulation), config.sockets_prefix)
    except BeadworkError as error:
        yield refused("input", error)
        return
    yield from structure.summary(simulation)
    # from the XML itself: i-PI's reader has dropped what is below the diagonal
    tilts = list(structure.tilt(simulation))
    yield from tilts
    sound = not tilts
    for system in simulation.systems:
        for finding in (*structure.cell(system), *structure.contacts(system, config.periodic)):
            yield finding
            # models answer nonsense with finite numbers, so of such a start nothing is asked
            sound = sound and finding.colour != RED
    seconds: dict[str, float] = {}
    if sound:
        try:
            yield from _models(simulation, config, seconds)
        except BeadworkError as error:
            yield refused("models", error)
    yield from machine.settings(simulation, seconds, config.servers or 1, config.at)
    # with i-PI on another host neither its outputs nor its sockets are here
    if config.host is None:
        yield from machine.outputs(simulation)
        for socket in simulation.sockets:
            yield from machine.address(socket, simulation.directory)
    yield from machine.disk(simulation, Path(config.out), config.keep_most if config.queue else 0)


def _models(simulation: Simulation, config: ServeConfig, seconds: dict[str, float]) -> Iterator[Finding]:
    """All that needs the models; `seconds` gets the time of one evaluation by socket. Raises BeadworkError."""
    # `join` below reports it again among its messages, which are left aside here
    for text in unused_gpu(config.device):
        yield Finding(AMBER, "device", text, 'device = "cuda"')
    potentials = [service.potential for service in join(config, simulation)[0]]
    sockets = [simulation.socket(name) for name in config.at or [simulation.socket().name]]
    cards = potentials[0].cards
    # the longest cutoff decides what an atom sees of its images
    reach = max(card.cutoff for card in cards)
    for system in simulation.systems:
        yield from structure.periodicity(system, config.periodic, sockets, reach)
        yield from structure.cutoff(system, config.periodic, reach)
    # `join` has refused a system with elements that one of them lacks
    shared = set.intersection(*(set(card.elements) for card in cards))
    known = ", ".join(chemical_symbols[z] for z in sorted(shared))
    yield Finding(GREEN, "elements", f"every model knows the elements of the system; all of them know {known}")
    # memory is measured before other engines and precisions are loaded
    starts = [_start(simulation, socket, config.periodic) for socket in sockets]
    # i-PI hands out the structures of a step among the servers, at best evenly
    parts = [frames[: -(-len(frames) // (config.servers or 1))] for frames in starts]
    taken = [
        machine.timed(potential, frames, config.force_spread_every)
        for potential, frames in zip(potentials, parts, strict=True)
    ]
    seconds.update({socket.name: wall for socket, (wall, _) in zip(sockets, taken, strict=True)})
    yield from machine.duration(simulation, sockets, taken, config.servers, config.device)
    yield from machine.memory(config.servers, config.device)
    # beads in one place are one structure, as in the run
    distinct = list({frame.positions.tobytes(): frame for frame in starts[0]}.values())
    # a native model may be refused in one precision alone; a run in the other has no need of it
    asked = config.engine if config.dtype == "float64" or config.engine != "native" else "auto"
    potential = load_for(replace(config, engine=asked, dtype="float64"))
    # float64 is what all that follows is held to, whatever precision the run has
    exact = potential.evaluate(distinct)
    yield from models.together(cards, config.alpha, potential, exact)
    for finding in models.spread(exact, config, config):
        alone = potential.spread_of_delta_alone
        yield replace(finding, text=f"{finding.text}; {SPREAD_OF_DELTA_ALONE}") if alone else finding
    yield from models.novelty(exact, potential, distinct, config, config)
    # as many structures at once as the run has, so that the memory that was found to suffice does
    yield from models.derivatives(potential, distinct[0], len(parts[0]))
    yield from models.engines(cards, distinct[0], config)
    try:
        rough = load_for(replace(config, dtype="float32")).evaluate(distinct)
    except ModelError as error:
        if config.dtype == "float32":
            raise
        yield Finding(AMBER, "precision", f"float32 is not there: {error.what}", error.remedy)
    else:
        yield from models.precision(rough, exact, config.dtype)


def _start(simulation: Simulation, socket: Socket, periodic: bool) -> list[Frame]:
    """The structures of one evaluation as the run begins; contracted beads are stood for by the first ones."""
    return [
        system.frame(k % system.nbeads, socket.active, periodic=periodic)
        for system, count in simulation.served(socket)
        for k in range(count)
    ]
