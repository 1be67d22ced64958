"""What is tested is never a few steps from what was learned: hold-out, its blocks, and error bars from them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest

from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.train.calibration import Errors, Residuals
from beadwork.train.dataset import Dataset, KnownFrame, from_queue, to_atoms
from beadwork.train.divide import _dataset, format_division
from beadwork.train.label_file import from_file
from beadwork.train.member import _draw
from beadwork.train.settings import TrainSettings
from beadwork.train.split import APART, blocks, split, unseen
from support import truth


@pytest.fixture(scope="module")
def examples():
    """Forty clusters, some with a proton too much; energies with a declared error."""
    return [truth.example(f, n, energy_noise=0.01) for n, f in enumerate(truth.clusters(40, 1, charged=True))]


@pytest.fixture(scope="module")
def harvested():
    """Frames of three simulations as a server keeps them: at random steps, two beads of one step now and then."""
    rng = np.random.default_rng(4)
    found = []
    for simulation, length in (("long", 20000), ("short", 300), ("sparse", 60000)):
        steps = rng.choice(length, {"long": 250, "short": 20, "sparse": 60}[simulation], replace=False).tolist()
        found += [(simulation, step) for step in [*steps, *steps[:10]]]
    frames = truth.clusters(len(found), 6)
    return [
        replace(truth.example(f, n), simulation=simulation, step=step)
        for n, (f, (simulation, step)) in enumerate(zip(frames, found, strict=True))
    ]


def gap(some, others) -> float:
    """Steps between the nearest two of one simulation; unknown steps are no steps apart."""
    apart = [
        0 if one.step is None or other.step is None else abs(one.step - other.step)
        for one in some
        for other in others
        if one.simulation is not None and one.simulation == other.simulation
    ]
    return min(apart, default=np.inf)


def sides(examples, marks):
    """Those held out, and those learned from."""
    return (
        [e for e, mark in zip(examples, marks, strict=True) if mark],
        [e for e, mark in zip(examples, marks, strict=True) if mark is False],
    )


def test_split_holds_out_each_kind_in_proportion(examples):
    """Solutes and compositions are represented within one frame, and a seed gives the same split again."""
    many = [truth.example(f, n) for n, f in enumerate(truth.clusters(200, 2, charged=True))]
    out = split(many, 0.2, 7)
    assert out == split(many, 0.2, 7) != split(many, 0.2, 8)
    assert sum(out) == 40
    for kind in ("solute", "composition"):
        whole = Counter(getattr(e, kind) for e in many)
        held = Counter(getattr(e, kind) for e, o in zip(many, out, strict=True) if o)
        assert len(whole) > 1
        for name, n in whole.items():
            assert abs(held[name] - 0.2 * n) < 1.01, name


def test_what_was_held_out_stays_held_out(examples):
    """A frame that one generation learned is never a test of the next, nor the reverse."""
    out = split(examples[:25], 0.3, 1)
    before = [e.known_frame(o) for e, o in zip(examples[:25], out, strict=True)]
    later = split(list(reversed(examples)), 0.3, 99, before)[::-1]
    assert later[:25] == out
    assert any(later[25:])


def test_a_file_that_grew_holds_the_same_frames(examples, tmp_path):
    """Under another name and with more frames, what was learned is known; so is a frame that was labelled twice."""
    few, more = tmp_path / "few.extxyz", tmp_path / "more.extxyz"
    ase.io.write(few, [to_atoms(e) for e in examples[:25]])
    ase.io.write(more, [to_atoms(e) for e in [*reversed(examples[:25]), *examples[25:]]])
    first, second = from_file(few, None), from_file(more, None)
    assert not {e.hash for e in first} & {e.hash for e in second}
    before = [e.known_frame(o) for e, o in zip(first, split(first, 0.3, 1), strict=True)]
    later = split(second, 0.3, 99, before)
    assert later[:25] == tuple(reversed(split(first, 0.3, 1)))
    noisy = replace(examples[3], label=replace(examples[3].label, energy=examples[3].label.energy + 0.01))
    for seed in range(8):
        out = split([*examples, noisy], 0.3, seed)
        assert out[3] == out[-1], "labels of one structure stay together"


@pytest.mark.parametrize("apart", [20, 100, 400])
def test_no_frame_held_out_is_close_to_a_learned_one(harvested, apart):
    """Never closer than the stated number of steps, at any seed; about the share that was asked for, few are lost."""
    for seed in range(6):
        marks = split(harvested, 0.2, seed, apart=apart)
        held, learned = sides(harvested, marks)
        assert gap(held, learned) >= apart
        assert 0.12 < len(held) / len(harvested) < 0.28
        assert marks.count(None) < 0.15 * len(harvested)
    alone, others = sides(harvested, split(harvested, 0.2, 0, apart=0))
    assert gap(alone, others) < 20, "frame by frame, as it was, the nearest neighbours lie on both sides"
    assert len(alone) + len(others) == len(harvested)


def test_blocks_are_simulations_or_pieces_of_their_time(harvested):
    """A short simulation is one block, a long one is cut where it has gaps, and at ten times `apart` where it has none;
    without steps a whole simulation is one, without a simulation each frame."""
    found = dict(zip([(e.simulation, e.step) for e in harvested], blocks(harvested, 100).tolist(), strict=False))
    assert len({block for (name, _), block in found.items() if name == "short"}) == 1
    spans = {}
    for (name, step), block in found.items():
        spans.setdefault((name, block), []).append(step)
    assert {name for name, _ in spans} == {"long", "short", "sparse"}
    assert max(max(steps) - min(steps) for steps in spans.values()) <= 1000
    assert len(spans) == len({block for _, block in spans}), "no block has two simulations"
    unknown = [replace(e, step=None if e.simulation == "long" else e.step) for e in harvested]
    number = blocks(unknown, 100)
    assert len({n for n, e in zip(number.tolist(), unknown, strict=True) if e.simulation == "long"}) == 1
    assert len(set(blocks([replace(e, simulation=None) for e in harvested], 100).tolist())) == len(harvested)
    (held, learned) = sides(unknown, split(unknown, 0.3, 1))
    assert gap(held, learned) >= APART


def test_blocks_of_every_size_are_held_out():
    """Single frames do not use up the share of whole simulations: of 160 start structures and six simulations of forty
    frames each kind has its part; and a simulation that is most of what there is stays to learn from."""
    frames = truth.clusters(400, 8)
    several = [truth.example(f, n) for n, f in enumerate(frames)]
    several = [replace(e, simulation=None if n < 160 else f"run {n % 6}") for n, e in enumerate(several)]
    shares = []
    for seed in range(20):
        held = sides(several, split(several, 0.15, seed))[0]
        alone = sum(e.simulation is None for e in held)
        assert 20 <= alone <= 28
        assert (len(held) - alone) % 40 == 0
        shares.append(len(held) / 400)
    assert np.mean(shares) == pytest.approx(0.15, abs=0.04)
    assert max(shares) > 0.15
    one = [replace(e, simulation="run") for e in several[:300]] + several[300:303]
    assert gap(sides(one, split(one, 0.2, 0))[0], one[:300]) == np.inf


def test_one_simulation_is_cut_finer(harvested):
    """A first try of a few hundred steps has frames held out too: pieces go down to twice `apart`, no further."""
    few = [e for e in harvested if e.simulation == "long" and e.step < 900]
    held, learned = sides(few, split(few, 0.2, 0, apart=50))
    assert held
    assert len(learned) > len(held)
    assert gap(held, learned) >= 50
    one = [e for e in few if e.step < 90]
    assert True not in split(one, 0.2, 0, apart=50), "one block is not held out whole"
    settings = TrainSettings(apart=50)
    said = format_division(Path("new"), one, _dataset(one, settings, None), settings)
    assert "none is held out, because no block of frames 50 steps apart is small enough" in said


def test_duplicates_move_as_a_whole(harvested):
    """One structure in two simulations and in none: all of it is learned from, held out or lost, and what lies near to
    each of the two goes with it."""
    several = [e for e in harvested if e.simulation != "short"]
    for n in (0, 7, 40):
        other = next(e for e in reversed(several) if e.simulation not in (None, several[n].simulation))
        several += [
            replace(several[n], simulation=other.simulation, step=other.step + 1, row=1000 + n),
            replace(several[n], simulation=None, step=None, row=2000 + n),
        ]
    for seed in range(6):
        marks = split(several, 0.2, seed)
        held, learned = sides(several, marks)
        assert gap(held, learned) >= APART
        whole: dict[bytes, set[bool | None]] = {}
        for e, mark in zip(several, marks, strict=True):
            whole.setdefault(e.frame.positions.tobytes(), set()).add(mark)
        assert {len(marks) for marks in whole.values()} == {1}


def test_later_frames_of_a_simulation_go_with_the_earlier_ones(harvested):
    """A second generation of the same simulations, with the first one's frames at hand or only met: none that was
    learned from is tested now or near to a test, none that was a test is learned from or near to what is."""
    first, second = harvested[::2], harvested[1::2]
    marks = split(first, 0.2, 3)
    before = [e.known_frame(mark) for e, mark in zip(first, marks, strict=True) if mark is not None]
    held, learned = sides(first, marks)
    for several in (second, [*second, *first]):
        now = split(several, 0.2, 5, before)
        tests, lessons = sides(several, now)
        assert gap([*tests, *held], [*lessons, *learned]) >= APART
        assert 0.1 < len(tests) / len(several) < 0.3
    assert [m for m, e in zip(now[len(second) :], first, strict=True) if m is not None] == [
        m.held_out for m in before
    ], "what was met stays what it was, and what was lost is lost again"


def test_a_committee_that_wrote_no_steps_is_gone_on_with(harvested):
    """Of the first committees' frames only the simulation is known, and some of each are on both sides: given again
    they have their steps back, and keep their distance; where they are not, new frames are learned from and tested all
    the same, and none is lost for them."""
    first, second = harvested[::2], harvested[1::2]
    marks = split(first, 0.2, 3)
    pairs = [(e, mark) for e, mark in zip(first, marks, strict=True) if mark is not None]
    for lost in ({"step": None}, {"simulation": None, "step": None}):
        before = [replace(e.known_frame(mark), **lost) for e, mark in pairs]
        again = [*second, *first]
        assert split(again, 0.2, 5, before) == split(again, 0.2, 5, [e.known_frame(mark) for e, mark in pairs])
    old = [replace(e.known_frame(n % 5 == 0), step=None) for n, e in enumerate(first)]
    tests, lessons = sides(second, split(second, 0.2, 5, old))
    assert gap(tests, lessons) >= APART
    assert len(tests) + len(lessons) > 0.85 * len(second)
    assert 0.1 < len(tests) / len(second) < 0.3
    for unknown in ([replace(e, step=None) for e in second], second):  # with other steps known, and with none
        tests, lessons = sides(unknown, split(unknown, 0.2, 5, old))
        assert len(tests) + len(lessons) > 0.85 * len(second)
        one_side = [replace(m, held_out=False) for m in old]
        now = sides(unknown, split(unknown, 0.2, 5, one_side))
        assert bool(now[0]) is (unknown is second), "unknown steps of a simulation that was learned are no test"


def test_frames_without_steps_are_said(harvested, tmp_path: Path):
    """Where a committee before wrote no steps of a simulation that goes on, `train` says that new frames may be near
    to what it learned; not where its labels are given again, or its simulations are others."""
    pairs = [(replace(e, step=None), n % 5 == 0) for n, e in enumerate(harvested[:60])]
    Dataset(*map(tuple, zip(*pairs, strict=True))).write(tmp_path)
    for given, said in (
        (harvested[60:200], "; 60 frames of these simulations .* have no step, and new frames may be close"),
        (harvested[:200], None),
        ([replace(e, simulation="another") for e in harvested[60:200]], None),
    ):
        told = format_division(Path("new"), given, _dataset(given, TrainSettings(), tmp_path), TrainSettings())
        assert re.search(said, told) if said else "no step" not in told


def test_labels_beside_frames_without_steps_are_no_test(harvested):
    """`validate --labels` of a committee that wrote no steps: they come from the equal labels; what may be near, for
    want of them, is no test."""
    dataset = _dataset(harvested, TrainSettings(), None)
    old = replace(dataset, examples=tuple(replace(e, step=None) for e in dataset.examples))
    assert unseen(harvested, old) == unseen(harvested, dataset) == dataset.testing
    others = [replace(e, frame=replace(e.frame, positions=2 * e.frame.positions)) for e in harvested]
    learned = {e.simulation for e in old.training}
    assert unseen(others, old) == [e for e in others if e.simulation not in learned]


def test_dataset_holds_what_is_left(harvested, tmp_path: Path):
    """What is too near is in no dataset, and counted; simulation and step come back from the file."""
    settings = TrainSettings(apart=200, seed=0)
    dataset = _dataset(harvested, settings, None)
    assert gap(dataset.testing, dataset.training) >= 200
    lost = len(harvested) - len(dataset.examples)
    assert lost > 0
    said = format_division(Path("new"), harvested, dataset, settings)
    count = len(set(blocks(dataset.testing, 200).tolist()))
    assert f"{len(dataset.testing)} are held out in {count} blocks; {lost} closer than 200 steps" in said
    dataset.write(tmp_path)
    back = Dataset.read(tmp_path)
    assert [(e.simulation, e.step) for e in back.examples] == [(e.simulation, e.step) for e in dataset.examples]
    again = from_file(tmp_path / "frames.extxyz", None)
    assert [(e.simulation, e.step) for e in again] == [(e.simulation, e.step) for e in dataset.examples]
    later = _dataset([replace(e, simulation="other") for e in harvested[:3]], TrainSettings(), tmp_path)
    later.write(tmp_path / "later")
    kept = Dataset.read(tmp_path / "later").before
    assert [(m.held_out, m.simulation, m.step) for m in kept] == [
        (m.held_out, m.simulation, m.step) for m in later.before
    ]
    assert {met.simulation for met in later.before} == {"long", "short", "sparse"}


def test_steps_come_from_the_queue(examples, tmp_path: Path):
    """A kept frame knows its simulation and step; a frame that the user brought has a file's hash in its place."""
    queue = Queue(tmp_path / "q.db", create=True)
    for n, e in enumerate(examples[:2]):
        spread = np.ones(len(e.frame.numbers))
        models = ("sha256:1",) if n == 0 else ()
        queue.add(
            KeptFrame(e.frame, 1, 0.1, spread, np.zeros(len(models)), models, "sha256:3", step=17 if n == 0 else None)
        )
        queue.claim("me", 60)
        queue.finish(n + 1, "me", e.label.to_dict())
    assert [(e.simulation, e.step) for e in from_queue(queue, None)] == [("sha256:3", 17), (None, None)]


def test_members_choose_their_epoch_on_blocks_too(harvested):
    """What chooses the best epoch is no neighbour of what is learned, but for frames at the ends of a contact."""
    drawn, other = _draw(harvested, TrainSettings(apart=100), 1)
    assert len(drawn) + len(other) == len(harvested)
    near = [e for e in other if gap([e], drawn) < 100]
    alone = [e for e in sides(harvested, split(harvested, 0.2, 1, apart=0))[0] if gap([e], harvested[:0]) < 100]
    assert not alone
    assert 0.1 < len(other) / len(harvested) < 0.3
    assert len(near) < len(other)


def test_alpha_is_not_fitted_on_what_tests_it(harvested):
    """The halves of what is held out share no block, and none of their frames are close; a single block has no test."""
    some = [e for e in harvested if e.simulation != "short"]
    n = np.arange(len(some))
    errors = Errors(np.ones(len(some)), np.zeros(len(some)), np.ones(len(some)), n, 3)
    found = Residuals(tuple(some), errors, None, errors, None, apart=300)
    fit, test = found.halves(errors)
    assert gap([some[i] for i in fit], [some[i] for i in test]) >= 300
    assert min(len(fit), len(test)) > 0.3 * len(some)
    short = [e for e in harvested if e.simulation == "short"]
    found = Residuals(tuple(short), errors, None, errors, None, apart=300)
    assert [] in found.halves(errors.take(range(len(short))))


def test_error_bars_are_those_of_blocks():
    """A hundred frames in ten blocks of one error each are ten measurements: the bar is the scatter of repeated draws,
    three times what counting frames gives; one block has none."""

    def drawn(seed: int, block: np.ndarray | None) -> Errors:
        error = np.repeat(np.random.default_rng(seed).normal(size=10), 10)
        return Errors(error, np.zeros(100), None, np.arange(100), 3, block)

    number = np.repeat(np.arange(10), 10)
    scatter = np.std([drawn(seed, number).rmse[0] for seed in range(300)])
    bars = [drawn(seed, number).rmse[1] for seed in range(300)]
    assert np.mean(bars) == pytest.approx(scatter, rel=0.2)
    assert np.mean([drawn(seed, None).rmse[1] for seed in range(300)]) < 0.4 * scatter
    assert np.isnan(drawn(0, np.zeros(100, dtype=int)).rmse[1])
    assert drawn(0, number).take(range(20)).block.tolist() == number[:20].tolist()


def test_labels_near_to_what_was_learned_are_no_test(harvested):
    """`validate --labels`: a frame some steps from a learned one is left out, as the very frame is."""
    dataset = _dataset(harvested, TrainSettings(), None)
    beside = [replace(e, frame=replace(e.frame, positions=2 * e.frame.positions), step=e.step + 60) for e in harvested]
    found = unseen(beside, dataset)
    assert gap(found, dataset.training) >= APART
    assert 0 < len(found) < 0.4 * len(beside)
    assert unseen(dataset.examples, dataset) == dataset.testing
    assert unseen([replace(e, simulation="another") for e in beside], dataset)
    assert KnownFrame(beside[0].frame, True).held_out
