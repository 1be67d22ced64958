"""A run as its folder tells of it: all that the report is made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.errors import ConfigError
from beadwork.frame import FloatArray
from beadwork.observe import outputs
from beadwork.observe.viewer import Shown


@dataclass(frozen=True)
class Run:
    """What was found in a run's folder; empty or None where there is nothing.

    about: the second line of beadwork.out. record: (evaluations, 6), as `read_record` has it. elements: symbol ->
    (evaluations,) eV/Å. properties: i-PI's, in the units of `units`. kept: this run's frames
    in the queue. gaps: sentences about what is missing.
    """

    folder: Path
    about: dict[str, Any]
    summary: dict[str, Any]
    record: FloatArray
    elements: dict[str, FloatArray]
    properties: dict[str, FloatArray]
    units: dict[str, str]
    kept: list[Shown]
    gaps: dict[str, str]

    @property
    def directory(self) -> Path:
        """Where i-PI ran."""
        return self.folder / str(self.about.get("directory", "."))

    @property
    def first(self) -> int:
        """The step of i-PI's that our step 0 is; 0 where that is not known."""
        return 0 if self.joined else int(self.about.get("first_step", 0))

    @property
    def joined(self) -> bool:
        """Whether i-PI was under way when the server came, so that the two counts cannot be held together."""
        return bool(self.about.get("joined"))

    def clock(self, steps: FloatArray) -> tuple[FloatArray, str]:
        """i-PI's steps as a time with its unit; the steps themselves where the time step is not known."""
        step = self.about.get("time_step_fs")
        if not step or not len(steps):
            return steps, "step since the server came" if self.joined else "step of i-PI"
        longest = float(np.max(steps)) * step
        size, unit = (1.0, "fs") if longest < 1e3 else (1e3, "ps") if longest < 1e6 else (1e6, "ns")
        return steps * step / size, f"time since the server came ({unit})" if self.joined else f"time ({unit})"


def load(folder: Path) -> Run:
    """Read what a run left, but for the queue. Raises ConfigError where there is no beadwork.out."""
    record = folder / "beadwork.out"
    if not record.exists():
        raise ConfigError(f"{folder} holds no run: there is no beadwork.out; name the folder that --out named")
    about = outputs.read_about(record)
    gaps: dict[str, str] = {}
    summary: dict[str, Any] = {}
    if (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
    else:
        gaps["summary"] = "There is no summary.json: the run goes on, or was killed. What it sums up is left out."
    properties: dict[str, FloatArray] = {}
    units: dict[str, str] = {}
    named = [folder / about.get("directory", ".") / name for name in about.get("properties", ())]
    for path in [path for path in named if path.exists()][:1]:
        properties, units = outputs.read_properties(path)
    if "step" not in properties or not len(properties["step"]):
        properties = {}
        gaps["properties"] = (
            "i-PI's property file is not there, is empty or has no column of steps: write one with "
            "<code>&lt;properties&gt; [ step, temperature{kelvin}, potential{electronvolt}, conserved{electronvolt} ] "
            "&lt;/properties&gt;</code>."
        )
    return Run(folder, about, summary, *outputs.read_record(record), properties, units, [], gaps)
