"""LABELLER.toml: which code labels, with which settings, which part of a frame, and where it runs.

kind = "pyscf"        # one of LABELLERS
charge = 0            # of every frame; left out: the frame's own, or determined from the atoms
spin = 0              # unpaired electrons; left out: the frame's own, or 0
same_theory = false   # where labels of one name were made with other settings: whether that is one level of theory
attempts = 2          # of a frame, before it is marked as failed
[settings]            # those of the labeller: the fields of its class
theory = "CCSD"
basis = "cc-pVDZ"
[cut]                 # a cluster round the most uncertain atom; left out: the whole frame
molecules = 5
[jobs]                # see `jobs`; left out: one after the other, here
workers = 4
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from beadwork.errors import ConfigError
from beadwork.label.clusters import Cut
from beadwork.label.codes.ase_calculator import AseCalculator
from beadwork.label.codes.command import Command
from beadwork.label.codes.pyscf_labeller import PySCF
from beadwork.label.codes.qmc import JQMC
from beadwork.label.jobs import Jobs
from beadwork.label.label import Labeller, as_json
from beadwork.settings import NOT_NEGATIVE, at_least, check, required, setting
from beadwork.toml import build, names, read_toml

#: every kind of labeller, and whether it may take periodic frames
LABELLERS: dict[str, tuple[Callable[..., Labeller], bool]] = {
    "pyscf": (PySCF, False),
    "qmc": (JQMC, False),
    "ase": (AseCalculator, True),
    "command": (Command, True),
}
#: kinds whose method is named by the user, and the settings of each on which no number depends
USER_NAMED_METHODS = {
    "ase": {"estimate", "directory", "theory"},
    "command": {"estimate", "directory", "theory", "code", "version", "timeout", "keep"},
}


@dataclass(frozen=True)
class Spec:
    """A LABELLER.toml. settings: plain values as in the file, so that they can be sent to a worker elsewhere.

    here: folder to which relative paths in the settings refer. lease: s that a claim lasts without being renewed.
    same_theory: labels that were made under the same name with other settings are of this level of theory as well.
    """

    kind: str = field(metadata=required("what labels: `pyscf`, `qmc`, `ase` or `command`"))
    settings: Mapping[str, Any]
    charge: int | None = setting(None, "of every frame", "e", unset="the frame's own, or determined from the atoms")
    spin: int | None = setting(
        None, "of every frame", "unpaired electrons", rule=NOT_NEGATIVE, unset="the frame's own, or 0"
    )
    attempts: int = setting(2, "of a frame, before it is marked as failed", "attempts", rule=at_least(1))
    lease: float = setting(300.0, "that a claim lasts without being renewed", "s", rule=at_least(1))
    cut: Cut | None = setting(None, "a cluster round the most uncertain atom", unset="the whole frame")
    jobs: Jobs = setting(Jobs(), "where labels are computed", unset="one after the other, here")
    same_theory: bool = setting(
        False, "labels that were made under the same name with other settings are of one level of theory"
    )
    here: str = "."

    def __post_init__(self) -> None:
        if self.kind not in LABELLERS:
            raise ConfigError(f"there is no kind of labeller {self.kind!r}", f"choose from {', '.join(LABELLERS)}")
        check(self)

    def labeller(self) -> Labeller:
        """Make the labeller. Raises ConfigError for settings that it does not know or cannot run."""
        make, _ = LABELLERS[self.kind]
        made = build(make, self.settings, Path(self.here), f"{self.kind}: [settings]")
        if isinstance(made, Command) and self.jobs.slurm is None:  # nodes of a cluster may have other programs
            made.find()
        return cast(Labeller, made)

    @property
    def ignores_charge(self) -> bool:
        """Whether the labeller does not use charges, so that none has to be determined."""
        return bool(self.settings.get("ignores_charge", False))

    @property
    def periodic(self) -> bool:
        """Whether whole periodic frames may reach the labeller."""
        # PySCF and jQMC compute molecules here; of the others the user says it
        return LABELLERS[self.kind][1]

    @property
    def identity(self) -> str:
        """All on which a label depends besides its frame, as text."""
        # lease, attempts and jobs are left out: no number depends on them
        return as_json({"kind": self.kind, "settings": self.settings, "charge": self.charge, "spin": self.spin or 0})

    @property
    def settings_hash(self) -> str | None:
        """Hash of the settings that can change a label but need not appear in a method named by the user; else None."""
        if self.kind not in USER_NAMED_METHODS:
            return None
        used = {name: value for name, value in self.settings.items() if name not in USER_NAMED_METHODS[self.kind]}
        # 16 digits: it only has to differ from those of one queue
        return hashlib.sha256(as_json(used).encode()).hexdigest()[:16]


def read_spec(path: Path) -> Spec:
    """Read a LABELLER.toml. Raises ConfigError with what is wrong in it."""
    data = read_toml(path)
    # a table of its own: its names are those of the labeller's class, which `kind` decides
    settings = data.pop("settings", None)
    if not isinstance(settings, dict) or "kind" not in data:
        raise ConfigError(f"{path} wants kind = one of {', '.join(LABELLERS)}, and its settings in a table [settings]")
    settings = names(settings, f"{path}: [settings]")  # one spelling, because labels carry a hash of the settings
    # absolute: a worker stands in another folder
    extra = {"settings": settings, "here": str(path.parent.absolute())}
    spec: Spec = build(Spec, data, path.parent, str(path), extra)
    spec.labeller()  # wrong settings are refused here, not with the first frame
    return spec
