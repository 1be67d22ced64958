"""A committee on one trunk: the mean of M heads is one model, and each head's answer is to be had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from beadwork.errors import ModelError
from beadwork.potential.architecture import mace_imported
from beadwork.potential.bundle import CARD, HEADS, MODEL, check, write_card
from beadwork.potential.graph import build
from beadwork.potential.heads import load_heads
from beadwork.potential.importer import import_model
from beadwork.potential.load import load
from beadwork.potential.native import NativeEngine
from beadwork.potential.potential import Potential
from beadwork.potential.torchscript import ModuleEvaluator, TorchScriptEngine, load_module
from beadwork.serve.reply import extras
from beadwork.toml import tomllib
from support.random_models import once

COUNT = 3
KINDS = ("invariant", "vector")
ENGINES = {"torchscript": TorchScriptEngine, "native": NativeEngine}


@pytest.fixture(scope="session")
def trunks(tmp_path_factory, mace_model) -> Path:
    """Two kinds of multi-head MACE, eager as NAME.model and bundles of all heads as NAME."""

    def make(folder: Path) -> None:
        names = [f"h{m}" for m in range(COUNT)]
        for kind, order, zbl, dtype in (("invariant", 0, True, "float32"), ("vector", 1, False, "float64")):
            model = mace_model(4 * (2 - order), order, zbl, 3, dtype, heads=names)
            with torch.no_grad():  # heads that differ in all that is their own
                model.atomic_energies_fn.atomic_energies += torch.tensor([[0.0, 0.0], [0.1, -0.2], [0.3, 0.1]])
                model.scale_shift.shift += torch.tensor([0.0, 0.02, -0.01])
                if not zbl:
                    model.scale_shift.scale *= torch.tensor([1.0, 1.2, 0.9])
            torch.save(model, folder / f"{kind}.model")
            import_model(folder / f"{kind}.model", folder / kind, trust_pickle=True, committee=True)

    return once(tmp_path_factory, "trunks", make)


def alone(file: Path, graph):
    """What mace's own multi-head model answers for each head, one evaluation after the other, in float64."""
    answers = []
    with mace_imported():
        for m in range(COUNT):
            model = torch.load(file, map_location="cpu", weights_only=False).double()
            answers.append(ModuleEvaluator(model, f"h{m}", "float64", "cpu").evaluate(graph))
    return answers


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_evaluation_is_the_mean_of_separate_ones(kind, engine, trunks, shapes):
    """Energies within 1e-9 eV, forces within 1e-9 eV/Å of M evaluations of mace's model; each head's energy too."""
    graph = build([shapes.structure(shape, 1) for shape in shapes.KINDS], check(trunks / kind).cutoff)
    wanted = alone(trunks / f"{kind}.model", graph)
    # the native engine reads radial functions off a spline: what it differs by is the same in every head
    near = {"torchscript": 1e-9, "native": 1e-6}[engine]
    answer = ENGINES[engine](check(trunks / kind)).evaluate(graph)
    for got, name in ((answer.energies, "energies"), (answer.forces, "forces"), (answer.virials, "virials")):
        mean = np.mean([getattr(one, name) for one in wanted], axis=0)
        np.testing.assert_allclose(got, mean, rtol=0, atol=near * max(1.0, np.abs(mean).max()))
    energies = np.array([one.energies for one in wanted])
    np.testing.assert_allclose(answer.of_heads, energies, rtol=0, atol=near * np.abs(energies).max())
    assert np.ptp(energies, axis=0).min() > 0.1, "the heads are not the same"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_alone_and_the_mean_of_heads(kind, engine, trunks, shapes):
    """Each head opened for itself is the one that mace has; in one engine mean and heads agree to 1e-9 in all."""
    graph = build([shapes.structure(shape, 1) for shape in shapes.KINDS], check(trunks / kind).cutoff)
    wanted = alone(trunks / f"{kind}.model", graph)
    mean = ENGINES[engine](check(trunks / kind)).evaluate(graph)
    heads = [ENGINES[engine](check(trunks / kind), head=m).evaluate(graph) for m in range(COUNT)]
    near = {"torchscript": 1e-9, "native": 1e-6}[engine]
    for m, (head, one) in enumerate(zip(heads, wanted, strict=True)):
        scale = max(1.0, np.abs(one.forces).max())
        np.testing.assert_allclose(head.forces, one.forces, rtol=0, atol=near * scale)
        np.testing.assert_allclose(head.of_atoms, one.of_atoms, rtol=0, atol=near * np.abs(one.of_atoms).max())
        np.testing.assert_allclose(mean.of_heads[m], head.energies, rtol=1e-12, atol=1e-9)
    scale = max(1.0, np.abs(mean.forces).max())
    np.testing.assert_allclose(mean.forces, np.mean([h.forces for h in heads], axis=0), rtol=0, atol=1e-9 * scale)
    np.testing.assert_allclose(mean.energies, np.mean([h.energies for h in heads], axis=0), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("engine", ["torchscript", "native"])
@pytest.mark.parametrize("weighted", [{}, {"baseline_uncertainty": 0.5}, {"atom_uncertainty": 0.05}])
def test_a_potential_of_heads_is_that_of_members(engine, weighted, trunks, made, shapes):
    """Sum, spread of energies and forces, every head's numbers and the weighted baseline, as of M separate models."""
    if weighted and engine == "native":
        pytest.skip("the native engine knows no derivative of an atom's energy; AutoEngine takes TorchScript then")
    frames = shapes.beads(2, 3)
    baseline = TorchScriptEngine(check(made["vector"].bundle))
    opened = ENGINES[engine]
    separate = Potential(
        baseline, [opened(check(trunks / "vector"), head=m) for m in range(COUNT)], alpha=1.5, **weighted
    )
    shared = Potential(baseline, [opened(check(trunks / "vector"))], alpha=1.5, **weighted)
    one, two = shared.evaluate(frames, member_forces=True), separate.evaluate(frames, member_forces=True)
    assert len(shared.members) == COUNT
    assert shared.weights.tolist() == [1 / COUNT] * COUNT
    scale = np.abs(two.member_forces).max()
    for name in ("energies", "forces", "virials", "member_forces", "member_virials"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-11, atol=1e-9 * scale)
    for name in ("members", "energy", "force", "largest"):
        np.testing.assert_allclose(getattr(one.spread, name), getattr(two.spread, name), rtol=1e-9, atol=1e-9 * scale)
    assert one.spread.energy.min() > 0.01
    # what i-PI's ffcommittee reads: committee_pot, committee_force and committee_virial of each bead
    for ours, theirs in zip(
        *(map(json.loads, extras(*both)) for both in ((one, shared), (two, separate))), strict=True
    ):
        assert ours.keys() == theirs.keys() >= {"committee_pot", "committee_force", "committee_virial"}
        for key in ("committee_pot", "committee_force", "committee_virial", "energy_spread", "force_spread_max"):
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-9, atol=1e-9 * scale)


def test_weights_given_with_all_heads_go_on_from_the_mean(trunks):
    """What a training begins with: the mean of a bundle, taken apart, is the model with all heads again."""
    for kind in KINDS:
        mean = load_module(trunks / kind / MODEL).state_dict()
        heads = load_heads(trunks / kind / HEADS, (1, 8))
        with mace_imported():
            model = torch.load(trunks / f"{kind}.model", map_location="cpu", weights_only=False).double()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(heads.apart(mean))
        after = model.state_dict()
        ratio = (before["scale_shift.scale"] / after["scale_shift.scale"]).double()
        for key in ("readouts.0.linear.weight", "readouts.1.linear_1.weight"):
            own = before[key].view(-1, COUNT) * (ratio if "readouts.0" in key else 1)
            torch.testing.assert_close(after[key].view(-1, COUNT), own, rtol=1e-9, atol=1e-9)
        out, own = (state["readouts.1.linear_2.weight"].view(COUNT, -1, COUNT) for state in (after, before))
        for m in range(COUNT):
            torch.testing.assert_close(out[m, :, m], own[m, :, m] * ratio[m], rtol=1e-9, atol=1e-9)
        constants = [s["atomic_energies_fn.atomic_energies"] + s["scale_shift.shift"][:, None] for s in (after, before)]
        torch.testing.assert_close(*constants, rtol=0, atol=1e-6)


def test_what_is_no_committee_on_one_trunk_is_refused(trunks, made, tmp_path):
    """One head, TorchScript, a head chosen beside all, a second Δ model beside a trunk: a sentence each."""
    for file, more, said in (
        (made["vector"].file, {}, "one head"),
        (made["vector"].bundle / MODEL, {}, "eager model"),
        (trunks / "vector.model", {"head": "h1"}, "choose one"),
    ):
        with pytest.raises(ModelError, match=said):
            import_model(file, tmp_path / "out", trust_pickle=True, committee=True, **more)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="only Δ model"):
        load(None, [trunks / "vector", made["vector"].bundle])
    with pytest.raises(ModelError, match=r"the 3 heads of a trunk have equal ones.*leave them out"):
        load(None, [trunks / "vector"], weights=[1.0, 2.0, 1.0])
    with pytest.raises(ModelError, match="no head 3"):
        TorchScriptEngine(check(trunks / "vector"), head=3)


def test_heads_that_do_not_fit_their_model_are_refused(trunks, tmp_path):
    """heads.npz of another model, or torn, is a sentence, whoever wrote the card; other heads are another model."""
    folder = tmp_path / "vector"
    shutil.copytree(trunks / "vector", folder)
    before = check(folder).hash
    with np.load(folder / HEADS) as data:
        arrays = dict(data)
    for broken, said in (({"out": arrays["out"][:1]}, "do not go together"), ({"elements": np.array([1])}, "together")):
        np.savez(folder / HEADS, **arrays | broken)
        with pytest.raises(ModelError, match="not the file that its card describes"):
            TorchScriptEngine(check(folder))
        with pytest.raises(ModelError, match=said):
            load_heads(folder / HEADS, (1, 8))
    (folder / HEADS).write_bytes((folder / HEADS).read_bytes()[:99])
    with pytest.raises(ModelError, match="cannot be read"):
        load_heads(folder / HEADS, (1, 8))
    np.savez(folder / HEADS, **arrays | {"out": arrays["out"] * 1.01})
    entries = tomllib.loads((folder / CARD).read_text())
    write_card(folder, {k: v for k, v in entries.items() if k not in ("format", "units", "sha256")})
    assert check(folder).hash != before


def test_a_loaded_committee_settles_on_the_native_engine(trunks, made, shapes):
    """`load` takes one bundle for all members: native agrees with TorchScript, reference energies are the mean's."""
    potential = load(made["vector"].bundle, [trunks / "vector"], baseline_uncertainty_atom=0.05)
    frames = shapes.beads(2, 3)
    said = potential.select_backends(frames[0])
    assert "vector (native, float64): native agrees" in said[1]
    assert [card.about.get("heads") for card in potential.cards] == [None, COUNT]
    heads = load_heads(trunks / "vector" / HEADS, (1, 8))
    np.testing.assert_allclose([potential.reference[z] for z in (1, 8)], heads.reference.mean(axis=0), atol=1e-9)
    one = potential.evaluate(frames)  # heads in the native engine, and weighed by TorchScript
    separate = [TorchScriptEngine(check(trunks / "vector"), head=m) for m in range(COUNT)]
    other = Potential(potential.baseline, separate, reference=potential.reference, atom_uncertainty=0.05)
    two = other.evaluate(frames)
    np.testing.assert_allclose(one.forces, two.forces, atol=1e-5 * np.abs(two.forces).max())
    np.testing.assert_allclose(one.spread.force, two.spread.force, atol=1e-5 * np.abs(two.forces).max())
    served = potential.without_baseline()
    assert len(served.members) == len(potential.with_committee(load(None, [trunks / "vector"])).members) == COUNT
    assert [card.path for card in served.baseline_cards] == [made["vector"].bundle]
