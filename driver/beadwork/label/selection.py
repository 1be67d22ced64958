"""Which rows of a queue are to be labelled, and what can be refused before the first label is computed."""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from beadwork.errors import ConfigError, LabelError, QueueError
from beadwork.harvest.queue import CLAIMED, FAILED, LABELLED, WAITING, Queue
from beadwork.harvest.row import Row
from beadwork.label.codes.basis import check_stored
from beadwork.label.label import Labeller
from beadwork.label.spec import Spec
from beadwork.label.worker import SETTINGS_KEY, Outcome, part_of
from beadwork.potential.bundle import load_card
from beadwork.processes import gone, own_name


def possible_rows(
    queue: Queue,
    spec: Spec,
    watch: Callable[[Outcome, int], None] = lambda told, of: None,
    model: Path | None = None,
    *,
    again: bool = False,
    mix: bool = False,
    dry: bool = False,
) -> list[Row]:
    """Rows to choose from, oldest first: those that are free, without those that certainly cannot be labelled, which
    are marked as failed, so that no choice consists of them.

    model: a bundle; frames with elements that it does not know cannot be labelled either. again: failed rows too. dry:
    mark none. watch: called with each row that is left out. Raises what `label` does before its first label, ModelError
    for the bundle, and QueueError.
    """
    labeller = spec.labeller()
    one_method(queue, labeller.method, spec, mix)
    if not dry:
        release_dead_claims(queue)
    rows = rows_to_label(queue, spec, labeller, again=again)
    known = None if model is None else load_card(model).elements
    worker = f"{secrets.token_hex(4)}/{own_name()}"
    possible = []
    for row in rows:
        reason = reason_to_fail(row, spec, labeller)
        if known is not None and (foreign := sorted({int(z) for z in row.kept.frame.numbers} - set(known))):
            reason = f"{model} does not know the atomic numbers {foreign}; take a model that was trained with them"
        if reason is None:
            possible.append(row)
            continue
        if dry:
            continue
        if row.status != FAILED:
            if queue.claim(worker, spec.lease, row.id) is None:
                continue
            queue.fail(row.id, worker, reason, again=False)
        watch(Outcome(row.id, FAILED, reason=reason), len(rows))
    return possible


def atoms_of(row: Row, spec: Spec) -> tuple[int, ...] | None:
    """The atoms of a row that its label would contain; None for all, or where nothing can be cut."""
    try:
        return part_of(row, spec).atoms
    except LabelError:
        return None


def reason_to_fail(row: Row, spec: Spec, labeller: Labeller) -> str | None:
    """Why a row cannot be labelled, as far as that is known without computing it."""
    try:
        part = part_of(row, spec)
        labeller.check(*part.given)
    except LabelError as error:
        return str(error)
    return None


def free(row: Row, now: float, again: bool = False) -> bool:
    """Whether a row can be taken: it waits, or its claim has expired or is of a dead process; again: or it failed.

    now: of `Queue.now`. The rule for all that asks which frames can be labelled; `Queue.claim` has the same, but for
    dead processes, whose claims are released before (`release_dead_claims`).
    """
    if row.status == CLAIMED:
        return (row.expires is not None and row.expires < now) or _of_dead_process(row)
    return row.status == WAITING or (again and row.status == FAILED)


def rows_to_label(
    queue: Queue,
    spec: Spec,
    labeller: Labeller,
    ids: Sequence[int] | None = None,
    most: int | None = None,
    again: bool = False,
) -> list[Row]:
    """Rows that are free, oldest first; again: failed rows too. ids: these only, in this order.

    Raises ConfigError where no frame of the queue can be labelled with these settings.
    """
    if most is not None and most < 1:
        raise ConfigError(f"most is {most}", "give 1 or more, or leave it out")
    now = queue.now()
    rows = [row for row in queue.rows() if free(row, now, again)]
    if ids is not None:
        order = {id: rank for rank, id in enumerate(ids)}
        # in the order of the choice, most wanted first
        rows = sorted((row for row in rows if row.id in order), key=lambda row: order[row.id])
    _check_any_possible(queue, rows[:most], spec, labeller)
    return rows[:most]


def one_method(queue: Queue, method: str, spec: Spec, mix: bool) -> None:
    """Refuse a queue whose labels are not comparable with those to come. Raises LabelError."""
    rows = queue.rows(status=LABELLED)
    labels = [row.label or {} for row in rows]
    for row, stored in zip(rows, labels, strict=True):
        if stored.get("method") == method:
            numbers = stored.get("structure", {}).get("numbers", row.kept.frame.numbers)
            # labels of an early version have the same method's name, and lack the pseudopotential
            check_stored(
                str(stored.get("code")), str(stored.get("input")), numbers, f"row {row.id} of the queue {queue.name}"
            )
    others = Counter(str(label.get("method")) for label in labels)
    del others[method]
    # labels of earlier versions have no such key, and nothing can be said of their settings
    mine = [label for label in labels if label.get("method") == method and SETTINGS_KEY in label.get("extra", {})]
    unlike = sum(label["extra"][SETTINGS_KEY] != spec.settings_hash for label in mine)
    if unlike and not spec.same_theory:
        raise LabelError(
            f"the queue {queue.name} has {unlike} labels with the same name {method!r} that were made with other "
            "settings (arguments, command, files, patterns)",
            "give the level of theory a new name if it changed; if it did not, set same_theory = true in the TOML",
        )
    if others and not mix:
        held = "; ".join(f"{count} of {name}" for name, count in sorted(others.items()))
        raise LabelError(
            f"the queue {queue.name} has labels of another method ({held}), and the labeller's is {method}",
            "use another queue, or give --mix-methods; training uses one method at a time in any case",
        )


def release_dead_claims(queue: Queue) -> None:
    """Release the claims of dead processes of this machine; the attempts do not count, since nothing failed."""
    for row in queue.rows(status=CLAIMED):
        if row.worker is not None and _of_dead_process(row):
            with contextlib.suppress(QueueError):  # another run was faster
                queue.release(row.id, row.worker)


def _of_dead_process(row: Row) -> bool:
    """Whether the claim of a row is of a process that is known to be dead."""
    # as `label_row` names itself: run/process
    _, _, process = (row.worker or "").partition("/")
    return gone(process)


def _check_any_possible(queue: Queue, rows: Sequence[Row], spec: Spec, labeller: Labeller) -> None:
    """Refuse settings with which no frame of the queue can be labelled. Raises ConfigError.

    Where all rows to be labelled fail this test, the other rows are tested too: if one of them passes, the settings are
    right, and these frames fail one by one.
    """
    asked = [row.id for row in rows]
    refused = {}
    for row in (*rows, *(row for row in queue.rows() if rows and row.id not in asked)):
        reason = reason_to_fail(row, spec, labeller)
        if reason is None:
            return
        refused[row.id] = reason
    if refused:
        raise ConfigError(
            f"with these settings none of {len(refused)} frames can be labelled, and none was started; row {asked[0]}: "
            f"{refused[asked[0]]}"
        )
