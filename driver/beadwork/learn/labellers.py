"""LABELLER.toml: which code labels, with which settings, of which part of a frame, and where it runs.

kind = "pyscf"        # one of KINDS
charge = 0            # of every frame; told from the atoms where it is left out
spin = 0              # unpaired electrons
attempts = 2          # of a frame, before it is set aside
[settings]            # those of the labeller: the fields of its class
theory = "CCSD"
basis = "cc-pVDZ"
[cut]                 # a cluster round the most uncertain atom; left out: the whole frame
molecules = 5
[jobs]                # see `jobs`; left out: one after the other, here
workers = 4
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from beadwork.errors import ConfigError
from beadwork.learn.ase_calculator import AseCalculator
from beadwork.learn.clusters import Cut
from beadwork.learn.command import Command
from beadwork.learn.jobs import Jobs
from beadwork.learn.label import Labeller, as_json
from beadwork.learn.pyscf_labeller import PySCF
from beadwork.learn.qmc import JQMC
from beadwork.toml import read as read_toml

#: every kind of labeller, and whether it may take periodic frames
KINDS: dict[str, tuple[Callable[..., Labeller], bool]] = {
    "pyscf": (PySCF, False),
    "qmc": (JQMC, False),
    "ase": (AseCalculator, True),
    "command": (Command, True),
}


@dataclass(frozen=True)
class Spec:
    """A LABELLER.toml. settings: as they stand there, plain values, so that a worker elsewhere can be told.

    here: folder that relative paths in the settings count from. lease: s that a claim lasts without a sign of life.
    """

    kind: str
    settings: Mapping[str, Any]
    charge: int | None = None
    spin: int = 0
    attempts: int = 2
    lease: float = 300.0
    cut: Cut | None = None
    jobs: Jobs = field(default_factory=Jobs)
    here: str = "."

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"there is no kind of labeller {self.kind!r}; choose from {', '.join(KINDS)}")
        if self.attempts < 1 or not self.lease >= 1 or self.spin < 0:
            raise ConfigError(
                "attempts and lease are 1 or more, and spin is 0 or more; got "
                f"{self.attempts}, {self.lease} and {self.spin}"
            )

    def labeller(self) -> Labeller:
        """Make the labeller. Raises ConfigError for settings that it does not know or cannot run."""
        make, _ = KINDS[self.kind]
        return typing.cast(Labeller, build(make, self.settings, Path(self.here), f"{self.kind}: [settings]"))

    @property
    def periodic(self) -> bool:
        """Whether whole periodic frames may reach the labeller."""
        return KINDS[self.kind][1]

    @property
    def identity(self) -> str:
        """All that a label depends on beside its frame, as text."""
        return as_json({"kind": self.kind, "settings": self.settings, "charge": self.charge, "spin": self.spin})


def read(path: Path) -> Spec:
    """Read a LABELLER.toml. Raises ConfigError with what is wrong in it."""
    data = read_toml(path)
    settings = data.pop("settings", None)
    if not isinstance(settings, dict) or "kind" not in data:
        raise ConfigError(f"{path} wants kind = one of {', '.join(KINDS)}, and its settings in a table [settings]")
    if "here" in data:
        raise ConfigError(f"{path} sets 'here', which is its own folder")
    spec: Spec = build(Spec, data | {"settings": settings, "here": str(path.parent.absolute())}, path.parent, str(path))
    spec.labeller()
    return spec


def build(make: Callable[..., Any], given: Mapping[str, Any], here: Path, where: str) -> Any:
    """Make a dataclass of a table of TOML: names and types are checked, tables become the dataclasses that they name.

    A field of type Path counts from `here`. Raises ConfigError.
    """
    known = {f.name: f for f in fields(make)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(make)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"{where} sets {', '.join(unknown)}, which is no option; known are {', '.join(known)}")
    missing = [
        name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING and name not in given
    ]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return make(**{name: _fitted(value, hints[name], here, f"{where}: {name}") for name, value in given.items()})


def _fitted(value: Any, hint: Any, here: Path, where: str) -> Any:
    """The value as its field wants it."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        kind = typing.get_origin(option) or option
        if is_dataclass(kind) and isinstance(value, dict):
            return build(typing.cast(Callable[..., Any], kind), value, here, where)
        if kind is Path and isinstance(value, str):
            return here / Path(value).expanduser()
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind in (str, int, float, bool) and type(value) is kind:
            return value
        if kind is Sequence and isinstance(value, list):
            return tuple(value)
        if kind is Mapping and isinstance(value, dict):
            return value
    names = " or ".join(getattr(typing.get_origin(o) or o, "__name__", str(o)) for o in options if o is not type(None))
    raise ConfigError(f"{where} is {value!r}; it wants {names}")
