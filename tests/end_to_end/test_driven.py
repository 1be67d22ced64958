"""Real i-PI drives water by an electric field, with Born charges and dipoles from our extras."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import numpy as np
import pytest
import torch

from beadwork.potential.architecture import mace_imported
from beadwork.potential.importer import import_model
from beadwork.potential.response import DIPOLE_UNITS
from support.response import random_response

#: Hartree / (e Bohr): strong enough to be seen in twenty steps
AMPLITUDE = np.array([0.02, -0.01, 0.03])
PULSE = "<freq units='inversecm'>3500</freq><peak units='femtosecond'>5</peak><sigma units='femtosecond'>2</sigma>"


@pytest.fixture(scope="module")
def water(tmp_path_factory) -> Path:
    """An EnergyDipolesMACE with random weights as file and bundle: energies and dipoles of one model."""
    folder = tmp_path_factory.mktemp("driven")
    model = random_response("EnergyDipolesMACE", cutoff=3.5)
    # dipoles of random weights are small: as large as those of molecules
    with torch.no_grad():
        for parameter in model.readouts.parameters():
            parameter *= 3.0
    torch.save(model, folder / "water.model")
    import_model(folder / "water.model", folder / "water", trust_pickle=True)
    return folder


def written(ipi, folder: Path, pulse: str, femtoseconds: float = 0.5, **more):
    """An input of `driven_dynamics` at constant energy, with Born charges from the extras."""
    field = f"<efield><amp>[{', '.join(map(str, AMPLITUDE))}]</amp>{pulse}</efield><bec mode='driver'/>"
    timestep = f"<timestep units='femtosecond'>{femtoseconds}</timestep>"
    motion = f"<driven_dynamics mode='eda-nve'>{timestep}{field}</driven_dynamics>"
    run = ipi.Input(folder, ensembles=("nve",), beads=2, motion=motion, **more).write()
    text = run.xml().replace("<motion mode='dynamics'>", "<motion mode='driven_dynamics'>")
    text = text.replace("stress_md ]", "stress_md, dipole, Efield ]")
    text = text.replace("<checkpoint", "<trajectory stride='1' filename='E'> Eforces </trajectory><checkpoint")
    run.path.write_text(text)
    return run


def of_field(run) -> np.ndarray:
    """(beads, rows, 3): the forces of the field that i-PI wrote."""
    found = []
    for bead in range(run.beads):
        lines = [line.split() for line in (run.folder / f"run.E_{bead}.xyz").read_text().splitlines()]
        found.append([[float(word) for word in words[1:]] for words in lines if words[0] in ("O", "H")])
    return np.array(found)


def drive_by_mace(run, file: Path) -> None:
    """i-PI's own client and its own MACE interface; by its hook for further quantities (`augment_output`) Born charges
    are added, of which it has none itself."""
    loader = SourceFileLoader("i_pi_py_driver", str(Path(sys.executable).parent / "i-pi-py_driver"))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    with mace_imported(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        loader.exec_module(module)
        from ipi.pes._mace import BatchedMACE, MACE_driver

        class WithBorn(BatchedMACE):
            def augment_output(self, data, batch, training):
                rows = [
                    torch.autograd.grad(data["dipole"][:, k].sum(), batch["positions"], retain_graph=True)[0]
                    for k in range(3)
                ]
                data["BEC"] = DIPOLE_UNITS["debye"] * torch.stack(rows, dim=2)
                return super().augment_output(data, batch, training)

        class Driver(MACE_driver):
            def check_parameters(self):
                self.batched_calculator = WithBorn(
                    model_paths=self.model,
                    device="cpu",
                    default_dtype="float64",
                    model_type="EnergyDipoleMACE",
                    instructions={"ignore": ["contributions"]},
                    ase_like_properties={"BEC": ["natoms", 3, 3]},
                )

            def post_process(self, properties, structure):
                return super().post_process({**properties, "BEC": properties["BEC"].reshape(-1, 3)}, structure)

        before = torch.get_default_dtype()
        driver = Driver(template=str(run.folder / "init.xyz"), model=str(file), device="cpu")
        module.run_driver(
            unix=True, address=run.forcefields[0].name, sockets_prefix=run.prefix, driver=driver, f_verbose=False
        )
        torch.set_default_dtype(before)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_pulse_drives_atoms_as_with_ipi_s_own_driver(ipi, water, start, serve, tmp_path) -> None:
    """Twenty steps in a pulse with the Born charges of every bead: positions, energies and forces of the field are
    those that i-PI has with its own MACE driver and the same weights, to 1e-7 relative; without the field others."""
    runs = [written(ipi, tmp_path / name, PULSE) for name in ("theirs", "ours", "none")]
    text = runs[2].path.read_text()
    runs[2].path.write_text(text.replace(str(AMPLITUDE.tolist())[1:-1], "0.0, 0.0, 0.0"))
    for run in runs:
        process = start.ipi(run)
        ipi.wait_for(Path(run.prefix + run.forcefields[0].name))
        if run is runs[0]:
            drive_by_mace(run, water / "water.model")
        else:
            models = ("--baseline", water / "water", "--also", f"dipole={water / 'water'}")
            assert serve(run, *models, "--engine", "eager") == 0
        assert process.wait(ipi.PATIENCE) == 0
    theirs, ours, none = runs
    moved = np.abs(ours.positions() - none.positions()).max()
    away = np.abs(ours.positions() - theirs.positions()).max() / np.abs(theirs.positions()).max()
    print(f"positions {away:.1e} relative; the field moves them by {moved:.1e} Bohr")
    assert away < 1e-7
    assert moved > 1e-4 * np.abs(theirs.positions()).max()
    one, two = of_field(theirs), of_field(ours)
    assert np.abs(two).max() > 1e-3
    assert np.abs(one - two).max() < 1.5e-9, "more than the last digit that i-PI writes of them"
    for name in ("potential", "conserved"):
        expected = theirs.properties()[name]
        assert np.abs(ours.properties()[name] - expected).max() < 1e-7 * np.abs(expected).max()
    # i-PI's own driver hands on Debye where i-PI reads e Bohr
    debye = DIPOLE_UNITS["debye"] / DIPOLE_UNITS["atomic_unit"]
    np.testing.assert_allclose(ours.properties()["dipole"], debye * theirs.properties()["dipole"], atol=1e-7)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_constant_field_does_the_work_that_the_dipole_says(
    ipi, models, water, start, serve, tmp_path, monkeypatch, sign
):
    """K + V - mu . E of the ring polymer is constant at constant field, to the drift that the time step leaves; where
    the Born charges have the other sign it is not."""
    from beadwork.potential.response import ResponseEvaluator

    right = ResponseEvaluator.evaluate
    turned = lambda self, graph: replace(found := right(self, graph), born=sign * found.born)  # noqa: E731
    monkeypatch.setattr(ResponseEvaluator, "evaluate", turned)
    run = written(ipi, tmp_path / "run", "", 0.25, steps=160)
    process = start.ipi(run)
    assert serve(run, "--baseline", models.baseline, "--also", f"dipole={water / 'water'}") == 0
    assert process.wait(ipi.PATIENCE) == 0
    found = run.properties()
    np.testing.assert_allclose(found["Efield"], np.tile(AMPLITUDE, (161, 1)), atol=1e-12)
    work = found["dipole"] @ AMPLITUDE
    conserved = found["conserved"] - work
    ripple, worked = np.ptp(conserved), np.ptp(work)
    print(
        f"sign {sign}: K + V changes by {np.ptp(found['conserved']):.3e}, mu . E by {worked:.3e}, K + V - mu . E by "
        f"{ripple:.3e} Hartree; slope {np.polyfit(0.25 * np.arange(161), conserved, 1)[0]:.2e} Hartree/fs"
    )
    assert worked > 1e-3
    assert (ripple < 0.02 * worked) == (sign == 1)
