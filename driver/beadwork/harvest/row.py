"""A row of the queue: a frame to be labelled, the committee's result for it, and its form in ASE's database.

Keys: `status` (waiting, claimed, labelled, failed), `fingerprint` (of the structure), `simulation` and `committee`
(sha256 of the simulation's file, and of the models' hashes and unequal weights taken together), `evaluation`, `step`
and `bead` (absent where unknown), `total_charge` (e) and `unpaired_electrons` (absent where the run or the file did not
say them), `force_spread_max` (eV/Å), `energy_spread` (eV/atom), `novelty_max` (of any atom;
absent where unknown), `kept_for` (spread, novelty or spread+novelty), `time` (Unix time, s), `beadwork` (version), and,
once claimed, `attempts` and `expires` (Unix time, s). Data: `force_spread` ((n,) eV/Å), `member_energies` ((M,) eV),
`models` (hashes, in the order of evaluation), `weights` (of the members, where they are not equal), `novelty` ((n,) by
the part of the potential, 'baseline' or 'delta'), `digest` and `label_digest` (hashes of all that the row was made
with, to the last bit, and of its label: they detect bytes that a disk has changed), and, as they come, `worker`,
`label`, `reason`. A frame that the user has added (`beadwork queue add`) has NaN as its spreads, no models, and its
place in the file and the file's hash for `evaluation` and `simulation`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from beadwork.errors import QueueError
from beadwork.frame import FloatArray, Frame
from beadwork.harvest.distance import fingerprint, signature
from beadwork.potential.bundle import committee_hash, prefixed


@dataclass(frozen=True, slots=True)
class KeptFrame:
    """A frame to be labelled, and the committee's result for it.

    force_spread: (n,) eV/Å of every atom. energy_spread: eV/atom. member_energies: (M,) eV. models: sha256 of each
    model that was evaluated, baseline first. simulation: sha256 of the simulation's file. evaluation: count of
    evaluations of the server. step: of i-PI, None where unknown (as the bead in `frame`). time: Unix time in s.
    weights: one a member, none where they are equal. novelty: (n,) of every atom, by the part to which it is new,
    'baseline' or 'delta'. why: 'spread', 'novelty' or both.
    Raises ValueError for a force spread that does not fit the atoms.
    """

    frame: Frame
    evaluation: int
    energy_spread: float
    force_spread: FloatArray
    member_energies: FloatArray
    models: tuple[str, ...]
    simulation: str
    step: int | None = None
    time: float = field(default_factory=time.time)
    weights: tuple[float, ...] = ()
    novelty: Mapping[str, FloatArray] = field(default_factory=dict)
    why: tuple[str, ...] = ("spread",)

    def __post_init__(self) -> None:
        if self.force_spread.shape != (len(self.frame.numbers),):
            raise ValueError(f"force_spread is {self.force_spread.shape} for {len(self.frame.numbers)} atoms")
        # ASE's database refuses strings that can be read as numbers, such as a hash of digits with one 'e'
        object.__setattr__(self, "models", tuple(prefixed(model) for model in self.models))
        object.__setattr__(self, "simulation", prefixed(self.simulation))

    @property
    def max_force_spread(self) -> float:
        """Largest force spread of any atom, eV/Å."""
        return float(self.force_spread.max())

    @property
    def newest(self) -> tuple[float, int, str] | None:
        """The largest novelty of any atom, the atom, and the part to which it is new; None where it is not known."""
        found = [(float(of.max()), int(of.argmax()), part) for part, of in self.novelty.items()]
        return max(found, default=None)

    def novelty_of(self, whose: str) -> FloatArray | None:
        """(n,), the largest of the parts that `whose` names; see `novelty_of`."""
        return novelty_of(self.novelty, whose)

    @property
    def committee(self) -> str:
        """One hash for all models in their order, and their weights."""
        return committee_hash(self.models, self.weights)


class Damaged(QueueError):
    """A row whose bytes have changed since it was written."""


@dataclass(frozen=True, slots=True)
class Row:
    """A frame in the queue. `worker` and `expires` (Unix time, s) are of the last claim; `reason`: why it failed."""

    id: int
    status: str
    fingerprint: str
    kept: KeptFrame
    version: str
    attempts: int = 0
    worker: str | None = None
    expires: float | None = None
    label: Mapping[str, Any] | None = None
    reason: str | None = None


def novelty_of(novelty: Mapping[str, FloatArray], whose: str) -> FloatArray | None:
    """(A,) the novelty of atoms for a part, 'baseline' or 'delta', or the larger of 'both'; None where it is not known.

    novelty: (A,) by part.
    """
    # a part that does not know what it was trained on has no entry, and asks for nothing
    parts = [of for part, of in novelty.items() if whose in (part, "both")]
    return np.maximum.reduce(parts) if parts else None


def to_ase(kept: KeptFrame, status: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The structure, keys and data of a new row, as ASE writes them."""
    keys: dict[str, Any] = {
        "status": status,
        "fingerprint": fingerprint(signature(kept.frame)),
        "simulation": kept.simulation,
        "committee": kept.committee,
        # plain int and float: databases know no NumPy types
        "evaluation": int(kept.evaluation),
        "force_spread_max": kept.max_force_spread,
        "energy_spread": float(kept.energy_spread),
        "time": float(kept.time),
        "beadwork": f"beadwork {_version()}",
    }
    if kept.newest is not None:
        keys["novelty_max"] = kept.newest[0]
    if kept.models:
        keys["kept_for"] = "+".join(kept.why)
    if kept.step is not None:
        # absent where unknown: ASE's keys know no null, and -1 would be a step
        keys["step"] = int(kept.step)
    if kept.frame.bead is not None:
        keys["bead"] = int(kept.frame.bead)
    # not `charge`: ASE's databases have a column of that name
    if kept.frame.charge is not None:
        keys["total_charge"] = int(kept.frame.charge)
    if kept.frame.spin is not None:
        keys["unpaired_electrons"] = int(kept.frame.spin)
    data = {
        "force_spread": np.asarray(kept.force_spread, dtype=np.float64),
        "member_energies": np.asarray(kept.member_energies, dtype=np.float64),
        "models": list(kept.models),
        "novelty": {part: np.asarray(of, dtype=np.float64) for part, of in kept.novelty.items()},
    }
    if kept.weights:
        data["weights"] = list(kept.weights)
    # the structure has its fingerprint, but that is rounded: the digest covers every bit that a label depends on
    data["digest"] = _digest(kept, keys["fingerprint"])
    return kept.frame.to_atoms(), keys, data


def from_ase(row: Any) -> Row:
    """Read a row of ASE's database. Raises Damaged for one whose bytes have changed since it was written, with what
    differs, and KeyError where it lacks what `to_ase` writes.
    """
    atoms, keys, data = row.toatoms(), row.key_value_pairs, row.data
    frame = replace(
        Frame.from_atoms(atoms),
        bead=keys.get("bead"),
        charge=keys.get("total_charge"),
        spin=keys.get("unpaired_electrons"),
    )
    kept = KeptFrame(
        frame=frame,
        evaluation=keys["evaluation"],
        energy_spread=_number(keys["energy_spread"]),
        force_spread=np.array(data["force_spread"], dtype=np.float64),
        member_energies=np.array(data["member_energies"], dtype=np.float64),
        models=tuple(data["models"]),
        simulation=keys["simulation"],
        step=keys.get("step"),
        time=keys["time"],
        weights=tuple(data.get("weights", ())),
        # older rows lack these
        novelty={part: np.array(of, dtype=np.float64) for part, of in data.get("novelty", {}).items()},
        why=tuple(keys.get("kept_for", "spread").split("+")),
    )
    # rows of an older beadwork have no digest, but the fingerprint of the structure
    stored = data.get("digest")
    if stored is None and fingerprint(signature(frame)) != keys["fingerprint"]:
        raise Damaged("its structure does not match its fingerprint")
    if stored is not None and stored != _digest(kept, keys["fingerprint"]):
        raise Damaged("its content does not match its digest")
    label = data.get("label")
    # the label has a digest of its own, since it comes later and the row's must not change with it
    if label is not None and data.get("label_digest", label_digest(label)) != label_digest(label):
        raise Damaged("its label does not match its digest")
    return Row(
        id=int(row.id),
        status=keys["status"],
        fingerprint=keys["fingerprint"],
        kept=kept,
        version=keys["beadwork"],
        attempts=keys.get("attempts", 0),
        worker=data.get("worker"),
        expires=keys.get("expires"),
        label=label,
        reason=data.get("reason"),
    )


def _digest(kept: KeptFrame, mark: str) -> str:
    """Hash of all that is written of a frame when it is kept. mark: its fingerprint."""
    frame, digest = kept.frame, hashlib.sha256()
    arrays = [frame.positions, frame.cell, kept.force_spread, kept.member_energies, kept.weights]
    arrays += [[kept.energy_spread, kept.time], *(of for _, of in sorted(kept.novelty.items()))]
    for array in arrays:
        # + 0.0: not every database keeps the sign of -0.0; every NaN has the same hash
        numbers = np.asarray(array, dtype="<f8") + 0.0
        digest.update(np.where(np.isnan(numbers), np.nan, numbers).tobytes() + b"|")
    words = [frame.numbers.tolist(), [bool(p) for p in frame.pbc], _whole(frame.bead), _whole(kept.step)]
    words += [int(kept.evaluation), kept.models, kept.simulation, sorted(kept.novelty), mark]
    words += [kept.why if kept.models else ()]
    if (frame.charge, frame.spin) != (None, None):  # rows without them keep their digest
        words += [_whole(frame.charge), _whole(frame.spin)]
    digest.update(json.dumps(words).encode())
    return prefixed(digest.hexdigest())


def label_digest(label: Mapping[str, Any]) -> str:
    """Hash of a label, independent of the order in which a database returns its entries."""
    from ase.io.jsonio import encode

    def number(text: str) -> float:
        return float(text) + 0.0  # PostgreSQL writes 1e22 without its exponent, and -0.0 without its sign

    text = json.dumps(json.loads(encode(label), parse_int=number, parse_float=number), sort_keys=True)
    return prefixed(hashlib.sha256(text.encode()).hexdigest())


def _whole(number: int | None) -> int | None:
    return None if number is None else int(number)


@cache  # it reads a file, which may fail in the middle of a run (no descriptor left, a network disk)
def _version() -> str:
    try:
        return metadata.version("beadwork")
    except metadata.PackageNotFoundError:
        return "unknown"


def _number(value: Any) -> float:
    # SQLite stores NaN as NULL
    return float("nan") if value is None else float(value)
