"""One thing looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beadwork.errors import BeadworkError

Colour = Literal["green", "amber", "red"]
GREEN: Colour = "green"
AMBER: Colour = "amber"
RED: Colour = "red"


@dataclass(frozen=True, slots=True)
class Finding:
    """A colour, one sentence, and the remedy: the line or option to change, empty where nothing is to be done.

    code: the exit code if it is red: that of the error with which a run would end.
    """

    colour: Colour
    topic: str
    text: str
    remedy: str = ""
    code: int = 0


def refused(topic: str, error: BeadworkError) -> Finding:
    """Turn an error into a red finding."""
    return Finding(RED, topic, error.what, error.remedy, error.exit_code)
