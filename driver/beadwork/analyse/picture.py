"""Pictures of observables with their errors, as PNG; what is drawn over what is said in a legend."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.analyse.free_energy import FreeEnergy
from beadwork.disk import writing
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray
from beadwork.packages import pip_install
from beadwork.report.figures import COLOURS, STYLE


def _draw(path: Path, fill: Callable[[Any], None], height: float = 4.2) -> None:
    """Make a picture of one panel. Raises ConfigError without matplotlib, or where it cannot be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("a picture needs matplotlib, which is not installed", pip_install("matplotlib"))
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, panel = pyplot.subplots(figsize=(7, height), constrained_layout=True)
        fill(panel)
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
