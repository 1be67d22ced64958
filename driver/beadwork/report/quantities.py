"""What i-PI printed of the whole system, in the units of the field: curves over time, and averages with error bars.

A quantity is declared once, in QUANTITIES; i-PI's name may have an argument, as `kinetic_cv(H)` has. Energies are those
of one atom where the number of atoms is known, so that systems can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ipi.utils.units import unit_to_internal, unit_to_user

from beadwork.frame import FloatArray
from beadwork.report.run import RunFolder
from beadwork.report.uncertainty import BLOCKS, DEPENDENT, uncertainty

#: of the samples, this fraction at the start may still be equilibration, and is left out of averages and drifts
EQUILIBRATION = 0.5
#: kT of one kelvin, meV
BOLTZMANN_MEV = 8.617333262e-2


@dataclass(frozen=True, slots=True)
class Quantity:
    """name: i-PI's. section: of the page. label: in words. dimension: i-PI's. unit: i-PI's name of the one shown, and
    sign: how it is written. scale: by which values are multiplied after that. relative: drawn from its first value on.
    axis: its name on the axis, where that is not the section's.
    """

    name: str
    section: str
    label: str
    dimension: str
    unit: str
    sign: str
    scale: float = 1.0
    relative: bool = False
    axis: str = ""


_ENERGY = ("energy", "electronvolt", "meV", 1e3)
_PRESSURE = ("pressure", "bar", "bar")
QUANTITIES = (
    Quantity("potential", "Energies", "potential energy", *_ENERGY, relative=True),
    Quantity("conserved", "Energies", "conserved quantity", *_ENERGY, relative=True),
    Quantity("kinetic_md", "Kinetic energy", "of the momenta (kinetic_md)", *_ENERGY),
    Quantity("kinetic_cv", "Kinetic energy", "quantum, centroid virial (kinetic_cv)", *_ENERGY),
    Quantity("kinetic_td", "Kinetic energy", "quantum, primitive (kinetic_td)", *_ENERGY),
    Quantity("kinetic_tdsc", "Kinetic energy", "quantum, Suzuki-Chin (kinetic_tdsc)", *_ENERGY),
    Quantity("temperature", "Temperature", "of all beads", "temperature", "kelvin", "K"),
    Quantity("pressure_cv", "Pressure", "quantum, centroid virial (pressure_cv)", *_PRESSURE),
    Quantity("pressure_md", "Pressure", "classical (pressure_md)", *_PRESSURE),
    Quantity("pressure_tdsc", "Pressure", "quantum, Suzuki-Chin (pressure_tdsc)", *_PRESSURE),
    Quantity("volume", "Volume and density", "volume", "volume", "angstrom3", "Å³", axis="volume"),
    Quantity("density", "Volume and density", "density", "density", "g/cm3", "g/cm³", axis="density"),
)


@dataclass(frozen=True, slots=True)
class Printed:
    """A quantity of a run. steps, values: (F,), a step once, in `unit`. label: with the argument, if it has one."""

    quantity: Quantity
    label: str
    unit: str
    steps: FloatArray
    values: FloatArray

    @property
    def drawn(self) -> FloatArray:
        """The values as they are drawn."""
        return self.values - self.values[:1] if self.quantity.relative else self.values


#: why there is no error bar, in words
NOTES = {
    "few values": f"fewer than {BLOCKS} values",
    "too short": "the run is too short for the slowest motion of this quantity: its blocks depend on each other",
    "constant": "it does not change",
}


@dataclass(frozen=True, slots=True)
class Average:
    """The mean of the second half. error: one standard deviation by blocks, None where there is none to be trusted;
    then `note` is 'few values' or 'too short' (see NOTES). samples: values that it is from."""

    mean: float
    error: float | None
    samples: int
    note: str = ""


def printed(run: RunFolder) -> list[Printed]:
    """All quantities that this run has, in the order of QUANTITIES."""
    return [one for quantity in QUANTITIES for one in _printed(run, quantity)]


def _printed(run: RunFolder, quantity: Quantity) -> Iterator[Printed]:
    for name, series in run.properties.items():
        base, _, argument = name.partition("(")
        argument = argument.rstrip(")").removeprefix("atom=")
        if base != quantity.name or "[" in name or not len(series.values):
            continue
        if base.endswith("_md") and run.about.get("beads", 1) != 1:
            continue  # of the ring polymer as a classical system, which is no quantity of the quantum one
        atoms = _atoms(run, argument)
        if argument and not atoms:
            continue  # of one bead or mode: no quantity of the system
        unit = "" if series.unit in ("atomic units", "atomic_unit") else series.unit
        try:
            internal = unit_to_internal(quantity.dimension, unit, 1.0)
            scale = quantity.scale * float(unit_to_user(quantity.dimension, quantity.unit, internal))
        except (KeyError, ValueError, TypeError):  # i-PI names a unit that the present one does not know
            continue
        sign = quantity.sign
        if quantity.dimension == "energy":
            scale, sign = (scale / atoms, f"{sign}/atom") if atoms else (1e-3 * scale, "eV")
        label = f"{quantity.label}, {argument}" if argument else quantity.label
        yield Printed(quantity, label, sign, series.steps, scale * series.values)


def _atoms(run: RunFolder, argument: str) -> int:
    """How many atoms a quantity is of: those of a name (D is not H), one by its number, or all; 0 where not known."""
    if argument.isdigit():
        return 1
    return run.labels.get(argument, 0) if argument else sum(run.labels.values())


def average(one: Printed) -> Average:
    """The mean of the second half of the run, with its error bar by blocks (`uncertainty`)."""
    half = one.values[int(EQUILIBRATION * len(one.values)) :]
    mean, samples = float(half.mean()), len(half)
    if samples < BLOCKS:
        return Average(mean, None, samples, "few values")
    errors = uncertainty([half[:, None]])
    error, dependence = float(errors.statistical[0]), float(errors.dependence[0])
    if not math.isfinite(error) or dependence > DEPENDENT:
        return Average(mean, None, samples, "too short")
    return Average(mean, error, samples, "constant" if error == 0 else "")


def drift(run: RunFolder, one: Printed) -> tuple[float, float] | None:
    """Slope per ps (per step where no time step is known) and scatter about the line, of the second half."""
    half = slice(int(EQUILIBRATION * len(one.values)), None)
    steps, rest = one.steps[half], one.values[half]
    if len(rest) < 4 or steps[-1] == steps[0]:
        return None
    slope, level = np.polyfit(steps - steps[0], rest, 1)
    scatter = float(np.std(rest - slope * (steps - steps[0]) - level))
    step = run.about.get("time_step_fs")
    return (1e3 * float(slope) / step if step else float(slope)), scatter


def level(run: RunFolder, section: str) -> tuple[str, float] | None:
    """What a section's curves are held against: the thermostat's temperature, or the classical kinetic energy."""
    kelvin = run.about.get("temperature_K")
    if not kelvin:
        return None
    if section == "Temperature":
        return "thermostat", float(kelvin)
    if section == "Kinetic energy" and run.composition:
        return "classical, 3/2 kT", 1.5 * BOLTZMANN_MEV * float(kelvin)
    return None
