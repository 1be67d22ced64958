"""Pictures of observables with their errors, as PNG; what is drawn over what is said in a legend."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from beadwork.analyse.free_energy import FreeEnergy
from beadwork.analyse.integrate import Integral
from beadwork.analyse.properties import Observable
from beadwork.disk import writing
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray
from beadwork.packages import pip_install
from beadwork.report.figures import COLOURS, STYLE


def _draw(path: Path, fill: Callable[[Any], None], height: float = 4.2, several: int = 0) -> None:
    """Make a picture of one panel, or of several, three a row, of which `fill` gets a list. Raises ConfigError without
    matplotlib, or where it cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("a picture needs matplotlib, which is not installed", pip_install("matplotlib"))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(figsize=(7, height), constrained_layout=True)
        rows = -(-several // 3)
        fill([figure.add_subplot(rows, 3, k + 1) for k in range(several)] if several else figure.add_subplot())
        with writing(path):
            figure.savefig(path, dpi=150)
        pyplot.close(figure)


def draw_free_energy(
    path: Path,
    measured: Mapping[str, FreeEnergy],
    label: str,
    curves: Mapping[str, tuple[FloatArray, FloatArray]] | None = None,
) -> None:
    """F of runs by their names, with two bands, the statistical error and both; dashed, curves of elsewhere: (N,) x and
    (N,) kJ/mol. label: of the axis.
    """

    def fill(panel: Any) -> None:
        for colour, (name, found) in zip(COLOURS, measured.items(), strict=False):
            # no line over bins in which nothing was sampled
            gaps = np.flatnonzero(np.diff(found.x) > 1.5 * np.diff(found.x).min(initial=np.inf)) + 1
            x, energy, both, statistical = (
                np.insert(of, gaps, np.nan) for of in (found.x, found.energy, found.both, found.statistical)
            )
            if found.committee is not None:
                _band(panel, x, energy, both, colour, 0.2)
            _band(panel, x, energy, statistical, colour, 0.35)
            panel.plot(x, energy, color=colour, lw=1.4, label=f"{name}, {found.kelvin:g} K")
        panel.fill_between([], [], [], color="0.4", alpha=0.35, lw=0, label="± statistical error")
        if any(found.committee is not None for found in measured.values()):
            panel.fill_between([], [], [], color="0.4", alpha=0.2, lw=0, label="± committee's with it")
        for colour, (name, (x, energy)) in zip(COLOURS[len(measured) :], (curves or {}).items(), strict=False):
            panel.plot(x, energy, color=colour, ls="--", lw=1.4, label=name)
        # what is elsewhere may go much further
        x = np.concatenate([found.x for found in measured.values()])
        highest = max(found.energy.max() for found in measured.values())
        lowest = min(np.nanmin(found.energy - np.nan_to_num(found.both)) for found in measured.values())
        panel.set_xlim(x.min() - np.ptp(x) / 20, x.max() + np.ptp(x) / 20)
        panel.set_ylim(lowest - (highest - lowest) / 20, highest + (highest - lowest) / 10)
        panel.set_xlabel(label)
        panel.set_ylabel("free energy (kJ/mol)")
        panel.legend(fontsize=9)

    _draw(path, fill)


def _band(
    panel: Any, x: FloatArray, y: FloatArray, error: FloatArray, colour: str, alpha: float, label: str = ""
) -> None:
    panel.fill_between(x, y - error, y + error, color=colour, alpha=alpha, lw=0, label=label)


def draw_observables(path: Path, found: Sequence[Observable]) -> None:
    """Averages, a panel each: blocks of the run in their order, and the band of the error about the whole. What does
    not move at all has none.
    """
    moving = [one for one in found if np.ptp(one.course) > 1e-9 * abs(one.estimate.value)] or list(found)

    def fill(panels: Any) -> None:
        for panel, one in zip(panels, moving, strict=True):
            value, both = one.estimate.value, one.estimate.both
            panel.axhspan(value - both, value + both, color=COLOURS[0], alpha=0.25, lw=0)
            panel.axhline(value, color=COLOURS[0], lw=1.2)
            panel.plot(np.arange(len(one.course)) + 0.5, one.course, "o", color="0.35", ms=2.5)
            panel.set_title(one.name, fontsize=7)
            panel.set_ylabel(one.unit, fontsize=7)
            panel.set_xticks([])
            panel.tick_params(labelsize=6)
            panel.yaxis.get_offset_text().set_fontsize(6)
        panels[-1].set_xlabel("blocks of the run, in their order", fontsize=7)

    _draw(path, fill, 1.4 * -(-len(moving) // 3), len(moving))


def draw_integral(path: Path, found: Integral) -> None:
    """The averages that were integrated, with their errors, and the spline through them over the area that it has."""

    def fill(panel: Any) -> None:
        values, errors = (np.array([getattr(one, name) for one in found.integrand]) for name in ("value", "both"))
        x = np.linspace(found.x[0], found.x[-1], 200)
        spline = CubicSpline(found.x, values)(x)
        panel.fill_between(x, spline, color=COLOURS[0], alpha=0.2, lw=0)
        panel.plot(x, spline, color=COLOURS[0], lw=1.2)
        total = f"F(last) − F(first) = {found.total.value:.4g} ± {found.total.both:.2g} kJ/mol"
        panel.errorbar(found.x, values, errors, fmt="o", color="0.2", ms=4, capsize=3, label=total)
        panel.set_xlabel(found.along)
        panel.set_ylabel("dF/dx (kJ/mol)")
        panel.legend(fontsize=9)

    _draw(path, fill)


def draw_spectrum(
    path: Path, wavenumbers: FloatArray, curves: Sequence[tuple[str, FloatArray, FloatArray | None]], label: str
) -> None:
    """Spectra over cm^-1: name, values (W,), and one standard deviation (W,) of a band or None."""

    def fill(panel: Any) -> None:
        for colour, (name, values, error) in zip(COLOURS, curves, strict=False):
            panel.plot(wavenumbers, values, color=colour, lw=1.2, label=name)
            if error is not None:
                _band(panel, wavenumbers, values, error, colour, 0.25, "")
        panel.set_xlim(0, wavenumbers.max())
        panel.set_ylim(bottom=0)
        panel.set_xlabel("wavenumber (cm⁻¹)")
        panel.set_ylabel(label)
        panel.legend(fontsize=9)

    _draw(path, fill)
