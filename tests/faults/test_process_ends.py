"""Every end of a run has a name, an exit code and last frames, and leaves no process and no socket behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ase.io
import numpy as np
import pytest

from beadwork.ipi import transport
from beadwork.log import taken_apart
from beadwork.report.write import report

#: making the models is part of the first test's time, and a busy machine takes its own
pytestmark = pytest.mark.timeout(1200)
HERE = Path(__file__).parent
#: seconds for a whole run, on a machine that has other things to do
LONG = 500.0
Say = Callable[[str], None]


@pytest.fixture
def strays(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Every process that the test started, directly or not, and that still runs: each has inherited a mark."""
    mark = f"BEADWORK_FAULT={uuid.uuid4()}"
    monkeypatch.setenv(*mark.split("="))

    def look() -> list[str]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    return look


def sentence(log: str) -> str:
    """The last thing that beadwork said of itself, without this machine's paths."""
    lines = [taken_apart(line)[1] for line in re.split(r"[\r\n]", log)]
    said = [line for line in lines if line.startswith("beadwork: ")]
    return re.sub(r"/\S+/", "…/", said[-1].removeprefix("beadwork: "))


def wait_for_steps(run: Any, server: Any, count: int, patience: float) -> None:
    """Wait until the server has answered so many times."""
    record, end = run.folder / "beadwork.out", time.monotonic() + patience
    while not record.exists() or len(record.read_text().splitlines()) < count:
        assert server.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


def last_frames(run: Any) -> list[Any]:
    """What the run left behind."""
    return list(ase.io.read(run.folder / "last-frames.extxyz", ":"))


PHASES = [
    ("arguments are read", "run", "beadwork.cli:_parser", 1),
    ("models are loaded", "run", "beadwork.potential.torchscript:load_module", 2),
    ("the queue is opened", "run", "beadwork.harvest.queue:Queue._prepare", 1),
    ("i-PI has just been started", "run", "after-beadwork.serve.session:Session._meet_ipi", 1),
    ("i-PI is waited for", "serve", "beadwork.ipi.transport:_connect", 2),
    ("a structure is evaluated", "run", "beadwork.potential.potential:Potential.evaluate", 12),
    ("a reply is sent", "run", "beadwork.ipi.transport:Peer.send", 20),
    ("i-PI moves the beads", "run", "beadwork.serve.server:Server._after", 8),
    ("a frame is written to the queue", "run", "beadwork.harvest.queue:Queue.add_all", 3),
    ("i-PI's end is waited for", "run", "beadwork.ipi.process:OwnIpi.end", 1),
    ("the queue is closed", "run", "beadwork.harvest.keeper:Keeper.close", 1),
]


@pytest.mark.parametrize("where", [phase[2] for phase in PHASES])
def test_the_places_of_signals_are_there(where: str) -> None:
    """A name that has changed is told at once, and not by tests that few people run."""
    module, _, path = where.removeprefix("after-").partition(":")
    assert callable(attrgetter(path)(import_module(module)))


@pytest.mark.parametrize(
    ("when", "command", "where", "nth"),
    [pytest.param(*phase, id=phase[0], marks=[] if k == 1 else pytest.mark.slow) for k, phase in enumerate(PHASES)],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.fault("{number.name} while {when}", "sent by the process to itself in {where}; beadwork {command}")
def test_a_signal_ends_server_and_ipi_and_leaves_no_process(
    ipi, models, start, strays, fault: Say, tmp_path: Path, when, command, where, nth, number
) -> None:
    """128 + signal, soon; i-PI ends with us; no process and no socket is left; the queue has what was reported."""
    short = when in ("i-PI's end is waited for", "the queue is closed")
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=4 if short else 5000).write()
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "torchscript"]
    options += ["--queue", "q.db", "--keep-force", "0", "--cooldown", "0", "--distance", "1e-9"]
    begin = time.monotonic()
    program = (sys.executable, HERE / "signalled.py", number.name, where, nth)
    server = start("beadwork", *program, command, run.path.name, *options, cwd=run.folder)
    code = server.wait(LONG)
    seconds = time.monotonic() - begin
    log = start.log(server)
    assert code == 128 + number, log
    assert "Traceback" not in log
    assert strays() == []
    assert not Path(run.prefix + "water").exists()
    kept = "no queue yet"
    if when not in ("arguments are read", "models are loaded"):
        summary = json.loads((run.folder / "summary.json").read_text())
        from beadwork.harvest.queue import Queue

        rows = len(Queue(run.folder / "q.db", create=True))  # where it was being made, that is finished now
        assert rows == summary["frames_kept"]
        kept = f"{rows} frames reported, {rows} in the queue"
    last = "last frames on disk" if (run.folder / "last-frames.extxyz").exists() else "no last frames"
    if where.startswith(("beadwork.potential.potential", "beadwork.ipi.transport:Peer", "beadwork.serve.server")):
        frames = last_frames(run)
        assert len({atoms.info["bead"] for atoms in frames}) == 4
        assert all(np.isfinite(atoms.get_forces()).all() for atoms in frames)
        last = f"{len(frames)} last frames with forces"
    fault(f"exit code {code} {seconds:.1f} s after the start; {kept}; {last}; no process or socket left")


@pytest.mark.fault("no i-PI, and patience 0", "nobody listens at the address")
def test_patience_zero_ends_at_the_first_dial(
    ipi, models, serve, capfd, fault: Say, tmp_path: Path, monkeypatch
) -> None:
    """0 ends at the first dial."""
    run = ipi.Input(tmp_path / "run").write()
    connect, dials = transport._connect, []
    monkeypatch.setattr(transport, "_connect", lambda *asked: dials.append(asked) or connect(*asked))
    begin = time.monotonic()
    assert serve(run, "--baseline", models.baseline, "--engine", "torchscript", "--patience", 0) == 8
    seconds = time.monotonic() - begin
    said = sentence(capfd.readouterr().err)
    assert "for 0 s" in said
    assert len(dials) == 1
    fault(f"exit code 8 after {seconds:.1f} s, loading included: '{said}'")


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.fault("i-PI is killed and started again from its RESTART", "kill -9 in mid-run, 10 s without, then i-pi")
def test_ipi_killed_and_restarted(ipi, models, start, serve, fault: Say, tmp_path: Path) -> None:
    """The same server waits at no cost and carries on; positions at the end are those of an undisturbed run."""
    options = ["--baseline", models.baseline, "--engine", "native"]
    forcefields = [ipi.Forcefield(batch=4, latency=1e-3)]
    calm = ipi.Input(tmp_path / "calm", forcefields, steps=100).write()
    process = start.ipi(calm)
    assert serve(calm, *options) == 0
    assert process.wait(LONG) == 0
    run = ipi.Input(tmp_path / "run", forcefields, steps=100).write()
    first = start.ipi(run)
    server = start.beadwork("serve", run, *options)
    wait_for_steps(run, server, 40, LONG)
    first.kill()
    first.wait()
    time.sleep(1)
    before = cpu_seconds(server.pid)
    time.sleep(10)
    used = cpu_seconds(server.pid) - before
    assert used < 0.5
    assert server.poll() is None
    Path(run.prefix + "water").unlink()  # what a killed i-PI leaves; a new one does not start over it
    run.path.write_text((run.folder / "run.checkpoint").read_text())
    begun = int(re.search(r"<step>\s*(\d+)", run.path.read_text())[1])
    assert 0 < begun < 100
    second = start.ipi(run)
    assert second.wait(LONG) == 0
    assert server.wait(LONG) == 0
    np.testing.assert_allclose(run.positions(), calm.positions(), rtol=1e-7, atol=0)
    off = np.abs(run.positions() / calm.positions() - 1).max()
    fault(
        f"the server used {used:.2f} s of CPU in 10 s of waiting, answered the i-PI that went on from step {begun}, "
        f"and ended with 0; positions within {off:.0e} of an undisturbed run's"
    )


@pytest.mark.slow
@pytest.mark.fault("i-PI is killed and does not come back", "kill -9 in mid-run, --patience 2")
def test_ipi_killed_for_good(ipi, models, start, fault: Say, tmp_path: Path) -> None:
    """Exit code 8 after the patience, a sentence, and the last ring with energies and forces."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=5000).write()
    process = start.ipi(run)
    server = start.beadwork("serve", run, "--baseline", models.baseline, "--engine", "torchscript", "--patience", 2)
    wait_for_steps(run, server, 10, LONG)
    process.kill()
    begin = time.monotonic()
    assert server.wait(LONG) == 8
    seconds = time.monotonic() - begin
    frames = last_frames(run)
    assert {atoms.info["bead"] for atoms in frames} == set(range(4))
    assert all(np.isfinite(atoms.get_potential_energy()) for atoms in frames)
    said = sentence(start.log(server))
    assert "for 2 s" in said
    fault(f"exit code 8 after {seconds:.1f} s: '{said}'; {len(frames)} last frames with energies and forces")


@pytest.mark.slow
@pytest.mark.fault("i-PI falls silent with its connections open", "kill -STOP in mid-run, --silence 3")
def test_ipi_falls_silent(ipi, models, start, fault: Say, tmp_path: Path) -> None:
    """The server ends by name, with the last ring on disk, where it would else wait for ever."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-3)], steps=100_000).write()
    process = start.ipi(run)
    server = start.beadwork("serve", run, "--baseline", models.baseline, "--engine", "torchscript", "--silence", 3)
    wait_for_steps(run, server, 10, LONG)
    process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    try:
        assert server.wait(LONG) == 8
    finally:
        process.send_signal(signal.SIGCONT)
    seconds = time.monotonic() - begin
    said = sentence(start.log(server))
    assert "asked for nothing" in said
    assert process.poll() is None  # it is the user's, and may be busy with others
    assert not (run.folder / "EXIT").exists()
    assert len(last_frames(run)) == 4
    fault(f"exit code 8 after {seconds:.1f} s: '{said}'; 4 last frames on disk")


def marked(
    ipi, models, start, folder: Path, *options: object, mode: str = "unix", **kwargs: Any
) -> tuple[Any, Any, str]:
    """A run with i-PI; returns input, its own exit code and what it said."""
    forcefields = [ipi.Forcefield(mode=mode, batch=4, latency=1e-2)]
    run = ipi.Input(folder, forcefields, **{"steps": 12, **kwargs}).write()
    models_given = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "torchscript"]
    server = start.beadwork("run", run, *models_given, *options)
    return run, server.wait(LONG), start.log(server)


MARKS = [("distance", "0.95"), ("force", "1e-3"), ("spread", "1e-4")]


@pytest.mark.parametrize(
    ("kind", "mark", "mode"),
    [
        pytest.param(*case, marks=[] if k == 0 else pytest.mark.slow)
        for k, case in enumerate([*((*mark, "unix") for mark in MARKS), (*MARKS[0], "inet")])
    ],
)
@pytest.mark.fault(
    "the guard's mark for {kind} is passed ({mode})", "--mark-{kind} {mark}, which this water passes; real i-PI"
)
def test_a_limit_stops_ipi_before_it_makes_the_step(
    ipi, models, start, strays, fault: Say, tmp_path: Path, kind, mark, mode
) -> None:
    """Exit code 11 before the reply of that structure leaves: i-PI has made no step with it."""
    run, code, log = marked(ipi, models, start, tmp_path / "run", f"--mark-{kind}", mark, mode=mode)
    assert code == 11, log
    said = sentence(log)
    for word in ("atom", f"the threshold of {float(mark):g}", "baseline", "Nothing was sent"):
        assert word in said, said
    step = int(re.match(r"step (\d+), ", said)[1])
    assert (step > 0) == (kind == "distance")
    made = run.properties()
    assert made["step"][-1] == max(step - 1, 0)
    # without an answer i-PI begins the line of step 0 all the same, and comes as far as the first energy
    assert made["potential"].size == step
    assert not (run.folder / "EXIT").exists()  # which would end the next i-PI
    frames = last_frames(run)
    assert np.isfinite(frames[0].get_forces()).all()
    assert strays() == []
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["exit_code"] == 11
    assert summary["why"].startswith(said[:80])
    report(run.folder)
    page = (run.folder / "report.html").read_text()
    assert "Stopped by a safety threshold, exit code 11" in page
    assert f"<p>step {step}, " in page
    fault(f"exit code 11: '{said[:260]}…'; {len(frames)} frames with forces on disk; i-PI has ended")


class Forwarder(threading.Thread):
    """A tunnel as ssh makes one: what comes to its own address goes to i-PI's, and back."""

    def __init__(self, ours: tuple[str, int], theirs: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self.theirs = theirs
        self.listening = socket.create_server(ours)

    def run(self) -> None:
        while True:
            one, other = self.listening.accept()[0], socket.create_connection(self.theirs)
            for source, sink in ((one, other), (other, one)):
                threading.Thread(target=self.copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def copy(source: socket.socket, sink: socket.socket) -> None:
        """Until either end hangs up."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["on this machine", "behind a tunnel"])
@pytest.mark.fault("a mark is passed over inet, i-PI {place}", "--mark-distance 0.95, serve over inet; real i-PI")
def test_mark_over_inet(ipi, models, start, fault: Say, tmp_path: Path, place: str) -> None:
    """An i-PI on this machine is stopped by its file EXIT as over a unix socket. For one that may run on another host,
    here behind a tunnel, none can be put: how it is stopped is said, and works."""
    elsewhere = place == "behind a tunnel"
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(mode="inet", batch=4, latency=1e-2)], steps=12).write()
    process = start.ipi(run)
    options = ["--baseline", models.baseline, "--engine", "torchscript", "--mark-distance", "0.95"]
    if elsewhere:
        port = int(re.search(r"<port>\s*(\d+)", (run.folder / "input.xml").read_text())[1])
        Forwarder(("127.0.0.2", port), ("127.0.0.1", port)).start()
        options += ["--host", "127.0.0.2"]
    server = start.beadwork("serve", run, *options)
    assert server.wait(LONG) == 11
    log = start.log(server)
    unknown = "i-PI's directory is not known from here: stop it with a file named EXIT where it runs"
    assert (unknown in log) == elsewhere
    assert (run.folder / "EXIT").exists() != elsewhere
    if elsewhere:
        assert process.poll() is None
        (run.folder / "EXIT").touch()
    assert process.wait(LONG) == 0
    end = "goes on waiting, and ends by the file EXIT that it is told of" if elsewhere else "is stopped by a file EXIT"
    fault(f"exit code 11: '{sentence(log)[:160]}…'; i-PI {end}")


@pytest.mark.slow
@pytest.mark.fault("the guard's marks are passed, and the user goes on", "--on-mark count, marks that all water passes")
def test_marks_are_counted(ipi, models, start, fault: Say, tmp_path: Path) -> None:
    """The run ends as it would have; summary.json has the counts, the log the first of each kind."""
    options = [word for kind, mark in MARKS for word in (f"--mark-{kind}", mark)]
    run, code, log = marked(ipi, models, start, tmp_path / "run", *options, "--on-mark", "count")
    assert code == 0, log
    counts = json.loads((run.folder / "summary.json").read_text())["marks_passed"]
    assert set(counts) == {"distance", "force", "spread"}
    assert counts["force"] >= 12 * 4
    assert log.count("more of these are only counted") == 3
    assert run.properties()["step"][-1] == 12
    fault(f"exit code 0, all steps done; summary.json counts {counts}; the log has the first of each")


@pytest.mark.slow
@pytest.mark.fault("the geometry explodes", "a time step of 40 fs in the XML, no marks; real i-PI")
def test_an_exploded_structure_stops_the_run_with_its_frames(
    ipi, models, start, strays, fault: Say, tmp_path: Path
) -> None:
    """Atoms on top of each other or at infinity have no answer: exit code 5 or 6, frames on disk, i-PI stopped."""
    motion = "<dynamics mode='nve'><timestep units='femtosecond'>40</timestep></dynamics>"
    options = ["--mark-distance", 0, "--mark-force", "inf", "--mark-spread", "inf"]
    run, code, log = marked(ipi, models, start, tmp_path / "run", *options, motion=motion, steps=2000)
    assert code in (5, 6), log
    assert run.properties()["step"][-1] < 2000
    assert np.isfinite(run.positions()).all()
    assert strays() == []
    fault(
        f"exit code {code}: '{sentence(log)}'; {len(last_frames(run))} frames on disk; i-PI saw no NaN, and has ended"
    )


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A TorchScript engine that fails as it is told to, from some structures at once on."""
    from beadwork.potential.torchscript import TorchScriptEngine

    evaluate, state = TorchScriptEngine.evaluate, SimpleNamespace(most=99, error=MemoryError("none left"), after=0)

    def failing(self: Any, graph: Any) -> Any:
        state.after -= 1
        if state.after < 0 and len(graph) > state.most:
            raise state.error
        return evaluate(self, graph)

    monkeypatch.setattr(TorchScriptEngine, "evaluate", failing)
    return state


@pytest.mark.slow
@pytest.mark.fault("out of memory with more than two structures", "an engine that raises MemoryError; real i-PI")
def test_out_of_memory_halves(ipi, models, start, serve, engine, capfd, fault: Say, tmp_path: Path) -> None:
    """i-PI does not notice: the same trajectory, and a sentence once."""
    ends = []
    for most in (99, 2):
        engine.most = most
        run = ipi.Input(tmp_path / str(most), [ipi.Forcefield(batch=4, latency=1e-2)], steps=10).write()
        process = start.ipi(run)
        assert serve(run, "--baseline", models.baseline, "--engine", "torchscript") == 0
        assert process.wait(LONG) == 0
        ends.append(run.positions())
    log = capfd.readouterr().err
    assert log.count("do not fit into memory") == 1
    off = np.abs(ends[1] - ends[0]).max()
    assert off < 1e-10
    fault(f"exit code 0, positions after 10 steps within {off:.0e} Bohr of those with memory enough; told once")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"),
    [(MemoryError("none left"), 12), (RuntimeError("CUDA error: an illegal memory access was encountered"), 4)],
    ids=["memory", "device"],
)
@pytest.mark.fault("an engine fails for a single structure", "it raises {error!r} from its tenth call on; real i-PI")
def test_a_failing_engine_is_named_and_stops_ipi(
    ipi, models, start, serve, engine, capfd, fault: Say, tmp_path: Path, error, code
) -> None:
    """The run ends with a name, i-PI is stopped, and the frames are on disk."""
    engine.most, engine.error, engine.after = 0, error, 10
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=4, latency=1e-2)], steps=200).write()
    process = start.ipi(run)
    assert serve(run, "--baseline", models.baseline, "--engine", "torchscript") == code
    process.wait(LONG)
    said = sentence(capfd.readouterr().err)
    assert str(error) in said
    assert run.properties()["step"][-1] < 200
    frames = last_frames(run)
    assert len(frames) >= 1
    ended = process.returncode
    fault(f"exit code {code}: '{said}'; {len(frames)} frames on disk; i-PI was stopped and ended with {ended}")
