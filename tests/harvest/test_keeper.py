"""From an evaluation to the queue: what of an earlier run counts."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.config import SelectionSettings
from beadwork.errors import QueueError
from beadwork.events import Event, FrameKept, Moment, Note, Waiting
from beadwork.frame import Frame
from beadwork.harvest.keeper import Keeper
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.harvest.select import SelectionWindow
from beadwork.harvest.writer import QueueWriter
from beadwork.ipi.simulation import read_simulation
from beadwork.observe.record import Record, format_summary
from beadwork.potential.evaluation import Evaluation, Novelty, Spread
from beadwork.potential.load import load


def water(seed: int) -> Frame:
    """One molecule, shaken; every seed another."""
    positions = np.array([[0, 0, 0.12], [0, 0.76, -0.47], [0, -0.76, -0.47]])
    shaken = positions + np.random.default_rng(seed).normal(0, 0.1, positions.shape)
    return Frame(np.array([8, 1, 1]), shaken, np.zeros((3, 3)), (False, False, False))


GUARD = 5.0
#: hashes of a baseline and a member
MODELS = ("a" * 64, "b" * 64)


@pytest.mark.parametrize(
    ("labelled", "models", "free"), [(0, MODELS, 1), (2, MODELS, 3), (3, MODELS, 4), (0, ("a" * 64, "d" * 64), 4)]
)
def test_what_does_not_count_for_the_limit(tmp_path: Path, labelled: int, models: tuple[str, str], free: int) -> None:
    """The run after labels and training asks for frames again, from the same input, and so does a new committee; one
    that was killed counts on.

    What is labelled, or was kept for another committee, is still known: a frame like it is not kept.
    """
    simulation = "c" * 64
    queue = Queue(tmp_path / "q.db", create=True)
    rows = [KeptFrame(water(n), n, 0.01, np.ones(3), np.ones(2), MODELS, simulation, step=n) for n in range(3)]
    queue.add_all(rows)
    for n in range(labelled):
        queue.claim("me", 60, n + 1)
        queue.finish(n + 1, "me", {"energy": 0.0})
    keeper = Keeper(
        SelectionSettings(queue=str(tmp_path / "q.db"), keep_most=4, cooldown=0), GUARD, simulation, lambda event: None
    )
    keeper("address", Moment(50), [water(n) for n in range(20)], replace(answered([0.2] * 20, None), models=models))
    keeper.close()
    found = queue.rows()[3:]
    assert len(found) == free
    assert not {row.fingerprint for row in found} & {row.fingerprint for row in queue.rows()[:3]}


def test_a_committee_that_is_activated_counts_from_0(tmp_path: Path) -> None:
    """While i-PI runs: the limit that the old committee had reached is the new one's in full, and with it that of a
    generation of a live loop."""
    config = SelectionSettings(queue=str(tmp_path / "q.db"), keep_most=2, cooldown=0)
    keeper = Keeper(config, GUARD, "c" * 64, lambda event: None)
    for step, member in enumerate("bbbddd"):
        answer = replace(answered([0.2], None), models=("a" * 64, member * 64))
        keeper("address", Moment(step), [water(step)], answer)
    keeper.close()
    assert [row.kept.step for row in Queue(config.queue).rows()] == [0, 1, 3, 4]


#: force spreads of the frames of one evaluation, eV/Å
SPREADS = [factor * unit for unit in (1.0, GUARD) for factor in (0.3, 0.5, 0.51, 4.9)]


def answered(spreads: list[float], usual: float | None) -> Evaluation:
    """What two members say of so many molecules, each with this largest force spread."""
    count = len(spreads)
    force = np.repeat(spreads, 3)
    spread = Spread(np.zeros((2, count)), np.zeros(count), force, np.array(spreads), np.zeros(count, int), usual)
    return Evaluation(
        np.zeros(count), np.zeros((3 * count, 3)), np.zeros((count, 3, 3)), 3 * np.arange(count + 1), spread=spread
    )


@pytest.mark.parametrize(
    ("keep_force", "usual", "kept"),
    [(None, None, 7), (None, 0.0036, 7), (None, 0.4, 6), (None, 6.0, 1), ([0.05, 0.5], 0.0036, 1), ([0.4], None, 7)],
)
def test_no_spread_vanishes_between_band_and_guard(
    tmp_path: Path, keep_force: list[float] | None, usual: float | None, kept: int
) -> None:
    """Frames at 0.3 to 4.9 eV/Å and at 0.3 to 4.9 times the guard's mark are kept, or counted with how far up they
    are, or below the band; the summary has every one of them, and says so in words.
    """
    config = SelectionSettings(queue=str(tmp_path / "q.db"), keep_force=keep_force, cooldown=0)
    record = Record(tmp_path)
    keeper = Keeper(config, GUARD, "c" * 64, record)
    frames = [water(n) for n in range(len(SPREADS))]
    keeper("address", Moment(3), frames, answered(SPREADS, usual))
    band = keeper.selector.window
    keeper.close()
    summary = record.summary()
    record.close(summary)
    low, high = band.force_low or 0.0, band.force_high or np.inf
    assert summary["frames_kept"] == kept == sum(low <= s < high for s in SPREADS)
    below, above = [s for s in SPREADS if s < low], [s for s in SPREADS if s >= high]
    assert kept + len(below) + len(above) == len(SPREADS)
    assert sorted(row.kept.max_force_spread for row in Queue(config.queue).rows()) == sorted(
        s for s in SPREADS if low <= s < high
    )
    if above:
        assert summary["frames_passed_over"] == {"above": {"frames": len(above), "force_spread_max": max(above)}}
        assert f"above the selection window: {len(above)} frames, up to {max(above):.4f} eV/Å" in format_summary(
            summary, tmp_path, None
        )
    else:
        assert summary["frames_passed_over"] == {}


@pytest.mark.parametrize(
    ("moment", "kept", "steps"),
    [
        (lambda k: Moment(k // 3), [0, 9, 18], [0, 3, 6]),  # three evaluations a step, cool-down of three steps
        (lambda k: Moment(None), [0, 3, 6, 9, 12, 15, 18], [None] * 7),  # evaluations
        # known within ten: it takes twelve steps to be sure of three
        (lambda k: Moment(10 * (k // 5) + 1, 9), [0, 10], [None, None]),
    ],
)
def test_cooldown_and_step_of_what_is_kept(
    tmp_path: Path, moment: Callable[[int], Moment], kept: list[int], steps: list[int | None]
) -> None:
    """It counts steps, however many evaluations one has, and evaluations where none is known; a row has a step where it
    is known, and where not it has none."""
    config = SelectionSettings(queue=str(tmp_path / "q.db"), keep_force=[0.1], cooldown=3, distance=1e-9)
    keeper = Keeper(config, GUARD, "c" * 64, lambda event: None)
    for k in range(20):
        keeper("address", moment(k), [water(k)], answered([0.3], None))
    keeper.close()
    rows = [row.kept for row in Queue(config.queue).rows()]
    assert [row.evaluation - 1 for row in rows] == kept
    assert [row.step for row in rows] == steps


def test_novelty_keeps_what_the_spread_does_not(tmp_path: Path) -> None:
    """A frame that is new to a model is kept whatever the spread says, and its row says so, of which atom and to whom;
    where the baseline is served alone, its frames are the committee's, and are not kept twice."""
    ptr = 3 * np.arange(3)
    of = {"baseline": np.array([0.5, 0.6, 0.4, 0.9, 4.0, 1.1]), "delta": np.array([0.5, 0.6, 0.4, 0.9, 1.9, 1.1])}
    novelty = Novelty(of, np.maximum(*of.values()), np.array([0.6, 4.0]), np.array([1, 1]))
    evaluation = Evaluation(
        np.zeros(2),
        np.zeros((6, 3)),
        np.zeros((2, 3, 3)),
        ptr,
        spread=answered([0.001, 0.002], 0.1).spread,
        novelty=novelty,
        models=("a" * 64,),
    )
    config = SelectionSettings(queue=str(tmp_path / "q.db"), cooldown=0)
    record = Record(tmp_path)
    keeper = Keeper(config, GUARD, "c" * 64, record)
    keeper("baseline", Moment(3), [water(2), water(3)], replace(evaluation, spread=None))
    keeper("address", Moment(3), [water(0), water(1)], evaluation)
    keeper.close()
    (row,) = Queue(config.queue).rows()
    assert row.kept.why == ("novelty",)
    assert row.kept.newest == (4.0, 1, "baseline")
    assert np.array_equal(row.kept.novelty["delta"], of["delta"][3:])
    summary = record.summary()
    record.close(summary)
    assert summary["frames_kept_for"] == {"novelty": 1}


@pytest.mark.parametrize(
    ("whose", "kept"), [("both", [0, 1]), ("baseline", [0]), ("delta", [1]), ("delta of a model that is silent", [])]
)
def test_whose_novelty_keeps_a_frame(tmp_path: Path, whose: str, kept: list[int]) -> None:
    """One frame is new to the baseline alone, one to Δ alone: `keep-novelty-of` says which of them asks for a label.
    The row has both parts all the same; a part that does not know what it was trained on asks for nothing."""
    of = {"baseline": np.array([0.5, 4.0, 0.4, 0.9, 0.2, 0.1]), "delta": np.array([0.5, 0.6, 0.4, 0.9, 1.9, 1.1])}
    whose, _, silent = whose.partition(" of ")
    if silent:
        del of["delta"]
    atoms = np.maximum.reduce(list(of.values()))
    novelty = Novelty(of, atoms, atoms.reshape(2, 3).max(axis=1), np.array([1, 1]))
    evaluation = replace(answered([0.001, 0.002], 0.1), novelty=novelty, models=("a" * 64,))
    config = SelectionSettings(queue=str(tmp_path / "q.db"), cooldown=0, keep_novelty_of=whose)
    keeper = Keeper(config, GUARD, "c" * 64, lambda event: None)
    frames = [water(0), water(1)]
    keeper("address", Moment(3), frames, evaluation)
    keeper.close()
    rows = [row.kept for row in Queue(config.queue).rows()]
    assert [np.array_equal(row.frame.positions, frames[k].positions) for row, k in zip(rows, kept, strict=True)] == [
        True
    ] * len(kept)
    for row, k in zip(rows, kept, strict=True):
        assert set(row.novelty) == {"baseline", "delta"}
        assert np.array_equal(row.novelty["baseline"], of["baseline"].reshape(2, 3)[k])


def test_novelty_and_spread_are_two_reasons() -> None:
    """A frame is kept for what passes its low mark; first the one that passes it furthest."""
    band = SelectionWindow(0.1, 5.0, novelty_low=1.2)
    assert band.reasons(0.2, 0.0, 1.0) == ("spread",)
    assert band.reasons(0.01, 0.0, 1.2) == ("novelty",)
    assert band.reasons(0.1, 0.0, 3.0) == ("spread", "novelty")
    force, new = np.array([0.2, 0.0, 0.05, 6.0]), np.array([0.1, 3.6, 1.0, 9.0])
    inside, above = band.classify(force, np.zeros(4), new)
    assert inside.tolist() == [True, True, False, False]
    assert above.tolist() == [False, False, False, True]
    assert band.excess(force, np.zeros(4), new).argsort().tolist() == [2, 0, 1, 3]


def test_default_band_is_worth_having() -> None:
    """With the shipped D3 committee H2 in water, which it never saw, is in the band; water is not. The old fixed band
    of 0.05 to 0.5 eV/Å had neither."""
    root = Path(__file__).parents[2]
    committee = load(None, [root / "models" / "water-revpbe0-d3"], "torchscript")
    within = []
    for name in ("water", "h2-water"):
        start = read_simulation(root / "inputs" / name / "input.xml").systems[0].frame()
        spread = committee.evaluate([start]).spread
        assert spread is not None
        within.append(
            SelectionWindow.of(SelectionSettings(), 5.0, spread.usual).classify(spread.largest, np.zeros(1))[0].tolist()
        )
        assert not SelectionWindow(0.05, 0.5).classify(spread.largest, np.zeros(1))[0].any()
    assert within == [[False], [True]]


def test_band_follows_the_committee_that_answers(tmp_path: Path) -> None:
    """A committee taken up while a run goes on brings the band of its own card; one that the user gave stays."""
    for keep_force, bands in ((None, [(0.0036, 5.0), (0.35, 5.0)]), ([0.1], [(0.1, None)] * 2)):
        config = SelectionSettings(queue=str(tmp_path / f"{keep_force}.db"), keep_force=keep_force)
        keeper = Keeper(config, GUARD, "c" * 64, lambda event: None)
        for usual, marks in zip((0.0036, 0.35), bands, strict=True):
            keeper("address", Moment(0), [water(0)], answered([0.0], usual))
            assert (keeper.selector.window.force_low, keeper.selector.window.force_high) == marks
        keeper.close()


def test_everybody_hears_of_a_queue_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in words when it begins and when it ends, and as an event with how many frames wait, those that were taken
    just now among them: a kill would take them along. None is lost."""
    config = SelectionSettings(queue=str(tmp_path / "q.db"), keep_force=[0.1], cooldown=0)
    seen: list[Event] = []
    keeper = Keeper(config, GUARD, "c" * 64, seen.append)
    broken = [True]
    add_all = Queue.add_all

    def store(queue: Queue, frames: list[KeptFrame]) -> list[int | None]:
        if broken[0]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return add_all(queue, frames)

    monkeypatch.setattr(Queue, "add_all", store)
    for step in range(3):
        keeper("address", Moment(step), [water(step)], answered([0.2], None))
        deadline = time.monotonic() + 30
        while keeper.writer.error is None and time.monotonic() < deadline:
            time.sleep(0.001)
    broken[0] = False
    assert keeper.writer.flush(30)
    keeper("address", Moment(3), [water(3)], answered([0.0], None))
    keeper.close()
    why = f"the queue cannot be written (OSError: [Errno {errno.EMFILE}] {os.strerror(errno.EMFILE)})"
    assert [one for one in seen if isinstance(one, Waiting)] == [
        *(Waiting(frames, why) for frames in (1, 2, 3)),
        Waiting(0, ""),
    ]
    assert [one.text for one in seen if isinstance(one, Note)] == [
        f"{why}; 1 frames wait in memory to be kept",
        "the queue can be written again, and the frames that waited are kept",
    ]
    assert sorted(one.step or 0 for one in seen if isinstance(one, FrameKept)) == [0, 1, 2]
    assert len(Queue(config.queue)) == 3


def test_what_is_lost_at_the_end_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that found no room in memory, and those that were never stored: an error, and one count of both."""
    config = SelectionSettings(queue=str(tmp_path / "q.db"), keep_force=[0.1], cooldown=0)
    keeper = Keeper(config, GUARD, "c" * 64, lambda event: None)

    def store(queue: Queue, frames: list[KeptFrame]) -> list[int | None]:
        raise QueueError("database is locked")

    monkeypatch.setattr(Queue, "add_all", store)
    keeper.writer._max_pending = 2
    for step in range(3):
        keeper("address", Moment(step), [water(step)], answered([0.2], None))
    close = QueueWriter.close
    monkeypatch.setattr(QueueWriter, "close", lambda self: close(self, 0.2))
    with pytest.raises(QueueError, match="2 frames could not be written to the queue: database is locked"):
        keeper.close()
    assert keeper.lost == 3
