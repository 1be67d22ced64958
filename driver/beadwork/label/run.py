"""The frames of a queue get their labels: claimed, cut, computed, kept safe, stored.

A label is computed once. As soon as it is there it lies as a file in the labels' folder, and only then goes into the
queue; whoever takes the frame again after a kill in between finds it there. A claim is renewed while its worker lives.
A run that was killed leaves claims behind: the next one on the same machine sees that their process is gone and gives
them back; on other machines they run out by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import sys
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
from beadwork.potential.bundle import load_card
from beadwork.processes import birth

#: what became of a frame
DONE, SET_ASIDE, TAKEN = "labelled", "failed", "taken by another"
#: eV/Å; see `_physical`
ABSURD = 100.0
#: in a label's extra: what it was made with, where its method is in the user's words (`Spec.unnamed`)
SETTINGS = "settings"


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one frame. found: it was computed before, and only stored now."""

    id: int
    status: str
    found: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did."""

    told: tuple[Told, ...]

    def count(self, status: str) -> int:
        """How many frames ended so."""
        return sum(t.status == status for t in self.told)

    def __str__(self) -> str:
        found = sum(t.found for t in self.told)
        parts = [f"{self.count(DONE)} labelled" + (f" ({found} had been computed before)" if found else "")]
        parts += [f"{self.count(status)} {status}" for status in (SET_ASIDE, TAKEN) if self.count(status)]
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would do. seconds: of each label, rough. refused: rows that would be set aside, and why."""

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
        wall = max([sum(self.seconds) / workers, *self.seconds])
        lines.append(
            f"time       about {_clock(wall)} with {workers} worker{'s' * (workers > 1)} "
            f"({_clock(sum(self.seconds))} in all, the longest {_clock(max(self.seconds, default=0.0))}); rough"
        )
        lines += [f"set aside  row {id}: {reason}" for id, reason in self.refused.items()]
        return "\n".join(lines)


def label(
    queue: Queue,
    spec: Spec,
    *,
    ids: Sequence[int] | None = None,
    most: int | None = None,
    mix: bool = False,
    watch: Callable[[Told, int], None] = lambda told, of: None,
) -> Report:
    """Label waiting frames, oldest first, and return when all have their label or were set aside.

    ids: these rows alone. most: so many at most. mix: the queue may hold labels of other methods, which stay.
    watch: told of each frame, and of how many. Raises ConfigError for settings that cannot be run, LabelError where
    methods would mix, QueueError. Whatever is raised, KeyboardInterrupt too, claims of this run are given back first.
    """
    labeller = spec.labeller()
    _one_method(queue, labeller.method, spec, mix)
    _give_back_of_the_dead(queue)
    rows = _plan(queue, ids, most)
    _some(queue, rows, spec, labeller)
    folder = folder_of(queue)
    _make(folder)
    run = secrets.token_hex(4)
    told: list[Told] = []
    items = deque(row.id for row in rows)
    try:
        with Pool(spec.jobs, folder) as pool:
            for id, future in pool.each(label_row, items, queue.url, spec, str(folder), run):
                error = future.exception()
                if error is None:
                    told.append(future.result())
                elif lost(error):
                    again = _bury(queue, id, run, spec)
                    if again is None:
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
        _tidy(queue, folder)
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
    """What `beadwork label` does, with a bar on stderr; returns what to print.

    by: the bundle whose features choose the frames that teach most, not the oldest. again: frames that were set aside
    wait once more. dry: say what would be done. Raises LabelError where every frame was set aside, and as `label` and
    `choose` do.
    """
    if again and not dry:
        for row in queue.rows(status=FAILED):
            queue.retry(row.id)
    ids, chosen = None, ""
    if by is not None:
        if most is None:
            raise ConfigError(f"how many frames {by} is to choose is not said", "give --most as well")
        from beadwork.label.choose import from_queue

        if not dry:
            set_aside(queue, spec, _said)
        ids, choice = from_queue(queue, by, most, lambda row: atoms_of(row, spec), again)
        chosen = f"{choice}\n" if choice else ""
    if dry:
        return f"{chosen}{estimate(queue, spec, ids=ids, most=most, mix=mix, again=again)}"
    from tqdm import tqdm

    with tqdm(disable=None, unit="label", dynamic_ncols=True) as bar:

        def watch(told: Told, of: int) -> None:
            bar.total = of
            bar.update()
            _said(told, of)

        report = label(queue, spec, ids=ids, most=most, mix=mix, watch=watch)
    if report.count(SET_ASIDE) and not report.count(DONE):
        raise LabelError(f"no frame was labelled, {report}; the first reason: {report.told[0].reason}")
    return f"{chosen}{report}"


def _said(told: Told, of: int) -> None:
    """Say on stderr what was set aside, above the bar where there is one."""
    if told.status == SET_ASIDE:
        from tqdm import tqdm

        tqdm.write(f"beadwork: row {told.id} is set aside: {told.reason}", file=sys.stderr)


def estimate(
    queue: Queue,
    spec: Spec,
    *,
    ids: Sequence[int] | None = None,
    most: int | None = None,
    mix: bool = False,
    again: bool = False,
) -> Estimate:
    """Say what `label` would do, and change nothing. again: as if what was set aside waited once more."""
    labeller = spec.labeller()
    _one_method(queue, labeller.method, spec, mix)
    folder = folder_of(queue)
    formulas: Counter[str] = Counter()
    seconds, refused, computed = [], {}, 0
    rows = _plan(queue, ids, most, again)
    _some(queue, rows, spec, labeller)
    for row in rows:
        reason = _refusal(row, spec, labeller)
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
    """Where labels lie until the queue has them: `QUEUE.labels` beside an SQLite file, else `labels-…` right here.

    … is a hash of the URL: rows of two queues have the same numbers.
    """
    if "://" in queue.name:
        return Path(f"labels-{hashlib.sha256(queue.name.encode()).hexdigest()[:8]}")
    return Path(f"{queue.name}.labels")


def label_row(id: int, url: str, spec: Spec, folder: str, run: str) -> Told:
    """Label one frame, in whatever process; tries as often as the settings say. For `Pool.each`."""
    queue = Queue(url)
    worker = f"{run}/{platform.node()}:{os.getpid()}"
    while True:
        row = queue.claim(worker, spec.lease, id)
        if row is None:
            return Told(id, TAKEN)
        try:
            with _renewing(queue, id, worker, spec.lease):
                # made under the claim: where that kills the process, it counts as an attempt and is not done for ever
                stored, file, found = _answer(row, spec, _labeller(spec), Path(folder))
        except LabelError as error:
            again = row.attempts < spec.attempts
            try:
                queue.fail(id, worker, str(error), again=again)
            except ClaimLost:
                return Told(id, TAKEN)
            if not again:
                return Told(id, SET_ASIDE, reason=str(error))
        except BaseException:
            with contextlib.suppress(QueueError):  # what is raised says more; the claim runs out by itself
                queue.release(id, worker)
            raise
        else:
            try:
                queue.finish(id, worker, stored)
            except ClaimLost:  # this machine slept for longer than the lease; what was computed stays in its file
                return Told(id, TAKEN)
            file.unlink(missing_ok=True)
            return Told(id, DONE, found)


@dataclass(frozen=True, slots=True)
class _Part:
    """What is computed of a row. atoms: their places in the row's frame, None where it is all of it."""

    frame: Frame
    charge: int
    atoms: tuple[int, ...] | None


def _part(row: Row, spec: Spec) -> _Part:
    """Cut where that is asked for, and tell the charge. Raises LabelError where a cut is lacking, or no charge told."""
    frame = row.kept.frame
    if any(frame.pbc) and spec.cut is None and not spec.periodic:
        raise LabelError(f"the frame is periodic, and {spec.kind} computes clusters: add a table [cut] to the TOML")
    if spec.cut is not None:
        cluster = cut(frame, most_uncertain(row.kept.force_spread), spec.cut)
        return _Part(cluster.frame, cluster.charge if spec.charge is None else spec.charge, cluster.atoms)
    if spec.charge is not None:
        return _Part(frame, spec.charge, None)
    try:
        return _Part(frame, charge(frame), None)
    except LabelError:
        if not spec.ignores_charge:
            raise
        return _Part(frame, 0, None)


def set_aside(
    queue: Queue,
    spec: Spec,
    watch: Callable[[Told, int], None] = lambda told, of: None,
    model: Path | None = None,
) -> None:
    """Set aside the waiting frames of which it is known that they cannot be labelled, before some are chosen to be.

    model: a bundle whose elements alone can be learned; all where None. watch: told of each that is set aside. Raises
    ConfigError as `label` does where no frame of the queue can be labelled, ModelError for the bundle, and QueueError.
    """
    labeller = spec.labeller()
    rows = _plan(queue, None, None)
    _some(queue, rows, spec, labeller)
    known = None if model is None else load_card(model).elements
    worker = f"{secrets.token_hex(4)}/{platform.node()}:{os.getpid()}"
    for row in rows:
        reason = _refusal(row, spec, labeller)
        if known is not None and (foreign := sorted({int(z) for z in row.kept.frame.numbers} - set(known))):
            reason = f"{model} does not know the atomic numbers {foreign}; take a model that was trained with them"
        if reason is None or queue.claim(worker, spec.lease, row.id) is None:
            continue
        queue.fail(row.id, worker, reason, again=False)
        watch(Told(row.id, SET_ASIDE, reason=reason), len(rows))


def atoms_of(row: Row, spec: Spec) -> tuple[int, ...] | None:
    """The atoms of a row that its label would hold; None for all, or where nothing can be cut."""
    try:
        return _part(row, spec).atoms
    except LabelError:
        return None


def _answer(row: Row, spec: Spec, labeller: Labeller, folder: Path) -> tuple[dict[str, Any], Path, bool]:
    """Find or compute a label and keep it safe; return what the queue is to store, its file, and if it was found."""
    part = _part(row, spec)
    file = _file(folder, row, spec, labeller, part)
    found = file.exists()
    if not found:
        label = labeller.label(part.frame, part.charge, spec.spin)
        if label.forces is not None and label.forces.shape != part.frame.positions.shape:
            raise LabelError(f"{label.code} gave forces of {len(label.forces)} atoms for {len(part.frame.numbers)}")
        _physical(label, part.frame)
        if spec.unnamed is not None:
            label = replace(label, extra={**label.extra, SETTINGS: spec.unnamed})
        _make(file.parent)
        write_whole(file, as_json(label.to_dict()))
    label = _read(file)
    stored = label.to_dict()
    if part.atoms is not None:
        stored["structure"] = structure(part.frame) | {"atoms": list(part.atoms)}
    return stored, file, found


def _file(folder: Path, row: Row, spec: Spec, labeller: Labeller, part: _Part) -> Path:
    """Where a label lies: named by all that it depends on."""
    told = as_json([spec.identity, labeller.method, part.charge, structure(part.frame)])
    return folder / f"{row.id}-{hashlib.sha256(told.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> Label:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        for name in ("forces", "forces_error"):
            stored[name] = None if stored[name] is None else np.array(stored[name], dtype=np.float64).reshape(-1, 3)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelError(f"the label in {file} cannot be read ({error}): remove it, and label again") from error
    return Label.from_dict(stored)


def _physical(label: Label, frame: Frame) -> None:
    """Refuse forces that no ground state has. Raises LabelError.

    A force above `ABSURD` beyond three standard errors, on an atom without a neighbour nearer than 0.7 times the sum of
    both covalent radii: there the bonds of H2, H2O and N2 pull with 20 to 45 eV/Å.
    """
    if label.forces is None:
        return
    sizes = np.linalg.norm(label.forces, axis=1)
    if label.forces_error is not None:
        sizes -= 3 * np.linalg.norm(label.forces_error, axis=1)
    worst = int(sizes.argmax())
    if sizes[worst] <= ABSURD:
        return
    from ase.data import chemical_symbols, covalent_radii
    from ase.neighborlist import neighbor_list

    radii = 0.7 * covalent_radii[frame.numbers]
    if worst not in neighbor_list("i", frame.to_atoms(), radii):
        symbol = chemical_symbols[frame.numbers[worst]]
        raise LabelError(
            f"{label.code} gave a force of {sizes[worst]:.1f} eV/Å on atom {worst} ({symbol}), and no other atom is so "
            "near that it could be: look at method, basis, pseudopotential, charge and spin"
        )


def _some(queue: Queue, rows: Sequence[Row], spec: Spec, labeller: Labeller) -> None:
    """Refuse settings with which no frame of the queue can be labelled. Raises ConfigError.

    Where the rows to be labelled all fail, the queue's others are asked too: one that passes shows that it is these
    frames' fault, for which they are set aside.
    """
    asked = [row.id for row in rows]
    refused = {}
    for row in (*rows, *(row for row in queue.rows() if rows and row.id not in asked)):
        reason = _refusal(row, spec, labeller)
        if reason is None:
            return
        refused[row.id] = reason
    if refused:
        raise ConfigError(
            f"with these settings none of {len(refused)} frames can be labelled, and none was begun; row {asked[0]}: "
            f"{refused[asked[0]]}"
        )


def _refusal(row: Row, spec: Spec, labeller: Labeller) -> str | None:
    """Why a row cannot be labelled, as far as that is known before it is begun."""
    try:
        part = _part(row, spec)
        labeller.check(part.frame, part.charge, spec.spin)
    except LabelError as error:
        return str(error)
    return None


def _plan(queue: Queue, ids: Sequence[int] | None, most: int | None, again: bool = False) -> list[Row]:
    """Rows to be labelled: waiting, or claimed by someone whose time is up; again: those that were set aside, too."""
    if most is not None and most < 1:
        raise ConfigError(f"most is {most}", "give 1 or more, or leave it out")
    now = time.time()
    free = [
        row
        for row in queue.rows()
        if row.status == WAITING
        or (again and row.status == FAILED)
        or (row.status == CLAIMED and row.expires is not None and row.expires < now)
    ]
    if ids is not None:
        order = {id: rank for rank, id in enumerate(ids)}
        free = sorted((row for row in free if row.id in order), key=lambda row: order[row.id])
    return free[:most]


def _one_method(queue: Queue, method: str, spec: Spec, mix: bool) -> None:
    """Refuse a queue whose labels are not comparable with those to come. Raises LabelError."""
    rows = queue.rows(status=LABELLED)
    labels = [row.label or {} for row in rows]
    for row, stored in zip(rows, labels, strict=True):
        if stored.get("method") == method:
            numbers = stored.get("structure", {}).get("numbers", row.kept.frame.numbers)
            check_stored(
                str(stored.get("code")), str(stored.get("input")), numbers, f"row {row.id} of the queue {queue.name}"
            )
    others = Counter(str(label.get("method")) for label in labels)
    del others[method]
    mine = [label for label in labels if label.get("method") == method and SETTINGS in label.get("extra", {})]
    unlike = sum(label["extra"][SETTINGS] != spec.unnamed for label in mine)
    if unlike and not spec.same_theory:
        raise LabelError(
            f"the queue {queue.name} holds {unlike} labels that are called {method!r} too, but were made with other "
            "settings (arguments, command, files, patterns)",
            "name the level of theory anew where it changed; where it did not, set same_theory = true in the TOML",
        )
    if others and not mix:
        held = "; ".join(f"{count} of {name}" for name, count in sorted(others.items()))
        raise LabelError(
            f"the queue {queue.name} holds labels of another method ({held}), and the labeller's is {method}",
            "use another queue, or say --mix-methods; training takes one method at a time in any case",
        )


def _give_back_of_the_dead(queue: Queue) -> None:
    """Free the claims of processes of this machine that are gone; the attempts do not count: it was not the frame."""
    for row in queue.rows(status=CLAIMED):
        _, _, place = (row.worker or "").partition("/")
        node, _, pid = place.rpartition(":")
        if row.worker is not None and node == platform.node() and pid.isdigit() and birth(int(pid)) is None:
            with contextlib.suppress(QueueError):  # another run was faster
                queue.release(row.id, row.worker)


def _bury(queue: Queue, id: int, run: str, spec: Spec) -> Told | None:
    """A worker of this run died with this row: give it back, or set it aside. None: it is to be tried again."""
    row = queue.get(id)
    if row.status == LABELLED:  # it died after its last deed
        return Told(id, DONE)
    if row.status != CLAIMED or row.worker is None or not row.worker.startswith(f"{run}/"):
        return (
            None if row.status == WAITING else Told(id, SET_ASIDE if row.status == FAILED else TAKEN, reason=row.reason)
        )
    again = row.attempts < spec.attempts
    reason = "its worker died: killed, out of memory, or its node went"
    queue.fail(id, row.worker, reason, again=again)
    return None if again else Told(id, SET_ASIDE, reason=reason)


@contextlib.contextmanager
def _renewing(queue: Queue, id: int, worker: str, lease: float) -> Iterator[None]:
    """Renew a claim as long as this lasts. One that was lost shows when the label is stored."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(lease / 3):
            with contextlib.suppress(QueueError):  # busy: the next third of the lease is as good
                queue.renew(id, worker, lease)

    thread = threading.Thread(target=renew, name=f"beadwork-claim-{id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


_MADE = threading.local()


def _labeller(spec: Spec) -> Labeller:
    """One labeller a thread: some are slow to make, and none is shared."""
    made = getattr(_MADE, "labeller", None)
    if made is None or made[0] != spec:
        made = _MADE.labeller = (spec, spec.labeller())
    return made[1]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabelError(f"cannot make {folder} for labels on their way: {error.strerror}") from error


def _tidy(queue: Queue, folder: Path) -> None:
    """Remove what is no longer on its way: labels that the queue has, halves of killed writers, an empty folder."""
    labelled = {row.id for row in queue.rows(status=LABELLED)}
    for file in folder.glob("*.json"):
        number = file.name.partition("-")[0]
        if number.isdigit() and int(number) in labelled:
            file.unlink(missing_ok=True)
    for file in folder.glob(f".*.{platform.node()}.*.part"):  # whether one of another host lives cannot be told here
        pid = file.name.split(".")[-3]
        if pid.isdigit() and birth(int(pid)) is None:
            file.unlink(missing_ok=True)
    if not queue.rows(status=CLAIMED):  # another run may be about to put a label there
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def _clock(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} s"
