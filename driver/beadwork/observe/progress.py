"""The progress of a run on stderr: a live line on a terminal, a plain line from time to time elsewhere."""

from __future__ import annotations

import sys
import time
from logging import INFO, WARNING
from pathlib import Path

from tqdm import tqdm

from beadwork.disk import ignore_closed_terminal, writing
from beadwork.events import Activated, Evaluated, Event, FrameKept, Joined, Lost, Note, PassedOver, Refused
from beadwork.log import logger, progress, shows_progress
from beadwork.observe.pace import Pace, format_largest_novelty, format_pace, format_shares

#: seconds between two lines where there is no terminal
PLAIN_LINE_SECONDS = 30.0
ARROWS = {"rising": "↗", "steady": "→", "falling": "↘", "": ""}


def format_event(event: Event) -> str:
    """The message for an event; empty for an event without one."""
    if isinstance(event, Note):
        return event.text
    if isinstance(event, Joined):
        return (
            f"{event.address}: i-PI was under way when this server connected (its structures are not the file's "
            "start), so its step is not known, and steps are counted from 0"
        )
    if isinstance(event, Activated):
        since = f"evaluation {event.evaluation}" if event.step is None else f"step {event.step}"
        return (
            f"committee {event.committee} in {event.folder} is active at {event.address} from {since} on: {event.found}"
        )
    if isinstance(event, Refused):
        return f"the new committee was refused, and {event.folder} stays active: {event.why}"
    if isinstance(event, Lost):
        return f"{event.address}: {event.why}; dialling again"
    return ""


def level(event: Event) -> int:
    """The level of logging with which an event is shown."""
    if isinstance(event, Note):
        return event.level
    # where the user may have to do something, so that -q shows it too
    return WARNING if isinstance(event, (Joined, Refused, Lost)) else INFO


def format_detail(event: Event) -> str:
    """The message that is shown of an event with -v; empty where there is none."""
    if isinstance(event, FrameKept):
        which = "" if event.bead is None else f", bead {event.bead}"
        when = "a step that is not known" if event.step is None else f"step {event.step}"
        return f"row {event.row}: kept a frame of {when}{which}, for its {' and '.join(event.why)}"
    if isinstance(event, PassedOver):
        when = "a step that is not known" if event.step is None else f"step {event.step}"
        most = "" if event.force_spread is None else f", force spread up to {event.force_spread:.3g} eV/Å"
        return f"{event.frames} frames of {when} not kept ({event.why}){most}"
    return ""


class Progress:
    """Shows steps, pace, novelty, spread and its trend, frames kept and where the time goes; on stderr.

    pace: gets every event before this does. total: the step at which i-PI ends.
    """

    def __init__(self, pace: Pace, total: int) -> None:
        self._pace = pace
        self._total = total
        self._shown = pace.step or 0
        self._said = time.monotonic()
        self._bar: tqdm[None] | None = None
        # a bar redraws its line, which in a file would be thousands of lines
        if sys.stderr.isatty() and shows_progress():
            self._bar = tqdm(
                total=total,
                initial=pace.step,
                unit="step",
                dynamic_ncols=True,
                mininterval=0.2,
                bar_format="{n_fmt}/{total_fmt} |{bar:10}| {elapsed}<{remaining}{postfix}",
            )

    def __call__(self, event: Event) -> None:
        """Process one event."""
        if message := format_event(event):
            logger.log(level(event), "%s", message)
        if message := format_detail(event):
            logger.debug("%s", message)
        if isinstance(event, Joined):
            self._shown = 0
            if self._bar is not None:
                self._bar.initial = self._bar.n = self._bar.last_print_n = 0
                # i-PI's step is not known, so neither is what is left
                self._bar.total = None
        elif isinstance(event, Evaluated):
            step = self._pace.step
            # several evaluations make one step (beads in parts, or two forcefields)
            if step == self._shown:
                return
            if self._bar is not None:
                with ignore_closed_terminal():
                    # the text first: tqdm prints on update
                    self._bar.set_postfix_str(self._brief(), refresh=False)
                    # negative where i-PI was started again from an earlier RESTART
                    self._bar.update(0 if step is None else step - self._shown)
            self._shown = self._shown if step is None else step
            if self._bar is None and time.monotonic() - self._said >= PLAIN_LINE_SECONDS:
                self._print_line()

    def _brief(self) -> str:
        pace = self._pace
        parts = [] if pace.step is not None else [f"evaluation {pace.evaluations}, step not known"]
        if pace.ns_per_day:
            parts.append(f"{pace.ns_per_day:.3g} ns/day")
        if novelty := pace.novelty:
            parts.append(format_largest_novelty(novelty))
        if pace.spread is not None:
            parts.append(f"spread {pace.spread:.3g} eV/Å {ARROWS[pace.trend]}".rstrip())
        parts.append(f"kept {pace.kept}")
        if pace.shares:
            parts.append(format_shares(pace.shares))
        return ", ".join(parts)

    def _print_line(self) -> None:
        self._said = time.monotonic()
        progress.info("%s", "; ".join(format_pace(self._pace.facts(), self._total)))

    def close(self) -> None:
        """Print the last state. Raises ResourceError where the log's disk is full."""
        with writing(Path("the log")):
            if self._bar is not None:
                with ignore_closed_terminal():
                    self._bar.close()
            # without any result there is no state to tell; the error says why
            elif self._pace.answered is not None:
                self._print_line()
