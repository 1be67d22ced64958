"""Decide when to evaluate: pure scheduling, requests and a clock in, the next batch out.

i-PI hands its queued beads to whichever connections are free, then collects every result before it hands out more.
Its polling thread often wakes before all beads are queued. So waiting for all beads would wait for ever, and not
waiting at all would evaluate bead by bead. The rules, of which the first that applies decides:

1. every connection has a request: i-PI can send nothing more, so evaluate;
2. all structures of this step that are still missing have arrived: evaluate;
3. nothing new has arrived for `window` seconds: evaluate what is here.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Connection = TypeVar("Connection", bound=Hashable)


class Gather(Generic[Connection]):
    """Collects the requests of one forcefield's connections.

    ring: structures per step (beads times systems), None where steps differ. window: seconds.
    """

    def __init__(self, ring: int | None, window: float = 1e-3) -> None:
        self._ring = ring
        self._remaining = ring
        self._window = window
        self._connections: set[Connection] = set()
        self._waiting: dict[Connection, int] = {}
        self._latest = 0.0

    def join(self, connection: Connection) -> None:
        """A connection is open. A step that was under way begins again: i-PI sends its beads anew."""
        self._connections.add(connection)
        # how many of the step were computed already is not known, so the count starts over with a whole ring
        self._remaining = self._ring

    def leave(self, connection: Connection) -> None:
        """A connection is gone, and its request with it."""
        self._connections.discard(connection)
        self._waiting.pop(connection, None)
        self._remaining = self._ring

    def arrived(self, connection: Connection, structures: int, now: float) -> None:
        """A connection has sent `structures` distinct structures."""
        self._waiting[connection] = structures
        self._latest = now

    def wait(self, now: float) -> float | None:
        """Seconds until `take` will give something, 0 if at once, None if not before more arrives."""
        if not self._waiting:
            return None
        here = sum(self._waiting.values())
        # rule 2: when the ring is complete, an idle connection need not be waited for
        if len(self._waiting) == len(self._connections) or (self._remaining is not None and here >= self._remaining):
            return 0.0
        return max(0.0, self._latest + self._window - now)

    def take(self, now: float) -> list[Connection]:
        """Return the connections to evaluate now, in order of arrival; empty if it is too early."""
        if self.wait(now) != 0.0:
            return []
        connections = list(self._waiting)
        if self._ring is not None and self._remaining is not None:
            left = self._remaining - sum(self._waiting.values())
            # nothing left: the next request begins a new ring
            self._remaining = left if left > 0 else self._ring
        self._waiting.clear()
        return connections
