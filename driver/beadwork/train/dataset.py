"""Make training examples from labels: Δ = label - baseline, on the structure that was computed, with errors and origin.

A dataset is all examples of one committee. Its file, dataset.json, lies beside the members and has every frame with its
label, code, input and simulation; each member's card names it by its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.disk import reading, whole, write_whole
from beadwork.errors import GeometryError, LabelError, ModelError
from beadwork.frame import FloatArray, Frame
from beadwork.harvest.listing import attach_label
from beadwork.harvest.queue import LABELLED, Queue
from beadwork.label.codes.basis import check_stored
from beadwork.label.codes.command import ENERGIES, LENGTHS
from beadwork.label.label import Label, as_json, computed, frame_of, plain, structure
from beadwork.log import logger
from beadwork.potential.additions import format_additions, open_additions, same
from beadwork.potential.bundle import load_card
from beadwork.potential.engine import Engine
from beadwork.potential.evaluation import check_finite
from beadwork.potential.graph import MIN_DISTANCE, build
from beadwork.potential.load import load
from beadwork.potential.state import CHARGE
from beadwork.train.duplicates import firsts, same_turn

DATASET = "dataset.json"
FRAMES = "frames.extxyz"
FORMAT = 1
#: frames evaluated at once
BATCH = 256
#: suffixes of files with labels; every other source is a queue
LABEL_SUFFIXES = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz")
#: cosine between labels and baseline, their forces or the changes of their energies, above which they differ only by a
#: factor
SAME_DIRECTION_COSINE = 0.9
#: how far (in logarithms) that factor may be from a ratio of units
SAME_UNIT_LOG_RATIO = 0.1
#: a factor that no baseline explains, given so many frames, or so many energies beyond one of each composition: fewer
#: may lie along each other by chance, or by symmetry near a minimum
UNLIKE_FACTOR, FRAMES_FOR_FACTOR = 3.0, 10
#: units in which energies and forces are also found, in eV and eV/Å
_ENERGIES = {**ENERGIES, "mev": 1e-3}
_FORCES = {f"{e}/{x}": ENERGIES[e] / LENGTHS[x] for e in ENERGIES for x in LENGTHS} | {
    "mev/angstrom": 1e-3,
    "ev/nm": 0.1,
    "kj/mol/nm": 0.1 * ENERGIES["kj/mol"],
}
#: eV an atom and eV/Å; two labels of one structure differ by less where only the convergence of their codes differs
SAME_ENERGY, SAME_FORCE = 1e-3, 1e-2
#: standard errors; two labels of one structure that are further apart are of two things
AGREEING_ERRORS = 5.0
#: eV/Å and eV/Å²; how fast energy and forces change at most between structures that count as equal
STEEPEST, STIFFEST = 10.0, 100.0
#: e Å and e Å²/V an atom, and how fast these change at most, e and e Å/V: the same of dipoles and polarizabilities
SAME_DIPOLE, SAME_POLARIZABILITY = 1e-3, 3e-4
LARGEST_BORN_CHARGE, LARGEST_RAMAN = 10.0, 1.0
#: Å; an atom without another one within this distance is isolated
ISOLATED_DISTANCE = 6.0


@dataclass(frozen=True, slots=True)
class KnownFrame:
    """A structure that a committee was trained or tested on. simulation, step: as in `Example`."""

    frame: Frame
    held_out: bool
    simulation: str | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A structure, its label, and the energy and forces to train on.

    frame: the structure that was computed, with the label's charge and spin where it does not say its own. energy: eV,
    forces: (N, 3) eV/Å or None: label minus baseline, or the label itself where `baseline` is None. baseline: hash of
    the baseline's model. source: name of the queue or file it came from. row: in that queue, or the number of the
    frame in that file. simulation: hash of the simulation's file, None where unknown. step: of that simulation, None
    where unknown.
    """

    frame: Frame
    label: Label
    energy: float
    forces: FloatArray | None
    source: str
    row: int
    simulation: str | None = None
    baseline: str | None = None
    step: int | None = None
    #: what is added to the baseline by formula, and so is not to be learned, parameters by kind
    add: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frame, label = self.frame, self.label
        charge = label.charge if frame.charge is None else frame.charge
        # of before, labels that do not know their spin have 0, also of an odd number of electrons, which cannot have it
        known = label.spin or (int(frame.numbers.sum()) - (charge or 0)) % 2 == 0
        spin = frame.spin if frame.spin is not None else label.spin if known else None
        # what is evaluated, and not only told: a model may want to know them
        object.__setattr__(self, "frame", replace(frame, charge=charge, spin=spin))

    @property
    def charge(self) -> int | None:
        """e; None where it is not said."""
        return self.label.charge

    @property
    def energy_error(self) -> float:
        """Standard error in eV; the baseline has none."""
        return self.label.energy_error

    @property
    def forces_error(self) -> FloatArray | None:
        """Standard errors (N, 3) in eV/Å, None where there are none."""
        return self.label.forces_error

    def known_frame(self, held_out: bool) -> KnownFrame:
        """The part of it that later generations need."""
        return KnownFrame(self.frame, held_out, self.simulation, self.step)

    @property
    def hash(self) -> str:
        """`sha256:` and the hash of structure and label together."""
        frame = self.frame
        digest = hashlib.sha256(f"{self.label.hash} {list(map(bool, frame.pbc))}".encode())
        for values, kind in ((frame.numbers, "<i8"), (frame.positions, "<f8"), (frame.cell, "<f8")):
            digest.update(np.ascontiguousarray(values, dtype=kind).tobytes())
        return f"sha256:{digest.hexdigest()}"

    @property
    def place(self) -> str:
        """Its origin for messages: `frame 3 of labels.extxyz`, `row 3 of queue.db`."""
        return f"{'frame' if self.source.lower().endswith(LABEL_SUFFIXES) else 'row'} {self.row} of {self.source}"

    @property
    def isolated(self) -> bool:
        """Whether it is an isolated atom: its energy is a reference energy, and it has no forces to train on."""
        frame = self.frame
        if len(frame.numbers) != 1:
            return False
        # a single atom in a small periodic cell has its own images as neighbours, and is a crystal
        # the nearest images are among the 26 neighbouring cells, of a cell that is not extremely skew
        shifts = np.array(list(product(*((-1, 0, 1) if periodic else (0,) for periodic in frame.pbc))))
        images = np.linalg.norm(shifts[shifts.any(axis=1)] @ frame.cell, axis=1)
        return bool(images.min(initial=np.inf) > ISOLATED_DISTANCE)

    @property
    def composition(self) -> str:
        """Formula and charge, e.g. `H3O +1`."""
        return _signed(str(self.frame.to_atoms().symbols.get_chemical_formula()), self.charge)

    @property
    def solute(self) -> str:
        """What remains without all water molecules, e.g. `H +1` for a protonated cluster; `water` where nothing
        does."""
        kinds, counts = np.unique(self.frame.numbers, return_counts=True)
        left = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
        waters = min(left.get(8, 0), (left.get(1, 0) + 1) // 2)  # OH- is a water that lacks a hydrogen
        left[8] = left.get(8, 0) - waters
        left[1] = left.get(1, 0) - 2 * waters
        import ase

        name = "".join(f"{ase.Atom(z).symbol}{n if n != 1 else ''}" for z, n in sorted(left.items()) if n)
        return _signed(name or "water", self.charge)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples of one method against one baseline, and which of them are held out from training.

    before: other structures, on which the committees were trained or tested from whose weights this one started. Raises
    LabelError for no examples, more than one method or baseline, one label twice, or two charges or spins of one
    composition, which no MACE model can distinguish.
    """

    examples: tuple[Example, ...]
    held_out: tuple[bool, ...]
    before: tuple[KnownFrame, ...] = ()

    def __post_init__(self) -> None:
        check(self.examples)
        # a label that is given twice would count twice
        seen: set[str] = set()
        for e in self.examples:
            if e.hash in seen:
                raise LabelError(f"the dataset: the label of {e.place} is there twice", "give each label once")
            seen.add(e.hash)
        if len(self.held_out) != len(self.examples):
            raise LabelError(f"{len(self.held_out)} marks of what is held out do not fit {len(self.examples)} examples")

    @property
    def method(self) -> str:
        """Level of theory of all labels."""
        return self.examples[0].label.method

    @property
    def baseline(self) -> str | None:
        """Hash of the baseline's model; None where the labels themselves are learned."""
        return self.examples[0].baseline

    @property
    def add(self) -> Mapping[str, str]:
        """What is added to the baseline by formula where the models are served."""
        return self.examples[0].add

    @property
    def hash(self) -> str:
        """`sha256:` and the hash of the baseline, all labels and which are held out, independent of their order."""
        # sorted: the order of rows in a queue, or of files on a command line, makes no other dataset
        lines = sorted(f"{e.hash} {out}" for e, out in zip(self.examples, self.held_out, strict=True))
        # charge and spin belong to labels: without them datasets of an earlier beadwork keep their hash
        past = [(replace(met.frame, charge=None, spin=None), met.held_out) for met in self.before]
        lines += sorted(_hash(as_json([structure(frame), held_out])) for frame, held_out in past)
        # nothing added is no line: datasets of an earlier beadwork keep their hash
        added = [format_additions(same(self.add))] if self.add else []
        return _hash("\n".join([str(self.baseline), *added, *lines]))

    @property
    def training(self) -> list[Example]:
        """The examples for training."""
        return [e for e, out in zip(self.examples, self.held_out, strict=True) if not out]

    @property
    def testing(self) -> list[Example]:
        """The held-out examples."""
        return [e for e, out in zip(self.examples, self.held_out, strict=True) if out]

    @property
    def past(self) -> list[KnownFrame]:
        """Every structure on which these models or earlier generations were trained or tested."""
        now = (e.known_frame(out) for e, out in zip(self.examples, self.held_out, strict=True))
        return [*self.before, *now]

    @property
    def learned(self) -> list[Frame]:
        """Every structure on which these models or earlier generations were trained."""
        return [met.frame for met in self.past if not met.held_out]

    def write(self, folder: Path) -> None:
        """Write dataset.json, with all digits, and frames.extxyz, the same for other programs, into a folder."""
        # each input once: those of a thousand frames are often one text
        inputs = {_hash(e.label.input): e.label.input for e in self.examples}
        data = {
            "format": FORMAT,
            "hash": self.hash,
            "method": self.method,
            "baseline": self.baseline,
            "add": dict(self.add),
            "units": {"energy": "eV", "length": "angstrom"},
            "inputs": inputs,
            "frames": [_to_json(e) | {"held_out": h} for e, h in zip(self.examples, self.held_out, strict=True)],
            "before": [
                structure(met.frame) | {"held_out": met.held_out, "simulation": met.simulation, "step": met.step}
                for met in self.before
            ],
        }
        folder.mkdir(parents=True, exist_ok=True)
        import ase.io

        atoms = [to_atoms(e) for e in self.examples]
        for one, out in zip(atoms, self.held_out, strict=True):
            one.info["held_out"] = out
        # for other programs and for people; nothing here reads it again
        with whole(folder / FRAMES) as file:
            ase.io.write(file, atoms, format="extxyz")
        # last, because its presence means that the folder is complete
        write_whole(folder / DATASET, json.dumps(data, separators=(",", ":"), default=plain))

    @classmethod
    def read(cls, folder: Path) -> Dataset:
        """Read the dataset of a committee's folder. Raises LabelError where it is missing, damaged or changed."""
        file = folder / DATASET
        with reading(file, LabelError, "copy it again"):
            try:
                data = json.loads(file.read_text(encoding="utf-8"))
            except FileNotFoundError as error:
                raise LabelError(f"{file} is missing: {folder} was not made by beadwork train") from error
            if data["format"] != FORMAT:
                raise LabelError(f"{file} has format {data['format']!r}, this beadwork reads {FORMAT}", "train again")
            examples = tuple(_from_json(f, data) for f in data["frames"])
            held_out = tuple(bool(f["held_out"]) for f in data["frames"])
            before = tuple(
                KnownFrame(frame_of(f), bool(f["held_out"]), f.get("simulation"), f.get("step"))
                for f in data.get("before", ())
            )
            stored = str(data["hash"])
            dataset = cls(examples, held_out, before)
            # the cards of the models name this hash, so an edited label must not pass for the one that they learned
            if dataset.hash != stored:
                raise LabelError(f"{file} was changed since it was written (hash {dataset.hash}, stored {stored})")
        return dataset


def from_queue(
    queue: Queue | str | os.PathLike[str],
    baseline: Path | None,
    method: str | None = None,
    rows: Collection[int] | None = None,
    add: Mapping[str, str] | None = None,
) -> list[Example]:
    """Make examples of all labelled rows of a queue, oldest first.

    method: take only labels of this method. rows: of these rows alone; a copy of one of them in another row is none of
    theirs. add: as `difference` has it. Raises LabelError for a label that is damaged or does not fit its frame, and
    where labels of several methods would be mixed.
    """
    queue = queue if isinstance(queue, Queue) else Queue(queue)
    found = []
    for row in queue.rows(status=LABELLED):
        frame, label = computed(row)
        if method in (None, label.method) and (rows is None or row.id in rows):
            kept = row.kept
            # for a frame that the user added, `simulation` is the hash of the file of frames, which is no simulation
            ours = kept.simulation if kept.models or kept.step is not None else None
            found.append(Example(frame, label, 0.0, None, Path(queue.name).name, row.id, ours, step=kept.step))
    return difference(found, baseline, f"the queue {queue.name}", add)


def difference(
    labelled: Sequence[Example],
    baseline: Path | None,
    where: str = "the labels",
    add: Mapping[str, str] | None = None,
) -> list[Example]:
    """Fill in energy and forces: label minus baseline, by the same engine that will serve the baseline.

    Labels that are there already are left out. baseline: a bundle, or None to train on the labels themselves. add: what
    will be added by formula (`potential.additions`), and is taken from the labels with the baseline or alone. Raises
    LabelError as `check` does, for unphysical structures, for two labels of one structure that contradict each other,
    and for labels that do not say a charge or a spin that is wanted, ModelError for a baseline that does not know an
    element.
    """
    # before the baseline is evaluated, which takes minutes
    check(labelled, where)
    for start in range(0, len(labelled), BATCH):
        _check_structures(labelled[start : start + BATCH])
    labelled = once(labelled, where)
    add = dict(add or {})
    if baseline is None:
        # a baseline learns the labels themselves
        whole = [replace(e, energy=e.label.energy, forces=e.label.forces, baseline=None, add=add) for e in labelled]
        return _without(whole, add)
    potential = load(baseline, add=add)
    for e in labelled:
        try:
            potential.check_species(np.unique(e.frame.numbers))
        except ModelError as error:
            raise ModelError(f"{e.place}: {error.what}", error.remedy) from error
    _check_told(labelled, (potential.baseline, *potential.additions))
    # the largest frame: on a single atom every engine agrees with the reference
    potential.select_backends(max(labelled, key=lambda e: len(e.frame.numbers)).frame)
    name = load_card(baseline).hash
    examples = []
    pairs = []
    for start in range(0, len(labelled), BATCH):
        batch = labelled[start : start + BATCH]
        result = potential.evaluate([e.frame for e in batch])
        for e, energy, a, b in zip(batch, result.energies, result.ptr[:-1], result.ptr[1:], strict=True):
            forces = None
            if e.label.forces is not None:
                forces = e.label.forces - result.forces[a:b]
                pairs.append((e.label.forces, result.forces[a:b]))
            examples.append(replace(e, energy=e.label.energy - float(energy), forces=forces, baseline=name, add=add))
    if pairs:
        label, own = (np.concatenate(forces) for forces in zip(*pairs, strict=True))
        _check_unit(label, own, len(pairs), ("forces", "eV/Å", "gradients"), _FORCES, where)
    _check_energies(examples, where)
    return examples


def _without(examples: list[Example], add: Mapping[str, str]) -> list[Example]:
    """The examples less what is added by formula."""
    numbers = np.unique(np.concatenate([e.frame.numbers for e in examples]))
    for engine in open_additions(add, numbers.tolist()):
        _check_told(examples, [engine])
        for start in range(0, len(examples), BATCH):
            batch = examples[start : start + BATCH]
            graph = build([e.frame for e in batch], engine.cutoff)
            answer = engine.evaluate(graph)
            check_finite(engine.name, graph, answer)
            for k, e in enumerate(batch):
                part = answer.forces[graph.ptr[k] : graph.ptr[k + 1]]
                examples[start + k] = replace(
                    e,
                    energy=e.energy - float(answer.energies[k]),
                    forces=None if e.forces is None else e.forces - part,
                )
    return examples


def _check_told(examples: Sequence[Example], engines: Iterable[Engine | None]) -> None:
    """Refuse a label that does not say what a model wants to know: that of an ion would be taken for another one's."""
    for engine in engines:
        for name in getattr(engine, "wants", ()):
            told = "charge" if name == CHARGE else "spin"
            for e in examples:
                if getattr(e.frame, told) is None:
                    what = "total charge" if name == CHARGE else "number of unpaired electrons"
                    raise LabelError(
                        f"{e.place} does not say its {what}, which {engine.name if engine else ''} wants",
                        f"give {told} in the comment line of each frame, also where it is 0, or label with {told} in "
                        "the labeller's TOML",
                    )


def _check_energies(examples: Sequence[Example], where: str) -> None:
    """Refuse energies that change from frame to frame as the baseline's do, but by a factor: they are not in eV.

    Within one composition, since any constant an atom, an ion or a molecule is another zero and no unit.
    """
    groups: dict[str, list[tuple[float, float]]] = {}
    for e in examples:
        groups.setdefault(e.composition, []).append((e.label.energy, e.label.energy - e.energy))
    # what is left without the mean of each group: as many numbers as count frames say something of their own
    changes = [np.array(group) - np.mean(group, axis=0) for group in groups.values()]
    label, own = np.concatenate(changes).T
    frames = len(examples) - len(groups)
    if frames >= FRAMES_FOR_FACTOR:
        _check_unit(label, own, frames, ("energies", "eV", "energies of the other sign"), _ENERGIES, where)


def _check_unit(
    label: FloatArray,
    baseline: FloatArray,
    frames: int,
    names: tuple[str, str, str],
    units: Mapping[str, float],
    where: str,
) -> None:
    """Refuse labels that are the baseline's times a ratio of units, -1, or any factor that no baseline explains.

    A file names no units, and Δ trained on such labels would be nonsense that looks like a large correction. Noise that
    is not far below the changes themselves takes the labels out of the baseline's direction, and nothing is refused.

    names: what they are, their unit, and what they are where the factor is negative. units: by name, in ours.
    """
    # over all frames at once: single atoms may lie along the baseline by chance
    size = float(np.linalg.norm(label)) * float(np.linalg.norm(baseline))
    along = float((label * baseline).sum()) / max(size, 1e-12)
    times = float(np.linalg.norm(label)) / max(float(np.linalg.norm(baseline)), 1e-12)
    # a good baseline's are along the label's too: only together with the ratio below it is suspicious
    if abs(along) < SAME_DIRECTION_COSINE:
        return
    what, unit, negative = names
    # in logarithms, since 1/27 is as far off as 27
    near = min(units, key=lambda name: abs(np.log(times * units[name])))
    of_unit = units[near] != 1 and abs(np.log(times * units[near])) <= SAME_UNIT_LOG_RATIO
    if along > 0 and not of_unit and (frames < FRAMES_FOR_FACTOR or abs(np.log(times)) <= np.log(UNLIKE_FACTOR)):
        return
    raise LabelError(
        f"{where}: the labels' {what} are {np.copysign(times, along):.3g} times the baseline's"
        + (f", as {negative} would be" if along < 0 else f", as {what} in {near} would be" if of_unit else "")
        + f"; give {what} in {unit}"
    )


def once(examples: Sequence[Example], where: str) -> list[Example]:
    """The examples without those whose structure and label are there already, which would count twice.

    Two noisy labels of one structure are two measurements, unless one is a copy of the other. Raises LabelError for two
    labels of one structure that contradict each other beyond their standard errors, in energy, forces, dipole or
    polarizability.
    """
    kind = firsts([e.frame for e in examples])
    known: dict[int, list[Example]] = {}
    again: list[tuple[int, Example]] = []
    # those with forces first: an energy alone says nothing more than they do
    for number in sorted(range(len(examples)), key=lambda n: (examples[n].label.forces is None, n)):
        e = examples[number]
        # every isolated atom of one element is one structure; their energies are compared where they are used
        same = [] if e.isolated else known.setdefault(kind[number], [])
        for other in same:
            _check_agreement(other, e, where)
        if first := next((other for other in same if _says_no_more(other, e)), None):
            again.append((number, first))
        else:
            same.append(e)
    if again:
        number, first = min(again, key=lambda pair: pair[0])
        logger.info(
            "%s: %d labels are there already, and count once (that of %s is that of %s)",
            where,
            len(again),
            examples[number].place,
            first.place,
        )
    left_out = {number for number, _ in again}
    return [e for number, e in enumerate(examples) if number not in left_out]


def _says_no_more(one: Example, other: Example) -> bool:
    """Whether the second of two labels of one structure, which agree, says nothing that the first does not."""
    if any(
        getattr(other.label, name) is not None and getattr(one.label, name) is None
        for name in ("forces", "dipole", "polarizability")
    ):
        return False
    noisy = [e for e in (one, other) if e.energy_error or e.forces_error is not None]
    # two measurements of one thing are never equal by chance
    return not noisy or (len(noisy) == 2 and one.label.energy == other.label.energy)


def _check_agreement(one: Example, other: Example, where: str) -> None:
    """Refuse two labels of one structure that contradict each other. Raises LabelError."""
    turned, moved = same_turn(one.frame, other.frame)
    apart = (
        _energies_apart(one, other, moved)
        or _forces_apart(one, other, turned, moved)
        or _dipoles_apart(one, other, turned, moved)
        or _polarizabilities_apart(one, other, turned, moved)
    )
    if apart:
        raise LabelError(
            f"{where}: {one.place} and {other.place} are one structure, and their labels have {apart}",
            "remove the wrong one; where they are noisy, give their standard errors",
        )


def _energies_apart(one: Example, other: Example, moved: FloatArray) -> str:
    """How two labels of one structure contradict each other in their energies, as words; nothing where they agree."""
    energy = abs(one.label.energy - other.label.energy)
    margin = AGREEING_ERRORS * np.hypot(one.energy_error, other.energy_error)
    if energy <= margin + SAME_ENERGY * len(moved) + STEEPEST * moved.sum():
        return ""
    return f"energies of {one.label.energy:.4f} and {other.label.energy:.4f} eV"


def _forces_apart(one: Example, other: Example, turned: FloatArray, moved: FloatArray) -> str:
    """The same of their forces. turned, moved: of `same_turn`."""
    if one.label.forces is None or other.label.forces is None:
        return ""
    ways = np.abs(one.label.forces - other.label.forces @ turned)
    sigma, second = (np.zeros_like(ways) if e.forces_error is None else e.forces_error for e in (one, other))
    # of components that are independent
    second = np.sqrt(second**2 @ turned**2)
    # all components together: of thousands one is beyond five errors by chance, and noise has long tails
    units = np.hypot(sigma, second) + (SAME_FORCE + STIFFEST * moved.max()) / AGREEING_ERRORS
    if np.sqrt(np.mean((ways / units) ** 2)) <= AGREEING_ERRORS:
        return ""
    return f"forces that differ by up to {ways.max():.3f} eV/Å"


def _dipoles_apart(one: Example, other: Example, turned: FloatArray, moved: FloatArray) -> str:
    """The same of their dipoles, in periodic frames up to e times whole cell vectors (the quantum of polarization)."""
    first, second = one.label.dipole, other.label.dipole
    pbc = np.array(one.frame.pbc)
    # that of an ion in a cell depends on which images of the atoms are taken
    if first is None or second is None or (pbc.any() and one.charge):
        return ""
    # that of an ion is about the origin: here about the centre of the atoms, where both structures lie alike
    first, second = (mu - (e.charge or 0) * e.frame.positions.mean(axis=0) for mu, e in ((first, one), (second, other)))
    way = first - second @ turned
    if pbc.any():
        way = way - np.round(way @ np.linalg.pinv(one.frame.cell[pbc])) @ one.frame.cell[pbc]
    far, sizes = np.linalg.norm(way), [np.linalg.norm(mu) for mu in (first, second)]
    if far <= SAME_DIPOLE * len(moved) + LARGEST_BORN_CHARGE * moved.sum():
        return ""
    return f"dipoles of {sizes[0]:.4f} and {sizes[1]:.4f} e Å that are {far:.4f} e Å apart"


def _polarizabilities_apart(one: Example, other: Example, turned: FloatArray, moved: FloatArray) -> str:
    """The same of their polarizabilities."""
    first, second = one.label.polarizability, other.label.polarizability
    if first is None or second is None:
        return ""
    far = np.linalg.norm(first - turned.T @ second @ turned)
    if far <= SAME_POLARIZABILITY * len(moved) + LARGEST_RAMAN * moved.sum():
        return ""
    means = [float(np.trace(alpha)) / 3 for alpha in (first, second)]
    return f"polarizabilities (a third of the trace {means[0]:.4f} and {means[1]:.4f}) that are {far:.4f} e Å²/V apart"


def _check_structures(examples: Sequence[Example]) -> None:
    try:
        # only what is closer than that is looked at, so a training set takes no time
        build([e.frame for e in examples], MIN_DISTANCE)
    except GeometryError as error:
        if len(examples) == 1:
            raise LabelError(f"{examples[0].place}: {error.what}", "correct it, or remove it") from error
        for e in examples:  # one by one, to name the frame
            _check_structures([e])


def check(examples: Sequence[Example], where: str = "the dataset") -> None:
    """Refuse examples that must not be in one training set.

    Raises LabelError for no examples, more than one method or baseline, forces that do not fit their frame, two charges
    or spins of one composition, and labels that lack their basis's pseudopotential.
    """
    if not examples:
        raise LabelError(f"{where}: no labels", "label frames first (beadwork label)")
    for what, names in (
        ("methods", {e.label.method for e in examples}),
        ("baselines", {str(e.baseline) for e in examples}),
        ("sums of additions (--add)", {format_additions(same(e.add)) for e in examples}),
    ):
        if len(names) > 1:
            listed = "; ".join(sorted(names))
            raise LabelError(
                f"{where}: labels of {len(names)} {what} ({listed})", "choose one (--method), they never mix"
            )
    states: dict[str, Label] = {}
    for e in examples:
        formula = str(e.frame.to_atoms().symbols.get_chemical_formula())
        first = states.setdefault(formula, e.label)
        # not said is mostly neutral, and is refused beside what is not
        if (first.charge or 0, first.spin or 0) != (e.label.charge or 0, e.label.spin or 0):
            raise LabelError(
                f"{where}: {formula} was labelled with {_state(first)} and with {_state(e.label)}",
                "a MACE model sees neither, so learn only one of them",
            )
        if e.label.forces is not None and len(e.label.forces) != len(e.frame.numbers):
            raise LabelError(
                f"{where}: the label of {e.place} has forces of {len(e.label.forces)} atoms, its frame has "
                f"{len(e.frame.numbers)}",
                "the structure that was computed must come with the label",
            )
        check_stored(e.label.code, e.label.input, e.frame.numbers, f"{where}: {e.place}")


def reference_energies(examples: Sequence[Example], energies: FloatArray, floor: float) -> tuple[dict[int, float], str]:
    """Energies of single atoms (eV by atomic number) that explain most of `energies` (eV), and what stays open.

    Least squares over the compositions, each frame weighted by 1 / (error an atom squared + floor squared), floor in eV
    an atom. Where the compositions do not tell two elements apart the smallest solution is taken, and the
    sentence says so.
    """
    elements = sorted({int(z) for e in examples for z in e.frame.numbers})
    # one column an element: E is the sum of its atoms' energies, up to the binding that is learned
    counts = np.array([[(e.frame.numbers == z).sum() for z in elements] for e in examples], dtype=np.float64)
    atoms = counts.sum(axis=1)
    errors = np.array([e.energy_error for e in examples])
    # the square root of the weight, on both sides; per atom, so that large frames do not count more
    root = 1 / np.sqrt((errors / atoms) ** 2 + floor**2) / atoms
    # of all solutions the smallest: with water alone H and O share the energy, and any sum over molecules is right
    solution, _, rank, _ = np.linalg.lstsq(counts * root[:, None], energies * root, rcond=1e-10)
    open_ = (
        ""
        if rank == len(elements)
        else (
            f"{len(elements)} elements in compositions of rank {rank}: only sums over these compositions are determined"
        )
    )
    return dict(zip(elements, solution.tolist(), strict=True)), open_


def to_atoms(example: Example) -> Any:
    """An `ase.Atoms` with the label as REF_* and what is to be learned as DELTA_* (eV, eV/Å)."""
    atoms = example.frame.to_atoms()
    attach_label(example.label.to_dict(), atoms)
    # names of our own: ASE hands `energy` and `forces` to a calculator, where other readers miss them
    atoms.info.update(DELTA_energy=example.energy, label=example.label.hash, source=example.source, row=example.row)
    if example.simulation:
        atoms.info["simulation"] = example.simulation
    if example.step is not None:
        atoms.info["step"] = example.step
    if example.forces is not None:
        atoms.arrays["DELTA_forces"] = example.forces
    return atoms


def _to_json(e: Example) -> dict[str, Any]:
    return structure(e.frame) | {
        "label": e.label.to_dict() | {"input": _hash(e.label.input)},
        "hash": e.hash,
        "energy": e.energy,
        "forces": e.forces,
        "source": e.source,
        "row": e.row,
        "simulation": e.simulation,
        "step": e.step,
    }


def _from_json(stored: Mapping[str, Any], data: Mapping[str, Any]) -> Example:
    label = dict(stored["label"])
    label["input"] = data["inputs"][label["input"]]
    return Example(
        frame_of(stored),
        Label.from_dict(label),
        float(stored["energy"]),
        _array(stored["forces"]),
        stored["source"],
        int(stored["row"]),
        stored["simulation"],
        data["baseline"],
        # files of before have no steps, and nothing that is added
        stored.get("step"),
        data.get("add", {}),
    )


def _array(values: Any) -> FloatArray | None:
    return None if values is None else np.array(values, dtype=np.float64)


def _state(label: Label) -> str:
    charge, spin = ("not said" if value is None else value for value in (label.charge, label.spin))
    return f"charge {charge}, spin {spin}"


def _signed(name: str, charge: int | None) -> str:
    return f"{name} {charge:+d}" if charge else name


def _hash(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
