"""SIGINT and SIGTERM as an exception, except where a run handles them in its own way."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


class Interrupted(BaseException):
    """A signal came; the command ends with `exit_code`. A BaseException, so that no `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number  # the convention of shells


@contextmanager
def handled(handlers: Mapping[int, Handler | signal.Handlers]) -> Iterator[None]:
    """Install these handlers for the block, and the old ones afterwards. In the main thread only."""
    # Python runs handlers in the main thread alone, between two instructions of it
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise Interrupted: a handler."""
    raise Interrupted(number)
