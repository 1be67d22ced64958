"""Runs as averages want them: what was measured at each step, with the members' energies of that step beside it.

A run is the folder of its beadwork.out, or the input (XML) of an i-PI that beadwork did not serve, beside its outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ipi.utils.units import unit_to_internal

from beadwork.analyse.coordinate import Coordinate
from beadwork.disk import reading
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray, Frame, IntArray
from beadwork.ipi.outputs import Potentials, Series, Trajectory, find_trajectory, read_properties, write_down
from beadwork.ipi.simulation import read_simulation
from beadwork.log import logger
from beadwork.observe.record import NAME
from beadwork.report.committee import potential_since, read_committee
from beadwork.report.run import RunFolder, read_run

#: of a ring polymer: which of its distributions
OF = ("centroid", "beads")
#: by i-PI's modes of <motion> and <smotion>: what is another at the end than at the beginning, and what to do
CHANGING = {
    "remd": (
        "replicas exchange their ensembles",
        "sort what i-PI wrote by ensemble with its i-pi-remdsort, and name an input (XML) of one system at that "
        "temperature, without <smotion>, whose output prefix is that of the sorted files",
    ),
    "metad": (
        "the bias grows as it runs (<smotion mode='metad'>), and no weight of a frame takes it away",
        "compare with what PLUMED's sum_hills makes of it (--against), or average runs that hold the finished bias",
    ),
    "t_ramp": ("the temperature is ramped", "average runs that hold one temperature"),
    "p_ramp": ("the pressure is ramped", "average runs that hold one pressure"),
}
#: i-PI's <driven_dynamics>
DRIVEN = "eda-nve"
#: part by which a temperature that is held may differ from row to row, by digits that were not written
SAME = 1e-4
#: frames of which a coordinate is computed at once
_BATCH = 500
#: what to do where a file of a run cannot be read
DAMAGED = "restore the file from a copy, or leave this run out"
#: what i-PI is asked for where a trajectory is missing
_ASK = "<trajectory stride='10' filename='{file}' format='xyz' cell_units='angstrom'> {what} </trajectory>"


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was measured in one run.

    steps: (F,), i-PI's, evenly spaced but for gaps. values: by name, (F, V) of V values a step. energies: (F, M) of the
    members in units of kT, rows of NaN where they are not known, None where there are none: `gap` says why. kelvin: the
    temperature. beads: of the ring polymer. of: centroid or beads. time_step: fs, None where it is not known. bias:
    (F,) that of the ensemble in kT, the mean over the beads, NaN where it is not known; None where i-PI wrote none.
    models: the hashes of those that the run ended with, '' where they are not known.
    """

    steps: IntArray
    values: dict[str, FloatArray]
    energies: FloatArray | None
    gap: str
    kelvin: float
    beads: int
    of: str
    time_step: float | None
    bias: FloatArray | None = None
    models: str = ""


def open_run(path: Path) -> RunFolder:
    """Read what there is of a run. Raises ConfigError or SimulationError where there is none."""
    if not path.is_file():
        with reading(path, ConfigError, DAMAGED):
            run = read_run(path)
        _check_about(run.folder / NAME, run.about)
        return _of_one_state(run)
    simulation = read_simulation(path, directory=path.absolute().parent)
    system = simulation.systems[0]
    about = {
        "outputs": f"{system.prefix}_{simulation.prefix}" if system.prefix else simulation.prefix,
        "trajectories": simulation.trajectories,
        "first_step": simulation.step,
        "time_step_fs": system.timestep,
        "temperature_K": simulation.temperature,
        "beads": system.nbeads,
        "component_beads": [part.nbeads for part in system.forces],
        "component_weights": [part.share for part in system.forces],
        "biased": bool(system.bias),
        "motions": system.motions,
        "smotions": simulation.smotions,
        "systems": len(simulation.systems),
        "committee_share": system.share("committee_pot", {part.forcefield for part in system.forces}),
        "labels": system.labels,
        "masses": system.label_masses,
    }
    properties: dict[str, Series] = {}
    for output in simulation.properties:
        if (simulation.directory / output.name).exists():
            clock = output.stride, simulation.step, system.timestep
            properties = read_properties(simulation.directory / output.name, output.columns, *clock) | properties
    # there is no beadwork.out: i-PI was served by another program
    nothing = np.empty((0, 6))
    return _of_one_state(RunFolder(simulation.directory, about, {}, nothing, {}, {}, properties, [], {}))


def _of_one_state(run: RunFolder) -> RunFolder:
    """Return it. Raises ConfigError where its temperature, or what else an average is at, changes on the way."""
    for mode in [*(run.about.get("smotions") or ()), *(run.about.get("motions") or ())]:
        if mode in CHANGING:
            what, remedy = CHANGING[mode]
            raise ConfigError(
                f"in the simulation of {run.directory} {what}, so an average would be of no state", remedy
            )
    if DRIVEN in (run.about.get("motions") or ()):
        logger.warning(
            "an electric field drives the system of %s (<driven_dynamics>): unless that is constant, averages and "
            "spectra are of no equilibrium",
            run.directory,
        )
    printed = run.properties.get("ensemble_temperature")
    if printed is not None and len(printed.values) and np.ptp(printed.values) > SAME * printed.values.max():
        low, high = printed.values.min(), printed.values.max()
        what = f"ensemble_temperature of {run.directory} goes from {low:g} to {high:g} {printed.unit}"
        raise ConfigError(f"{what}, so an average would be of no state", CHANGING["remd"][1])
    if (count := run.about.get("systems") or 1) > 1:
        logger.warning("%s has %d systems, of which the first alone is averaged", run.directory, count)
    return run


def _check_about(path: Path, about: Mapping[str, Any]) -> None:
    """Raise ConfigError where what a record says of its run cannot be."""
    kinds: dict[str, type | tuple[type, ...]] = {"temperature_K": (int, float), "time_step_fs": (int, float)}
    kinds |= {"beads": int, "first_step": int, "periodic": bool, "plain_mean": bool, "biased": bool}
    kinds["dipole_jumps"] = bool
    kinds |= {"outputs": str, "directory": str, "committee_share": (int, float), "composition": dict}
    # of a composition each count by itself
    counts = about.get("composition")
    told = dict(about) | ({f"{name} atoms": n for name, n in counts.items()} if isinstance(counts, dict) else {})
    kinds |= dict.fromkeys(set(told) - set(about), int)
    for key, kind in kinds.items():
        value = told.get(key)
        whole = value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool)))
        least = {"beads": 1, "committee_share": -1e15}.get(key, 0)
        if not whole or (isinstance(value, (int, float)) and not least <= value < 1e15):
            raise ConfigError(f"the line # run: of {path} has {key} = {str(value)[:60]}, which cannot be", DAMAGED)
    for key, least in (("component_beads", 1), ("component_weights", -1e15)):
        value = about.get(key) or []
        if not isinstance(value, list) or not all(type(one) in (int, float) and least <= one < 1e15 for one in value):
            raise ConfigError(f"the line # run: of {path} has {key} = {str(value)[:60]}, which cannot be", DAMAGED)
    files = about.get("trajectories") or []
    if not isinstance(files, list) or not all(
        isinstance(one, list) and all(isinstance(name, str) for name in one) for one in files
    ):
        raise ConfigError(f"the line # run: of {path} has trajectories = {str(files)[:60]}, which cannot be", DAMAGED)
    for key in ("composition", "labels", "masses"):
        value = about.get(key) or {}
        if not isinstance(value, dict) or any(
            one is not None and not (type(one) in (int, float) and 0 < one < 1e15) for one in value.values()
        ):
            raise ConfigError(f"the line # run: of {path} has {key} = {str(value)[:60]}, which cannot be", DAMAGED)


def thermal(run: RunFolder) -> float:
    """Return kT in Hartree. Raises ConfigError where the run has no temperature."""
    kelvin = run.about.get("temperature_K")
    if not kelvin:
        raise ConfigError(f"the simulation in {run.folder} has no temperature", "take one of a thermostatted ensemble")
    return float(unit_to_internal("temperature", "kelvin", kelvin))


def first_step(run: RunFolder, skip: float) -> int:
    """Return the step from which on a run counts, `skip` ps after its start. Raises ConfigError without a time step."""
    step = run.about.get("time_step_fs")
    if skip and not step:
        raise ConfigError(f"the time step of {run.folder} is not known, so no ps can be left out", "leave --skip out")
    # 1000 fs in a ps; rounding must not leave out one step more
    return int(np.ceil(1000 * skip / step - 1e-9)) if skip and step else 0


def weighed(steps: IntArray, potentials: Potentials | str, thermal: float) -> tuple[FloatArray | None, str]:
    """Return the members' energies (F, M) in kT at these steps, NaN where they are not known, or None and why."""
    if isinstance(potentials, str):
        return None, potentials
    found = [potentials.by_step.get(int(step)) for step in steps]
    known = [one for one in found if one is not None]
    if len(known) < 2:
        return None, "fewer than two steps have both what is averaged and the members' energies"
    if len(known[0]) < 2:
        return None, "there is one member only"
    # differences of energies matter, of which the last digit that was written may be a large part
    if potentials.resolution > 0.05 * thermal:
        coarse = f"i-PI wrote the members' energies to {potentials.resolution / thermal:.2g} kT only"
        return None, f"{coarse}, which `<simulation floatformat='%20.12e'>` mends"
    nothing = np.full(len(known[0]), np.nan)
    return np.array([nothing if one is None else one for one in found]) / thermal, ""


def sample(
    run: RunFolder,
    coordinates: Sequence[Coordinate],
    of: str = "centroid",
    skip: float = 0.0,
    periodic: bool | None = None,
) -> Sampled:
    """Return the values of these coordinates over a run, after `skip` ps.

    of: the centroid, or every bead for itself. periodic: whether distances are those to the nearest image; None takes
    what the run says, or its frames. Raises ConfigError where i-PI did not write what this needs.
    """
    beads = int(run.about.get("beads", 1))
    kt = thermal(run)
    if periodic is None:
        # what the server was told: i-PI has a cell in any case
        periodic = bool(run.about.get("periodic", True))
    files = [
        _values(frames, coordinates, first_step(run, skip), periodic) for frames in _files(run, of, beads, periodic)
    ]
    # a step that a killed run wrote for some beads only is left out
    steps = sorted(set.intersection(*(set(found) for found in files)))
    if not steps:
        raise ConfigError(f"{run.folder} has no frames after {skip:g} ps", "leave out less with --skip")
    with reading(run.directory, ConfigError, DAMAGED):
        energies, gap = weighed(np.array(steps), read_committee(run), kt)
    values = {
        coordinate.text: np.array([np.concatenate([found[step][place] for found in files]) for step in steps])
        for place, coordinate in enumerate(coordinates)
    }
    kelvin, time_step = float(run.about["temperature_K"]), run.about.get("time_step_fs")
    say_earlier(run, np.array(steps))
    bias = _bias(run, steps, kt)
    return Sampled(np.array(steps), values, energies, gap, kelvin, beads, of, time_step, bias, models_of(run))


def models_of(run: RunFolder) -> str:
    """The hashes of the models that a run ended with; '' where they are not known."""
    return ", ".join(sorted(map(str, (run.about.get("models") or {}).values())))


def say_earlier(run: RunFolder, steps: IntArray) -> None:
    """Warn of steps that are of other models, or of another temperature, than those that the run ended with."""
    since = potential_since(run)
    earlier = 0 if since is None else int((steps < since).sum())
    if since is None or not earlier:
        return
    step = run.about.get("time_step_fs")
    # to the digit that the last of them needs: skip is rounded up to a step
    leave = f"--skip {since * step / 1000:.6g} leaves them out" if step else "leave them out"
    logger.warning(
        "%d of %d steps of %s are from before step %d, of other models or another temperature than those that the run "
        "ended with, and an average over both is of neither; %s",
        earlier,
        len(steps),
        run.directory,
        since,
        leave,
    )


def _bias(run: RunFolder, steps: Sequence[int], kt: float) -> FloatArray | None:
    """What `ensemble_bias` is at these steps, kT."""
    series = run.properties.get("ensemble_bias")
    if series is None:
        return np.full(len(steps), np.nan) if run.about.get("biased") else None
    unit = "atomic_unit" if series.unit == "atomic units" else series.unit
    scale = float(unit_to_internal("energy", unit, 1.0)) / kt
    by_step = dict(zip(series.steps.astype(np.int_).tolist(), (scale * series.values).tolist(), strict=True))
    return np.array([by_step.get(step, np.nan) for step in steps])


def _values(
    frames: Iterator[tuple[int, Frame]], coordinates: Sequence[Coordinate], first: int, periodic: bool
) -> dict[int, list[FloatArray]]:
    """By the steps from `first` on, the values of each coordinate."""
    values: dict[int, list[FloatArray]] = {}
    for batch in _batches(frames, first):
        positions = np.array([frame.positions for _, frame in batch])
        there = periodic and all(all(frame.pbc) for _, frame in batch)
        cells = np.array([frame.cell for _, frame in batch]) if there else None
        found = [coordinate.values(batch[0][1].numbers, positions, cells) for coordinate in coordinates]
        for row, (step, _) in enumerate(batch):
            write_down(values, step, [of[row] for of in found])
    return values


def _batches(frames: Iterator[tuple[int, Frame]], first: int) -> Iterator[list[tuple[int, Frame]]]:
    """Frames from this step on, some at a time."""
    batch: list[tuple[int, Frame]] = []
    for step, frame in frames:
        if step >= first:
            batch.append((step, frame))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _files(run: RunFolder, of: str, beads: int, periodic: bool) -> list[Iterator[tuple[int, Frame]]]:
    """The frames of the centroid, or of each bead that was written."""
    positions = find_trajectory(run.files, "positions")
    several = of == "centroid" and beads > 1
    # one bead is its own centroid, whichever of the two was written
    wanted = several or (beads == 1 and positions is None)
    if wanted and (centroid := find_trajectory(run.files, "x_centroid")):
        return [_of_bead(centroid, 0)]
    if several:
        if positions is not None and len(positions.files) == beads:
            return [_centroids(positions, periodic)]
        ask = _ASK.format(file="centroid", what="x_centroid{angstrom}")
        raise ConfigError(f"i-PI wrote no positions of the centroid into {run.directory}", f"have it write {ask}")
    if positions is None:
        ask = _ASK.format(file="positions", what="positions{angstrom}")
        raise ConfigError(f"i-PI wrote no positions of the beads into {run.directory}", f"have it write {ask}")
    return [_of_bead(positions, bead) for bead in range(len(positions.files))]


def _of_bead(trajectory: Trajectory, bead: int) -> Iterator[tuple[int, Frame]]:
    file = trajectory.files[bead]
    with reading(file, ConfigError, DAMAGED):
        for step, _, frame in Trajectory(trajectory.quantity, (file,), trajectory.every):
            frame.check()
            yield step, frame


def _by_step(frames: Iterator[tuple[int, Frame]]) -> dict[int, Frame]:
    found: dict[int, Frame] = {}
    for step, frame in frames:
        write_down(found, step, frame)
    return found


def _centroids(positions: Trajectory, periodic: bool) -> Iterator[tuple[int, Frame]]:
    """The mean of all beads of a step, each taken at the image that is nearest to the first, where there are images."""
    first = _by_step(_of_bead(positions, 0))
    sums = {step: frame.positions.copy() for step, frame in first.items()}
    counts = dict.fromkeys(first, 1)
    for bead, file in enumerate(positions.files[1:], 1):
        for step, frame in _by_step(_of_bead(positions, bead)).items():
            if step not in first:
                continue
            if not np.array_equal(frame.numbers, first[step].numbers):
                raise ConfigError(f"{file} has other atoms than {positions.files[0]}", DAMAGED)
            apart = frame.positions - first[step].positions
            if periodic and all(frame.pbc):
                # beads may have been folded to different sides of the cell
                apart -= np.round(apart @ np.linalg.inv(frame.cell)) @ frame.cell
            sums[step] += first[step].positions + apart
            counts[step] += 1
    for step, frame in first.items():
        if counts[step] == len(positions.files):
            yield step, Frame(frame.numbers, sums[step] / counts[step], frame.cell, frame.pbc)


def alike(pieces: Sequence[Sampled]) -> None:
    """Raise ConfigError where runs cannot be averaged: other temperatures, beads, committees or strides."""
    one_of("temperatures", {piece.kelvin for piece in pieces})
    one_of("numbers of beads", {piece.beads for piece in pieces})
    one_of("distributions", {piece.of for piece in pieces})
    one_of("models", {piece.models for piece in pieces if piece.models})
    one_of("numbers of values a step", {one.shape[1] for piece in pieces for one in list(piece.values.values())[:1]})
    of_energies_and_steps([piece.energies for piece in pieces], [piece.steps for piece in pieces])


def of_energies_and_steps(energies: Sequence[FloatArray | None], steps: Sequence[IntArray]) -> None:
    """Raise ConfigError where runs have different numbers of members or different strides."""
    one_of("numbers of members", {one.shape[1] for one in energies if one is not None})
    # blocks of one length in frames must be of one length in time
    one_of("strides", {int(np.diff(one).min()) for one in steps if len(one) > 1})


def one_state(runs: Sequence[RunFolder], of_members: bool = False) -> None:
    """Raise ConfigError where runs have different temperatures, numbers of beads, atoms or models.

    of_members: each is moved by models of its own. What an older run does not say is not compared.
    """
    one_of("temperatures", {run.about.get("temperature_K") for run in runs})
    one_of("numbers of beads", {run.about.get("beads") for run in runs})
    counts = [run.about.get("composition") or {} for run in runs]
    one_of("atoms", {"".join(f"{symbol}{n}" for symbol, n in sorted(of.items())) for of in counts if of})
    if not of_members:
        one_of("models", {models for run in runs if (models := models_of(run))})


def one_of(name: str, found: Collection[object]) -> None:
    """Raise ConfigError where runs differ in this."""
    if len(found) > 1:
        told = " and ".join(map(str, sorted(found, key=str)))
        raise ConfigError(f"these runs have different {name}: {told}", "give runs of one kind")
