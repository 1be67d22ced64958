"""Which frames are kept: band, cool-down, limit, likeness, each against cases worked out by hand."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beadwork.config import SelectionSettings
from beadwork.errors import ConfigError
from beadwork.events import Moment
from beadwork.frame import Frame
from beadwork.harvest import select
from beadwork.harvest.distance import distance, signature
from beadwork.harvest.select import SelectionWindow, Selector


def dimer(length: float) -> Frame:
    """Make H2 of a given bond length in Å: two of them lie as far apart as their bonds differ."""
    return Frame(np.array([1, 1]), np.array([[0.0, 0, 0], [length, 0, 0]]), np.zeros((3, 3)), (False,) * 3)


def kept(selector: Selector, step: int, lengths: list[float], spreads: list[float]) -> list[int]:
    """Consider dimers by their force spread and return the places of those that are to be kept."""
    frames = [dimer(length) for length in lengths]
    found = selector.consider(Moment(step), frames, np.array(spreads), np.zeros(len(spreads)))
    assert all(distance(sign, signature(frames[index])) == 0 for index, sign in found.kept)
    below = np.array(spreads) < (selector.window.force_low or 0)
    told = [*(index for index, _ in found.kept), *(index for those in found.passed.values() for index in those)]
    assert sorted([*told, *np.flatnonzero(below)]) == list(range(len(lengths))), "each frame is in one place"
    return [index for index, _ in found.kept]


@pytest.mark.parametrize(
    ("window", "force", "energy", "inside"),
    [
        (SelectionWindow(force_low=0.1), 0.1, 0.0, True),
        (SelectionWindow(force_low=0.1), 0.0999, 9.0, False),
        (SelectionWindow(force_low=0.1, force_high=1.0), 1.0, 0.0, False),
        (SelectionWindow(force_low=0.1, force_high=1.0), 0.9999, 0.0, True),
        (SelectionWindow(energy_low=0.01), 5.0, 0.01, True),
        (SelectionWindow(energy_low=0.01), 5.0, 0.0099, False),
        (SelectionWindow(force_low=0.1, energy_low=0.01), 0.0, 0.02, True),  # any low mark suffices
        (SelectionWindow(force_low=0.1, energy_low=0.01), 0.2, 0.0, True),
        (SelectionWindow(force_low=0.1, energy_low=0.01), 0.0, 0.0, False),
        (SelectionWindow(force_low=0.1, energy_high=1.0), 0.2, 2.0, False),  # every high mark holds
        (SelectionWindow(force_low=0.1, energy_high=1.0), 0.0, 2.0, False),
        (SelectionWindow(force_low=0.1), np.nan, 0.0, False),
        (SelectionWindow(force_low=0.1), 0.2, np.inf, False),
        (SelectionWindow(force_low=0.0), 0.0, 0.0, True),
    ],
)
def test_the_low_end_of_a_window_is_in_and_the_high_end_out(
    window: SelectionWindow, force: float, energy: float, inside: bool
) -> None:
    """At a low mark is in, at a high mark is out, and what is not finite is out."""
    within, above = window.classify(np.array([force]), np.array([energy]))
    assert within.tolist() == [inside]
    assert not (within & above).any()


def test_band_of_a_configuration() -> None:
    """Two marks, the low one alone, or none of a kind; where none was given, what is usual for the committee, up to
    the guard's mark."""
    asked = SelectionSettings(keep_force=[0.1], keep_energy=[0.01, 0.2], keep_novelty=1.3)
    assert SelectionWindow.of(asked, 5.0) == SelectionWindow(0.1, None, 0.01, 0.2, 1.3)
    assert SelectionWindow.of(SelectionSettings(), 5.0) == SelectionWindow(0.05, 5.0, novelty_low=1.0)
    without: dict[str, Any] = {"keep_novelty": np.inf}
    assert SelectionWindow.of(SelectionSettings(keep_force=[], keep_energy=[0.01], **without), 5.0) == SelectionWindow(
        energy_low=0.01
    )
    assert SelectionWindow.of(SelectionSettings(**without), 5.0) == SelectionWindow(0.05, 5.0)
    assert SelectionWindow.of(SelectionSettings(**without), 5.0, 0.0036) == SelectionWindow(0.0036, 5.0)
    assert SelectionWindow.of(SelectionSettings(**without), 0.02, 0.0036) == SelectionWindow(0.0036, 0.02)
    assert SelectionWindow.of(SelectionSettings(**without), 0.02) == SelectionWindow(0.05)
    assert SelectionWindow.of(SelectionSettings(**without), np.inf, 0.35) == SelectionWindow(0.35)
    assert SelectionWindow.of(SelectionSettings(keep_force=[0.1, 1.0], **without), 5.0, 0.0036) == SelectionWindow(
        0.1, 1.0
    )


@pytest.mark.parametrize(
    ("marks", "named"),
    [
        ({}, "lower threshold"),
        ({"force_high": 1.0}, "lower threshold"),
        ({"force_low": 2.0, "force_high": 1.0}, "force_low"),
        ({"energy_low": 1.0, "energy_high": 1.0}, "energy_low"),
        ({"force_low": -1.0}, "force_low"),
        ({"force_low": 0.1, "energy_high": np.nan}, "energy_high"),
    ],
)
def test_impossible_band_is_refused(marks: dict[str, float], named: str) -> None:
    """A band that could keep nothing says which mark is wrong."""
    with pytest.raises(ConfigError, match=named):
        SelectionWindow(**marks)


def test_impossible_selector_is_refused() -> None:
    """Negative cool-down, limit and distance are named."""
    band = SelectionWindow(force_low=0.1)
    for wrong, named in (({"cooldown": -1}, "cool-down"), ({"limit": -1}, "limit"), ({"min_distance": -1.0}, "distan")):
        with pytest.raises(ConfigError, match=named):
            Selector(band, **wrong)  # type: ignore[arg-type]


def test_cooldown_counts_steps_of_the_run() -> None:
    """After a frame of step 10, cool-down 5 passes over its other beads and steps 11 to 14, and takes one of 15."""
    selector = Selector(SelectionWindow(force_low=0.1), cooldown=5)
    assert kept(selector, 10, [0.7, 0.9], [0.2, 0.0]) == [0]
    assert kept(selector, 10, [1.1], [0.2]) == []  # the rest of the step, in a call of its own
    for step in (11, 14):
        assert kept(selector, step, [1.3, 1.5], [0.2, 0.3]) == []
    assert kept(selector, 15, [1.3, 1.5], [0.2, 0.3]) == [1]
    assert kept(selector, 3, [1.7], [0.2]) == [0]  # the simulation was restarted from an earlier step


def test_limit_takes_the_most_uncertain_first() -> None:
    """Two places and three frames: the one with the smallest spread stays out, and so does all that comes later."""
    selector = Selector(SelectionWindow(force_low=0.1), limit=2)
    assert kept(selector, 0, [0.7, 0.9, 1.1], [0.3, 0.2, 0.4]) == [0, 2]
    assert kept(selector, 1, [1.5], [0.9]) == []
    assert selector.kept == 2


def test_no_frame_twice() -> None:
    """A frame like one kept before, or kept in the same call, is passed over; one that was passed over is not known."""
    selector = Selector(SelectionWindow(force_low=0.1), min_distance=0.05)
    assert kept(selector, 0, [0.70, 0.72, 0.80], [0.3, 0.2, 0.2]) == [0, 2]
    assert kept(selector, 1, [0.76, 0.90, 0.81], [0.2, 0.0, 0.2]) == []
    assert kept(selector, 2, [0.90], [0.2]) == [0]


def test_seeded_after_a_restart() -> None:
    """Frames that the queue holds count for the limit and are known."""
    selector = Selector(SelectionWindow(force_low=0.1), limit=3, min_distance=0.05)
    selector.seed([("", dimer(0.7)), ("", dimer(0.9))])
    assert kept(selector, 0, [0.71, 1.1, 1.3], [0.5, 0.4, 0.3]) == [1]


def test_frames_from_elsewhere_are_known_and_do_not_count() -> None:
    """What another simulation has put into the queue is not kept again, and takes no place of this run's limit."""
    selector = Selector(SelectionWindow(force_low=0.1), limit=1, min_distance=0.05)
    selector.seed([], elsewhere=[dimer(0.7), dimer(0.9)])
    assert selector.kept == 0
    assert kept(selector, 0, [0.71, 1.1, 1.3], [0.5, 0.4, 0.3]) == [1]


def test_each_committee_has_the_whole_limit() -> None:
    """What one committee has kept takes no place of the next one's, and is known to it; the first one, should it come
    back, goes on counting, with what the queue holds of it."""
    selector = Selector(SelectionWindow(force_low=0.1), limit=2, min_distance=0.05, committee="first")
    selector.seed([("first", dimer(0.7)), ("second", dimer(0.9))])
    assert kept(selector, 0, [1.1, 1.3], [0.5, 0.4]) == [0]
    selector.committee = "third"
    assert selector.kept == 0
    assert kept(selector, 1, [0.7, 0.9, 1.1, 1.5, 1.7, 1.9], [0.9, 0.9, 0.9, 0.5, 0.4, 0.3]) == [3, 4]
    selector.committee = "second"
    assert kept(selector, 2, [2.1, 2.3], [0.5, 0.4]) == [0]
    selector.committee = "first"
    assert kept(selector, 3, [2.5], [0.5]) == []


def test_forgotten_frame_is_welcome_again() -> None:
    """A frame that could not be stored gives its place back."""
    selector = Selector(SelectionWindow(force_low=0.1), limit=1)
    ((_, sign),) = selector.consider(Moment(0), [dimer(0.7)], np.array([0.2]), np.zeros(1)).kept
    selector.forget(sign)
    assert selector.kept == 0
    assert kept(selector, 1, [0.7], [0.2]) == [0]


def test_a_forgotten_frame_cools_nothing() -> None:
    """Where a frame was not stored after all, the next step's may be kept: it is near to none that was."""
    selector = Selector(SelectionWindow(force_low=0.1), cooldown=5)
    assert kept(selector, 0, [0.7], [0.2]) == [0]
    ((_, sign),) = selector.consider(Moment(10), [dimer(0.9)], np.array([0.2]), np.zeros(1)).kept
    selector.forget(sign)
    assert kept(selector, 11, [1.1], [0.2]) == [0]
    assert kept(selector, 12, [1.3], [0.2]) == []


def test_each_simulation_cools_down_by_itself() -> None:
    """Of two systems at two sockets the one that asks first takes no place of the other, which may be less known."""
    selector = Selector(SelectionWindow(force_low=0.1), cooldown=3)

    def asked(step: int, name: str, length: float) -> int:
        return len(selector.consider(Moment(step), [dimer(length)], np.array([0.2]), np.zeros(1), 0.0, name).kept)

    found = [(asked(step, "a", 0.7 + 0.1 * step), asked(step, "b", 2.0 + 0.1 * step)) for step in range(5)]
    assert found == [(1, 1), (0, 0), (0, 0), (1, 1), (0, 0)]


def test_what_is_not_kept_has_its_reason() -> None:
    """Above the band, after one just kept, beyond the limit, or like one before; below the band nothing is said."""
    selector = Selector(SelectionWindow(force_low=0.1, force_high=1.0), cooldown=2, limit=2, min_distance=0.05)

    def passed(step: int, lengths: list[float], spreads: list[float]) -> dict[str, list[int]]:
        return dict(
            selector.consider(
                Moment(step), [dimer(r) for r in lengths], np.array(spreads), np.zeros(len(spreads))
            ).passed
        )

    assert passed(0, [0.7, 0.8, 0.9, 1.0, 1.1], [0.2, 1.0, np.nan, 0.3, 0.0]) == {"above": [1, 2], "cooldown": [0]}
    assert passed(1, [1.2, 1.3], [0.2, 0.05]) == {"cooldown": [0]}
    assert passed(2, [1.02, 1.4], [0.9, 0.2]) == {"alike": [0]}
    assert passed(4, [1.6], [0.9]) == {"limit": [0]}


def test_distance_only_for_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames out of the band, cooling down or over the limit cost no neighbour list."""
    seen: list[Frame] = []
    real = select.signature
    monkeypatch.setattr(select, "signature", lambda frame: (seen.append(frame), real(frame))[1])
    selector = Selector(SelectionWindow(force_low=0.1, force_high=1.0), cooldown=2, limit=2)
    for step, spreads in enumerate([[0.0, 2.0], [0.2, 0.0], [0.3, 0.3], [0.2, 0.2], [0.5, 0.5]]):
        kept(selector, step, [0.7 + step / 10, 1.5 + step / 10], spreads)
    assert len(seen) == 2


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 70), st.one_of(st.floats(0, 2, allow_subnormal=False), st.just(float("nan")))),
            min_size=1,
            max_size=5,
        ),
        max_size=12,
    ),
    st.integers(0, 4),
    st.integers(0, 6),
)
def test_rules_hold_for_any_run(run: list[list[tuple[int, float]]], cooldown: int, limit: int) -> None:
    """Whatever comes: the same frames as one by one, each asked for band, cool-down, limit and likeness."""
    selector = Selector(SelectionWindow(force_low=0.5, force_high=1.5), cooldown, limit, min_distance=0.1)
    known: list[int] = []  # lengths in units of 0.06 Å, none of which is 0.1 Å from another
    steps: list[int] = []
    for step, frames in enumerate(run):
        wanted = []
        inside = [k for k, (_, spread) in enumerate(frames) if 0.5 <= spread < 1.5]
        for k in sorted(inside, key=lambda k: -frames[k][1]):
            soon = bool(steps) and step - steps[-1] < cooldown
            if not soon and len(known) < limit and all(abs(frames[k][0] - other) >= 2 for other in known):
                known.append(frames[k][0])
                steps.append(step)
                wanted.append(k)
        lengths, spreads = [0.3 + 0.06 * length for length, _ in frames], [spread for _, spread in frames]
        assert kept(selector, step, lengths, spreads) == sorted(wanted)
    assert len(known) <= limit
    assert all(b - a >= cooldown for a, b in pairwise(steps))
