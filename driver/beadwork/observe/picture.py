"""run.png: temperature, energy and spread against time, from what i-PI and beadwork wrote."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np

from beadwork.frame import FloatArray

_COLUMN = re.compile(r"#\s*column\s+(\d+)\s+-->\s+(\w+)(?:\{(\w+)\})?")


def _header(path: Path) -> dict[str, tuple[int, str]]:
    """Column and unit of every property that the header names."""
    with open(path) as lines:
        found = [match for line in lines if line.startswith("#") and (match := _COLUMN.match(line))]
    return {match[2]: (int(match[1]) - 1, match[3] or "atomic units") for match in found}


def units(path: Path, name: str) -> str:
    """Unit of a property, as the header of i-PI's file has it."""
    return _header(path).get(name, (0, "not written"))[1]


def read_properties(path: Path) -> dict[str, FloatArray]:
    """Read an i-PI property file by the names in its header; columns that it does not name are left out."""
    table = _table(path)
    return {name: table[:, column] for name, (column, _) in _header(path).items() if table.size}


def _table(path: Path) -> FloatArray:
    """The numbers of a file, a row a line; (0, 0) where there are none."""
    with open(path) as lines:
        rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return np.array(rows, dtype=np.float64) if rows else np.empty((0, 0))


def read_record(path: Path) -> FloatArray:
    """Read beadwork.out: step, structures, energy, energy spread, force spread, seconds; (evaluations, 6)."""
    return _table(path).reshape(-1, 6)


def draw(properties: Path, record: Path, picture: Path) -> str:
    """Draw what there is of the three panels, and return a sentence that says where it is or why it is not.

    Needs matplotlib (extra `plots`), a property file of i-PI's with a step column, and one line in each file.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "no picture: matplotlib is not installed (pip install 'beadwork[plots]')"
    run = read_properties(properties) if properties.exists() else {}
    ours = read_record(record)
    if not len(run.get("step", ())) or not len(ours):
        return f"no picture: {properties} has no steps, or {record} no evaluations"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # units as i-PI's header names them: whatever the XML asked for
    clock = "time" if "time" in run else "step"
    figure, panels = pyplot.subplots(3, 1, sharex=True, figsize=(7, 7), constrained_layout=True)
    if "temperature" in run:
        panels[0].plot(run[clock], run["temperature"], lw=1)
    panels[0].set_ylabel(f"temperature ({units(properties, 'temperature')})")
    for name, style in (("potential", "-"), ("conserved", "--")):
        if name in run:
            panels[1].plot(run[clock], run[name] - run[name][0], style, lw=1, label=f"{name} − start")
    panels[1].set_ylabel(f"energy ({units(properties, 'potential')})")
    if panels[1].lines:
        panels[1].legend(frameon=False)
    where = np.interp(ours[:, 0], run["step"], run[clock])
    panels[2].plot(where, 1e3 * ours[:, 4], lw=1, label="largest force spread (meV/Å)")
    panels[2].plot(where, 1e3 * ours[:, 3], lw=1, label="energy spread, mean over beads (meV)")
    panels[2].set_ylabel("committee spread")
    panels[2].set_xlabel(f"{clock} ({units(properties, clock)})" if clock == "time" else clock)
    panels[2].set_ylim(bottom=0)
    panels[2].legend(frameon=False)
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
    return f"the run's picture is {picture}"
