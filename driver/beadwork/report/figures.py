"""The report's pictures: SVG by matplotlib, in colours that are readable on white and on black.

Text has the page's own colour. Long series are drawn as means over intervals, with the range of each interval behind
them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from beadwork.frame import FloatArray
from beadwork.report.radial import Radial

#: at least 3:1 against white and against the dark page
COLOURS = ("#3b82c4", "#c96f1a", "#2a9d6f", "#c0508c", "#8a6fd1", "#8f8420", "#7a7a7a")
#: a colour that occurs nowhere else; replaced by the page's own text colour
_INK = "#010203"
#: points of a line; of more, intervals are drawn: a million points would make an SVG of many MB
_POINTS = 1500
#: the axis is logarithmic above this novelty: on a linear one values below 1 could not be seen
LOG_AXIS_ABOVE = 10.0
#: of all pictures, in a page or alone
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "axes.formatter.useoffset": False,
}
_STYLE = {
    **STYLE,
    "font.family": "DejaVu Sans",  # part of matplotlib
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "savefig.transparent": True,
}


def _start(rows: int = 1, columns: int = 1, height: float = 2.6) -> tuple[Any, Any]:
    """A figure of the page's width with its panels."""
    import matplotlib

    matplotlib.use("Agg")  # nodes of a cluster have no display
    from matplotlib import pyplot

    matplotlib.rcParams.update(_STYLE)
    figure, panels = pyplot.subplots(rows, columns, figsize=(8.6, height), constrained_layout=True)
    return figure, panels


def _svg(figure: Any, title: str) -> str:
    """The figure as an element of a page, closed."""
    from matplotlib import pyplot

    text = io.StringIO()
    # without the date: the same run gives the same page
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    # so that text is dark on the white page and light on the dark one
    svg = text.getvalue().replace(_INK, "currentColor")
    return f'<svg role="img" aria-label="{title}"' + svg[svg.index("<svg") + 4 :]


def _line(panel: Any, x: FloatArray, y: FloatArray, colour: str, label: str) -> None:
    known = np.isfinite(x) & np.isfinite(y)  # NaN: steps that are not known, evaluations without a committee
    x, y = x[known], y[known]
    if len(x) > _POINTS:
        # a third: an interval is a point and the two ends of its range
        size = -(-len(x) // (_POINTS // 3))
        cuts = np.arange(0, len(x), size)
        low, high = np.minimum.reduceat(y, cuts), np.maximum.reduceat(y, cuts)
        counts = np.diff([*cuts, len(x)])
        x, y = np.add.reduceat(x, cuts) / counts, np.add.reduceat(y, cuts) / counts
        # the range, or a rare peak would vanish in the mean of its interval
        panel.fill_between(x, low, high, color=colour, alpha=0.25, lw=0)
    panel.plot(x, y, color=colour, lw=1.3, label=label)


def series(
    x: FloatArray,
    x_label: str,
    curves: Mapping[str, FloatArray],
    y_label: str,
    title: str,
    *,
    level: tuple[str, float] | None = None,
    points: tuple[str, FloatArray, FloatArray] | None = None,
    from_zero: bool = False,
    decades: bool = False,
) -> str:
    """Curves over one axis of time; level: a line with a name; points: (name, x, y); decades: a logarithmic axis."""
    figure, panel = _start()
    for colour, (name, y) in zip(COLOURS, curves.items(), strict=False):
        _line(panel, x, y, colour, name)
    if points is not None and len(points[1]):
        # hollow, so that the curve is seen through them
        panel.plot(points[1], points[2], "o", ms=5, mfc="none", mec=COLOURS[len(curves)], mew=1.4, label=points[0])
    if level is not None:
        panel.axhline(level[1], color="#7a7a7a", ls="--", lw=1.2, label=level[0])
    panel.set_xlabel(x_label)
    panel.set_ylabel(y_label)
    if decades:
        panel.set_yscale("log")
    elif from_zero:
        panel.set_ylim(bottom=0)
    _legend(figure, panel)
    return _svg(figure, title)


def _legend(figure: Any, panel: Any) -> None:
    """Place the legend above the panel, where no curve can cross it."""
    handles, labels = panel.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))


def distributions(
    radial: Radial, errors: Mapping[str, tuple[FloatArray, FloatArray]], bonds: Mapping[str, float], title: str
) -> str:
    """g(r), one panel per pair. errors: mean and standard deviation over the members. bonds: Å, below which a peak may
    be cut off.
    """
    names = list(radial.pairs)
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, panels = _start(rows, columns, 2.9 * rows)
    flat = np.atleast_1d(panels).ravel()
    for panel, name in zip(flat, names, strict=False):
        mean = radial.pairs[name].mean(axis=0)
        r = radial.distances
        if name in errors:
            middle, deviation = errors[name]
            panel.fill_between(r, middle - deviation, middle + deviation, color=COLOURS[1], alpha=0.6, lw=0)
        panel.plot(r, mean, color=COLOURS[0], lw=1.3)
        panel.axhline(1, color="#7a7a7a", ls="--", lw=1)
        # a bond's peak is tens of times as high as the shells of a liquid, which would be flat lines beside it
        beyond = mean[r > bonds[name]]
        panel.set_ylim(0, 1.2 * max(1.0, float(beyond.max()) if len(beyond) else 1.0))
        panel.set_xlim(0, float(r[-1]))
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("distance (Å)")
    # the last row may have fewer pairs than columns
    for panel in flat[len(names) :]:
        panel.set_visible(False)
    for row in range(rows):
        flat[row * columns].set_ylabel("g(r) (no unit)")
    return _svg(figure, title)


def bar(parts: Sequence[tuple[str, float]], title: str) -> str:
    """One bar of milliseconds, one colour per part; (name, ms)."""
    figure, panel = _start(height=1.3 + 0.24 * -(-len(parts) // 2))
    left = 0.0
    total = sum(value for _, value in parts)
    for k, (name, value) in enumerate(parts):
        colour = COLOURS[k % len(COLOURS)]
        size = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
        label = f"{name}: {size} ms ({100 * value / total:.1f} %)"
        # paler where there are more parts than colours
        panel.barh([0], [value], left=left, height=0.8, color=colour, label=label, alpha=1 - 0.4 * (k // len(COLOURS)))
        left += value
    panel.set_xlabel("time of one step (ms)")
    panel.set_yticks([])
    panel.set_ylim(-0.5, 0.5)
    panel.set_xlim(0, total)
    panel.grid(False)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=9)
    return _svg(figure, title)
