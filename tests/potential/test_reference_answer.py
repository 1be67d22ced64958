"""A bundle's files are held to one model when they are opened, and one that is another model's is refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from beadwork.errors import ModelError
from beadwork.potential.auto_engine import open_engine
from beadwork.potential.bundle import FILES, REFERENCE_ANSWER, load_card, write_card
from beadwork.potential.graph import build
from beadwork.potential.load import load
from beadwork.potential.reference_answer import hold
from beadwork.potential.weights import read_weights, write_weights
from beadwork.toml import tomllib


@pytest.fixture
def bundle(made, tmp_path):
    """A copy of a good bundle, as two that are alike: `delta-0` and `delta-1` beside each other."""
    shutil.copytree(made["vector"].bundle, tmp_path / "delta-1")
    return shutil.copytree(made["vector"].bundle, tmp_path / "delta-0")


def entries(bundle):
    """The card as `write_card` takes it."""
    data = tomllib.loads((bundle / "card.toml").read_text())
    return {key: value for key, value in data.items() if key not in ("format", "units", "sha256")}


def another(file, by=1.001):
    """Make the file one of another model of the same architecture: its last weights are larger by a thousandth."""
    if file.suffix == ".pt":
        module = torch.jit.load(str(file))
        next(p for name, p in module.named_parameters() if name == "readouts.1.linear_2.weight").data.mul_(by)
        torch.jit.save(module, str(file))
    elif file.suffix == ".json":
        data = json.loads(file.read_text())
        data["readout_2_weights_2"] = [by * weight for weight in data["readout_2_weights_2"]]
        file.write_text(json.dumps(data))
    else:
        arrays, about = read_weights(file)
        arrays["readouts.1.linear_2.weight"] *= by
        write_weights(file, arrays, about)


@pytest.mark.parametrize("engine", FILES)
def test_a_file_of_another_model_is_refused_by_name(bundle, engine):
    """Its hash stands in the card, written for it, and each engine that reads it refuses it; the others serve."""
    if engine == "native":
        pytest.importorskip("symmetrix")
    file = bundle / FILES[engine]
    another(file)
    write_card(bundle, entries(bundle))
    sentence = f"{file.name} does not answer what the card says that this model answers .*the weights of another model"
    for asked in {engine, "native", "auto"} if engine != "eager" else {engine}:  # native is held against torchscript
        with pytest.raises(ModelError, match=sentence):
            open_engine(bundle, asked)
    if engine != "eager":
        open_engine(bundle, "eager")
        with pytest.raises(ModelError, match=sentence):
            load(None, [bundle, bundle.with_name("delta-1")])
    else:
        assert load_card(bundle).hash != load_card(bundle.with_name("delta-1")).hash


def test_single_precision_is_held_too(bundle):
    """Rounding of float32 passes, another model does not."""
    open_engine(bundle, "torchscript", "float32")
    another(bundle / "model.pt", 1.1)
    write_card(bundle, entries(bundle))
    with pytest.raises(ModelError, match=r"model\.pt does not answer"):
        open_engine(bundle, "torchscript", "float32")


def test_another_version_is_named(bundle):
    """Where the same files answer otherwise, what has changed since the card was written is said."""
    card = entries(bundle)
    card[REFERENCE_ANSWER]["energy"] += 1e-4
    card["made_with"]["mace-torch"] = "0.3.1"
    write_card(bundle, card)
    with pytest.raises(
        ModelError, match=r"a version computes otherwise \(when the card was written mace-torch 0\.3\.1, "
    ):
        open_engine(bundle, "torchscript")


WRONG = {
    "no energy": (lambda told: told.pop("energy"), "KeyError"),
    "forces of other atoms": (lambda told: told["forces"].pop(), "cannot reshape"),
    "an element that the card does not name": (lambda told: told.update(numbers=[6] * 8), "none of the card's"),
    "too many atoms": (lambda told: told.update(numbers=[1] * 10**5), "100000 atoms"),
    "no whole number": (lambda told: told.update(charge=0.5), "whole numbers"),
    "atoms on top of each other": (lambda told: told.update(positions=[[0.0] * 3] * 8), "GeometryError"),
    "no table": (lambda told: "text", "TypeError"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_answer_that_is_none_is_a_sentence(bundle, wrong):
    """A card may come from anyone: whatever stands there ends in a sentence, before a model is evaluated."""
    change, said = WRONG[wrong]
    card = entries(bundle)
    changed = change(card[REFERENCE_ANSWER])
    if wrong == "no table":
        card[REFERENCE_ANSWER] = changed
    write_card(bundle, card)
    engine = type("None", (), {"name": "none"})
    with pytest.raises(ModelError, match=f"reference_answer cannot be read .*{said}"):
        hold(engine, load_card(bundle), "model.pt", "float64")


def test_an_older_bundle_opens_and_is_told_once(bundle, made, shapes):
    """Without an answer in the card it answers the same bits, under the same hash; one note names what is not known."""
    card = entries(bundle)
    del card[REFERENCE_ANSWER]
    write_card(bundle, card)
    shutil.rmtree(bundle.with_name("delta-1"))
    shutil.copytree(bundle, bundle.with_name("delta-1"))
    another(bundle.with_name("delta-1") / "model.pt")
    write_card(bundle.with_name("delta-1"), card)
    frames = [shapes.structure("liquid", 1)]
    before, now = (
        open_engine(path, "torchscript").evaluate(build(frames, 4.5)) for path in (made["vector"].bundle, bundle)
    )
    assert np.array_equal(before.forces, now.forces)
    assert load_card(bundle).hash == load_card(made["vector"].bundle).hash
    potential = load(made["vector"].bundle, [bundle, bundle.with_name("delta-1")], "torchscript")
    told = [note for note in potential.notes if "all its files are of one model" in note]
    assert len(told) == 1
    assert "the bundle of vector, vector is an older one" in told[0]
