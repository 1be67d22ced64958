"""The messages between i-PI and a force engine, as data. No behaviour; atomic units; i-PI's orientation of cells.

i-PI calls itself the server and us the driver or client: i-PI listens, we dial, and i-PI speaks first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from beadwork.frame import FloatArray


@dataclass(frozen=True, slots=True)
class Status:
    """i-PI asks for our state; the reply is NEEDINIT, READY or HAVEDATA. (The server's own status: observe.status.)"""


@dataclass(frozen=True, slots=True)
class Init:
    """i-PI's reply to NEEDINIT.

    request: id of the request that comes next; in batched mode that of the batch's first. parameters: the
    forcefield's `<parameters>` as one string, ending in `batch_size:N` in batched mode.
    """

    request: int
    parameters: str

    @property
    def batch_size(self) -> int:
        """Structures in every POSDATA; 1 where the string does not say it (every i-PI up to 3.2)."""
        # the last one: a user's own <parameters> come before what i-PI appends
        name, colon, value = self.parameters.rpartition("batch_size:")
        if not colon or (name and name[-1] not in " ,"):
            return 1
        digits = value.strip()
        return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 7 else 0


@dataclass(frozen=True, slots=True)
class PosData:
    """Structures to evaluate. cells: (B, 3, 3) Bohr, lattice vectors in columns. positions: (B, N, 3) Bohr.

    A batch that i-PI could not fill ends in byte-identical copies of its last structure.
    """

    cells: FloatArray
    positions: FloatArray


@dataclass(frozen=True, slots=True)
class GetForce:
    """i-PI asks for the results of the last POSDATA."""


@dataclass(frozen=True, slots=True)
class Exit:
    """i-PI is done with us."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """The connection ended without EXIT. held: bytes of an unfinished message."""

    held: int


@dataclass(frozen=True, slots=True)
class ForceReady:
    """Our reply to GETFORCE, one entry per structure of the POSDATA, padding included.

    potentials: (B,) Hartree. forces: (B, N, 3) Hartree/Bohr. virials: (B, 3, 3) Hartree, minus stress times volume.
    extras: B strings in UTF-8, each empty or one JSON object.
    """

    potentials: FloatArray
    forces: FloatArray
    virials: FloatArray
    extras: Sequence[bytes]


Incoming = Status | Init | PosData | GetForce | Exit | HangUp
