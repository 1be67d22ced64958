"""Label the frames of a queue, with one worker or many.

A killed run leaves claims behind: the next run on the same machine sees that their process is gone and releases them;
on other machines they expire.
"""

from __future__ import annotations

import contextlib
import platform
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beadwork.harvest.queue import CLAIMED, FAILED, LABELLED, WAITING, Queue
from beadwork.label.jobs import Pool, lost
from beadwork.label.selection import one_method, release_dead_claims, rows_to_label
from beadwork.label.spec import Spec
from beadwork.label.worker import DONE, TAKEN, Outcome, folder_of, label_row, make_folder
from beadwork.processes import birth


@dataclass(frozen=True, slots=True)
class Report:
    """The outcomes of a run."""

    told: tuple[Outcome, ...]

    def count(self, status: str) -> int:
        """The number of frames with this outcome."""
        return sum(t.status == status for t in self.told)

    def __str__(self) -> str:
        found = sum(t.found for t in self.told)
        parts = [f"{self.count(DONE)} labelled" + (f" ({found} had been computed before)" if found else "")]
        parts += [f"{self.count(status)} {status}" for status in (FAILED, TAKEN) if self.count(status)]
        return ", ".join(parts)


def label(
    queue: Queue,
    spec: Spec,
    *,
    ids: Sequence[int] | None = None,
    most: int | None = None,
    mix: bool = False,
    watch: Callable[[Outcome, int], None] = lambda told, of: None,
) -> Report:
    """Label waiting frames, oldest first, and return when all are labelled or have failed.

    ids: these rows only. most: at most so many. mix: the queue may contain labels of other methods, which stay.
    watch: called with the outcome of each frame, and the number of frames. Raises ConfigError for settings that cannot
    be run, LabelError where methods would be mixed, QueueError. Before any exception, KeyboardInterrupt too, claims of
    this run are released.
    """
    labeller = spec.labeller()
    # all that can be refused is refused before the first label is computed, which may take a day
    one_method(queue, labeller.method, spec, mix)
    # before the rows are chosen, so that their frames are in it
    release_dead_claims(queue)
    rows = rows_to_label(queue, spec, labeller, ids, most)
    folder = folder_of(queue)
    make_folder(folder)
    run = secrets.token_hex(4)  # workers are named by it, so that this run releases its own claims and no others
    told: list[Outcome] = []
    items = deque(row.id for row in rows)
    try:
        # the queue's address travels to the workers, not the queue: a connection cannot be shared
        with Pool(spec.jobs, folder) as pool:
            for id, future in pool.each(label_row, items, queue.url, spec, str(folder), run):
                error = future.exception()
                if error is None:
                    told.append(future.result())
                elif lost(error):
                    again = _handle_dead_worker(queue, id, run, spec)
                    if again is None:  # at the end: if the frame kills its worker, the others are done first
                        items.append(id)
                        continue
                    told.append(again)
                else:
                    raise error
                watch(told[-1], len(rows))
    finally:
        for row in queue.rows(status=CLAIMED):
            if row.worker is not None and row.worker.startswith(f"{run}/"):
                queue.release(row.id, row.worker)
        _remove_leftovers(queue, folder)
    return Report(tuple(told))


def _handle_dead_worker(queue: Queue, id: int, run: str, spec: Spec) -> Outcome | None:
    """A worker of this run died with this row: let it wait again, or mark it as failed. None: try it again."""
    row = queue.get(id)
    if row.status == LABELLED:  # it died after it had stored the label
        return Outcome(id, DONE)
    if row.status != CLAIMED or row.worker is None or not row.worker.startswith(f"{run}/"):
        return (
            None if row.status == WAITING else Outcome(id, FAILED if row.status == FAILED else TAKEN, reason=row.reason)
        )
    again = row.attempts < spec.attempts
    reason = "its worker died: killed, out of memory, or its node failed"
    queue.fail(id, row.worker, reason, again=again)
    return None if again else Outcome(id, FAILED, reason=reason)


def _remove_leftovers(queue: Queue, folder: Path) -> None:
    """Remove files of labels that the queue has, partial files of killed writers, and an empty folder."""
    labelled = {row.id for row in queue.rows(status=LABELLED)}
    for file in folder.glob("*.json"):
        # another run may have computed a label that is not in the queue yet: its file stays
        number = file.name.partition("-")[0]
        if number.isdecimal() and int(number) in labelled:
            file.unlink(missing_ok=True)
    for file in folder.glob(f".*.{platform.node()}.*.part"):  # only of this host: processes of others cannot be seen
        pid = file.name.split(".")[-3]
        if pid.isdecimal() and birth(int(pid)) is None:
            file.unlink(missing_ok=True)
    if not queue.rows(status=CLAIMED):  # else another run may be about to write a label there
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
