"""run.png: temperature, energy, spread and novelty against time, from the files of i-PI and beadwork."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from beadwork.events import WHOSE
from beadwork.report.figures import LOG_AXIS_ABOVE
from beadwork.report.run import read_run


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

    shown = {name: run.properties[name] for name in ("temperature", "potential", "conserved") if name in run.properties}
    # where i-PI was under way its step at our step 0 is not known: both series begin at the left of the picture
    first = next((series.steps[0] for series in shown.values() if len(series.steps)), 0) if run.joined else run.first
    steps = [series.steps for series in shown.values()] + [run.record[:, 0] + first]
    together, label = run.clock(np.concatenate(steps))
    *clocks, ours = np.split(together, np.cumsum([len(part) for part in steps])[:-1])
    new = run.novelty_of_parts
    rows = 4 if new else 3
    figure, panels = pyplot.subplots(rows, 1, sharex=True, figsize=(7, 7 * rows / 3), constrained_layout=True)
    # units as the XML asked for them
    units = {"temperature": "not written", "energy": "not written"}
    for (name, series), where in zip(shown.items(), clocks, strict=True):
        if name == "temperature":
            panels[0].plot(where, series.values, lw=1)
            units["temperature"] = series.unit
        else:
            style = "-" if name == "potential" else "--"
            panels[1].plot(where, series.values - series.values[:1], style, lw=1, label=f"{name} − start")
            units["energy"] = series.unit
    for panel, quantity in zip(panels, units, strict=False):
        panel.set_ylabel(f"{quantity} ({units[quantity]})")
    if panels[1].lines:
        panels[1].legend(frameon=False)
    if run.joined:
        panels[2].set_title("over the time since the server came to an i-PI under way, from the left", fontsize="small")
    if len(ours) and not np.isfinite(ours).any():
        panels[2].set_title(
            "the steps of its evaluations are not known: beadwork.out has them one by one", fontsize="small"
        )
    for column, what in ((4, "largest force spread (meV/Å)"), (3, "energy spread, mean over beads (meV)")):
        # members on one trunk have a force spread now and then: between two gaps no line would be drawn
        known = np.isfinite(run.record[:, column])
        panels[2].plot(ours[known], 1e3 * run.record[known, column], lw=1, label=what)
    panels[2].set_ylabel("committee spread")
    panels[2].set_ylim(bottom=0)
    panels[2].legend(frameon=False)
    if new:
        for part, values in new.items():
            panels[3].plot(ours, values, lw=1, label=f"largest novelty for {WHOSE[part]}")
        panels[3].axhline(1, color="0.4", ls=":", lw=1, label="1: the edge of training")
        panels[3].set_ylabel("novelty")
        if max(float(np.nanmax(values)) for values in new.values()) > LOG_AXIS_ABOVE:
            panels[3].set_yscale("log")
        else:
            panels[3].set_ylim(bottom=0)
        panels[3].legend(frameon=False)
    panels[-1].set_xlabel(label)
    picture = folder / "run.png"
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
    return f"the run's picture is {picture}"
