"""Settings of i-PI, addresses, time, memory and disk: each that is wrong, and a good one."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from beadwork.cli import main
from beadwork.doctor import machine
from beadwork.doctor.finding import AMBER, GREEN, RED, Finding
from beadwork.errors import ResourceError, SimulationError
from beadwork.ipi.simulation import read_simulation
from beadwork.potential.analytic import Harmonic
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph
from beadwork.potential.potential import Potential
from support.doctor import MODELS, ROOT, only
from support.doctor import input_writer as input_writer


def settings(path: Path, seconds: float = 0.1) -> list[Finding]:
    """What is said of i-PI's settings."""
    return list(machine.settings(read_simulation(path), {"beadwork": seconds}))


GOOD = "<batch_size>2</batch_size><latency>1e-3</latency>"


@pytest.mark.parametrize(
    ("socket", "mode", "seconds", "colour", "said", "remedy"),
    [
        (GOOD, "", 0.1, GREEN, "none can hang", ""),
        ("<latency>1e-3</latency>", "", 0.1, AMBER, "without batching", "<batch_size> 2"),
        ("<batch_size>3</batch_size><latency>1e-3</latency>", "", 0.1, AMBER, "does not equal", "<batch_size> 2"),
        (GOOD + "<timeout>10</timeout>", "", 0.1, AMBER, "timeout 10 s", "<timeout> 0"),
        (GOOD + "<timeout>10</timeout>", "", 6.0, RED, "the same beads for ever", "<timeout> 0"),
        ("<batch_size>2</batch_size><latency>0.05</latency>", "", 0.1, AMBER, "waits 0.05 s", "<latency> 1e-3"),
        ("<batch_size>2</batch_size>", "", 0.1, AMBER, "before all beads are queued", "<latency> 1e-3"),
        (GOOD, "matching='lock'", 0.1, AMBER, "ties beads to clients", "leave it out"),
        (GOOD, "pbc='True'", 0.1, AMBER, "folds atoms", "leave it out"),
    ],
)
def test_settings_that_hang_or_slow_ipi_are_named_with_the_line(
    write: Callable[..., Path], socket: str, mode: str, seconds: float, colour: str, said: str, remedy: str
) -> None:
    """Each setting that costs speed or hangs is named with the line to change; a good input has nothing to change."""
    found = settings(write(socket=socket, mode=f"mode='unix' {mode}"), seconds)
    hit = [finding for finding in found if said in finding.text]
    assert [finding.colour for finding in hit] == [colour]
    assert remedy in hit[0].remedy
    assert all((finding.colour == GREEN) == (colour == GREEN) for finding in found)


def test_slots_are_named(write: Callable[..., Path]) -> None:
    """A queue of one for two clients."""
    found = settings(write(socket="<slots>1</slots>"))
    assert any("<slots> 2" in finding.remedy for finding in found)


def test_a_run_that_is_over_is_red(write: Callable[..., Path]) -> None:
    """i-PI would end at once, with success."""
    finding = only(settings(write(steps=50, step="<step>50</step>")))
    assert (finding.colour, finding.remedy, finding.code) == (RED, "raise total_steps", SimulationError.exit_code)


def test_a_leftover_exit_file(write: Callable[..., Path], tmp_path: Path) -> None:
    """i-PI would stop before its first step."""
    path = write()
    (tmp_path / "EXIT").touch()
    found = settings(path)
    assert [finding.colour for finding in found] == [AMBER]
    assert found[0].remedy == f"rm {tmp_path / 'EXIT'}"


def test_each_state_of_a_unix_address_is_told_apart(write: Callable[..., Path], tmp_path: Path) -> None:
    """Free, held by somebody who is not disturbed, left by a killed i-PI, too long, and in no folder."""
    here = read_simulation(write()).sockets[0]
    assert only(machine.address(here)).colour == GREEN
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(here.path))
        listener.listen(1)
        assert "a process listens" in only(machine.address(here)).text
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody dialled
    left = only(machine.address(here))
    assert (left.colour, "was killed left it" in left.text) == (AMBER, True)
    assert left.remedy.startswith(f"rm {here.path}")
    assert stat.S_ISSOCK(os.stat(str(here.path)).st_mode)
    long = only(machine.address(read_simulation(write(address="x" * 120)).sockets[0]))
    assert (long.colour, long.code) == (RED, SimulationError.exit_code)
    with pytest.raises(OSError, match="too long"), socket.socket(socket.AF_UNIX) as probe:
        probe.bind(str(tmp_path / ("x" * 120)))  # the system says so too
    assert only(machine.address(replace(here, prefix=f"{tmp_path}/none/s-"))).colour == RED


def test_a_port_that_listens_is_seen_and_left_alone(write: Callable[..., Path]) -> None:
    """A port that somebody listens on, before and after."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        inet = read_simulation(write(mode="mode='inet'", address="localhost", socket=f"<port>{port}</port>")).sockets[0]
        assert only(machine.address(inet)).colour == AMBER
    assert only(machine.address(inet)).colour == GREEN


def test_time_is_the_potentials(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A potential of known slowness: seconds, ns/day and days follow, and a month deserves a thought."""
    import time

    class Slow(Harmonic):
        def evaluate(self, graph: Graph) -> Energies:
            assert len(graph) == 2
            assert not np.array_equal(*graph.positions.reshape(2, -1))  # beads apart, as in a run
            time.sleep(0.05)
            return super().evaluate(graph)

    simulation = read_simulation(write(steps=1000))
    frames = [simulation.systems[0].frame(k) for k in range(2)]
    begin = time.perf_counter()
    wall, computing = machine.timed(Potential(Slow(1.0)), frames)
    # however slow the machine is: one evaluation, and no sum of several
    assert 0.05 <= wall <= (time.perf_counter() - begin) / 2
    assert computing < 0.5 * wall  # asleep
    found = list(machine.duration(simulation, simulation.sockets, [(0.05, 0.01)]))
    # 0.5 fs in 0.05 s is 0.864 ns/day; 1000 steps take 50 s
    assert "0.05 s per step for the models: at most 0.864 ns/day, at least 50 s for 1000 steps" in found[0].text
    assert [finding.colour for finding in found] == [GREEN, AMBER]
    assert "other programs use these cores" in found[1].text
    assert len(list(machine.duration(simulation, simulation.sockets, [(0.05, 0.05)]))) == 1
    long = replace(simulation, total_steps=10**8)
    assert only(machine.duration(long, long.sockets, [(0.05, 0.05)])).colour == AMBER


def test_multiple_time_steps_are_counted() -> None:
    """The inner forcefield is asked four times a step of 2 fs, the outer one once."""
    simulation = read_simulation(ROOT / "inputs" / "water-mts" / "input.xml")
    found = only(machine.duration(simulation, simulation.sockets, [(0.1, 0.1), (0.02, 0.02)], device="cuda"))
    assert found.text.startswith("0.42 s per step")


def test_memory_is_the_peak_against_what_the_machine_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of this process, as the kernel has it, against what is left of the machine."""
    peak = next(
        1024 * int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    room = machine._room()
    assert room is not None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    assert 0.5 * peak < room <= 1.05 * total
    for share, colour in ((10.0, GREEN), (1.5, AMBER), (1.05, RED)):
        monkeypatch.setattr(machine, "_room", lambda share=share: share * peak)
        finding = only(machine.memory())
        assert (finding.colour, bool(finding.remedy)) == (colour, colour != GREEN)
        assert finding.text.startswith(f"{peak / 1e9:.2f} GB")
    assert finding.code == ResourceError.exit_code


def test_a_disk_too_small_for_the_outputs_is_red(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What will be written follows from strides, beads and atoms; a disk too small for it is red."""
    traffic = "<trajectory stride='10' filename='pos'> positions{angstrom} </trajectory>"
    simulation = read_simulation(write(output=traffic, steps=100_000))
    # 2 beads of 96 atoms, a line of 48 bytes each, every 10th step; and a line of ours every step
    expected = 100_000 * (2 * (96 * 48 + 100) / 10 + 100)
    for free, colour in ((1e12, GREEN), (1.5 * expected, AMBER), (0.9 * expected, RED)):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        finding = only(machine.disk(simulation, tmp_path / "not" / "there", 0))
        assert finding.colour == colour
        assert "about 104 MB" in finding.text
    assert finding.code == ResourceError.exit_code


@pytest.mark.slow
def test_disk_against_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """i-PI's own outputs of the shipped input are as large as was foretold."""
    shutil.copytree(ROOT / "inputs" / "water", tmp_path / "water")
    path = tmp_path / "water" / "input.xml"
    text = path.read_text().replace("'16'", "'2'").replace(">16<", ">2<").replace(">120<", ">200<")
    path.write_text(text.replace("beadwork-water<", f"doctor-{os.getpid()}<"))
    monkeypatch.chdir(path.parent)
    deltas = [str(MODELS / f"delta-{k}") for k in range(2)]
    assert main(["run", "input.xml", "--baseline", str(MODELS / "baseline"), "--delta", *deltas]) == 0
    simulation = read_simulation(path)
    files = [file for file in path.parent.glob("simulation.*") if file.suffix != ".checkpoint"]
    written = sum(file.stat().st_size for file in files) / simulation.total_steps
    assert written == pytest.approx(simulation.bytes_per_step, rel=0.2)  # a frame of step 0, and a header


@pytest.mark.slow
def test_the_shipped_run_is_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """inputs/water with its TOML file, all five models and 16 beads, as `beadwork demo` has them."""
    assert main(["init", str(tmp_path / "demo")]) == 0
    monkeypatch.chdir(tmp_path / "demo")
    assert main(["doctor", "run.toml"]) == 0
    said = capsys.readouterr().out
    assert "0 red: it can be started" in said
    assert "native agrees with torchscript for 5 models" in said
