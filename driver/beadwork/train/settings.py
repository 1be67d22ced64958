"""How to train: everything that a TOML file for `beadwork train` may set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beadwork.errors import ConfigError
from beadwork.label.jobs import Jobs
from beadwork.toml import build
from beadwork.toml import read as read_toml
from beadwork.train.split import APART


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. Everything a TOML file for `beadwork train` may set. Raises ConfigError for what cannot be done."""

    members: int = 4  #: of the committee
    held_out: float = 0.2  #: share of the frames kept for tests, the same for all members
    apart: int = APART  #: steps of a simulation; no frame held out is closer to one that is learned from
    share: float = 0.8  #: of the other frames, what each member draws; the rest choose its best epoch
    seed: int = 0  #: of splits and draws; member m starts from random weights with seed + m
    epochs: int = 60  #: the last quarter is mace's stage two, with stage_two_energy_weight
    batch_size: int = 5  #: frames
    lr: float = 0.01  #: learning rate at the start; it falls to a twentieth
    hidden_irreps: str = "16x0e"  #: features of an atom, as e3nn writes them
    r_max: float = 5.0  #: cutoff, Å
    energy_weight: float = 30.0  #: of the squared error of the energy an atom (eV)
    forces_weight: float = 100.0  #: of the squared error of a force component (eV/Å)
    stage_two_energy_weight: float = 1000.0  #: the same in the last quarter
    energy_floor: float = 0.001  #: eV/atom; errors below it all count the same
    forces_floor: float = 0.02  #: eV/Å
    pair_repulsion: bool = False  #: add a ZBL repulsion: for a baseline, not for a Δ
    dtype: str = "float32"  #: of the training
    device: str = "cpu"  #: cpu or cuda
    threads: int = 1  #: of each training process
    jobs: Jobs | None = None  #: where members train; None: here, as many at the same time as there are cores for

    def __post_init__(self) -> None:
        for name, least in (("members", 1), ("epochs", 2), ("batch_size", 1), ("threads", 1), ("apart", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("lr", "r_max", "energy_floor", "forces_floor"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive")
        if not 0 <= self.held_out < 1 or not 0 < self.share < 1:
            raise ConfigError(
                f"held_out is {self.held_out} and share is {self.share}; they are fractions, and share must leave "
                "some frames to choose the best epoch"
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
