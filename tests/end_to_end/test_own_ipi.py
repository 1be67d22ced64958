"""`beadwork run` and the i-PI that it has started: that one, where it runs, as long as it lives."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beadwork.cli import main
from beadwork.errors import SimulationError
from beadwork.observe.record import read_about


def wait_until(what: Callable[[], bool], seconds: float) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def answered(run, least: int) -> Callable[[], bool]:
    """Whether so many lines stand in beadwork.out."""
    record = run.folder / "beadwork.out"
    return lambda: record.exists() and len(record.read_text().splitlines()) > least


def test_another_simulation_at_the_same_port_is_left_alone(ipi, models, start, tmp_path, monkeypatch, capsys) -> None:
    """An i-PI that waits for its own server must not be answered by the server of another run."""
    waiting = ipi.Input(tmp_path / "one", [ipi.Forcefield(mode="inet")], steps=4).write()
    second = ipi.Input(tmp_path / "two", [ipi.Forcefield(mode="inet")], steps=4).write()
    ports = [re.search(r"<port>(\d+)</port>", run.path.read_text()).group(1) for run in (waiting, second)]
    second.path.write_text(second.path.read_text().replace(ports[1], ports[0]))
    process = start.ipi(waiting)
    wait_until(lambda: (waiting.folder / "run.out").exists(), ipi.PATIENCE)  # it listens, and has no step
    monkeypatch.chdir(second.folder)
    assert main(["run", "input.xml", "--baseline", str(models.baseline)]) == SimulationError.exit_code
    assert "is held by another i-PI" in capsys.readouterr().err
    assert process.poll() is None
    assert not [line for line in (waiting.folder / "run.out").read_text().splitlines() if not line.startswith("#")]
    assert not (waiting.folder / "EXIT").exists()


def test_a_terminal_that_goes_away_ends_neither(ipi, models, start, tmp_path) -> None:
    """A shell sends SIGHUP to all of its job: the run goes on to its last step, i-PI included."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4)], steps=60).write()
    command = [sys.executable, "-m", "beadwork.cli", "run", "input.xml", "--baseline", str(models.baseline)]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=run.folder, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(answered(run, 5), ipi.PATIENCE)
        os.killpg(job.pid, signal.SIGHUP)
        assert job.wait(ipi.PATIENCE) == 0, (tmp_path / "log").read_text()
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
    assert run.properties()["step"][-1] == 60


def test_last_frames_of_an_ipi_that_died(ipi, models, start, tmp_path) -> None:
    """Where i-PI itself was killed, what it was last answered for is on the disk, and its code is ours."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4)], steps=5000).write()
    process = start.beadwork("run", run, "--baseline", models.baseline)
    wait_until(answered(run, 3), ipi.PATIENCE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (victim,) = [pid for pid in children if b"i-pi" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(victim), signal.SIGKILL)
    assert process.wait(ipi.PATIENCE) == 128 + signal.SIGKILL
    assert (run.folder / "last-frames.extxyz").exists()
    assert "were answered last" in start.log(process)


def test_addresses_and_outputs_where_they_lie(ipi, models, start, tmp_path, monkeypatch) -> None:
    """A sockets_prefix counts from i-PI's folder; what the report looks for is found through a link to the outputs."""
    run = ipi.Input(tmp_path / "deep" / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=3).write()
    run.path.write_text(run.path.read_text().replace(f"sockets_prefix='{run.prefix}'", "sockets_prefix='here-'"))
    elsewhere = tmp_path / "scratch" / "much" / "deeper"
    elsewhere.mkdir(parents=True)
    (tmp_path / "ours").symlink_to(elsewhere)
    monkeypatch.chdir(tmp_path)
    options = ["--baseline", str(models.baseline), "--out", "ours"]
    assert main(["run", "deep/run/input.xml", *options]) == 0
    about = read_about(elsewhere / "beadwork.out")
    assert (tmp_path / "ours" / about["simulation"]).resolve() == run.path.resolve()


def test_the_prefix_that_ipi_has_as_an_option(ipi, models, start, serve, tmp_path) -> None:
    """`i-pi -S PREFIX` listens elsewhere than the XML says: `serve` is told so, and `run` starts it so."""
    served, ran = (ipi.Input(tmp_path / name, [ipi.Forcefield(batch=4)], steps=2).write() for name in ("a", "b"))
    process = start.ipi(served, "-S", "other-")
    assert serve(served, "--baseline", models.baseline, "--sockets-prefix", "other-") == 0
    assert process.wait(ipi.PATIENCE) == 0
    assert served.properties()["step"].tolist() == [0, 1, 2]
    ran.path.write_text(ran.path.read_text().replace(f"sockets_prefix='{ran.prefix}'", "sockets_prefix='/nowhere/s-'"))
    process = start.beadwork("run", ran, "--baseline", models.baseline, "--sockets-prefix", f"{tmp_path}/other-")
    assert process.wait(ipi.PATIENCE) == 0
    assert ran.properties()["step"].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_a_forcefield_that_nobody_serves_is_named(ipi, models, start, tmp_path) -> None:
    """i-PI would wait for ever, and its log say nothing."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield("base"), ipi.Forcefield("delta")], steps=3).write()
    process = start.beadwork("run", run, "--baseline", models.baseline, "--at", "base=baseline", "--silence", 5)
    assert process.wait(ipi.PATIENCE) == 8
    assert "'delta' is not served here" in start.log(process)
