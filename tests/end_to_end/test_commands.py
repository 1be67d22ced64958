"""The commands as a user types them: exit codes, a TOML file, signals, what is left behind."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from beadwork.cli import main


def test_run_ends_as_ipi_does(ipi, models, start, tmp_path) -> None:
    """`beadwork run` starts i-PI, over a stale socket file too, and ends with its exit code 0."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=4).write()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(run.prefix + "water")
    options = ["--baseline", models.baseline, "--delta", *models.delta]
    process = start.beadwork("run", run, *options)
    assert process.wait(ipi.PATIENCE) == 0
    assert "removed" in start.log(process)
    assert run.properties()["step"][-1] == 4
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["structures_per_bead_step"] == 1.0
    assert not Path(run.prefix + "water").exists()


def test_run_ends_as_a_failing_ipi_does(ipi, models, start, tmp_path) -> None:
    """An input that beadwork can read and i-PI cannot run: the exit code of i-PI alone, and soon after it."""
    # a property that i-PI finds out about when it opens its outputs
    bare, run = (ipi.Input(tmp_path / name, steps=4).write() for name in ("bare", "run"))
    for one in (bare, run):
        one.path.write_text(one.path.read_text().replace("pressure_cv,", "pressure_of_my_tyres,"))
    alone = start.ipi(bare)
    assert alone.wait(ipi.PATIENCE) != 0
    process = start.beadwork("run", run, "--baseline", models.baseline)
    assert process.wait(ipi.PATIENCE) == alone.returncode
    assert time.time() - (run.folder / "i-pi.log").stat().st_mtime < 30
    assert "Traceback" not in start.log(process)
    assert "i-pi.log" in start.log(process)
    assert json.loads((run.folder / "summary.json").read_text())["exit_code"] == alone.returncode


def test_toml_is_the_same(ipi, models, start, tmp_path, monkeypatch) -> None:
    """`beadwork serve run.toml` does what the same options on the command line do."""
    ends = []
    for name in ("typed", "toml"):
        run = ipi.Input(tmp_path / name, [ipi.Forcefield(batch=4)], steps=3).write()
        if name == "typed":
            options = ["input.xml", "--baseline", models.baseline, "--delta", *models.delta, "--alpha", "1.5"]
        else:
            deltas = ", ".join(f'"{bundle}"' for bundle in models.delta)
            (run.folder / "run.toml").write_text(
                f'simulation = "input.xml"\nbaseline = "{models.baseline}"\ndelta = [{deltas}]\nalpha = 1.5\n'
            )
            options = ["run.toml"]
        process = start.ipi(run)
        monkeypatch.chdir(run.folder)
        assert main(["serve", *(str(option) for option in options)]) == 0
        assert process.wait(ipi.PATIENCE) == 0
        summary = json.loads((run.folder / "summary.json").read_text())
        ends.append((run.positions(), summary["force_spread_max"], summary["energy_spread_mean"]))
    for one, two in zip(*ends, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9)


@pytest.mark.parametrize("command", ["serve", pytest.param("run", marks=pytest.mark.slow)])
def test_sigterm_ends_after_the_reply_and_keeps_the_queue(ipi, models, start, tmp_path, command) -> None:
    """SIGTERM ends the server after the reply that is being computed; what was kept is in the queue, once."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4)], steps=5000).write()
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--queue", "q.db"]
    options += ["--keep-force", "0", "--cooldown", "0", "--keep-most", "10000", "--distance", "1e-9"]
    other = start.ipi(run) if command == "serve" else None
    server = start.beadwork(command, run, *options)
    record = run.folder / "beadwork.out"
    end = time.monotonic() + ipi.PATIENCE
    while not record.exists() or len(record.read_text().splitlines()) < 6:
        assert server.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    server.send_signal(signal.SIGTERM)
    code = server.wait(30)
    assert code == 128 + signal.SIGTERM
    assert "Traceback" not in start.log(server)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert (summary["exit_code"], summary["why"]) == (code, "ended by SIGTERM")
    with closing(sqlite3.connect(run.folder / "q.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT COUNT(*) FROM systems").fetchone()[0]
    assert rows == summary["frames_kept"] > 0
    if other is not None:
        assert other.poll() is None  # i-PI waits for the next server


@pytest.mark.slow
def test_restart_is_served_as_it_stands(ipi, models, start, tmp_path) -> None:
    """i-PI's RESTART instead of the XML: addresses and species come from it, and the run goes on where it ended; in
    another folder it writes there, as i-PI does by hand, and the old outputs stay as they were."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=3).write()
    options = ["--baseline", models.baseline, "--delta", *models.delta]
    assert start.beadwork("run", run, *options).wait(ipi.PATIENCE) == 0
    restart = run.folder / "RESTART"
    run.path.write_text(restart.read_text().replace("<total_steps>3<", "<total_steps>6<"))
    names = ("run.out", "RESTART", "beadwork.out", "summary.json", "status.json", "i-pi.log")
    before = {name: (run.folder / name).read_bytes() for name in names}
    there = run.folder / "cont"
    there.mkdir()
    elsewhere = start("beadwork", sys.executable, "-m", "beadwork.cli", "run", "../input.xml", *options, cwd=there)
    assert elsewhere.wait(ipi.PATIENCE) == 0, start.log(elsewhere)
    assert {name: (run.folder / name).read_bytes() for name in names} == before
    process = start.beadwork("run", run, *options)
    assert process.wait(ipi.PATIENCE) == 0, start.log(process)
    rows = [line for line in (there / "run.out").read_text().splitlines() if not line.startswith("#")]
    assert run.properties()["step"].tolist() == [0, 1, 2, 3, *(float(row.split()[0]) for row in rows)]
    assert run.properties()["step"][-1] == 6
    for folder in (there, run.folder):
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["steps"] == 3
        assert summary["structures_per_bead_step"] == 1.0


def test_run_from_another_folder(ipi, models, start, tmp_path, monkeypatch) -> None:
    """i-PI is started where its files are, and beadwork's own outputs lie where they were asked for."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=2).write()
    monkeypatch.chdir(tmp_path)
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--out", "ours"]
    assert main(["run", "run/input.xml", *(str(option) for option in options)]) == 0
    assert run.properties()["step"][-1] == 2
    assert json.loads((tmp_path / "ours" / "summary.json").read_text())["structures_per_bead_step"] == 1.0


def test_queue_needs_a_committee(ipi, models, tmp_path, monkeypatch, capsys) -> None:
    """One Δ model has no spread, so a queue would stay empty for weeks: said at once."""
    run = ipi.Input(tmp_path / "run", steps=2).write()
    monkeypatch.chdir(run.folder)
    options = ["--baseline", str(models.baseline), "--delta", str(models.delta[0]), "--queue", "q.db"]
    assert main(["serve", "input.xml", *options]) == 2
    assert "no forcefield is served two" in capsys.readouterr().err
