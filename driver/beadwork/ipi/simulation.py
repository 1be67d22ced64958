"""Read an i-PI input: its sockets, systems, species and outputs, so that no user types them twice.

The file is read with i-PI's own input classes, and the start structure is built by i-PI's own initializer; no socket
is opened, no force field is loaded and nothing is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any, Literal, cast
from xml.etree import ElementTree
from xml.parsers.expat import errors
from xml.sax import SAXParseException

import numpy as np
from ase.data import atomic_numbers
from ipi.engine.motion import (
    AlchemyMC,
    Dynamics,
    DynMatrixMover,
    NormalModeMover,
    PressureRamp,
    SCPhononsMover,
    TemperatureRamp,
)
from ipi.engine.motion.driven_dynamics import DrivenDynamics
from ipi.engine.outputs import CheckpointOutput, PropertyOutput, TrajectoryOutput
from ipi.engine.properties import Properties, getall, getkey
from ipi.inputs.initializer import InputInitializer
from ipi.inputs.simulation import InputSimulation
from ipi.utils.depend import dstrip
from ipi.utils.io.inputs.io_json import json_parse_string
from ipi.utils.io.inputs.io_xml import xml_parse_string, xml_write
from ipi.utils.units import unit_to_user

from beadwork.errors import SimulationError
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.units import BOHR, FEMTOSECOND

# i-PI's names of isotopes; "Z" is the hydrogen of a mass between H and D that it interpolates with
_ISOTOPES = {"D": 1, "T": 1, "Z": 1, "C13": 6, "C14": 6, "O17": 8, "O18": 8, "Cl37": 17, "Br81": 35}

# the prefix that a socket inside another forcefield keeps: i-PI 3.3.1 gives `sockets_prefix` only to the outer ones
_INNER_PREFIX = "/tmp/ipi_"

#: the forcefields of i-PI that have a socket of their own
SOCKET_TAGS = ("ffsocket", "ffcavphsocket")

# the modes of an entry of <initialize> whose value names a file
_FROM_FILE = ("xyz", "pdb", "chk", "ase")

# the parts of <initialize> that make the structure
_STRUCTURE = ("positions", "masses", "labels", "cell")

# outputs that request forces of structures of their own: scaled or displaced coordinates, and Suzuki-Chin forces
EVALUATING_OUTPUTS = {
    "displacedpath",
    "forces_sc",
    "isotope_scfep",
    "isotope_zetasc",
    "isotope_zetasc_4th",
    "kinetic_tdsc",
    "pressure_tdsc",
    "kstress_tdsc",
    "sc_op_scaledcoords",
    "sc_scaledcoords",
    "scaledcoords",
}

# motions besides dynamics whose requests are known, by the mode of <motion>
_MOTIONS = {
    AlchemyMC: "alchemy",
    TemperatureRamp: "t_ramp",
    PressureRamp: "p_ramp",
    DynMatrixMover: "vibrations",
    SCPhononsMover: "scp",
    NormalModeMover: "normalmodes",
}

# trajectories with one file per bead
_FORCES = ("forces", "forces_spring", "forces_sc", "Eforces")
_EACH_BEAD = ("positions", "velocities", "momenta", *_FORCES, "becx", "becy", "becz")

# seconds since its last change in which a file that ends in the middle may still grow: i-PI writes RESTART in place
_GROWING_SECONDS = 2.0

# the XML parser's messages for a file that ends too early
_TRUNCATED_XML = (errors.XML_ERROR_NO_ELEMENTS, errors.XML_ERROR_UNCLOSED_TOKEN, errors.XML_ERROR_PARTIAL_CHAR)

# exceptions of i-PI's input classes for a bad file: it has no class of its own, and some of its checks call exit()
_INPUT_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    StopIteration,
    SystemExit,
    TypeError,
    ValueError,
    EOFError,
)


@dataclass(frozen=True, slots=True)
class FFCommittee:
    """How an `<ffcommittee>` combines its forcefields' results. members: their number, without the baseline."""

    parse_json: bool
    alpha: float
    baseline: str
    members: int


@dataclass(frozen=True, slots=True)
class Socket:
    """One `<ffsocket>` or `<ffcavphsocket>`: where i-PI listens and how it distributes the beads.

    name: of the forcefield. address, port: as in the XML; port matters for inet only. prefix: put before the address of
    a unix socket. batch_size: structures in a request, 1 where i-PI does not batch. slots: the
    backlog of connections that wait to be accepted. latency: seconds between two looks of i-PI's polling thread.
    timeout: seconds after which i-PI drops a client, 0 for never. active: the atoms that are sent, None for all.
    offset: Hartree, subtracted by i-PI from our energy. parent: the `<ffcommittee>` or `<ffrotations>` around it,
    which is the name that systems use. rotated: that parent sends every structure in one or more orientations.
    committee: how that parent uses our result, if it is an `<ffcommittee>`. photons: of an `<ffcavphsocket>`, how many
    of the last atoms are photons, which i-PI does not send; it sends one bead after the other, each after the result of
    the one before.
    """

    name: str
    mode: Literal["unix", "inet", "shm"]
    address: str
    port: int
    prefix: str
    batch_size: int
    slots: int
    latency: float
    timeout: float
    matching: Literal["auto", "any", "lock"]
    consolidate: bool
    exit_on_disconnect: bool
    pbc: bool
    active: tuple[int, ...] | None
    offset: float
    parent: str | None
    rotated: bool
    committee: FFCommittee | None = None
    photons: int | None = None

    @property
    def path(self) -> Path | None:
        """The unix socket's file (modes unix and shm); None for inet."""
        return None if self.mode == "inet" else Path(self.prefix + self.address)


@dataclass(frozen=True, slots=True)
class Component:
    """One `<force>` of a system: which forcefield, on how many beads (fewer than the system's: contracted), and its
    weight, in all and at each level of multiple time steps (mts_weights, outermost first; empty for the outermost
    alone). A force of weight 0 is computed only when an output needs it. interpolated: the keys of its extras that i-PI
    interpolates between beads, as it does energies. scale: its `<hamiltonian_weights>`, by which it is multiplied too.
    """

    forcefield: str
    nbeads: int
    weight: float
    mts_weights: tuple[float, ...]
    interpolated: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def share(self) -> float:
        """By what its energies are multiplied in the potential."""
        return self.weight * sum(self.mts_weights or (1.0,)) * self.scale


@dataclass(frozen=True, slots=True)
class Extra:
    """A key that i-PI reads from the extras of a system, and the forcefields of which at least one has to send it; no
    forcefields where i-PI would read no extras at all.
    """

    key: str
    forcefields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class System:
    """One `<system>`, or one instance of a `<system_template>`, at its start.

    prefix: of its output files. numbers: (n,) atomic numbers, 0 for what is no element. names: of its atoms in the
    input. masses: (n,) dalton. positions: (nbeads, n, 3) Å.
    cell: (3, 3) Å, a lattice vector a row (i-PI starts no system without a cell). forces, bias: those of `<forces>`,
    and those of the ensemble's `<bias>` with their `<bias_weights>`; i-PI requests both. temperature: K,
    None where the ensemble has none. timestep: fs, None where nothing moves in time. nmts: for each level of multiple
    time steps, outermost first, how many of its steps make one of the level around it. motions: what moves it in
    each step, one after the other: dynamics by their ensemble, 'alchemy', 't_ramp' and 'p_ramp', 'other' for the rest.
    """

    prefix: str
    nbeads: int
    numbers: IntArray
    names: tuple[str, ...]
    masses: FloatArray
    positions: FloatArray
    cell: FloatArray
    forces: tuple[Component, ...]
    temperature: float | None
    timestep: float | None
    nmts: tuple[int, ...] = (1,)
    bias: tuple[Component, ...] = ()
    motions: tuple[str, ...] = ()

    def parts(self, forcefield: str) -> tuple[Component, ...]:
        """Return every `<force>`, of forces and of bias, that uses this forcefield."""
        return tuple(part for part in self.forces + self.bias if part.forcefield == forcefield)

    @property
    def labels(self) -> dict[str, int]:
        """How many atoms there are of each name, by which i-PI's properties are asked for: D is not H."""
        return dict(Counter(name for name, number in zip(self.names, self.numbers, strict=True) if number))

    @property
    def label_masses(self) -> dict[str, float | None]:
        """The mass of the atoms of each name, dalton; None where they have several."""
        found: dict[str, set[float]] = {}
        for name, mass in zip(self.names, self.masses.tolist(), strict=True):
            found.setdefault(name, set()).add(mass)
        return {name: masses.pop() if len(masses) == 1 else None for name, masses in found.items()}

    def share(self, key: str, forcefields: Iterable[str]) -> float | None:
        """Return by what energies that i-PI writes of this key of the extras of one of these forcefields have to be
        multiplied to be those in the potential: 0 where none of these has a weight; None where it depends on which of
        them sends it, or on other beads.

        i-PI writes extras as they came, whatever the weights are; only those that it interpolates have the `<force>`'s.
        """
        names = set(forcefields)
        weights = [part.weight for part in self.forces if part.forcefield in names]
        if weights and not any(weights):
            return 0.0
        found: set[float] = set()
        for name in names:
            parts = [part for part in self.forces if part.forcefield == name and part.weight]
            if parts and all(key in part.interpolated for part in parts):
                found |= {part.scale for part in parts}
            elif any(key in part.interpolated or part.nbeads != self.nbeads for part in parts):
                return None
            elif parts:
                found.add(sum(part.share for part in parts))
        return found.pop() if len(found) == 1 else None

    def frame(self, bead: int = 0, active: tuple[int, ...] | None = None, *, periodic: bool = True) -> Frame:
        """Return the start structure of one bead: its elements, or the active atoms alone; periodic in all directions
        or in none.
        """
        # what is no element (a photon of a cavity) is not sent to a forcefield
        atoms = np.flatnonzero(self.numbers) if active is None else list(active)
        return Frame(self.numbers[atoms], self.positions[bead][atoms], self.cell, (periodic,) * 3, bead)


@dataclass(frozen=True, slots=True)
class Output:
    """One output that i-PI will write, in one file or one per bead.

    name: relative to i-PI's working directory, without the number of a bead and without a format. endings: these, one
    for each file, in the order in which i-PI writes. stride: steps between two entries. columns: of properties, as the
    input names them, with a number where a property has several, `cell_h[0]`. every: steps after which an entry with
    its step is on the disk; 0 where entries have no step. number: its place in the input, the same for all systems.
    asks: it requests forces of structures of its own.
    """

    name: str
    kind: Literal["properties", "trajectory", "checkpoint"]
    stride: int
    columns: tuple[str, ...] = ()
    every: int = 0
    number: int = 0
    asks: bool = False
    endings: tuple[str, ...] = ("",)

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return tuple(self.name + ending for ending in self.endings)

    @property
    def step(self) -> int | None:
        """The column of the step, from 0; None where there is none."""
        return next((k for k, column in enumerate(self.columns) if getkey(column) == "step"), None)


@dataclass(frozen=True, slots=True)
class Simulation:
    """An i-PI input as far as a force-field server needs it.

    path, sha256: of the file itself. directory: where i-PI has to be started for it to find the files that the input
    names (see `read`). files: those files, as named; `directory / file` is where each lies. step, total_steps: where
    it starts and ends. prefix: of all output files. outputs: what it writes. extras: what outputs, force components and
    motions expect in the extras of every reply; i-PI stops with a KeyError where one is missing. bytes_per_step: how
    much its outputs grow in a step on average, within some tens of per cent. plumed: it has an `<ffplumed>`.
    smotions: the modes of `<smotion>`, which acts on all systems together.
    """

    path: Path
    sha256: str
    directory: Path
    files: tuple[Path, ...]
    step: int
    total_steps: int
    prefix: str
    outputs: tuple[Output, ...]
    extras: tuple[Extra, ...]
    sockets: tuple[Socket, ...]
    systems: tuple[System, ...]
    bytes_per_step: float = 0.0
    plumed: bool = False
    smotions: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Steps that are left to do: a RESTART begins at one of `total_steps`."""
        return max(0, self.total_steps - self.step)

    @property
    def temperature(self) -> float | None:
        """K, of the first system; None where it has none, or not the same throughout."""
        changes = "remd" in self.smotions or "t_ramp" in self.systems[0].motions
        return None if changes else self.systems[0].temperature

    @property
    def nbeads(self) -> int:
        """Beads of the ring polymer; the largest where systems differ."""
        return max(system.nbeads for system in self.systems)

    def socket(self, name: str | None = None) -> Socket:
        """Return the socket to serve: the one named, or the only one.

        Raises SimulationError when there is none, none of that name, or several and none named.
        """
        names = ", ".join(socket.name for socket in self.sockets)
        if not self.sockets:
            raise SimulationError(
                f"{self.path} has no <ffsocket>, so i-PI will request forces from no server",
                "give it one with a name, an address and a mode",
            )
        if name is None:
            if len(self.sockets) > 1:
                raise SimulationError(f"{self.path} has several ffsockets ({names})", "name the one to serve")
            return self.sockets[0]
        for socket in self.sockets:
            if socket.name == name:
                return socket
        raise SimulationError(f"{self.path} has no ffsocket named {name!r}", f"it has: {names}")

    def served(self, socket: Socket) -> tuple[tuple[System, int], ...]:
        """Return the systems that use this socket, each with the number of structures that it requests at once.

        A system may use a forcefield twice, and on fewer beads. The copies that an <ffrotations> makes are not counted.
        """
        name = socket.parent or socket.name
        parts = [(system, part) for system in self.systems for part in system.parts(name)]
        # in a step i-PI computes the forces that have a weight; those without are computed for outputs alone
        parts = [(system, part) for system, part in parts if part.weight] or parts
        counts = [sum(part.nbeads for asking, part in parts if asking is system) for system in self.systems]
        return tuple((system, count) for system, count in zip(self.systems, counts, strict=True) if count)

    def structures(self, socket: Socket) -> int:
        """Return how many structures one step sends to this socket, all systems together."""
        return sum(count for _, count in self.served(socket))

    def calls(self, socket: Socket) -> int:
        """Return how often a step uses this socket: more than once at an inner level of multiple time steps."""
        name = socket.parent or socket.name
        levels = [
            level
            for system in self.systems
            for part in system.parts(name)
            for level, weight in enumerate(part.mts_weights or (1.0,))
            if weight
        ]
        return int(np.prod(self.systems[0].nmts[: max(levels, default=0) + 1]))

    @property
    def properties(self) -> tuple[Output, ...]:
        """The files of thermodynamic properties."""
        return tuple(output for output in self.outputs if output.kind == "properties")

    @property
    def trajectories(self) -> tuple[tuple[str, ...], ...]:
        """The files of each trajectory, and of extras, of the first system."""
        of_first: dict[int, Output] = {}
        for output in self.outputs:  # of one number in the order of the systems
            of_first.setdefault(output.number, output)
        return tuple(output.files for output in of_first.values() if output.kind == "trajectory")

    def check_outputs(self) -> None:
        """Raise SimulationError where i-PI would end with an error as it opens its outputs.

        It makes no folders, and it renames existing files only in its own working directory.
        """
        for output in self.outputs:
            file = self.directory / output.name
            if not file.parent.is_dir():
                raise SimulationError(
                    f"{self.path} has i-PI write {output.name}, but there is no folder {file.parent}, and i-PI makes "
                    "no folders",
                    "make it, or change the prefix of <output>",
                )
            anew = self.step == 0 or output.kind == "checkpoint"  # a RESTART appends to the others
            elsewhere = output.files if Path(output.name).name != output.name else ()
            there = [path for name in elsewhere if (path := self.directory / name).exists()]
            if anew and there:
                raise SimulationError(
                    f"{there[0]} exists: i-PI cannot rename it in a folder that is not its working directory, and "
                    "would end",
                    "move it away, or change the prefix of <output>",
                )

    def unserved(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the sockets, by name, that a system uses and that are not in `names`: i-PI waits for them for ever.

        An `<ffcommittee>` waits for each of its sockets.
        """
        known = set(names)
        return tuple(socket.name for socket in self.sockets if socket.name not in known and self.served(socket))

    def numbers(self, socket: Socket) -> IntArray:
        """Return the atomic numbers (n,) of the structures that come over this socket, in order.

        i-PI's protocol does not send species, so all systems behind one socket must have the same.
        Raises SimulationError when they differ, when no system uses the socket, when an active atom is missing, or when
        one is no element.
        """
        served = [system for system, _ in self.served(socket)]
        if not served:
            raise SimulationError(
                f"no <force> of {self.path}, of <forces> or of <bias>, uses the forcefield "
                f"{socket.parent or socket.name!r}: i-PI would never use it"
            )
        found: list[IntArray] = []
        for system in served:
            if socket.active is None:
                found.append(system.numbers)
                continue
            if not socket.active or max(socket.active) >= len(system.numbers) or min(socket.active) < 0:
                raise SimulationError(
                    f"the <activelist> of ffsocket {socket.name!r} in {self.path} names atoms outside 0 to "
                    f"{len(system.numbers) - 1}: {list(socket.active)}"
                )
            found.append(system.numbers[list(socket.active)])
        for system, numbers in zip(served, found, strict=True):
            if not numbers.all():
                atoms = range(len(system.numbers)) if socket.active is None else socket.active
                atom = atoms[int(np.argmin(numbers))]
                raise _unknown(self.path, self.systems.index(system), atom, system.names[atom])
        for k, numbers in enumerate(found):
            if not np.array_equal(numbers, found[0]):
                raise SimulationError(
                    f"systems 0 and {k} of {self.path} differ in their atoms or the order of them, but share the "
                    f"ffsocket {socket.name!r}, and i-PI does not send species",
                    "give each composition its own ffsocket",
                )
        return found[0]


def read_simulation(path: Path | str, sockets_prefix: str | None = None, directory: Path | None = None) -> Simulation:
    """Read an i-PI input (XML or RESTART).

    sockets_prefix: as i-PI's own option `-S`; None takes the XML's. directory: where i-PI will be started, whatever the
    current directory is; it must have all files that the input names.

    Without `directory` it is the current one, where i-PI would be started by hand, wherever the input lies; but i-PI
    looks for relative names of structure files in its working directory and nowhere else, so where one of them is not
    there the folder of the input must have them all, and i-PI is to be started in it. A RESTART names none.
    Raises SimulationError for anything that i-PI would not start from, or that is no chemistry.
    """
    path = Path(path).absolute()
    content, root = _content(path)
    source = _parse(path, root)
    with _refused_by_ipi(f"i-PI refuses {path}"):
        prefix = sockets_prefix if sockets_prefix is not None else source.sockets_prefix.fetch()
        sockets = tuple(_sockets(source, prefix))
        replicas = [system for tag, entry in source.extra for system in _replicas(tag, entry)]
        outputs = source.output.fetch()
        step, total_steps = int(source.step.fetch()), int(source.total_steps.fetch())
        forcefields = [entry.name.fetch() for tag, entry in source.extra if tag.startswith("ff")]
    # i-PI checks this only when it starts the forcefield, after minutes of waiting for a client perhaps
    for socket in sockets:
        if socket.batch_size > 1 and not socket.consolidate:
            raise SimulationError(
                f"ffsocket {socket.name!r} in {path} has batch_size {socket.batch_size} with consolidate_messages "
                "False, which i-PI does not start",
                "leave consolidate_messages out",
            )
    if not replicas:
        raise SimulationError(f"{path} has no <system>", "add the system to simulate")
    directory, files = _locate(path, replicas, directory)
    systems = tuple(_system(path, k, replica) for k, replica in enumerate(replicas))
    sockets = tuple(_without_photons(socket, systems) for socket in sockets)
    for system in systems:
        for part in system.forces + system.bias:
            if part.forcefield not in forcefields:
                raise SimulationError(
                    f"a <force> of {path} names the forcefield {part.forcefield!r}, which the input does not define",
                    f"it has: {', '.join(forcefields)}",
                )
    if never := [str(output.filename) for output in outputs if output.stride < 1]:
        raise SimulationError(
            f"the stride of {', '.join(never)} in {path} is below 1",
            "i-PI divides the step by it: give it 1 or more, or take the output out",
        )
    with _refused_by_ipi(f"i-PI refuses {path}"):
        extras = _extras(outputs, replicas, systems)
    return Simulation(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        directory=directory,
        files=files,
        step=step,
        total_steps=total_steps,
        prefix=str(outputs.prefix),
        outputs=tuple(
            dict.fromkeys(
                _output(outputs, number, output, system) for number, output in enumerate(outputs) for system in systems
            )
        ),
        extras=extras,
        sockets=sockets,
        systems=systems,
        bytes_per_step=sum(_bytes(output, system) / output.stride for output in outputs for system in systems),
        plumed=any(tag == "ffplumed" for tag, _ in source.extra),
        smotions=_smotions(source.smotion),
    )


@contextlib.contextmanager
def _refused_by_ipi(what: str) -> Iterator[None]:
    """Silence i-PI, which prints warnings to stdout, and turn its exceptions into a SimulationError."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # i-PI leaves the closing of its files to Python
        try:
            yield
        except _INPUT_ERRORS as error:
            traceback.clear_frames(error.__traceback__)  # the frames keep those files open
            if isinstance(error, UnboundLocalError):  # i-PI's reader of a file in which there is no frame
                text = "there is no structure in it"
            else:
                text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise SimulationError(f"{what}: {text}", "correct it as i-PI's manual says") from error


def _content(path: Path) -> tuple[bytes, Any]:
    """Return the file and its contents as parsed by i-PI; waits for a file that i-PI is just writing."""
    until = time.monotonic() + _GROWING_SECONDS
    while True:
        try:
            content = path.read_bytes()
            fresh = time.time() - path.stat().st_mtime < _GROWING_SECONDS and time.monotonic() < until
        except OSError as error:
            raise SimulationError(
                f"cannot read the i-PI input {path}: {error.strerror}", "name an existing XML or RESTART file"
            ) from error
        if path.suffix == ".json":  # i-PI too goes by the name
            try:
                return content, json_parse_string(content.decode())
            except ValueError as error:
                raise SimulationError(f"{path} is no JSON ({error})", "name an i-PI input or RESTART") from error
        try:
            return content, xml_parse_string(content)
        except SAXParseException as error:
            cut = error.getMessage() in _TRUNCATED_XML
            if cut and fresh:
                time.sleep(0.1)
                continue
            where = f"line {error.getLineNumber()}: {error.getMessage()}"
            if not cut:
                raise SimulationError(f"{path} is no XML ({where})", "name an i-PI input or RESTART") from error
            # i-PI renames a RESTART to #RESTART#n# before it writes another
            kept = path.parent.glob(f"#{escape(path.name)}#*#")
            older = max(kept, key=lambda file: file.stat().st_mtime, default=None)
            remedy = f"the one before it, {older}" if older else "a checkpoint of that run, or the input it began with"
            raise SimulationError(
                f"{path} ends in the middle ({where}): its writer was killed, or the disk was full",
                f"take {remedy}",
            ) from error


def as_xml(path: Path) -> bytes:
    """Return an input as XML, also where it is JSON. Raises SimulationError."""
    content, root = _content(path)
    return str(xml_write(root)).encode() if path.suffix == ".json" else content


def set_total_steps(root: ElementTree.Element, steps: int) -> None:
    """Have an input end at this step, counted from the first of all; where it does not say, i-PI's default holds."""
    total = root.find("total_steps")
    if total is None:
        total = ElementTree.SubElement(root, "total_steps")
    total.text = str(steps)


def set_start_folder(root: ElementTree.Element, folder: str) -> None:
    """Have an input find the files that it starts from in this folder, under the same names."""
    # of a <system_template> too, in which a name may have labels
    for entry in (entry for initialize in root.iter("initialize") for entry in initialize):
        mode = entry.get("mode", InputInitializer.dynamic[entry.tag][0].attribs["mode"][1]["default"])
        name = (entry.text or "").strip()
        if mode in _FROM_FILE and not Path(name).is_absolute():
            entry.text = f"{folder}/{name}"


def _parse(path: Path, root: Any) -> Any:
    """Return the file as i-PI's InputSimulation, unfetched."""
    tag, node = root.fields[0]
    if tag != "simulation":
        raise SimulationError(f"{path} is XML, but of <{tag}>", "an i-PI input begins with <simulation>")
    source = InputSimulation()
    with _refused_by_ipi(f"i-PI does not understand {path}"):
        source.parse(node)
    return source


def _smotions(entry: Any) -> tuple[str, ...]:
    mode = str(entry.mode.fetch())
    if mode == "multi":
        return tuple(name for _, inner in entry.extra for name in _smotions(inner))
    return () if mode == "dummy" else (mode,)


def _sockets(source: Any, prefix: str) -> Iterator[Socket]:
    for tag, entry in source.extra:
        if tag in SOCKET_TAGS:
            yield _socket(entry, prefix, None, False)
        elif tag == "ffcommittee":
            baseline = str(entry.baseline_name.fetch())
            committee = FFCommittee(
                bool(entry.parse_json.fetch()), float(entry.alpha.fetch()), baseline, len(entry.extra) - bool(baseline)
            )
            for inner, member in entry.extra:
                if inner == "ffsocket":
                    yield replace(_socket(member, _INNER_PREFIX, str(entry.name.fetch()), False), committee=committee)
        elif tag == "ffrotations" and entry.ffsocket.name.fetch() != "__DUMMY__":  # i-PI's default, meaning none
            yield _socket(entry.ffsocket, _INNER_PREFIX, str(entry.name.fetch()), True)


def _socket(entry: Any, prefix: str, parent: str | None, rotated: bool) -> Socket:
    forcefield = entry.fetch()  # an FFSocket binds its address only when it is started
    interface, cavity = forcefield.socket, getattr(forcefield, "ph", None)
    active = tuple(int(index) for index in np.atleast_1d(forcefield.active))
    return Socket(
        name=str(forcefield.name),
        mode=interface.mode,
        address=str(interface.address),
        port=int(interface.port),
        prefix=str(prefix),
        batch_size=int(interface.batch_size),
        slots=int(interface.slots),
        latency=float(forcefield.latency),
        timeout=float(interface.timeout),
        matching=interface.match_mode,
        consolidate=bool(interface.consolidate_messages),
        exit_on_disconnect=bool(interface.exit_on_disconnect),
        pbc=bool(forcefield.dopbc),
        active=None if active[:1] == (-1,) else active,
        offset=float(forcefield.offset),
        parent=parent,
        rotated=rotated,
        photons=None if cavity is None else cavity.n_photon if cavity.apply_photon else 0,
    )


def _without_photons(socket: Socket, systems: tuple[System, ...]) -> Socket:
    """Return the socket with the atoms that i-PI sends over it."""
    counts = [len(system.numbers) for system in systems if system.parts(socket.name)]
    if not socket.photons or not counts:
        return socket
    return replace(socket, active=tuple(range(counts[0] - socket.photons)))


def _replicas(tag: str, entry: Any) -> list[Any]:
    """Return i-PI's System objects of one `<system>` or `<system_template>`, not yet initialized."""
    if tag == "system":
        return [entry.fetch()]
    return cast("list[Any]", entry.fetch()) if tag == "system_template" else []


def _extras(outputs: Any, replicas: list[Any], systems: tuple[System, ...]) -> tuple[Extra, ...]:
    """Return the keys that this simulation reads from the extras, each once."""
    found: list[Extra] = []
    for replica, system in zip(replicas, systems, strict=True):
        forces, bias = system.forces, system.bias
        if np.any(np.asarray(replica.ensemble.hweights) != 1):
            bias += forces  # i-PI scales the forces by what it adds to the bias
        wanted = [
            # for `raw` i-PI writes the whole string, whatever keys it has
            ([] if output.extra_type == "raw" else output.extra_type.split(","), *_read(output.what, forces, bias))
            for output in outputs
            if isinstance(output, TrajectoryOutput) and output.what.startswith("extras")
        ]
        for motion in getattr(replica.motion, "mlist", [replica.motion]):
            if getattr(getattr(motion, "Born_Charges", None), "cbec", False):
                wanted.append((["BEC"], forces, False))
            if getattr(motion, "options", {}).get("frictionSD", False):
                wanted.append((["friction"], forces, False))
        for keys, parts, whole in wanted:
            asked = [part for part in parts if part.weight or whole]
            for key in map(str.strip, keys):
                # on contracted beads i-PI keeps only the keys that it interpolates
                senders = [part for part in asked if whole or part.nbeads == system.nbeads or key in part.interpolated]
                found.append(Extra(key, tuple(dict.fromkeys(part.forcefield for part in senders))))
            found += [Extra(other, (part.forcefield,)) for part in asked for other in part.interpolated]
    return tuple(dict.fromkeys(found))


def _read(what: str, forces: tuple[Component, ...], bias: tuple[Component, ...]) -> tuple[tuple[Component, ...], bool]:
    """Return the forces whose extras an output writes, and whether it writes them whatever their weight and beads."""
    name, _, arguments, _ = getall(what)
    if name != "extras_component_raw":
        return bias if name == "extras_bias" else forces, False
    index = int(arguments[0])
    return forces[index : index + 1], True


def _output(outputs: Any, number: int, output: Any, system: System) -> Output:
    """Return the files that i-PI writes of an output for one system; a checkpoint has all systems."""
    name = f"{outputs.prefix}.{output.filename}" if outputs.prefix else str(output.filename)
    stride = int(output.stride)
    if isinstance(output, CheckpointOutput):
        return Output(name, "checkpoint", stride, every=stride if output.overwrite else 0, number=number)
    name = f"{system.prefix}_{name}" if system.prefix else name
    every = stride * int(output.flush)
    if isinstance(output, PropertyOutput):
        asks = not EVALUATING_OUTPUTS.isdisjoint(map(getkey, output.outlist))
        table = Output(name, "properties", stride, tuple(_columns(output.outlist)), number=number, asks=asks)
        return table if table.step is None else replace(table, every=every)
    what = getkey(output.what)
    endings = tuple(_endings(output, what, system.nbeads))
    # in ASE's format the title line with the step is rewritten, and a binary file stores it as four bytes per letter
    says = endings and (what.startswith("extras") or output.format not in ("ase", "binary"))
    asks = what in EVALUATING_OUTPUTS
    return Output(name, "trajectory", stride, every=every if says else 0, number=number, asks=asks, endings=endings)


def _endings(output: Any, what: str, beads: int) -> Iterator[str]:
    """What i-PI appends to the name of a trajectory, as `TrajectoryOutput.open_stream` does."""
    form = "" if what.startswith("extras") else ".extxyz" if output.format == "ase" else f".{output.format}"
    if what not in (*_EACH_BEAD, "extras", "extras_bias"):
        yield form
        return
    digits = int(1 + np.floor(np.log(beads) / np.log(10)))
    for bead in range(beads):
        if bead == output.ibead or (output.ibead < 0 and bead % -output.ibead == 0):
            yield f"_{bead:0{digits}d}{form}"


def _columns(properties: Iterable[Any]) -> Iterator[str]:
    sizes = {key: about.get("size", 1) for key, about in Properties().property_dict.items()}
    for asked in map(str, properties):
        size = sizes.get(getkey(asked), 1)
        # a property without a fixed number of columns: i-PI cannot write the header either, and ends with an error
        several = isinstance(size, int) and size > 1
        yield from [f"{asked}[{column}]" for column in range(size)] if several else [asked]


def _bytes(output: Any, system: System) -> float:
    """Return roughly how many bytes one entry of this output adds to the disk."""
    atoms, beads = len(system.numbers), system.nbeads
    if isinstance(output, PropertyOutput):
        return 18.0 * len(list(_columns(output.outlist)))
    if not isinstance(output, TrajectoryOutput):  # a checkpoint: positions and momenta in full
        return 0.0 if output.overwrite else 130.0 * atoms * beads
    what = output.what.partition("(")[0].partition("{")[0].strip()
    if what.startswith("extras"):
        return 200.0 * beads
    if what not in _EACH_BEAD:
        return 48.0 * atoms + 100
    files = 1 if output.ibead >= 0 else -(-beads // -output.ibead)
    return (48.0 * atoms + 100) * files


def _locate(path: Path, replicas: list[Any], given: Path | None) -> tuple[Path, tuple[Path, ...]]:
    """Return i-PI's working directory, which may be given, and the files that it will read there; set the initializers
    to these files.
    """
    steps = [step for replica in replicas for _, step in replica.init.queue if step.mode in _FROM_FILE]
    files = tuple(dict.fromkeys(Path(step.value) for step in steps))
    folders = [Path.cwd(), path.parent] if given is None else [given.absolute()]
    for directory in folders:
        missing = [file for file in files if not (directory / file).is_file()]
        if not missing:
            for step in steps:
                step.value = str(directory / step.value)
            return directory, files
    looked = " and ".join(str(folder) for folder in dict.fromkeys(folders))
    remedy = "put it beside the input, or go to the directory where i-PI is to run" if given is None else "put it there"
    raise SimulationError(f"{path} starts from {str(missing[0])!r}, which is no file in {looked}", remedy)


def _system(path: Path, k: int, replica: Any) -> System:
    # without momenta: they need the thermostat's random numbers, and forces do not depend on them
    replica.init.queue = [(what, step) for what, step in replica.init.queue if what in _STRUCTURE]
    files = ", ".join(dict.fromkeys(str(step.value) for _, step in replica.init.queue if step.mode != "manual"))
    try:
        with _refused_by_ipi(f"i-PI cannot start system {k} of {path}" + (f" from {files}" if files else "")):
            replica.init.init_stage1(replica)
    except SimulationError:
        names = [str(name) for name in dstrip(replica.beads.names)]
        if all(names) and not (numbers := _numbers(names)).all():
            atom = int(np.argmin(numbers))  # i-PI's own error is about a missing mass: this names the atom
            raise _unknown(path, k, atom, names[atom]) from None
        raise
    beads, motion = replica.beads, replica.motion
    ensemble = replica.ensemble
    bias, weights, scales = ensemble.bcomp, dstrip(ensemble.bweights), dstrip(ensemble.hweights)
    for where, forces, tag, given in (
        ("bias", bias, "bias_weights", weights),
        ("forces", replica.fcomp, "hamiltonian_weights", scales),
    ):
        if 0 < len(given) < len(forces):  # without any, i-PI takes 1 for each; with too few it ends in the first step
            raise SimulationError(
                f"system {k} of {path} has {len(forces)} forces in <{where}> and {len(given)} numbers in <{tag}>",
                "give one for each force",
            )
    names = [str(name) for name in dstrip(beads.names)]
    numbers = _numbers(names)
    if not numbers.any():
        raise _unknown(path, k, 0, names[0])
    for mover in _movers(motion):  # <motion mode='replay'> opens its trajectories and never closes them
        for file in np.atleast_1d(getattr(mover, "rfile", [])):
            file.close()
    temperature, timestep = float(replica.ensemble.temp), float(motion.dt)
    return System(
        prefix=str(replica.prefix),
        nbeads=int(beads.nbeads),
        numbers=numbers,
        names=tuple(names),
        masses=np.array([unit_to_user("mass", "dalton", mass) for mass in dstrip(beads.m)]),
        positions=np.array(dstrip(beads.q)).reshape(beads.nbeads, -1, 3) * BOHR,
        cell=np.array(dstrip(replica.cell.h)).T * BOHR,
        forces=tuple(
            replace(
                _component(part, beads.nbeads, part.weight, tuple(float(weight) for weight in part.mts_weights)),
                scale=float(scale),
            )
            for part, scale in zip(replica.fcomp, scales if len(scales) else np.ones(len(replica.fcomp)), strict=False)
        ),
        temperature=float(unit_to_user("temperature", "kelvin", temperature)) if temperature > 0 else None,
        timestep=timestep * FEMTOSECOND if timestep > 0 else None,
        nmts=_nmts(motion)[0],
        motions=_motions(motion),
        # i-PI applies a bias in the outermost step, whatever its mts_weights are
        bias=tuple(_component(part, beads.nbeads, weight, ()) for part, weight in zip(bias, weights, strict=False)),
    )


def _component(part: Any, beads: int, weight: float, mts_weights: tuple[float, ...]) -> Component:
    count = int(part.nbeads)
    # i-PI's own rule: all beads where the number is not given, or larger than there are
    count = count if 0 < count < beads else int(beads)
    interpolated = tuple(str(key) for key in part.interpolate_extras)
    return Component(str(part.ffield), count, float(weight), mts_weights, interpolated)


def _movers(motion: Any) -> list[Any]:
    return list(getattr(motion, "mlist", [motion]))


def _nmts(motion: Any) -> list[tuple[int, ...]]:
    """The levels of time steps of every motion that has them; one level where none has."""
    found = [tuple(int(count) for count in dstrip(one.nmts)) for one in _movers(motion) if hasattr(one, "nmts")]
    return list(dict.fromkeys(found)) or [(1,)]


def _motions(motion: Any) -> tuple[str, ...]:
    """The motions of a system, in their order; dynamics by their ensemble."""
    # by exact type: a subclass may request forces in its own way
    names = [
        getattr(one, "enstype", "") if type(one) in (Dynamics, DrivenDynamics) else _MOTIONS.get(type(one), "other")
        for one in _movers(motion)
    ]
    return ("other",) if len(_nmts(motion)) > 1 else tuple(names)


def _numbers(names: list[str]) -> IntArray:
    return np.array([_ISOTOPES.get(name) or atomic_numbers.get(name, 0) for name in names], dtype=np.int_)


def _unknown(path: Path, k: int, atom: int, name: str) -> SimulationError:
    return SimulationError(
        f"atom {atom} of system {k} of {path} is called {name!r}, which is no element, so no model can evaluate it",
        "name it by its element, and give a special mass in <masses>",
    )
