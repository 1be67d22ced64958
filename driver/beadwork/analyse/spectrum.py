"""Vibrational density of states from velocities: the spectrum of their autocorrelation, by i-PI's names of atoms.

    g(ν) = 4c (3N / K) ∫_0^T w(t) Σ_i m_i <v_i(0) v_i(t)> cos(2πcνt) dt        K = Σ_i m_i <v_i²>, per cm^-1

so that its integral over all wavenumbers is the number of degrees of freedom, 3 for each atom, whatever the temperature
of what moves. w is Hann's window, 1 at 0 and 0 at T; lines are 1 / (cT) wide at half their height. Velocities are the
centroid's, masses those of the run, else i-PI's own of that name; the autocorrelation is had by Fourier transforms of
stretches with as many zeros behind them (Allen and Tildesley, Computer Simulation of Liquids, 2nd edition, chapter 8).
i-PI's own `i-pi-getacf` has it of all chosen atoms without masses, and takes a stretch as periodic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ipi.utils.units import Elements, unit_to_internal, unit_to_user
from scipy.signal import find_peaks

from beadwork.analyse.runs import DAMAGED, first_step, one_of, one_state, say_earlier
from beadwork.disk import reading
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray
from beadwork.ipi.outputs import find_trajectory, write_down
from beadwork.report.run import RunFolder
from beadwork.units import FEMTOSECOND

#: stretches that all velocities are cut into, about, for the errors
STRETCHES = 10
#: a peak is as high, and rises above both of its sides, by this part of the highest; the window's own ripples do not
PROMINENCE = 0.03
#: i-PI's angular frequency of one cm^-1 per fs, over 2π: c in cm/fs
LIGHT = float(unit_to_internal("frequency", "inversecm", 1.0)) / FEMTOSECOND / (2 * np.pi)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A density of states.

    wavenumbers: (W,) cm^-1. elements: i-PI's name (D is not H) -> (W,) per cm^-1, and 'all' their sum. errors: the
    same, one standard deviation: of the mean over the stretches, or between members. peaks: cm^-1, of each. stretches:
    how many were averaged. resolution: cm^-1, how wide a line is.
    noise: of members' spectra, the statistical error of one (root mean square), which is the band's where they agree.
    """

    wavenumbers: FloatArray
    elements: dict[str, FloatArray]
    errors: dict[str, FloatArray]
    peaks: dict[str, list[float]]
    stretches: int
    resolution: float
    noise: dict[str, FloatArray] | None = None


def spectrum(runs: Sequence[RunFolder], window: float = 500.0, highest: float = 4500.0, skip: float = 0.0) -> Spectrum:
    """Return the density of states of runs that are pieces of one kind.

    window: fs, T. highest: cm^-1. skip: ps at the beginning of each. The centroid's velocities are those of v_centroid,
    or made of all beads'. Raises ConfigError where i-PI wrote none, too short a time, or too seldom.
    """
    pieces = [piece for run in runs for piece in _velocities(run, skip)]
    one_of("times between velocities, fs", {of.spacing for of in pieces})
    one_state(runs)
    one_of("atoms", {_formula(of.names) for of in pieces})
    spacing = pieces[0].spacing
    lag = frames_in(window, spacing, highest, "velocities")
    cut = stretches_of([of.frames for of in pieces], lag, f"velocities in {runs[0].directory}", window)
    stretches: dict[str, list[FloatArray]] = {}
    for of, frames in zip(pieces, cut, strict=True):
        for stretch in frames:
            for name, values in _density(of.names, of.masses, stretch, lag).items():
                stretches.setdefault(name, []).append(spacing * LIGHT * values)
    wavenumbers = wavenumbers_of(lag, spacing)
    shown = wavenumbers <= highest
    count = len(stretches["all"])
    elements = {name: np.mean(values, axis=0)[shown] for name, values in stretches.items()}
    errors = {
        name: np.std(values, axis=0, ddof=1)[shown] / np.sqrt(count) if count > 1 else np.full(shown.sum(), np.nan)
        for name, values in stretches.items()
    }
    peaks = {name: peaks_of(wavenumbers[shown], values) for name, values in elements.items()}
    return Spectrum(wavenumbers[shown], elements, errors, peaks, count, 1 / (lag * spacing * LIGHT))


def members(spectra: Sequence[Spectrum]) -> Spectrum:
    """Return the mean of the spectra of committee members that were run one by one, with their standard deviation.

    Peaks are those of the mean. Raises ConfigError for fewer than two, or for spectra of different kinds.
    """
    if len(spectra) < 2:
        raise ConfigError("one spectrum has no standard deviation over members", "give a run of each member")
    one = spectra[0]
    if any(
        list(of.elements) != list(one.elements) or not np.array_equal(of.wavenumbers, one.wavenumbers) for of in spectra
    ):
        raise ConfigError("the members' spectra are of different atoms or strides", "run all members alike")
    elements = {name: np.mean([of.elements[name] for of in spectra], axis=0) for name in one.elements}
    errors = {name: np.std([of.elements[name] for of in spectra], axis=0, ddof=1) for name in one.elements}
    peaks = {name: peaks_of(one.wavenumbers, values) for name, values in elements.items()}
    noise = {name: np.sqrt(np.mean([of.errors[name] ** 2 for of in spectra], axis=0)) for name in one.elements}
    count = sum(of.stretches for of in spectra)
    return Spectrum(one.wavenumbers, elements, errors, peaks, count, one.resolution, noise)


@dataclass(frozen=True, slots=True)
class _Piece:
    """names, masses: (n,), dalton. frames: (F, n, 3) velocities in atomic units without a gap. spacing: fs."""

    names: list[str]
    masses: FloatArray
    frames: FloatArray
    spacing: float


def _formula(names: list[str]) -> str:
    """As chemists write it, of i-PI's names."""
    return "".join(f"{name}{count if count > 1 else ''}" for name, count in sorted(Counter(names).items()))


def _masses(run: RunFolder, names: list[str]) -> FloatArray:
    """(n,) dalton, those of the run's input, else i-PI's own. Raises ConfigError for a name that has none, or several.

    Of an older run the input's own masses are not known.
    """
    told = dict(run.about.get("masses") or {})
    own = {name: float(unit_to_user("mass", "dalton", Elements.mass(name))) for name in set(names)}
    found = {name: told.get(name, own[name] if own[name] > 0 else None) for name in set(names)}
    if lacking := sorted(name for name, mass in found.items() if mass is None):
        raise ConfigError(
            f"atoms called {lacking[0]} in {run.directory} have no mass that is known, or several", "name them apart"
        )
    return np.array([found[name] for name in names])


def _velocities(run: RunFolder, skip: float) -> list[_Piece]:
    """What there is between gaps."""
    step = run.about.get("time_step_fs")
    if not step:
        raise ConfigError(f"the time step of {run.folder} is not known", "name i-PI's input")
    beads = int(run.about.get("beads", 1))
    # centroid velocities are the mean of all beads': T-RPMD's vibrations are those of the centroid
    trajectory = find_trajectory(run.files, "v_centroid") or find_trajectory(run.files, "velocities")
    if trajectory is None or (trajectory.quantity == "velocities" and len(trajectory.files) != beads):
        raise ConfigError(
            f"i-PI wrote no velocities of the centroid into {run.directory}",
            "have it write <trajectory stride='2' filename='v' format='xyz'> v_centroid </trajectory>",
        )
    first = first_step(run, skip)
    names: list[str] = []
    frames: list[dict[int, FloatArray]] = [{} for _ in trajectory.files]
    with reading(run.directory, ConfigError, DAMAGED):
        for at, bead, found, values in trajectory.vectors():
            if (names and found.tolist() != names) or not np.isfinite(values).all():
                raise ConfigError(f"the atoms of {trajectory.files[bead]} change, or a velocity is none", DAMAGED)
            names = found.tolist()
            if at >= first:
                write_down(frames[bead], at, values)
    steps = np.array(sorted(set.intersection(*map(set, frames))))
    if len(steps) < 2:
        raise ConfigError(f"{run.directory} has no velocities after {skip:g} ps", "leave out less with --skip")
    say_earlier(run, steps)
    # the smallest step is the stride; larger ones are gaps, across which no correlation is taken
    stride = int(np.diff(steps).min())
    parts = np.split(steps, np.flatnonzero(np.diff(steps) != stride) + 1)
    masses = _masses(run, names)
    means = (np.array([np.mean([of[at] for of in frames], axis=0) for at in part]) for part in parts)
    return [_Piece(names, masses, mean, stride * float(step)) for mean in means]


def frames_in(window: float, spacing: float, highest: float, what: str) -> int:
    """Return how many frames, `spacing` fs apart, a window of so many fs has.

    what: that the frames are of. Raises ConfigError where it has no two, or where vibrations up to `highest` cm^-1 are
    too fast for them.
    """
    if not window >= 2 * spacing:
        raise ConfigError(f"a window of {window:g} fs has no two frames of {what}, {spacing:g} fs apart", "widen it")
    # the Nyquist frequency
    fastest = 0.5 / spacing / LIGHT
    if fastest < highest:
        raise ConfigError(
            f"{what} every {spacing:g} fs show vibrations up to {fastest:.0f} cm^-1, and faster ones folded back",
            "have i-PI write them at a smaller stride, or, if there are no faster ones, ask for less with --highest",
        )
    return max(1, round(window / spacing))


def stretches_of(pieces: Sequence[FloatArray], lag: int, what: str, window: float) -> list[list[FloatArray]]:
    """Return each piece (F, …) cut into stretches, of one length for all, so that they count alike. Raises ConfigError
    where there is none; what, window: which the sentence names."""
    # twice the window at least, or the longest lags would have hardly a pair
    length = max(2 * lag, sum(map(len, pieces)) // STRETCHES)
    cut = [[piece[begin : begin + length] for begin in range(0, len(piece) - length + 1, length)] for piece in pieces]
    if not any(cut):
        raise ConfigError(
            f"there is no stretch of {what} of {2 * window:g} fs, twice the window",
            "simulate longer, or choose a shorter --window",
        )
    return cut


def wavenumbers_of(lag: int, spacing: float) -> FloatArray:
    """(padded(lag) / 2 + 1,) cm^-1, those of `transformed`."""
    # of a real transform of so many points, from frequencies to wavenumbers by c
    size = padded(lag)
    result: FloatArray = np.arange(size // 2 + 1) / (size * spacing * LIGHT)
    return result


def padded(lag: int) -> int:
    """Points of the last Fourier transform: four times as many as the window has, for a smooth curve."""
    return 8 * lag


def power_of(frames: FloatArray) -> FloatArray:
    """(L + 1, …) the power spectrum of a stretch (L, …)."""
    # as many zeros as frames: without them the end of a stretch would be correlated with its beginning
    power: FloatArray = np.abs(np.fft.rfft(frames, n=2 * len(frames), axis=0)) ** 2
    return power


def transformed(power: FloatArray, length: int, lag: int) -> FloatArray:
    """∫_0^T w(t) C(t) cos(2πcνt) dt, in units of the time between two frames, of the autocorrelation C that belongs to
    the power spectrum (L + 1,) of a stretch of L frames; lag: frames in T."""
    # so many pairs of frames have this lag
    pairs = length - np.arange(lag)
    window = 0.5 * (1 + np.cos(np.pi * np.arange(lag) / lag))
    correlation = np.fft.irfft(power)[:lag] / pairs * window
    # the trapezoidal rule: the end of the integral counts half
    correlation[0] /= 2
    of_time: FloatArray = np.fft.rfft(correlation, n=padded(lag)).real
    return of_time


def _density(names: list[str], masses: FloatArray, frames: FloatArray, lag: int) -> dict[str, FloatArray]:
    """g of one stretch (L, n, 3), by name, in units of the time between two frames."""
    length, power = len(frames), power_of(frames)
    # what the integral is scaled with, so that it is 3N whatever the temperature
    kinetic = float(np.einsum("i,fix->", masses, frames**2)) / length
    found: dict[str, FloatArray] = {}
    for name in np.unique(names):
        here = np.array(names) == name
        of_time = transformed(np.einsum("i,fix->f", masses[here], power[:, here]), length, lag)
        found[str(name)] = 4 * of_time * 3 * len(names) / kinetic
    return {"all": np.sum(list(found.values()), axis=0), **found}


def peaks_of(wavenumbers: FloatArray, values: FloatArray) -> list[float]:
    """Where it is highest about, by a parabola through three points."""
    least = PROMINENCE * values.max()
    tops, _ = find_peaks(values, height=least, prominence=least)
    low, top, high = values[tops - 1], values[tops], values[tops + 1]
    # the top of the parabola through three points, in units of their distance
    shift = 0.5 * (low - high) / (low - 2 * top + high)
    result: list[float] = (wavenumbers[tops] + shift * (wavenumbers[1] - wavenumbers[0])).tolist()
    return result
