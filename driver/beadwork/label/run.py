"""Label the frames of a queue: claim, cut, compute, save, store.

A label is computed once. It is written to a file in the labels' folder as soon as it is computed, and only then stored
in the queue; a worker that claims the frame again after a kill in between finds the file. A claim is renewed while its
worker lives. A killed run leaves claims behind: the next run on the same machine sees that their process is gone and
releases them; on other machines they expire.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.disk import write_whole
from beadwork.errors import ConfigError, LabelError, QueueError
from beadwork.frame import Frame
from beadwork.harvest.queue import CLAIMED, FAILED, LABELLED, WAITING, ClaimLost, Queue
from beadwork.harvest.row import Row
from beadwork.label.clusters import charge, cut, most_uncertain
from beadwork.label.codes.basis import check_stored
from beadwork.label.jobs import Pool, lost
from beadwork.label.label import Label, Labeller, as_json, structure
from beadwork.label.spec import Spec
from beadwork.log import logger, shows_progress
from beadwork.potential.bundle import load_card
from beadwork.processes import birth

#: outcomes of a frame, besides FAILED
DONE, TAKEN = LABELLED, "taken by another"
#: eV/Å; see `_physical`
MAX_FORCE = 100.0
#: key in a label's extra of `Spec.settings_hash`, where the user names the method
SETTINGS_KEY = "settings"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one frame. found: its label was computed before, and only stored now."""

    id: int
    status: str
    found: bool = False
    reason: str | None = None


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


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would do. seconds: of each label, rough. refused: rows that would fail, and why."""

    spec: Spec
    method: str
    formulas: Counter[str]
    seconds: tuple[float, ...]
    refused: dict[int, str]
    computed: int

    def __str__(self) -> str:
        lines = [f"method     {self.method}"]
        sizes = ", ".join(f"{count} {name}" for name, count in self.formulas.most_common(8))
        more = len(self.formulas) - 8
        lines.append(
            f"labels     {len(self.seconds)}" + (f": {sizes}" if sizes else "") + (f", {more} more" if more > 0 else "")
        )
        if self.computed:
            lines.append(f"computed   {self.computed} of them before, to be stored only")
        workers = self.spec.jobs.at_once
        # however many workers there are, the longest label takes its time
        wall = max([sum(self.seconds) / workers, *self.seconds])
        lines.append(
            f"time       about {_duration(wall)} with {workers} worker{'s' * (workers > 1)} "
            f"({_duration(sum(self.seconds))} in all, the longest {_duration(max(self.seconds, default=0.0))}); rough"
        )
        lines += [f"fail       row {id}: {reason}" for id, reason in self.refused.items()]
        return "\n".join(lines)


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
    _one_method(queue, labeller.method, spec, mix)
    # before the plan, so that their frames are in it
    _release_dead_claims(queue)
    rows = _plan(queue, ids, most)
    _check_any_possible(queue, rows, spec, labeller)
    folder = folder_of(queue)
    _make_folder(folder)
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


def command(
    queue: Queue,
    spec: Spec,
    *,
    most: int | None = None,
    by: Path | None = None,
    mix: bool = False,
    again: bool = False,
    dry: bool = False,
) -> str:
    """The command `beadwork label`, with a progress bar on stderr; returns the text to print.

    by: the bundle whose features choose the most useful frames instead of the oldest. again: failed frames wait again.
    dry: only report what would be done. Raises LabelError where every frame failed, and as `label` and `choose` do.
    """
    if again and not dry:
        for row in queue.rows(status=FAILED):
            queue.retry(row.id)
    ids, chosen = None, ""
    if by is not None:
        if most is None:
            raise ConfigError(f"the number of frames that {by} is to choose is missing", "give --most as well")
        from beadwork.label.choose import from_queue

        if not dry:
            # or a choice could consist of frames that no labeller can do
            fail_impossible(queue, spec, _print_failure)
        ids, choice = from_queue(queue, by, most, lambda row: atoms_of(row, spec), again)
        chosen = f"{choice}\n" if choice else ""
    if dry:
        return f"{chosen}{estimate(queue, spec, ids=ids, most=most, mix=mix, again=again)}"
    from tqdm import tqdm

    with tqdm(disable=None if shows_progress() else True, unit="label", dynamic_ncols=True) as bar:

        def watch(told: Outcome, of: int) -> None:
            bar.total = of
            bar.update()
            _print_failure(told, of)

        report = label(queue, spec, ids=ids, most=most, mix=mix, watch=watch)
    # some labels and some failures is a success: the reasons are in the queue
    if report.count(FAILED) and not report.count(DONE):
        raise LabelError(f"no frame was labelled, {report}; the first reason: {report.told[0].reason}")
    return f"{chosen}{report}"


def _print_failure(told: Outcome, of: int) -> None:
    """Log a failure, above the progress bar where there is one."""
    if told.status == FAILED:
        logger.warning("row %d failed: %s", told.id, told.reason)


def estimate(
    queue: Queue,
    spec: Spec,
    *,
    ids: Sequence[int] | None = None,
    most: int | None = None,
    mix: bool = False,
    again: bool = False,
) -> Estimate:
    """Report what `label` would do, and change nothing. again: as if failed rows waited again."""
    labeller = spec.labeller()
    _one_method(queue, labeller.method, spec, mix)
    folder = folder_of(queue)
    formulas: Counter[str] = Counter()
    seconds, refused, computed = [], {}, 0
    rows = _plan(queue, ids, most, again)
    _check_any_possible(queue, rows, spec, labeller)
    for row in rows:
        reason = _reason_to_fail(row, spec, labeller)
        if reason is not None:
            refused[row.id] = reason
            continue
        part = _part(row, spec)
        known = _file(folder, row, spec, labeller, part).exists()
        computed += known
        seconds.append(0.0 if known else labeller.seconds(part.frame))
        formulas[str(part.frame.to_atoms().get_chemical_formula())] += 1
    return Estimate(spec, labeller.method, formulas, tuple(seconds), refused, computed)


def folder_of(queue: Queue) -> Path:
    """The folder of labels until the queue has them: `QUEUE.labels` beside an SQLite file, else `labels-HASH` here.

    HASH is of the URL, because two databases have rows of the same numbers.
    """
    if "://" in queue.name:
        # a database has no folder; this one is the user's own, where he stands
        return Path(f"labels-{hashlib.sha256(queue.name.encode()).hexdigest()[:8]}")
    return Path(f"{queue.name}.labels")


def label_row(id: int, url: str, spec: Spec, folder: str, run: str) -> Outcome:
    """Label one frame, in any process, with as many attempts as the settings allow. For `Pool.each`."""
    queue = Queue(url)
    worker = f"{run}/{platform.node()}:{os.getpid()}"
    while True:
        # an attempt is counted by the claim, so that a frame that kills its worker has an end
        row = queue.claim(worker, spec.lease, id)
        if row is None:
            return Outcome(id, TAKEN)
        try:
            with _renewing(queue, id, worker, spec.lease):
                # the labeller is made under the claim: if that kills the process, it counts as an attempt of the frame
                stored, file, found = _find_or_compute(row, spec, _labeller(spec), Path(folder))
        except LabelError as error:
            again = row.attempts < spec.attempts
            try:
                queue.fail(id, worker, str(error), again=again)
            except ClaimLost:
                return Outcome(id, TAKEN)
            if not again:
                return Outcome(id, FAILED, reason=str(error))
        except BaseException:
            with contextlib.suppress(QueueError):  # the first error matters; the claim expires in any case
                queue.release(id, worker)
            raise
        else:
            try:
                queue.finish(id, worker, stored)
            except ClaimLost:  # this machine was suspended for longer than the lease; the label stays in its file
                return Outcome(id, TAKEN)
            file.unlink(missing_ok=True)
            return Outcome(id, DONE, found)


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a row that is computed. atoms: their indices in the row's frame, None for the whole frame."""

    frame: Frame
    charge: int
    atoms: tuple[int, ...] | None


def _part(row: Row, spec: Spec) -> _Part:
    """Cut where requested, and determine the charge. Raises LabelError where a cut is missing, or the charge
    unknown."""
    frame = row.kept.frame
    if any(frame.pbc) and spec.cut is None and not spec.periodic:
        raise LabelError(f"the frame is periodic, and {spec.kind} computes clusters: add a table [cut] to the TOML")
    if spec.cut is not None:
        # round the atom of which the models know least, which the label is to teach
        cluster = cut(frame, most_uncertain(row.kept.force_spread), spec.cut)
        return _Part(cluster.frame, cluster.charge if spec.charge is None else spec.charge, cluster.atoms)
    if spec.charge is not None:
        return _Part(frame, spec.charge, None)
    try:
        return _Part(frame, charge(frame), None)
    except LabelError:
        if not spec.ignores_charge:
            raise
        # any number does, as the labeller does not use it
        return _Part(frame, 0, None)


def fail_impossible(
    queue: Queue,
    spec: Spec,
    watch: Callable[[Outcome, int], None] = lambda told, of: None,
    model: Path | None = None,
) -> None:
    """Mark waiting frames as failed that certainly cannot be labelled, so that none of them is chosen.

    model: a bundle; frames with elements that it does not know fail too. watch: called with each failed frame. Raises
    ConfigError as `label` does where no frame of the queue can be labelled, ModelError for the bundle, and QueueError.
    """
    labeller = spec.labeller()
    rows = _plan(queue, None, None)
    _check_any_possible(queue, rows, spec, labeller)
    known = None if model is None else load_card(model).elements
    worker = f"{secrets.token_hex(4)}/{platform.node()}:{os.getpid()}"
    for row in rows:
        reason = _reason_to_fail(row, spec, labeller)
        if known is not None and (foreign := sorted({int(z) for z in row.kept.frame.numbers} - set(known))):
            reason = f"{model} does not know the atomic numbers {foreign}; take a model that was trained with them"
        if reason is None or queue.claim(worker, spec.lease, row.id) is None:
            continue
        queue.fail(row.id, worker, reason, again=False)
        watch(Outcome(row.id, FAILED, reason=reason), len(rows))


def atoms_of(row: Row, spec: Spec) -> tuple[int, ...] | None:
    """The atoms of a row that its label would contain; None for all, or where nothing can be cut."""
    try:
        return _part(row, spec).atoms
    except LabelError:
        return None


def _find_or_compute(row: Row, spec: Spec, labeller: Labeller, folder: Path) -> tuple[dict[str, Any], Path, bool]:
    """Find or compute a label and save it; return the entry for the queue, its file, and whether it was found."""
    part = _part(row, spec)
    file = _file(folder, row, spec, labeller, part)
    found = file.exists()
    if not found:
        label = labeller.label(part.frame, part.charge, spec.spin)
        # a calculator that keeps atoms of the frame before would give a label of another structure
        if label.forces is not None and label.forces.shape != part.frame.positions.shape:
            raise LabelError(f"{label.code} gave forces of {len(label.forces)} atoms for {len(part.frame.numbers)}")
        _physical(label, part.frame)
        if spec.settings_hash is not None:
            label = replace(label, extra={**label.extra, SETTINGS_KEY: spec.settings_hash})
        _make_folder(file.parent)
        # before the queue knows of it: a kill in between must not cost a day of computing
        write_whole(file, as_json(label.to_dict()))
    label = _read(file)  # always from the file, so that a label is the same whether it was found or computed
    stored = label.to_dict()
    if part.atoms is not None:
        # training needs the atoms that were computed, in the places where they were
        stored["structure"] = structure(part.frame) | {"atoms": list(part.atoms)}
    return stored, file, found


def _file(folder: Path, row: Row, spec: Spec, labeller: Labeller, part: _Part) -> Path:
    """The file of a label, named by a hash of all on which it depends."""
    key = as_json([spec.identity, labeller.method, part.charge, structure(part.frame)])
    return folder / f"{row.id}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> Label:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        for name in ("forces", "forces_error"):
            stored[name] = None if stored[name] is None else np.array(stored[name], dtype=np.float64).reshape(-1, 3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelError(f"the label in {file} cannot be read ({error}): remove it, and label again") from error
    return Label.from_dict(stored)


def _physical(label: Label, frame: Frame) -> None:
    """Refuse unphysical forces: a calculation can converge to nonsense, and one such label spoils a training.

    Raises LabelError.

    A force above `MAX_FORCE` beyond three standard errors, on an atom without a neighbour nearer than 0.7 times the sum
    of both covalent radii: there the bonds of H2, H2O and N2 pull with 20 to 45 eV/Å.
    """
    if label.forces is None:
        return
    sizes = np.linalg.norm(label.forces, axis=1)
    if label.forces_error is not None:
        # noise alone may be large, and is known to be noise
        sizes -= 3 * np.linalg.norm(label.forces_error, axis=1)
    worst = int(sizes.argmax())
    if sizes[worst] <= MAX_FORCE:
        return
    from ase.data import chemical_symbols, covalent_radii
    from ase.neighborlist import neighbor_list

    # an atom that is really close to another may have such a force; without one it is an error of the calculation
    radii = 0.7 * covalent_radii[frame.numbers]
    if worst not in neighbor_list("i", frame.to_atoms(), radii):
        symbol = chemical_symbols[frame.numbers[worst]]
        raise LabelError(
            f"{label.code} gave a force of {sizes[worst]:.1f} eV/Å on atom {worst} ({symbol}), and no other atom is "
            "close enough to explain it: check method, basis, pseudopotential, charge and spin"
        )


def _check_any_possible(queue: Queue, rows: Sequence[Row], spec: Spec, labeller: Labeller) -> None:
    """Refuse settings with which no frame of the queue can be labelled. Raises ConfigError.

    Where all rows to be labelled fail this test, the other rows are tested too: if one of them passes, the settings are
    right, and these frames fail one by one.
    """
    asked = [row.id for row in rows]
    refused = {}
    for row in (*rows, *(row for row in queue.rows() if rows and row.id not in asked)):
        reason = _reason_to_fail(row, spec, labeller)
        if reason is None:
            return
        refused[row.id] = reason
    if refused:
        raise ConfigError(
            f"with these settings none of {len(refused)} frames can be labelled, and none was started; row {asked[0]}: "
            f"{refused[asked[0]]}"
        )


def _reason_to_fail(row: Row, spec: Spec, labeller: Labeller) -> str | None:
    """Why a row cannot be labelled, as far as that is known without computing it."""
    try:
        part = _part(row, spec)
        labeller.check(part.frame, part.charge, spec.spin)
    except LabelError as error:
        return str(error)
    return None


def _plan(queue: Queue, ids: Sequence[int] | None, most: int | None, again: bool = False) -> list[Row]:
    """Rows to be labelled: waiting, or with an expired claim; again: failed rows too."""
    if most is not None and most < 1:
        raise ConfigError(f"most is {most}", "give 1 or more, or leave it out")
    now = time.time()
    free = [
        row
        for row in queue.rows()
        if row.status == WAITING
        or (again and row.status == FAILED)
        # a worker of another host that has died: nobody renews its claim
        or (row.status == CLAIMED and row.expires is not None and row.expires < now)
    ]
    if ids is not None:
        order = {id: rank for rank, id in enumerate(ids)}
        # in the order of the choice, most wanted first
        free = sorted((row for row in free if row.id in order), key=lambda row: order[row.id])
    return free[:most]


def _one_method(queue: Queue, method: str, spec: Spec, mix: bool) -> None:
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


def _release_dead_claims(queue: Queue) -> None:
    """Release the claims of dead processes of this machine; the attempts do not count, since nothing failed."""
    for row in queue.rows(status=CLAIMED):
        # as `label_row` names itself: run/host:pid
        _, _, place = (row.worker or "").partition("/")
        node, _, pid = place.rpartition(":")
        if row.worker is not None and node == platform.node() and pid.isdecimal() and birth(int(pid)) is None:
            with contextlib.suppress(QueueError):  # another run was faster
                queue.release(row.id, row.worker)


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


@contextlib.contextmanager
def _renewing(queue: Queue, id: int, worker: str, lease: float) -> Iterator[None]:
    """Renew a claim for the duration of the block. A claim that was lost is noticed when the label is stored."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease / 3):  # two chances before it expires
            with contextlib.suppress(QueueError):  # the queue is locked: two more attempts fit into the lease
                queue.renew(id, worker, lease)

    thread = threading.Thread(target=renew, name=f"beadwork-claim-{id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


_THREAD = threading.local()


def _labeller(spec: Spec) -> Labeller:
    """One labeller per thread: some take seconds to make, and none may be shared between threads."""
    made = getattr(_THREAD, "labeller", None)
    if made is None or made[0] != spec:
        made = _THREAD.labeller = (spec, spec.labeller())
    return made[1]


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabelError(f"cannot make {folder} for computed labels: {error.strerror}") from error


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


def _duration(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"
