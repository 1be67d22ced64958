"""From waiting frames to labels: claims, clusters, faults, kills, methods."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ase.io
import numpy as np
import pytest

from beadwork.cli import main
from beadwork.disk import write_whole
from beadwork.errors import ConfigError, LabelError, QueueError, ResourceError
from beadwork.frame import Frame, state_of
from beadwork.harvest.listing import export
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame, Row, label_digest
from beadwork.label import command, selection, worker
from beadwork.label import run as labelling
from beadwork.label.choose import from_queue
from beadwork.label.clusters import Cut, units
from beadwork.label.label import Label
from beadwork.label.spec import Spec
from beadwork.train.label_file import read_examples
from support.queues import kept, water

Fill = Callable[[int], Queue]
Springs = Callable[..., Spec]
INPUTS = Path(__file__).parents[2] / "inputs"
BASELINE = Path(__file__).parents[2] / "models" / "water-highlevel" / "baseline"


def energy(queue: Queue, id: int) -> float:
    """What the springs have in one row."""
    return 0.5 * float((queue.get(id).kept.frame.positions ** 2).sum())


def test_every_frame_gets_its_own_label(fill: Fill, springs: Springs, diary: Any) -> None:
    """Energy and forces of the row's own structure, exact, with all that a label has to say; nothing is left over."""
    queue = fill(5)
    report = labelling.label(queue, springs())
    assert str(report) == "5 labelled"
    assert len(diary.calls) == 5
    for row in queue.rows():
        assert row.status == "labelled"
        label = Label.from_dict(row.label or {})
        assert label.energy == energy(queue, row.id)
        np.testing.assert_array_equal(label.forces, -row.kept.frame.positions)
        assert (label.method, label.code, label.charge, label.spin) == ("springs", "toy_calculator:Springs", 0, 0)
        assert (label.energy_error, label.forces_error) == (0.0, None)
        assert label.version == "toy_calculator of unknown version"
        assert '"positions"' in label.input
    assert not worker.folder_of(queue).exists()
    assert str(labelling.label(queue, springs())) == "0 labelled"
    assert len(diary.calls) == 5


def test_most_and_some(fill: Fill, springs: Springs) -> None:
    """The oldest first, so many and no more; or those that were chosen, in their order."""
    queue = fill(6)
    labelling.label(queue, springs(), most=2)
    assert [row.id for row in queue.rows(status="labelled")] == [1, 2]
    told: list[int] = []
    labelling.label(queue, springs(), ids=[6, 1, 4], watch=lambda one, of: told.append(one.id))
    assert told == [6, 4]


def test_those_that_teach_most(fill: Fill, springs: Springs, capsys: Any) -> None:
    """--choose labels what a model's features tell, not the oldest, and says what that saves; it wants a number."""
    queue, spec = fill(9), springs()
    with pytest.raises(ConfigError, match="--most"):
        command.command(queue, spec, by=BASELINE)
    assert "3 frames chosen: coverage" in command.command(queue, spec, most=3, by=BASELINE, dry=True)
    wanted, choice = from_queue(queue, queue.rows(), BASELINE, 3)
    assert sorted(wanted) != [1, 2, 3]
    said = command.command(queue, spec, most=3, by=BASELINE)
    assert said == f"{choice}\n3 labelled"
    assert [row.id for row in queue.rows(status="labelled")] == sorted(wanted)
    assert command.command(queue, spec, most=6, by=BASELINE) == "6 labelled"


def test_a_frame_whose_worker_is_dead_is_chosen(fill: Fill, springs: Springs) -> None:
    """A claim that has run out, or whose process is dead, is as good as waiting for every choice: with --choose, in a
    dry run, and where there are no more than wanted; one that lives is not, and is told of."""
    queue, spec = fill(6), springs()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for id, who, lease in (
        (1, "elsewhere:7", 0.01),
        (2, f"{platform.node()}:{gone.pid}", 3600.0),
        (3, "elsewhere:8", 3600.0),
    ):
        assert queue.claim(f"0badcafe/{who}", lease, id) is not None
    time.sleep(0.02)
    before = [(row.status, row.worker, row.expires) for row in queue.rows()]
    assert "labels     5" in command.command(queue, spec, dry=True)
    assert "labels     5" in command.command(queue, spec, most=5, by=BASELINE, dry=True)
    assert [(row.status, row.worker, row.expires) for row in queue.rows()] == before, "a dry run changes nothing"
    assert [row.id for row in selection.possible_rows(queue, spec)] == [1, 2, 4, 5, 6]
    said = "labelled; 1 claimed by others (beadwork queue list --status claimed)"
    assert command.command(queue, spec, most=5, by=BASELINE) == f"5 {said}"
    assert command.command(queue, spec) == f"0 {said}"
    assert [row.id for row in queue.rows(status="claimed")] == [3]


def charged(springs: Springs, theory: str = "springs") -> Spec:
    """Springs that want to be told a charge."""
    settings = dict(springs(theory).settings)
    arguments = settings["arguments"] | {"charge": "{charge}"}
    more = {"ignores_charge": False, "calculator": "toy_calculator:Charged", "arguments": arguments}
    return springs(settings=settings | more)


def test_again_takes_no_more_than_is_labelled(fill: Fill, springs: Springs) -> None:
    """--again tries as many failed frames as --most says and leaves the others failed, reason and all; refused, it has
    changed nothing; a frame that cannot be labelled at all is not chosen for it."""
    queue, spec = fill(4), charged(springs)
    queue.add(alone(8))
    for id in (1, 2, 3, 5):
        queue.claim("w", 9, id)
        queue.fail(id, "w", "does not converge", again=False)
    with pytest.raises(ConfigError, match="most is 0"):
        command.command(queue, spec, most=0, again=True)
    assert command.command(queue, spec, most=1, again=True) == "1 labelled"
    with pytest.raises(LabelError, match="labels of another method"):
        command.command(queue, charged(springs, "others"), again=True)
    failed = [(row.id, row.reason, row.attempts) for row in queue.rows(status="failed")]
    assert failed == [(id, "does not converge", 1) for id in (2, 3, 5)]
    assert command.command(queue, spec, most=3, by=BASELINE, again=True) == "3 labelled"
    assert [row.id for row in queue.rows(status="failed")] == [5]


def test_the_first_reason_is_that_of_a_failure(fill: Fill, springs: Springs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first frame was another's, the sentence has the reason of the first that failed, and its row."""
    queue, spec = fill(2), springs(arguments={"fail": 9.0}, attempts=1)
    rows = selection.rows_to_label

    def slow(*asked: Any) -> list[Row]:
        found = rows(*asked)
        queue.claim("0badcafe/elsewhere:7", 3600, found[0].id)
        return found

    monkeypatch.setattr(labelling, "rows_to_label", slow)
    with pytest.raises(LabelError, match=r"the first reason \(row 2\): toy_calculator:Springs could not label"):
        command.command(queue, spec)


class WorkerLost(Exception):
    """As Parsl's."""


WorkerLost.__module__ = "parsl.executors.high_throughput.errors"


def test_workers_that_die_before_they_begin(
    fill: Fill, springs: Springs, diary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that die before they have claimed their frame end the run after a few, in a sentence, and no frame pays;
    one that dies now and then is replaced."""
    queue, spec = fill(5), springs()
    deaths = iter([True, True, False, True, True, False])

    def dying(*asked: Any) -> Any:
        if next(deaths, True):
            raise WorkerLost
        return worker.label_row(*asked)

    monkeypatch.setattr(labelling, "label_row", dying)
    with pytest.raises(ResourceError, match=r"3 workers, one after the other, died before .*look at \[jobs\]"):
        labelling.label(queue, spec)
    assert [(row.status, row.attempts) for row in queue.rows()].count(("waiting", 0)) == 3
    assert len(queue.rows(status="labelled")) == len(diary.calls) == 2


def test_a_failure_is_tried_again_and_set_aside(fill: Fill, springs: Springs, diary: Any) -> None:
    """Two attempts, then the reason is in the queue and the other frames go on; with --again it waits once more."""
    queue = fill(4)
    energies = sorted(energy(queue, id) for id in range(1, 5))
    middle = sum(energies[:2]) / 2
    report = labelling.label(queue, springs(arguments={"fail": middle}))
    assert str(report) == "3 labelled, 1 failed"
    assert len(diary.calls) == 5
    (row,) = queue.rows(status="failed")
    assert energy(queue, row.id) == energies[0]
    assert row.attempts == 2
    assert row.reason == f"toy_calculator:Springs could not label: RuntimeError: {energies[0]:.3f} eV is too low"
    better = springs(same_theory=True)
    assert str(labelling.label(queue, better)) == "0 labelled"
    assert command.command(queue, better, again=True) == "1 labelled"


@pytest.mark.parametrize(("wrong", "said"), [("nan", "energy of nan"), ("shape", "forces of 1 atoms for 3")])
def test_nonsense_is_no_label(fill: Fill, springs: Springs, wrong: str, said: str) -> None:
    """NaN, and forces of another number of atoms, never reach the queue."""
    queue = fill(1)
    report = labelling.label(queue, springs(arguments={"wrong": wrong}))
    assert report.count("failed") == 1
    assert said in str(queue.get(1).reason)
    assert queue.get(1).label is None


def test_methods_do_not_mix(fill: Fill, springs: Springs) -> None:
    """A second method in one queue is refused, before anything is computed, unless it is asked for."""
    queue = fill(3)
    labelling.label(queue, springs(), most=1)
    with pytest.raises(LabelError, match=r"1 of springs\), and the labeller's is other"):
        labelling.label(queue, springs("other"))
    with pytest.raises(LabelError, match="mix"):
        command.estimate(queue, springs("other"))
    labelling.label(queue, springs("other"), mix=True)
    assert [(row.label or {})["method"] for row in queue.rows()] == ["springs", "other", "other"]


def test_one_name_for_two_settings(fill: Fill, springs: Springs) -> None:
    """A level of theory in the user's words that kept its name when its settings changed: refused, unless it is said
    that the change does not matter; the time that a label is thought to take matters to none."""
    queue = fill(4)
    labelling.label(queue, springs(), most=1)
    other = springs(arguments={"fail": -2.0})
    with pytest.raises(LabelError, match="1 labels with the same name 'springs'"):
        labelling.label(queue, other)
    same = springs()
    labelling.label(queue, replace(same, settings={**same.settings, "estimate": 99.0}), most=1)
    with pytest.raises(LabelError, match="2 labels with the same name 'springs'"):
        labelling.label(queue, other, mix=True)
    labelling.label(queue, replace(other, same_theory=True))
    assert len(queue.rows(status="labelled")) == 4


@pytest.mark.parametrize("fails", [False, True])
def test_a_claim_that_another_took_ends_no_run(
    fill: Fill, springs: Springs, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """This machine slept for longer than the lease, and another took the frame: it is theirs, and the rest goes on."""
    queue, answer, told = fill(3), worker._find_or_compute, []

    def slept(row: Row, *args: Any) -> Any:
        if row.id == 2:
            queue.release(2, str(row.worker))
            assert queue.claim("another", 60.0, 2) is not None
            if fails:
                raise LabelError("no convergence")
        return answer(row, *args)

    monkeypatch.setattr(worker, "_find_or_compute", slept)
    labelling.label(queue, springs(), watch=lambda one, of: told.append((one.id, one.status)))
    assert told == [(1, "labelled"), (2, "taken by another"), (3, "labelled")]
    assert queue.get(2).worker == "another"


def liquid(name: str) -> KeptFrame:
    """A start structure as a kept frame; the oxygen of its ion, if it has one, is the most uncertain atom."""
    path = INPUTS / name / "init.xyz"
    atoms = ase.io.read(path, format="xyz")
    atoms.set_cell([float(word) for word in path.read_text().splitlines()[1].split(":")[1].split()[:6]])
    atoms.pbc = True
    frame = Frame.from_atoms(atoms)
    spread = np.linspace(0, 1, len(atoms))
    for unit in units(frame):
        spread[unit.atoms[0]] += 2 * abs(unit.charge)
    return KeptFrame(frame, 1, 0.01, spread, np.zeros(4), ("a" * 64,), "b" * 64)


def test_clusters_are_labelled_as_themselves(tmp_path: Path, springs: Springs) -> None:
    """The label is of the cluster, and the row says which atoms those were and where: training needs them."""
    queue = Queue(tmp_path / "queue.db", create=True)
    queue.add(liquid("zundel-water"))
    labelling.label(queue, springs(cut=Cut(molecules=3), charge=0))
    row = queue.get(1)
    stored = dict(row.label or {})
    part = stored.pop("structure")
    label = Label.from_dict(stored)
    assert label.energy == 0.5 * (part["positions"] ** 2).sum()
    np.testing.assert_array_equal(part["numbers"], row.kept.frame.numbers[part["atoms"]])
    assert row.kept.force_spread.argmax() in part["atoms"]
    assert not any(part["pbc"])
    assert sorted(part["numbers"]) == [1] * 7 + [8] * 3
    away = (part["positions"] - row.kept.frame.positions[part["atoms"]]) / 9.86
    np.testing.assert_allclose(away, np.rint(away), atol=1e-9)


def test_what_is_exported_can_be_learned(
    fill: Fill, springs: Springs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of labelled rows gives the same examples as the queue: the structures that were computed, whole frames
    or clusters, with energies, forces, charge, spin and method; the charge of an ion too."""
    queue = fill(2)
    labelling.label(queue, springs())
    queue.add(liquid("zundel-water"))
    labelling.label(queue, springs(cut=Cut(molecules=2), charge=0, same_theory=True))
    queue.add(alone(8))
    errors = {"charge": 1, "spin": 1, "energy_error": 0.25, "forces_error": np.full((3, 3), 0.125)}
    for id, changes in ((1, errors), (2, errors | {"forces": None, "forces_error": None})):
        with queue._change() as db:
            label = {**db.get(id=id).data["label"], **changes}
            db.update(id, data={"label": label, "label_digest": label_digest(label)})
    file = tmp_path / "labels.extxyz"
    assert main(["queue", "export", queue.name, str(file), "--status", "labelled"]) == 0
    assert capsys.readouterr().out == f"3 frames in {file}, 3 with their label\n"
    for one, other in zip(read_examples(str(file), None), read_examples(queue.name, None), strict=True):
        np.testing.assert_array_equal(one.frame.numbers, other.frame.numbers)
        np.testing.assert_allclose(one.frame.positions, other.frame.positions, atol=1e-8)
        assert (one.frame.pbc, one.composition) == (other.frame.pbc, other.composition)
        assert (one.simulation, one.step) == (other.simulation, other.step)
        for name in ("charge", "spin", "method", "code", "version"):
            assert getattr(one.label, name) == getattr(other.label, name)
        assert one.label.energy == pytest.approx(other.label.energy, abs=1e-12)
        assert one.label.energy_error == other.label.energy_error
        for name in ("forces", "forces_error"):
            written, stored = getattr(one.label, name), getattr(other.label, name)
            assert (written is None) == (stored is None), name
            if stored is not None:
                np.testing.assert_allclose(written, stored, atol=1e-8)
    assert 6 <= len(read_examples(str(file), None)[2].frame.numbers) <= 7
    assert main(["queue", "export", queue.name, str(file)]) == 0
    assert capsys.readouterr().out == f"4 frames in {file}, 3 with their label\n"


def test_charge_is_told_from_the_cluster(tmp_path: Path, springs: Springs) -> None:
    """A cluster with the excess proton has a charge of 1, which a labeller that ignores charges refuses, by name."""
    queue = Queue(tmp_path / "queue.db", create=True)
    queue.add(liquid("zundel-water"))
    with pytest.raises(ConfigError, match="ignores charge and spin, but the frame has 1 and 0; if its result is valid"):
        labelling.label(queue, springs(cut=Cut(molecules=32), attempts=1))
    assert queue.get(1).status == "waiting"


def alone(number: int, at: float = 0.0) -> KeptFrame:
    """One atom, at a place on all three axes, Å."""
    lone = Frame(np.array([number]), np.full((1, 3), at), np.zeros((3, 3)), (False,) * 3)
    return KeptFrame(lone, 1, 0.1, np.ones(1), np.zeros(4), ("a" * 64,), "b" * 64)


def test_what_cannot_be_told_is_set_aside_once(fill: Fill, springs: Springs) -> None:
    """A lone oxygen has no charge that could be told: set aside with the reason, and the dry run says so before."""
    queue, spec = fill(1), charged(springs)
    queue.add(alone(8))
    said = str(command.estimate(queue, spec))
    assert "labels     1: 1 H2O" in said
    assert "fail       row 2: oxygen 0 has 0 hydrogens" in said
    assert str(labelling.label(queue, spec)) == "1 labelled, 1 failed"
    assert queue.get(2).status == "failed"
    assert "labels     1: 1 O" in command.command(queue, replace(spec, charge=0), again=True, dry=True)
    assert queue.get(2).status == "failed"
    assert "labels     0" in command.command(queue, replace(spec, charge=0), dry=True)
    assert command.command(queue, replace(spec, charge=0), again=True) == "1 labelled"


@pytest.mark.parametrize(
    ("own", "given", "wanted"),
    [
        ((None, None), (None, None), (0, 0)),
        ((0, 2), (None, None), (0, 2)),
        ((-1, 1), (None, None), (-1, 1)),  # its atoms tell the charge of closed shells alone
        ((1, 1), (1, None), (1, 1)),
        ((2, None), (2, None), (2, 0)),  # said twice
        ((None, None), (1, 1), (1, 1)),
        (
            (-1, None),
            (0, None),
            "the frame has the charge -1, and the TOML says 0; correct charge in the TOML, or leave",
        ),
        ((0, 1), (None, 0), "the frame has the spin 1, and the TOML says 0; correct spin"),
        ((1, None), (None, None), "the frame has the charge 1, and its molecules and ions have 0 together in closed"),
        ((1, 0), (None, 0), "the frame has the charge 1, and its molecules and ions have 0 together"),
        ((None, 2), (None, None), "the frame has 2 unpaired electrons, and nothing says its charge; give charge in"),
        ((None, None), (None, 1), "the frame has 1 unpaired electrons, and nothing says its charge"),
    ],
)
def test_a_label_is_of_the_charge_and_spin_of_its_frame(springs: Springs, own: Any, given: Any, wanted: Any) -> None:
    """A run or a file says which electrons a frame has: a label is of these, and settings that say others, or atoms
    that tell another charge, are refused."""
    frame = replace(water(1), charge=own[0], spin=own[1])
    row = Row(1, "waiting", "", kept(frame), "")
    spec = springs(charge=given[0], spin=given[1])
    spec = replace(spec, settings=spec.settings | {"ignores_charge": False})
    if isinstance(wanted, str):
        with pytest.raises(LabelError, match=wanted):
            worker.part_of(row, spec)
    else:
        part = worker.part_of(row, spec)
        assert (part.charge, part.spin) == wanted


def test_a_cut_of_a_frame_with_a_charge(springs: Springs) -> None:
    """The charge of a cluster is told from its molecules, if these have that of the frame together."""
    whole = liquid("zundel-water")
    spec = springs(cut=Cut(molecules=3))
    spec = replace(spec, settings=spec.settings | {"ignores_charge": False})

    def part(spec: Spec, **said: int) -> worker.Part:
        return worker.part_of(Row(1, "waiting", "", replace(whole, frame=replace(whole.frame, **said)), ""), spec)

    assert part(spec).charge == part(spec, charge=1, spin=0).charge == 1
    with pytest.raises(LabelError, match="has the charge 0, and its molecules and ions have 1 together"):
        part(spec, charge=0)
    with pytest.raises(
        LabelError, match="has 2 unpaired electrons, and a cut has a known charge in closed shells alone"
    ):
        part(spec, charge=1, spin=2)
    with pytest.raises(LabelError, match="has 2 unpaired electrons"):
        part(replace(spec, spin=2))
    told = part(replace(spec, charge=1, spin=2), charge=1, spin=2)
    assert (told.charge, told.spin) == (1, 2)
    # round a far water there is no proton: as a cation it would be a radical that nobody asked for
    spread = np.zeros(len(whole.frame.numbers))
    far = np.flatnonzero(whole.frame.numbers == 8)[-1]
    spread[far] = 1.0
    row = Row(1, "waiting", "", replace(whole, frame=replace(whole.frame, charge=1), force_spread=spread), "")
    one = replace(spec, cut=Cut(molecules=1))
    assert worker.part_of(row, one).charge == 0
    for spin in (None, 0):
        with pytest.raises(LabelError, match=r"the TOML says charge 1, and the cluster cut .*, H2O, has 0 in closed"):
            worker.part_of(row, replace(one, charge=1, spin=spin))
    assert worker.part_of(row, replace(one, charge=1, spin=1)).spin == 1


@pytest.mark.parametrize(
    ("apart", "own", "wanted"),
    [
        (1.45, {}, (0, 0)),
        (1.45, {"charge": 0}, (0, 0)),
        (1.45, {"charge": 1, "spin": 1}, (1, 1)),
        (1.95, {}, "oxygens 0 and 2 are 1.95 Å apart, and no H2O2"),
        (1.95, {"charge": 0}, (0, 0)),
        (3.0, {}, "the frame has 2 OH and 0 positive ions: .*give charge and spin"),
        (3.0, {"charge": -2}, (-2, 0)),
        (3.0, {"charge": 0}, "has the charge 0, and its molecules and ions have -2 together in closed shells; correct"),
        (3.0, {"charge": 0, "spin": 2}, (0, 2)),
        (3.0, {"spin": 2}, "has 2 unpaired electrons, and nothing says its charge"),
    ],
)
def test_hydrogen_peroxide_is_no_dianion(springs: Springs, apart: float, own: dict[str, int], wanted: Any) -> None:
    """H2O2 is neutral; where its bond is stretched, and where it is broken into what may be ions or radicals, whoever
    knows is asked, in a cluster and in a cut."""
    numbers = np.array([8, 1, 8, 1])
    positions = np.array([[0, 0, 0], [-0.2, 0.94, 0], [apart, 0, 0], [apart + 0.2, -0.4, 0.85]])
    row = Row(1, "waiting", "", kept(Frame(numbers, positions, np.zeros((3, 3)), (False,) * 3, **own)), "")
    spec = springs()
    spec = replace(spec, settings=spec.settings | {"ignores_charge": False})
    if isinstance(wanted, str):
        with pytest.raises(LabelError, match=wanted):
            worker.part_of(row, spec)
        with pytest.raises(LabelError):
            worker.part_of(row, replace(spec, cut=Cut(molecules=1)))
    else:
        part = worker.part_of(row, spec)
        assert (part.charge, part.spin) == wanted


def test_a_radical_of_a_run_is_labelled_as_one(tmp_path: Path, springs: Springs) -> None:
    """H3O of a run with charge 0 and spin 1 is no H3O+: through queue, labeller and export with what the run said."""
    queue = Queue(tmp_path / "queue.db", create=True)
    positions = np.array([[0, 0, 0.1], [0.94, 0, -0.2], [-0.47, 0.81, -0.2], [-0.47, -0.81, -0.25]])
    frame = Frame(np.array([8, 1, 1, 1]), positions, np.zeros((3, 3)), (False,) * 3, charge=0, spin=1)
    queue.add(kept(frame))
    spec = springs()
    settings = {"ignores_charge": False, "calculator": "toy_calculator:Charged"}
    arguments = {"arguments": {**spec.settings["arguments"], "charge": "{charge}", "spin": "{spin}"}}
    spec = replace(spec, settings=spec.settings | settings | arguments)
    export(queue.rows(), tmp_path / "waiting.xyz")
    assert str(labelling.label(queue, spec)) == "1 labelled"
    (row,) = queue.rows()
    assert (row.label["charge"], row.label["spin"]) == (0, 1)
    export([row], tmp_path / "labelled.xyz")
    for name in ("waiting.xyz", "labelled.xyz"):
        assert Frame.from_atoms(ase.io.read(tmp_path / name)).charge == 0
        assert Frame.from_atoms(ase.io.read(tmp_path / name)).spin == 1


def test_who_ignores_charges_is_told_none(tmp_path: Path, springs: Springs) -> None:
    """Copper's charge cannot be told from its atoms, and a calculator that ignores charges does not need it; its label
    says none, so that nobody takes it for 0, and has what is said or what the atoms tell."""
    queue = Queue(tmp_path / "queue.db", create=True)
    queue.add(alone(29))
    assert "labels     1: 1 Cu" in str(command.estimate(queue, springs()))
    assert str(labelling.label(queue, springs())) == "1 labelled"
    label = queue.get(1).label
    assert label is not None
    assert (label["charge"], label["spin"]) == (None, None)
    export(queue.rows(), tmp_path / "labelled.xyz")
    assert state_of(ase.io.read(tmp_path / "labelled.xyz").info) == (None, None)
    said = replace(kept(water(1)).frame, charge=None, spin=None)
    for frame, wanted in ((said, (0, 0)), (replace(said, charge=1), (1, None)), (replace(said, spin=2), (None, 2))):
        part = worker.part_of(Row(1, "waiting", "", kept(frame), ""), springs())
        assert (part.charge, part.spin) == wanted


@pytest.mark.parametrize(
    ("kind", "settings", "changes", "said"),
    [
        ("pyscf", {"theory": "HF", "basis": "ccecp-cc-pvdz"}, {}, "no functions for the core of O"),
        ("pyscf", {"theory": "HF", "basis": "stuttgart"}, {}, "the basis stuttgart has no H"),
        ("pyscf", {"theory": "HF", "basis": "sto-3g"}, {"charge": 0, "spin": 1}, "Electron number 10 and spin 1"),
        ("pyscf", {"theory": "CCSD(T)", "basis": "sto-3g"}, {"charge": 0, "spin": 2},
         "not the derivative of its energy"),
        ("ase", {"calculator": "ase.calculators.emt:EMT", "theory": "EMT", "ignores_charge": True}, {"charge": 1},
         "ignores charge and spin, but the frame has 1 and 0"),
        ("command", {"theory": "T", "code": "C", "version": "1", "command": ["true"], "files": {},
                     "energy": {"regex": "(?P<value>.)", "unit": "eV"}}, {"charge": 0, "spin": 1},
         "the spin is 1 unpaired"),
    ],
)  # fmt: skip
def test_settings_that_fail_with_every_frame_are_refused_before_the_first(
    fill: Fill, kind: str, settings: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    """Nothing is begun and nothing set aside: the frames wait for better settings."""
    if kind == "pyscf":
        pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")
    queue, spec = fill(3), replace(Spec(kind, settings), **changes)
    for act in (command.estimate, labelling.label):
        with pytest.raises(
            ConfigError, match=f"none of 3 frames can be labelled, and none was started; row 1: .*{said}"
        ):
            act(queue, spec)
    assert [(row.status, row.attempts) for row in queue.rows()] == [("waiting", 0)] * 3


@pytest.mark.parametrize(
    ("number", "basis", "told", "refused"),
    [
        (53, "def2-svp", {}, True),  # -8,088.1 eV of HI with its potential, -54,338.3 eV without
        (53, "def2-svp", {"ecp": None, "pseudo": None}, False),
        (53, "sto-3g", {}, False),
        (10, "def2-svp", {}, False),
        (10, "ccecp-cc-pvdz", {}, True),
    ],
)
def test_labels_without_the_potential_of_their_basis_are_not_mixed_in(
    tmp_path: Path, number: int, basis: str, told: dict[str, None], refused: bool
) -> None:
    """The first labels of heavy elements in def2 were made with the bare nucleus, under the name that those with the
    potential have: neither labelling nor training goes on with them. Others of that time are as good as ever."""
    pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")
    queue = Queue(tmp_path / "queue.db", create=True)
    queue.add(alone(number))
    said = json.dumps({"method": "HF", "basis": basis, **told, "numbers": [number]})
    made = Label(-8088.1, None, 0.0, None, f"HF/{basis}", "PySCF", "2.14", 0, 0, said, 1.0, {})
    assert queue.claim("me", 60.0) is not None
    queue.finish(1, "me", made.to_dict())
    again = partial(labelling.label, queue, Spec("pyscf", {"theory": "HF", "basis": basis}, charge=0))
    for act in (again, partial(read_examples, queue.name, None)):
        if refused:
            with pytest.raises(LabelError, match=r"row 1 of .*queue\.db: its label was computed with the bare nucleus"):
                act()
        else:
            act()


def radicals_first(tmp_path: Path) -> tuple[Queue, Spec]:
    """Two atoms with an odd number of electrons, which no closed shell holds, and then neon."""
    queue = Queue(tmp_path / "queue.db", create=True)
    queue.add_all([alone(3), alone(5), alone(10)])
    return queue, Spec("pyscf", {"theory": "HF", "basis": "sto-3g"}, charge=0)


def test_frames_that_cannot_be_labelled_never_block_the_queue(tmp_path: Path) -> None:
    """The oldest rows are radicals, so many and no more are asked for: they are set aside by name, in one line, and
    the next call reaches the row behind them. A queue that is nothing else is refused, and waits."""
    pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")
    queue, spec = radicals_first(tmp_path)
    assert str(command.estimate(queue, spec, most=1)).count("\nfail       row 1: ") == 1
    assert str(labelling.label(queue, spec, most=1)) == "0 labelled, 1 failed"
    reason = str(queue.get(1).reason)
    assert "PySCF cannot set up the frame: RuntimeError: Electron number 3 and spin 0 are not consistent" in reason
    assert "\n" not in reason
    assert str(labelling.label(queue, spec, most=1)) == "0 labelled, 1 failed"
    assert str(labelling.label(queue, spec, most=1)) == "1 labelled"
    queue.add(alone(7))  # what was labelled shows, too, that the settings can be run
    assert str(labelling.label(queue, spec)) == "0 labelled, 1 failed"
    radicals = Queue(tmp_path / "radicals.db", create=True)
    radicals.add_all([alone(3), alone(5)])
    for act in (command.estimate, labelling.label, selection.possible_rows):
        with pytest.raises(ConfigError, match="none of 2 frames can be labelled, and none was started; row 1: PySCF"):
            act(radicals, spec)
    assert [row.status for row in radicals.rows()] == ["waiting"] * 2


def test_what_cannot_be_labelled_is_set_aside_before_a_choice(tmp_path: Path) -> None:
    """Or those that a model wants most, generation after generation, would be those that no labeller can do."""
    pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")
    queue, spec = radicals_first(tmp_path)
    queue.add(liquid("water"))
    told: list[tuple[int, str | None]] = []
    selection.possible_rows(queue, spec, lambda one, of: told.append((one.id, one.reason)))
    assert [row.status for row in queue.rows()] == ["failed", "failed", "waiting", "failed"]
    assert [id for id, _ in told] == [1, 2, 4]
    assert told[2][1] == "the frame is periodic, and pyscf computes clusters: add a table [cut] to the TOML"
    queue.add(alone(8))
    selection.possible_rows(queue, spec, lambda one, of: told.append((one.id, one.reason)), BASELINE)
    assert [row.status for row in queue.rows()][2:] == ["failed", "failed", "waiting"]
    assert told[3] == (3, f"{BASELINE} does not know the atomic numbers [10]; take a model that was trained with them")
    assert str(labelling.label(queue, spec)) == "1 labelled"


def test_forces_of_nothing_physical_are_no_label(fill: Fill, springs: Springs) -> None:
    """A force of 173 eV/Å on a lone atom is refused by whomever it comes; where atoms overlap it is what it is."""
    queue = fill(0)
    queue.add_all([alone(10, 100.0), alone(18, 1.0)])
    near = Frame(np.array([18, 18]), np.array([[100.0, 0, 0], [101.0, 0, 0]]), np.zeros((3, 3)), (False,) * 3)
    queue.add(KeptFrame(near, 1, 0.1, np.ones(2), np.zeros(4), ("a" * 64,), "b" * 64))
    assert str(labelling.label(queue, springs())) == "2 labelled, 1 failed"
    assert "gave a force of 173.2 eV/Å on atom 0 (Ne), and no other atom is close enough" in str(queue.get(1).reason)


def test_a_dry_run_says_method_count_and_time_and_changes_nothing(fill: Fill, springs: Springs, diary: Any) -> None:
    """Says method, how many of what, and how long; computes and changes nothing."""
    queue = fill(4)
    said = str(command.estimate(queue, springs(), most=3))
    assert "method     springs" in said
    assert "labels     3: 3 H2O" in said
    assert "about 9.0 s with 1 worker (9.0 s in all, the longest 3.0 s)" in said
    assert diary.calls == []
    assert {row.status for row in queue.rows()} == {"waiting"}
    assert not worker.folder_of(queue).exists()


def test_a_label_computed_is_never_computed_again(
    fill: Fill, springs: Springs, diary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a label and its place in the queue anything may fail: the next run finds it and calls nobody."""
    queue = fill(3)

    def refuse(*arguments: Any) -> None:
        raise QueueError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "finish", refuse)
        with pytest.raises(QueueError, match="went away"):
            labelling.label(queue, springs())
    assert len(diary.ends) == 1
    assert {row.status for row in queue.rows()} == {"waiting"}  # given back
    assert "computed   1 of them before" in str(command.estimate(queue, springs()))
    assert str(labelling.label(queue, springs())) == "3 labelled (1 had been computed before)"
    assert len(diary.ends) == 3
    assert not worker.folder_of(queue).exists()


def test_another_setting_is_another_label(fill: Fill, springs: Springs, diary: Any, monkeypatch: Any) -> None:
    """A label that lies ready is taken for the same settings only."""
    queue = fill(1)
    with monkeypatch.context() as patch:
        patch.setattr(Queue, "finish", lambda *arguments: (_ for _ in ()).throw(QueueError("no")))
        with pytest.raises(QueueError):
            labelling.label(queue, springs())
    labelling.label(queue, springs("better"))
    assert (queue.get(1).label or {})["method"] == "better"
    assert len(diary.ends) == 2


def test_the_labeller_is_made_under_the_claim(
    fill: Fill, springs: Springs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies of making it has claimed its frame, so it counts as an attempt and is not tried for ever."""
    queue, spec = fill(1), springs()
    found = []

    def make(spec: Spec) -> Any:
        found.append(queue.get(1))
        raise MemoryError

    monkeypatch.setattr(worker, "_labeller", make)
    with pytest.raises(MemoryError):
        worker.label_row(1, queue.url, spec, str(tmp_path), "run")
    assert [(row.status, row.attempts) for row in found] == [("claimed", 1)]
    assert queue.get(1).status == "waiting"


def test_labels_on_their_way_are_those_of_one_queue(
    fill: Fill, springs: Springs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two databases have rows of the same numbers, and other hosts write beside us: nobody removes another's label."""
    urls = ["postgresql://me@host/water", "postgresql://me@host/ice"]
    folders = {worker.folder_of(typing.cast(Queue, SimpleNamespace(name=url))) for url in urls}
    assert len(folders) == 2
    queue = fill(1)
    folder = worker.folder_of(queue)
    folder.mkdir()
    for node in ("elsewhere", platform.node()):
        with monkeypatch.context() as killed:
            killed.setattr(platform, "node", lambda node=node: node)
            killed.setattr(os, "getpid", lambda: 999999999)
            killed.delattr(os, "replace")
            killed.setattr(Path, "unlink", lambda *told, **how: None)  # who is killed removes nothing
            with pytest.raises(AttributeError):
                write_whole(folder / "7-ab.json", "{}")
    assert len(list(folder.iterdir())) == 2
    labelling.label(queue, springs())
    assert [file.name.split(".")[3] for file in folder.iterdir()] == ["elsewhere"]


def test_a_claim_is_renewed(fill: Fill, springs: Springs) -> None:
    """A label that takes longer than the lease keeps its claim: it is renewed while its worker lives."""
    queue = fill(1)
    spec = springs(arguments={"seconds": 5.0}, lease=3.0)
    thread = threading.Thread(target=lambda: labelling.label(queue, spec))
    thread.start()
    until(lambda: queue.get(1).expires is not None)
    first = queue.get(1).expires or 0.0
    until(lambda: (queue.get(1).expires or 0.0) > first)
    thread.join()
    assert (queue.get(1).status, queue.get(1).attempts) == ("labelled", 1)


def test_a_claim_of_a_dead_process_is_taken_at_once(fill: Fill, springs: Springs, diary: Any) -> None:
    """Nobody waits for the lease of a process of this machine that is gone; one that lives keeps its claim."""
    queue = fill(3)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert queue.claim(f"0badcafe/{platform.node()}:{gone.pid}", 3600, id=1) is not None
    assert queue.claim(f"0badcafe/{platform.node()}:{os.getppid()}", 3600, id=2) is not None
    assert queue.claim(f"0badcafe/elsewhere:{gone.pid}", 3600, id=3) is not None
    assert str(labelling.label(queue, springs())) == "1 labelled"
    assert queue.get(1).attempts == 1  # the kill was not the frame's fault
    assert [row.id for row in queue.rows(status="claimed")] == [2, 3]


SETTINGS = """
kind = "ase"
[settings]
calculator = "toy_calculator:Springs"
theory = "springs"
ignores_charge = true
arguments = {{ where = "{where}", seconds = {seconds} }}
"""


def start(queue: Queue, folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Run `beadwork label` in a process of its own."""
    settings = folder / "labeller.toml"
    settings.write_text(SETTINGS.format(where=folder, seconds=seconds))
    command = [sys.executable, "-m", "beadwork.cli", "label", queue.name, "--with", str(settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something to hold."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_gives_the_frame_back(
    fill: Fill, springs: Springs, tmp_path: Path, diary: Any, number: int, code: int
) -> None:
    """Ctrl-C in mid-label gives the frame back at once, as if never claimed, and ends with the signal's code."""
    springs()
    queue = fill(3)
    process = start(queue, tmp_path, 30.0)
    until(lambda: len(diary.calls) == 1)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert [(row.status, row.attempts) for row in queue.rows()] == [("waiting", 0)] * 3
    assert diary.ends == []


def test_sigkill_loses_no_label_that_was_on_disk(fill: Fill, springs: Springs, tmp_path: Path, diary: Any) -> None:
    """SIGKILL at random instants: no label that was on disk is lost, and nobody is called for it again."""
    springs()
    queue = fill(12)
    rng = np.random.default_rng(5)
    safe: set[int] = set()
    called: dict[int, int] = {}

    def count(id: int) -> int:
        return [told for _, told in diary.calls].count(f"{energy(queue, id):.12f}")

    for _ in range(3):
        process = start(queue, tmp_path, 0.05)
        before = len(diary.calls)
        until(lambda before=before: len(diary.calls) > before)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
        files = {int(file.name.partition("-")[0]) for file in worker.folder_of(queue).glob("*.json")}
        safe |= files | {row.id for row in queue.rows(status="labelled")}
        called |= {id: count(id) for id in safe - set(called)}
    process = start(queue, tmp_path, 0.05)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert b"labelled" in out
    assert {row.status for row in queue.rows()} == {"labelled"}
    assert len(safe) > 1
    assert {id: count(id) for id in safe} == called
    assert {told for _, told in diary.ends} == {f"{energy(queue, id):.12f}" for id in range(1, 13)}
    for row in queue.rows():
        assert (row.label or {})["energy"] == energy(queue, row.id)


def test_the_command_says_what_it_did(
    fill: Fill, springs: Springs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dry run, labels, and a code of 10 where nothing could be labelled."""
    springs()
    queue = fill(2)
    settings = tmp_path / "labeller.toml"
    settings.write_text(SETTINGS.format(where=tmp_path, seconds=0))
    assert main(["label", queue.name, "--with", str(settings), "--dry-run"]) == 0
    assert "labels     2: 2 H2O" in capsys.readouterr().out
    assert main(["label", queue.name, "--with", str(settings), "--most", "1"]) == 0
    assert capsys.readouterr().out == "1 labelled\n"
    settings.write_text(SETTINGS.format(where=tmp_path, seconds=0).replace("seconds = 0", "fail = 1e9"))
    assert main(["label", queue.name, "--with", str(settings)]) == 10
    assert "made with other settings" in capsys.readouterr().err
    settings.write_text("same_theory = true\n" + settings.read_text())
    assert main(["label", queue.name, "--with", str(settings)]) == 10
    assert "no frame was labelled, 0 labelled, 1 failed" in capsys.readouterr().err


def test_coupled_clusters_cut_from_a_liquid(tmp_path: Path) -> None:
    """The whole way with a real code: an ion of the liquid and its neighbour, charge told, energy as PySCF has it."""
    pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")
    from beadwork.label.codes.pyscf_labeller import PySCF

    queue = Queue(tmp_path / "queue.db", create=True)
    queue.add(liquid("zundel-water"))
    settings = tmp_path / "l.toml"
    settings.write_text('kind = "pyscf"\n[settings]\ntheory = "CCSD"\nbasis = "sto-3g"\n[cut]\nmolecules = 2\n')
    assert main(["label", queue.name, "--with", str(settings)]) == 0
    stored = dict(queue.get(1).label or {})
    part = stored.pop("structure")
    label = Label.from_dict(stored)
    assert (label.charge, sorted(part["numbers"])) == (1, [1, 1, 1, 1, 1, 8, 8])
    cluster = Frame(part["numbers"], part["positions"], part["cell"], (False,) * 3)
    again = PySCF("CCSD", "sto-3g").label(cluster, 1, 0)
    assert label.energy == pytest.approx(again.energy, abs=1e-8)
    np.testing.assert_allclose(label.forces, again.forces, atol=1e-5)


def test_a_periodic_frame_wants_a_cut(tmp_path: Path) -> None:
    """A code without periodic boundaries is never given a periodic frame as if it were a cluster."""
    pytest.importorskip("pyscf", reason="pip install 'beadwork[pyscf]'")
    queue = Queue(tmp_path / "queue.db", create=True)
    queue.add(liquid("water"))
    spec = Spec("pyscf", {"theory": "HF", "basis": "sto-3g"})
    for act in (command.estimate, labelling.label):
        with pytest.raises(ConfigError, match=r"add a table \[cut\]"):
            act(queue, spec)
    assert queue.get(1).status == "waiting"
