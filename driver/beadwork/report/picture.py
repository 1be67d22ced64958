"""run.png: temperature, energy, spread and novelty against time, from the files of i-PI and beadwork."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.events import WHOSE
from beadwork.frame import FloatArray
from beadwork.ipi.outputs import Series
from beadwork.report.figures import LOG_AXIS_ABOVE
from beadwork.report.run import RunFolder, read_run


def draw(folder: Path) -> str:
    """Draw the panels for which there are data, and return a message with the file, or why there is none.

    folder: of the run. Needs matplotlib and one evaluation. Raises what `read_run` raises.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "no picture: matplotlib is not installed (pip install matplotlib)"
    run = read_run(folder)
    if not len(run.record):
        return f"no picture: {folder / 'beadwork.out'} has no evaluations"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    asked = ("temperature", "potential", "conserved")
    shown: dict[str, Series] = {name: run.properties[name] for name in asked if name in run.properties}
    # where i-PI was under way its step at our step 0 is not known: both series begin at the left of the picture
    first = next((series.steps[0] for series in shown.values() if len(series.steps)), 0) if run.joined else run.first
    steps = [series.steps for series in shown.values()] + [run.record[:, 0] + first]
    together, label = run.clock(np.concatenate(steps))
    *clocks, ours = np.split(together, np.cumsum([len(part) for part in steps])[:-1])
    new = run.novelty_of_parts
    rows = 4 if new else 3
    figure, panels = pyplot.subplots(rows, 1, sharex=True, figsize=(7, 7 * rows / 3), constrained_layout=True)
    _of_ipi(panels, shown, clocks)
    _spread(panels[2], run, ours)
    if new:
        _novelty(panels[3], new, ours)
    panels[-1].set_xlabel(label)
    picture = folder / "run.png"
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
    return f"the run's picture is {picture}"


def _of_ipi(panels: Any, shown: Mapping[str, Series], clocks: Sequence[FloatArray]) -> None:
    """Temperature and energies as i-PI wrote them, in two panels."""
    # units as the XML asked for them
    units = {"temperature": "not written", "energy": "not written"}
    for (name, series), where in zip(shown.items(), clocks, strict=True):
        if name == "temperature":
            panels[0].plot(where, series.values, lw=1)
            units["temperature"] = series.unit
        else:
            style = "-" if name == "potential" else "--"
            # from their start on: total energies of hundreds of eV would hide how far they drift apart
            panels[1].plot(where, series.values - series.values[:1], style, lw=1, label=f"{name} − start")
            units["energy"] = series.unit
    for panel, quantity in zip(panels, units, strict=False):
        panel.set_ylabel(f"{quantity} ({units[quantity]})")
    if panels[1].lines:
        panels[1].legend(frameon=False)


def _spread(panel: Any, run: RunFolder, ours: FloatArray) -> None:
    """The committee's spreads. ours: the time of each evaluation, as the picture has it."""
    if run.joined:
        panel.set_title("over the time since the server came to an i-PI under way, from the left", fontsize="small")
    if len(ours) and not np.isfinite(ours).any():
        panel.set_title(
            "the steps of its evaluations are not known: beadwork.out has them one by one", fontsize="small"
        )
    for column, what in ((4, "largest force spread (meV/Å)"), (3, "energy spread, mean over beads (meV)")):
        # members on one trunk have a force spread now and then: between two gaps no line would be drawn
        known = np.isfinite(run.record[:, column])
        panel.plot(ours[known], 1e3 * run.record[known, column], lw=1, label=what)
    panel.set_ylabel("committee spread")
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False)


def _novelty(panel: Any, new: Mapping[str, FloatArray], ours: FloatArray) -> None:
    """The largest novelty for each part of the potential."""
    for part, values in new.items():
        panel.plot(ours, values, lw=1, label=f"largest novelty for {WHOSE[part]}")
    panel.axhline(1, color="0.4", ls=":", lw=1, label="1: the edge of training")
    panel.set_ylabel("novelty")
    if max(float(np.nanmax(values)) for values in new.values()) > LOG_AXIS_ABOVE:
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0)
    panel.legend(frameon=False)
