"""Convert an evaluation to i-PI's replies: units, order, and the extras."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from beadwork.events import WHOSE
from beadwork.frame import FloatArray, IntArray
from beadwork.ipi.messages import ForceReady
from beadwork.potential.evaluation import Evaluation
from beadwork.potential.potential import Potential
from beadwork.units import BOHR, FORCE, HARTREE

#: the keys of extras that are sent with --member-forces alone
MEMBER_FORCES = ("committee_force", "committee_virial")


#: what models of other roles answer, by its key, which is i-PI's: our name, and an atomic unit in ours
RESPONSES = {"dipole": ("dipole", BOHR), "BEC": ("born", 1.0), "polarizability": ("polarizability", BOHR**2 / HARTREE)}
#: the keys of novelty in the extras of a committee
NOVELTY = ("novelty_max", "novelty_atom")


def packed(evaluation: Evaluation, inverse: Sequence[Sequence[int]], potential: Potential) -> list[ForceReady]:
    """Divide one evaluation into the replies of the connections, padding included; atomic units."""
    atoms = len(evaluation.forces) // len(evaluation.energies)
    # i-PI's wire is in atomic units, whatever units its input is written in
    energies = evaluation.energies / HARTREE
    forces = evaluation.forces.reshape(-1, atoms, 3) / FORCE
    virials = evaluation.virials / HARTREE
    notes = extras(evaluation, potential)
    return [
        ForceReady(energies[index], forces[index], virials[index], [notes[i] for i in index])
        # a structure that came twice (padding, or beads in one place) is answered twice
        for index in (list(structures) for structures in inverse)
    ]


def by_element(numbers: IntArray, force_spread: FloatArray) -> dict[str, float]:
    """Root mean square over the atoms of each element, of structures of one composition, one after another."""
    # over the structures first: all have one composition, so each atom counts equally
    squares = (force_spread.reshape(-1, len(numbers)) ** 2).mean(axis=0)
    return {chemical_symbols[z]: float(np.sqrt(squares[numbers == z].mean())) for z in np.unique(numbers)}


def _parts(potential: Potential) -> list[str]:
    """The parts of this potential: of two forcefields each sends its own keys, and i-PI merges the extras."""
    return [part for part, has in zip(WHOSE, (potential.baseline, potential.members), strict=True) if has]


def _novelty_keys(potential: Potential) -> tuple[str, ...]:
    """The keys of novelty: of the parts, and of the whole for a committee."""
    if len(potential.members) < 2 and not potential.knows_novelty:
        return ()
    whole = NOVELTY if len(potential.members) > 1 else ()
    return (*whole, *(f"novelty_max_{part}" for part in _parts(potential)))


def _novelty_columns(evaluation: Evaluation, potential: Potential) -> dict[str, list[Any]]:
    """For the same keys, a value for each structure; null where it is not known, since i-PI needs the same keys
    always."""
    novelty = evaluation.novelty
    keys = _novelty_keys(potential)
    nothing = [None] * len(evaluation.energies)
    if novelty is None:
        return dict.fromkeys(keys, nothing)
    of = {part: np.maximum.reduceat(values, evaluation.ptr[:-1]).tolist() for part, values in novelty.of.items()}
    found = dict(zip(NOVELTY, (novelty.largest.tolist(), novelty.atom.tolist()), strict=True))
    # a part without training set is null, and its key stays
    found |= {f"novelty_max_{part}": of.get(part, nothing) for part in WHOSE}
    return {key: found[key] for key in keys}


def most_by_element(numbers: IntArray, values: FloatArray) -> dict[str, float]:
    """The largest over the atoms of each element, of structures of one composition, one after another."""
    most = values.reshape(-1, len(numbers)).max(axis=0)
    return {chemical_symbols[z]: float(most[numbers == z].max()) for z in np.unique(numbers)}


def _response_keys(potential: Potential) -> tuple[str, ...]:
    """The keys of models of other roles; of a committee of these the members, and how far they are apart."""
    members = {quantity: len(role.engines) for role in potential.also for quantity in role.quantities}
    found = []
    for key, (quantity, _) in RESPONSES.items():
        if count := members.get(quantity):
            found += [key] if count == 1 else [key, f"{key}_spread"]
            # of the Born charges the spread alone: nine numbers an atom and member are long
            found += [f"committee_{key}"] if count > 1 and quantity != "born" else []
    return tuple(found)


def _response_columns(evaluation: Evaluation, potential: Potential) -> dict[str, list[Any]]:
    """For the same keys, a value for each structure."""
    count = len(evaluation.energies)
    found: dict[str, list[Any]] = {}
    for key, (quantity, unit) in RESPONSES.items():
        if (answer := evaluation.response.get(quantity)) is None:
            continue
        mean = answer.mean / unit
        # i-PI has three rows for each atom, one for each component of its position
        found[key] = (mean.reshape(count, -1, 3) if quantity == "born" else mean).tolist()
        if answer.spread is not None:
            found[f"{key}_spread"] = (answer.spread.reshape(count, -1).max(axis=1) / unit).tolist()
            # a row of a member: i-PI writes no output of an extra that has more than rows and columns, and ends of it
            members = answer.members.swapaxes(0, 1) / unit
            found[f"committee_{key}"] = members.reshape(count, len(answer.members), -1).tolist()
    return {key: found[key] for key in _response_keys(potential)}


def extra_keys(potential: Potential, member_forces: bool) -> tuple[str, ...]:
    """The keys of every extras object of this potential; none without a committee of two, novelty, or models of other
    roles."""
    if len(potential.members) < 2:
        return (*_novelty_keys(potential), *_response_keys(potential))
    forces = MEMBER_FORCES if member_forces else ()
    return (
        "committee_pot",
        "energy_spread",
        "force_spread_max",
        "force_spread_atom",
        "alpha",
        "energy_alpha",
        "committee",
        *_novelty_keys(potential),
        *_response_keys(potential),
        *forces,
    )


def extras(evaluation: Evaluation, potential: Potential) -> list[bytes]:
    """One JSON object a structure, the same keys always; empty where there is nothing to say.

    committee_pot: the members' energies, Hartree (totals where the sum is served), deviations scaled by
    energy_alpha. energy_spread: Hartree. force_spread_max: Hartree/Bohr, of atom force_spread_atom. energy_alpha:
    applied by beadwork to energy_spread and all of committee_*, so i-PI's must stay 1; alpha: to force_spread_max,
    which is null between two evaluations of all heads' forces (`--force-spread-every`).
    committee: the models, as `Potential.short_identity`. committee_force and committee_virial (atomic units,
    the derivatives of committee_pot) only when they were asked for. novelty_max: the largest of any atom, which is
    novelty_atom, and the largest for each part alone; null where a part does not know. dipole (3), BEC (3 N
    rows of 3, a row for each position component) and polarizability (3, 3): atomic units, as i-PI's `driven_dynamics`
    reads the first two.
    """
    spread, totals = evaluation.spread, evaluation.member_totals
    if spread is None or totals is None:
        new = _novelty_columns(evaluation, potential) | _response_columns(evaluation, potential)
        if not new:
            return [b""] * len(evaluation.energies)
        return [json.dumps(dict(zip(new, row, strict=True))).encode() for row in zip(*new.values(), strict=True)]
    atoms = len(evaluation.forces) // len(evaluation.energies)
    nothing = [None] * len(evaluation.energies)
    columns: dict[str, Any] = {
        "committee_pot": (totals.T / HARTREE).tolist(),
        "energy_spread": (spread.energy / HARTREE).tolist(),
        # between two looks at all heads the forces' spread was not evaluated, and 0 would be a lie
        "force_spread_max": (spread.largest / FORCE).tolist() if spread.of_forces else nothing,
        "force_spread_atom": spread.atom.tolist() if spread.of_forces else nothing,
        **_novelty_columns(evaluation, potential),
        **_response_columns(evaluation, potential),
    }
    if evaluation.member_forces is not None and evaluation.member_virials is not None:
        forces, virials = evaluation.member_forces, evaluation.member_virials
        # committee_pot is of the totals where the sum is served, so its derivatives must be, too
        if evaluation.baseline is not None:
            forces, virials = forces + evaluation.baseline.forces, virials + evaluation.baseline.virials
        members = len(forces)
        rows_of_forces = forces.reshape(members, -1, 3 * atoms).transpose(1, 0, 2) / FORCE
        columns["committee_force"] = rows_of_forces.tolist()
        columns["committee_virial"] = (virials.reshape(members, -1, 9).transpose(1, 0, 2) / HARTREE).tolist()
    # one JSON object for each structure, as i-PI reads them
    rows = zip(*columns.values(), strict=True)
    same = {"alpha": potential.alpha, "energy_alpha": potential.energy_alpha, "committee": potential.short_identity}
    return [json.dumps({**dict(zip(columns, row, strict=True)), **same}).encode() for row in rows]
