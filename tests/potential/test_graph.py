"""The graph of all beads: the same edges as independent codes find, whatever the cell, and whatever was kept."""

from __future__ import annotations

import time
from dataclasses import replace

import ase.neighborlist
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matscipy.neighbours import neighbour_list

from beadwork.errors import GeometryError
from beadwork.frame import Frame
from beadwork.potential import pair_kernel as within
from beadwork.potential.graph import MIN_DISTANCE, GraphBuilder, build

KINDS = ("triclinic", "tiny", "huge", "cluster", "slab", "wire", "unwrapped", "lone", "h2", "liquid")


def edges(center, neighbor, vectors):
    """Edges in an order that does not depend on who made them."""
    rows = np.column_stack((center, neighbor, np.asarray(vectors).reshape(-1, 3)))
    return rows[np.lexsort(np.round(rows[:, ::-1].T, 6))]


def same(one, two, exact=False):
    """Whether two graphs are the same but for the order of the edges of an atom."""
    a, b = (edges(g.center, g.neighbor, g.vectors) for g in (one, two))
    assert a.shape == b.shape
    assert np.array_equal(a, b) if exact else np.allclose(a, b, rtol=0, atol=1e-9)
    assert np.array_equal(one.degree, two.degree)
    assert np.array_equal(one.ptr, two.ptr)


def consistent(graph):
    """What holds in any graph."""
    assert (np.diff(graph.center) >= 0).all()
    assert np.array_equal(np.bincount(graph.center, minlength=len(graph.numbers)), graph.degree)
    assert np.array_equal(graph.system[graph.center], graph.system[graph.neighbor])
    assert np.allclose(np.linalg.norm(graph.vectors, axis=1), graph.lengths, rtol=0, atol=1e-12)
    assert (graph.lengths < graph.cutoff).all()
    from_images = graph.positions[graph.neighbor] - graph.positions[graph.center] + graph.images[graph.image]
    assert np.allclose(graph.vectors, from_images, rtol=0, atol=1e-9)
    owner = np.repeat(np.arange(len(graph)), np.diff(graph.image_ptr))
    assert np.array_equal(owner[graph.image], graph.system[graph.center])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cutoff", [2.5, 5.0])
def test_same_edges_as_ase(shapes, kind, cutoff):
    """ASE's list, written by others in another way, has the same edges in any cell or none."""
    for seed in range(4):
        frame = shapes.structure(kind, seed)
        graph = build([frame], cutoff)
        consistent(graph)
        i, j, vectors = ase.neighborlist.neighbor_list("ijD", frame.to_atoms(), cutoff)
        expected = edges(i, j, vectors)
        got = edges(graph.center, graph.neighbor, graph.vectors)
        assert got.shape == expected.shape
        assert np.allclose(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["triclinic", "tiny", "huge", "unwrapped", "liquid"])
def test_same_edges_as_matscipy(shapes, kind):
    """The list that MACE itself uses has the same edges, in a batch of structures of different sizes."""
    frames = [shapes.structure(kind, seed) for seed in range(10, 16)] + [shapes.structure("h2", 2)]
    graph = build(frames, 4.5)
    consistent(graph)
    for s, frame in enumerate(frames):
        if not all(frame.pbc):
            continue
        i, j, vectors = neighbour_list("ijD", frame.to_atoms(), 4.5)
        part = graph.part(s, s + 1)
        assert np.allclose(edges(part.center, part.neighbor, part.vectors), edges(i, j, vectors), rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from([k for k in KINDS if k != "lone"]),
    step=st.sampled_from([0.002, 0.03, 0.3]),
    barostat=st.sampled_from([0.0, 0.002, 0.05]),
    skin=st.sampled_from([0.3, 0.6, 1.5]),
)
def test_kept_list_equals_fresh(shapes, seed, kind, step, barostat, skin):
    """Beads that wander, in a cell that changes shape, have at every step the edges of a fresh build."""
    rng = np.random.default_rng(seed)
    first = shapes.structure(kind, seed)
    cell = first.cell
    positions = [first.positions + rng.normal(size=first.positions.shape) * 0.05 for _ in range(3)]
    builder = GraphBuilder(4.0, skin=skin)
    for _ in range(8):
        deform = np.eye(3) + rng.normal(size=(3, 3)) * barostat
        cell = cell @ deform
        positions = [p @ deform + rng.normal(size=p.shape) * step for p in positions]
        frames = [Frame(first.numbers, p, cell, first.pbc) for p in positions]
        try:
            fresh = build(frames, 4.0)
        except GeometryError:
            return  # two atoms met
        kept = builder.build(frames)
        same(kept, fresh, exact=True)
        consistent(kept)
    if step == 0.002 and barostat == 0.0:
        assert builder.built == len(positions)
        assert builder.kept == 7 * len(positions)


def test_two_atoms_that_approach_from_afar():
    """The worst case: two atoms head for each other until they enter the cutoff, a hair's breadth at a time."""
    builder = GraphBuilder(3.0, skin=0.4)
    for gap in np.arange(4.2, 2.6, -0.01):
        positions = np.array([[0, 0, 0], [gap, 0, 0], [20, 20, 20.0]])
        frame = Frame(np.array([1, 1, 8]), positions, np.zeros((3, 3)), (False,) * 3)
        assert len(builder.build([frame]).center) == (2 if gap < 3.0 else 0)
    assert builder.kept > builder.built > 1


def test_lists_are_made_before_they_are_needed(shapes):
    """Atoms that travel steadily find a new list ready at every step, with the edges of a fresh build."""
    frames = shapes.beads(4, seed=3)
    idle, busy = GraphBuilder(4.0), GraphBuilder(4.0)
    for step in range(60):
        now = [replace(f, positions=f.positions * (1 - 0.003 * step)) for f in frames]
        fresh = build(now, 4.0)
        same(idle.build(now), fresh, exact=True)
        idle.prefetch()
        busy.build(now)
    assert (idle.built, idle.kept) == (4, 59 * 4)
    assert idle.prefetched >= 8
    assert busy.built >= 8
    assert len(idle._lists) == 1 + idle.prefetched // 4


def test_looking_ahead_leaves_atoms_that_stay_alone(shapes):
    """Nothing is made anew where nothing moves, or before anything came."""
    builder = GraphBuilder(4.0)
    builder.prefetch()
    frames = shapes.beads(4, seed=3)
    for _ in range(5):
        builder.build(frames)
        builder.prefetch()
    assert (builder.built, builder.prefetched, len(builder._lists)) == (4, 0, 1)


def test_without_a_cache_the_loop_is_compiled_anew(monkeypatch):
    """A package that nobody may write beside, and a user without a home, still get their graphs."""

    def njit(*, nogil, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(within, "njit", njit)
    assert within._compiled(len) is len


def test_wrapped_between_steps(shapes):
    """An atom that i-PI moves by a lattice vector keeps its edges, with other image vectors if need be."""
    builder = GraphBuilder(4.0)
    frames = shapes.beads(4, seed=3)
    builder.build(frames)
    moved = [replace(f, positions=f.positions + np.eye(27)[:, [k]] @ f.cell[[k % 3]]) for k, f in enumerate(frames)]
    got = builder.build(moved)
    same(got, build(moved, 4.0), exact=True)
    assert np.array_equal(got.degree, build(frames, 4.0).degree)


def test_molecules_that_went_far_apart(shapes):
    """Pairs whose images are scattered over a million cells are found, as those of the same atoms wrapped."""
    frame = shapes.structure("liquid", 3)
    count = len(frame.numbers)
    away = np.random.default_rng(5).integers(-50, 51, (count, 3)).astype(float)
    away[0] = 4000, -4000, 4000
    far = replace(frame, positions=frame.positions + away @ frame.cell)
    near, graph = build([frame], 4.5), build([far], 4.5)
    assert len(graph.neighbor) == len(near.neighbor)
    assert np.allclose(np.sort(graph.lengths), np.sort(near.lengths), rtol=0, atol=1e-8)
    consistent(graph)


def test_order_and_number_do_not_matter(shapes):
    """Partial batches, shuffled beads and two ring polymers in turn are all answered in the order asked."""
    rng = np.random.default_rng(0)
    ring, other = shapes.beads(6, seed=1), shapes.beads(4, seed=2)
    builder = GraphBuilder(4.5)
    for _ in range(12):
        pool = ring + other + [shapes.structure("cluster", 1)]
        some = [pool[k] for k in rng.permutation(len(pool))[: rng.integers(1, len(pool))]]
        graph = builder.build(some)
        assert graph.beads == tuple(f.bead for f in some)
        assert np.array_equal(graph.positions, np.concatenate([f.positions for f in some]))
        same(graph, build(some, 4.5), exact=True)
    assert builder.built <= 11


def test_beads_share_one_list(shapes):
    """All beads of a ring polymer are served by one list, and small steps keep it."""
    frames = shapes.beads(8, seed=5)
    builder = GraphBuilder(4.5)
    builder.build(frames)
    assert len(builder._lists) == 1
    builder.build([replace(f, positions=f.positions + 0.01) for f in frames])
    assert (builder.built, builder.kept) == (8, 8)


def test_lists_that_nobody_uses_are_dropped(shapes):
    """Memory does not grow with the number of structures seen."""
    builder = GraphBuilder(3.0)
    for seed in range(230):
        builder.build([shapes.structure("h2", seed)])
    assert len(builder._lists) <= 201
    for seed in range(0, 400, 4):  # several at a time, and every one another
        builder.build([shapes.structure("h2", seed + k) for k in range(4)])
    assert len(builder._lists) <= 256


def test_within_and_part(shapes):
    """A shorter cutoff and a run of systems are what a build of their own gives."""
    frames = [shapes.structure(kind, 7) for kind in KINDS]
    graph = build(frames, 5.0)
    same(graph.within(3.0), build(frames, 3.0), exact=True)
    consistent(graph.within(3.0))
    assert graph.within(5.0) is graph
    for a, b in ((0, 3), (2, 3), (4, len(frames))):
        part = graph.part(a, b)
        consistent(part)
        same(part, build(frames[a:b], 5.0), exact=True)
        assert np.array_equal(part.system, build(frames[a:b], 5.0).system)


def test_a_pair_at_the_cutoff_is_none():
    """Neighbours are closer than the cutoff, whether the graph is built with it or cut down to it, so that both have
    the same edges; the next number below it is closer."""
    for length, edges in ((2.0, 0), (np.nextafter(2.0, 0.0), 2)):
        frame = Frame(np.array([1, 1]), np.array([[0, 0, 0], [length, 0, 0]]), np.zeros((3, 3)), (False,) * 3)
        assert len(build([frame], 2.0).neighbor) == edges
        assert len(build([frame], 3.0).within(2.0).neighbor) == edges


def test_no_cutoff_no_edges(shapes):
    """Toys ask for no neighbours, and get none."""
    assert len(build([shapes.structure("liquid", 0)], 0.0).center) == 0


def test_atoms_on_top_of_each_other_are_named():
    """MACE would answer for them with a finite number; we name the bead and both atoms, across the boundary too."""
    numbers, cell = np.array([8, 1, 1]), np.eye(3) * 10.0
    good = Frame(numbers, np.array([[0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]), cell, bead=4)
    for far in (0.0, 10.0, -30.0):
        bad = replace(good, positions=good.positions + np.array([[0, 0, 0], [0, 0, 0], [1.0, -1 + 1e-6, far]]), bead=5)
        with pytest.raises(GeometryError, match=r"atoms 1 and 2 of bead 5 are 1e-06 Å apart"):
            build([good, bad], 4.0)
    with pytest.raises(GeometryError, match="structure 1 of 2"):
        build([good, replace(bad, bead=None)], 4.0)


def test_compressed_hydrogen_passes():
    """H2 squeezed far below its bond length is unusual, not impossible."""
    frame = Frame(np.array([1, 1]), np.array([[0, 0, 0], [0.4, 0, 0.0]]), np.zeros((3, 3)), (False,) * 3)
    assert len(build([frame], 4.0).center) == 2
    assert MIN_DISTANCE < 0.4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"positions": np.array([[0, 0, np.nan], [1.0, 0, 0]])}, "atom 0 of bead 1 is at"),
        ({"positions": np.array([[0, 0, 0], [1e15, 0, 0]])}, "atom 1 of bead 1 is at"),
        ({"cell": np.zeros((3, 3))}, "of bead 1 has no volume"),
        ({"cell": np.diag([10.0, 10.0, np.inf])}, "of bead 1 has no volume"),
        ({"positions": np.zeros((3, 3))}, "2 atomic numbers, positions of shape"),
        ({"numbers": np.array([], dtype=int), "positions": np.zeros((0, 3))}, "of bead 1 has no atoms"),
    ],
)
def test_bad_frames_are_refused(change, sentence):
    """One bad bead among good ones is found and named, in a fresh build and on a kept list."""
    good = Frame(np.array([1, 1]), np.array([[0, 0, 0], [1.0, 0, 0]]), np.eye(3) * 10.0, bead=0)
    builder = GraphBuilder(4.0)
    builder.build([good, replace(good, bead=1)])
    with pytest.raises(GeometryError, match=sentence):
        builder.build([good, replace(good, bead=1, **change)])


def test_nothing_to_build():
    """An empty batch is a caller's mistake and says so."""
    with pytest.raises(GeometryError, match="no structures"):
        build([], 4.0)


@pytest.mark.parametrize(("side", "periodic"), [(0.34, 3), (0.56, 3), (1.0, 3), (0.3, 2), (0.05, 1)])
def test_a_collapsed_cell_is_refused_before_its_pairs_are_counted(side, periodic):
    """192 atoms in 0.34 Å took 5 GB and a traceback, in 0.56 Å 28 seconds: now a sentence, and no time."""
    rng = np.random.default_rng(0)
    pbc = tuple(k < periodic for k in range(3))
    cell = np.diag(np.where(pbc, max(side, 0.11), 0.0))
    frame = Frame(np.ones(192, dtype=int), rng.uniform(0, side, (192, 3)), cell, pbc, 3)
    begin = time.perf_counter()
    with pytest.raises(
        GeometryError, match=r"the cell of bead 3 has collapsed: 0?.*for 192 atoms, some \de\+\d\d neigh"
    ):
        build([frame], 5.0)
    assert time.perf_counter() - begin < 2


def test_no_matter_is_a_crowd():
    """A thick slab and a thick wire, whose atoms are many above each other, and metallic hydrogen are no collapse."""
    rng = np.random.default_rng(0)
    for shape, pbc in (((3, 3, 700), (True, True, False)), ((50, 50, 1), (False, False, True))):
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
        positions = 2.0 * grid + rng.uniform(-0.2, 0.2, grid.shape)
        cell = np.diag(np.where(pbc, 2.0 * np.array(shape), 0.0))
        graph = build([Frame(np.ones(len(grid), dtype=int), positions, cell, pbc)], 4.0)
        assert 25 < graph.degree.mean() < 40
    dense = np.stack(np.meshgrid(*[np.arange(6)] * 3), axis=-1).reshape(-1, 3) * 1.0
    graph = build([Frame(np.ones(216, dtype=int), dense, 6.0 * np.eye(3))], 6.01)
    assert graph.degree.mean() > 900


@pytest.mark.parametrize(
    ("positions", "cell"),
    [
        ([[0, 0, 0], [0.96, 0, 0], [0, 1e4, 0], [0, 0, 1e4]], None),  # a cluster that has exploded
        ([[0, 0, 0], [0.96, 0, 0], [0, 9e5, 0], [3, 9e5, 1e4]], None),
        ([[0, 0, 0], [0.96, 0, 0]], [10.0, 10.0, 9.9e5]),
        ([[0, 0, 0], [0.96, 0, 0]], [10.6, 10.3, 4.4e10]),
        ([[0, 0, 0], [0.96, 0, 0]], [10.0, 1e4, 1e4]),
    ],
)
def test_what_is_long_beyond_all_measure_is_refused(positions: list[list[float]], cell: list[float] | None) -> None:
    """The neighbour list would divide by zero, and the process would be gone without a word (found by make fuzz)."""
    box = np.zeros((3, 3)) if cell is None else np.diag(cell)
    frame = Frame(np.ones(len(positions), dtype=int), np.array(positions, dtype=float), box, (cell is not None,) * 3)
    with pytest.raises(GeometryError, match=r"extends over .* Å, too long for a neighbour list"):
        build([frame], 4.5)


@pytest.mark.parametrize("cell", [[20.0, 20.0, 1000.0], [1e5, 1e5, 1e5], [200.0, 200.0, 2000.0]])
def test_vacuum_is_no_explosion(cell: list[float]) -> None:
    """A slab with much vacuum and a molecule in a huge box have their pairs."""
    frame = Frame(np.array([8, 1, 1]), np.array([[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]]), np.diag(cell), (True,) * 3)
    assert len(build([frame], 4.5).lengths) == 6
