"""Scheduling, with a clock of its own."""

from __future__ import annotations

from beadwork.ipi.batching import Gather


def joined(lines: int, ring: int | None) -> Gather[int]:
    """A gather with connections 0 … lines-1 and a window of one second."""
    gather: Gather[int] = Gather(ring, window=1.0)
    for line in range(lines):
        gather.join(line)
    return gather


def test_one_batch_goes_at_once() -> None:
    """A single batched connection never waits, full batch or not."""
    gather = joined(1, 16)
    assert gather.wait(0.0) is None
    gather.arrived(0, 9, now=5.0)
    assert gather.take(5.0) == [0]
    gather.arrived(0, 7, now=6.0)
    assert gather.take(6.0) == [0]


def test_all_connections_go_at_once() -> None:
    """With a connection a bead, the last bead starts the evaluation without a wait."""
    gather = joined(3, None)
    for line in (2, 0):
        gather.arrived(line, 1, now=0.0)
        assert gather.take(0.0) == []
    gather.arrived(1, 1, now=0.0)
    assert gather.take(0.0) == [2, 0, 1]


def test_fewer_beads_than_connections() -> None:
    """Connections that will never be used do not hold up a step whose beads are all in."""
    gather = joined(8, 3)
    for line in range(3):
        gather.arrived(line, 1, now=0.0)
    assert gather.take(0.0) == [0, 1, 2]


def test_partial_set_waits_for_the_window_and_no_longer() -> None:
    """i-PI sends nothing more while it collects, so a wait for all would stop for ever."""
    gather = joined(4, 4)
    gather.arrived(0, 1, now=0.0)
    gather.arrived(1, 1, now=0.5)
    assert gather.wait(0.5) == 1.0
    assert gather.take(1.4) == []
    assert gather.take(1.5) == [0, 1]
    # the rest of the step is known: it goes without a wait although two connections are idle
    gather.arrived(0, 1, now=2.0)
    assert gather.take(2.0) == []
    gather.arrived(1, 1, now=2.0)
    assert gather.take(2.0) == [0, 1]


def test_lost_connection_does_not_leave_the_count_behind() -> None:
    """After a kill in mid-step i-PI sends the whole step again; the count must begin again too."""
    gather = joined(2, 2)
    gather.arrived(0, 1, now=0.0)
    assert gather.take(1.0) == [0]
    gather.leave(0)
    gather.leave(1)
    gather.join(2)
    gather.join(3)
    gather.arrived(2, 1, now=2.0)
    assert gather.take(2.0) == []
    gather.arrived(3, 1, now=2.0)
    assert gather.take(2.0) == [2, 3]


def test_request_of_a_lost_connection_is_forgotten() -> None:
    """Nobody is left to take that answer."""
    gather = joined(2, None)
    gather.arrived(0, 1, now=0.0)
    gather.leave(0)
    assert gather.wait(0.0) is None
