"""What a user may set, from a TOML file, the command line, or both (the command line wins).

The TOML keys are the names of the fields below, with dashes as the options have them or with underscores.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from beadwork.errors import ConfigError
from beadwork.toml import names
from beadwork.toml import read as read_toml

ROLES = ("sum", "baseline", "delta")
ENGINES = ("auto", "native", "torchscript")
DTYPES = ("float64", "float32")
ON_MARK = ("stop", "count")
NOVELTY_OF = ("both", "baseline", "delta")


@dataclass(frozen=True)
class ServeConfig:
    """Everything that `beadwork serve` and `beadwork run` take. Paths as the user typed them."""

    simulation: str = ""  #: i-PI's XML or RESTART
    baseline: str | None = None  #: bundle of the baseline
    delta: list[str] = field(default_factory=list)  #: bundles, or a committee's folder, or a file naming one
    at: dict[str, str] = field(default_factory=dict)  #: forcefield's name -> sum, baseline or delta
    engine: str = "auto"  #: auto, native or torchscript
    dtype: str = "float64"  #: float64 or float32
    device: str = "cpu"  #: cpu or cuda, the first GPU that the process sees
    devices: list[str] = field(default_factory=list)  #: a server on each of these, or on `all` GPUs (docs/devices.md)
    servers: int = 0  #: how many servers share the beads of this i-PI; 0: as many as `devices`, or this one alone
    threads: int = 0  #: threads of the engines; 0: every core this process may use
    sockets_prefix: str | None = None  #: what i-PI has as its option -S; default: the XML's sockets_prefix
    host: str | None = None  #: where i-PI runs, if its inet address cannot be dialled as it stands
    periodic: bool = True  #: whether the system is periodic; i-PI does not say
    connections: int = 0  #: connections a forcefield; 0: as many as fill a ring polymer
    patience: float = 60.0  #: seconds to wait for an i-PI that is not there; 0: none
    silence: float = 3600.0  #: seconds that a connected i-PI may ask for nothing before it is given up; 0: for ever
    alpha: float | None = None  #: scale of the deviations of the members' forces; default: the committee's card
    energy_alpha: float | None = None  #: the same of their energies; default: `alpha` if given, else the card
    weights: list[float] | None = None  #: one a member; default: the committee's card
    baseline_uncertainty: float | None = None  #: eV of the whole system; turns the weighted baseline on
    baseline_uncertainty_atom: float | None = None  #: eV/atom; the same for systems of any size (docs/formulas.md)
    member_forces: bool = False  #: send every member's forces and virial in the extras
    queue: str | None = None  #: SQLite file or PostgreSQL URL for the frames kept
    keep_force: list[float] | None = None  #: band of the largest force spread, eV/Å; default: the committee's card
    keep_energy: list[float] = field(default_factory=list)  #: band of the energy spread, eV/atom
    keep_novelty: float = 1.0  #: frames with an atom of more novelty are kept (1: the edge of training); inf: none
    keep_novelty_of: str = "both"  #: whose novelty that is: both, baseline or delta (docs/novelty.md)
    cooldown: int = 10  #: steps (evaluations where no step is known) between two kept frames; 0 keeps all
    keep_most: int = 100  #: frames kept in one run, with those of this input that the queue holds without a label
    distance: float = 0.03  #: Å; structures closer than this are the same (docs/formulas.md says how it is measured)
    on_mark: str = "stop"  #: stop or count: what is done when one of the marks below is passed
    mark_distance: float = 0.3  #: Å; no two atoms may be closer; 0: no mark (below 0.2 Å the run ends in any case)
    mark_force: float = 100.0  #: eV/Å; no atom's force may be larger; inf: no mark
    mark_spread: float = 5.0  #: eV/Å; no atom's force spread may be larger; inf: no mark
    mark_novelty: float = math.inf  #: no atom's novelty may be larger; inf: no mark
    out: str = "."  #: folder for beadwork.out, status.json, summary.json and run.png
    metrics: str | int | None = None  #: PORT or HOST:PORT for Prometheus; without a host this machine alone can ask

    def check(self) -> ServeConfig:
        """Return self, or raise ConfigError with what is wrong and what to do."""
        if not self.simulation:
            raise ConfigError("no simulation named; give i-PI's XML or RESTART file")
        if self.baseline is None and not self.delta:
            raise ConfigError("no model named; give --baseline, --delta or both")
        _one_of("engine", self.engine, ENGINES)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("on-mark", self.on_mark, ON_MARK)
        _one_of("keep-novelty-of", self.keep_novelty_of, NOVELTY_OF)
        _check_devices(self)
        for name, role in self.at.items():
            _one_of(f"the role of forcefield {name!r}", role, ROLES)
            if role != "delta" and self.baseline is None:
                raise ConfigError(f"forcefield {name!r} is to serve the {role}, but there is no --baseline")
            if role == "delta" and not self.delta:
                raise ConfigError(f"forcefield {name!r} is to serve the delta, but there is no --delta")
        for name, band in (("keep-force", self.keep_force), ("keep-energy", self.keep_energy)):
            if band and (len(band) > 2 or any(mark < 0 for mark in band) or sorted(band) != list(band)):
                raise ConfigError(f"{name} is {band}; it wants LOW or LOW HIGH, not negative, low first")
        if self.queue and not self.delta:
            raise ConfigError("a queue keeps what the committee is unsure of; give --delta as well, or no --queue")
        marks = ("keep_novelty", "mark_distance", "mark_force", "mark_spread", "mark_novelty")
        for name in ("patience", "silence", "cooldown", "keep_most", "threads", "connections", "servers", *marks):
            if not getattr(self, name) >= 0:  # NaN is no number either
                raise ConfigError(f"{name.replace('_', '-')} is {getattr(self, name)}; it cannot be negative")
        for name in ("alpha", "energy_alpha", "baseline_uncertainty", "baseline_uncertainty_atom"):
            if getattr(self, name) is not None and not sensible(getattr(self, name)):
                raise ConfigError(f"{name.replace('_', '-')} is {getattr(self, name)}; it wants a number {SENSE}")
        if not all(map(weighs, self.weights or [])):
            raise ConfigError(f"weights is {self.weights}; it wants numbers {SENSE}, or 0")
        if self.metrics is not None:
            listen_at(self.metrics)
        return self


#: of what scales a spread or an energy, and weighs members: with more, squares and sums leave nothing of the rest
SENSE = "from 1e-6 to 1e6"


def sensible(number: float) -> bool:
    """Whether a scale is one that can be meant; False for NaN."""
    return 1e-6 <= number <= 1e6


def weighs(weight: float) -> bool:
    """The same of a member's weight, which may be 0."""
    return weight == 0 or sensible(weight)


def _check_devices(config: ServeConfig) -> None:
    if config.device not in ("cpu", "cuda"):
        raise ConfigError(
            f"device is {config.device!r}; it wants cpu or cuda (for another GPU than the first: CUDA_VISIBLE_DEVICES)"
        )
    for device in config.devices:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device) and config.devices != ["all"]:
            raise ConfigError(
                f"devices names {device!r}; it wants cpu, cuda or cuda:N, with commas between them, or all alone"
            )
    if config.devices and config.device != "cpu":
        raise ConfigError(f"device {config.device} and devices {','.join(config.devices)} are both set; choose one")
    if 0 < config.servers < len(config.devices):
        raise ConfigError(
            f"servers is {config.servers} with {len(config.devices)} devices, each of which is a server; leave it out, "
            "or count those on other machines as well"
        )


def listen_at(where: str | int) -> tuple[str, int]:
    """Return host and port of PORT, HOST:PORT or [HOST]:PORT; loopback where no host is named. Raises ConfigError."""
    host, _, port = str(where).rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"metrics is {where!r}; it wants PORT or HOST:PORT; port 0 takes a free one")
    return host.strip("[]") or "127.0.0.1", int(port)


def _one_of(name: str, got: str, choices: tuple[str, ...]) -> None:
    if got not in choices:
        raise ConfigError(f"{name} is {got!r}; choose from {', '.join(choices)}")


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file; relative paths in it count from its own folder, the queue's too. Raises ConfigError."""
    known = {f.name: f for f in fields(ServeConfig)}
    data = names(read_toml(path), str(path))
    for key, value in data.items():
        name = key.replace("_", "-")
        if key == "not_periodic":
            raise ConfigError(f"{path} sets {name}, as it is typed; in a file it is periodic = false")
        if key not in known:
            listed = ", ".join(sorted(known)).replace("_", "-")
            raise ConfigError(f"{path} sets {name!r}, which is no option; known are {listed}")
        if key in _ALONE and isinstance(value, str):
            data[key] = value = _ALONE[key](value)
        default = getattr(ServeConfig(), key)
        kind = type(default) if default is not None else None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            data[key] = float(value)
        elif kind is not None and type(value) is not kind:
            raise ConfigError(f"{path}: {name} is {value!r}; it wants {_KINDS[kind]}")
        several, lists = isinstance(value, list), "list" in str(known[key].type)
        if (inner := _INSIDE.get(key)) and not (several == lists and _holds(value, inner)):
            wanted = "a list" if lists and not several else _KINDS[inner] + ", or several in a list" * lists
            raise ConfigError(f"{path}: {name} is {value!r}; it wants {wanted}")
    here = path.parent
    for key in ("simulation", "baseline", "queue", "out"):
        if not isinstance(data.get(key, ""), str):
            raise ConfigError(f"{path}: {key} is {data[key]!r}; it wants a text")
        if data.get(key) and "://" not in data[key]:
            data[key] = str(here / data[key])
    if "delta" in data:
        data["delta"] = [str(here / member) for member in data["delta"]]
    return data


#: lists of which one text stands for the whole, as it is typed
_ALONE: dict[str, Callable[[str], list[str]]] = {"delta": lambda text: [text], "devices": lambda text: text.split(",")}
#: what options without a default of their own kind hold, or lists and tables have in them
_INSIDE: dict[str, type] = {
    **dict.fromkeys(("delta", "devices", "at", "host", "sockets_prefix"), str),
    **dict.fromkeys(
        (
            "keep_force",
            "keep_energy",
            "weights",
            "alpha",
            "energy_alpha",
            "baseline_uncertainty",
            "baseline_uncertainty_atom",
        ),
        float,
    ),
}


def _holds(value: Any, kind: type) -> bool:
    """Whether all of a list or a table, or the value itself, is of this kind."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    whole = (int, float) if kind is float else (kind,)
    return all(isinstance(part, whole) and not isinstance(part, bool) for part in parts)


_KINDS = {
    str: "a text",
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


def resolve(typed: dict[str, Any], simulation: str | None = None) -> ServeConfig:
    """Join a TOML file, if `simulation` names one, with what was typed, and check the whole.

    simulation: to be taken in place of the one in the file.
    """
    settings = dict(typed)
    if str(settings.get("simulation", "")).endswith(".toml"):
        settings = {**read(Path(settings.pop("simulation"))), **settings}
    if simulation is not None:
        settings["simulation"] = simulation
    return ServeConfig(**settings).check()
