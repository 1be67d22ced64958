"""run.png: temperature, energy and spread against time, from what i-PI and beadwork wrote."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from beadwork.frame import FloatArray

_COLUMN = re.compile(r"#\s*column\s+(\d+)\s+-->\s+(\w+)(?:\{(\w+)\})?")


def read_properties(path: Path) -> dict[str, FloatArray]:
    """Read an i-PI property file by the names in its header; columns without a header line are left out."""
    names = {}
    with open(path) as lines:
        for line in lines:
            if not line.startswith("#"):
                break
            if match := _COLUMN.match(line):
                names[match[2]] = int(match[1]) - 1
    table = np.loadtxt(path, ndmin=2)
    return {name: table[:, column] for name, column in names.items()}


def read_record(path: Path) -> FloatArray:
    """Read beadwork.out: step, structures, energy, energy spread, force spread, seconds; (evaluations, 6)."""
    table = np.loadtxt(path, ndmin=2)
    return table.reshape(-1, 6)


def draw(properties: Path, record: Path, picture: Path) -> None:
    """Draw the three panels. Needs matplotlib (extra `plots`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    run = read_properties(properties)
    ours = read_record(record)
    # i-PI's units: its header says what the XML asked for; time is in ps and energies in eV in our inputs
    axis = run.get("time", run["step"])
    label = "time (ps)" if "time" in run else "step"
    figure, panels = pyplot.subplots(3, 1, sharex=True, figsize=(7, 7), constrained_layout=True)
    panels[0].plot(axis, run["temperature"], lw=1)
    panels[0].set_ylabel("temperature (K)")
    for name, style in (("potential", "-"), ("conserved", "--")):
        if name in run:
            panels[1].plot(axis, run[name] - run[name][0], style, lw=1, label=name)
    panels[1].set_ylabel("energy − start (eV)")
    panels[1].legend(frameon=False)
    where = np.interp(ours[:, 0], run["step"], axis)
    panels[2].plot(where, 1e3 * ours[:, 4], lw=1, label="largest force spread (meV/Å)")
    panels[2].plot(where, 1e3 * ours[:, 3], lw=1, label="energy spread, mean over beads (meV)")
    panels[2].set_ylabel("committee spread")
    panels[2].set_xlabel(label)
    panels[2].set_ylim(bottom=0)
    panels[2].legend(frameon=False)
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
