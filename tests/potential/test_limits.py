"""The guard's marks: found in every structure, told with atoms and models, and nearly free."""

from __future__ import annotations

import time

import numpy as np
import pytest

from beadwork.config import LimitSettings
from beadwork.frame import Frame
from beadwork.potential.graph import GraphBuilder
from beadwork.potential.limits import Thresholds, format_breach, threshold_error
from beadwork.potential.potential import Potential


def water(shift: float = 0.0, bead: int | None = None) -> Frame:
    """Two molecules; one hydrogen of the second is `shift` Å nearer to its oxygen."""
    positions = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [0, 0, 3], [0.96 - shift, 0, 3], [0, 0.96, 3]])
    return Frame(np.array([8, 1, 1, 8, 1, 1]), positions, 8 * np.eye(3), bead=bead)


def test_every_kind_in_every_structure(pair) -> None:
    """The worst value of each structure that passes a mark, held against distances and norms made with NumPy."""
    frames = [water(), water(0.3), water(0.5)]
    potential = Potential(pair(40.0), [pair(1.0), pair(3.0, power=4)])
    answer = potential.evaluate(frames)
    for frame, closest in zip(frames, answer.closest, strict=True):
        away = np.linalg.norm(frame.positions[:, None] - frame.positions, axis=-1) + 99 * np.eye(6)
        assert closest == pytest.approx(away.min(), abs=1e-12)
    sizes = np.linalg.norm(answer.forces, axis=1).reshape(3, 6).max(axis=1)
    spreads = answer.force_spread.reshape(3, 6).max(axis=1)
    marks = Thresholds(0.7, (sizes[1] + sizes[2]) / 2, (spreads[1] + spreads[2]) / 2)
    found = marks.breaches(answer)
    assert [(b.kind, b.system) for b in found if b.kind == "distance"] == [("distance", 1), ("distance", 2)]
    for kind, values, mark in (("force", sizes, marks.force), ("spread", spreads, marks.spread)):
        expected = [(s, values[s]) for s in np.flatnonzero(values > mark)]
        assert [(b.system, pytest.approx(b.value)) for b in found if b.kind == kind] == expected
        assert len(expected) in (1, 2)


def test_thresholds_are_those_that_a_user_sets() -> None:
    """Each option reaches the threshold of its name, and the defaults of both are the same."""
    assert Thresholds.of(LimitSettings()) == Thresholds()
    one = LimitSettings(mark_distance=0.1, mark_force=2.0, mark_spread=3.0, mark_novelty=4.0, on_mark="count")
    assert Thresholds.of(one) == Thresholds(0.1, 2.0, 3.0, 4.0, stop=False)


def test_nothing_is_found_where_there_is_no_mark(pair) -> None:
    """0 Å and inf switch a mark off; a potential without edges or committee has none to pass."""
    off = Thresholds(0.0, np.inf, np.inf)
    assert off.breaches(Potential(pair(1e6), [pair(1.0), pair(9e5)]).evaluate([water(0.6)])) == []
    far = Frame(np.array([8, 1]), np.array([[0.0, 0, 0], [40, 0, 0]]), np.zeros((3, 3)), (False,) * 3)
    assert Thresholds().breaches(Potential(pair(1.0)).evaluate([far])) == []


def test_h2_at_its_turning_points_passes_no_mark(pair) -> None:
    """The default distance lets quantum H2 live: 0.4 Å, where a long run gets to, is not stopped; 0.29 Å is."""
    for length, count in ((0.4, 0), (0.29, 1)):
        h2 = Frame(np.array([1, 1]), np.array([[0.0, 0, 0], [length, 0, 0]]), 10 * np.eye(3))
        assert len(Thresholds().breaches(Potential(pair(1.0)).evaluate([h2]))) == count


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("distance", ["atom 3 (O) and atom 4 (H) are 0.36 Å apart, closer than the threshold of 0.5 Å"]),
        ("force", ["the force on atom", "above the threshold of 0.5 eV/Å"]),
        ("spread", ["the force spread on atom", "above the threshold of 0.5 eV/Å"]),
    ],
)
def test_a_breach_names_step_bead_atoms_and_each_models_value(pair, kind, words) -> None:
    """Step, bead, atoms with elements, value, mark, and what each model says by itself; the way out; exit code 11."""
    frame = water(0.6, bead=5)
    potential = Potential(pair(40.0), [pair(1.0), pair(30.0, power=4)])
    answer = potential.evaluate([frame])
    breach = next(b for b in Thresholds(0.5, 0.5, 0.5).breaches(answer) if b.kind == kind)
    error = threshold_error(breach, frame, "step 17", potential)
    assert error.exit_code == 11
    said = str(error)
    for word in ["step 17, bead 5: ", *words, f"--mark-{kind}", "--on-mark count", "pair 40.0", "pair 30.0 4"]:
        assert word in said
    atom = int(said.split("own forces on atom ")[1].split(",")[0])
    alone = np.linalg.norm(Potential(pair(40.0)).evaluate([frame]).forces[atom])
    assert f"pair 40.0 3 3.5 {alone:.3g}" in said
    assert "unknown bead" in format_breach(breach, water(0.6), "step 0", potential)


@pytest.mark.slow  # a ratio of times, for a quiet machine
def test_a_device_that_fails_while_the_sentence_is_made(pair) -> None:
    """The mark was passed and is told of: what fails on the way to its sentence neither hides it nor ends the run."""

    class Failing(pair):
        def evaluate(self, graph):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    breach = Thresholds(force=1.0).breaches(Potential(pair(40.0)).evaluate([water(0.5, bead=3)]))[0]
    said = format_breach(breach, water(0.5, bead=3), "step 7", Potential(Failing(40.0)))
    assert said.startswith("step 7, bead 3: the ")
    assert "illegal memory access" in said


def test_marks_cost_little(pair) -> None:
    """32 beads of 192 atoms: less than 2 % of the time that the graph takes, at 5 Å."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), -1).reshape(-1, 3)[:192] * 2.07
    numbers = np.resize([8, 1, 1], 192)
    builder = GraphBuilder(5.0)

    def ring() -> list[Frame]:
        return [Frame(numbers, grid + rng.normal(0, 0.08, grid.shape), 12.42 * np.eye(3)) for _ in range(32)]

    answer = Potential(pair(1.0, 5.0), [pair(1.0, 5.0), pair(1.1, 5.0)]).evaluate(ring())
    graph_times, mark_times = [], []
    for _ in range(40):  # as short as a moment in which others have the core: the least of many is its own
        frames = ring()
        begin = time.perf_counter()
        graph = builder.build(frames)
        graph_times.append(time.perf_counter() - begin)
        assert len(graph.closest) == 32
        # once a graph, as at a step: what the graph has put out of the caches counts
        begin = time.perf_counter()
        breaches = Thresholds(0.0).breaches(answer)
        mark_times.append(time.perf_counter() - begin)
        assert breaches == []
    share = min(mark_times) / min(graph_times)
    print(f"marks take {100 * share:.2f} % of the graph's {1e3 * min(graph_times):.1f} ms")
    assert share < 0.02
