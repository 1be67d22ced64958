"""The settings of a training: all that a TOML file for `beadwork train` may contain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beadwork.errors import ConfigError
from beadwork.label.jobs import Jobs
from beadwork.settings import NOT_NEGATIVE, POSITIVE, at_least, check, setting
from beadwork.toml import build, read_toml
from beadwork.train.split import APART

#: what members have in common: nothing, or all but their readouts
SEPARATE, SHARED = "separate", "shared"


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """All settings that a TOML file for `beadwork train` may contain. Raises ConfigError for impossible values."""

    members: int = setting(4, "members of the committee", "members", rule=at_least(1))
    trunk: str = setting(
        SEPARATE,
        "separate: each member is a model; shared: all are heads of one",
        choices=(SEPARATE, SHARED),
    )
    held_out: float = setting(
        0.2, "share of the frames kept for tests, by solute and composition, the same for all members", ""
    )
    apart: int = setting(
        APART,
        "in a simulation, no frame held out is closer to one that is learned from; 0: frame by frame",
        "steps",
        rule=NOT_NEGATIVE,
    )
    share: float = setting(0.8, "share of the other frames that each member draws; the rest choose its best epoch", "")
    seed: int = setting(0, "of splits and draws; member m starts from random weights with seed + m", "")
    epochs: int = setting(
        60, "the last quarter is mace's stage two, with stage_two_energy_weight", "epochs", rule=at_least(2)
    )
    batch_size: int = setting(5, "frames a batch", "frames", rule=at_least(1))
    lr: float = setting(0.01, "learning rate at the start; it falls to a twentieth", "", rule=POSITIVE)
    hidden_irreps: str = setting("16x0e", "features of an atom, as e3nn writes them")
    r_max: float = setting(5.0, "cutoff", "Å", rule=POSITIVE)
    energy_weight: float = setting(30.0, "weight of the squared error of the energy per atom", "atom²/eV²")
    forces_weight: float = setting(100.0, "weight of the squared error of a force component", "Å²/eV²")
    stage_two_energy_weight: float = setting(1000.0, "energy_weight in the last quarter", "atom²/eV²")
    energy_floor: float = setting(0.001, "errors of the energy below it all count the same", "eV/atom", rule=POSITIVE)
    forces_floor: float = setting(0.02, "errors of the forces below it all count the same", "eV/Å", rule=POSITIVE)
    pair_repulsion: bool = setting(False, "add a ZBL repulsion: for a baseline, not for a Δ")
    dtype: str = setting("float32", "precision of the training: float32 or float64")
    device: str = setting("cpu", "cpu or cuda")
    threads: int = setting(1, "threads of each training process", "threads", rule=at_least(1))
    jobs: Jobs | None = setting(
        None, "where members train", unset="here, as many at the same time as there are cores for"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.trunk == SHARED and self.members < 2:
            raise ConfigError("trunk is shared by one member", "give it members = 2 or more, or leave trunk out")
        if not 0 <= self.held_out < 1 or not 0 < self.share < 1:
            raise ConfigError(
                f"held_out is {self.held_out} and share is {self.share}",
                "they are fractions, and share must leave some frames to choose the best epoch",
            )

    @classmethod
    def read(cls, file: Path) -> TrainSettings:
        """Read a TOML file. Raises ConfigError."""
        return cls.from_table(read_toml(file), str(file))

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str) -> TrainSettings:
        """Take a table of a TOML file. Raises ConfigError for unknown keys and values of a wrong kind."""
        settings: TrainSettings = build(cls, table, Path(), where)
        return settings
