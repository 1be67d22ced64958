"""What was found as text for a terminal, and as files that other programs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beadwork.analyse.free_energy import Estimate
from beadwork.analyse.properties import Observable
from beadwork.disk import write_csv
from beadwork.report.uncertainty import DEPENDENT

#: columns of a table of numbers with errors
ERRORS = ("value", "statistical", "committee", "both")
HEAD = ("", *ERRORS, "unit")


def write_estimates(path: Path, estimates: Mapping[str, tuple[Estimate, str]]) -> None:
    """Write numbers with their errors and units, a line each."""
    columns: dict[str, list[Any]] = {"observable": list(estimates)}
    columns |= {name: [getattr(estimate, name) for estimate, _ in estimates.values()] for name in ERRORS}
    write_csv(path, columns | {"unit": [unit for _, unit in estimates.values()]})


def write_observables(path: Path, found: Sequence[Observable]) -> None:
    """Write averages, a line each, with the steps that they are from and how many independent ones these stand for."""
    columns: dict[str, list[Any]] = {"observable": [one.name for one in found]}
    columns |= {name: [getattr(one.estimate, name) for one in found] for name in ERRORS}
    columns |= {name: [getattr(one, name) for one in found] for name in ("unit", "samples", "independent")}
    write_csv(path, columns)


def show(estimates: Mapping[str, tuple[Estimate, str]]) -> str:
    """A table of numbers with their errors, with as many digits as leave the error two."""
    rows = [HEAD]
    for name, (one, unit) in estimates.items():
        digits = _digits(one)
        bars = ["" if bar is None else "?" if bar != bar else f"{bar:.{digits}f}" for bar in _bars(one)]
        value = "not known" if one.value != one.value else f"{one.value:.{digits}f}"
        rows.append((name, value, bars[0], bars[1], bars[2], unit))
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEAD))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:5], widths[1:5], strict=True)),
        ]
        lines.append("  ".join([*cells, row[5]]).rstrip())
    return "\n".join(lines)


def notes(gap: str, wander: float) -> list[str]:
    """What a reader has to know of the committee's error, a sentence each."""
    found = [f"no committee's error, or not of every run: {gap}"] if gap else []
    if wander > 1:
        found.append(
            f"a member's energy wanders about the others' by {wander:.2g} kT; the expansion behind the committee's "
            "error holds up to about 1"
        )
    return found


def too_short(dependence: Mapping[str, float]) -> list[str]:
    """A sentence where blocks are none, by the correlation of neighbouring ones."""
    slow = [f"{name} ({value:.2f})" for name, value in dependence.items() if value > DEPENDENT]
    if not slow:
        return []
    return [
        f"neighbouring blocks depend on each other in {', '.join(slow)}: the run is too short for its slowest motion, "
        "and the statistical error is too small"
    ]


def _bars(one: Estimate) -> tuple[float | None, float | None, float | None]:
    return one.statistical, one.committee, one.both


def _digits(one: Estimate) -> int:
    """Digits after the point that leave the error two; three where there is none."""
    digits = 0
    while one.both > 0 and digits < 9 and one.both * 10**digits < 9.5:
        digits += 1
    return digits if one.both > 0 else 3
