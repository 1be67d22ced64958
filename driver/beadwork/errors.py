"""Everything that can go wrong on purpose, each with the exit code that scripts see.

An error says what is wrong (the thing, and what was got) and what to do about it. The two are fields, for those
who show them apart; nothing in the package reads the sentence that they make.
"""

from __future__ import annotations


class BeadworkError(Exception):
    """Base of all errors that a user can mend.

    what: what is wrong. remedy: what to do about it; empty where `what` says all there is to say. As a text it is both,
    with a semicolon between them.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what, remedy)  # what a copy in another process is made of
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


class ConfigError(BeadworkError):
    """An option, a TOML file or a combination of them that cannot be run."""

    exit_code = 2


class SimulationError(BeadworkError):
    """An i-PI input (XML or RESTART) that is missing, unreadable or not one that beadwork can serve."""

    exit_code = 3


class ModelError(BeadworkError):
    """A model file or bundle that is missing, damaged, foreign, or does not fit the others or the system."""

    exit_code = 4


class GeometryError(BeadworkError):
    """A structure that no model can answer for: NaN positions, no volume, atoms on top of each other."""

    exit_code = 5  # its remedy is for a run: who reads structures from elsewhere takes `what`, and has his own


class NonFiniteError(BeadworkError):
    """A model returned NaN or infinity. Never sent to i-PI."""

    exit_code = 6


class RemoteProtocolError(BeadworkError):
    """The peer sent what i-PI's protocol does not allow at this point."""

    exit_code = 7


class ConnectionLost(BeadworkError):
    """No i-PI could be reached, it hung up, or asked for nothing, for longer than the user chose."""

    exit_code = 8


class QueueError(BeadworkError):
    """The queue cannot be opened, read or written."""

    exit_code = 9


class LabelError(BeadworkError):
    """A label that could not be computed, or one that makes no sense."""

    exit_code = 10


class ThresholdError(BeadworkError):
    """A safety threshold was exceeded: atoms too close, a force, a spread or a novelty too large; i-PI was stopped if
    its folder is known."""

    exit_code = 11


class ResourceError(BeadworkError):
    """Out of memory even in the smallest pieces, or the disk is full."""

    exit_code = 12


class LocalProtocolError(RuntimeError):
    """beadwork itself broke the protocol: a bug of ours, not the peer's fault, so not a `BeadworkError`."""
