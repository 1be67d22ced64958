"""`status.json`: the state of a running session, for `beadwork status` in another shell. Never half written."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from logging import WARNING
from pathlib import Path
from typing import Annotated, Any, Literal

from beadwork.disk import alone
from beadwork.errors import ConfigError, ConnectionLost
from beadwork.events import Evaluated, Event, Lost, Note, Waiting
from beadwork.json_form import Form, Part
from beadwork.observe.pace import SPREAD_OF_DELTA_ALONE, Pace, format_duration, format_pace
from beadwork.processes import birth, boot

NAME = "status.json"
#: locked by a run in the folder of its outputs
LOCK = ".beadwork.lock"
FORMAT = 1
#: seconds between two writes
WRITE_INTERVAL_SECONDS = 1.0
#: without a result for so many seconds, and for so many of its own steps, while i-PI is connected, a run hangs
HANG_AFTER_SECONDS, HANG_AFTER_STEPS = 60.0, 20
#: exit codes of `beadwork status`
RUNNING, ENDED, HANGING = 0, 1, ConnectionLost.exit_code


State = Literal["running", "waiting", "hangs", "ended", "dead"]


@dataclass(frozen=True)
class Server(Part):
    """One server of a run, as its status.json had it. Null is what is not known, or not yet."""

    name: Annotated[str, "of its folder, where there is a server for each device; else empty"]
    state: Annotated[
        State,
        "running; waiting (for i-PI or the models); hangs: connected, without a result for longer than its pace "
        "explains; ended, with its exit code; dead: ended without a word (killed, out of memory, machine down)",
    ]
    told: Annotated[str, "the same as `beadwork status` says it, in words that no script should read"]
    exit_code: Annotated[int | None, "with which the run ended; null before, and where it is dead"]
    why: Annotated[str, "the error with which it ended, or what it waits for, in words"]
    host: Annotated[str, "on which it runs"]
    pid: Annotated[int, "its process"]
    since: Annotated[float, "its start, Unix time in s"]
    updated: Annotated[float, "the last change of its status.json, Unix time in s; for an ended run its end"]
    seconds_since_result: Annotated[float | None, "s since the last reply to i-PI; null before the first"]
    step: Annotated[int | None, "that i-PI has done; counted by the server where `joined`"]
    total_steps: Annotated[int, "at which i-PI ends"]
    joined: Annotated[bool, "i-PI was under way when the server connected, and its step is not known"]
    evaluations: Annotated[int, "calls for forces answered, each of one or more structures"]
    seconds_per_step: Annotated[float | None, "s, mean of the last hundred steps"]
    seconds_left: Annotated[float | None, "s to the last step at this pace"]
    ns_per_day: Annotated[float | None, "ns of simulated time in a day at this pace"]
    force_spread: Annotated[float | None, "eV/Å, the largest of any atom in the last evaluation that has one"]
    force_spread_mean: Annotated[float | None, "eV/Å, of the last hundred evaluations"]
    trend: Annotated[Literal["rising", "steady", "falling", ""], "of the spread; empty while it is not known"]
    spread_of_delta_alone: Annotated[bool, "the baseline's error against its own reference is not in the spread"]
    novelty: Annotated[dict[str, float], "the largest of any atom now, by the part it is new to: baseline, delta"]
    new_structures: Annotated[int, "structures with an atom of novelty above 1, since the start"]
    new_atoms: Annotated[int, "such atoms"]
    frames_kept: Annotated[int, "in the queue, since the start"]
    frames_kept_for: Annotated[dict[str, int], "for spread, for novelty; a frame may count for both"]
    frames_waiting: Annotated[int, "frames that wait in memory, because the queue cannot be written"]
    frames_wait_because: Annotated[str, "why, in words"]
    shares: Annotated[dict[str, float], "of the time of a step, which add up to 1: i-PI, models, graph, rest"]
    engines: Annotated[list[str], "each model with the engine and precision that evaluate it"]
    committee: Annotated[str | None, "hash of the active committee"]


@dataclass(frozen=True)
class Status(Form):
    """`beadwork status --json`; with `--watch` one such object a line."""

    KIND = "status"
    exit_code: Annotated[int, "of the command: 0 runs or waits, 1 ended or dead, 8 hangs; the largest of all servers"]
    servers: Annotated[list[Server], "one, or one for each device"]


class StatusFile:
    """Keeps the file up to date, at most once a second, after the replies were sent.

    total: the step at which i-PI ends. facts: called at every write; plain data about the models. The file is readable
    by its user alone (mode 600), and is replaced in one step. Where it cannot be written the run goes on without it.
    """

    def __init__(
        self,
        folder: Path,
        pace: Pace,
        total: int,
        facts: Callable[[], Mapping[str, Any]],
        watch: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.path = folder / NAME
        self._pace = pace
        self._facts = facts
        self._watch = watch
        # so that the first result is written at once
        self._written = -WRITE_INTERVAL_SECONDS
        self._broken = False
        # a process id alone can be given to another process after a reboot or a while: with its start time it is unique
        pid = os.getpid()
        self._fixed = {
            "format": FORMAT,
            "pid": pid,
            "birth": birth(pid),
            "host": platform.node(),
            "since": time.time(),
            "total_steps": total,
        }
        self._queue = {"frames_waiting": 0, "frames_wait_because": ""}
        self._state: dict[str, Any] = {"state": "waiting", "why": "for its models to load, and for i-PI to ask"}
        self._write()

    def __call__(self, event: Event) -> None:
        """Process one event."""
        if isinstance(event, Evaluated):
            self._state = {"state": "serving", "why": ""}
            if time.monotonic() - self._written >= WRITE_INTERVAL_SECONDS:
                self._write()
        elif isinstance(event, Waiting):
            self._queue = {"frames_waiting": event.frames, "frames_wait_because": event.why}
            self._write()  # at once, even at every step: what a killed process held in memory is known from here alone
        # while another connection remains i-PI is there
        elif isinstance(event, Lost) and not event.left:
            self._state = {"state": "waiting", "why": f"for i-PI at {event.address} ({event.why})"}
            self._write()

    def close(self, code: int, why: str = "") -> None:
        """Write that the run ended, with its exit code and the message of its error."""
        self._state = {"state": "ended", "why": why, "exit_code": code}
        self._write()

    def _write(self) -> None:
        now = time.monotonic()
        answered = self._pace.answered
        data = {
            **self._fixed,
            **self._state,
            **self._queue,
            **self._pace.facts(),
            **self._facts(),
            "updated": time.time(),
            # for a reader on the same machine: nobody can set this clock
            "updated_monotonic": now,
            "answered_before_update": None if answered is None else now - answered,
        }
        beside = self.path.with_name(f".{NAME}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            # O_EXCL: a link that another user has put there is not followed
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(data, file, indent=1)
            # a reader finds the old file or the new one, never a part
            os.replace(beside, self.path)
            self._broken = False
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            # the end must be recorded: on a full disk there is no space but that of the old file, which is overwritten
            if self._state["state"] == "ended":
                with contextlib.suppress(OSError), open(self.path, "r+", encoding="utf-8") as file:
                    file.write(json.dumps(data))
                    file.truncate()
            # once: the disk may stay full for days, and the run goes on
            if not self._broken:
                self._watch(
                    Note(f"{self.path} cannot be written ({error}); `beadwork status` will show an old state", WARNING)
                )
            self._broken = True
        self._written = now


def read_status(folder: Path) -> dict[str, Any]:
    """Read a folder's status. Raises ConfigError where there is none, or it is of no version of beadwork."""
    path = folder / NAME
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {path}: no run has begun there", "name the folder that the run was given as --out"
        ) from error
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(f"{path} was not written by this version of beadwork", "use the one that runs")
    return data


def claimed(folder: Path) -> AbstractContextManager[None]:
    """Lock the folder of a run's outputs. Raises ConfigError on entering it where another run has it."""
    busy = f"a run is under way in {folder.resolve()}"
    return alone(folder / LOCK, busy, "end it, or choose another folder with --out")


def format_status(data: Mapping[str, Any], name: str = "") -> tuple[str, int]:
    """Format a status, and return the exit code: RUNNING, ENDED (with success, an error, or killed) or HANGING."""
    try:
        _, head, code = _judge(data)
        lines = [f"{name}: {head}" if name else head]
        if data["answered_before_update"] is not None:
            lines += format_pace(data, data["total_steps"])
            if data["force_spread"] is not None and data.get("spread_of_delta_alone"):  # older runs lack the entry
                lines.append(SPREAD_OF_DELTA_ALONE)
            if data["state"] != "ended":
                lines.append(f"last result {format_duration(_age(data) + data['answered_before_update'])} ago")
        if data.get("frames_waiting") and data["state"] != "ended":
            fate = "wait in memory to be kept" if _lives(data) else "that waited in memory to be kept are lost"
            lines.append(f"{data['frames_waiting']} frames {fate}: {data['frames_wait_because']}")
        if data["engines"]:
            lines += [f"engines: {', '.join(data['engines'])}", f"committee: {data['committee'] or 'none'}"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _incomplete(error) from error
    return "\n".join(lines), code


def observed(data: Mapping[str, Any], name: str = "") -> Server:
    """A status as an object. Raises ConfigError for one that lacks an entry or has a wrong one."""
    text, _ = format_status(data, name)
    try:
        before, seconds = data["answered_before_update"], data["seconds_per_step"]
        left = None if data["step"] is None or data.get("joined") else data["total_steps"] - data["step"]
        return Server(
            name=name,
            state=_judge(data)[0],
            told=text,
            exit_code=data.get("exit_code"),
            why=data["why"],
            host=data["host"],
            pid=data["pid"],
            since=data["since"],
            updated=data["updated"],
            seconds_since_result=None if before is None else _age(data) + before,
            step=data["step"],
            total_steps=data["total_steps"],
            joined=bool(data.get("joined")),  # older runs lack it, as those below with `get`
            evaluations=data["evaluations"],
            seconds_per_step=seconds,
            seconds_left=None if left is None or seconds is None else left * seconds,
            ns_per_day=data["ns_per_day"],
            force_spread=data["force_spread"],
            force_spread_mean=data["force_spread_mean"],
            trend=data["trend"],
            spread_of_delta_alone=bool(data.get("spread_of_delta_alone")),
            novelty=data.get("novelty", {}),
            new_structures=data.get("new_structures", 0),
            new_atoms=data.get("new_atoms", 0),
            frames_kept=data["frames_kept"],
            frames_kept_for=data.get("frames_kept_for", {}),
            frames_waiting=data.get("frames_waiting", 0),
            frames_wait_because=data.get("frames_wait_because", ""),
            shares=data["shares"],
            engines=list(data["engines"]),
            committee=data["committee"],
        )
    except (KeyError, TypeError) as error:
        raise _incomplete(error) from error


def _incomplete(error: Exception) -> ConfigError:
    return ConfigError(f"the status lacks an entry or has a wrong one ({type(error).__name__}: {error})")


def judge(data: Mapping[str, Any]) -> tuple[State, str]:
    """The state of a run by its status, and the same in words. Raises ConfigError where the status lacks an entry."""
    try:
        state, told, _ = _judge(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _incomplete(error) from error
    return state, told


def _judge(data: Mapping[str, Any]) -> tuple[State, str, int]:
    pid, host = data["pid"], data["host"]
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(data["since"]))
    who = f"process {pid} on {host}, since {since}"
    if data["state"] == "ended":
        after = format_duration(data["updated"] - data["since"])
        why = f": {data['why']}" if data["why"] else ""
        told = f"ended {format_duration(_age(data))} ago, after {after}, with exit code {data['exit_code']}{why}"
        return "ended", told, ENDED
    here = host == platform.node()
    # the process is gone, or its number belongs to another one; of another machine nobody here can know
    if not _lives(data):
        return (
            "dead",
            f"dead: {who}, ended without writing its end, {format_duration(_age(data))} after its last status (killed, "
            "out of memory, or the machine went down); start it again, i-PI waits or goes on from its RESTART",
            ENDED,
        )
    if data["state"] == "waiting":
        return "waiting", f"running: {who}; waits {data['why']}", RUNNING
    # the file itself is written after results alone, so its age is silence too
    silent = _age(data) + data["answered_before_update"]
    # before the second step, and after a lost connection, only the time of the last evaluation is known
    pace = data["seconds_per_step"] or data["seconds_of_the_last"] or 0.0
    if silent > max(HANG_AFTER_SECONDS, HANG_AFTER_STEPS * pace):
        where = "" if here else f", as far as can be seen from {platform.node()}"
        return (
            "hangs",
            f"hangs: {who}, is connected but has sent no result for {format_duration(silent)}{where}; check whether "
            "i-PI still runs (its log) and whether the process computes (top)",
            HANGING,
        )
    return "running", f"running: {who}", RUNNING


def _lives(data: Mapping[str, Any]) -> bool:
    """Whether its process is still there; one on another machine is taken at its word."""
    return bool(data["host"] != platform.node() or birth(int(data["pid"])) == data["birth"])


def _age(data: Mapping[str, Any]) -> float:
    """Seconds since the file was written; on the same machine by the monotonic clock, which nobody can set."""
    # after a reboot the monotonic clock has begun anew
    if data["host"] == platform.node() and str(data["birth"]).startswith(f"{_boot_or_none()} "):
        return max(0.0, time.monotonic() - float(data["updated_monotonic"]))
    return max(0.0, time.time() - float(data["updated"]))


def _boot_or_none() -> str | None:
    return boot() if Path("/proc/sys/kernel/random/boot_id").exists() else None
