"""When a committee may be taken up, and what `--delta` may name. Real i-PI and real models are in end_to_end/."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import beadwork.serve.hot_swap
from beadwork.config import ModelSettings
from beadwork.errors import ModelError
from beadwork.events import Activated, Event, Moment, Note, Refused
from beadwork.frame import Frame
from beadwork.potential.analytic import Harmonic
from beadwork.potential.bundle import MODEL, NOVELTY, WEIGHTS, Card, members_of, write_pointer
from beadwork.potential.limits import Thresholds
from beadwork.potential.potential import Potential
from beadwork.serve.hot_swap import Swap

FRAME = Frame(np.array([8]), np.zeros((1, 3)), 10 * np.eye(3))


def swapping(
    *delta: Path | str, told: list[Event] | None = None, limits: Thresholds | None = None, **models: Any
) -> Swap:
    """What watches these, and appends its events to `told`."""
    settings = ModelSettings(delta=[str(name) for name in delta], **models)
    return Swap(settings, limits or Thresholds(), ([] if told is None else told).append)


def serving(swap: Swap, old: Potential, frame: Frame = FRAME) -> Swap:
    """The same, of a forcefield "here" of one bead, whose first structure `old` has answered."""
    swap.serve("here", old, np.array([8]), 1)
    swap.answered("here", [frame], old.evaluate([frame]))
    return swap


def last(swap: Swap) -> list[list[tuple[Frame, float]]]:
    """What a new committee is checked on."""
    return [list(served.last) for served in swap._served]


@pytest.fixture
def pointer(tmp_path: Path) -> Path:
    """A file that names a committee of two."""
    for name in ("first", "first/a", "first/b"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "committee.toml").write_text('members = ["a", "b"]\n')
    (tmp_path / "current").write_text("first\n")
    return tmp_path / "current"


def test_taken_once_and_only_by_its_forcefield() -> None:
    """A committee that is ready is given to the forcefield that it was checked for, once, and an event says so."""
    told: list[Event] = []
    swap = swapping("a", "b", told=told)
    old, other = (Potential(None, [Harmonic(1.0), Harmonic(2.0)]) for _ in range(2))
    new = Potential(None, [Harmonic(1.5), Harmonic(2.5)])
    swap.serve("here", old, np.array([8]), 2)
    swap.serve("there", other, np.array([8]), 2)
    assert swap.take("here", old, Moment(5), 9, begins=True) is old
    swap._served[0].next = new, "checked"
    assert swap.take("there", other, Moment(5), 10, begins=True) is other
    assert swap.take("here", old, Moment(5), 11, begins=False) is old
    assert swap.take("here", old, Moment(6), 12, begins=True) is new
    assert swap.take("here", new, Moment(7), 13, begins=True) is new
    taken = [(event.address, event.step) for event in told if isinstance(event, Activated)]
    assert taken == [("here", 0), ("there", 0), ("here", 6)]
    swap.close()


def test_where_nobody_can_tell_a_step_it_waits_and_says_so_once() -> None:
    """No evaluation is known to begin a step: the old committee answers, one Note says what to do, and the next i-PI,
    whose first evaluation begins one, is answered by the new committee. Its step may be unknown then."""
    told: list[Event] = []
    swap = swapping("a", "b", told=told)
    old, new = (Potential(None, [Harmonic(k), Harmonic(2 * k)]) for k in (1.0, 1.5))
    swap.serve("here", old, np.array([8]), None)
    swap._served[0].next = new, "checked"
    for evaluation in (5, 6):
        assert swap.take("here", old, Moment(None), evaluation, begins=None) is old
    assert swap.take("here", old, Moment(None), 7, begins=True) is new
    (note,) = [event.text for event in told if isinstance(event, Note)]
    assert "cannot be told where i-PI's steps begin" in note
    assert "with a file EXIT" in note
    taken = told[-1]
    assert isinstance(taken, Activated)
    assert (taken.step, taken.evaluation) == (None, 7)
    swap.close()


def test_two_forcefields_of_one_potential(tmp_path: Path) -> None:
    """Each is known by its address: a committee is taken up by the one that begins a step, said of that one, and stays
    ready for the other; what was answered is remembered by the one that answered."""
    told: list[Event] = []
    swap = swapping("a", "b", told=told)
    old = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    new = Potential(None, [Harmonic(1.5), Harmonic(2.5)])
    for address in ("here", "there"):
        swap.serve(address, old, np.array([8]), 2)
    swap.answered("there", [FRAME], old.evaluate([FRAME]))
    assert [len(served.last) for served in swap._served] == [0, 1]
    for served in swap._served:
        served.next = new, "checked"
    assert swap.take("there", old, Moment(6), 12, begins=True) is new
    assert swap.take("here", old, Moment(9), 15, begins=True) is new
    taken = [(event.address, event.step) for event in told if isinstance(event, Activated)]
    assert taken[2:] == [("there", 6), ("here", 9)]
    swap.close()


def test_the_jump_is_that_of_what_is_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a weighted baseline the jump that is told is that of Δ as it is weighed, and what the run then sees."""
    toys = [Harmonic(1.0), Harmonic(2.0)]
    old = Potential(Harmonic(1.0), toys, baseline_uncertainty=0.5, reference={8: 0.3})
    new = Potential(None, [Harmonic(1.5), Harmonic(3.5)], alpha=1.1, reference={8: 0.3})
    monkeypatch.setattr("beadwork.serve.hot_swap.load_for", lambda config: new)
    monkeypatch.setattr("beadwork.serve.hot_swap._verified_engines", lambda potential: "both agree")
    frame = Frame(np.array([8]), np.array([[1.0, 0.5, 0.0]]), 10 * np.eye(3))
    swap = serving(swapping("a", "b", baseline="c", baseline_uncertainty=0.5), old, frame)
    ((ready, said),) = swap._check(last(swap))
    jump = ready.evaluate([frame]).energies[0] - old.evaluate([frame]).energies[0]
    assert abs(jump) > 0.01
    assert f"jumps by {jump:+.6f} eV per bead" in said
    swap.close()


@pytest.mark.parametrize("known", [True, False])
def test_what_else_changes_is_said(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another alpha changes band, marks and error bars; a committee.toml that is about others takes the calibration
    away. Of two forcefields the one that has the new committee already keeps it, and the other still gets it."""
    told: list[Event] = []
    old = Potential(None, [Harmonic(1.0), Harmonic(2.0)], alpha=2.3)
    new = Potential(None, [Harmonic(1.5), Harmonic(2.5)], weights=[1.0, 3.0])
    new.notes = ["the spread is not calibrated"]
    monkeypatch.setattr("beadwork.serve.hot_swap.load_for", lambda config: new)
    monkeypatch.setattr("beadwork.serve.hot_swap._verified_engines", lambda potential: "both agree")
    swap = swapping("a", "b", told=told)
    for address, potential in (("here", new if known else old), ("there", old)):
        swap.serve(address, potential, np.array([8]), 2)
        swap.answered(address, [FRAME], potential.evaluate([FRAME]))
    here, there = swap._check(last(swap))
    assert (here is None) == known
    assert there is not None
    assert "the spread is not calibrated" in there[1]
    assert "alpha 2.3 -> 1; energy_alpha 2.3 -> 1; weights [0.5, 0.5] -> [0.25, 0.75]" in there[1]
    swap.close()


def carded(*novelty: str | None) -> Potential:
    """As many members as there are words, of the same models always, with cards that have this hash of what they were
    trained on."""
    potential = Potential(None, [Harmonic(float(k)) for k, _ in enumerate(novelty, 1)])
    potential.cards = tuple(
        Card(Path(f"m/{k}"), f"{k}", (8,), 1.0, "float64", None, {MODEL: f"{k}"} | ({NOVELTY: of} if of else {}))
        for k, of in enumerate(novelty)
    )
    return potential


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (("a", "b"), ("a", "b"), None),
        (("a", "b"), ("a", "c"), ""),
        ((None, None), ("a", "b"), "members that know what they were trained on 0 -> 2"),
        (("a", "b"), ("a", None), "members that know what they were trained on 2 -> 1"),
        (("a", "b"), (None, None), "nothing is known of what is new to Δ"),
    ],
)
def test_what_a_committee_was_trained_on_belongs_to_it(
    before: tuple[str | None, ...],
    after: tuple[str | None, ...],
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same models that know something else of their training are another committee, which is taken up; one that
    knows nothing where the old one did says so, or a run would see nothing new from then on and no one would know."""
    old, new = carded(*before), carded(*after)
    monkeypatch.setattr("beadwork.serve.hot_swap.load_for", lambda config: new)
    monkeypatch.setattr("beadwork.serve.hot_swap._verified_engines", lambda potential: "both agree")
    swap = serving(swapping("a", "b"), old)
    (found,) = swap._check(last(swap))
    swap.close()
    assert (found is None) == (said is None)
    if found is not None:
        assert said in found[1]
        assert ("trained on" in found[1]) == bool(said)


@pytest.mark.parametrize(("head", "file", "same"), [("a", "1", True), ("a", "2", False), ("b", "1", False)])
def test_every_file_of_a_model_counts(head: str, file: str, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is named by its weights, and what runs may be TorchScript: bundles of the same weights with another
    model.pt, or of another head, are another committee, which is taken up."""
    old, new = carded("n"), carded("n")
    for potential, files, name in ((old, "1", "a"), (new, file, head)):
        hashes = {WEIGHTS: "w", MODEL: files, NOVELTY: "n"}
        potential.cards = (Card(Path("m"), "m", (8,), 1.0, "float64", name, hashes),)
    monkeypatch.setattr("beadwork.serve.hot_swap.load_for", lambda config: new)
    monkeypatch.setattr("beadwork.serve.hot_swap._verified_engines", lambda potential: "both agree")
    swap = serving(swapping("a"), old)
    (found,) = swap._check(last(swap))
    swap.close()
    assert (found is None) == same


def test_extras_of_one_model_keep_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extras of one model hold its novelty alone: without it they would be empty, and i-PI ends over a column that is
    gone. Such a model is refused with the command that mends it."""
    old, new = carded("a"), carded(None)
    monkeypatch.setattr(old.members[0], "training_set", object(), raising=False)
    monkeypatch.setattr("beadwork.serve.hot_swap.load_for", lambda config: new)
    swap = serving(swapping("a"), old)
    with pytest.raises(ModelError, match=r"does not know what it was trained on.*\(beadwork models novelty\)"):
        swap._check(last(swap))
    swap.close()


def test_a_delta_of_another_baseline_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline stays through a run, so a new Δ that is the difference to another one is refused: their sum would be
    a number that means nothing; and so is one that learned less an addition which is not served."""
    mine, other = (Card(Path(name), name, (8,), 5.0, "float64", None, {MODEL: name * 64}) for name in "cd")
    fresh = carded("a")
    cases = (
        (other, {}, "is the difference to the baseline sha256:ddd"),
        (mine, {"add": {"d3bj": "PBE"}}, "without d3bj=PBE, and nothing is added here"),
        (mine, {}, ""),
    )
    for baseline, more, refused in cases:
        made_for = replace(fresh.cards[0], about={"baseline": baseline.hash, **more})
        new = Potential(None, fresh.members, cards=(made_for,))
        monkeypatch.setattr("beadwork.serve.hot_swap.load_for", lambda config, new=new: new)
        old = Potential(Harmonic(3.0), [Harmonic(1.0)], cards=(mine, replace(made_for, sha256={MODEL: "e" * 64})))
        swap = serving(swapping("a"), old)
        if refused:
            with pytest.raises(ModelError, match=refused):
                swap._check(last(swap))
        else:
            assert swap._check(last(swap))[0] is not None
        swap.close()


@pytest.mark.parametrize("stop", [True, False])
def test_a_committee_that_would_end_the_run_is_refused(stop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its spread on the last structures is past the mark that ends a run; where marks are counted it is taken up."""
    old = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    far = Potential(None, [Harmonic(1.0), Harmonic(2.0)], alpha=1e4)
    monkeypatch.setattr("beadwork.serve.hot_swap.load_for", lambda config: far)
    monkeypatch.setattr("beadwork.serve.hot_swap._verified_engines", lambda potential: "both agree")
    frame = Frame(np.array([8]), np.full((1, 3), 0.1), 10 * np.eye(3))
    swap = serving(swapping("a", "b", limits=Thresholds(stop=stop)), old, frame)
    if stop:
        with pytest.raises(
            ModelError, match=r"its force spread on the last structures is up to 707\.1 eV/Å, above the"
        ):
            swap._check(last(swap))
    else:
        assert swap._check(last(swap))[0] is not None
    swap.close()


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    """SIGHUP with nothing at the place that --delta names: an event has the reason, and the old committee goes on."""
    told: list[Event] = []
    swap = swapping(tmp_path / "a", tmp_path / "b", told=told)
    old = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    swap.serve("here", old, np.array([8]), 1)
    swap.ask()
    swap.look()
    assert swap._checking is None  # nothing was answered yet that it could be checked on
    swap.answered("here", [FRAME], old.evaluate([FRAME]))
    swap.look()
    assert swap._checking is not None
    swap._checking.exception(timeout=60)
    swap.look()
    (refused,) = [event for event in told if isinstance(event, Refused)]
    assert refused.folder == old.folder
    assert "missing" in refused.why
    assert swap.take("here", old, Moment(1), 2, begins=True) is old
    swap.close()


def test_what_delta_may_name(tmp_path: Path) -> None:
    """Bundles, a committee's folder, or a file that names one, counted from where the file lies."""
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "committee.toml").write_text('members = ["delta-0", "delta-1"]\n')
    members = [folder / "delta-0", folder / "delta-1"]
    assert members_of(["x", "y"]) == [Path("x"), Path("y")]
    assert members_of(["x"]) == [Path("x")]
    assert members_of([folder]) == members
    pointer = tmp_path / "current"
    pointer.write_text("models/mine\n")
    assert members_of([pointer]) == members


@pytest.mark.parametrize(
    ("text", "sentence"), [("", "names no committee"), ("\n", "names no committee"), ("elsewhere\n", "there is no")]
)
def test_pointer_to_nothing(tmp_path: Path, text: str, sentence: str) -> None:
    """A pointer that is empty (somebody is writing it) or names no committee is refused with a sentence."""
    pointer = tmp_path / "current"
    pointer.write_text(text)
    with pytest.raises(ModelError, match=sentence):
        members_of([pointer])


def test_point_checks_first(tmp_path: Path) -> None:
    """A folder that is no committee, or lacks a member, is not pointed to."""
    pointer = tmp_path / "current"
    with pytest.raises(ModelError, match="is no committee"):
        write_pointer(pointer, tmp_path)
    (tmp_path / "committee.toml").write_text('members = ["delta-0"]\n')
    with pytest.raises(ModelError, match="is missing"):
        write_pointer(pointer, tmp_path)
    assert not pointer.exists()


def test_a_pointer_of_nuls_is_refused(pointer: Path) -> None:
    """What a crash of the file system leaves for a pointer is refused like any other: the run goes on."""
    told: list[Event] = []
    old = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    swap = serving(swapping(pointer, told=told), old)
    pointer.write_bytes(bytes(100))
    swap.ask()
    swap.look()
    assert swap._checking is not None
    swap._checking.exception(timeout=60)
    swap.look()
    assert any(isinstance(event, Refused) for event in told)
    assert swap.take("here", old, Moment(1), 2, begins=True) is old
    swap.close()


def test_a_check_that_never_returns_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that hangs under the new committee: one Note, the old one answers, and the end waits some seconds only."""
    told: list[Event] = []
    forever = threading.Event()
    monkeypatch.setattr(beadwork.serve.hot_swap, "load_for", lambda config: forever.wait())
    monkeypatch.setattr(beadwork.serve.hot_swap, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(beadwork.serve.hot_swap, "EXIT_TIMEOUT_SECONDS", 0.5)
    old = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    swap = serving(swapping("a", "b", told=told), old)
    swap.ask()
    until = time.monotonic() + 20
    while not any(isinstance(event, Note) for event in told):
        assert time.monotonic() < until
        swap.look()
        time.sleep(0.05)
    swap.look()
    (note,) = [event.text for event in told if isinstance(event, Note)]
    assert "see whether the disk of a, b answers" in note
    assert swap.take("here", old, Moment(1), 2, begins=True) is old
    begin = time.monotonic()
    swap.close()
    assert 0.4 < time.monotonic() - begin < 10
    forever.set()


def test_a_pointer_whose_disk_does_not_answer_holds_up_no_step(pointer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """i-PI waits for each of our answers, so the pointer is looked at beside them: that it does not answer is said
    once, and when it answers again, a change of it is seen."""
    told: list[Event] = []
    swap = swapping(pointer, told=told)
    old = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    swap.serve("here", old, np.array([8]), 1)
    swap._asked = False
    answers = threading.Event()
    monkeypatch.setattr(beadwork.serve.hot_swap, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(beadwork.serve.hot_swap, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(swap, "_stamp", lambda: (answers.wait(60), (1, 2, 3))[1])
    until = time.monotonic() + 20
    while not any(isinstance(event, Note) for event in told):
        assert time.monotonic() < until
        swap.look()
        time.sleep(0.02)
    swap.look()
    (note,) = [event.text for event in told if isinstance(event, Note)]
    assert f"{pointer} does not respond since 0 s: see whether its disk does" in note
    assert not swap._asked
    swap.close()  # waits for a check alone
    answers.set()
    while not swap._asked:
        assert time.monotonic() < until
        swap.look()
        time.sleep(0.02)


def test_no_thread_is_started_in_the_midst_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for a thread `Thread.start` waits for it for ever, and i-PI for us: the one there is does all, and
    goes on after a job for whose end there was no memory."""
    told: list[Event] = []
    old = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
    swap = serving(swapping(tmp_path / "a", tmp_path / "b", told=told), old)

    def never(thread: threading.Thread) -> None:
        raise AssertionError("a thread was started")

    def no_memory() -> None:
        raise MemoryError

    monkeypatch.setattr(threading.Thread, "start", never)
    swap._jobs.put(no_memory)
    swap.ask()
    until = time.monotonic() + 60
    while not any(isinstance(event, Refused) for event in told):
        assert time.monotonic() < until
        swap.look()
        time.sleep(0.01)
    swap.close()


def test_python_ends_though_a_check_never_does(tmp_path: Path) -> None:
    """The new committee's card is a FIFO that nobody writes to: the process ends all the same."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / "card.toml")
    program = """
        import sys
        import numpy as np
        import beadwork.serve.hot_swap
        from beadwork.config import ModelSettings
        from beadwork.frame import Frame
        from beadwork.potential.analytic import Harmonic
        from beadwork.potential.limits import Thresholds
        from beadwork.potential.potential import Potential
        beadwork.serve.hot_swap.EXIT_TIMEOUT_SECONDS = 0.5
        swap = beadwork.serve.hot_swap.Swap(ModelSettings(delta=sys.argv[1:]), Thresholds(), lambda event: None)
        old = Potential(None, [Harmonic(1.0), Harmonic(2.0)])
        swap.serve("here", old, np.array([8]), 1)
        frame = Frame(np.array([8]), np.zeros((1, 3)), 10 * np.eye(3))
        swap.answered("here", [frame], old.evaluate([frame]))
        swap.ask()
        swap.look()
        swap.close()
        print(swap._checking.done())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "a"), str(tmp_path / "b")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "False\n", "")
