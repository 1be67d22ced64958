"""The members' energies of a run, where they say what each member would have had for its averages."""

from __future__ import annotations

from dataclasses import replace

from beadwork.ipi.outputs import Potentials, read_potentials
from beadwork.report.run import RunFolder


def read_committee(run: RunFolder) -> Potentials | str:
    """Read the energies of the steps that the last committee answered; or why there are none that averages can be
    weighed with, in words without a full stop that may have `code` in backticks.
    """
    about = run.about
    beads = int(about.get("beads", 0))
    potentials = read_potentials(run.directory, str(about["outputs"]), beads) if "outputs" in about else None
    if potentials is None:
        return (
            "i-PI did not write the members' energies of every bead, as `<trajectory stride='20' filename='committee' "
            "extra_type='committee_pot'> extras </trajectory>` would"
        )
    if not about.get("temperature_K"):
        return "the simulation has no temperature to weigh the members' energies with"
    if not about.get("plain_mean", True):
        return (
            "the weights are unequal, or `--baseline-uncertainty` was set, and the members' energies are weighed about "
            "their plain mean"
        )
    if run.joined:
        return "i-PI was under way when this server came, so it is not known which steps its committee answered"
    taken_up = [swap["step"] for swap in run.summary.get("committees", [])]
    if None in taken_up:
        return "it is not known which steps the committee that answered last has answered"
    since = max(taken_up, default=0) + run.first
    return replace(potentials, by_step={step: of for step, of in potentials.by_step.items() if step >= since})
