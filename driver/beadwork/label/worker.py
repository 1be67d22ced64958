"""One frame's label, in any process: claim, cut, compute, save, store.

A label is computed once. It is written to a file in the labels' folder as soon as it is computed, and only then stored
in the queue; a worker that claims the frame again after a kill in between finds the file. A claim is renewed while its
worker lives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.disk import write_whole
from beadwork.errors import LabelError, QueueError
from beadwork.frame import Frame
from beadwork.harvest.queue import FAILED, LABELLED, ClaimLost, Queue
from beadwork.harvest.row import Row
from beadwork.label.clusters import Cut, charge, cut, most_uncertain
from beadwork.label.label import Label, Labeller, as_json, structure
from beadwork.label.spec import Spec
from beadwork.processes import own_name

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


def label_row(id: int, url: str, spec: Spec, folder: str, run: str) -> Outcome:
    """Label one frame, in any process, with as many attempts as the settings allow. For `Pool.each`."""
    queue = Queue(url)
    worker = f"{run}/{own_name()}"
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
class Part:
    """The part of a row that is computed, with its charge (e) and unpaired electrons.

    charge, spin: None where nobody says them and the labeller does not use them. atoms: their indices in the row's
    frame, None for the whole frame.
    """

    frame: Frame
    charge: int | None
    spin: int | None
    atoms: tuple[int, ...] | None

    @property
    def given(self) -> tuple[Frame, int, int]:
        """What a labeller is given."""
        return self.frame, self.charge or 0, self.spin or 0


def part_of(row: Row, spec: Spec) -> Part:
    """Cut where requested, and determine charge and spin: as the settings say, else the frame, else its atoms.

    Raises LabelError where a cut is missing, the charge is unknown, or two of these contradict each other.
    """
    frame = row.kept.frame
    if any(frame.pbc) and spec.cut is None and not spec.periodic:
        raise LabelError(f"the frame is periodic, and {spec.kind} computes clusters: add a table [cut] to the TOML")
    return _part_of_frame(frame, spec) if spec.cut is None else _part_of_cluster(row, spec, spec.cut)


def _part_of_cluster(row: Row, spec: Spec, how: Cut) -> Part:
    frame = row.kept.frame
    # round the atom of which the models know least, which the label is to teach
    cluster = cut(frame, most_uncertain(row.kept.force_spread), how)
    if spec.charge is not None:
        if not (spec.spin or spec.ignores_charge):
            _check_cluster(cluster.frame, spec.charge)
        return Part(cluster.frame, spec.charge, spec.spin or 0, cluster.atoms)
    if spec.spin or frame.spin:
        raise LabelError(
            f"the frame has {spec.spin or frame.spin} unpaired electrons, and a cut has a known charge in closed "
            "shells alone",
            "give charge and spin of the cluster in the TOML",
        )
    # also where nobody says it: what the atoms of the whole frame do not tell, those of a part tell no better
    if frame.charge is not None or not spec.ignores_charge:
        _check_total(frame.charge, charge(frame))
    return Part(cluster.frame, cluster.charge, 0, cluster.atoms)


def _check_cluster(cluster: Frame, said: int) -> None:
    """Refuse a charge of the TOML that the molecules and ions of a cut do not have in closed shells."""
    try:
        total = charge(cluster)
    except LabelError:
        return  # what the atoms cannot tell, the TOML does
    if said != total:
        formula = cluster.to_atoms().symbols.get_chemical_formula()
        raise LabelError(
            f"the TOML says charge {said}, and the cluster cut from the frame, {formula}, has {total} in closed shells",
            "leave charge out of the TOML: each cut has its own; where its shells are open, give spin too",
        )


def _part_of_frame(frame: Frame, spec: Spec) -> Part:
    if spec.ignores_charge:
        return Part(frame, *_unused(frame, spec), None)
    spin = spec.spin if spec.spin is not None else frame.spin or 0
    for what, own, told in (("charge", frame.charge, spec.charge), ("spin", frame.spin, spec.spin)):
        if None not in (own, told) and own != told:
            raise LabelError(
                f"the frame has the {what} {own}, and the TOML says {told}",
                f"correct {what} in the TOML, or leave it out there",
            )
    if spec.charge is not None:
        return Part(frame, spec.charge, spin, None)
    # the atoms tell the charge of closed shells alone
    if spin:
        if frame.charge is None:
            raise LabelError(
                f"the frame has {spin} unpaired electrons, and nothing says its charge",
                "give charge in the TOML, or in the run or the file",
            )
        return Part(frame, frame.charge, spin, None)
    try:
        total = charge(frame)
    except LabelError:
        # what the atoms cannot tell, the frame may
        if frame.charge is None:
            raise
        return Part(frame, frame.charge, spin, None)
    _check_total(frame.charge, total)
    return Part(frame, total, spin, None)


def _unused(frame: Frame, spec: Spec) -> tuple[int | None, int | None]:
    """Charge and spin in the label of a labeller that does not use them: what is said, else what the atoms tell."""
    own = frame.charge if spec.charge is None else spec.charge
    spin = frame.spin if spec.spin is None else spec.spin
    if own is None and not spin:
        with contextlib.suppress(LabelError):
            return charge(frame), 0  # in closed shells
    return own, spin


def _check_total(said: int | None, total: int) -> None:
    if said not in (None, total):
        raise LabelError(
            f"the frame has the charge {said}, and its molecules and ions have {total} together in closed shells",
            "correct the charge of the run or the file; where it is right, give charge and spin in the TOML",
        )


def _find_or_compute(row: Row, spec: Spec, labeller: Labeller, folder: Path) -> tuple[dict[str, Any], Path, bool]:
    """Find or compute a label and save it; return the entry for the queue, its file, and whether it was found."""
    part = part_of(row, spec)
    file = file_of(folder, row, spec, labeller, part)
    found = file.exists()
    if not found:
        # of one that does not use them, what is not known is not said
        label = replace(labeller.label(*part.given), charge=part.charge, spin=part.spin)
        # a calculator that keeps atoms of the frame before would give a label of another structure
        if label.forces is not None and label.forces.shape != part.frame.positions.shape:
            raise LabelError(f"{label.code} gave forces of {len(label.forces)} atoms for {len(part.frame.numbers)}")
        _physical(label, part.frame)
        if spec.settings_hash is not None:
            label = replace(label, extra={**label.extra, SETTINGS_KEY: spec.settings_hash})
        make_folder(file.parent)
        # before the queue knows of it: a kill in between must not cost a day of computing
        write_whole(file, as_json(label.to_dict()))
    label = _read(file)  # always from the file, so that a label is the same whether it was found or computed
    stored = label.to_dict()
    if part.atoms is not None:
        # training needs the atoms that were computed, in the places where they were
        stored["structure"] = structure(part.frame) | {"atoms": list(part.atoms)}
    return stored, file, found


def file_of(folder: Path, row: Row, spec: Spec, labeller: Labeller, part: Part) -> Path:
    """The file of a label, named by a hash of all on which it depends."""
    key = as_json([spec.identity, labeller.method, part.charge, structure(part.frame)])
    return folder / f"{row.id}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> Label:
    try:
        return Label.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, LabelError) as error:
        raise LabelError(f"the label in {file} cannot be read ({error}): remove it, and label again") from error


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


def folder_of(queue: Queue) -> Path:
    """The folder of labels until the queue has them: `QUEUE.labels` beside an SQLite file, else `labels-HASH` here.

    HASH is of the URL, because two databases have rows of the same numbers.
    """
    if "://" in queue.name:
        # a database has no folder; this one is the user's own, where he stands
        return Path(f"labels-{hashlib.sha256(queue.name.encode()).hexdigest()[:8]}")
    return Path(f"{queue.name}.labels")


def make_folder(folder: Path) -> None:
    """Make the folder of computed labels. Raises LabelError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabelError(f"cannot make {folder} for computed labels: {error.strerror}") from error
