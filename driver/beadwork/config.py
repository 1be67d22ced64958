"""What a user may set, from a TOML file, the command line, or both (the command line wins).

Each class below is a group of options; a part of the program is given the group that it reads, or single values. The
TOML keys are the names of the fields, with dashes as the options have them or with underscores.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beadwork.errors import ConfigError
from beadwork.settings import NOT_NEGATIVE, Options, Rule, at_least, check, one_of, setting
from beadwork.toml import fit, read_toml

# what a forcefield may answer with: i-PI can contract Δ, or take longer time steps over it, where it is served apart
ROLES = ("sum", "baseline", "delta")
# what further models may answer with, beside the forces
ALSO = ("dipole", "polarizability")
# what is added to the baseline by formula: dispersion (atm: with three-body terms, which D4 has always), and the
# repulsion of close nuclei
ADDITIONS = ("d3bj", "d3bj-atm", "d3zero", "d3zero-atm", "d4", "zbl")
ENGINES = ("auto", "native", "torchscript", "eager")
DTYPES = ("float64", "float32")
ON_MARK = ("stop", "count")
NOVELTY_OF = ("both", "baseline", "delta")

#: of what scales a spread or an energy, and weighs members: with more, squares and sums leave nothing of the rest
SENSE = "from 1e-6 to 1e6"


def sensible(number: float) -> bool:
    """Whether a scale is one that can be meant; False for NaN."""
    return 1e-6 <= number <= 1e6


def weighs(weight: float) -> bool:
    """The same of a member's weight, which may be 0."""
    return weight == 0 or sensible(weight)


def listen_at(where: str | int) -> tuple[str, int]:
    """Return host and port of PORT, HOST:PORT or [HOST]:PORT; loopback where no host is named. Raises ConfigError."""
    # from the right: an IPv6 address has colons itself, and stands in brackets
    host, _, port = str(where).rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"metrics is {where!r}", "it wants PORT or HOST:PORT; port 0 takes a free one")
    # loopback: the metrics tell who can reach them what runs here, and have no password
    return host.strip("[]") or "127.0.0.1", int(port)


def _window(marks: list[float]) -> bool:
    return len(marks) <= 2 and all(mark >= 0 for mark in marks) and sorted(marks) == list(marks)


SCALE = Rule(sensible, f"it wants a number {SENSE}")
WEIGHTS = Rule(lambda weights: all(map(weighs, weights)), f"it wants numbers {SENSE}, or 0")
WINDOW = Rule(_window, "it wants LOW or LOW HIGH, not negative, low first")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Options):
    """Models."""

    baseline: str | None = setting(None, "bundle of the baseline model", metavar="DIR", path=True)
    delta: list[str] = setting(
        [], "bundles of the Δ models, or a committee's folder, or a file that names one", metavar="DIR", path=True
    )
    at: dict[str, str] = setting(
        {}, "what a forcefield of the XML is served, where it has several: sum, baseline or delta", metavar="NAME=ROLE"
    )
    also: dict[str, str] = setting(
        {},
        "what more is answered, dipole or polarizability, by which bundle or committee's folder (docs/extras.md)",
        metavar="ROLE=DIR",
        path=True,
    )
    add: dict[str, str] = setting(
        {},
        f"what is added to the baseline by formula: {', '.join(ADDITIONS)}, with whose parameters (docs/models.md)",
        metavar="KIND=PARAMETERS",
    )
    engine: str = setting(
        "auto",
        "auto takes native where it is there and agrees with torchscript, else torchscript, else eager",
        choices=ENGINES,
    )
    dtype: str = setting("float64", "precision of the models", choices=DTYPES)
    device: str = setting("cpu", "cpu, or cuda for the first GPU that the process sees", metavar="DEVICE")
    charge: int | None = setting(
        None, "of the whole system, for models that want it; 0 where it is neutral", "e", unset="not told to the models"
    )
    spin: int | None = setting(
        None,
        "unpaired electrons of the whole system, the same",
        "electrons",
        rule=NOT_NEGATIVE,
        unset="not told either",
    )
    alpha: float | None = setting(
        None, "scale of the deviations of the members' forces", "", rule=SCALE, unset="that of the committee's card"
    )
    energy_alpha: float | None = setting(
        None, "the same of their energies", "", rule=SCALE, unset="alpha if given, else the card's"
    )
    weights: list[float] | None = setting(
        None, "weights of the members, one each", "", rule=WEIGHTS, unset="those of the committee's card"
    )
    baseline_uncertainty: float | None = setting(
        None, "of the baseline's energy of the whole system; turns the weighted baseline on", "eV", rule=SCALE
    )
    baseline_uncertainty_atom: float | None = setting(
        None, "the same per atom, for systems of any size (docs/formulas.md)", "eV/atom", rule=SCALE
    )


@dataclass(frozen=True, kw_only=True)
class IpiSettings(Options):
    """i-PI and its sockets."""

    simulation: str = setting(
        "", "i-PI's XML or RESTART file, or a TOML file with these options", metavar="FILE", path=True
    )
    periodic: bool = setting(
        True,
        "whether the system is periodic, which i-PI does not say; --not-periodic: it has no cell",
        negation="not-periodic",
    )
    sockets_prefix: str | None = setting(
        None,
        "what i-PI has as its option -S; `beadwork run` starts it with this",
        unset="the XML's sockets_prefix",
        metavar="PREFIX",
    )
    host: str | None = setting(
        None, "where i-PI runs, if its inet address cannot be dialled as it stands", metavar="HOST"
    )
    # one a bead without batching: i-PI gives a connection one structure at a time
    connections: int = setting(
        0, "connections of a forcefield; 0: as many as fill a ring polymer", "connections", rule=NOT_NEGATIVE
    )
    patience: float = setting(
        60.0, "how long to wait for an i-PI that is not there; 0: not at all", "s", rule=NOT_NEGATIVE
    )
    # i-PI has no message for being busy with another forcefield, so its silence may be that, or the end
    silence: float = setting(
        3600.0,
        "how long a connected i-PI may ask for nothing before it is given up; 0: for ever",
        "s",
        rule=NOT_NEGATIVE,
    )


@dataclass(frozen=True, kw_only=True)
class MachineSettings(Options):
    """Machine."""

    devices: list[str] = setting(
        [],
        "a server on each of these, with commas between them, or on `all` GPUs (docs/devices.md)",
        metavar="DEVICES",
        commas=True,
    )
    servers: int = setting(
        0,
        "how many share this i-PI, here and on other machines; 0: one a device, or this one alone",
        "servers",
        rule=NOT_NEGATIVE,
    )
    threads: int = setting(
        0, "of the engines; 0: one for every core that this process may use", "threads", rule=NOT_NEGATIVE
    )


@dataclass(frozen=True, kw_only=True)
class SelectionSettings(Options):
    """Frames kept for labels."""

    queue: str | None = setting(
        None, "keep what the committee is unsure of: SQLite file or PostgreSQL URL", metavar="Q", path=True
    )
    keep_force: list[float] | None = setting(
        None,
        "selection window of the largest force spread: LOW, or LOW HIGH",
        "eV/Å",
        rule=WINDOW,
        unset="that of the committee's card",
        metavar="MARK",
    )
    keep_energy: list[float] = setting(
        [], "selection window of the energy spread: LOW, or LOW HIGH", "eV/atom", rule=WINDOW, metavar="MARK"
    )
    keep_novelty: float = setting(
        1.0,
        "frames with an atom of this novelty or more are kept (1: the edge of training); inf: none",
        "",
        rule=NOT_NEGATIVE,
    )
    keep_novelty_of: str = setting("both", "whose novelty that is (docs/novelty.md)", choices=NOVELTY_OF)
    # frames of neighbouring steps are nearly the same: a second label of one teaches little
    cooldown: int = setting(
        10,
        "steps between two kept frames (evaluations where no step is known); 0 keeps all",
        "steps",
        rule=NOT_NEGATIVE,
    )
    keep_most: int = setting(
        100,
        "frames kept in one run by one committee at most, with those of this input and committee that the queue holds "
        "without a label; one that is activated while i-PI runs counts from 0",
        "frames",
        rule=NOT_NEGATIVE,
    )
    distance: float = setting(
        0.03, "structures closer than this are the same (docs/formulas.md says how it is measured)", "Å"
    )


@dataclass(frozen=True, kw_only=True)
class LimitSettings(Options):
    """Marks that end the run."""

    on_mark: str = setting(
        "stop", "what is done when a threshold below is exceeded: stop i-PI, or count and go on", choices=ON_MARK
    )
    mark_distance: float = setting(
        0.3,
        "no two atoms may be closer; 0: no threshold (below 0.2 Å the run ends in any case)",
        "Å",
        rule=NOT_NEGATIVE,
    )
    mark_force: float = setting(100.0, "no atom's force may be larger; inf: no threshold", "eV/Å", rule=NOT_NEGATIVE)
    mark_spread: float = setting(
        5.0, "no atom's force spread may be larger; inf: no threshold", "eV/Å", rule=NOT_NEGATIVE
    )
    # what is new is no error by itself: D3 does not care about a proton (docs/novelty.md)
    mark_novelty: float = setting(math.inf, "no atom's novelty may be larger; inf: no threshold", "", rule=NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Options):
    """Output."""

    out: str = setting(".", "folder for beadwork.out, status.json, summary.json and run.png", metavar="DIR", path=True)
    metrics: str | int | None = setting(
        None, "serve Prometheus metrics here; without a host only this machine can ask", metavar="[HOST:]PORT"
    )
    # off: forces of 4 members for 32 beads of 192 atoms cost 45 ms a step as JSON
    member_forces: bool = setting(False, "send every member's forces and virial in the extras")
    # each look costs a backward pass for every head, which is most of what a shared trunk saves
    force_spread_every: int = setting(
        10,
        "members on one trunk are asked for the spread of forces so seldom, and for every frame kept",
        "evaluations",
        rule=at_least(1),
    )


#: the groups of options, in the order in which help and docs show them
GROUPS = (IpiSettings, ModelSettings, MachineSettings, SelectionSettings, LimitSettings, OutputSettings)


# a dataclass takes the fields of its last base first
@dataclass(frozen=True, kw_only=True)
class ServeConfig(OutputSettings, LimitSettings, SelectionSettings, MachineSettings, ModelSettings, IpiSettings):
    """Everything that `beadwork serve` and `beadwork run` take. Paths as the user typed them."""

    def check(self) -> ServeConfig:
        """Return self, or raise ConfigError with what is wrong and what to do."""
        if not self.simulation:
            raise ConfigError("no simulation named", "give i-PI's XML or RESTART file")
        # before anything is loaded: i-PI must not be started for a run that cannot be
        if self.baseline is None and not self.delta:
            raise ConfigError(
                f"no model named for {self.simulation}",
                "give --baseline, --delta or both, or a TOML file that has them",
            )
        check(self)
        _check_devices(self)
        for name, role in self.at.items():
            one_of(f"the role of forcefield {name!r}", role, ROLES)
            if role != "delta" and self.baseline is None:
                raise ConfigError(f"forcefield {name!r} is to serve the {role}, but there is no --baseline")
            if role == "delta" and not self.delta:
                raise ConfigError(f"forcefield {name!r} is to serve the delta, but there is no --delta")
        for role in self.also:
            one_of("also", role, ALSO)
        for kind in self.add:
            one_of("add", kind, ADDITIONS)
        if self.add and self.baseline is None:
            raise ConfigError("add names what is added to the baseline, and there is none", "give --baseline")
        if "d4" in self.add and self.charge is None:
            raise ConfigError("add has d4, which wants the total charge", "give --charge, also where it is 0")
        if self.queue and not self.delta:
            raise ConfigError("a queue keeps what the committee is unsure of", "give --delta as well, or no --queue")
        if self.metrics is not None:
            listen_at(self.metrics)
        return self


def _check_devices(config: ServeConfig) -> None:
    # engines choose no GPU by number: each process sees one, which is the first
    if config.device not in ("cpu", "cuda"):
        raise ConfigError(
            f"device is {config.device!r}",
            "it wants cpu or cuda (for another GPU than the first: CUDA_VISIBLE_DEVICES)",
        )
    for device in config.devices:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device) and config.devices != ["all"]:
            raise ConfigError(
                f"devices names {device!r}", "it wants cpu, cuda or cuda:N, with commas between them, or all alone"
            )
    if config.devices and config.device != "cpu":
        raise ConfigError(f"device {config.device} and devices {','.join(config.devices)} are both set", "choose one")
    if 0 < config.servers < len(config.devices):
        raise ConfigError(
            f"servers is {config.servers} with {len(config.devices)} devices, each of which is a server",
            "leave it out, or count those on other machines as well",
        )


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file; relative paths in it count from its own folder, the queue's too. Raises ConfigError."""
    return fit(ServeConfig, read_toml(path), path.parent, str(path))


def resolve(typed: dict[str, Any], simulation: str | None = None) -> ServeConfig:
    """Join a TOML file, if `simulation` names one, with what was typed, and check the whole.

    simulation: to be taken in place of the one in the file.
    """
    settings = dict(typed)
    if str(settings.get("simulation", "")).endswith(".toml"):
        # what is typed wins
        settings = {**read(Path(settings.pop("simulation"))), **settings}
    if simulation is not None:
        settings["simulation"] = simulation
    return ServeConfig(**settings).check()
