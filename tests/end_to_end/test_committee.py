"""Spread, weighted baseline and extras are what i-PI's own ffcommittee makes of the same models."""

from __future__ import annotations

import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from beadwork.frame import Frame
from beadwork.potential.load import load
from beadwork.serve.reply import extras
from beadwork.units import FORCE, HARTREE


@pytest.fixture(scope="module")
def answers(ipi, models):
    """A shaken structure, and what MACECalculator says of it with each model, in atomic units as i-PI has them."""
    from beadwork.potential.architecture import mace_imported

    atoms = ipi.waters()
    atoms.positions += np.random.default_rng(3).normal(0, 0.05, atoms.positions.shape)
    results = {}
    with mace_imported(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
        from mace.calculators import MACECalculator

        for bundle in (models.baseline, *models.delta):
            atoms.calc = MACECalculator(model_paths=str(models.file(bundle)), device="cpu", default_dtype="float64")
            virial = -atoms.get_stress(voigt=False) * atoms.get_volume() / HARTREE
            results[bundle.name] = [atoms.get_potential_energy() / HARTREE, atoms.get_forces().ravel() / FORCE, virial]
    atoms.calc = None
    return atoms, results


def ffcommittee(answers: dict, *, alpha: float, uncertainty: float = -1.0) -> list:
    """i-PI's own gather on these answers; the first is the baseline where there is an uncertainty (Hartree)."""
    from ipi.engine.forcefields import FFCommittee

    fields = [SimpleNamespace(name=name, release=lambda request: None) for name in answers]
    committee = FFCommittee(
        fflist=fields,
        alpha=alpha,
        baseline_name=next(iter(answers)) if uncertainty > 0 else "",
        baseline_uncertainty=uncertainty,
    )
    positions = np.zeros(len(next(iter(answers.values()))[1]))
    request = {"pos": positions, "ff_handles": [{"result": [*answer, {}]} for answer in answers.values()]}
    committee.gather(request)
    return request["result"]


def test_mean_and_spread(models, answers) -> None:
    """The mean of the totals, their standard deviation and committee_pot, with alpha."""
    atoms, results = answers
    base = results["baseline"]
    totals = {
        name: [b + d for b, d in zip(base, result, strict=True)]
        for name, result in results.items()
        if name != "baseline"
    }
    energy, forces, virial, said = ffcommittee(totals, alpha=1.7)
    potential = load(models.baseline, models.delta, "torchscript", alpha=1.7)
    ours = potential.evaluate([Frame.from_atoms(atoms)], member_forces=True)
    np.testing.assert_allclose(ours.energies[0] / HARTREE, energy, rtol=1e-11)
    np.testing.assert_allclose(ours.forces.ravel() / FORCE, forces, atol=1e-9)
    np.testing.assert_allclose(ours.virials[0] / HARTREE, virial, atol=1e-8)
    np.testing.assert_allclose(ours.energy_spread[0] / HARTREE, said["committee_uncertainty"], rtol=1e-6)
    sent = json.loads(extras(ours, potential)[0])
    np.testing.assert_allclose(sent["committee_pot"], said["committee_pot"], rtol=1e-11)
    np.testing.assert_allclose(sent["committee_force"], said["committee_force"], atol=1e-9)
    np.testing.assert_allclose(sent["committee_virial"], said["committee_virial"], atol=1e-8)


def test_ipis_weighted_baseline_is_that_of_its_committee(models, answers) -> None:
    """Energy, force and virial with a baseline of given uncertainty, where committee and baseline weigh alike."""
    atoms, results = answers
    spread = ffcommittee({k: v for k, v in results.items() if k != "baseline"}, alpha=1.7)[3]["committee_uncertainty"]
    energy, forces, virial, said = ffcommittee(results, alpha=1.7, uncertainty=1.2 * spread)
    assert 0.2 < said["wb_mixing"][0] < 0.8
    potential = load(
        models.baseline, models.delta, "torchscript", alpha=1.7, baseline_uncertainty=1.2 * spread * HARTREE
    )
    ours = potential.evaluate([Frame.from_atoms(atoms)])
    np.testing.assert_allclose(ours.energies[0] / HARTREE, energy, rtol=1e-11)
    np.testing.assert_allclose(ours.forces.ravel() / FORCE, forces, atol=1e-9)
    np.testing.assert_allclose(ours.virials[0] / HARTREE, virial, atol=1e-8)


def rows(run, key: str, beads: int) -> np.ndarray:
    """What i-PI wrote of one of the extras, (steps + 1, beads, n)."""
    files = sorted(run.folder.glob(f"run.{key}_*"))
    assert len(files) == beads
    return np.stack([np.loadtxt(file, ndmin=2) for file in files], axis=1)


def test_ffcommittee_reads_our_members(ipi, models, start, serve, tmp_path) -> None:
    """i-PI's ffcommittee over our socket, with parse_json: it moves the atoms as our own sum does, and its
    uncertainty is the energy spread that our extras hold."""
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "torchscript"]
    around = "<ffcommittee name='all'><parse_json>True</parse_json>{}</ffcommittee>"
    committee = ipi.Input(
        tmp_path / "committee",
        [ipi.Forcefield(mode="inet", batch=4)],  # i-PI gives no sockets_prefix to inner sockets
        around=around,
        forces="<force forcefield='all'/>",
        extras=["committee_pot", "committee_uncertainty"],
        steps=5,
    ).write()
    process = start.ipi(committee)
    assert serve(committee, *options, "--member-forces", "--at", "water=delta", "--out", "ours") == 0
    assert process.wait(ipi.PATIENCE) == 0
    plain = ipi.Input(
        tmp_path / "plain", [ipi.Forcefield(batch=4)], extras=["committee_pot", "energy_spread"], steps=5
    ).write()
    process = start.ipi(plain)
    assert serve(plain, "--delta", *models.delta, "--engine", "torchscript") == 0
    assert process.wait(ipi.PATIENCE) == 0
    np.testing.assert_allclose(committee.positions(), plain.positions(), rtol=1e-11)
    members = rows(committee, "committee_pot", 4)
    np.testing.assert_allclose(members, rows(plain, "committee_pot", 4), rtol=1e-9)
    np.testing.assert_allclose(rows(committee, "committee_uncertainty", 4), rows(plain, "energy_spread", 4), rtol=1e-6)
    np.testing.assert_allclose(np.std(members, axis=2, ddof=1), rows(plain, "energy_spread", 4)[..., 0], rtol=1e-6)


def test_weighted_baseline_in_ipi_and_here(ipi, models, start, serve, tmp_path) -> None:
    """One trajectory, whether i-PI's ffcommittee weighs baseline and Δ, each served apart, or we do."""
    uncertainty = 0.5  # eV
    options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "torchscript"]
    around = (
        "<ffcommittee name='all'><parse_json>True</parse_json><baseline_name>base</baseline_name>"
        f"<baseline_uncertainty units='electronvolt'>{uncertainty}</baseline_uncertainty>{{}}</ffcommittee>"
    )
    theirs = ipi.Input(
        tmp_path / "theirs",
        [ipi.Forcefield("base", mode="inet", batch=4), ipi.Forcefield("delta", mode="inet", batch=4)],
        around=around,
        forces="<force forcefield='all'/>",
        steps=5,
    ).write()
    process = start.ipi(theirs)
    assert serve(theirs, *options, "--member-forces", "--at", "base=baseline", "delta=delta") == 0
    assert process.wait(ipi.PATIENCE) == 0
    ours = ipi.Input(tmp_path / "ours", [ipi.Forcefield(batch=4)], steps=5).write()
    process = start.ipi(ours)
    assert serve(ours, *options, "--baseline-uncertainty", uncertainty) == 0
    assert process.wait(ipi.PATIENCE) == 0
    np.testing.assert_allclose(ours.properties()["potential"], theirs.properties()["potential"], rtol=1e-10)
    np.testing.assert_allclose(ours.properties()["stress_md"], theirs.properties()["stress_md"], atol=1e-12)
    np.testing.assert_allclose(ours.positions(), theirs.positions(), rtol=1e-9)


def test_a_bias_is_answered_with_what_it_was_given(ipi, models, answers, start, serve, tmp_path) -> None:
    """Δ in `<bias>`, the baseline in `<forces>`: i-PI's bias and potential are MACECalculator's energies of each, and
    the atoms move as with the sum.
    """
    atoms, results = answers
    sockets = [ipi.Forcefield("short", batch=2), ipi.Forcefield("long", batch=2)]
    forces = "<force forcefield='short'/>"
    bias = "<force forcefield='long'/>"
    moved = []
    for name, parts in (("bias", {"forces": forces, "bias": bias}), ("sum", {"forces": forces + bias})):
        run = ipi.Input(tmp_path / name, sockets, beads=2, steps=3, atoms=atoms, **parts).write()
        process = start.ipi(run)
        options = ["--baseline", models.baseline, "--delta", *models.delta, "--engine", "torchscript"]
        assert serve(run, *options, "--at", "short=baseline", "long=delta") == 0
        assert process.wait(ipi.PATIENCE) == 0
        moved.append((run.properties(), run.positions()))
    (biased, where), (_, expected) = moved
    delta = np.mean([result[0] for name, result in results.items() if name != "baseline"])
    np.testing.assert_allclose(biased["potential"][0], results["baseline"][0], rtol=1e-11)
    np.testing.assert_allclose(biased["ensemble_bias"][0], delta, rtol=1e-9)
    np.testing.assert_allclose(where, expected, atol=1e-9)
