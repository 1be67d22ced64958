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

from beadwork.errors import ResourceError
from beadwork.harvest.queue import CLAIMED, FAILED, LABELLED, Queue
from beadwork.harvest.row import Row
from beadwork.label.jobs import MAX_START_FAILURES, Pool, lost
from beadwork.label.selection import free, one_method, release_dead_claims, rows_to_label
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
    again: bool = False,
    watch: Callable[[Outcome, int], None] = lambda told, of: None,
) -> Report:
    """Label frames that are free, oldest first, and return when all are labelled or have failed.

    ids: these rows only. most: at most so many. mix: the queue may contain labels of other methods, which stay. again:
    failed frames too. watch: called with the outcome of each frame, and the number of frames. Raises ConfigError for
    settings that cannot be run, LabelError where methods would be mixed, ResourceError where workers die before they
    begin, QueueError. Before any exception, KeyboardInterrupt too, claims of this run are released.
    """
    labeller = spec.labeller()
    # all that can be refused is refused before the first label is computed, which may take a day
    one_method(queue, labeller.method, spec, mix)
    # before the rows are chosen, so that their frames are in it
    release_dead_claims(queue)
    rows = rows_to_label(queue, spec, labeller, ids, most, again)
    folder = folder_of(queue)
    make_folder(folder)
    for row in rows:
        if row.status == FAILED:
            queue.retry(row.id)
    run = secrets.token_hex(4)  # workers are named by it, so that this run releases its own claims and no others
    told: list[Outcome] = []
    items = deque(row.id for row in rows)
    early = 0  # workers, one after the other, that died before they had claimed their frame
    try:
        # the queue's address travels to the workers, not the queue: a connection cannot be shared
        with Pool(spec.jobs, folder) as pool:
            for id, future in pool.each(label_row, items, queue.url, spec, str(folder), run):
                error = future.exception()
                if error is None:
                    early = 0
                    told.append(future.result())
                elif lost(error):
                    row = queue.get(id)
                    mine = row.status == CLAIMED and (row.worker or "").startswith(f"{run}/")
                    early = early + 1 if not mine and free(row, queue.now()) else 0
                    # no attempt was counted, and none is: every frame would die alike. As many as one node takes along
                    if early >= MAX_START_FAILURES * spec.jobs.at_once:
                        raise ResourceError(
                            f"{early} workers, one after the other, died before they had begun with their frame, the "
                            f"last one with row {id}: killed, out of memory, or ended by what they import",
                            "look at [jobs], and at the memory and the environment of the workers",
                        )
                    outcome = None if early else _handle_dead_worker(queue, row, mine, spec)
                    if outcome is None:  # at the end: if the frame kills its worker, the others are done first
                        items.append(id)
                        continue
                    told.append(outcome)
                else:
                    raise error
                watch(told[-1], len(rows))
    finally:
        for row in queue.rows(status=CLAIMED):
            if row.worker is not None and row.worker.startswith(f"{run}/"):
                queue.release(row.id, row.worker)
        _remove_leftovers(queue, folder)
    return Report(tuple(told))


def _handle_dead_worker(queue: Queue, row: Row, mine: bool, spec: Spec) -> Outcome | None:
    """A worker of this run died with this row: let it wait again, or mark it as failed. None: try it again.

    mine: whether this run has the claim.
    """
    if row.status == LABELLED:  # it died after it had stored the label
        return Outcome(row.id, DONE)
    if not mine or row.worker is None:
        return Outcome(row.id, FAILED if row.status == FAILED else TAKEN, reason=row.reason)
    again = row.attempts < spec.attempts
    reason = "its worker died: killed, out of memory, or its node failed"
    queue.fail(row.id, row.worker, reason, again=again)
    return None if again else Outcome(row.id, FAILED, reason=reason)


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
