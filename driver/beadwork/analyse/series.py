"""Coordinates over a run as one small file, from which free energies are made when the trajectories are gone.

A CSV, compressed by gzip, whose first line says in JSON what the run was: of every step the values of each coordinate
and, where they are known, the members' energies about their mean, in kT, which is all that averages want of them.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from beadwork.analyse.runs import Sampled
from beadwork.disk import writing
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray

#: what the name of such a file ends with
ENDING = ".csv.gz"
_DIGITS = 6


def write_series(path: Path, sampled: Sampled) -> None:
    """Write what was sampled; the same series make the same bytes. Raises ConfigError or ResourceError."""
    columns = {name: values.shape[1] for name, values in sampled.values.items()}
    about = {
        "kelvin": sampled.kelvin,
        "beads": sampled.beads,
        "of": sampled.of,
        "time_step": sampled.time_step,
        "gap": sampled.gap,
        "columns": columns,
    }
    text = io.StringIO()
    text.write(f"# {json.dumps(about)}\n")
    rows = csv.writer(text, lineterminator="\n")
    names = [name if width == 1 else f"{name} [{k}]" for name, width in columns.items() for k in range(width)]
    table = np.hstack(list(sampled.values.values()))
    if sampled.energies is not None:
        # about the mean of the members, and without their constant parts: no average depends on either, and few digits
        # are left
        apart = sampled.energies - sampled.energies.mean(axis=1, keepdims=True)
        table = np.hstack([table, apart - np.nanmean(apart, axis=0)])
        names += [f"member {k} (kT)" for k in range(sampled.energies.shape[1])]
    rows.writerow(["step", *names])
    for step, row in zip(sampled.steps.tolist(), table.tolist(), strict=True):
        # NaN is not equal to itself
        rows.writerow([step, *("" if value != value else f"{value:.{_DIGITS}f}" for value in row)])
    with writing(path):
        # mtime 0: the same series make the same bytes, whenever they are written
        path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def read_series(path: Path, wanted: Sequence[str], skip: float = 0.0) -> Sampled:
    """Read what `write_series` wrote, of these coordinates, after `skip` ps. Raises ConfigError."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            about = json.loads(stream.readline().removeprefix("# "))
            next(stream)
            rows = [[float(cell or "nan") for cell in row] for row in csv.reader(stream)]
        table = np.array(rows, dtype=np.float64)
        columns = dict(about["columns"])
        kelvin, beads, of, time_step, gap = (about[key] for key in ("kelvin", "beads", "of", "time_step", "gap"))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, StopIteration) as error:
        raise ConfigError(f"{path} is no series ({error})", "make it with beadwork analyse series") from error
    if missing := [name for name in wanted if name not in columns]:
        raise ConfigError(f"{path} has no {missing[0]}", f"it has {', '.join(columns)}")
    if skip and not time_step:
        raise ConfigError(f"the time step of {path} is not known, so no ps can be left out", "leave --skip out")
    # a last digit of rounding must not leave out the first frame
    table = table[table[:, 0] * (time_step or 0.0) >= 1000 * skip - 1e-9]
    if not len(table):
        raise ConfigError(f"{path} has no frames after {skip:g} ps", "leave out less with --skip")
    values: dict[str, FloatArray] = {}
    at = 1
    for name, width in columns.items():
        values[name] = table[:, at : at + width]
        at += width
    energies = table[:, at:] if table.shape[1] > at else None
    steps = table[:, 0].astype(np.int_)
    return Sampled(steps, {name: values[name] for name in wanted}, energies, gap, kelvin, beads, of, time_step)
