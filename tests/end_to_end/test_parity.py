"""i-PI moves the atoms with our server as it does with its own MACE driver and the same weights."""

from __future__ import annotations

import numpy as np
import pytest

#: how messages are laid out: (batch size, consolidated)
LAYOUTS = {"single": (1, True), "legacy": (1, False), "batched": (4, True)}


@pytest.fixture(scope="module")
def reference(ipi, mace_driver, tmp_path_factory):
    """NVT and NPT, 20 steps each, with i-PI's own driver: (properties of each system, last positions)."""
    folder = tmp_path_factory.mktemp("reference")
    processes = ipi.Processes(folder)
    try:
        run = ipi.Input(folder / "run", ensembles=("nvt", "npt")).write()
        process = processes.ipi(run)
        mace_driver(run)
        assert process.wait(ipi.PATIENCE) == 0
        return run.properties(0), run.properties(1), run.positions()
    finally:
        processes.end()


def differences(run, reference) -> dict[str, float]:
    """The largest relative difference of each quantity, along the whole run and in both ensembles."""
    nvt, npt, positions = reference
    worst = {"positions": float(np.abs(run.positions() - positions).max() / np.abs(positions).max())}
    for system, expected in enumerate((nvt, npt)):
        got = run.properties(system)
        assert got["step"].tolist() == list(range(21))
        for name in ("potential", "volume", "pressure_cv", "stress_md"):
            scale = np.abs(expected[name]).max()
            worst[f"{name} of {system}"] = float(np.abs(got[name] - expected[name]).max() / scale)
    return worst


@pytest.mark.parametrize(("engine", "tolerance"), [("torchscript", 1e-7), ("native", 1e-5)])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["unix", "inet", "shm"])
def test_atoms_move_as_with_mace(
    ipi, models, reference, start, serve, tmp_path, mode, layout, engine, tolerance
) -> None:
    """Positions, potential and stress of 20 steps, NVT and NPT, in every transport and layout, with both engines."""
    batch, consolidate = LAYOUTS[layout]
    forcefield = ipi.Forcefield(mode=mode, batch=batch, consolidate=consolidate)
    run = ipi.Input(tmp_path / "run", [forcefield], ensembles=("nvt", "npt")).write()
    process = start.ipi(run)
    assert serve(run, "--baseline", models.baseline, "--engine", engine) == 0
    assert process.wait(ipi.PATIENCE) == 0
    assert {name: value for name, value in differences(run, reference).items() if not value <= tolerance} == {}


@pytest.mark.slow
def test_energy_drifts_as_with_mace(ipi, models, mace_driver, start, serve, tmp_path) -> None:
    """200 steps at constant energy: the slope of the conserved quantity is that of i-PI's own driver within 10 %."""
    slopes = []
    for name in ("theirs", "ours"):
        forcefield = ipi.Forcefield(batch=2)
        run = ipi.Input(tmp_path / name, [forcefield], ensembles=("nve",), beads=2, steps=200).write()
        process = start.ipi(run)
        if name == "theirs":
            mace_driver(run)
        else:
            assert serve(run, "--baseline", models.baseline) == 0
        assert process.wait(ipi.PATIENCE) == 0
        conserved = run.properties()["conserved"]
        assert len(conserved) == 201
        slopes.append(float(np.polyfit(np.arange(201), conserved, 1)[0]))
        ripple = float(np.ptp(conserved))
    theirs, ours = slopes
    assert abs(ours - theirs) <= 0.1 * abs(theirs)
    assert ripple < 1e-3  # Hartree: the run is a sane one, not an explosion reproduced
