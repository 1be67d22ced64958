"""i-PI's bytes, in and out. No I/O, and no state of the conversation, which is in `protocol`.

Headers are 12 bytes of ASCII, integers int32, numbers float64, in the machine's byte order (i-PI has no other).
What differs between the modes is only how POSDATA and FORCEREADY are laid out, so each mode is a `Layout`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from beadwork.errors import RemoteProtocolError
from beadwork.ipi.messages import ForceReady, PosData

HEADER = 12
STATUS, INIT, POSDATA, GETFORCE, EXIT = (
    name.ljust(HEADER).encode() for name in ("STATUS", "INIT", "POSDATA", "GETFORCE", "EXIT")
)
NEEDINIT, READY, HAVEDATA, FORCEREADY = (
    name.ljust(HEADER).encode() for name in ("NEEDINIT", "READY", "HAVEDATA", "FORCEREADY")
)

#: bytes; the largest message body that is accepted. 64 beads of 40,000 atoms fit; more is not i-PI, and no memory is
#: allocated for it
MAX_BODY = 1 << 26
#: bytes; the most that is buffered of one connection: such a message, and what was received together with its end
MAX_HELD = MAX_BODY + (1 << 21)
#: bytes; the longest parameter string that is accepted
MAX_PARAMETERS = 1 << 16


class ReceiveBuffer:
    """Bytes that have arrived and are not yet parsed.

    `take` is all or nothing: it returns n bytes, or None and consumes nothing when fewer are here.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._start = 0

    def __len__(self) -> int:
        return len(self._bytes) - self._start

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        if self._start:  # consumed bytes are removed here, once per feed, and not at every `take`
            del self._bytes[: self._start]
            self._start = 0
        self._bytes += data

    def peek(self, count: int, offset: int = 0) -> bytes | None:
        """Return `count` bytes from `offset` on without consuming them, or None when they are not all here."""
        first = self._start + offset
        if len(self._bytes) < first + count:
            return None
        return bytes(memoryview(self._bytes)[first : first + count])

    def take(self, count: int) -> bytes | None:
        """Return and consume the next `count` bytes, or None when they are not all here."""
        data = self.peek(count)
        if data is not None:
            self._start += count
        return data

    def put_back(self, count: int) -> None:
        """Undo the last `take` of `count` bytes; only valid before the next `feed`."""
        self._start -= count


def integer(data: bytes) -> int:
    """One int32."""
    return int.from_bytes(data, sys.byteorder, signed=True)


def pack_integer(value: int) -> bytes:
    """One int32."""
    return value.to_bytes(4, sys.byteorder, signed=True)


def announced(data: ReceiveBuffer, structures: int, expected: int | None, offset: int = 0) -> int | None:
    """The atom count `offset` bytes ahead, None when it is not here yet; nothing is consumed.

    Checked before any memory is allocated for it: raises RemoteProtocolError.
    """
    found = data.peek(4, offset)
    if found is None:
        return None
    count = integer(found)
    # 24 bytes of position for each atom, and two cells of 72 bytes for each structure
    if count < 1 or structures * (count * 24 + 144) > MAX_BODY:
        raise RemoteProtocolError(
            f"the peer announced {count} atoms in each of {structures} structures",
            "that is not a count i-PI sends: check that it is i-PI that listens at this address",
        )
    if expected is not None and count != expected:
        raise RemoteProtocolError(
            f"the peer sent {count} atoms where the simulation file has {expected}",
            "serve the same file that i-PI was started with",
        )
    return count


class Layout(Protocol):
    """How one mode lays out the two messages that carry arrays."""

    def posdata(self, data: ReceiveBuffer, expected: int | None) -> PosData | None:
        """Read a POSDATA body; None when it is not all here yet. Raises RemoteProtocolError."""
        ...

    def forceready(self, result: ForceReady) -> bytes:
        """Write a whole FORCEREADY, header included."""
        ...

    def close(self) -> None:
        """Release what the mode holds."""
        ...


def prefixed(extras: Sequence[bytes]) -> bytes:
    """Each extra after its length."""
    # len() of bytes: i-PI counts the bytes of UTF-8, not its characters
    return b"".join(pack_integer(len(extra)) + extra for extra in extras)


class Single:
    """One structure per message: every i-PI up to 3.2, and 3.3 without `<batch_size>`."""

    def posdata(self, data: ReceiveBuffer, expected: int | None) -> PosData | None:
        """Cell, inverse cell, atom count, positions."""
        atoms = announced(data, 1, expected, 144)
        body = None if atoms is None else data.take(148 + 24 * atoms)
        if atoms is None or body is None:
            return None
        numbers = np.frombuffer(body, np.float64, 9)  # the inverse cell that follows is not needed
        positions = np.frombuffer(body, np.float64, 3 * atoms, 148)
        return PosData(numbers.reshape(1, 3, 3), positions.reshape(1, atoms, 3))

    def forceready(self, result: ForceReady) -> bytes:
        """Potentials, atom count, forces, virials and extras of any number of structures."""
        # one buffer: i-PI drops a client whose reply stalls for more than two seconds half way
        atoms = result.forces.shape[1]
        return b"".join(
            (
                FORCEREADY,
                result.potentials.tobytes(),
                pack_integer(atoms),
                result.forces.tobytes(),
                result.virials.tobytes(),
                prefixed(result.extras),
            )
        )

    def close(self) -> None:
        """Nothing is held."""


class Batched(Single):
    """`size` structures per message, since i-PI 3.3; short batches come padded, and the reply has as many."""

    def __init__(self, size: int) -> None:
        self.size = size

    def posdata(self, data: ReceiveBuffer, expected: int | None) -> PosData | None:
        """Atom count, all cells with their inverses, all positions."""
        atoms = announced(data, self.size, expected)
        body = None if atoms is None else data.take(4 + self.size * (144 + 24 * atoms))
        if atoms is None or body is None:
            return None
        cells = np.frombuffer(body, np.float64, 18 * self.size, 4).reshape(self.size, 2, 3, 3)[:, 0]
        positions = np.frombuffer(body, np.float64, 3 * self.size * atoms, 4 + 144 * self.size)
        return PosData(cells, positions.reshape(self.size, atoms, 3))
