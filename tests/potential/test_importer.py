"""Importing: what a model has is served, or refused with the reason; nothing half-made is left."""

from __future__ import annotations

import logging
import re
import sys
import types
import zipfile
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from beadwork.errors import ModelError
from beadwork.frame import Frame
from beadwork.potential import auto_engine as engines
from beadwork.potential import importer
from beadwork.potential.architecture import mace_imported
from beadwork.potential.auto_engine import compare, compare_dense, open_engine, trial
from beadwork.potential.bundle import check, format_card
from beadwork.potential.engine import Energies
from beadwork.potential.graph import build
from beadwork.potential.importer import import_model
from beadwork.potential.native import NativeEngine
from beadwork.potential.torchscript import ModuleEvaluator, TorchScriptEngine

WATER = Frame(
    np.array([8, 1, 1]), np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]), np.zeros((3, 3)), (False, False, False)
)

HYDRONIUM = Frame(
    np.array([8, 1, 1, 1]),
    np.array([[0, 0, 0.1], [0.94, 0, -0.2], [-0.47, 0.81, -0.2], [-0.47, -0.81, -0.25]]),
    np.zeros((3, 3)),
    (False, False, False),
)


def saved(model: Any, folder: Path) -> Path:
    """The file of an eager model."""
    torch.save(model, folder / "my.model")
    return folder / "my.model"


def spoilt(mace_model: Any, **options: Any) -> Any:
    """An invariant model of few channels, with other options of MACE's."""
    return mace_model(4, 0, options.pop("zbl", False), 3, "float64", **options)


def bias_readout() -> Any:
    """The readout block of MACE's newest foundation models."""
    with mace_imported():
        from mace.modules import blocks
    return blocks.NonLinearBiasReadoutBlock


#: what mace-torch 0.3.16 can be asked for and Symmetrix-XL 0.1.1 takes for what it knows, without a word; and by how
#: many eV/Å its forces are then wrong in the worst system of the trial
IGNORED = {
    "gate": (lambda: {"gate": torch.tanh}, 1.5),
    "readout_cls": (lambda: {"readout_cls": bias_readout()}, 7.3e-3),
}


@pytest.mark.parametrize("option", IGNORED)
def test_what_the_native_engine_ignores_is_not_served_natively(mace_model, tmp_path, option):
    """An extraction that leaves something out is found by comparing with TorchScript, and there is no native model."""
    pytest.importorskip("symmetrix")
    options, wrong = IGNORED[option]
    card = import_model(saved(spoilt(mace_model, **options()), tmp_path), tmp_path / "out", trust_pickle=True)
    assert not card.native
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.safetensors", "model.pt", "card.toml"}
    reason = card.about["native"]
    assert reason.startswith("Symmetrix-XL does not support something in this model: native does NOT agree with")
    assert "on a dense box of its elements and close pairs of them" in reason
    assert float(re.search(r"([\d.e+-]+) eV/Å; allowed 1e-06 and 1e-05", reason)[1]) == pytest.approx(wrong, rel=0.1)
    assert "native_remedy" not in card.about
    assert "native: no (Symmetrix-XL does not support" in format_card(tmp_path / "out")
    engine = open_engine(tmp_path / "out", "auto")
    assert "no native model" in engine.select_backend(build([WATER], 4.5))


def test_a_lone_molecule_admits_no_native_model_that_is_wrong_elsewhere(mace_model, tmp_path, monkeypatch):
    """use_so3 changes nothing in a plane: water agrees to rounding; so the start looks at a dense box of H and O too.

    The bundle is what 0.1.0 made: with a native model that nobody had compared, and no answer to hold it to.
    """
    pytest.importorskip("symmetrix")
    with monkeypatch.context() as patch:
        agreed = engines.Comparison(0.0, 0.0, 0.0, 0.0, (1e-6, 1e-5), "nothing")
        patch.setattr(importer, "compare_dense", lambda *_: agreed)
        patch.setattr(importer, "_held", lambda *_: {})
        model = spoilt(mace_model, use_so3=True)
        assert import_model(saved(model, tmp_path), tmp_path / "old", trust_pickle=True).native
    graph = build([WATER], 4.5)
    native, exact = NativeEngine(check(tmp_path / "old")), TorchScriptEngine(check(tmp_path / "old"))
    alone = compare(native, exact, graph, "float64")
    assert alone.agreed
    assert alone.force < 1e-5
    assert compare_dense(native, exact, (1, 8), "float64").force == pytest.approx(1.4e-3, rel=0.1)
    engine = open_engine(tmp_path / "old", "auto")
    choice = engine.select_backend(graph)
    assert "torchscript" in engine.name
    assert engine.disagrees
    assert "does NOT agree with torchscript on a dense box of its elements" in choice
    assert np.array_equal(engine.evaluate(graph).forces, exact.evaluate(graph).forces)
    required = open_engine(tmp_path / "old", "native")
    with pytest.raises(ModelError, match=r"does NOT agree.*dense box.*import the model again"):
        required.evaluate(graph)


#: what Symmetrix-XL 0.1.1 knows, by name; to 1e-6 eV/Å in the trial
KNOWN = {
    "elements in another order": {"elements": (8, 1)},
    "hidden 2e": {"hidden_irreps": "4x0e+4x1o+4x2e"},
    "irreps kept to the end": {"hidden_irreps": "4x0e+4x1o", "keep_last_layer_irreps": True},
    "Agnesi and ZBL": {"distance_transform": "Agnesi", "zbl": True, "num_polynomial_cutoff": 6},
    "densities": {
        "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "interaction_cls": "RealAgnosticDensityResidualInteractionBlock",
    },
    "full Clebsch-Gordan": {"use_reduced_cg": False},
}
#: what it does not take, and says so, or stumbles over
UNFIT = {
    "max_ell": ({"max_ell": 2}, "l_max=3"),
    "no cutoff": ({"apply_cutoff": False}, "requires an applied PolynomialCutoff"),
    "one product for all elements": ({"use_agnostic_product": True}, "out of bounds"),
    "edge irreps": ({"edge_irreps": "2x0e"}, "cannot reshape"),
    "radial basis": ({"radial_type": "gaussian"}, "GaussianBasis"),
    "distance transform": ({"distance_transform": "Soft"}, "SoftTransform"),
    "last readout alone": ({"use_last_readout_only": True}, "."),
    "odd scalars": ({"hidden_irreps": "4x0e+4x0o+4x1o"}, "."),
    "pseudovectors": ({"hidden_irreps": "4x0e+4x1e"}, "canonical H1 layout"),
}


@pytest.mark.slow
@pytest.mark.parametrize("option", KNOWN)
def test_what_the_native_engine_knows_is_served_natively(mace_model, tmp_path, option):
    """Options that are extracted rightly are not refused: the comparison has room for splines and for large forces."""
    pytest.importorskip("symmetrix")
    card = import_model(saved(spoilt(mace_model, **KNOWN[option]), tmp_path), tmp_path / "out", trust_pickle=True)
    assert card.native
    native, exact = NativeEngine(check(card.path)), TorchScriptEngine(check(card.path))
    assert compare_dense(native, exact, card.elements, "float64").force < 1e-6
    assert compare_dense(
        NativeEngine(check(card.path), "float32"), TorchScriptEngine(check(card.path), "float32"), (1, 8), "float32"
    ).agreed


@pytest.mark.slow
@pytest.mark.parametrize("option", UNFIT)
def test_what_the_native_engine_does_not_take_is_served_by_torchscript(mace_model, tmp_path, option):
    """Whatever the extraction raises, the bundle is made and its card says why it has no native model."""
    pytest.importorskip("symmetrix")
    options, said = UNFIT[option]
    card = import_model(saved(spoilt(mace_model, **options), tmp_path), tmp_path / "out", trust_pickle=True)
    assert not card.native
    assert re.match(rf"not possible for this architecture: .*{said}", card.about["native"])
    assert np.isfinite(open_engine(card.path, "auto").evaluate(trial((1, 8), 4.5)).forces).all()


def test_another_correlation_is_refused_before_it_is_extracted(mace_model, tmp_path):
    """The extraction reads the weights of correlation 3; at 2 it stumbles, at 4 after minutes and ten gigabytes."""
    pytest.importorskip("symmetrix")
    card = import_model(saved(spoilt(mace_model, correlation=[3, 2]), tmp_path), tmp_path / "out", trust_pickle=True)
    assert card.about["native"] == "Symmetrix-XL knows correlation 3, and this model has 2, 3"


def made_in(file: Path) -> list[str]:
    """The records of a TorchScript file that say in which folders it was compiled."""
    with zipfile.ZipFile(file) as archive:
        return [name for name in archive.namelist() if b"site-packages" in archive.read(name)]


def test_a_bundle_does_not_say_in_which_folders_it_was_made(made):
    """TorchScript keeps, for each operation, the file of Python that it was written in: a user's home, given away."""
    shipped = sorted((Path(__file__).parents[2] / "models").glob("*/*/model.pt"))
    assert len(shipped) > 10
    for file in [*shipped, *(one.bundle / "model.pt" for one in made.values())]:
        assert not made_in(file), file


def charged() -> dict[str, Any]:
    """A model that wants to be told the total charge."""
    return {"embedding_specs": {"total_charge": {"type": "continuous", "in_dim": 1, "emb_dim": 4, "per": "graph"}}}


def nonlinear() -> dict[str, Any]:
    """The interaction block of MACE's newest foundation models."""
    block = "RealAgnosticResidualNonLinearInteractionBlock"
    return {"interaction_cls": block, "interaction_cls_first": block}


def test_a_model_that_does_not_compile_is_served_eagerly(mace_model, tmp_path):
    """The card has TorchScript's first line with something in it; the engine that needs no TorchScript answers."""
    file = saved(spoilt(mace_model, **nonlinear()), tmp_path)
    card = import_model(file, tmp_path / "out", trust_pickle=True)
    assert {path.name for path in card.path.iterdir()} == {"model.safetensors", "card.toml"}
    assert re.fullmatch(r"Unknown type name 'o3\.Irreps' \(gate\.py, line \d+\)", card.about["torchscript"])
    assert "torchscript: no (Unknown type name" in format_card(card.path)
    with pytest.raises(ModelError, match="has nothing for the engine 'torchscript': no \\(Unknown type name"):
        open_engine(card.path, "torchscript")
    engine = open_engine(card.path, "auto")
    choice = engine.select_backend(build([WATER], 4.5))
    assert "no native model" in choice
    assert "no TorchScript (Unknown type name" in choice
    exact = ModuleEvaluator(torch.load(file, weights_only=False), None, "float64", "cpu").evaluate(build([WATER], 4.5))
    assert np.abs(engine.evaluate(build([WATER], 4.5)).forces - exact.forces).max() < 1e-10


@pytest.mark.slow
def test_a_model_that_wants_a_charge(mace_model, tmp_path):
    """Why it does not compile is told, and Symmetrix-XL is not asked, which would leave the charge out."""
    card = import_model(
        saved(spoilt(mace_model, **charged()), tmp_path), tmp_path / "out", trust_pickle=True, charges=[1]
    )
    assert re.match(
        r"Module 'GenericJointEmbedding' has no attribute 'specs'.*\(embeddings\.py, line \d+\)",
        card.about["torchscript"],
    )
    assert "knows no ScaleShiftMACE with total_charge" in card.about["native"]
    engine = open_engine(card.path, "auto")
    assert np.isfinite(engine.evaluate(build([replace(HYDRONIUM, charge=1)], 4.5)).energies).all()
    with pytest.raises(ModelError, match="was trained on 1 e as total charge, not on 3"):
        engine.evaluate(build([replace(HYDRONIUM, charge=3)], 4.5))


def test_charges_without_an_embedding_are_refused(mace_model, tmp_path):
    """A card cannot say that a model was trained on a charge that it has no embedding for: it would be served."""
    specs = {
        "total_charge": {"type": "categorical", "num_classes": 5, "offset": 2, "emb_dim": 4, "per": "graph"},
        "total_spin": {"type": "categorical", "num_classes": 4, "emb_dim": 4, "per": "graph"},
    }
    file = saved(spoilt(mace_model, embedding_specs=specs), tmp_path)
    for about, sentence in (
        ({"charges": [0, 3]}, "charges has 3, and the model embeds -2 to 2; correct --charges"),
        ({"charges": [2], "spins": [2, 3]}, "spins has 3, and the model embeds -1 to 2; correct --spins"),
    ):
        with pytest.raises(ModelError, match=sentence):
            import_model(file, tmp_path / "out", trust_pickle=True, **about)
    assert {path.name for path in tmp_path.iterdir()} == {"my.model"}


def test_virials_and_charges_are_compared(mace_model):
    """An engine that differs in the virial alone, or for an ion alone, is not taken for the same model."""
    model = spoilt(mace_model, **charged())
    graph = trial((1, 8), 4.5, model)
    assert {charge for charge, _ in graph.states} == {-1, 0, 1}
    assert len(graph) == 3 * len(trial((1, 8), 4.5))
    count, atoms = len(graph), len(graph.numbers)
    one = Energies(np.zeros(count), np.zeros((atoms, 3)), np.zeros((count, 3, 3)))
    assert importer._difference(one, one, graph) == ""
    for other in (replace(one, virials=one.virials + 1e-3), replace(one, energies=np.arange(count) * 1e-3)):
        assert importer._difference(one, other, graph).startswith("it does not answer as the eager model does (")


def test_what_beadwork_does_not_give_is_named(mace_model, tmp_path):
    """A model that embeds something else than charge and spin is refused, and nothing is left."""
    options = {"embedding_specs": {"elec_temp": {"type": "continuous", "in_dim": 1, "emb_dim": 4, "per": "graph"}}}
    with pytest.raises(
        ModelError, match="holds a ScaleShiftMACE that wants elec_temp; beadwork gives it atoms, a cell"
    ):
        import_model(saved(spoilt(mace_model, **options), tmp_path), tmp_path / "new" / "out", trust_pickle=True)
    assert {path.name for path in tmp_path.iterdir()} == {"my.model"}


def test_a_model_that_raises_leaves_an_empty_folder_empty(made, tmp_path, monkeypatch):
    """Whatever a model's own code raises, an AssertionError without a word too, is a sentence, and nothing is left."""
    from e3nn.util import jit

    (tmp_path / "out").mkdir()

    def refuse(model):
        raise AssertionError

    monkeypatch.setattr(jit, "compile", refuse)
    monkeypatch.setattr(importer, "describe", refuse)
    with pytest.raises(
        ModelError,
        match=r"that can neither be made again \(AssertionError\) nor be compiled \(AssertionError\); train without",
    ):
        import_model(made["vector"].file, tmp_path / "out", trust_pickle=True)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_whose_features_do_not_fit_each_other(mace_model, tmp_path):
    """One that compiles and cannot be evaluated is refused with what PyTorch says, not with its trace."""
    file = saved(spoilt(mace_model, hidden_irreps="4x0e+2x1o"), tmp_path)
    with pytest.raises(
        ModelError, match=r"holds a ScaleShiftMACE that cannot be evaluated[^:]*: \S[^\n]*; beadwork giv"
    ):
        import_model(file, tmp_path / "out", trust_pickle=True)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def converted(made, tmp_path, monkeypatch):
    """A model with a layer of cuequivariance_torch's, as mace_e3nn_cueq puts them in; that package is there."""
    package = types.ModuleType("cuequivariance_torch")
    package.__spec__ = ModuleSpec("cuequivariance_torch", None)
    package.Linear = type("Linear", (torch.nn.Linear,), {"__module__": "cuequivariance_torch"})
    monkeypatch.setitem(sys.modules, "cuequivariance_torch", package)
    with mace_imported():
        model = torch.load(made["vector"].file, weights_only=False)
    model.node_embedding.linear = package.Linear(2, 4)
    return saved(model, tmp_path)


def test_a_model_that_cuequivariance_converted(converted, tmp_path, monkeypatch):
    """Its layers cannot be compiled, nor read without the package: both say how it is converted back."""
    back = r"\(mace_cueq_to_e3nn MODEL --return_model writes MODEL\.e3nn_model\.pt\) and import that"
    with pytest.raises(ModelError, match=rf"was converted for cuequivariance, .*; convert it back {back}"):
        import_model(converted, tmp_path / "out", trust_pickle=True)
    monkeypatch.delitem(sys.modules, "cuequivariance_torch")
    with pytest.raises(
        ModelError, match=rf"needs the Python module cuequivariance_torch, which is not installed; convert it .*{back}"
    ):
        import_model(converted, tmp_path / "out", trust_pickle=True)
    assert not (tmp_path / "out").exists()


def test_a_module_that_is_missing_is_named(tmp_path, monkeypatch):
    """A pickle of another package's class names it; one of another version of an installed package does not lie."""
    for name, sentence in (
        ("long_range", "needs the Python module long_range, which is not installed; install it here"),
        ("mace.elsewhere", r"cannot be unpickled \(No module named 'mace\.elsewhere'\); is it truncated, or from an"),
    ):
        package = types.ModuleType(name)
        package.Part = type("Part", (torch.nn.Module,), {"__module__": name})
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, package)
            file = saved(package.Part(), tmp_path)
        with pytest.raises(ModelError, match=sentence):
            import_model(file, tmp_path / "out", trust_pickle=True)


def test_the_trial_meets_all_that_matters():
    """Most pairs of elements within the cutoff, all of a few, in a cell smaller than two; close pairs; few edges."""
    for elements, cutoff in (((1, 8), 4.5), (tuple(range(1, 90)), 6.0)):
        graph = trial(elements, cutoff)
        box = graph.part(0, 1)
        assert set(box.numbers) == set(elements)
        met = {(int(box.numbers[a]), int(box.numbers[b])) for a, b in zip(box.center, box.neighbor, strict=True)}
        assert len(met) > 0.8 * len(elements) ** 2
        assert 60 < len(box.neighbor) / len(box.numbers) < 120
        assert np.linalg.norm(box.cells[0], axis=1).min() < 2 * cutoff
        assert set(
            zip(graph.numbers[len(box.numbers) :: 2], graph.numbers[len(box.numbers) + 1 :: 2], strict=True)
        ) >= {(z, z) for z in elements}
        assert 0.4 < graph.closest.min() < 0.6  # Å: two H
    assert np.array_equal(trial((8, 1), 4.5).vectors, trial((1, 8), 4.5).vectors)


def test_the_tolerance_grows_with_the_forces_of_each_system_alone(shapes, pair):
    """A pair that repels with 1000 eV/Å makes no room for an error elsewhere; NaN never agrees."""

    class Off(pair):
        wrong = 0.0

        def evaluate(self, graph):
            answer = super().evaluate(graph)
            answer.forces[-1] += self.wrong  # of the last system
            return answer

    frames = [shapes.structure("liquid", 0), shapes.structure("h2", 1)]
    graph = build(frames, 3.5)
    exact, off = Off(1000.0), Off(1000.0)
    largest = [float(np.abs(exact.evaluate(build([frame], 3.5)).forces).max()) for frame in frames]
    assert largest[0] > 50
    assert largest[1] < largest[0]
    for scale, agreed in ((0.5, True), (2.0, False), (np.nan, False)):
        error = 1e-5 * max(1.0, largest[1] / 10) * scale
        off.wrong = error
        assert compare(off, exact, graph, "float64", usual=10.0).agreed == agreed
    off.wrong = 2e-5
    assert not compare(off, exact, graph, "float64").agreed


def test_messages_are_logged_while_mace_is_at_work(caplog: pytest.LogCaptureFixture) -> None:
    """A server, or a training beside this one, loses none of its messages for the seconds that mace takes."""
    caplog.set_level(logging.INFO, "beadwork")
    before = logging.getLogger().level
    with mace_imported():
        logging.getLogger("beadwork").info("row 7 is kept")
        logging.warning("mace speaks of a package that nothing here uses")
    assert caplog.messages == ["row 7 is kept"]
    assert logging.getLogger().level == before
