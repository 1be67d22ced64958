"""Infrared and Raman spectra from the dipoles and polarizabilities that i-PI wrote, of a committee's members too.

    A(ν) = N_A / (12 ε0 c² kT) 4c ∫_0^T w(t) <M'(0) · M'(t)> cos(2πcνt) dt        M' = dM/dt, M the dipole
    R(ν) = (1/kT) 4c ∫_0^T w(t) <a'(0) a'(t)> cos(2πcνt) dt                       a = e_i . α . e_s

in km/mol and Å⁴/dalton, per cm^-1. The area of a line of a classical harmonic molecule is N_A |∂M/∂Q|² / (12 ε0 c²),
which harmonic analyses print in km/mol, and (∂a/∂Q)². What Raman scattering one sees along e_s of light of the
wavenumber ν_0 polarized along e_i is R times (ν_0 − ν)⁴ and a factor of temperature. M and α are the means over the
beads, so that vibrations are those of the centroid. The derivative is a difference of neighbours, whose part of every
frequency is known and is divided out. w is Hann's window (`analyse.spectrum`). The members' spectra are of the same
trajectory: their band is what the dipoles' models disagree about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.constants as si

from beadwork.analyse.runs import DAMAGED, first_step, one_of, one_state, say_earlier
from beadwork.analyse.spectrum import (
    LIGHT,
    frames_in,
    peaks_of,
    power_of,
    stretches_of,
    transformed,
    wavenumbers_of,
)
from beadwork.disk import reading
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray, IntArray
from beadwork.ipi.outputs import read_extra
from beadwork.report.run import RunFolder
from beadwork.units import BOHR

#: so many times the change from frame to frame that three quarters exceed is none of a vibration: that of a harmonic
#: mode is 2.6 times as large at most, that of many modes 5 times
JUMP = 20.0


@dataclass(frozen=True, slots=True)
class ResponseSpectrum:
    """A spectrum. wavenumbers: (W,) cm^-1. intensity: (W,), in `unit`. statistical: (W,) one standard deviation of the
    mean over the stretches, NaN of one stretch. members: (W, M) by each member, None where i-PI wrote none. peaks:
    cm^-1. stretches: how many were averaged. resolution: cm^-1, how wide a line is."""

    wavenumbers: FloatArray
    intensity: FloatArray
    statistical: FloatArray
    members: FloatArray | None
    peaks: list[float]
    stretches: int
    resolution: float
    unit: str

    @property
    def committee(self) -> FloatArray | None:
        """(W,) the standard deviation between members."""
        return None if self.members is None else self.members.std(axis=1, ddof=1)


def infrared(
    runs: Sequence[RunFolder], window: float = 500.0, highest: float = 4500.0, skip: float = 0.0
) -> ResponseSpectrum:
    """The infrared spectrum, km/mol per cm^-1.

    window: fs, T. highest: cm^-1. skip: ps at the beginning of each run. Raises ConfigError where i-PI wrote no
    dipoles, too short a time, or too seldom.
    """
    # (e Å/fs)² / kT in (C m/s)² / J; then m/mol, and of an integral over cm^-1
    change = (si.e * 1e-10 / 1e-15) ** 2
    factor = si.N_A / (12 * si.epsilon_0 * si.c**2) * change / si.k * 1e-3
    return _spectrum(runs, "dipole", BOHR * np.eye(3), factor, "km/mol cm", window, highest, skip)


def raman(
    runs: Sequence[RunFolder],
    incident: Sequence[float],
    scattered: Sequence[float],
    window: float = 500.0,
    highest: float = 4500.0,
    skip: float = 0.0,
) -> ResponseSpectrum:
    """The Raman spectrum of light with the electric field along `incident`, seen along `scattered`, Å⁴/dalton per
    cm^-1; otherwise as `infrared`. Raises ConfigError for a direction without length, too."""
    ends = []
    for vector in (incident, scattered):
        length = float(np.linalg.norm(vector))
        if not 0 < length < np.inf:
            raise ConfigError(f"the direction {list(vector)} has no length", "give three numbers that are not all 0")
        ends.append(np.asarray(vector, dtype=np.float64) / length)
    # (Å³/fs)² / kT in Å⁴ / dalton
    factor = 1e-60 / 1e-30 / si.k / 1e-40 * si.atomic_mass
    along = BOHR**3 * np.outer(*ends).reshape(9, 1)
    return _spectrum(runs, "polarizability", along, factor, "Å⁴/dalton cm", window, highest, skip)


def _spectrum(
    runs: Sequence[RunFolder],
    key: str,
    project: FloatArray,
    factor: float,
    unit: str,
    window: float,
    highest: float,
    skip: float,
) -> ResponseSpectrum:
    """project: (what i-PI wrote of a step, components of which the autocorrelation is). factor: of `unit` K."""
    one_state(runs)
    pieces = [piece for run in runs for piece in _pieces(run, key, project, skip)]
    spacing = _one_spacing(pieces)
    if not (kelvin := float(runs[0].about.get("temperature_K") or 0.0)):
        raise ConfigError(
            f"the simulation in {runs[0].folder} has no temperature", "take one of an <ensemble> with one"
        )
    lag = frames_in(window, spacing, highest, key)
    cut = stretches_of([rates for rates, _ in pieces], lag, f"{key} in {runs[0].directory}", window)
    wavenumbers = wavenumbers_of(lag, spacing)
    # a difference of neighbours has this part of a derivative
    half = np.pi * LIGHT * wavenumbers * spacing
    scale = 4 * LIGHT * spacing * factor / kelvin / np.sinc(half / np.pi) ** 2
    shown = wavenumbers <= highest
    # the mean first, then the members: (K,) of each stretch
    stretches = [
        np.array([scale * transformed(power, len(rates), lag) for power in power_of(rates).sum(2).T])
        for piece in cut
        for rates in piece
    ]
    one_of("models of the committee", {len(stretch) for stretch in stretches})
    mean = np.mean(stretches, axis=0)[:, shown]
    count = len(stretches)
    error = np.std([stretch[0] for stretch in stretches], axis=0, ddof=1)[shown] / np.sqrt(count) if count > 1 else None
    return ResponseSpectrum(
        wavenumbers[shown],
        mean[0],
        np.full(shown.sum(), np.nan) if error is None else error,
        mean[1:].T if len(mean) > 1 else None,
        peaks_of(wavenumbers[shown], mean[0]),
        count,
        1 / (lag * spacing * LIGHT),
        unit,
    )


def _one_spacing(pieces: Sequence[tuple[FloatArray, float]]) -> float:
    """fs between two frames. Raises ConfigError where runs differ."""
    one_of("times between frames, fs", {spacing for _, spacing in pieces})
    return pieces[0][1]


def _pieces(run: RunFolder, key: str, project: FloatArray, skip: float) -> list[tuple[FloatArray, float]]:
    """Rates of change (F, 1 + M, k) a fs without a gap, of the mean and of each member, and the fs between two."""
    if key == "dipole" and run.about.get("dipole_jumps"):
        raise ConfigError(
            f"in the run of {run.directory} i-PI folded atoms into the cell, and with each the dipole jumps",
            "simulate again without pbc='True' of its <ffsocket>",
        )
    step = run.about.get("time_step_fs")
    if not step:
        raise ConfigError(f"the time step of {run.folder} is not known", "name i-PI's input")
    with reading(run.directory, ConfigError, DAMAGED):
        whole = read_extra(run.files, key)
        of_members = read_extra(run.files, f"committee_{key}")
    if not whole:
        raise ConfigError(
            f"i-PI wrote no {key} of every bead into {run.directory}",
            f"have it write <trajectory stride='2' filename='{key}' extra_type='{key}'> extras </trajectory>, "
            f"and serve it with --also {key}=BUNDLE",
        )
    first = first_step(run, skip)
    steps = np.array(
        [at for at in sorted(whole) if at >= first and (not of_members or at in of_members)], dtype=np.int_
    )
    say_earlier(run, steps)
    if len(steps) < 3:
        raise ConfigError(f"{run.directory} has no {key} after {skip:g} ps", "leave out less with --skip")
    numbers = len(project)
    rows = [np.concatenate((whole[at], *([of_members[at]] if of_members else []))) for at in steps.tolist()]
    if {len(row) for row in rows} != {len(rows[0])} or len(rows[0]) % numbers or not np.isfinite(rows).all():
        raise ConfigError(f"what i-PI wrote of {key} in {run.directory} is not {numbers} numbers a step", DAMAGED)
    values = np.array(rows).reshape(len(rows), -1, numbers) @ project
    stride = int(np.diff(steps).min())
    spacing = stride * float(step)
    found = []
    for part in np.split(np.arange(len(steps)), np.flatnonzero(np.diff(steps) != stride) + 1):
        rates = np.diff(values[part], axis=0) / spacing
        if len(rates):
            _check_jumps(run, key, rates, steps[part])
            found.append((rates, spacing))
    return found


def _check_jumps(run: RunFolder, key: str, rates: FloatArray, steps: IntArray) -> None:
    """Refuse a dipole that leaps from one of its values to another: atoms were folded back into the cell."""
    sizes = np.linalg.norm(rates[:, 0], axis=1)
    # a quantile, which jumps do not raise while three frames in four have any; one jump in 900 frames makes a root mean
    # square as large as a thirtieth of it
    if sizes.max() > JUMP * np.quantile(sizes, 0.25):
        raise ConfigError(
            f"the {key} in {run.directory} jumps after step {steps[int(sizes.argmax())]}",
            "let i-PI not fold atoms into the cell (<ffsocket pbc='False'>), or were the models exchanged there?",
        )
