"""The radial distribution functions of a run with their error bars, and in words where they come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from ipi.utils.units import unit_to_internal

from beadwork.errors import SimulationError
from beadwork.frame import FloatArray
from beadwork.ipi.outputs import find_positions
from beadwork.report.committee import read_committee
from beadwork.report.radial import Radial, deviations, matched, offsets, radial, reweight
from beadwork.report.run import RunFolder
from beadwork.report.uncertainty import BLOCKS, DEPENDENT, uncertainty
from beadwork.report.viewer import Shown

#: the output by which i-PI writes bead positions
POSITIONS = (
    "<code>&lt;trajectory stride='20' filename='positions' format='xyz'&gt; positions{angstrom} "
    "&lt;/trajectory&gt;</code>"
)


@dataclass(frozen=True, slots=True)
class Distribution:
    """g(r) of a run. committee, statistical: by pair, (K,) one standard deviation, of pairs for which it is known.
    source: where it is from, and words: of the error bars, HTML.
    """

    radial: Radial
    source: str
    words: str = ""
    committee: dict[str, FloatArray] = field(default_factory=dict)
    statistical: dict[str, FloatArray] = field(default_factory=dict)

    def error(self, pair: str) -> FloatArray | None:
        """(K,) both together, as far as they are known; None where neither is."""
        parts = [of[pair] for of in (self.committee, self.statistical) if pair in of]
        return np.sqrt(sum(part**2 for part in parts)) if parts else None


def distribution(run: RunFolder) -> Distribution | str:
    """The distribution functions from i-PI's bead positions, else from the frames kept; or why there are none, HTML."""
    about = run.about
    if not about.get("periodic", True):
        return (
            "The run was not periodic (<code>--not-periodic</code>): there is no volume, and so no density to compare "
            "the numbers of pairs with."
        )
    try:
        trajectory = find_positions(run.files) if "outputs" in about else None
    except SimulationError as error:
        return f"{escape(str(error), quote=False)}."
    found = radial(trajectory) if trajectory is not None else None
    if trajectory is not None and found is not None:
        source = f"From i-PI's bead positions: {len(found.steps)} steps of {len(trajectory.files)} beads"
        source += f", one every {trajectory.every} steps of i-PI." if trajectory.every > 1 else "."
        statistical, short = _statistical(found)
        committee, words = _committee(run, found)
        return Distribution(found, source, f"{words} {short}", committee, statistical)
    kept = _alike(run.kept)
    if (found := radial((one.row, 0, one.frame) for one in kept)) is not None:
        those = "frames kept" if len(kept) == len(run.kept) else f"frames kept of one composition, of {len(run.kept)}"
        return Distribution(
            found,
            f"i-PI wrote no bead positions, so this is from the {len(kept)} {those}. They are unusual structures, and "
            f"this is no thermal average. For the average, let i-PI write {POSITIONS}.",
        )
    return f"There are no periodic structures to count pairs in; let i-PI write {POSITIONS}."


def _statistical(found: Radial) -> tuple[dict[str, FloatArray], str]:
    """The error by blocks of each pair, (K,), where there are steps enough, and what is to be said of it."""
    errors = {}
    for name, values in found.pairs.items() if len(found.steps) >= BLOCKS else ():
        one = uncertainty([values])
        # where the pairs are
        weight = values.mean(axis=0)
        slow = float(np.average(np.nan_to_num(one.dependence), weights=weight)) if weight.any() else 0.0
        if np.isfinite(one.statistical).all() and slow <= DEPENDENT:
            errors[name] = one.statistical
    if errors:
        return errors, "The statistical error is that of blocks of steps."
    return {}, (
        f"The statistical error is not known: {len(found.steps)} steps are too few ({BLOCKS} are needed) or too "
        "close to each other."
    )


def _committee(run: RunFolder, found: Radial) -> tuple[dict[str, FloatArray], str]:
    """Standard deviation over the members of each pair's g(r), and what there is to say of it."""
    potentials = read_committee(run)
    if isinstance(potentials, str):
        return {}, f"No committee error: {_code(potentials)}."
    thermal = float(unit_to_internal("temperature", "kelvin", run.about["temperature_K"]))
    pair = matched(found, potentials.by_step)
    if pair is None:
        return {}, (
            "No committee error: fewer than two steps have both positions and the members' energies; give both outputs "
            "the same stride."
        )
    rows, energies = pair
    # reweighting by the cumulant expansion holds while the members' energies wander by less than about kT
    wander = float(deviations(energies, thermal).std(axis=0).max())
    errors = {
        name: reweight(energies, values[rows], thermal).std(axis=1, ddof=1) for name, values in found.pairs.items()
    }
    words = (
        f"The committee's error is from {len(rows)} steps and {energies.shape[1]} members, reweighted by the "
        "cumulant expansion as <code>i-pi-committee-reweight</code> does it. From step to step a member's energy "
        f"wanders about the others' by {wander:.2g} kT"
        f" (what they are apart at all times, up to {np.abs(offsets(energies)).max() / thermal:.2g} kT, changes no "
        "average and is left out)"
        + ("; the expansion holds up to about 1." if wander <= 1 else ", and above 1 the expansion does not hold.")
    )
    if potentials.resolution > 0.05 * thermal:
        words += (
            f" i-PI wrote these energies to {potentials.resolution / thermal:.2g} kT only: give "
            "<code>&lt;simulation floatformat='%20.12e'&gt;</code> for an error that is not rounded away."
        )
    return errors, words


def _alike(kept: Sequence[Shown]) -> list[Shown]:
    """The frames of the most frequent composition."""
    groups: dict[bytes, list[Shown]] = {}
    for one in kept:
        groups.setdefault(np.sort(one.frame.numbers).tobytes(), []).append(one)
    return max(groups.values(), key=len, default=[])


def _code(text: str) -> str:
    """Plain words as those of a page, with what stands in backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))
