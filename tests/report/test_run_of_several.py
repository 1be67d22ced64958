"""One report over all servers of a run on several devices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from beadwork.cli import main
from beadwork.observe.record import COLUMNS, NAME, NOVELTY
from beadwork.report.run import read_run

HEAD = "  ".join([COLUMNS, "spread_O/(eV/A)", *NOVELTY, "novelty_O"])
#: of each server: the folder of its files, and its rows, where a server that died has none of the last step
SERVERS = {
    "dev-0": ["0 3 -1.0 0.1 0.20 0.5 0.03 0.9 nan 0.9", "1 3 -2.0 0.1 0.40 0.5 0.03 1.2 nan 1.2"],
    "dev-1": ["2 1 -9.0 nan nan 0.1 nan 0.7 nan 0.7"],
    "dev-1-died-1": ["0 1 -5.0 0.5 0.30 0.9 0.07 0.5 nan 0.5", "1 1 -6.0 0.5 0.10 0.1 0.07 0.4 nan 0.4"],
    "dev-1-earlier-1": ["0 1 999.0 9.0 9.00 9.0 9.00 9.0 nan 9.0"],
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder that `beadwork run --devices cpu,cpu` leaves, with the words of its servers."""
    told = {"directory": "..", "queue": "../queue.db", "first_step": 0, "time_step_fs": 0.5, "beads": 4}
    for name, rows in SERVERS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / NAME).write_text("\n".join([HEAD, f"# run: {json.dumps(told)}", *rows]) + "\n")
        novelty = {"structures": 4, "new_structures": 1, "new_atoms": 2, "largest": {"baseline": 1.2}}
        summary = {"steps": 1, "evaluations": 2, "structures_evaluated": 4, "frames_kept": 1, "seconds_per_step": 0.5}
        (tmp_path / name / "summary.json").write_text(json.dumps({**summary, "marks_passed": {}, "novelty": novelty}))
    (tmp_path / "summary.json").write_text(json.dumps({"exit_code": 0, "structures_evaluated": 9, "devices": []}))
    return tmp_path


def test_a_row_a_step(run: Path) -> None:
    """The beads of a step are counted together, whichever server had them, and those of an earlier run are left out."""
    found = read_run(run)
    assert found.directory.resolve() == run
    assert found.about["queue"] == "queue.db"
    expected = [[0, 4, -2.0, 0.2, 0.3, 0.9], [1, 4, -3.0, 0.2, 0.4, 0.5], [2, 1, -9.0, np.nan, np.nan, 0.1]]
    np.testing.assert_allclose(found.record, expected)
    oxygen = np.sqrt((3 * 0.03**2 + 0.07**2) / 4)
    np.testing.assert_allclose(found.elements["O"], [oxygen, oxygen, np.nan])
    np.testing.assert_allclose(found.novelty["baseline"], [0.9, 1.2, 0.7])
    assert found.summary["structures_evaluated"] == 9
    assert found.summary["frames_kept"] == 3
    assert found.summary["novelty"]["new_atoms"] == 6


def test_a_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`beadwork report` takes the folder of all."""
    assert main(["report", str(run)]) == 0
    assert "1.20" in (run / "report.html").read_text()


def test_while_it_runs(run: Path) -> None:
    """Before the end there are no totals, and the page says so."""
    (run / "dev-0" / "summary.json").unlink()
    found = read_run(run)
    assert not found.summary
    assert "go on" in found.gaps["summary"]
