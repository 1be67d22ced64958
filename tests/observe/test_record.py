"""What a run leaves behind, against numbers that were put in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from beadwork.events import Evaluated, Kept
from beadwork.observe.outputs import read_properties, read_record
from beadwork.observe.pace import Pace
from beadwork.observe.picture import draw
from beadwork.observe.record import Record, tell


def event(step: int, structures: int, spread: float | None = 0.01) -> Evaluated:
    """One evaluation of 20 ms, half of it i-PI's."""
    seconds = {"idle": 0.01, "model": 0.01}
    return Evaluated("a", step, structures, -1.0, spread, spread, seconds)


def test_structures_are_counted_against_ipis_own_steps(tmp_path: Path) -> None:
    """Twice evaluated structures show: the denominator is what i-PI says, not what we think."""
    record = Record(tmp_path)
    record(event(0, 1))
    for step in (1, 2):
        record(event(step, 3))
        record(event(step, 1))
    summary = record.summary(asked=2 * 2)
    record.close(summary)
    assert summary["structures_per_bead_step"] == 2.0
    assert (summary["steps"], summary["evaluations"], summary["evaluations_per_step"]) == (2, 4, 2.0)
    assert summary["seconds_per_step_by_part"] == {"idle": 0.02, "model": 0.02}
    assert json.loads((tmp_path / "summary.json").read_text())["structures_evaluated"] == 8
    assert record.summary()["structures_per_bead_step"] is None


def test_record_has_a_line_an_evaluation(tmp_path: Path) -> None:
    """beadwork.out can be read by anything that reads columns, without a committee too."""
    record = Record(tmp_path)
    record(event(0, 1))
    record(event(1, 4, spread=None))
    record(Kept(1, 1, None, 0.1))
    summary = record.summary()
    record.close(summary)
    table, _ = read_record(tmp_path / "beadwork.out")
    assert table.shape == (2, 6)
    assert np.isnan(table[1, 3])
    assert table[1, 1] == 4
    assert summary["frames_kept"] == 1


def test_what_an_earlier_run_left_gets_a_number(tmp_path: Path) -> None:
    """A server that is started again in the same folder does not erase weeks of spreads, nor leave an old summary."""
    for step in range(3):
        record = Record(tmp_path)
        record(event(step, 1))
        record.close(record.summary())
    steps = [read_record(tmp_path / name)[0][0, 0] for name in ("beadwork.out.1", "beadwork.out.2", "beadwork.out")]
    assert steps == [0, 1, 2]
    assert (tmp_path / "summary.json.2").exists()
    Record(tmp_path)._file.close()
    assert not (tmp_path / "summary.json").exists()  # it would speak of another run


def test_spreads_are_means_over_what_has_one(tmp_path: Path) -> None:
    """With multiple time steps the baseline is asked more often than Δ; and no committee is not a sure one."""
    record = Record(tmp_path)
    for step in range(1, 6):
        record(event(step, 4, spread=0.05 if step == 3 else None))
    summary = record.summary()
    record.close(summary)
    assert (summary["force_spread_mean"], summary["energy_spread_mean"]) == (0.05, 0.05)
    assert "force spread: mean of the largest 0.0500" in tell(summary, tmp_path, None)
    alone = Record(tmp_path)
    alone(event(1, 4, spread=None))
    summary = alone.summary()
    alone.close(summary)
    assert summary["force_spread_max"] is None
    assert "force spread" not in tell(summary, tmp_path, None)


def test_picture_is_drawn_from_ipis_header(tmp_path: Path) -> None:
    """Columns are found by their names, in any order; the picture is a real one."""
    lines = ["# column   1     --> step : a", "# column   2     --> temperature{kelvin} : b"]
    lines += ["# column   3     --> potential{electronvolt} : c", "# column   4     --> time{picosecond} : d"]
    rows = [f"{k} {300 + k} {-1.0 - k} {k / 1000}" for k in range(5)]
    (tmp_path / "simulation.out").write_text("\n".join(lines + rows) + "\n")
    run, _ = read_properties(tmp_path / "simulation.out")
    assert run["temperature"].tolist() == [300, 301, 302, 303, 304]
    record = Record(tmp_path)
    for step in range(5):
        record(event(step, 2))
    record.close(record.summary())
    draw(tmp_path / "simulation.out", tmp_path / "beadwork.out", tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_no_picture_is_said_and_not_an_error(tmp_path: Path) -> None:
    """A run that ended before its first step, or wrote no properties, still ends with its own exit code."""
    record = Record(tmp_path)
    record.close(record.summary())
    (tmp_path / "simulation.out").write_text("# column   1     --> step : a\n")
    for name in ("simulation.out", "missing.out"):
        said = draw(tmp_path / name, tmp_path / "beadwork.out", tmp_path / "run.png")
        assert said.startswith("no picture")
    assert not (tmp_path / "run.png").exists()


def test_multiple_time_steps_are_counted_by_the_rarest(tmp_path: Path) -> None:
    """A baseline asked four times for each Δ does not make four steps of one."""
    record, pace = Record(tmp_path), Pace(forcefields=2)
    for number in range(1, 9):
        for watcher in (record, pace):
            watcher(Evaluated("baseline", number, 4, -1.0, None, None, {"model": 0.1}))
            if number % 4 == 0:
                watcher(Evaluated("delta", number // 4, 1, -1.0, 0.1, 0.1, {"model": 0.1}))
    summary = record.summary()
    record.close(summary)
    assert pace.step == 2
    assert summary["steps"] == 2
    assert summary["seconds_per_step_by_part"]["model"] == pytest.approx(0.5)
