"""Where a simulation of the loop has come to, and what the next one begins with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beadwork.errors import SimulationError
from beadwork.events import Activated, Refused
from beadwork.ipi.simulation import read_simulation
from beadwork.loop import simulate
from beadwork.loop.loop import _input_hash
from beadwork.observe.record import Record

WATER = Path(__file__).parents[2] / "inputs" / "water"
#: committees, as beadwork.out names them
OLD, NEW, OTHER = ("sha256:" + letter * 12 for letter in "abc")


def at(step: int, file: Path) -> bytes:
    """An input that says it is at this step, as i-PI's checkpoints do."""
    text = (WATER / "input.xml").read_text().replace("init.xyz", str(WATER / "init.xyz"))
    file.write_text(text.replace("<total_steps>", f"<step>{step}</step>\n  <total_steps>"))
    return file.read_bytes()


def test_a_torn_restart_is_passed_over(tmp_path: Path) -> None:
    """i-PI killed as it wrote RESTART: the checkpoint before it is gone on from, by this simulation and by the next
    generation; without one that can be read there is nothing to go on from."""
    folder = tmp_path / "gen-001" / "water"
    simulate.prepare(WATER / "input.xml", folder)
    assert simulate.come_to(folder) is None
    with pytest.raises(SimulationError, match="no RESTART or checkpoint that can be read, from which the next"):
        simulate.end_of(folder)
    at(100, folder / "simulation.checkpoint")
    whole = at(120, folder / "RESTART")
    assert simulate.come_to(folder) == folder / "RESTART"
    assert simulate.finished(folder)
    (folder / "RESTART").write_bytes(whole[: len(whole) // 2])
    os.utime(folder / "RESTART", (0, 0))
    assert simulate.come_to(folder) == folder / "simulation.checkpoint"
    assert not simulate.finished(folder)
    # with the names that i-PI gives them without a prefix, too
    part = folder / "part-0.xml"
    text = part.read_text()
    part.write_text(text.replace('prefix="simulation"', 'prefix=""'))
    assert simulate.come_to(folder) is None
    at(60, folder / "checkpoint")
    assert simulate.come_to(folder) == folder / "checkpoint"
    part.write_text(text)
    following = tmp_path / "gen-002" / "water"
    simulate.prepare(WATER / "input.xml", following, simulate.come_to(folder))
    begun = read_simulation(following / "part-0.xml", directory=following)
    assert (begun.step, begun.total_steps) == (100, 220)


def test_structures_come_from_beside_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation begins with the atoms beside its input, whatever the shell's folder holds under the same name;
    and what is found out about it later does not depend on that folder."""
    elsewhere = tmp_path / "zundel"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    Path("init.xyz").write_text("1\n# CELL(abcABC): 9 9 9 90 90 90\nH 0 0 0\n")
    folder = tmp_path / "gen-000" / "water"
    simulate.prepare(WATER / "input.xml", folder)
    assert (folder / "start" / "init.xyz").read_text() == (WATER / "init.xyz").read_text()
    Path("init.xyz").write_text("no structure")
    at(120, folder / "RESTART")
    assert simulate.come_to(folder) == folder / "RESTART"
    assert simulate.finished(folder)
    assert simulate.simulations(folder) == {f"sha256:{read_simulation(folder / 'part-0.xml', directory=folder).sha256}"}
    simulate.prepare(WATER / "input.xml", tmp_path / "gen-001" / "water", folder / "RESTART")


def test_an_input_that_says_no_steps(tmp_path: Path) -> None:
    """i-PI's default of 1000 steps holds for it; a live simulation does not end with them, and a generation that
    goes on has as many of its own."""
    shutil.copytree(WATER, tmp_path / "water")
    xml, lines = tmp_path / "water" / "input.xml", (WATER / "input.xml").read_text().splitlines(keepends=True)
    xml.write_text("".join(line for line in lines if "<total_steps>" not in line))
    simulate.prepare(xml, tmp_path / "live", steps=10**9)
    assert read_simulation(tmp_path / "live" / "part-0.xml").total_steps == 10**9
    restart = tmp_path / "water" / "RESTART"
    restart.write_text(xml.read_text().replace("<output", "<step>700</step>\n<output", 1))
    simulate.prepare(xml, tmp_path / "next", restart)
    assert read_simulation(tmp_path / "next" / "part-0.xml").total_steps == 1700


def test_what_forcefields_read_is_copied(tmp_path: Path) -> None:
    """An umbrella by PLUMED: its structure, its input, what that includes and what is named there lie in the folder,
    where i-PI and PLUMED look for them; PLUMED's outputs do not. They belong to the input, and one that is missing is
    named before anything is simulated."""
    files = {
        "plumed.dat": "RESTART\nINCLUDE FILE=colvars/d.dat\nRESTRAINT ARG=d AT=0.2 KAPPA=5\nPRINT ARG=d FILE=COLVAR\n",
        "colvars/d.dat": "d: RMSD REFERENCE=ref.pdb TYPE=SIMPLE",
        "ref.pdb": "END\n",
        "table.json": "{}",
        "water.xyz": (WATER / "init.xyz").read_text(),
    }
    (tmp_path / "colvars").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    text = (WATER / "input.xml").read_text().replace("init.xyz", "water.xyz")
    more = "<ffplumed name='p'><file mode='xyz'> water.xyz </file></ffplumed>"
    more += "<ffdirect name='d'><parameters>{instructions: table.json}</parameters></ffdirect>"
    xml = tmp_path / "input.xml"
    xml.write_text(text.replace("<ffsocket", f"{more}<ffsocket"))
    (tmp_path / "RESTART").touch()  # PLUMED's word, and not its file
    folder = tmp_path / "gen-000" / "water"
    simulate.prepare(xml, folder)
    made = {"input.xml", "part-0.xml", "start/water.xyz"}
    assert {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()} == made | set(files)
    before = _input_hash(xml)
    (tmp_path / "plumed.dat").write_text("# another")
    assert _input_hash(xml) != before
    (tmp_path / "plumed.dat").unlink()
    with pytest.raises(SimulationError, match=r"<ffplumed> of .*input.xml has the <plumed_dat> 'plumed.dat', which is"):
        _input_hash(xml)


def test_a_restart_as_the_input(tmp_path: Path) -> None:
    """One at step 90 of 120 has 30 steps left, in each generation that goes on from the last alike: the second did
    120."""
    at(90, tmp_path / "equilibrated.xml")
    simulate.prepare(tmp_path / "equilibrated.xml", tmp_path / "first")
    at(120, tmp_path / "first" / "RESTART")
    simulate.prepare(tmp_path / "equilibrated.xml", tmp_path / "second", tmp_path / "first" / "RESTART")
    for folder in ("first", "second"):
        assert read_simulation(tmp_path / folder / "part-0.xml").steps == 30


@pytest.mark.parametrize("name", ["RESTART", "simulation.checkpoint"])
def test_what_it_starts_from_is_not_where_it_has_come_to(tmp_path: Path, name: str) -> None:
    """An equilibration's RESTART at step 999, or its checkpoint under the name of this input's own, that a simulation
    of 120 steps starts from: none of these is done, where it counted as finished before its first; and what i-PI writes
    there under that name replaces nothing that an attempt begins from."""
    equilibrated = tmp_path / name
    equilibrated.write_text(
        "<simulation><step>999</step><total_steps>1000</total_steps><ffsocket name='f'/><system>"
        "<beads natoms='1' nbeads='1'><q shape='(1, 3)'>[1, 2, 3]</q><m shape='(1)'>[1837]</m>"
        "<names shape='(1)'>[H]</names></beads><cell shape='(3, 3)'>[20, 0, 0, 0, 20, 0, 0, 0, 20]</cell>"
        "<forces><force forcefield='f'/></forces><motion mode='dynamics'/></system></simulation>"
    )
    text = (WATER / "input.xml").read_text()
    (tmp_path / "input.xml").write_text(text.replace("<file mode='xyz'>init.xyz", f"<file mode='chk'> {name} "))
    folder = tmp_path / "gen-000" / "water"
    simulate.prepare(tmp_path / "input.xml", folder)
    assert simulate.come_to(folder) is None
    assert not simulate.finished(folder)
    at(60, folder / name)
    begun = read_simulation(folder / "part-0.xml", directory=folder)
    assert (begun.step, begun.systems[0].numbers.tolist()) == (0, [1])
    assert simulate.come_to(folder) == folder / name


@pytest.fixture
def run(tmp_path: Path) -> Iterator[simulate.Simulation]:
    """A run that outlasts the test and writes nothing; its beadwork.out is the test's."""
    (tmp_path / "out-0").mkdir()
    (tmp_path / "log-0.txt").touch()
    with subprocess.Popen(["sleep", "250"]) as process:
        yield simulate.Simulation(tmp_path, process, tmp_path / "log-0.txt", tmp_path / "out-0" / "beadwork.out")
        process.kill()


def answers(run: simulate.Simulation, *committees: str) -> None:
    """Two steps more with each of these."""
    with run.record.open("a") as record:
        for committee in committees:
            record.write(f"# from step 0 on unix:/tmp/ipi_a: {committee} in models/mine\n")
            record.write("       0    2 -1.0 1e-3 2e-3 0.1\n       1    2 -1.0 1e-3 2e-3 0.1\n")


@pytest.mark.parametrize(
    ("committees", "before"),
    [((OTHER,), None), ((OLD,), None), ((OLD, OTHER), OLD), ((OLD, NEW, OLD), OLD)],
    ids=["another", "begun with the old one", "another taken up", "the old one again"],
)
def test_answers_of_another_committee_end_the_wait(
    run: simulate.Simulation, committees: tuple[str, ...], before: str | None
) -> None:
    """A live simulation that another committee answers will never do its steps with this one: that is said at once,
    with both names, where the loop waited for ever."""
    answers(run, *committees)
    with pytest.raises(SimulationError, match=f"{committees[-1]} is active in .* instead of {NEW}"):
        run.until(NEW, 3, before)


def test_the_old_committee_answers_until_the_new_one_is_taken_up(run: simulate.Simulation) -> None:
    """A server loads and checks a new committee while the old one goes on: that moment of a live simulation is none to
    give up at, and the same for one that has not answered at all yet."""

    def server() -> None:
        for seconds, committee in ((0.2, OLD), (1.0, NEW)):
            time.sleep(seconds)
            answers(run, committee)

    thread = threading.Thread(target=server)
    begin = time.monotonic()
    thread.start()
    run.until(NEW, 2, OLD)
    assert time.monotonic() - begin >= 1.2
    thread.join()


def test_a_committee_that_is_refused_ends_the_wait(run: simulate.Simulation) -> None:
    """What the server records of a refusal is what the loop reads, in whatever words it is: the wait ends at once; it
    went on for ever for steps of a committee that will never answer."""
    record = Record(run.record.parent)
    record(Activated("unix:/tmp/ipi_a", 0, OLD, "models/mine", "as it began"))
    record(Refused("models/mine", "the reason; as it is"))
    with pytest.raises(SimulationError, match="the reason; as it is"):
        run.until(NEW, 3, OLD)
    record.close(record.summary())


def test_steps_are_read_with_whose_novelty_it_is(tmp_path: Path) -> None:
    """Of each step that this committee answered the largest spread and novelty of all its evaluations, those of Δ and
    of the baseline apart; nan is unknown, and so is what a beadwork.out of an earlier release has no column for."""
    for number, header in enumerate(
        (
            "spread_O/(eV/A) novelty_baseline novelty_delta novelty_O",
            "spread_O/(eV/A)",
            "novelty_delta novelty_baseline",
        )
    ):
        (tmp_path / f"out-{number}").mkdir()
        with (tmp_path / f"out-{number}" / "beadwork.out").open("w") as record:
            record.write(
                f"# step  structures  energy/eV  energy_spread/eV  force_spread/(eV/A)  evaluation/s  {header}\n"
            )
            for committee in (OLD, NEW):
                record.write(f"# from step 0 on unix:/tmp/ipi_a: {committee} in models/mine\n")
                for step, spread, last in ((0, 0.1, "nan 0.5"), (1, 0.2, "3.0 nan"), (1, 0.05, "2.0 1.5")):
                    element = "0.1 " * header.startswith("spread")
                    record.write(f"{step:8d}    2 -1.0 1e-3 {spread} 0.1 {element}{last}\n")
            record.write("       2    2 -1.0 1e-3 9.0 0.1 0.1 9.0 9")  # torn
    found = {(step.spread, step.baseline, step.delta) for step in simulate.answered(tmp_path, NEW)}
    assert found == {
        *((0.1, None, 0.5), (0.2, 3.0, 1.5)),
        *((0.1, None, None), (0.2, None, None)),
        *((0.1, 0.5, None), (0.2, 1.5, 3.0)),  # columns are told by their names
    }


def test_what_was_given_up_at_a_kill_does_not_count(tmp_path: Path) -> None:
    """Killed at step 80 of 100 with a checkpoint at 50: the steps from 50 on are those of the second attempt, 101 in
    all, where 132 were counted; so are those of a third that has only begun. Where steps are not known each evaluation
    counts."""

    def attempt(number: int, first: int, steps: list[object], **about: object) -> None:
        (tmp_path / f"out-{number}").mkdir()
        with (tmp_path / f"out-{number}" / "beadwork.out").open("w") as record:
            record.write("# step  structures  energy/eV  energy_spread/eV  force_spread/(eV/A)  evaluation/s\n")
            record.write(f"# run: {json.dumps({'first_step': first, **about})}\n")
            record.write(f"# from step 0 on unix:/tmp/ipi_a: {NEW} in models/mine\n")
            for step in steps:
                record.write(f"{step:>8}    2 -1.0 1e-3 {number + 1} 0.1\n")

    attempt(0, 0, list(range(81)))
    attempt(1, 50, list(range(51)))
    found = simulate.answered(tmp_path, NEW)
    assert [step.spread for step in found] == [1.0] * 50 + [2.0] * 51
    attempt(2, 90, [])
    assert len(simulate.answered(tmp_path, NEW)) == 90
    attempt(10, 90, ["nan", "nan", 0])
    assert len(simulate.answered(tmp_path, NEW)) == 93
    assert not simulate.answered(tmp_path, OLD)
