"""One simulation of the loop: `beadwork run` in a folder of its own, which a killed loop finds again and continues.

    FOLDER/input.xml, start/…       copies of the user's files
    FOLDER/part-0.xml, part-1.xml   where each attempt began: the input, then i-PI's own RESTART or checkpoint
    FOLDER/run-0.toml, out-0/, …    the options of each attempt, and what `beadwork run` left
    FOLDER/RESTART, …               i-PI's outputs

i-PI and its server get a process group of their own, whose number stands in FOLDER/group. What a killed loop left
behind is found by it and ended before the next attempt.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tomli_w

from beadwork.config import ServeConfig
from beadwork.disk import write_whole
from beadwork.errors import SimulationError
from beadwork.ipi.named_files import forcefield_files
from beadwork.ipi.output_steps import Written
from beadwork.ipi.simulation import as_xml, read_simulation, set_start_folder, set_total_steps
from beadwork.ipi.steps import pattern
from beadwork.log import taken_apart
from beadwork.observe import record
from beadwork.processes import end_noted, last_line, launch, module, noted

#: seconds that a run gets to end by itself when the loop is interrupted: i-PI writes its RESTART meanwhile
EXIT_TIMEOUT_SECONDS = 30.0
#: the number of the process group of i-PI and its server
GROUP = "group"
#: the folder of what a simulation starts from: beside its outputs the user's RESTART would be taken for its own
START = "start"


def prepare(xml: Path, folder: Path, steps_of: Path | None = None, steps: int | None = None) -> None:
    """Make the folder of a simulation, whole or not at all, unless it is there.

    xml: the user's input; the files that it names, which lie beside it, are copied too, and so are those that PLUMED's
    input names. steps_of: a RESTART of the generation before, to go on from for as many steps as `xml` has. steps: so
    many instead of those in `xml`. Raises SimulationError.
    """
    if folder.exists():
        return
    simulation = read_simulation(xml, directory=xml.parent)
    # made beside it and renamed: a folder that is there is complete
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a loop that was killed while it prepared the folder
    part.mkdir(parents=True)
    text = as_xml(xml).decode()
    for output in simulation.outputs:
        # i-PI makes no folders for its outputs
        if not Path(output.name).is_absolute() and ".." not in Path(output.name).parts:
            (part / output.name).parent.mkdir(parents=True, exist_ok=True)
    # i-PI and PLUMED look for what forcefields read in i-PI's working directory
    copies = [(file, part / START / file) for file in simulation.files]
    for file, copy in copies + [(file, part / file) for file in forcefield_files(simulation)]:
        if file.is_absolute():
            continue
        if ".." in file.parts:
            raise SimulationError(f"{xml} names {file}, which cannot be copied along", "put it beside the XML")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(simulation.directory / file, copy)
    (part / "input.xml").write_text(text, encoding="utf-8")
    if steps_of is not None:
        text = steps_of.read_text(encoding="utf-8")
        # i-PI counts total_steps from the first step of all, and a RESTART goes on counting
        steps = read_simulation(steps_of, directory=steps_of.parent).step + simulation.steps
    root = ElementTree.fromstring(text)
    set_start_folder(root, START)
    if steps is not None:
        set_total_steps(root, steps)
    text = ElementTree.tostring(root, encoding="unicode")
    (part / "part-0.xml").write_text(_signed(text, folder, 0), encoding="utf-8")
    part.rename(folder)


def _signed(xml: str, folder: Path, number: int) -> str:
    """The input with its place in the loop, so that hashes in the queue tell attempts and generations apart."""
    return f"{xml.rstrip()}\n<!-- beadwork learn: {folder.parent.name}, {folder.name}, part {number} -->\n"


def come_to(folder: Path) -> Path | None:
    """The RESTART or checkpoint with the latest step of this simulation; None where there is none that can be read.

    i-PI writes RESTART only when it ends normally; after a kill there are only the checkpoints that the input requests.
    """
    # which are the same in all parts
    outputs = read_simulation(folder / "part-0.xml", directory=folder).outputs
    names = [output.name for output in outputs if output.kind == "checkpoint"]
    found: list[tuple[int, Path]] = []
    for file in [folder / "RESTART", *(f for name in names for f in folder.glob(f"{escape(name)}*"))]:
        with contextlib.suppress(SimulationError):  # truncated by the kill, or missing
            found.append((read_simulation(file, directory=folder).step, file))
    return max(found, key=lambda one: one[0])[1] if found else None


def end_of(folder: Path) -> Path:
    """The same of one that has come to its end. Raises SimulationError where there is nothing to go on from: to begin
    anew would be another simulation."""
    if (found := come_to(folder)) is None:
        raise SimulationError(
            f"{folder} has no RESTART or checkpoint that can be read, from which the next generation is to go on",
            "bring it back from a copy, or begin another loop",
        )
    return found


def finished(folder: Path) -> bool:
    """Whether i-PI has done all its steps, according to its RESTART or checkpoint."""
    end = come_to(folder)
    if end is None:
        return False
    return (
        read_simulation(end, directory=folder).step
        >= read_simulation(folder / "part-0.xml", directory=folder).total_steps
    )


def start(folder: Path, options: Mapping[str, Any], kept: int) -> Simulation | None:
    """Start a simulation from the last step of an earlier attempt; None where all its steps are done.

    options: of `beadwork run`, with absolute paths. kept: frames that earlier attempts have kept already.
    """
    end_noted(folder / GROUP, EXIT_TIMEOUT_SECONDS)
    # after the old i-PI has ended, which may have written its last step only then
    if finished(folder):
        return None
    number = len(list(folder.glob("out-*")))  # attempts so far
    begin = folder / f"part-{number}.xml"
    if number:
        text = (come_to(folder) or folder / "part-0.xml").read_text(encoding="utf-8")
        write_whole(begin, _signed(text, folder, number))
    out = folder / f"out-{number}"
    out.mkdir()
    mine: dict[str, Any] = {"simulation": begin.name, "out": out.name}
    if "queue" in options:
        # an attempt's input has another hash, so its server would count from 0
        mine["keep-most"] = max(0, int(options.get("keep-most", ServeConfig.keep_most)) - kept)
    write_whole(folder / f"run-{number}.toml", tomli_w.dumps({**options, **mine}))
    command = noted([*module("beadwork.cli"), "run", f"run-{number}.toml"], GROUP)
    log = folder / f"log-{number}.txt"
    # a group: Ctrl-C reaches the loop alone, which ends its simulations in order
    process = launch(command, log, folder, group=True)
    return Simulation(folder, process, log, out / record.NAME)


@dataclass(frozen=True)
class Simulation:
    """A simulation that runs. record: the beadwork.out of this attempt."""

    folder: Path
    process: subprocess.Popen[bytes]
    log: Path
    record: Path

    def finish(self) -> None:
        """Wait until all steps are done. Raises SimulationError where the run fails; the run is ended in any case."""
        try:
            code = self.process.wait()
        finally:
            self.end()
        if code:
            raise self._failed(code)
        # i-PI ends with 0 as well where a file EXIT or its total_time has stopped it
        if not finished(self.folder):
            raise SimulationError(
                f"i-PI ended in {self.folder} before its last step", "its words are in out-*/i-pi.log"
            )

    def until(self, committee: str, steps: int, before: str | None = None) -> None:
        """Wait until so many steps were evaluated by this committee. Raises SimulationError where that cannot happen.

        before: the committee that may be active until this one is activated; None where the run began with this one.
        """
        # in all attempts: what was answered before a kill counts
        while True:
            begin = time.monotonic()
            if len(answered(self.folder, committee)) >= steps:
                return
            if (code := self.process.poll()) is not None:
                raise self._failed(code)
            served = record.read_committees(self.record)
            found = served.taken_up
            # any third committee: somebody has pointed the file elsewhere, and these steps would never come
            if found and found[-1] != committee and (committee in found or found[-1] != before):
                raise SimulationError(
                    f"{found[-1]} is active in {self.folder} instead of {committee}",
                    "let the file that its --delta names point to that committee again (beadwork models point), and "
                    "run the command again",
                )
            if served.refused:
                raise SimulationError(f"{self.folder} refused the new committee: {served.refused[-1]}")
            # of a run of weeks it takes seconds to read all that was answered, on a core that the server may want
            time.sleep(max(0.5, 20 * (time.monotonic() - begin)))

    def end(self) -> None:
        """End it normally, if it runs, so that it can be continued."""
        if self.process.poll() is None:
            # SIGTERM, so that i-PI writes the RESTART from which the next attempt goes on
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(EXIT_TIMEOUT_SECONDS)
        end_noted(self.folder / GROUP, EXIT_TIMEOUT_SECONDS)

    def _failed(self, code: int) -> SimulationError:
        return SimulationError(
            f"beadwork run ended with exit code {code} in {self.folder}: {taken_apart(last_line(self.log))[1]} "
            f"({self.log.name} has the rest)"
        )


def steps_are_told(xml: Path) -> bool:
    """Whether a server of this input knows where i-PI's steps begin, the only place to activate a committee."""
    simulation = read_simulation(xml, directory=xml.parent)
    known = Written(simulation.outputs).tells
    # of sockets that nobody uses there is nothing to tell
    return known or all(pattern(simulation, socket) for socket in simulation.sockets if simulation.served(socket))


def simulations(folder: Path) -> set[str]:
    """Hashes of the input of each attempt, as the queue's rows name them."""
    return {f"sha256:{hashlib.sha256(part.read_bytes()).hexdigest()}" for part in folder.glob("part-*.xml")}


def answered(folder: Path, committee: str) -> list[record.Answered]:
    """Each step that this committee (the first digits of its hash, as beadwork.out has it) has answered, in all
    attempts; each evaluation where steps are not known.

    An attempt goes on from a RESTART or a checkpoint: what the one before had done beyond it was given up, and does not
    count."""
    known: dict[int, record.Answered] = {}
    others: list[record.Answered] = []
    files = folder.glob(f"out-*/{record.NAME}")
    for file in sorted(files, key=lambda file: int(file.parent.name.removeprefix("out-"))):
        about = record.read_about(file)
        # a server that came to an i-PI under way counts from its own first step
        first = None if about.get("joined") else about.get("first_step")
        if first is not None:
            known = {step: one for step, one in known.items() if step < first}
        for step, one in record.read_answered(file, committee).items():
            if first is None or isinstance(step, str):
                others.append(one)
            else:
                known[first + step] = one
    return [*known.values(), *others]
