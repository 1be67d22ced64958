"""The line that a person looks at while it runs: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from beadwork.events import Evaluated, Event, Kept, Note

#: seconds between two lines where there is no terminal
QUIET = 30.0


class Progress:
    """Shows steps, spread and frames kept.

    total: the simulation's steps. time_step: fs, where it is known. forcefields: how many are served; with multiple
    time steps one is asked more often than another, and the rarest has the steps.
    """

    def __init__(self, total: int, time_step: float | None = None, forcefields: int = 1) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.2 if self._terminal else QUIET,
            maxinterval=QUIET,
            ascii=not self._terminal,
        )
        self._kept = 0
        self._step = 0
        self._steps: dict[str, int] = {}
        self._forcefields = forcefields
        self._time_step = time_step
        self._begin: float | None = None

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, Note):
            self._bar.write(f"beadwork: {event.text}", file=sys.stderr)
        elif isinstance(event, Kept):
            self._kept += 1
        elif isinstance(event, Evaluated):
            self._steps[event.address] = event.step
            step = min(self._steps.values()) if len(self._steps) == self._forcefields else 0
            if step > self._step:
                self._advance(event, step)

    def _advance(self, event: Evaluated, step: int) -> None:
        now = time.monotonic()
        if self._begin is None:
            self._begin = now
        # words first: tqdm prints on update
        words = {}
        if event.force_spread is not None:
            words["spread"] = f"{event.force_spread:.3g} eV/Å"
        words["kept"] = str(self._kept)
        if self._time_step and self._step:
            speed = self._step * self._time_step * 1e-6 / max(now - self._begin, 1e-9) * 86400
            words["ns/day"] = f"{speed:.3g}"
        self._bar.set_postfix(words, refresh=False)
        self._bar.update(step - self._step)
        self._step = step

    def close(self) -> None:
        """Leave the last line standing."""
        self._bar.close()
