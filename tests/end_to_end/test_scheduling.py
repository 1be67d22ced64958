"""However beads, connections, batches and forcefields are cut, i-PI never waits for ever and nothing is done twice."""

from __future__ import annotations

import json

import numpy as np
import pytest


def finish(ipi, run, process) -> dict:
    """i-PI has ended well; return our summary."""
    assert process.wait(ipi.PATIENCE) == 0
    assert run.properties()["step"][-1] == run.steps
    return json.loads((run.folder / "summary.json").read_text())


CASES = {
    "more beads than slots": {"beads": 12, "slots": 1, "options": ["--connections", 12]},
    "more beads than connections": {"beads": 12, "slots": 2, "options": ["--connections", 3]},
    "fewer beads than connections": {"beads": 2, "slots": 4, "options": ["--connections", 6]},
    "no multiple of the batch": {"beads": 10, "batch": 4},
    "no multiple of the batch, one connection": {"beads": 10, "batch": 4, "options": ["--connections", 1]},
    "fewer beads than the batch": {"beads": 3, "batch": 8},
    "one bead": {"beads": 1},
    "batches in shared memory": {"beads": 5, "batch": 3, "mode": "shm"},
    "not consolidated, few slots": {"beads": 7, "slots": 1, "consolidate": False},
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_stalls_and_nothing_is_done_twice(ipi, models, start, serve, tmp_path, case) -> None:
    """i-PI ends by itself; every distinct structure was evaluated once, counted from i-PI's own steps."""
    settings = dict(CASES[case])
    beads, options = settings.pop("beads"), settings.pop("options", [])
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(**settings)], beads=beads, steps=6).write()
    process = start.ipi(run)
    assert serve(run, "--baseline", models.baseline, "--engine", "native", *options) == 0
    summary = finish(ipi, run, process)
    assert summary["structures_evaluated"] == beads * run.steps
    assert summary["steps"] == run.steps


def test_two_systems_on_one_socket(ipi, models, start, serve, tmp_path) -> None:
    """Replicas in threads of i-PI's share a forcefield: all are answered, each structure once."""
    run = ipi.Input(tmp_path / "run", [ipi.Forcefield(batch=3)], ensembles=("nvt", "nve", "npt"), steps=6)
    run = run.write()
    process = start.ipi(run)
    assert serve(run, "--baseline", models.baseline, "--engine", "native") == 0
    summary = finish(ipi, run, process)
    assert summary["structures_evaluated"] == 3 * 4 * run.steps


def test_server_starts_first(ipi, models, start, tmp_path) -> None:
    """A server that is there before i-PI waits for its socket file, and serves."""
    run = ipi.Input(tmp_path / "run", steps=6).write()
    server = start.beadwork("serve", run, "--baseline", models.baseline, "--engine", "native")
    ipi.wait_for(run.folder / "beadwork.out")  # it is loaded and about to dial
    process = start.ipi(run)
    assert server.wait(ipi.PATIENCE) == 0
    finish(ipi, run, process)


def test_baseline_and_delta_at_addresses_of_their_own(ipi, models, start, serve, tmp_path) -> None:
    """Multiple time steps over Δ on a contracted ring polymer: two forcefields, two transports, one process."""
    base, delta = ipi.Forcefield("base", batch=4), ipi.Forcefield("delta", mode="inet")
    forces = (
        "<force forcefield='base'><mts_weights>[0, 1]</mts_weights></force>"
        "<force forcefield='delta' nbeads='2'><mts_weights>[1, 0]</mts_weights></force>"
    )
    motion = "<dynamics mode='nve'><timestep units='femtosecond'>1</timestep><nmts>[1, 2]</nmts></dynamics>"
    run = ipi.Input(tmp_path / "run", [base, delta], forces=forces, motion=motion, steps=6).write()
    process = start.ipi(run)
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "native"]
    assert serve(run, *options, "--at", "base=baseline", "delta=delta") == 0
    finish(ipi, run, process)


def test_sum_is_baseline_plus_delta(ipi, models, start, serve, tmp_path) -> None:
    """One trajectory, whether i-PI adds baseline and Δ or we do."""
    ends = []
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "torchscript"]
    for name, at in (("one", []), ("two", ["--at", "base=baseline", "delta=delta"])):
        names = ["base", "delta"] if at else ["water"]
        run = ipi.Input(tmp_path / name, [ipi.Forcefield(f, batch=4) for f in names], steps=6).write()
        process = start.ipi(run)
        assert serve(run, *options, *at) == 0
        finish(ipi, run, process)
        ends.append((run.properties()["potential"], run.positions()))
    for one, two in zip(*ends, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-11, atol=0)
