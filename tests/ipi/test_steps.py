"""Which step an answer belongs to, by the structure of the input and by what i-PI writes; real i-PI is in
end_to_end/test_steps.py."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beadwork.events import Moment
from beadwork.ipi.output_steps import Written
from beadwork.ipi.simulation import EVALUATING_OUTPUTS, Output, read_simulation
from beadwork.ipi.steps import Pattern, Steps, one_result, pattern

RING = np.random.default_rng(0).normal(size=(8, 3, 3))


def count(one: Steps, positions: np.ndarray, peers: Sequence[Any] = (), **known: Any) -> tuple[int | None, bool | None]:
    """Let it count these structures: their step, and whether it begins."""
    moment, begins = one.count([where.tobytes() for where in positions], positions, peers, **known)
    return moment.step, begins


def steps(ring: int, start: np.ndarray | None = None, **more: Any) -> Steps:
    """One ring a step."""
    return Steps(Pattern(ring, ring), start, **more)


def test_a_collapsed_ring() -> None:
    """All beads start in one place, which is one structure however often it comes; then a step is a whole ring."""
    ring = RING[:4]
    one = steps(4, ring[:1])
    assert [count(one, ring[:1])[0], count(one, ring[:1] + 1e-12)[0]] == [0, 0]  # a contraction rounds
    assert count(one, ring[:3] + 1) == (1, True)
    assert count(one, ring[3:] + 1) == (1, False)
    assert count(one, ring[3:] + 1) == (1, False)
    assert count(one, ring + 2) == (2, True)
    assert not one.joined


def test_a_ring_that_starts_spread_out() -> None:
    """It is step 0, in two batches or bead by bead. An atom on the cell's border may come through the other one."""
    ring = RING[:4]
    for pieces in ([ring[:2], ring[2:]], [ring[:1], ring[1:]]):
        one = steps(4, ring)
        assert [count(one, piece) for piece in pieces] == [(0, True), (0, False)]
        assert count(one, ring + 1) == (1, True)
        assert not one.joined
    cell = np.array([[6.0, 0, 0], [1, 7, 0], [0, 0.5, 8]])
    folded = steps(4, ring, folded=cell)
    count(folded, ring + cell[0] - cell[2])
    assert not folded.joined
    ours = steps(4, ring[:1])
    assert count(ours, ring + 1, ours=True) == (0, True), "an i-PI that we have started begins where it likes"
    assert not ours.joined


def test_the_rest_of_a_start_is_still_the_start() -> None:
    """A server that was killed in step 0 left some beads to its successor: step 1 begins when they have moved."""
    one = steps(4, RING[:4])
    assert count(one, RING[3:4]) == (0, True)
    assert count(one, RING[:4] + 1) == (1, True)
    assert count(one, RING[:4] + 2) == (2, True)


def test_an_ipi_under_way_has_no_boundary_until_a_whole_ring_has_come() -> None:
    """The server's predecessor had answered some beads, so a count of structures ends within a step: nothing is taken
    up there. A ring that comes at once is a step, whatever came before."""
    ring = RING[:4]
    one = steps(4, ring[:1])
    assert count(one, ring[:1] + 1) == (0, True)  # nothing can be ready yet
    assert one.joined
    assert [count(one, piece)[1] for piece in (ring[1:] + 1, ring[:2] + 2, ring[2:] + 2)] == [None, None, None]
    assert count(one, ring + 3)[1] is True
    assert [count(one, piece)[1] for piece in (ring[:2] + 4, ring[2:] + 4, ring + 5)] == [True, False, True]


def test_what_is_sent_again_belongs_to_its_step() -> None:
    """A connection that is lost has its structures sent anew: they are of the same step, and the next one is whole."""
    ring = RING[:4]
    one = steps(4, ring)
    pieces = [ring[:2], ring[:2], ring[2:], ring[2:], ring[:2] + 1, ring[:2] + 1, ring[2:] + 1, ring + 2]
    assert [count(one, piece)[0] for piece in pieces] == [0, 0, 0, 0, 1, 1, 1, 2]


def test_after_all_connections_were_lost() -> None:
    """The same i-PI goes on with its step; where another machine's may be another one, no boundary is sure; another
    process begins a step with what it sends first, however much of the last one was answered."""
    ring = RING[:4]
    names = [where.tobytes() for where in ring[:2] + 1]
    one = steps(4, ring)
    count(one, ring), count(one, ring[:2] + 1)
    one.returned(names)
    assert [count(one, ring + 1), count(one, ring + 2)] == [(1, False), (2, True)]
    one.returned(names)
    assert count(one, ring[:3] + 3)[1] is None
    assert count(one, ring + 4)[1] is True
    other = steps(4, ring)
    count(other, ring), count(other, ring[:2] + 1)
    other.restarted()
    assert [count(other, ring[:3] + 5)[1], count(other, ring[3:] + 5)[1], count(other, ring + 6)[1]] == [
        True,
        False,
        True,
    ]
    unknown = Steps(None, ring)
    assert [count(unknown, ring)[1], count(unknown, ring + 1)[1]] == [True, None]
    unknown.restarted()
    assert [count(unknown, ring)[1], count(unknown, ring + 1)[1]] == [True, None]


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("known", [True, False])
def test_no_step_is_claimed_of_an_ipi_that_may_be_another_one(known: bool, servers: int) -> None:
    """It may have come from an earlier RESTART, so the count of the one before says nothing; what was sent again is of
    the same. One that was joined under way is counted from our first on, before and after."""
    ring = RING[:4]
    names = [where.tobytes() for where in ring + 5]

    def counted(start: np.ndarray) -> tuple[Steps, list[int | None]]:
        one = steps(4, start, servers=servers)
        found = [count(one, ring + k, "a")[0] for k in range(6)]
        one.returned(names)
        found.append(count(one, ring + 5, "b")[0])
        one.restarted() if known else one.returned([where.tobytes() for where in ring + 2])
        return one, [*found, count(one, ring + 2, "c")[0], count(one, ring + 3, "c")[0]]

    one, found = counted(ring)
    assert found == [0, 1, 2, 3, 4, 5, 5, None, None]
    assert not one.joined
    late, found = counted(ring - 1)
    assert None not in found
    assert late.joined


def test_one_of_several_says_that_it_joined() -> None:
    """Its first structures are far from the file's start: i-PI was under way, and steps are counted from there. An
    i-PI of our own begins where it likes."""
    late = steps(8, RING, servers=2)
    assert [count(late, RING[:4] + k, "a") for k in (7, 8)] == [(0, None), (1, None)]
    assert late.joined
    ours = steps(8, RING, servers=2)
    assert [count(ours, RING[:4] + k, "a", ours=True) for k in (7, 8)] == [(0, None), (1, None)]
    assert not ours.joined


def test_without_a_pattern_there_is_no_step() -> None:
    """Where steps differ nothing is said of them, and nothing can be taken up, unless i-PI's outputs tell."""
    one = Steps(None)
    assert [count(one, RING[:4] + k) for k in range(3)] == [(None, True), (None, None), (None, None)]


def test_several_time_steps_and_a_forcefield_used_twice() -> None:
    """A step of three inner ones is three rings; a contracted component comes with its own structures."""
    one = Steps(Pattern(4, 12), RING[:1])
    assert count(one, RING[:1]) == (0, True)
    assert [count(one, RING[:4] + k) for k in range(1, 8)] == [
        (1, True),
        (1, False),
        (1, False),
        (2, True),
        (2, False),
        (2, False),
        (3, True),
    ]
    two = Steps(Pattern(6, 6))
    assert [count(two, RING[:4], ours=True), count(two, RING[4:6])] == [(0, True), (0, False)]
    assert [count(two, RING[:6] + 1), count(two, RING[:6] + 2)] == [(1, True), (2, True)]


def test_one_of_several_counts_a_step_when_a_connection_asks_again() -> None:
    """However unevenly i-PI shares the beads, and in however many pieces, a connection gets a bead once a step. What
    another server has answered it cannot know, so it never says that a step begins."""
    ring = RING
    one = steps(8, ring[:1], servers=3)
    peers: list[Any] = [object() for _ in range(3)]
    found = [
        count(one, ring[:1], peers),  # all beads in one place
        count(one, ring[:1], peers[:1]),
        count(one, ring[:3] + 1, peers),
        count(one, ring[:2] + 2, peers[:2]),  # i-PI's polling thread woke early
        count(one, ring[2:3] + 2, peers[2:]),
        count(one, ring[:2] + 3, peers[:2]),  # and now this one gets less
        count(one, ring[:2] + 4, peers[:2]),
    ]
    assert found == [(step, None) for step in [0, 0, 1, 2, 2, 3, 4]]


def line(step: int) -> str:
    """One line of a property file."""
    return f"  {float(step):.8e}   1.0e+00   -3.1e+01 \n"


def outputs(*every: int, asks: Sequence[bool] = ()) -> list[Output]:
    """Property files out0, out1, ... with a line every so many steps."""
    asks = [*asks, *[False] * len(every)]
    columns = ("step", "potential", "conserved")
    return [
        Output(f"out{k}", "properties", stride, columns, stride, number=k, asks=asks[k])
        for k, stride in enumerate(every)
    ]


def test_what_ipi_writes_is_its_step(tmp_path: Path) -> None:
    """After line k it works on step k + 1; with a header and no line, on step 0; a line that is torn is none."""
    written = Written(outputs(1))
    file = tmp_path / "out0"
    file.write_text("# column   1     --> step\n")
    written.attach(1, tmp_path)
    assert written.look() == Moment(0)
    for step in range(3):
        with open(file, "a") as out:
            out.write(line(step))
        assert written.look() == Moment(step + 1)
    with open(file, "a") as out:
        out.write(line(3)[:20])
    assert written.look() == Moment(3)


@pytest.mark.parametrize("damaged", ["\x14", '""', "nan", "inf", "9" * 5001])
def test_a_damaged_step_is_no_step(damaged: str, tmp_path: Path) -> None:
    """A disk that returned other bytes: the line before it counts, whatever stands where the number was."""
    written = Written(outputs(1))
    file = tmp_path / "out0"
    file.write_text("# column   1     --> step\n")
    written.attach(1, tmp_path)
    whole = line(4)
    file.write_text("# column   1     --> step\n" + whole + whole.replace(whole.split()[0], damaged, 1))
    assert written.look() == Moment(5)


def test_lines_that_were_there_before_ipi_came_say_nothing(tmp_path: Path) -> None:
    """An i-PI that was killed had come to 57, and the RESTART is of 50: the first line of the new one tells. Counted
    from where the file begins. Again for the next process, and not for the same one. An estimator that was not due
    since is not waited for."""
    written = Written(outputs(1), first=50)
    file = tmp_path / "out0"
    file.write_text("# column   1     --> step\n" + line(56) + line(57))
    written.attach(1, tmp_path)
    assert written.look().step is None
    with open(file, "a") as out:
        out.write(line(51))
    assert written.look() == Moment(2)
    written.attach(1, tmp_path)
    assert written.look() == Moment(2)
    written.attach(2, tmp_path)
    assert written.look().step is None
    (tmp_path / "out1").write_text("# column   1     --> step\n" + line(40) + line(60))
    two = Written(outputs(1, 20, asks=[False, True]))
    two.attach(3, tmp_path)
    for step, name, found in ((51, "out0", 52), (59, "out0", 60), (60, "out0", 60), (60, "out1", 61)):
        with open(tmp_path / name, "a") as out:
            out.write(line(step))
        assert two.look() == Moment(found)


def test_a_stride_is_a_blur_and_an_estimator_is_waited_for(tmp_path: Path) -> None:
    """Of lines every ten steps it is known within ten. A step whose estimator is not written yet is not over, though
    another file has its line: i-PI writes them at once, from threads."""
    written = Written(outputs(10, 20, asks=[False, True]))
    for name in ("out0", "out1"):
        (tmp_path / name).write_text("# column   1     --> step\n")
    written.attach(1, tmp_path)

    def write(name: str, step: int) -> Moment:
        with open(tmp_path / name, "a") as out:
            out.write(line(step))
        return written.look()

    assert written.look() == Moment(0)
    assert write("out0", 0).step != 1, "the estimator of step 0 asks"
    assert write("out1", 0) == Moment(1, 9)
    assert write("out0", 10) == Moment(11, 9)
    assert write("out0", 20) == Moment(11, 9)
    assert write("out1", 20) == Moment(21, 9)


def test_an_estimator_that_cannot_be_read_hides_the_step() -> None:
    """Without a column of steps nobody knows when it has been written; nor without any output, or one never flushed."""
    (told,) = outputs(5)
    silent = Output("b", "properties", 1, ("potential",), number=1)
    assert not Written([told, replace(silent, asks=True)]).tells
    assert not Written([]).tells
    assert not Written([silent]).tells
    (buffered,) = outputs(10, asks=[True])
    assert not Written([told, replace(buffered, stride=1, number=1)]).tells
    assert Written([silent, told]).tells


@pytest.mark.parametrize("kind", ["trajectory", "checkpoint"])
def test_frames_and_checkpoints_say_it_too(tmp_path: Path, kind: str) -> None:
    """Where no property file has a column of steps; of a file a bead the last one counts."""
    name = "run.pos" if kind == "trajectory" else "run.chk"
    endings = ("_0.xyz", "_1.xyz") if kind == "trajectory" else ("",)
    output = Output(name, "trajectory" if kind == "trajectory" else "checkpoint", 2, every=2, endings=endings)
    frame = "3\n# CELL(abcABC): 1 1 1 90 90 90  Step:  {}  Bead:  1 positions{{angstrom}}\n" + "H 0 0 0\n" * 3000
    for name in ("run.pos_0.xyz", "run.pos_1.xyz", "run.chk"):
        (tmp_path / name).write_text("")
    written = Written([output])
    written.attach(1, tmp_path)
    for step in (6, 8):
        if kind == "trajectory":
            with open(tmp_path / "run.pos_0.xyz", "a") as out:
                out.write(frame.format(step + 2))
            with open(tmp_path / "run.pos_1.xyz", "a") as out:
                out.write(frame.format(step))
        else:
            (tmp_path / "run.chk").write_text(f"<simulation><output/><step>{step}</step>" + " " * step)
        assert written.look() == Moment(step + 1, 1)


def test_another_outputs_file_is_not_followed(tmp_path: Path) -> None:
    """With `pos` and `pos_centroid` the first is sim.pos_1.xyz, whatever else begins so; and where its file is missing,
    as the folder is another machine's or container's, nothing is told."""
    for name in ("sim.pos_0.xyz", "sim.pos_1.xyz", "sim.pos_centroid.xyz", "sim.pos_9.xyz"):
        (tmp_path / name).write_text("")
    every = Output("sim.pos", "trajectory", 1, every=1, endings=("_0.xyz", "_1.xyz"))
    seldom = Output("sim.pos_centroid", "trajectory", 100, every=100, number=1, endings=(".xyz",))
    written = Written([every, seldom])
    written.attach(1, tmp_path)
    assert written.look() == Moment(0)
    frame = "3\n# CELL(abcABC): 1 1 1 90 90 90  Step:  {}  Bead:  1 positions{{angstrom}}\n"
    for name, step in (("sim.pos_9.xyz", 700), ("sim.pos_centroid.xyz", 800), ("sim.pos_1.xyz", 6)):
        (tmp_path / name).write_text(frame.format(step))
        assert written.look() == Moment(7 if name == "sim.pos_1.xyz" else 0)
    elsewhere = Written([every])
    elsewhere.attach(2, tmp_path / "elsewhere")
    assert elsewhere.look() == Moment(None)


def test_outputs_and_count_together(tmp_path: Path) -> None:
    """Where the input does not tell, a step begins when i-PI has written the one before; where it was lost, likewise;
    one of several servers knows the step, and still not what the others answer with."""
    written = Written(outputs(1))
    file = tmp_path / "out0"
    file.write_text("# column   1     --> step\n")
    written.attach(1, tmp_path)
    one, unlike = Steps(None, RING[:2]), Steps(None, RING[:1])
    several = steps(4, RING[:4], servers=2)
    assert count(unlike, RING[2:4], written=written)[0] is None, "nothing is written, and this is not the file's start"
    found = []
    for step in range(3):
        found += [count(one, RING[:2] + step + k, written=written) for k in range(2)]
        assert count(several, RING[:2] + step, [step], written=written) == (step, None)
        with open(file, "a") as out:
            out.write(line(step))
    assert found == [(0, True), (0, False), (1, True), (1, False), (2, True), (2, False)]
    joined = steps(4, RING[:4])
    count(joined, RING[:2] + 9, written=written)
    assert joined.joined
    with open(file, "a") as out:
        out.write(line(7))
    assert [count(joined, RING[:2] + 10, written=written), count(joined, RING[2:4] + 10, written=written)] == [
        (8, True),
        (8, False),
    ]


WATER = Path(__file__).parents[2] / "inputs"


def test_patterns_of_the_inputs_that_ship() -> None:
    """One ring of 16 or 32 a step, and with multiple time steps four inner ones for each outer one."""
    for name in ("water", "water-npt", "zundel-water"):
        simulation = read_simulation(next((WATER / name).glob("*.xml")))
        assert pattern(simulation, simulation.socket()) == Pattern(simulation.nbeads, simulation.nbeads), name
    simulation = read_simulation(next((WATER / "water-mts").glob("*.xml")))
    found = {socket.name: pattern(simulation, socket) for socket in simulation.sockets}
    nmts = int(np.prod(simulation.systems[0].nmts))
    asked = {socket.name: simulation.structures(socket) for socket in simulation.sockets}
    assert nmts > 1
    for socket in simulation.sockets:
        calls = simulation.calls(socket)
        assert found[socket.name] == Pattern(asked[socket.name], calls * asked[socket.name])
    assert sorted(simulation.calls(socket) for socket in simulation.sockets) == [1, nmts]


def test_steps_of_one_result_are_of_one_committee() -> None:
    """A Hessian takes many steps, each told by what i-PI writes: nothing begins but with the file's start, as a RESTART
    holds the half of it."""
    simulation = read_simulation(next((WATER / "water").glob("*.xml")))
    assert not one_result(simulation)
    for name in ("vibrations", "scp", "normalmodes"):
        assert one_result(replace(simulation, systems=(replace(simulation.systems[0], motions=(name,)),)))
    ring = RING[:4]
    one = steps(4, ring, one_result=True)
    assert [count(one, ring + k) for k in (0, 1, 2)] == [(0, True), (1, None), (2, None)]
    one.restarted()
    assert count(one, ring + 3)[1] is None
    one.restarted()
    assert count(one, ring)[1] is True


@pytest.mark.parametrize("motions", [("sc",), ("scnpt",), ("nvt", "other"), ("other",), ("t_ramp",), ()])
def test_what_has_no_pattern(motions: tuple[str, ...]) -> None:
    """Suzuki-Chin forces are finite differences; searches and trial moves ask as often as they need; a ramp alone asks
    for nothing. Beside dynamics a ramp or an exchange of isotopes changes nothing."""
    simulation = read_simulation(next((WATER / "water").glob("*.xml")))
    (system,) = simulation.systems
    assert pattern(replace(simulation, systems=(replace(system, motions=motions),)), simulation.socket()) is None
    beside = replace(system, motions=("nvt", "t_ramp", "alchemy"))
    ring = Pattern(system.nbeads, system.nbeads)
    assert pattern(replace(simulation, systems=(beside,)), simulation.socket()) == ring
    estimator = replace(simulation, outputs=(Output("x", "properties", 100, asks=True),))
    assert pattern(estimator, simulation.socket()) is None


def test_the_outputs_that_ask_are_those_of_ipi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every property and trajectory that i-PI has is asked for once, with its forces known: those that send structures
    all the same are those that are listed."""
    from ipi.engine.forcefields import FFDirect
    from ipi.engine.simulation import Simulation

    monkeypatch.chdir(tmp_path)
    Path("init.xyz").write_text(
        "3\n# CELL(abcABC): 20 20 20 90 90 90 cell{angstrom} positions{angstrom}\nO 0 0 0\nH 0.96 0 0.1\nH -0.2 0.9 0\n"
    )
    Path("input.xml").write_text(
        "<simulation verbosity='quiet' threading='False'><output prefix='run'/><total_steps>5</total_steps>"
        "<prng><seed>4</seed></prng><ffdirect name='ff'><pes>harmonic</pes><parameters>{k1:0.1}</parameters></ffdirect>"
        "<system><initialize nbeads='4'><file mode='xyz'>init.xyz</file></initialize>"
        "<forces><force forcefield='ff'/></forces><ensemble><temperature units='kelvin'>300</temperature></ensemble>"
        "<motion mode='dynamics'><dynamics mode='nve'><timestep>1</timestep></dynamics></motion></system></simulation>"
    )
    asked = 0
    queue = FFDirect.queue

    def counted(self: Any, *given: Any, **named: Any) -> Any:
        nonlocal asked
        asked += 1
        return queue(self, *given, **named)

    monkeypatch.setattr(FFDirect, "queue", counted)
    monkeypatch.setattr("ipi.engine.simulation.softexit.start", lambda *given: None)
    monkeypatch.setattr("ipi.utils.softexit.Softexit.trigger", lambda *given, **named: 1 / 0)  # it would end us
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # i-PI's own
        with open("input.xml") as file:
            system = Simulation.load_from_xml(file, request_banner=False).syslist[0]
        indexed = ["pot_component", "pot_component_raw", "vir_component", "vir_component_raw", "forces_component"]
        indexed += ["forces_component_raw", "extras_component_raw", "hweights_component", "bweights_component"]
        indexed += ["atom_x", "atom_v", "atom_p", "atom_f", "atom_x_path", "atom_f_path"]
        given = {"displacedpath": "(1;1;1)", **dict.fromkeys(indexed, "(0)")}
        given |= {f"isotope_{name}": "(alpha=2)" for name in ("scfep", "tdfep", "zetasc", "zetatd", "zetasc_4th")}
        asking, failed = set(), set()
        chance = np.random.default_rng(1)
        for words, get in (
            (system.properties.property_dict, system.properties),
            (system.trajs.traj_dict, system.trajs),
        ):
            for word in words:
                system.beads.q[:] = system.beads.q + chance.normal(scale=0.01, size=system.beads.q.shape)
                assert np.isfinite(system.forces.pot + system.forces.vir.sum() + system.forces.f.sum())
                asked = 0
                try:
                    get[word + given.get(word, "")]
                except Exception:  # noqa: BLE001 - those of other motions, which are counted
                    failed.add(word)
                if asked:
                    asking.add(word)
    bosons, driven = {"exchange_distinct_prob", "exchange_all_prob", "fermionic_sign"}, {"dipole", "Efield"}
    assert failed == {*bosons, *driven, "interaction_energy", "bweights_component"}  # which have no forces of their own
    assert asking == EVALUATING_OUTPUTS
