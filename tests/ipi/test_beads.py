"""Which bead is which, against rings whose order is known."""

from __future__ import annotations

import numpy as np

from beadwork.ipi.beads import Beads


def ring(rng: np.random.Generator, beads: int = 8, atoms: int = 12) -> np.ndarray:
    """A ring polymer with beads about 0.1 Å from each other."""
    return rng.normal(size=(1, atoms, 3)) * 5 + 0.1 * rng.normal(size=(beads, atoms, 3))


def test_order_then_continuity() -> None:
    """A whole ring comes in order; later beads are told by where they were, in any order and in part."""
    rng = np.random.default_rng(1)
    where = ring(rng)
    beads = Beads(8)
    assert beads.identify(where) == list(range(8))
    for _ in range(20):
        where = where + 0.01 * rng.normal(size=where.shape)
        order = rng.permutation(8)[: rng.integers(1, 9)]
        assert beads.identify(where[order]) == order.tolist()


def test_unknown_is_not_invented() -> None:
    """Before a whole ring was seen, and after a jump that nothing explains, beads are unknown."""
    rng = np.random.default_rng(2)
    where = ring(rng)
    beads = Beads(8)
    assert beads.identify(where[:3]) == [None] * 3
    beads.identify(where)
    assert None in beads.identify(ring(rng))
    assert beads.identify(where) == list(range(8))  # and it finds the thread again


def test_a_structure_between_two_beads_is_neither() -> None:
    """A name is given where the next nearest bead is twice as far, at least: what lies nearly midway is unknown."""
    where = ring(np.random.default_rng(5))
    for share, name in ((0.45, None), (0.55, None), (0.2, 0)):
        beads = Beads(8)
        beads.identify(where)
        assert beads.identify(where[:1] + share * (where[1:2] - where[:1])) == [name]


def test_the_files_start_tells_and_several_connections_do_not() -> None:
    """A ring that comes over several connections is in any order: the file's start names it, and nothing else does."""
    rng = np.random.default_rng(4)
    where = ring(rng)
    order = [7, 0, 1, 2, 3, 4, 5, 6]
    assert Beads(8).identify(where[order], in_order=False) == [None] * 8
    beads = Beads(8, where)
    assert beads.identify(where[order[:1]] + 1e-9, in_order=False) == [7]  # bead by bead, as the connections come
    assert beads.identify(where[order[1:]] + 0.01, in_order=False) == order[1:]
    gone_on = where + 1.0  # a server that was started again while i-PI went on
    assert Beads(8, where).identify(gone_on[order], in_order=False) == [None] * 8
    assert Beads(8, where).identify(gone_on) == list(range(8))


def test_no_bead_is_named_twice() -> None:
    """Of two structures in one place the first is the bead that was there; the second cannot be, and is unknown."""
    rng = np.random.default_rng(3)
    where = ring(rng)
    beads = Beads(8)
    beads.identify(where)
    same = np.repeat(where[:1], 2, axis=0)
    assert beads.identify(same) == [0, None]
