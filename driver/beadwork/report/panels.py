"""The curves of the page as data: what `report.sections` draws, and `beadwork report --csv` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from beadwork.disk import write_csv
from beadwork.events import WHOSE
from beadwork.frame import FloatArray
from beadwork.report.distribution import Distribution
from beadwork.report.quantities import Printed, average, printed
from beadwork.report.run import RunFolder


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. x: (N,). curves: by name, (N,) each, NaN where not known. errors: of those curves that have error
    bars, (N,) one standard deviation. Labels have their units.
    """

    section: str
    title: str
    x: FloatArray
    x_label: str
    curves: Mapping[str, FloatArray]
    y_label: str
    errors: Mapping[str, FloatArray] = field(default_factory=dict)


def of_quantities(run: RunFolder, section: str) -> list[tuple[Panel, list[Printed]]]:
    """The pictures of what i-PI printed, in one section: quantities of one unit and of the same steps share one, but
    for energies from their start, whose scales differ."""
    found: list[list[Printed]] = []
    for one in printed(run):
        if one.quantity.section != section:
            continue
        last = found[-1][-1] if found else None
        together = (
            last is not None
            and not one.quantity.relative
            and last.unit == one.unit
            and np.array_equal(last.steps, one.steps)
        )
        if together:
            found[-1].append(one)
        else:
            found.append([one])
    return [(_of(run, section, group), group) for group in found]


def _of(run: RunFolder, section: str, group: list[Printed]) -> Panel:
    x, label = run.clock(group[0].steps)
    one = group[0]
    title = one.label if len(group) == 1 and section != "Temperature" else section.lower()
    # short, so that the axis has room for all of it
    name = "change" if one.quantity.relative else one.quantity.axis or section.lower()
    curves = {one.label: one.drawn for one in group}
    return Panel(section, f"{title} over time", x, label, curves, f"{name} ({one.unit})")


def spreads(run: RunFolder) -> list[Panel]:
    """Force spread and energy spread of the committee; none without a committee."""
    known = np.isfinite(run.record[:, 4])
    if not known.any():
        return []
    record, (x, label) = run.record[known], run.when(known)
    section = "Spread of the committee"
    # a row does not say of which of several systems it is
    atoms = sum(run.composition.values()) if run.about.get("one_composition", True) else 0
    energy, unit = (1e3 * record[:, 3] / atoms, "meV/atom") if atoms else (1e3 * record[:, 3], "meV")
    return [
        Panel(
            section, "force spread over time", x, label,
            {"largest of any atom": 1e3 * record[:, 4]}, "force spread (meV/Å)",
        ),
        Panel(
            section, "energy spread over time", x, label,
            {"mean over the beads": energy}, f"energy spread ({unit})",
        ),
    ]  # fmt: skip


def elements(run: RunFolder) -> list[Panel]:
    """The force spread of each element."""
    curves = {name: 1e3 * values for name, values in run.elements.items() if np.isfinite(values).any()}
    if not curves:
        return []
    known = np.isfinite(next(iter(curves.values())))
    x, label = run.when(known)
    curves = {name: values[known] for name, values in curves.items()}
    return [Panel("Spread by element", "force spread by element over time", x, label, curves, "force spread (meV/Å)")]


def novelties(run: RunFolder) -> list[Panel]:
    """The largest novelty for each part of the potential, and by element."""
    parts = run.novelty_of_parts
    if not parts:
        return []
    x, label = run.when()
    found = [
        Panel(
            "Novelty", "novelty over time", x, label,
            {f"for {WHOSE[part]}": values for part, values in parts.items()}, "largest novelty (no unit)",
        )
    ]  # fmt: skip
    by_element = {name: values for name, values in run.novelty.items() if name not in WHOSE}
    by_element = {name: values for name, values in by_element.items() if np.isfinite(values).any()}
    if by_element:
        title = "novelty by element over time"
        found.append(Panel("Novelty", title, x, label, by_element, "largest novelty (no unit)"))
    return found


def timed(run: RunFolder) -> list[Panel]:
    """What each evaluation took, without the first, which loads and compiles."""
    after = after_start(run)
    if after.sum() < 2:
        return []
    x, label = run.when(after)
    curves = {"evaluation": 1e3 * run.record[after, 5]}
    return [Panel("Where the time goes", "time over the run", x, label, curves, "time of an evaluation (ms)")]


def after_start(run: RunFolder) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Rows of the record that are timed."""
    after = ~(run.record[:, 0] <= 0)
    after[:1] = False  # whatever its step, it also loads and compiles
    return after


def of_distribution(found: Distribution) -> list[Panel]:
    """g(r) of each pair, with both errors together."""
    r = found.radial.distances
    panels = []
    for name, values in found.radial.pairs.items():
        error = found.error(name)
        errors = {} if error is None else {name: error}
        curves = {name: values.mean(axis=0)}
        panels.append(Panel("Radial distribution functions", name, r, "distance (Å)", curves, "g(r) (no unit)", errors))
    return panels


def write(run: RunFolder, found: Distribution | None, path: Path) -> int:
    """Write every curve of the page into a CSV file, a line a point, and every average; return how many lines.

    A curve over time has no error bar of its points; an average has one where the run is long enough, and g(r) that of
    the committee. Raises ConfigError or ResourceError.
    """
    columns: dict[str, list[object]] = {name: [] for name in ("section", "curve", "x", "x_is", "y", "y_is", "error")}

    def add(*row: object) -> None:
        for of, value in zip(columns.values(), row, strict=True):
            of.append(value)

    for panel in _all(run, found):
        for name, y in panel.curves.items():
            errors = panel.errors.get(name, np.full(len(y), np.nan))
            for at, value, error in zip(panel.x, y, errors, strict=True):
                add(panel.section, name, float(at), panel.x_label, float(value), panel.y_label, float(error))
    for one in printed(run):
        mean = average(one)
        told = f"average of {one.label} over the second half ({one.unit})"
        add("Averages", one.label, None, "", mean.mean, told, mean.error)
    write_csv(path, columns)
    return len(columns["x"])


def _all(run: RunFolder, found: Distribution | None) -> Iterator[Panel]:
    for section in dict.fromkeys(one.quantity.section for one in printed(run)):
        yield from (panel for panel, _ in of_quantities(run, section))
    yield from spreads(run)
    yield from elements(run)
    yield from novelties(run)
    yield from of_distribution(found) if found is not None else ()
    yield from timed(run)
