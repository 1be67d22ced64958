"""Several servers share the beads of one i-PI; one of them is killed, and nobody else loses anything by it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter

import numpy as np
import pytest

from beadwork.cli import main
from beadwork.harvest.queue import Queue
from beadwork.observe.record import read_record
from beadwork.report.run import read_run

BEADS = 8


def ports(ipi, folder, batch, steps):
    """An input whose forcefield listens on loopback."""
    forcefield = ipi.Forcefield(mode="inet", batch=batch, latency=1e-3)
    return ipi.Input(folder, [forcefield], beads=BEADS, steps=steps).write()


def undisturbed(ipi, start, serve, folder, steps, options):
    """The same run with one server that has the whole ring polymer."""
    run = ipi.Input(folder, [ipi.Forcefield(batch=BEADS)], beads=BEADS, steps=steps).write()
    process = start.ipi(run)
    assert serve(run, *options) == 0
    assert process.wait(ipi.PATIENCE) == 0
    return run


def until(ipi, what, *processes):
    """Wait for something while these run."""
    end = time.monotonic() + ipi.PATIENCE
    while not what():
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def answered(folder) -> int:
    """Structures in a server's record."""
    return int(read_record(folder / "beadwork.out")[0][:, 1].sum()) if (folder / "beadwork.out").exists() else 0


def served_by(folder) -> int | None:
    """The server's process, as its own status has it."""
    return json.loads((folder / "status.json").read_text())["pid"] if (folder / "status.json").exists() else None


def steps_done(run) -> int:
    """What i-PI has written."""
    path = run.folder / "run.out"
    return sum(not line.startswith("#") for line in path.read_text().splitlines()) if path.exists() else 0


def check_same(run, calm) -> float:
    """The trajectory is that of the undisturbed run; returns how far the positions are off."""
    for name, expected in calm.properties().items():
        np.testing.assert_allclose(run.properties()[name], expected, rtol=1e-7, atol=0, err_msg=name)
    np.testing.assert_allclose(run.positions(), calm.positions(), rtol=1e-7, atol=0)
    return float(np.abs(run.positions() / calm.positions() - 1).max())


@pytest.mark.slow
@pytest.mark.fault("one of several servers is killed", "kill -9 in mid-run of one of two, --devices cpu,cpu; real i-PI")
def test_one_is_killed(ipi, models, start, serve, fault, tmp_path) -> None:
    """i-PI goes on with the other at once; every bead of every step is answered, once, as by one server alone."""
    options = ["--baseline", models.baseline, "--engine", "native"]
    steps = 30
    run = ports(ipi, tmp_path / "run", BEADS // 2, steps)
    server = start.beadwork("serve", run, *options, "--devices", "cpu,cpu")
    folders = [run.folder / f"dev-{number}" for number in (0, 1)]
    until(ipi, lambda: all((folder / "beadwork.out").exists() for folder in folders), server)
    process = start.ipi(run)
    until(ipi, lambda: min(map(answered, folders)) >= 20, process)
    os.kill(served_by(folders[0]), signal.SIGKILL)
    begun = steps_done(run)
    assert begun < steps - 5, "i-PI has all but ended before the kill"
    assert process.wait(ipi.PATIENCE) == 0
    assert server.wait(ipi.PATIENCE) == 0
    log = start.log(server)
    assert "dev-0 (cpu) was killed by SIGKILL; i-PI sends its beads to the 1 left; it is started again in 1 s" in log
    off = check_same(run, undisturbed(ipi, start, serve, tmp_path / "calm", steps, options))
    summary = json.loads((run.folder / "summary.json").read_text())
    shares = [device["structures_evaluated"] for device in summary["devices"]]
    codes = [device["exit_codes"] for device in summary["devices"]]
    assert codes[0][0] == -signal.SIGKILL
    assert len(codes[0]) == 2
    assert codes[1] == [0]
    # at the start all beads are one structure; a server that is killed may take the word of its last answer with it
    assert BEADS * steps - BEADS <= summary["structures_evaluated"] <= BEADS * (steps + 1)
    fault(
        f"exit codes 0 and 0; i-PI did the {steps - begun} steps that were left, its positions within {off:.0e} of an "
        f"undisturbed run's; {shares[0]} structures answered by the killed one and its successor, {shares[1]} by the "
        "other"
    )


@pytest.mark.slow
def test_run_starts_ipi_and_a_server_each(ipi, models, start, serve, tmp_path) -> None:
    """`run --devices`: i-PI's code is ours, and every bead of every step was answered once, as by one server."""
    options = ["--baseline", models.baseline, "--engine", "native"]
    run = ports(ipi, tmp_path / "run", BEADS // 2, 6)
    process = start.beadwork("run", run, *options, "--devices", "cpu,cpu")
    assert process.wait(ipi.PATIENCE) == 0, start.log(process)
    assert (run.folder / "i-pi.log").exists()
    assert not (run.folder / ".i-pi.lock").exists()
    check_same(run, undisturbed(ipi, start, serve, tmp_path / "calm", 6, options))
    summary = json.loads((run.folder / "summary.json").read_text())
    assert [device["exit_codes"] for device in summary["devices"]] == [[0], [0]]
    assert BEADS * 6 <= summary["structures_evaluated"] <= BEADS * 7
    assert main(["report", str(run.folder)]) == 0
    record = read_run(run.folder).record
    assert record[:, 0].tolist() == list(range(7))
    # of the start, where all beads are one structure, each server has evaluated one
    assert record[1:, 1].tolist() == [BEADS] * 6


CASES = [(2, 4), (2, 1), (3, 3), (3, 1)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("servers", "batch"), CASES)
@pytest.mark.fault(
    "one of {servers} servers that share a queue is killed, and comes back",
    "kill -9 in mid-run, --devices, <batch_size> {batch}, i-PI held until the new server is there",
)
def test_one_comes_back(ipi, models, start, serve, fault, tmp_path, servers, batch) -> None:
    """The server that was started again gets its share again; the queue has every frame that it can have, once.

    Every frame of the undisturbed run is kept there by one of the servers, but for those that the killed one had
    answered and not written yet.
    """
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "native", "--queue", "q.db"]
    options += ["--keep-force", "0", "--cooldown", "0", "--keep-most", "10000", "--distance", "1e-9"]
    steps = 60
    calm = undisturbed(ipi, start, serve, tmp_path / "calm", steps, options)
    run = ports(ipi, tmp_path / "run", batch, steps)
    server = start.beadwork("serve", run, *options, "--devices", ",".join(["cpu"] * servers))
    folders = [run.folder / f"dev-{number}" for number in range(servers)]
    until(ipi, lambda: all((folder / "beadwork.out").exists() for folder in folders), server)
    process = start.ipi(run)
    until(ipi, lambda: min(map(answered, folders)) >= 20, process)
    victim = served_by(folders[0])
    os.kill(victim, signal.SIGKILL)
    killed_at = steps_done(run)
    until(ipi, lambda: steps_done(run) >= killed_at + 3, process)
    process.send_signal(signal.SIGSTOP)
    until(ipi, lambda: (folders[0] / "beadwork.out").exists() and served_by(folders[0]) != victim, server)
    process.send_signal(signal.SIGCONT)
    before = steps_done(run)
    assert before < steps - 10, "i-PI has all but ended before the server is back"
    assert process.wait(5 * ipi.PATIENCE) == 0
    assert server.wait(ipi.PATIENCE) == 0
    off = check_same(run, calm)
    lost_in = run.folder / "dev-0-died-1"
    again = answered(folders[0])
    assert answered(lost_in) >= 20
    assert again >= (steps - before) * BEADS // servers // 2, "the server that came back got little to do"
    rows, known = Queue(run.folder / "q.db").rows(), Queue(calm.folder / "q.db").rows()
    places = np.stack([row.kept.frame.positions.ravel() for row in known])
    nearest = [int(np.abs(places - row.kept.frame.positions.ravel()).max(axis=1).argmin()) for row in rows]
    for row, index in zip(rows, nearest, strict=True):
        assert np.abs(places[index] - row.kept.frame.positions.ravel()).max() < 1e-6  # Å
        np.testing.assert_allclose(row.kept.force_spread, known[index].kept.force_spread, rtol=1e-5)
        assert row.kept.frame.bead is None
    # the start, where all beads are one structure, is answered by every server that is there
    twice = [index for index, count in Counter(nearest).items() if count > 1]
    assert all(known[index].kept.step == 0 for index in twice), f"{len(twice)} frames are there twice"
    missing = set(range(len(known))) - set(nearest)
    assert all(known[index].kept.step <= killed_at + 2 for index in missing), "frames are lost after the kill"
    assert len(missing) <= answered(lost_in)
    fault(
        f"exit codes 0 and 0; positions within {off:.0e} of an undisturbed run's; the new server answered {again} "
        f"structures of the last {steps - before} steps; {len(rows)} rows in the queue, {len(missing)} of the "
        f"{len(known)} lost with the server"
    )


@pytest.mark.slow
@pytest.mark.fault("SIGTERM with several servers", "sent to the parent of --devices cpu,cpu in mid-run; real i-PI")
def test_signal_is_passed_on(ipi, models, start, fault, tmp_path) -> None:
    """128 + signal; every server ends in order, with its summary, and none is left."""
    run = ports(ipi, tmp_path / "run", BEADS // 2, 5000)
    server = start.beadwork("serve", run, "--baseline", models.baseline, "--engine", "native", "--devices", "cpu,cpu")
    folders = [run.folder / f"dev-{number}" for number in (0, 1)]
    until(ipi, lambda: all((folder / "beadwork.out").exists() for folder in folders), server)
    process = start.ipi(run)
    until(ipi, lambda: min(map(answered, folders)) >= 20, process)
    begin = time.monotonic()
    server.send_signal(signal.SIGTERM)
    assert server.wait(ipi.PATIENCE) == 128 + signal.SIGTERM
    seconds = time.monotonic() - begin
    assert process.poll() is None
    for folder in folders:
        with pytest.raises(ProcessLookupError):
            os.kill(served_by(folder), 0)
        assert (folder / "summary.json").exists()
    summary = json.loads((run.folder / "summary.json").read_text())
    assert [device["exit_codes"] for device in summary["devices"]] == [[143], [143]]
    assert main(["status", str(run.folder)]) == 1
    fault(
        f"exit code 143 after {seconds:.1f} s, of the parent and of both servers; i-PI waits for others; nothing left"
    )


@pytest.mark.slow
@pytest.mark.fault(
    "the device of one of several servers fails", "an engine that raises 'CUDA error' from its tenth call"
)
def test_a_failing_device_leaves_ipi_to_the_other(
    ipi, models, start, serve, fault, monkeypatch, capfd, tmp_path
) -> None:
    """It ends by name and leaves i-PI, whose directory it knows, to the other; a server alone would have stopped it."""
    from beadwork.potential.torchscript import TorchScriptEngine

    evaluate, calls = TorchScriptEngine.evaluate, []

    def failing(self, graph):
        calls.append(len(graph))
        if len(calls) >= 10:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return evaluate(self, graph)

    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=BEADS // 2, latency=1e-3)], beads=BEADS, steps=200).write()
    options = ["--baseline", models.baseline, "--engine", "torchscript", "--servers", 2]
    other = start.beadwork("serve", run, *options, "--out", "other")
    until(ipi, lambda: (run.folder / "other" / "beadwork.out").exists(), other)
    process = start.ipi(run)
    monkeypatch.setattr(TorchScriptEngine, "evaluate", failing)
    assert serve(run, *options, "--out", "failing") == 4
    log = capfd.readouterr().err
    assert "CUDA error" in log
    assert "i-PI is left to the other servers" in log
    failed_at = steps_done(run)
    assert 0 < failed_at < 200
    assert process.wait(ipi.PATIENCE) == 0
    assert other.wait(ipi.PATIENCE) == 0
    assert run.properties()["step"][-1] == 200
    assert not (run.folder / "EXIT").exists()
    fault(f"exit code 4 by name, no EXIT file; i-PI did the {200 - failed_at} steps that were left with the other")
