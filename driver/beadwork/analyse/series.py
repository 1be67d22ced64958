"""Coordinates over a run as one small file, from which free energies are made when the trajectories are gone.

A CSV, compressed by gzip, whose first line says in JSON what the run was: of every step the values of each coordinate
and, where they are known, the members' energies about their mean and the bias, in kT, which is all that averages want.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from beadwork.analyse.runs import OF, Sampled
from beadwork.disk import reading, writing
from beadwork.errors import ConfigError
from beadwork.frame import FloatArray

#: what the name of such a file ends with
ENDING = ".csv.gz"
#: of a coordinate, of whatever size
_VALUE = ".9g"
#: of energies in kT, of which the exponential is taken: a millionth of a frame's weight
_ENERGY = ".6f"
#: no step, distance, angle or energy in kT comes near it
_LARGEST = 1e15
_REMEDY = "make it with beadwork analyse series"


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
        "bias": sampled.bias is not None,
    }
    text = io.StringIO()
    text.write(f"# {json.dumps(about)}\n")
    rows = csv.writer(text, lineterminator="\n")
    names = [name if width == 1 else f"{name} [{k}]" for name, width in columns.items() for k in range(width)]
    table = np.hstack(list(sampled.values.values()))
    forms = [_VALUE] * table.shape[1]
    if sampled.energies is not None:
        # about the mean of the members, and without their constant parts: no average depends on either, and few digits
        # are left
        apart = sampled.energies - sampled.energies.mean(axis=1, keepdims=True)
        table = np.hstack([table, apart - np.nanmean(apart, axis=0)])
        names += [f"member {k} (kT)" for k in range(sampled.energies.shape[1])]
    if sampled.bias is not None:
        table = np.column_stack([table, sampled.bias])
        names.append("bias (kT)")
    forms += [_ENERGY] * (len(names) - len(forms))
    rows.writerow(["step", *names])
    for step, row in zip(sampled.steps.tolist(), table.tolist(), strict=True):
        # NaN is not equal to itself
        rows.writerow(
            [step, *("" if value != value else format(value, form) for value, form in zip(row, forms, strict=True))]
        )
    with writing(path):
        # mtime 0: the same series make the same bytes, whenever they are written
        path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def read_series(path: Path, wanted: Sequence[str], skip: float = 0.0) -> Sampled:
    """Read what `write_series` wrote, of these coordinates, after `skip` ps. Raises ConfigError."""
    with reading(path, ConfigError, _REMEDY):
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            about = json.loads(stream.readline().removeprefix("# "))
            next(stream)
            rows = [[float(cell or "nan") for cell in line.rstrip("\n").split(",")] for line in stream]
        table = np.array(rows, dtype=np.float64)
        columns = {str(name): int(width) for name, width in about["columns"].items()}
        gap, of, beads, kelvin = str(about["gap"]), str(about["of"]), int(about["beads"]), float(about["kelvin"])
        time_step = None if about["time_step"] is None else float(about["time_step"])
        # series of before 0.3 do not say it, and have none
        biased = int(bool(about.get("bias", False)))
        width = 1 + sum(columns.values())
        known = table[:, :width]
        whole = (
            len(columns) > 0
            and min(columns.values()) > 0
            and table.shape[1] >= width + biased
            and np.isfinite(known).all()
        )
        whole = whole and (np.diff(known[:, 0]) > 0).all() and np.abs(known).max() < _LARGEST
        whole = whole and np.nan_to_num(np.abs(table)).max() < _LARGEST
        whole = (
            whole and of in OF and beads > 0 and 0 < kelvin < np.inf and (time_step is None or 0 < time_step < np.inf)
        )
    if not whole:
        raise ConfigError(f"{path} is no series: its first line, its columns and its numbers do not agree", _REMEDY)
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
    end = table.shape[1] - biased
    energies = table[:, at:end] if end > at else None
    steps, bias = table[:, 0].astype(np.int_), table[:, end] if biased else None
    return Sampled(steps, {name: values[name] for name in wanted}, energies, gap, kelvin, beads, of, time_step, bias)
