"""Read a run from its folder: all data of which the report is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beadwork.disk import DAMAGE, damage
from beadwork.errors import ConfigError
from beadwork.events import WHOSE
from beadwork.frame import FloatArray
from beadwork.ipi.outputs import Series, read_properties
from beadwork.observe.record import NAME, read_about, read_record
from beadwork.report.viewer import Shown


@dataclass(frozen=True)
class RunFolder:
    """The contents of a run's folder; empty or None where there is nothing.

    about: the second line of beadwork.out. record: (evaluations, 6), as `read_record` returns it. elements: symbol ->
    (evaluations,) eV/Å. novelty: 'baseline', 'delta' or symbol -> (evaluations,), the largest. properties: i-PI's, of
    the first system; each from the first file that has it. kept: this run's frames in the queue. gaps: messages about
    missing data, by section.
    """

    folder: Path
    about: dict[str, Any]
    summary: dict[str, Any]
    record: FloatArray
    elements: dict[str, FloatArray]
    novelty: dict[str, FloatArray]
    properties: dict[str, Series]
    kept: list[Shown]
    gaps: dict[str, str]

    @property
    def novelty_of_parts(self) -> dict[str, FloatArray]:
        """(evaluations,) the largest novelty, for each part of the potential that has a training set."""
        return {part: self.novelty[part] for part in WHOSE if np.isfinite(self.novelty.get(part, np.nan)).any()}

    @property
    def directory(self) -> Path:
        """Where i-PI ran."""
        return self.folder / str(self.about.get("directory", "."))

    @property
    def first(self) -> int:
        """i-PI's step at our step 0; 0 where that is not known."""
        return 0 if self.joined else int(self.about.get("first_step", 0))

    @property
    def joined(self) -> bool:
        """Whether i-PI was under way when the server connected, so that the two counts cannot be compared."""
        return bool(self.about.get("joined"))

    def when(self, rows: NDArray[np.bool_] | slice = slice(None)) -> tuple[FloatArray, str]:
        """Times of these rows of the record, and their label; NaN where not known, evaluations where no row has a
        step."""
        steps = self.record[rows, 0]
        if len(steps) and not np.isfinite(steps).any():
            return np.arange(1.0, len(self.record) + 1)[rows], "evaluation"
        return self.clock(steps + self.first, own=True)

    def clock(self, steps: FloatArray, own: bool = False) -> tuple[FloatArray, str]:
        """i-PI's steps as a time with its unit; the steps themselves where the time step is not known.

        own: steps counted by the server, which are not i-PI's where it was under way when the server connected.
        """
        step = self.about.get("time_step_fs")
        since = " since the server connected" if own and self.joined else ""
        known = steps[np.isfinite(steps)]
        if not step or not len(known):
            return steps, f"step{since}" if since else "step of i-PI"
        longest = float(known.max()) * step
        # one unit for the whole axis, so that its numbers stay below a thousand
        size, unit = (1.0, "fs") if longest < 1e3 else (1e3, "ps") if longest < 1e6 else (1e6, "ns")
        return steps * step / size, f"time{since} ({unit})"


def read_run(folder: Path) -> RunFolder:
    """Read the files of a run, without the queue. Raises ConfigError where there is no beadwork.out."""
    record = folder / NAME
    if not record.exists():
        raise ConfigError(f"{folder} holds no run: there is no beadwork.out", "name the folder that --out named")
    about = read_about(record)
    gaps: dict[str, str] = {}
    summary: dict[str, Any] = {}
    if (folder / "summary.json").exists():
        try:
            summary = dict(json.loads((folder / "summary.json").read_text(encoding="utf-8", errors="replace")))
        except (ValueError, TypeError):  # the record is shown all the same: it may be all that is left of a long run
            gaps["summary"] = "summary.json is empty or truncated, as a full disk leaves it. Its totals are left out."
    else:
        gaps["summary"] = "There is no summary.json: the run goes on, or was killed. Its totals are left out."
    if about.get("cut"):
        text = "The line <code># run:</code> of beadwork.out is truncated: its input and its queue are not known."
        gaps["summary"] = f"{gaps.get('summary', '')} {text}".strip()
    properties: dict[str, Series] = {}
    try:
        properties = _properties(folder / about.get("directory", "."), about)
    except DAMAGE as cause:
        gaps["properties"] = f"i-PI's property files, or their entry in beadwork.out, are damaged: {damage(cause)}."
    if not properties and "properties" not in gaps:
        gaps["properties"] = (
            "i-PI's property files are not there, or are empty: write one with <code>&lt;properties&gt; [ step, "
            "temperature{kelvin}, potential{electronvolt}, conserved{electronvolt} ] &lt;/properties&gt;</code>."
        )
    return RunFolder(folder, about, summary, *read_record(record), properties, [], gaps)


def _properties(directory: Path, about: Mapping[str, Any]) -> dict[str, Series]:
    found: dict[str, Series] = {}
    clock = about.get("first_step", 0), about.get("time_step_fs")
    named = about.get("properties", {})
    for name in named:
        entry = named[name] if isinstance(named, dict) else {}  # an older beadwork wrote the names alone
        if (directory / name).exists():
            asked = entry.get("columns", ()), entry.get("stride", 1)
            found = read_properties(directory / name, *asked, *clock) | found
    return found
