"""`mode='shm'`: the socket carries headers and extras, six shared-memory segments of i-PI carry the numbers."""

from __future__ import annotations

import sys
from multiprocessing import resource_tracker, shared_memory

import numpy as np

from beadwork.errors import RemoteProtocolError
from beadwork.frame import FloatArray
from beadwork.ipi.messages import ForceReady, PosData
from beadwork.ipi.wire import FORCEREADY, ReceiveBuffer, announced, integer, prefixed

SEGMENTS = ("pos", "h", "ih", "pot", "force", "vir")
MAX_NAME_BYTES = 255


class SegmentGone(RemoteProtocolError):
    """The segment that i-PI named does not exist: i-PI has closed the connection meanwhile, or is on another
    machine."""


def _attach(name: str) -> shared_memory.SharedMemory:
    """Open a segment that i-PI owns.

    Before Python 3.13 attaching registers the segment as ours: our exit would remove it while i-PI uses it, and Python
    would start its resource tracker, a process that imports modules from the working folder.
    """
    register = resource_tracker.register
    try:
        if sys.version_info >= (3, 13):
            return shared_memory.SharedMemory(name=name, track=False)
        resource_tracker.register = lambda name, rtype: None
        return shared_memory.SharedMemory(name=name)
    except (OSError, ValueError) as error:
        kind = SegmentGone if isinstance(error, FileNotFoundError) else RemoteProtocolError
        raise kind(
            f"the shared-memory segment {name!r} that i-PI named cannot be opened ({error}); "
            "mode 'shm' needs i-PI on the same machine, as the same user"
        ) from error
    finally:
        resource_tracker.register = register


class Shared:
    """`size` structures in i-PI's segments. The first POSDATA names them; later ones carry the atom count alone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._segments: list[shared_memory.SharedMemory] = []
        self._views: dict[str, FloatArray] = {}

    def posdata(self, data: ReceiveBuffer, expected: int | None) -> PosData | None:
        """Atom count; the first time also six length-prefixed names."""
        atoms = announced(data, self.size, expected)
        if atoms is None:
            return None
        # the positions themselves are in the segments already: i-PI writes them before it sends the header
        if not self._views:
            names = self._names(data)
            if names is None:
                return None
            self._open(names, atoms)
        else:
            data.take(4)
        if self._views["pos"].shape[1] != atoms:
            raise RemoteProtocolError(
                f"the peer changed the number of atoms from {self._views['pos'].shape[1]} to {atoms} on one connection",
                "one forcefield serves one composition",
            )
        # copies, since i-PI reuses the segments for its next structures
        return PosData(self._views["h"].copy(), self._views["pos"].copy())

    def _names(self, data: ReceiveBuffer) -> list[str] | None:
        offset = 4
        names = []
        for kind in SEGMENTS:
            size = data.peek(4, offset)
            if size is None:
                return None
            length = integer(size)
            if not 1 <= length <= MAX_NAME_BYTES:
                raise RemoteProtocolError(
                    f"the name of the shared-memory segment {kind!r} is said to have {length} bytes",
                    "check that the forcefield's mode is really 'shm'",
                )
            name = data.peek(length, offset + 4)
            if name is None:
                return None
            names.append(name.decode("utf-8", "replace"))
            offset += 4 + length
        data.take(offset)
        return names

    def _open(self, names: list[str], atoms: int) -> None:
        shapes = ((atoms, 3), (3, 3), (3, 3), (), (atoms, 3), (3, 3))
        for kind, name, shape in zip(SEGMENTS, names, shapes, strict=True):
            segment = _attach(name)
            self._segments.append(segment)
            whole = (self.size, *shape)
            needed = 8 * int(np.prod(whole))
            if segment.size < needed:  # NumPy would fail with a message about buffers; pages round the size up
                raise RemoteProtocolError(
                    f"the shared-memory segment {name!r} has {segment.size} bytes where {needed} are needed "
                    f"for {self.size} structures of {atoms} atoms"
                )
            self._views[kind] = np.ndarray(whole, np.float64, segment.buf)

    def forceready(self, result: ForceReady) -> bytes:
        """Numbers into the segments, header and extras onto the socket."""
        # numbers first: i-PI reads the segments as soon as it has the header
        self._views["pot"][:] = result.potentials
        self._views["force"][:] = result.forces
        self._views["vir"][:] = result.virials
        return FORCEREADY + prefixed(result.extras)

    def close(self) -> None:
        """Detach from the segments; i-PI removes them."""
        self._views.clear()  # a segment cannot be closed while an array refers to its buffer
        for segment in self._segments:
            segment.close()
        self._segments.clear()
