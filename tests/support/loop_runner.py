"""`beadwork` with one SIGKILL in it: python loop_runner.py KILL beadwork's own arguments.

KILL is one of
    stage:NAME:SECONDS       so long after this stage of the loop has begun; before its record at the latest
    all:NAME:SECONDS         the same, and i-PI and its server die with the loop, as when the machine goes down
    replace:FILE             a file or folder of this name is written beside its place, and never put there
    record:STAGE             the same with generation.json, once this stage would stand in it
    label                    a label is written to the queue, and never committed
    row                      frames are written to the queue by the server, and never committed
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ORDER = sys.argv[1]
KIND, _, REST = ORDER.partition(":")


def die() -> None:
    """Now."""
    if KIND == "all":
        for file in Path(sys.argv[-1]).parent.glob("loop/gen-*/*/group"):
            os.killpg(int(file.read_text()), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def in_stage(name: str, seconds: float) -> None:
    """Die in this stage of the loop."""
    from beadwork.loop.loop import Generation

    before = Generation.do

    def do(self: Any, stage: str, work: Any) -> Any:
        if stage != name or stage in self.stages:
            return before(self, stage, work)

        def later() -> None:
            time.sleep(seconds)
            die()

        def doomed() -> dict[str, Any]:
            threading.Thread(target=later, daemon=True).start()
            work()
            die()
            raise AssertionError

        return before(self, stage, doomed)

    Generation.do = do  # type: ignore[method-assign]


def at_replacing(name: str, holding: str = "") -> None:
    """Die when a file of this name (that holds these words) is to be put in its place."""
    before = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == name and (not holding or holding in Path(source).read_text()):
            die()
        before(source, target)

    os.replace = replace


def at_commit_of_label() -> None:
    """Die in the transaction that stores a label, with all of it written."""
    from beadwork.harvest.queue import LABELLED, Queue

    def finish(self: Any, id: int, worker: str, label: Any) -> None:
        with self._change() as db:
            self._claimed(db, id, worker)
            db.update(id, status=LABELLED, data={"label": dict(label)})
            die()

    Queue.finish = finish  # type: ignore[method-assign]


def at_commit_of_row() -> None:
    """In the loop: let the server be this script. In the server: die in the transaction that stores its third frame."""
    if "learn" in sys.argv:
        before = subprocess.Popen

        def started(command: list[str], **how: Any) -> Any:
            shell, words = command[: command.index(sys.executable) + 1], command[command.index("run") :]
            return before([*shell, __file__, ORDER, *words], **how)

        subprocess.Popen = started  # type: ignore[misc,assignment]
        return
    from beadwork.harvest import queue

    whole = queue.Queue.add_all

    def add_all(self: Any, frames: Any) -> Any:
        if len(self) < 2:
            return whole(self, frames)
        with self._change() as db:
            for atoms, keys, data in (queue.to_ase(frame, queue.WAITING) for frame in frames):
                db.write(atoms, keys, data)
            die()
        raise AssertionError

    queue.Queue.add_all = add_all  # type: ignore[method-assign]


if KIND in ("stage", "all"):
    in_stage(REST.partition(":")[0], float(REST.partition(":")[2]))
elif KIND == "replace":
    at_replacing(REST)
elif KIND == "record":
    at_replacing("generation.json", f'"{REST}"')
elif KIND == "label":
    at_commit_of_label()
elif KIND == "row":
    at_commit_of_row()

from beadwork.cli import main  # noqa: E402  (after the order)

raise SystemExit(main(sys.argv[2:]))
