"""run.png: temperature, energy and spread against time, from what i-PI and beadwork wrote."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from beadwork.observe.outputs import read_about, read_properties, read_record


def draw(properties: Path, record: Path, picture: Path) -> str:
    """Draw what there is of the three panels, and return a sentence that says where it is or why it is not.

    Needs matplotlib (extra `plots`), a property file of i-PI's with a step column, and one line in each file.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "no picture: matplotlib is not installed (pip install 'beadwork[plots]')"
    run, units = read_properties(properties) if properties.exists() else ({}, {})
    ours, _ = read_record(record)
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
    panels[0].set_ylabel(f"temperature ({units.get('temperature', 'not written')})")
    for name, style in (("potential", "-"), ("conserved", "--")):
        if name in run:
            panels[1].plot(run[clock], run[name] - run[name][0], style, lw=1, label=f"{name} − start")
    panels[1].set_ylabel(f"energy ({units.get('potential', 'not written')})")
    if panels[1].lines:
        panels[1].legend(frameon=False)
    about = read_about(record)
    if about.get("joined"):
        panels[2].set_title("over the time since the server came to an i-PI under way, from the left", fontsize="small")
        ours[:, 0] += run["step"][0]
    else:
        ours[:, 0] += about.get("first_step", 0)  # ours begin with 0, i-PI's with those of its RESTART
    where = np.interp(ours[:, 0], run["step"], run[clock])
    panels[2].plot(where, 1e3 * ours[:, 4], lw=1, label="largest force spread (meV/Å)")
    panels[2].plot(where, 1e3 * ours[:, 3], lw=1, label="energy spread, mean over beads (meV)")
    panels[2].set_ylabel("committee spread")
    panels[2].set_xlabel(f"{clock} ({units[clock]})" if clock == "time" else clock)
    panels[2].set_ylim(bottom=0)
    panels[2].legend(frameon=False)
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
    return f"the run's picture is {picture}"
