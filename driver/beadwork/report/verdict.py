"""How a run ended, as the page says it on top: of one colour, in one line, with the sentence that ended it below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from beadwork.errors import BeadworkError, ConfigError, ThresholdError
from beadwork.observe.status import judge, read_status
from beadwork.report.run import RunFolder

Colour = Literal["green", "amber", "red"]
#: exit codes of shells for the signals with which a person or a batch system ends a run
SIGNALS = {130: "SIGINT (Ctrl-C)", 143: "SIGTERM (kill, or the batch system at its time limit)"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """colour: green for a run that did what was asked, amber for one that was ended or is not at its end, red for one
    that failed. head: in a few words. text: the sentence that ended it, or what is known; may be empty."""

    colour: Colour
    head: str
    text: str = ""


def verdict(run: RunFolder) -> Verdict:
    """Judge a run by its summary, or by its status where it has none."""
    code = run.summary.get("exit_code")
    if not run.summary or code is None:
        return _without_summary(run)
    why = str(run.summary.get("why") or "")
    if code in SIGNALS:
        return Verdict("amber", f"Ended by {SIGNALS[code]}, exit code {code}", _done(run))
    if code == ThresholdError.exit_code:
        return Verdict("red", f"Stopped by a safety threshold, exit code {code}", why)
    if code != 0:
        return Verdict("red", f"Ended with an error, exit code {code}: {_meaning(code)}", why)
    steps, asked = steps_done(run), steps_asked(run)
    if steps is not None and asked is not None and steps < asked:
        return Verdict(
            "amber",
            f"i-PI ended in order after {steps} of {asked} steps, exit code 0",
            "A file EXIT, i-PI's total_time or a signal to i-PI ends it so; i-PI's own log may say which.",
        )
    if passed := run.summary.get("marks_passed"):
        many = ", ".join(f"{kind} {times}" for kind, times in passed.items())
        return Verdict(
            "amber",
            "Ended well, exit code 0, but safety thresholds were exceeded",
            f"Structures beyond each of them, which --on-mark let pass: {many}.",
        )
    return Verdict("green", "Ended well: i-PI did all steps, exit code 0" if asked else "Ended well, exit code 0")


def _without_summary(run: RunFolder) -> Verdict:
    try:
        state, told = judge(read_status(run.folder))
    except ConfigError:
        return Verdict("red", "Not known to have ended: killed, or it still runs", _done(run))
    if state == "ended":  # a full disk has taken the summary alone
        return Verdict("red", "Ended, but its summary is lost", told)
    if state == "dead":
        return Verdict(
            "red", "Killed: the server ended without a word (kill -9, out of memory, machine down)", _done(run)
        )
    if state == "hangs":
        return Verdict("red", "Hangs: connected, but no result for long", told)
    return Verdict("amber", "Still running: all below is of its steps so far", _done(run))


def _meaning(code: Any) -> str:
    kinds = {kind.exit_code: kind for kind in BeadworkError.__subclasses__()}
    if code not in kinds:
        return "i-PI's own" if code != BeadworkError.exit_code else "a fault of beadwork's own, or i-PI's exit code"
    return (kinds[code].__doc__ or "").split(".")[0].split(";")[0].split(":")[0]


def _done(run: RunFolder) -> str:
    steps, asked = steps_done(run), steps_asked(run)
    if steps is None:
        return ""
    return f"{steps} of {asked} steps were done." if asked is not None else f"{steps} steps were done."


def steps_done(run: RunFolder) -> int | None:
    """Steps since this server began; from the record where there is no summary."""
    counted = run.record[np.isfinite(run.record[:, 0]), 0]
    steps = run.summary.get("steps")
    if steps is None and not run.summary and len(counted):
        return int(counted.max())
    return steps if isinstance(steps, int) else None


def steps_asked(run: RunFolder) -> int | None:
    """Steps that i-PI had left to do when this server began; None where an older beadwork wrote the record."""
    total = run.about.get("total_steps")
    return None if total is None or run.joined else int(total) - run.first
