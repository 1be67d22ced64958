"""Read labels from an extended XYZ file of any program; a value that is not what its name says is refused by frame."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beadwork.errors import BeadworkError, ConfigError, GeometryError, LabelError
from beadwork.frame import SPINS, FloatArray, Frame
from beadwork.label.label import Label
from beadwork.label.lines import decoded, last_row_is_complete, lines_of, with_elements
from beadwork.log import logger
from beadwork.potential.response import DIPOLE_UNITS, POLARIZABILITY_UNITS
from beadwork.train.dataset import LABEL_SUFFIXES, Example, difference, from_queue

ENERGY, FORCES = "REF_energy", "REF_forces"
#: in place of a name: train on energies alone
NO_FORCES = "none"
#: MACE's own names of weights: of a frame, its energy and its forces; 1 where a frame does not say them
WEIGHTS = ("config_weight", "config_energy_weight", "config_forces_weight")


@dataclass(frozen=True, slots=True)
class ResponseKeys:
    """What a file calls its dipoles and polarizabilities, and their units, of `potential.response`."""

    dipole: str = "REF_dipole"
    polarizability: str = "REF_polarizability"
    dipole_unit: str = "eang"
    polarizability_unit: str = "eang2/V"


def read_examples(
    source: str,
    baseline: Path | None,
    method: str | None = None,
    energy: str = ENERGY,
    forces: str = FORCES,
    response: ResponseKeys | None = None,
    add: Mapping[str, str] | None = None,
) -> list[Example]:
    """Make examples of a queue (path or URL), or of an extended XYZ file (by its suffix).

    add: as `dataset.difference` has it. Raises ConfigError for names of keys together with a queue, which has none,
    and as `from_file` and `from_queue` do.
    """
    if source.lower().endswith(LABEL_SUFFIXES):
        return from_file(Path(source), baseline, method, energy, forces, response, add)
    if (energy, forces) != (ENERGY, FORCES) or response not in (None, ResponseKeys()):
        raise ConfigError(f"names of keys and units are of files, and {source} is a queue", "leave them out")
    return from_queue(source, baseline, method, add=add)


def from_file(
    path: Path,
    baseline: Path | None,
    method: str | None = None,
    energy: str = ENERGY,
    forces: str = FORCES,
    response: ResponseKeys | None = None,
    add: Mapping[str, str] | None = None,
) -> list[Example]:
    """Make examples of an extended XYZ file with energies (eV) and, where there are, forces (eV/Å).

    energy, forces: their names in the file; forces `none`: train on energies alone. Standard errors are read from the
    same names with `_error` added, and charge, spin, method, code, version and input from the entries of these names.
    method: take only labels of this method; it is that of frames without one. response: read dipoles and
    polarizabilities too, where frames have them; those of ions are about the origin of the positions. Of MACE's
    weights, 0 is no label, and others are not used. Raises LabelError for a file that cannot be read completely, frames
    without energies or a method, forces under another name, and a value that is not what its name says.
    """
    read, digest = _read(path)
    if not read:
        raise LabelError(f"{path} has no frames", "give a file with labels")
    read = _of_method(path, read, method)
    weights = {number: _weights(one, f"frame {number} of {path}") for number, one in read.items()}
    read = {number: one for number, one in read.items() if any(weights[number])}
    _say_weights(path, weights)
    found = []
    # of what the file does not say itself; with its hash, so that a label can be traced to these very bytes
    told = {"code": "file", "version": "", "input": f"{path.name} sha256:{digest}", "method": method}
    # before any value is read: forces under another name would be missed without a word
    _check_names(path, read, energy, forces)
    for number, one in read.items():
        where = f"frame {number} of {path}"
        if not weights[number][0]:
            raise LabelError(
                f"{where} has {WEIGHTS[1]}=0 and forces, which cannot be learned without an energy",
                "take it out, or give its energy a weight",
            )
        about = {name: one.info.get(name, default) for name, default in told.items()}
        if about["method"] is None:
            raise LabelError(f"{where} does not say its method", "give --method")
        info, arrays = _info(one), _arrays(one)
        try:
            frame = Frame.from_atoms(one)
        except GeometryError as error:  # of charge and spin
            raise LabelError(f"{where}: {error.what}", error.remedy) from error
        if not frame.numbers.all():
            raise LabelError(f"{where} has atoms of no known element", "take it out")
        _check_spin(frame, info, where)
        values: dict[str, Any] = {
            "energy": _number(info, energy, where, "a number in eV, as -14.2 or -1.42e+01"),
            "forces": _vectors(arrays, forces, where) if weights[number][1] else None,
            "energy_error": _number(info, f"{energy}_error", where, "a number in eV, as -14.2 or -1.42e+01", 0.0),
            "forces_error": _vectors(arrays, f"{forces}_error", where) if weights[number][1] else None,
            "charge": frame.charge,
            "spin": frame.spin,
            "seconds": _number(info, "seconds", where, "a number of seconds", 0.0),
            # a file may contain equal energies of equal structures: the number of the frame distinguishes their labels
            "extra": {"frame": number},
            **{name: str(value) for name, value in about.items()},
        }
        if response is not None:
            values |= _response(one, response, where)
        try:
            label = Label(**values)
        except LabelError as error:  # a negative standard error
            raise LabelError(f"{where}: {error.what}", error.remedy) from error
        simulation = str(info["simulation"]) if "simulation" in info else None
        step = _whole(info, "step", where, "a step of the simulation") if simulation and "step" in info else None
        # energy and forces to learn are filled in by `difference`, in batches
        example = Example(frame, label, 0.0, None, path.name, number, simulation, step=step)
        if _is_marked_isolated(one) and not example.isolated:
            raise LabelError(
                f"{where} has config_type={one.info['config_type']}, and is {example.composition}, whose atoms have "
                "neighbours",
                "give it another config_type, or take it out",
            )
        found.append(example)
    return difference(found, baseline, str(path), add)


def _of_method(path: Path, read: Mapping[int, Any], method: str | None) -> dict[int, Any]:
    """The frames of this method, and those that say none. Raises LabelError where there are none."""
    methods = {number: str(one.info.get("method", method)) for number, one in read.items()}
    if method is not None and method not in methods.values():
        listed = "; ".join(sorted(set(methods.values())))
        raise LabelError(f"{path} has no labels of {method}, but of {listed}", "correct --method")
    return {number: one for number, one in read.items() if method in (None, methods[number])}


def _weights(atoms: Any, where: str) -> tuple[float, float]:
    """Weights of energy and forces, as MACE multiplies them. Raises LabelError for what is no weight."""
    info = _info(atoms)
    whole, energy, forces = (_number(info, name, where, "a weight, 0 or more", 1.0) for name in WEIGHTS)
    if lowest := next((name for name in WEIGHTS if info.get(name, 1.0) < 0), None):
        raise LabelError(f"{where}: {lowest} is {info[lowest]}", "it must be a weight, 0 or more")
    return whole * energy, whole * forces


def _say_weights(path: Path, weights: Mapping[int, tuple[float, float]]) -> None:
    """Say what weights do to the labels. Raises LabelError where they leave none."""
    lost = sum(not any(both) for both in weights.values())
    if lost == len(weights):
        raise LabelError(f"every frame of {path} has weight 0 ({', '.join(WEIGHTS)})", "give those to learn a weight")
    bare = sum(energy > 0 and not forces for energy, forces in weights.values())
    other = sum(bool({*both} - {0.0, 1.0}) for both in weights.values())
    told = [
        f"{count} {what}"
        for count, what in (
            (lost, "frames have weight 0, and are left out"),
            (bare, "frames have forces of weight 0, which are left out"),
            (
                other,
                "frames have other weights than 0 and 1, which are not used: labels count by their standard errors",
            ),
        )
        if count
    ]
    if told:
        logger.info("%s: %s (%s)", path, "; ".join(told), ", ".join(WEIGHTS))


def _read(path: Path) -> tuple[dict[int, Any], str]:
    """All frames as `ase.Atoms` by their number, and the hash of the file."""
    import ase.io

    try:
        raw = path.read_bytes()
        digest = hashlib.sha256(raw).hexdigest()
        text = decoded(gzip.decompress(raw) if path.suffix.lower() == ".gz" else raw)
    except (OSError, EOFError, ValueError) as error:
        raise LabelError(f"{path} cannot be read as extended XYZ ({error})", "give a file that is whole") from error
    read: dict[int, Any] = {}
    isotopes = 0
    for number, block in enumerate(_blocks(path, text)):
        where = f"frame {number} of {path}"
        try:
            block, has_isotopes = with_elements(block, where)
            read[number] = ase.io.read(io.StringIO("".join(block)), format="extxyz")
        except BeadworkError as error:  # what is no element
            raise LabelError(error.what, error.remedy) from error
        except Exception as error:  # ASE's reader can raise anything
            text = " ".join(str(error).split())
            raise LabelError(
                f"{where} cannot be read as extended XYZ ({type(error).__name__}: {text})", "correct it"
            ) from error
        isotopes += has_isotopes
    if isotopes:
        logger.info("%s: D and T in %d frames were read as H, since no label depends on masses", path, isotopes)
    return read, digest


def _blocks(path: Path, text: str) -> list[list[str]]:
    """The lines of each frame.

    Refuses files that ASE would read in part without an error: empty lines between frames, and a truncated file.
    """
    lines = lines_of(text)
    at = number = 0
    blocks: list[list[str]] = []
    last: list[str] = []
    while at < len(lines):
        if not lines[at].strip():
            rest = next((k for k in range(at, len(lines)) if lines[k].strip()), None)
            if rest is None:
                break
            raise LabelError(f"line {at + 1} of {path} is empty, and frames follow in line {rest + 1}", "take it out")
        if re.fullmatch(r"\s*[0-9]{1,9}\s*", lines[at]) is None:
            raise LabelError(
                f"line {at + 1} of {path} is {lines[at].strip()[:60]!r}, where the number of atoms of frame {number} "
                "belongs: it cannot be read as extended XYZ",
                "mend that frame, or the one before it",
            )
        # the count, the comment, and a line for each atom
        start, at = at, at + 2 + int(lines[at])
        if at > len(lines):
            raise LabelError(f"frame {number} of {path} ends before its last atom: the file was cut", "copy it again")
        last, rows = lines[start + 2 : at], at
        while at < len(lines) and lines[at].lstrip().startswith("VEC"):  # the cell in the form of some programs
            at += 1
        last = lines[rows:at] or last
        blocks.append(lines[start:at])
        number += 1
    if not last_row_is_complete(last):
        raise LabelError(
            f"the last line of {path} has no end, so its last number may have been cut",
            "add a line break where it is whole, or copy the file again",
        )
    return blocks


def _info(atoms: Any) -> dict[str, Any]:
    """The entries of a frame's comment line; ASE moves `energy` and others to a calculator."""
    results = {} if atoms.calc is None else atoms.calc.results
    return {**{name: value for name, value in results.items() if np.ndim(value) == 0}, **atoms.info}


def _response(atoms: Any, keys: ResponseKeys, where: str) -> dict[str, FloatArray | None]:
    """Dipole (e Å) and polarizability (e Å²/V) of a frame, None where it has none. Raises LabelError."""
    # ASE moves `dipole` to a calculator
    entries = {**({} if atoms.calc is None else atoms.calc.results), **atoms.info}
    found: dict[str, FloatArray | None] = {"dipole": None, "polarizability": None}
    for what, name, shape, unit in (
        ("dipole", keys.dipole, (3,), DIPOLE_UNITS[keys.dipole_unit]),
        ("polarizability", keys.polarizability, (3, 3), POLARIZABILITY_UNITS[keys.polarizability_unit]),
    ):
        if name not in entries:
            continue
        values = np.asarray(entries[name])
        count = int(np.prod(shape))
        if values.dtype.kind not in "iuf" or values.size != count or not np.isfinite(values).all():
            raise LabelError(
                f"{where}: {name} is {' '.join(map(str, values.ravel()))!r}", f"a {what} is {count} numbers in a row"
            )
        found[what] = unit * values.astype(np.float64).reshape(shape)
    return found


def _arrays(atoms: Any) -> dict[str, Any]:
    """A frame's arrays with one row per atom, those that ASE moved to a calculator included."""
    results = {} if atoms.calc is None else atoms.calc.results
    whole = {name: value for name, value in results.items() if np.ndim(value) and len(value) == len(atoms)}
    return {**whole, **atoms.arrays}


def _is_marked_isolated(atoms: Any) -> bool:
    kind = str(atoms.info.get("config_type", "")).lower()  # MACE's own key, in several spellings
    return kind.replace("_", "").replace("-", "").replace(" ", "") == "isolatedatom"


def _check_names(path: Path, read: Mapping[int, Any], energy: str, forces: str) -> None:
    """Refuse a file with energies or forces under other names than those that would be read.

    Silently training without forces, or on another energy, would give a model that is wrong without a sign of it.
    """
    have = {number: energy in _info(one) for number, one in read.items()}
    if not all(have.values()):
        without = [info for info in map(_info, read.values()) if energy not in info]
        # any name that says energy: a user mends a name more quickly than he finds out that there is one
        others = _other_names(without, "energ")
        if not others and not any(have.values()):
            others = f"the numbers {', '.join(sorted(_numbers(without[0]))) or 'none'}"
        raise LabelError(
            f"{sum(have.values())} of {len(read)} frames of {path} have {energy}, frame "
            f"{next(number for number, has in have.items() if not has)} has not"
            + (f" but {others}; name what holds eV in all frames (--energy-key NAME)" if others else "; take it out")
        )
    # an isolated atom has no force by symmetry, and files leave it out
    bound = [_arrays(one) for one in read.values() if not _is_marked_isolated(one)]
    if forces == NO_FORCES:
        return
    without = [arrays for arrays in bound if forces not in arrays]
    others = _other_names(without, "force")
    if others:
        raise LabelError(
            f"{len(bound) - len(without)} of {len(bound)} frames of {path} have {forces}, the others have {others}",
            "name what holds eV/Å in all frames (--forces-key NAME), or learn energies alone (--forces-key "
            f"{NO_FORCES})",
        )
    # the usual name may be absent, as labels without forces exist; a name that was typed may not
    if forces != FORCES and len(without) == len(bound):
        raise LabelError(f"0 of {len(bound)} frames of {path} have {forces}", "correct --forces-key")


def _other_names(frames: Sequence[Mapping[str, Any]], part: str) -> str:
    """Names that contain `part`, each with the number of frames that have it; our own differences are no labels."""
    counts = Counter(
        name
        for frame in frames
        for name in frame
        if part in name.lower()
        and not name.startswith("DELTA_")
        and not name.lower().endswith(("_error", "_weight", "_spread"))
    )
    return ", ".join(f"`{name}` ({count} frames)" for name, count in counts.most_common())


def _numbers(info: Mapping[str, Any]) -> list[str]:
    return [name for name, value in info.items() if np.size(value) == 1 and np.asarray(value).dtype.kind in "iuf"]


def _number(info: Mapping[str, Any], name: str, where: str, wanted: str, default: float | None = None) -> float:
    values = np.ravel(info.get(name, default))
    if len(values) == 1 and values.dtype.kind in "iuf" and np.isfinite(values[0]):
        return float(values[0])
    # extended XYZ reads T as true, which NumPy would take for 1
    text = "true (T)" if values.dtype.kind == "b" and values.all() else " ".join(map(str, values))
    raise LabelError(f"{where}: {name} is {text!r}", f"it must be {wanted}")


def _whole(info: Mapping[str, Any], name: str, where: str, wanted: str) -> int:
    value = _number(info, name, where, wanted)
    # files write whole numbers as 1.0, too
    if value != int(value):
        raise LabelError(f"{where}: {name} is {value:g}", f"it must be {wanted}")
    return int(value)


def _check_spin(frame: Frame, info: Mapping[str, Any], where: str) -> None:
    """Refuse unpaired electrons that the atoms cannot have. Raises LabelError."""
    spin, electrons = frame.spin or 0, int(frame.numbers.sum()) - (frame.charge or 0)
    # spin 0 is the default of files that do not know it, so it is accepted for any number of electrons
    if spin and (not 0 <= spin <= electrons or (electrons - spin) % 2):
        name = next(name for name in SPINS if info.get(name) is not None)
        raise LabelError(
            f"{where}: {name} is {spin + SPINS[name]}, which {electrons} electrons cannot have",
            "give the unpaired electrons as spin, or the multiplicity as total_spin, and the charge",
        )


def _vectors(arrays: Mapping[str, Any], name: str, where: str) -> FloatArray | None:
    if name not in arrays:
        return None
    values = np.asarray(arrays[name])
    if values.dtype.kind not in "iuf":
        kind = "truth values" if values.dtype.kind == "b" else "strings"
        raise LabelError(
            f"{where}: {name} holds {kind}", f"it must have three numbers per atom ({name}:R:3 in Properties)"
        )
    if values.ndim != 2 or values.shape[1] != 3:
        columns = 1 if values.ndim == 1 else values.shape[1]
        raise LabelError(f"{where}: {name} has {columns} columns", "it must have three numbers per atom")
    if not np.isfinite(values).all():
        atom = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise LabelError(f"{where}: {name} of atom {atom} is {' '.join(map(str, values[atom]))}", "take the frame out")
    return values.astype(np.float64)
