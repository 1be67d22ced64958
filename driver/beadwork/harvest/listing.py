"""Show a queue: a table of its rows, one row in full, a file of its frames."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from beadwork.disk import in_place, whole
from beadwork.errors import ConfigError, QueueError
from beadwork.events import WHOSE
from beadwork.harvest.row import Row
from beadwork.json_form import Form, Part

#: of the files that `export` writes
SUFFIXES = (".xyz", ".extxyz")
_HEADER = (
    *("id", "status", "formula", "charge", "spin", "bead", "step", "force spread", "energy spread"),
    *("novelty", "of atom", "new to", "kept for", "kept at"),
)
_UNITS = ("", "", "", "e", "", "", "", "eV/Å", "eV/atom", "", "", "", "", "")
#: columns that are left out where no frame says either
_STATE = (_HEADER.index("charge"), _HEADER.index("spin"))


@dataclass(frozen=True)
class Listed(Part):
    """One frame of a queue. Null is what is not known."""

    id: Annotated[int, "its number in the queue"]
    status: Annotated[str, "waiting, claimed, labelled or failed"]
    formula: Annotated[str, "its composition"]
    atoms: Annotated[int, "how many"]
    charge: Annotated[int | None, "e, of the whole frame; null where neither the run nor the file says it"]
    spin: Annotated[int | None, "its unpaired electrons; null likewise"]
    bead: Annotated[int | None, "of the ring polymer, from 0"]
    step: Annotated[int | None, "of i-PI, or the server's count where it came to an i-PI under way"]
    force_spread: Annotated[float | None, "eV/Å, the largest of any atom; null of a frame added by hand"]
    energy_spread: Annotated[float | None, "eV/atom"]
    novelty: Annotated[float | None, "the largest of any atom; 1 is the edge of training"]
    novelty_atom: Annotated[int | None, "the atom that has it, from 0"]
    new_to: Annotated[str | None, "the part of the potential to which it is new: baseline or delta"]
    kept_for: Annotated[list[str], "spread, novelty, both, or nothing of a frame added by hand"]
    kept_at: Annotated[float, "Unix time in s"]
    attempts: Annotated[int, "how often it was claimed for labelling"]
    reason: Annotated[str | None, "why it failed, in words"]


@dataclass(frozen=True)
class Listing(Form):
    """`beadwork queue list --json`."""

    KIND = "queue-list"
    frames: Annotated[list[Listed], "in the order of their numbers"]
    counts: Annotated[dict[str, int], "frames of each status, of those listed"]


@dataclass(frozen=True)
class Shown(Form):
    """`beadwork queue show --json`: all that is known of one frame."""

    KIND = "queue-show"
    frame: Annotated[Listed, "as in the list"]
    numbers: Annotated[list[int], "atomic number of each atom"]
    positions: Annotated[list[list[float]], "Å, three of each atom"]
    cell: Annotated[list[list[float]], "Å, a row for each lattice vector; zeros without a cell"]
    periodic: Annotated[list[bool], "along each lattice vector"]
    force_spreads: Annotated[list[float | None], "eV/Å of each atom"]
    novelties: Annotated[dict[str, list[float]], "of each atom, by the part it is new to: baseline, delta"]
    member_energies: Annotated[list[float], "eV, of each member"]
    models: Annotated[list[str], "hashes of the models that were evaluated, the baseline first"]
    weights: Annotated[list[float], "of the members; empty where they are equal"]
    simulation: Annotated[str, "hash of the simulation's file, or of the file it was added from"]
    evaluation: Annotated[int, "the server's count, or the place in that file"]
    fingerprint: Annotated[str, "of the structure"]
    kept_by: Annotated[str, "version that put it there"]
    worker: Annotated[str | None, "who claimed it last"]
    label: Annotated[dict[str, Any] | None, "as docs/queue.md lists it: energy in eV, forces in eV/Å, their errors, …"]


def listed(rows: Sequence[Row]) -> Listing:
    """The rows as an object."""
    return Listing([_listed(row) for row in rows], dict(sorted(Counter(row.status for row in rows).items())))


def _listed(row: Row) -> Listed:
    kept = row.kept
    novelty, atom, part = kept.newest or (None, None, None)
    return Listed(
        id=row.id,
        status=row.status,
        formula=str(kept.frame.to_atoms().get_chemical_formula()),
        atoms=len(kept.frame.numbers),
        charge=kept.frame.charge,
        spin=kept.frame.spin,
        bead=kept.frame.bead,
        step=kept.step,
        force_spread=kept.max_force_spread,
        energy_spread=kept.energy_spread,
        novelty=novelty,
        novelty_atom=atom,
        new_to=part,
        kept_for=list(kept.why) if kept.models else [],
        kept_at=kept.time,
        attempts=row.attempts,
        reason=row.reason,
    )


def shown(row: Row) -> Shown:
    """One row as an object."""
    kept = row.kept
    return Shown(
        frame=_listed(row),
        numbers=kept.frame.numbers.tolist(),
        positions=kept.frame.positions.tolist(),
        cell=kept.frame.cell.tolist(),
        periodic=[bool(along) for along in kept.frame.pbc],
        force_spreads=kept.force_spread.tolist(),
        novelties={part: of.tolist() for part, of in kept.novelty.items()},
        member_energies=kept.member_energies.tolist(),
        models=list(kept.models),
        weights=list(kept.weights),
        simulation=kept.simulation,
        evaluation=kept.evaluation,
        fingerprint=row.fingerprint,
        kept_by=row.version,
        worker=row.worker,
        label=None if row.label is None else dict(row.label),
    )


def format_table(rows: Sequence[Row]) -> str:
    """Return the rows as lines of text with a header, and how many there are of each status below."""
    if not rows:
        return "the queue is empty"
    cells = [_HEADER, _UNITS, *(_cells(row) for row in rows)]
    if all((row.kept.frame.charge, row.kept.frame.spin) == (None, None) for row in rows):
        cells = [tuple(cell for at, cell in enumerate(line) if at not in _STATE) for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    counts = Counter(row.status for row in rows)
    lines.append(f"{len(rows)} frames: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return "\n".join(lines)


def format_row(row: Row) -> str:
    """Format all entries of one row, a line each."""
    kept = row.kept
    atoms = kept.frame.to_atoms()
    facts: list[tuple[str, Any]] = [
        ("id", row.id),
        ("status", row.status),
        ("structure", f"{atoms.get_chemical_formula()}, {len(atoms)} atoms"),
        ("cell (Å)", _cell(row)),
        ("charge (e)", _known(kept.frame.charge, "not said")),
        ("unpaired electrons", _known(kept.frame.spin, "not said")),
        ("bead", _known(kept.frame.bead)),
        ("step", _known(kept.step)),
        ("evaluation", kept.evaluation),
    ]
    if kept.models:
        facts += [
            *_spreads(row),
            *_novelty(row),
            ("kept for", " and ".join(kept.why)),
            ("members (eV)", " ".join(f"{energy:.4f}" for energy in kept.member_energies)),
            ("models", "\n".join(kept.models)),
        ]
    else:
        facts.append(("spread", "unknown: the frame was added by hand (beadwork queue add)"))
    facts += [
        ("simulation", kept.simulation),
        ("fingerprint", row.fingerprint),
        ("kept at", _clock(kept.time)),
        ("kept by", row.version),
        ("attempts", row.attempts),
    ]
    if row.worker is not None:
        facts.append(("last worker", row.worker))
    if row.reason is not None:
        facts.append(("failed because", row.reason))
    if row.label is not None:
        facts.append(("label", "\n".join(f"{key}: {value}" for key, value in row.label.items())))
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name.ljust(width)}  {value}".replace("\n", "\n" + " " * (width + 2)) for name, value in facts)


def export(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Write the frames as extended XYZ, all or none; into a device or pipe (/dev/stdout) directly.

    Per atom: force_spread (eV/Å), and novelty_baseline and novelty_delta where these are known. Per frame: what the
    table shows (novelty_atom counted in the structure that is written, absent where the atom is not in it), and the
    members' energies in eV as member_energy_0, member_energy_1, ... A row with a label has it as `beadwork train` reads
    it (`attach_label`), on the structure that was computed, which may be a cluster of the frame. Raises ConfigError for
    a name that is not of this format, and QueueError where the file cannot be written, or there are no rows.
    """
    import ase.io

    target = Path(path)
    try:
        if target.suffix not in SUFFIXES and not in_place(target):
            raise ConfigError(
                f"{path}: frames are written as extended XYZ",
                f"give a name that ends in {' or '.join(SUFFIXES)} (`ase convert` makes other formats of it)",
            )
        if not rows:
            raise QueueError(f"no frames to write to {path}", "`beadwork queue list` shows what the queue holds")
        # a reader such as `beadwork train` must never find half of the frames
        with whole(target) as out:
            ase.io.write(out, [_atoms(row) for row in rows], format="extxyz")
    except OSError as error:
        raise QueueError(
            f"cannot write {path}: {error.strerror}", "give a path in a directory that you may write to"
        ) from error


def attach_label(label: Mapping[str, Any], atoms: Any) -> None:
    """Attach a label, as `Label.to_dict` has it, to an `ase.Atoms`, under the names that `beadwork train` reads.

    Per structure: REF_energy and REF_energy_error (eV), method, code and version, and charge and
    spin where they are said. Per atom, where the
    label has them: REF_forces and REF_forces_error (eV/Å). Per structure too, where it has them: REF_dipole (e Å) and
    REF_polarizability (e Å²/V). MACE's own training reads the REF_ names too.
    """
    atoms.info.update(REF_energy=label["energy"], REF_energy_error=label["energy_error"])
    about = {name: label[name] for name in ("charge", "spin", "method", "code")}
    atoms.info.update({name: value for name, value in about.items() if value is not None})
    if label["version"]:  # ASE's extended XYZ reads an empty string back as True
        atoms.info["version"] = label["version"]
    # absent and not 0 where the method has none: they would be learned as forces
    for name in ("forces", "forces_error"):
        if label[name] is not None:
            atoms.arrays[f"REF_{name}"] = label[name]
    for name in ("dipole", "polarizability"):
        if label.get(name) is not None:
            atoms.info[f"REF_{name}"] = label[name]


def _atoms(row: Row) -> Any:
    import ase

    kept = row.kept
    label = row.label or {}
    # held: the place in the frame of each atom that is written
    atoms, held = kept.frame.to_atoms(), list(range(len(kept.frame.numbers)))
    # the label may be of a cluster that was cut from the frame: arrays of atoms are those of the cluster
    if cut := label.get("structure"):
        atoms = ase.Atoms(cut["numbers"], cut["positions"], cell=cut["cell"], pbc=cut["pbc"])
        held = list(cut["atoms"])
    if label:
        attach_label(label, atoms)
    else:
        said = {"charge": kept.frame.charge, "spin": kept.frame.spin}
        atoms.info.update({name: value for name, value in said.items() if value is not None})
    atoms.arrays["force_spread"] = kept.force_spread[held]
    for part, of in kept.novelty.items():
        atoms.arrays[f"novelty_{part}"] = of[held]
    if kept.newest is not None:
        value, atom, part = kept.newest
        atoms.info.update(novelty_max=value, novelty_of=part)
        # the newest atom may be outside of the cluster that was cut
        if atom in held:
            atoms.info["novelty_atom"] = held.index(atom)
    if kept.models:
        atoms.info["kept_for"] = "+".join(kept.why)
    atoms.info.update(
        queue_id=row.id,
        status=row.status,
        evaluation=kept.evaluation,
        force_spread_max=kept.max_force_spread,
        energy_spread=kept.energy_spread,
        committee=kept.committee,
        fingerprint=row.fingerprint,
        time=kept.time,
    )
    # one key per member: ASE's extended XYZ reads an array of nine numbers back as a 3 x 3 matrix
    atoms.info.update({f"member_energy_{m}": float(energy) for m, energy in enumerate(kept.member_energies)})
    if kept.frame.bead is not None:
        atoms.info["bead"] = kept.frame.bead
    if kept.step is not None:
        atoms.info["step"] = kept.step
    if kept.models or kept.step is not None:  # for a frame that the user added it is the hash of another file
        atoms.info["simulation"] = kept.simulation
    return atoms


def _cells(row: Row) -> tuple[str, ...]:
    kept = row.kept
    return (
        str(row.id),
        row.status,
        str(kept.frame.to_atoms().get_chemical_formula()),
        _known(kept.frame.charge, "?"),
        _known(kept.frame.spin, "?"),
        _known(kept.frame.bead, "?"),
        _known(kept.step, "?"),
        "?" if math.isnan(kept.max_force_spread) else f"{kept.max_force_spread:.4f}",
        "?" if math.isnan(kept.energy_spread) else f"{kept.energy_spread:.6f}",
        *_newest(row),
        "+".join(kept.why) if kept.models else "?",
        _clock(kept.time),
    )


def _spreads(row: Row) -> list[tuple[str, str]]:
    """The largest force spread with its atom, and the energy spread."""
    kept = row.kept
    if math.isnan(kept.max_force_spread):
        return [("spread", "unknown: a single Δ model has none")]
    # the atom round which a cluster would be cut
    worst = int(kept.force_spread.argmax())
    return [
        ("force spread", f"{kept.max_force_spread:.4f} eV/Å, atom {_named(row, worst)}"),
        ("energy spread", f"{kept.energy_spread:.6f} eV/atom"),
    ]


def _newest(row: Row) -> tuple[str, str, str]:
    """The largest novelty, the atom that has it, and the part to which it is new."""
    if row.kept.newest is None:
        return "?", "?", "?"
    value, atom, part = row.kept.newest
    return f"{value:.2f}", _named(row, atom), WHOSE[part]


def _novelty(row: Row) -> list[tuple[str, str]]:
    """The largest novelty for each part of the potential that has a training set, with its atom."""
    found = [
        (f"novelty for {WHOSE[part]}", f"{of.max():.2f}, atom {_named(row, int(of.argmax()))}")
        for part, of in sorted(row.kept.novelty.items())
    ]
    return found or [("novelty", "unknown: no model says what it was trained on")]


def _named(row: Row, atom: int) -> str:
    return f"{atom} ({row.kept.frame.to_atoms().symbols[atom]})"


def _cell(row: Row) -> str:
    frame = row.kept.frame
    if not any(frame.pbc):
        return "none"
    vectors = " / ".join(" ".join(f"{x:.4f}" for x in vector) for vector in frame.cell)
    # a slab or a wire: which directions are periodic decides what the cell means
    return vectors if all(frame.pbc) else f"{vectors}, periodic {''.join('FT'[p] for p in frame.pbc)}"


def _known(value: int | None, otherwise: str = "unknown") -> str:
    return otherwise if value is None else str(value)


def _clock(when: float) -> str:
    # with its offset from UTC: frames of several machines lie in one queue
    return datetime.fromtimestamp(when).astimezone().isoformat(sep=" ", timespec="seconds")
