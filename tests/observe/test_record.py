"""What a run leaves behind, against numbers that were put in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from beadwork.events import Activated, Evaluated, FrameKept, Refused
from beadwork.observe.pace import Pace
from beadwork.observe.record import (
    COLUMNS,
    JOINED,
    Committees,
    Record,
    format_summary,
    read_about,
    read_answered,
    read_committees,
    read_record,
)
from beadwork.report.picture import draw

matplotlib.use("Agg")
from matplotlib import pyplot


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
    summary = record.summary(done=2, each=2)
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
    record(FrameKept(1, 1, None, 0.1))
    summary = record.summary()
    record.close(summary)
    table, *_ = read_record(tmp_path / "beadwork.out")
    assert table.shape == (2, 6)
    assert np.isnan(table[1, 3])
    assert table[1, 1] == 4
    assert summary["frames_kept"] == 1


@pytest.mark.parametrize("address", ["unix:/tmp/ipi_a", "inet:localhost:31415", "unix:/tmp/a: b in c"])
@pytest.mark.parametrize("step", [7, None])
def test_committees_are_read_as_they_were_written(tmp_path: Path, address: str, step: int | None) -> None:
    """Whose answers follow, and why one was refused since then, whatever the reason says; one that was refused before
    another was taken up is history. What was answered is told by who answered it. A torn last line says nothing."""
    path = tmp_path / "beadwork.out"
    assert read_committees(path) == Committees([], [])
    record = Record(tmp_path, ["O"])
    record(Activated(address, 0, "sha256:aaa", "models/old: in use", "as it began"))
    record(event(0, 2, 0.1))
    record(Refused("models/old", "gone"))
    assert read_committees(path) == Committees(["sha256:aaa"], ["gone"])
    record(Activated(address, step, "sha256:bbb", "models/new", "it is good: in step 3 on x: y in z", 9))
    reason = "# from step 0 on a: sha256:ccc in m\nsaid somebody; x"
    record(Refused("models/new", reason))
    record(event(7, 2, 0.3))
    record(replace(event(7, 2, 0.2), novelty={"delta": 1.5}))
    record(event(8, 2, None))
    assert read_committees(path) == Committees(["sha256:aaa", "sha256:bbb"], [reason])
    (old,), (new,) = (read_answered(path, committee).values() for committee in ("sha256:aaa", "sha256:bbb"))
    assert (old.spread, old.delta) == (0.1, None)
    assert (new.spread, new.baseline, new.delta) == (0.3, None, 1.5)
    assert read_answered(path, "sha256:ccc") == {}
    record(Refused("models/new", "worse"))
    record.close(record.summary())
    path.write_text(path.read_text()[:-5])
    assert read_committees(path).refused == [reason]
    assert len(read_record(path)[0]) == 4


def test_steps_between_two_looks_at_forces_were_answered_too(tmp_path: Path) -> None:
    """Members on one trunk say the spread of forces now and then: of the other steps it is not known, and they count
    as answered, with their novelty; what the baseline answered alone does not."""
    record = Record(tmp_path, ["O"])
    record(Activated("a", 0, "sha256:aaa", "models/trunk", "serves from the start"))
    record(event(0, 2, 0.1))
    between = replace(event(1, 2, None), energy_spread=0.02)
    record(replace(between, novelty={"delta": 3.0}))
    record(replace(between, step=2))
    record(replace(event(2, 2, 0.3), novelty={"delta": 0.5}))
    record(event(3, 2, None))
    record.close(record.summary())
    found = read_answered(tmp_path / "beadwork.out", "sha256:aaa")
    assert [(step.spread, step.delta) for step in found.values()] == [(0.1, None), (None, 3.0), (0.3, 0.5)]


def test_columns_of_elements_come_after_the_others(tmp_path: Path) -> None:
    """Whoever reads the first six columns reads them still; older files have no more, and a torn line is left out."""
    record = Record(tmp_path, ["O", "H"], {"beads": 4, "simulation": "a.xml"})
    seconds = {"model": 0.01}
    record(Evaluated("a", 0, 1, -1.0, 0.1, 0.2, seconds, {"H": 0.03, "O": 0.04}))
    record(Evaluated("b", 1, 1, -1.0, None, None, seconds))
    record.close(record.summary())
    path = tmp_path / "beadwork.out"
    table, spread, _ = read_record(path)
    assert table.shape == (2, 6)
    assert list(spread) == ["O", "H"]
    assert spread["O"][0] == 0.04
    assert spread["H"][0] == 0.03
    assert np.isnan(spread["H"][1])
    assert read_about(path) == {"beads": 4, "simulation": "a.xml"}
    path.write_text(path.read_text()[:-7])
    assert read_record(path)[0].shape == (1, 6)
    path.write_text(f"{path.read_text()}\n{JOINED}\n")  # another forcefield was answered first
    assert read_about(path)["joined"]
    path.write_text(f"{COLUMNS}\n 0 1 -1.0 0.1 0.2 0.3\n")
    table, spread, _ = read_record(path)
    assert table.tolist() == [[0, 1, -1.0, 0.1, 0.2, 0.3]]
    assert spread == {}
    assert read_about(path) == {}


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
    assert "force spread: mean of the largest 0.0500" in format_summary(summary, tmp_path, None)
    alone = Record(tmp_path)
    alone(event(1, 4, spread=None))
    summary = alone.summary()
    alone.close(summary)
    assert summary["force_spread_max"] is None
    assert "force spread" not in format_summary(summary, tmp_path, None)


def recorded(folder: Path, steps: int, about: dict[str, Any]) -> None:
    """What a server leaves of so many steps."""
    record = Record(folder, about=about)
    for step in range(steps):
        record(event(step, 2))
    record.close(record.summary())


def drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[list[float], list[float]]]]:
    """The lines of each panel of the picture, as they were drawn."""
    kept: list[Any] = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    assert draw(folder) == f"the run's picture is {folder / 'run.png'}"
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = kept
    lines = [[(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] for axes in figure.axes]
    monkeypatch.undo()
    pyplot.close(figure)
    return lines


def test_picture_is_drawn_from_ipis_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files of properties, each with its own stride, and with or without steps; the spread beside them."""
    (tmp_path / "one.out").write_text("# column   1     --> potential{electronvolt} : c\n-1.0\n-3.0\n-4.0\n")
    lines = ["# column   1     --> step : a", "# column   2     --> temperature{kelvin} : b"]
    (tmp_path / "two.out").write_text("\n".join([*lines, *(f"{k} {300 + k}" for k in range(5)), ""]))
    outputs = {"one.out": {"stride": 2, "columns": []}, "two.out": {"stride": 1, "columns": []}}
    recorded(tmp_path, 5, {"properties": outputs, "time_step_fs": 0.5})
    temperature, energy, spread = drawn(tmp_path, monkeypatch)
    assert temperature == [([0.0, 0.5, 1.0, 1.5, 2.0], [300, 301, 302, 303, 304])]
    assert energy == [([0.0, 1.0, 2.0], [0.0, -2.0, -3.0])]
    assert [line[0] for line in spread] == [[0.0, 0.5, 1.0, 1.5, 2.0]] * 2


def test_novelty_has_a_panel_where_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Baseline and Δ, and the edge of training at 1; without such models the picture has three panels, as before."""
    record = Record(tmp_path)
    for step in range(3):
        record(replace(event(step, 2), novelty={"baseline": 0.5 + step, "delta": 0.25}))
    record.close(record.summary())
    *_, novelty = drawn(tmp_path, monkeypatch)
    assert [line[1] for line in novelty] == [[0.5, 1.5, 2.5], [0.25] * 3, [1, 1]]
    recorded(tmp_path, 3, {})
    assert len(drawn(tmp_path, monkeypatch)) == 3


def test_a_picture_of_the_spread_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """i-PI may have written no properties, or run elsewhere: what beadwork knows is drawn."""
    (tmp_path / "a.out").write_text("# column   1     --> step : a\n")
    recorded(tmp_path, 3, {"properties": {"a.out": {"stride": 1, "columns": []}, "missing.out": {}}, "first_step": 7})
    temperature, energy, spread = drawn(tmp_path, monkeypatch)
    assert (temperature, energy) == ([], [])
    assert spread[0][0] == [7, 8, 9]


def test_no_picture_is_said_and_not_an_error(tmp_path: Path) -> None:
    """A run that ended before its first step still ends with its own exit code."""
    recorded(tmp_path, 0, {})
    assert draw(tmp_path).startswith("no picture")
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


def test_steps_that_are_not_known_are_not_summed_up(tmp_path: Path) -> None:
    """Evaluations are: the rows have nan for a step, the summary null, and its words say so. With i-PI's own count in
    the end, the steps are those. A blurred step is done when the next one is under way."""
    record = Record(tmp_path)
    for _ in range(4):
        record(replace(event(1, 2), step=None))
    summary = record.summary()
    assert (summary["steps"], summary["seconds_per_step"], summary["evaluations"]) == (None, None, 3)
    assert format_summary(summary, tmp_path, None).startswith("3 evaluations, ")
    assert "i-PI's steps are not known" in format_summary(summary, tmp_path, None)
    assert record.summary(done=2)["steps"] == 2
    record.close(summary)
    rows, *_ = read_record(tmp_path / "beadwork.out")
    assert np.isnan(rows[:, 0]).all()
    assert "no picture" not in draw(tmp_path)
    blurred = Record(tmp_path / "two")
    for step in (0, 1, 11, 21):
        blurred(replace(event(step, 2), blur=9 * (step > 0)))
    assert blurred.summary()["steps"] == 20
    late = Record(tmp_path / "three")
    for step in (None, 8, 8, 9, 10):
        late(replace(event(1, 2), step=step))
    assert late.summary()["steps"] == 3
    assert late.summary(come_to=12)["steps"] == 4
    for one in (blurred, late):
        one.close({})


@pytest.mark.parametrize("come_to", [None, 1, 201, 251])
def test_outputs_with_a_stride_take_no_step_from_the_count(tmp_path: Path, come_to: int | None) -> None:
    """250 answered steps are 250 whenever i-PI last wrote a line, and so is what is told of each. Of blurred ones the
    outputs tell what was done after the last answer, and no fewer than were known by it."""
    record, blurred = Record(tmp_path / "exact"), Record(tmp_path / "blurred")
    for step in range(251):
        record(event(step, 2))
    for step in (0, 1, 101):
        blurred(replace(event(step, 2), blur=99 * (step > 0)))
    summary = record.summary(come_to=come_to)
    assert (summary["steps"], summary["evaluations_per_step"]) == (250, 1.0)
    assert summary["seconds_per_step"] == pytest.approx(0.02)
    assert blurred.summary(come_to=come_to)["steps"] == {None: 100, 1: 100, 201: 200, 251: 250}[come_to]
    for one in (record, blurred):
        one.close({})
