"""Read a run from its folder: all data of which the report is made."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from beadwork.disk import DAMAGE, damage
from beadwork.errors import ConfigError
from beadwork.events import WHOSE
from beadwork.frame import FloatArray
from beadwork.ipi.outputs import Files, Series, read_properties
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
        # columns are there for both parts; one that knows nothing has NaN alone
        return {part: self.novelty[part] for part in WHOSE if np.isfinite(self.novelty.get(part, np.nan)).any()}

    @property
    def composition(self) -> dict[str, int]:
        """How many atoms there are of each element; of an older run by its frames kept, empty where it has none."""
        told = self.about.get("composition")
        if isinstance(told, dict):
            return {str(symbol): int(count) for symbol, count in told.items()}
        if not self.kept:
            return {}
        return dict(Counter(chemical_symbols[z] for z in self.kept[0].frame.numbers))

    @property
    def labels(self) -> dict[str, int]:
        """How many atoms there are of each name, by which i-PI's properties are asked for; of older runs by element."""
        told = self.about.get("labels")
        return {str(name): int(count) for name, count in told.items()} if isinstance(told, dict) else self.composition

    @property
    def directory(self) -> Path:
        """Where i-PI ran."""
        return self.folder / str(self.about.get("directory", "."))

    @property
    def files(self) -> Files:
        """Where i-PI's trajectories and extras are."""
        about = self.about
        told, beads = about.get("trajectories"), about.get("beads")
        names = None if told is None else tuple(tuple(map(str, one)) for one in told)
        return Files(self.directory, str(about.get("outputs", "")), None if beads is None else int(beads), names)

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
    """Read the files of a run, without the queue. Raises ConfigError where there is no beadwork.out.

    Of several servers on this machine (`--devices`) the folder has none, but those of the servers have.
    """
    record = folder / NAME
    if not record.exists() and (servers := servers_of(folder)):
        return _join(folder, [read_run(server) for server in servers])
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


def servers_of(folder: Path) -> list[Path]:
    """The folders of a run's servers, those that died and were started again among them."""
    named = {path.parent for path in folder.glob(f"dev-*/{NAME}")}
    return sorted(path for path in named if re.fullmatch(r"dev-\d+(-died-\d+)?", path.name))


def _join(folder: Path, servers: list[RunFolder]) -> RunFolder:
    """One run of several servers, each of which has answered for some beads of every step."""
    first = servers[0]

    def from_here(name: str) -> str:
        return os.path.relpath(first.folder.resolve() / name, folder.resolve())

    about = first.about | {"joined": any(server.joined for server in servers)}
    if "directory" in about:
        about["directory"] = from_here(about["directory"])
    if about.get("queue") not in (None, "elsewhere"):
        about["queue"] = from_here(about["queue"])
    gaps = dict(first.gaps)
    summary: dict[str, Any] = {}
    if all(server.summary for server in servers) and (folder / "summary.json").exists():
        gaps.pop("summary", None)
        summary = _sum([server.summary for server in servers])
        summary |= json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        summary["why"] = "; ".join(str(server.summary["why"]) for server in servers if server.summary.get("exit_code"))
    else:
        gaps["summary"] = (
            "Some of its servers have no summary.json: they go on, or were killed. The totals are left out."
        )
    return RunFolder(folder, about, summary, *_join_records(servers), first.properties, [], gaps)


def _join_records(servers: Sequence[RunFolder]) -> tuple[FloatArray, dict[str, FloatArray], dict[str, FloatArray]]:
    """A row a step: energies are means over the structures, spreads by element root mean squares; the largest of the
    rest. Rows of which no step is known stay as they are, at the end.
    """
    record = np.concatenate([server.record for server in servers])
    steps, row = np.unique(record[:, 0], return_inverse=True, equal_nan=False)
    structures = np.bincount(row, record[:, 1], len(steps))

    def mean(values: FloatArray) -> FloatArray:
        known = np.where(np.isfinite(values), record[:, 1], 0.0)
        with np.errstate(invalid="ignore"):
            return np.asarray(
                np.bincount(row, known * np.nan_to_num(values), len(steps)) / np.bincount(row, known, len(steps))
            )

    def largest(values: FloatArray) -> FloatArray:
        found = np.full(len(steps), np.nan)
        np.fmax.at(found, row, values)
        return found

    def column(columns: Sequence[dict[str, FloatArray]], name: str) -> FloatArray:
        unknown = [np.full(len(server.record), np.nan) for server in servers]
        return np.concatenate([of.get(name, none) for of, none in zip(columns, unknown, strict=True)])

    spreads, novelties = [server.elements for server in servers], [server.novelty for server in servers]
    joined = [steps, structures, mean(record[:, 2]), mean(record[:, 3]), largest(record[:, 4]), largest(record[:, 5])]
    return (
        np.stack(joined, axis=1),
        {name: np.sqrt(mean(column(spreads, name) ** 2)) for name in spreads[0]},
        {name: largest(column(novelties, name)) for name in novelties[0]},
    )


def _sum(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of several servers: sums of what each did, and the pace of the slowest, for which the others wait."""
    slowest = max(summaries, key=lambda one: one.get("seconds_per_step") or 0.0)
    summary = dict(slowest)
    for key in ("evaluations", "structures_evaluated", "frames_kept"):
        summary[key] = sum(one.get(key) or 0 for one in summaries)
    steps = [one["steps"] for one in summaries if one.get("steps")]
    summary["steps"] = max(steps) if steps else None
    summary["marks_passed"] = dict(sum((Counter(one.get("marks_passed") or {}) for one in summaries), Counter[str]()))
    news = [one["novelty"] for one in summaries if one.get("novelty")]
    if news:
        parts = {part for one in news for part in one["largest"]}
        summary["novelty"] = {
            **{key: sum(one[key] for one in news) for key in ("structures", "new_structures", "new_atoms")},
            "largest": {part: max(one["largest"].get(part, 0.0) for one in news) for part in sorted(parts)},
        }
    return summary


def _properties(directory: Path, about: Mapping[str, Any]) -> dict[str, Series]:
    found: dict[str, Series] = {}
    clock = about.get("first_step", 0), about.get("time_step_fs")
    named = about.get("properties", {})
    for name in named:
        entry = named[name] if isinstance(named, dict) else {}  # an older beadwork wrote the names alone
        if (directory / name).exists():
            asked = entry.get("columns", ()), entry.get("stride", 1)
            # what is on the left is overwritten: the first file that has a property counts
            found = read_properties(directory / name, *asked, *clock) | found
    return found
