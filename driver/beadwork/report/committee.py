"""The members' energies of a run, where they say what each member would have had for its averages."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from beadwork.errors import SimulationError
from beadwork.ipi.outputs import Potentials, read_potentials
from beadwork.observe.record import NAME, read_about, read_committees
from beadwork.report.run import RunFolder

#: of two runs of one folder: what makes the energies that i-PI wrote those of one committee
_COMMITTEE = (
    "models", "energy_alpha", "plain_mean", "committee_share", "outputs", "directory", "temperature_K", "beads",
)  # fmt: skip


def read_committee(run: RunFolder) -> Potentials | str:
    """Read the energies of the steps that the last committee answered, as they are in the potential, whatever weight
    i-PI gives them; or why there are none that averages can be
    weighed with, in words without a full stop that may have `code` in backticks.
    """
    about = run.about
    try:
        potentials = read_potentials(run.files) if "outputs" in about else None
    except SimulationError as error:
        return str(error)
    if potentials is None:
        return (
            "i-PI did not write the members' energies of every bead into files of their own, as `<trajectory "
            "stride='20' filename='committee' extra_type='committee_pot'> extras </trajectory>` would"
        )
    if not about.get("temperature_K"):
        return "the simulation has no temperature, or none that stays, to weigh the members' energies with"
    if not about.get("plain_mean", True):
        return (
            "the weights are unequal, or `--baseline-uncertainty` was set, and the members' energies are weighed about "
            "their plain mean"
        )
    share = about.get("committee_share", 1.0)  # an older beadwork did not say
    if share is None:
        return (
            "forces have different weights or beads in i-PI's input, and it is not known with which the members' "
            "energies count in the potential"
        )
    if share == 0:
        return "the forces of the committee have no weight in i-PI's potential"
    if run.joined:
        return "i-PI was under way when this server came, so it is not known which steps its committee answered"
    taken_up = [swap["step"] for swap in run.summary.get("committees", [])]
    if None in taken_up:
        return "it is not known which steps the committee that answered last has answered"
    since = _begun(run) if max(taken_up, default=0) == 0 else max(taken_up) + run.first
    by_step = {step: share * of for step, of in potentials.by_step.items() if step >= since}
    return replace(potentials, by_step=by_step, resolution=abs(share) * potentials.resolution)


def potential_since(run: RunFolder) -> int | None:
    """i-PI's step from which the models and the temperature are those that the run ended with, as its records tell;
    None where that is not known. What i-PI wrote before it, in the same files, is of another state."""
    taken_up = [swap["step"] for swap in run.summary.get("committees", [])]
    if not run.about.get("models") or run.joined or None in taken_up:
        return None
    if max(taken_up, default=0) > 0:
        return int(max(taken_up) + run.first)
    since = run.first
    for path in _earlier(run):
        about = read_about(path)
        told = [(about.get(key), run.about.get(key)) for key in ("models", "temperature_K", "component_weights")]
        if any(then is None and now is not None for then, now in told) or about.get("joined"):
            return None
        if any(then != now for then, now in told) or len(set(read_committees(path).taken_up)) > 1:
            return since
        since = min(since, int(about["first_step"]))
    return since


def _begun(run: RunFolder) -> int:
    """i-PI's step from which on the committee of this run has answered: that at which an earlier run began which this
    one goes on with, as the records tell that it left in the folder (beadwork.out.1, …).
    """
    since = run.first
    # one that was another committee's ends the chain
    for path in _earlier(run):
        about = read_about(path)
        same = all(about.get(key) is not None and about.get(key) == run.about.get(key) for key in _COMMITTEE)
        if not same or about.get("joined") or len(set(read_committees(path).taken_up)) > 1:
            break  # another committee than this one may have answered
        since = min(since, int(about["first_step"]))
    return since


def _earlier(run: RunFolder) -> list[Path]:
    """The records of runs before this one in its folder, beadwork.out.1, …, the newest first."""
    numbered = {
        int(match[1]): path
        for path in run.folder.glob(f"{NAME}.*")
        if (match := re.fullmatch(rf"{re.escape(NAME)}\.(\d+)", path.name))
    }
    return [numbered[number] for number in sorted(numbered, reverse=True)]
