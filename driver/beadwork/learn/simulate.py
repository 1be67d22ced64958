"""One simulation of the loop: `beadwork run` in a folder of its own, which a killed loop finds again and goes on with.

    FOLDER/input.xml, init.xyz, …   copies of the user's files
    FOLDER/part-0.xml, part-1.xml   where each attempt began: the input, then i-PI's own RESTART or checkpoint
    FOLDER/run-0.toml, out-0/, …    the options of each attempt, and what `beadwork run` left
    FOLDER/RESTART, …               i-PI's outputs

i-PI and its server get a process group of their own, whose number stands in FOLDER/group. What a killed loop left
behind is found by it and ended before the next attempt.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tomli_w

from beadwork.errors import SimulationError
from beadwork.ipi.simulation import read
from beadwork.learn.dataset import write_whole
from beadwork.observe.outputs import read_record

#: seconds that a run gets to end by itself when the loop is interrupted
FAREWELL = 30.0


def prepare(xml: Path, folder: Path, steps_of: Path | None = None) -> None:
    """Make the folder of a simulation, whole or not at all, unless it is there.

    xml: the user's input; the files that it names are copied too. steps_of: a RESTART of the generation before, to go
    on from for as many steps as `xml` has in all. Raises SimulationError.
    """
    if folder.exists():
        return
    simulation = read(xml)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    text = xml.read_text(encoding="utf-8")
    for file in simulation.files:
        if file.is_absolute():
            continue
        if ".." in file.parts:
            raise SimulationError(f"{xml} names {file}, which cannot be copied along; put it beside the XML")
        (part / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(simulation.directory / file, part / file)
    shutil.copy(xml, part / "input.xml")
    if steps_of is not None:
        before = steps_of.read_text(encoding="utf-8")
        text = re.sub(
            r"(<total_steps>)\s*\d+\s*(<)", rf"\g<1>{read(steps_of).step + simulation.total_steps}\g<2>", before
        )
    (part / "part-0.xml").write_text(text, encoding="utf-8")
    part.rename(folder)


def come_to(folder: Path) -> Path | None:
    """i-PI's RESTART or checkpoint of this simulation that is furthest on; None where there is none that can be read.

    i-PI writes RESTART only when it ends in order; after a kill there are the checkpoints that the input asks for.
    """
    output = ElementTree.parse(folder / "part-0.xml").getroot().find("output")
    prefix = "i-pi" if output is None else output.get("prefix", "i-pi")
    names = [] if output is None else [c.get("filename", "restart") for c in output.findall("checkpoint")]
    found: list[tuple[int, Path]] = []
    for file in [folder / "RESTART", *(f for name in names for f in folder.glob(f"{prefix}.{name}*"))]:
        with contextlib.suppress(SimulationError):  # torn, or not there
            found.append((read(file).step, file))
    return max(found)[1] if found else None


def finished(folder: Path) -> bool:
    """Whether i-PI has done all its steps, as its RESTART says."""
    end = folder / "RESTART"
    return end.exists() and come_to(folder) == end and read(end).step >= read(folder / "part-0.xml").total_steps


def run(folder: Path, options: Mapping[str, Any], kept: int) -> None:
    """Simulate until all steps are done, from wherever an earlier attempt has come to.

    options: of `beadwork run`, with absolute paths. kept: frames that earlier attempts have kept already. Raises
    SimulationError where the run fails; its words are in FOLDER/log-N.txt.
    """
    _end_what_is_left(folder)
    if finished(folder):
        return
    number = len(list(folder.glob("out-*")))
    start = folder / f"part-{number}.xml"
    if number:
        write_whole(start, (come_to(folder) or folder / "part-0.xml").read_text(encoding="utf-8"))
    (folder / f"out-{number}").mkdir()
    mine: dict[str, Any] = {"simulation": start.name, "out": f"out-{number}"}
    if "queue" in options:
        mine["keep-most"] = max(0, int(options.get("keep-most", 100)) - kept)
    write_whole(folder / f"run-{number}.toml", tomli_w.dumps({**options, **mine}))
    # the shell notes its number before it becomes the run, so there is no instant at which nobody knows of it
    command = ["sh", "-c", 'echo $$ > group && exec "$@"', "sh", sys.executable, "-m", "beadwork.cli"]
    command += ["run", f"run-{number}.toml"]
    log = folder / f"log-{number}.txt"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(FAREWELL)
        _end_what_is_left(folder)
    if code:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise SimulationError(
            f"beadwork run ended with exit code {code} in {folder}: {said[-1] if said else 'it said nothing'} "
            f"({log.name} has the rest)"
        )
    if not finished(folder):
        raise SimulationError(f"i-PI ended in {folder} before its last step; its words are in out-{number}/i-pi.log")


def simulations(folder: Path) -> set[str]:
    """Hashes of the input of each attempt, as the queue's rows name them."""
    return {f"sha256:{read(part).sha256}" for part in folder.glob("part-*.xml")}


def flagged(folder: Path, low: float) -> tuple[int, int]:
    """Steps at which the largest force spread reached `low` (eV/Å) in some bead, and steps in all."""
    asked = steps = 0
    for record in sorted(folder.glob("out-*/beadwork.out")):
        rows = read_record(record)
        largest: dict[int, float] = {}
        for step, spread in zip(rows[:, 0].astype(int), rows[:, 4], strict=True):
            largest[step] = max(largest.get(step, 0.0), float(spread))
        values = np.array(list(largest.values()))
        steps += len(values)
        asked += int((values >= low).sum())
    return asked, steps


def _end_what_is_left(folder: Path) -> None:
    """End i-PI and the server that an earlier attempt left running here; in order if they can, so no step is lost."""
    try:
        group = int((folder / "group").read_text())
    except (OSError, ValueError):
        return
    for number, seconds in ((signal.SIGTERM, FAREWELL), (signal.SIGKILL, FAREWELL)):
        end = time.monotonic() + seconds
        for process in _of(group, folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)
        while _of(group, folder) and time.monotonic() < end:
            time.sleep(0.05)
    (folder / "group").unlink(missing_ok=True)


def _of(group: int, folder: Path) -> list[int]:
    """Processes of this group that work in this folder: the number of a group may have been given anew."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            alive = (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and os.getpgid(int(process.name)) == group and (process / "cwd").resolve() == folder.resolve():
                found.append(int(process.name))
    return found
