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
from beadwork.report.panels import Panel

#: at least 3:1 against white and against the dark page
COLOURS = ("#3b82c4", "#c96f1a", "#2a9d6f", "#c0508c", "#8a6fd1", "#8f8420", "#7a7a7a")
#: a colour that occurs nowhere else; replaced by the page's own text colour
INK = "#010203"
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
#: inches; a phone is half as wide as the page on a desk, and the text is still read there
WIDTH, HEIGHT = 6.2, 2.7
#: of one of several pictures side by side
SMALL = 3.3, 2.5
_STYLE = {
    **STYLE,
    "font.size": 10.5,
    "legend.fontsize": 9.5,
    "font.family": "DejaVu Sans",  # part of matplotlib
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.transparent": True,
}


def start(size: tuple[float, float] = (WIDTH, HEIGHT)) -> tuple[Any, Any]:
    """A figure of this size with its panel."""
    import matplotlib

    matplotlib.use("Agg")  # nodes of a cluster have no display
    from matplotlib import pyplot

    matplotlib.rcParams.update(_STYLE)
    figure, panel = pyplot.subplots(figsize=size, constrained_layout=True)
    return figure, panel


def svg(figure: Any, title: str) -> str:
    """The figure as an element of a page, closed."""
    from matplotlib import pyplot

    text = io.StringIO()
    # without the date: the same run gives the same page
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    # so that text is dark on the white page and light on the dark one
    drawn = text.getvalue().replace(INK, "currentColor")
    return f'<svg role="img" aria-label="{title}"' + drawn[drawn.index("<svg") + 4 :]


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
    figure, panel = start()
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
    return svg(figure, title)


def _legend(figure: Any, panel: Any) -> None:
    """Place the legend above the panel, where no curve can cross it."""
    handles, labels = panel.get_legend_handles_labels()
    if len(labels) > 1:
        # whole words even where they are long: a line for each that does not fit beside the others
        letters = sum(map(len, labels))
        columns = len(labels) if letters <= 60 else 2 if letters <= 110 else 1
        figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def distribution(panel: Panel, bond: float) -> str:
    """g(r) of a pair, with its error as a band. bond: Å, below which a peak may be cut off."""
    figure, axes = start(SMALL)
    ((name, mean),) = panel.curves.items()
    r = panel.x
    if name in panel.errors:
        error = panel.errors[name]
        axes.fill_between(r, mean - error, mean + error, color=COLOURS[1], alpha=0.6, lw=0)
    axes.plot(r, mean, color=COLOURS[0], lw=1.3)
    axes.axhline(1, color="#7a7a7a", ls="--", lw=1)
    # a bond's peak is tens of times as high as the shells of a liquid, which would be flat lines beside it
    beyond = mean[r > bond]
    axes.set_ylim(0, 1.2 * max(1.0, float(beyond.max()) if len(beyond) else 1.0))
    axes.set_xlim(0, float(r[-1]))
    axes.set_title(name, fontsize=10.5)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    return svg(figure, f"radial distribution function of {name}")


def bar(parts: Sequence[tuple[str, float]], title: str) -> str:
    """One bar of milliseconds, one colour per part; (name, ms)."""
    figure, panel = start((WIDTH, 1.2 + 0.21 * len(parts)))
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
    figure.legend(handles, labels, loc="outside upper left", ncols=1, fontsize=9)
    return svg(figure, title)
