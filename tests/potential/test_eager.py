"""The engine of mace-torch's own modules: the same answers without TorchScript, and no code from a bundle."""

from __future__ import annotations

import copy
import math
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from beadwork.errors import GeometryError, ModelError
from beadwork.frame import Frame
from beadwork.potential.architecture import describe, rebuild
from beadwork.potential.auto_engine import open_engine, trial
from beadwork.potential.bundle import WEIGHTS, check, load_card, sha256
from beadwork.potential.eager import EagerEngine, load_model
from beadwork.potential.graph import build
from beadwork.potential.importer import import_model
from beadwork.potential.potential import Potential
from beadwork.potential.state import Wants
from beadwork.potential.torchscript import ModuleEvaluator, TorchScriptEngine
from beadwork.potential.weights import read_weights, write_weights

HYDRONIUM = Frame(
    np.array([8, 1, 1, 1]),
    np.array([[0, 0, 0.1], [0.94, 0, -0.2], [-0.47, 0.81, -0.2], [-0.47, -0.81, -0.25]]),
    np.zeros((3, 3)),
    (False, False, False),
)


@pytest.mark.parametrize("name", ["invariant", "vector"])
def test_the_same_answers_as_torchscript(made, name):
    """Energies, forces, virials, atoms' energies and features, in a dense box and in close pairs."""
    eager, exact = EagerEngine(check(made[name].bundle)), TorchScriptEngine(check(made[name].bundle))
    graph = trial((1, 8), exact.cutoff)
    one, two = eager.evaluate(graph), exact.evaluate(graph)
    assert np.abs(one.energies - two.energies).max() < 1e-9
    assert np.abs(one.forces - two.forces).max() < 1e-9
    assert np.abs(one.virials - two.virials).max() < 1e-8
    assert np.abs(one.of_atoms - two.of_atoms).max() < 1e-9
    assert eager.reference == exact.reference
    assert np.abs(eager.features(graph) - exact.features(graph)).max() < 1e-10
    assert eager.name == f"{name} (eager, float64)"


def test_no_torch_jit_is_needed(made, monkeypatch):
    """Where PyTorch's deprecation of torch.jit is an error, a bundle with weights is loaded and served all the same.

    An old bundle, which has nothing else, says what is wrong.
    """
    graph = trial((1, 8), 4.0)
    expected = TorchScriptEngine(check(made["vector"].bundle)).evaluate(graph)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*torch\\.jit.*")
        engine = open_engine(made["vector"].bundle, "auto")
        assert Potential(engine).evaluate([HYDRONIUM]).energies.shape == (1,)
        exact = engine.exact
        assert exact.kind == "eager"
        assert np.abs(exact.evaluate(graph).forces - expected.forces).max() < 1e-9
        assert load_model(check(made["vector"].bundle)).r_max == 4.0
        with pytest.raises(ModelError, match=r"model\.pt is TorchScript, which PyTorch [\d.+a-z]+ does not read"):
            open_engine(made["vector"].bundle, "torchscript")


@pytest.mark.slow
def test_import_needs_no_torch_jit(made, tmp_path):
    """The import too: the bundle has its weights, and says why it has no TorchScript where that cannot be written."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*torch\\.jit.*")
        card = import_model(made["vector"].file, tmp_path / "out", trust_pickle=True)
        assert card.hash == check(made["vector"].bundle).hash
        assert open_engine(tmp_path / "out", "eager").evaluate(trial((1, 8), 4.0)).energies.shape == (5,)


def test_a_bundle_names_no_code(made):
    """Classes and functions are from fixed lists, sizes within what the weights fill: each lie has its sentence."""
    state, good = read_weights(made["vector"].bundle / WEIGHTS)
    lies = {
        "class": ("os.system", r"its class is 'os\.system', and known are MACE, ScaleShiftMACE"),
        "interaction_cls": ("__import__", "interaction_cls is '__import__'"),
        "readout_cls": ("LinearReadoutBlock.__init__", "readout_cls is"),
        "gate": ("eval", "gate is 'eval'"),
        "radial_type": (["bessel"], "radial_type is"),
        "hidden_irreps": ("999999x0e", "hidden_irreps is '999999x0e'"),
        "MLP_irreps": ("16x0e+__import__('os')", "MLP_irreps is"),
        "max_ell": (50, "max_ell is '50'"),
        "num_interactions": (10**9, "num_interactions is '1000000000'"),
        "num_bessel": (True, "num_bessel is 'True'"),
        "correlation": ([3, 3, 3], r"correlation is '\[3, 3, 3\]'"),
        "radial_MLP": ([10**9], "radial_MLP is"),
        "avg_num_neighbors": ([math.nan, 1.0], "avg_num_neighbors is"),
        "r_max": ("4.0", "r_max is '4.0'"),
        "heads": ([], "heads is"),
        "embedding_specs": (
            {"x": {"type": "categorical", "emb_dim": 2**40, "num_classes": 3, "per": "graph"}},
            "embed",
        ),
        "pair_repulsion": (1, "pair_repulsion is '1'"),
        "cueq_config": ({}, "it has cueq_config, which|cueq_config is"),
        "something": (1, "it has something, which no ScaleShiftMACE takes"),
    }
    for key, (value, sentence) in lies.items():
        with pytest.raises(ModelError, match=sentence) as refused:
            rebuild(good | {key: value}, state)
        assert "\n" not in str(refused.value)
    for description in (None, [], "ScaleShiftMACE", {}, {"class": "ScaleShiftMACE"}, good | {"class": []}):
        with pytest.raises(ModelError, match="describes no model"):
            rebuild(description, state)


def test_what_is_larger_than_its_weights_is_never_made(made):
    """Arguments that would fill the memory, or take hours, are refused before a module is made, padded weights or not.

    Each of these is within the bound of every single number, and only together they are not of these weights.
    """
    state, good = read_weights(made["vector"].bundle / WEIGHTS)
    state = state | {"payload": torch.zeros(100_000), "interactions.0.payload": torch.zeros(100_000)}
    wide = {"x": {"type": "categorical", "emb_dim": 100_000, "num_classes": 100_000, "per": "graph"}}
    deep = {"num_interactions": 12, "avg_num_neighbors": [1.0] * 12, "correlation": [6] * 12, "max_ell": 6}
    empty = torch.zeros(0)
    lies = (
        ({"embedding_specs": wide}, {}, "joint_embedding.embedders.x.weight"),
        (
            {"embedding_specs": wide},
            {"joint_embedding.embedders.x.weight": empty},
            "its arguments make .100000, 100000",
        ),
        (
            {"hidden_irreps": "4x0e+99999x1o"},
            {},
            r"products\.0\.linear\.weight has the shape \[32\], and.*\[9999800017\]",
        ),
        ({"hidden_irreps": "99999x0e"}, {}, r"node_embedding\.linear\.weight has the shape \[8\], and .*\[199998\]"),
        ({"correlation": [6, 6], "use_reduced_cg": False}, {}, r"products\.0\.\S*U_matrix_4"),
        ({"correlation": [2, 3]}, {}, r"correlation is 2, and products\.0\.\S* has more"),
        ({"max_ell": 6}, {}, r"U_matrix_1 has the shape \[16, 1\], and its arguments make \[49, 1\]"),
        ({"heads": [str(n) for n in range(1000)], "MLP_irreps": "99999x0e"}, {}, "atomic_energies has the shape"),
        ({"MLP_irreps": "99999x0e"}, {}, r"readouts\.1\.linear_1\.weight .*\[399996\]"),
        ({"edge_irreps": "99999x0e"}, {}, r"interactions\.1\.linear_up\.weight .*\[399996\]"),
        ({"radial_MLP": [60_000, 60_000]}, {}, r"conv_tp_weights has layers .*hidden layers of \[60000, 60000\]"),
        ({"num_bessel": 1024}, {}, "its arguments make 1024 radial functions"),
        (deep, {}, "num_interactions is 12, and its weights have 2 interactions"),
        (deep, {f"{p}.{n}.x": empty for p in ("interactions", "products") for n in range(12)}, "U_matrix_1"),
    )
    for change, arrays, sentence in lies:
        with pytest.raises(ModelError, match=rf"it describes no model of mace-torch's \(\w+: [^\n]*{sentence}[^\n]*$"):
            rebuild(good | change, state | arrays)


def test_weights_of_another_model(made, tmp_path):
    """A file that lacks an array, or has one of another shape, is refused with the file's name."""
    bundle = shutil.copytree(made["vector"].bundle, tmp_path / "copy")
    state, description = read_weights(bundle / WEIGHTS)
    old = load_card(bundle).sha256[WEIGHTS]
    text = (bundle / "card.toml").read_text()
    name = "interactions.1.linear_up.weight"
    lies = {
        "shape": (state | {name: state[name][:-1]}, r"interactions\.1\.linear_up\.weight has the shape"),
        "lacking": (
            {key: value for key, value in state.items() if key != name},
            r"KeyError: 'interactions\.1\.linear_up",
        ),
        "lacking a scale": ({key: value for key, value in state.items() if "scale" not in key}, "scale_shift"),
        "lacking the first": (
            {key: value for key, value in state.items() if key != "node_embedding.linear.weight"},
            "KeyError: 'node_embedding",
        ),
        "one too many": (state | {"payload": torch.zeros(1)}, "the arrays payload are no part of it"),
        "no atoms": (state | {"atomic_numbers": torch.zeros(0, dtype=torch.int64)}, "its atomic numbers are"),
    }
    for arrays, sentence in lies.values():
        write_weights(bundle / WEIGHTS, arrays, description)
        (bundle / "card.toml").write_text(text.replace(old, sha256(bundle / WEIGHTS)))
        with pytest.raises(ModelError, match=rf"copy/model\.safetensors: \S[^\n]*{sentence}[^\n]*$"):
            EagerEngine(check(bundle))


def test_only_models_of_mace_are_described(made, mace_model):
    """A class that borrows the name of one of mace-torch's is none of them."""
    model = load_model(check(made["vector"].bundle))

    class ScaleShiftMACE(type(model)):
        pass

    other = copy.copy(model)
    other.__class__ = ScaleShiftMACE
    with pytest.raises(ModelError, match=r"ScaleShiftMACE is no class that can be made again \(MACE, "):
        describe(other)


@pytest.fixture(scope="module")
def aware(mace_model):
    """A model with random weights that embeds charges from -2 to 2 e, and a spin."""
    specs = {
        "total_charge": {"type": "categorical", "num_classes": 5, "offset": 2, "emb_dim": 4, "per": "graph"},
        "total_spin": {"type": "continuous", "in_dim": 1, "emb_dim": 4, "per": "graph"},
    }
    model = mace_model(4, 0, False, 3, "float64", embedding_specs=specs, use_embedding_readout=True)
    return ModuleEvaluator(model, None, "float64", "cpu")


def test_a_charged_model(aware):
    """H3O+ and H5O2+ with charge 1 are served; with 0, with an impossible spin, with too much or with none they are
    refused."""

    def energy(charge, spin):
        return aware.evaluate(build([replace(HYDRONIUM, charge=charge, spin=spin)], 4.5)).energies[0]

    refused = {
        (0, 0): r"H3O with the charge \+0 e has 11 electrons, and cannot have 0 unpaired ones; correct charge",
        (1, 1): "has 10 electrons, and cannot have 1 unpaired ones",
        (1, 12): "has 10 electrons, and cannot have 12",
        (1, -2): "cannot have -2 unpaired",
        (12, 0): r"H3O has 11 protons, and its charge is \+12 e; correct charge",
        (3, 0): "trained on -2, -1, 0, 1, 2 e as total charge, not on 3",
        (None, 0): "wants the total charge of the system, and none is given; give --charge, or charge in run.toml",
        (1, None): "wants the number of unpaired electrons of the system, and none is given; give --spin",
    }
    for (charge, spin), sentence in refused.items():
        with pytest.raises(ModelError, match=sentence):
            energy(charge, spin)
    assert len({energy(1, 0), energy(1, 2), energy(-1, 0)}) == 3  # and all of it reaches the model
    water = np.array([[2.5, 0.1, 0.2], [3.1, 0.8, 0.1], [3.1, -0.7, 0.3]])
    places = np.concatenate((HYDRONIUM.positions, water))
    zundel = replace(HYDRONIUM, numbers=np.array([*HYDRONIUM.numbers, 8, 1, 1]), positions=places)
    assert np.isfinite(aware.evaluate(build([replace(zundel, charge=1, spin=0)], 4.5)).energies).all()
    for (charge, spin), electrons in {(0, 0): 21, (1, 1): 20}.items():
        with pytest.raises(
            ModelError, match=f"H5O2 with the charge .* has {electrons} electrons, and cannot have {spin}"
        ):
            aware.evaluate(build([replace(zundel, charge=charge, spin=spin)], 4.5))


def test_a_model_of_charges_alone_asks_for_no_spin():
    """Of an odd number of electrons too: H3O with charge 0 is served without a spin, and with an impossible one, which
    somebody has given, it is refused."""
    specs = {"total_charge": {"type": "categorical", "num_classes": 5, "offset": 2, "emb_dim": 4, "per": "graph"}}
    wants = Wants(SimpleNamespace(embedding_specs=specs), {})

    def told(**state):
        graph = build([replace(HYDRONIUM, **state)], 4.5)
        return {name: of.tolist() for name, of in wants.of(graph, torch.float64, torch.device("cpu")).items()}

    for charge, spin in ((-1, None), (0, None), (0, 1), (0, 3), (1, 2), (2, None)):
        assert told(charge=charge, spin=spin) == {"total_charge": [charge]}
    with pytest.raises(ModelError, match=r"charge \+0 e has 11 electrons, and cannot have 0 unpaired ones"):
        told(charge=0, spin=0)
    with pytest.raises(ModelError, match=r"H3O has 11 protons, and its charge is \+12 e"):
        told(charge=12)


def test_charges_of_each_system(aware):
    """Systems of one graph have charges of their own, also in pieces of it; what the whole gives, each alone gives."""
    frames = [
        replace(HYDRONIUM, charge=1, spin=0),
        replace(HYDRONIUM, charge=-1, spin=0),
        replace(HYDRONIUM, charge=0, spin=1),
    ]
    graph = build(frames, 4.5)
    whole = aware.evaluate(graph).energies
    alone = [aware.evaluate(build([frame], 4.5)).energies[0] for frame in frames]
    parts = [aware.evaluate(graph.part(k, k + 1)).energies[0] for k in range(3)]
    assert np.abs(whole - alone).max() < 1e-9
    assert np.abs(whole - parts).max() < 1e-9
    assert np.ptp(whole) > 1e-3


def test_a_card_makes_no_embedding_wider():
    """What a card lists as trained on counts within the embedding alone: beyond it lies other memory."""
    specs = {"total_charge": {"type": "categorical", "num_classes": 5, "offset": 2}}
    wants = Wants(SimpleNamespace(embedding_specs=specs), {"total_charge": [1, 5]})

    def told(charge):
        return wants.of(build([replace(HYDRONIUM, charge=charge, spin=0)], 4.5), torch.float64, torch.device("cpu"))

    assert told(1)["total_charge"].tolist() == [1.0]
    with pytest.raises(ModelError, match="trained on -2, -1, 0, 1, 2 e as total charge, not on 5"):
        told(5)
    with pytest.raises(ModelError, match="trained on 1, 5 e as total charge, not on -1"):
        told(-1)


def test_the_energy_of_an_embedding_is_in_the_sum(aware, mace_model):
    """mace-torch adds it to the total and to no atom: the total counts, and no energies of atoms are claimed."""
    frame = replace(HYDRONIUM, charge=1, spin=0)
    found = aware.evaluate(build([frame], 4.5))
    out = {name: value.detach() for name, value in aware.outputs(build([frame], 4.5)).items() if value is not None}
    reference = -442.0 - 3 * 13.6
    assert abs(found.energies[0] - float(out["energy"][0]) - reference) < 1e-9
    assert abs(float(out["energy"][0]) - float(out["node_energy"].sum())) > 1e-6
    assert found.of_atoms is None


def test_charges_reach_the_models(pair):
    """The run's charge is that of frames that say nothing; one that says another is refused, not overruled."""
    seen = []

    class Listens(pair):
        def evaluate(self, graph):
            seen.append(graph.states)
            return super().evaluate(graph)

    potential = Potential(Listens(1.0), charge=1, spin=0)
    potential.evaluate([HYDRONIUM, replace(HYDRONIUM, charge=1)])
    for own, said in (({"charge": -1}, "charge -1, and the models are told 1"), ({"spin": 2}, "spin 2, and .* told 0")):
        with pytest.raises(ModelError, match=f"structure 1 of 2 has the {said}; correct one"):
            potential.evaluate([HYDRONIUM, replace(HYDRONIUM, **own)])
    potential.with_committee(Potential(None, [Listens(1.0)])).evaluate([HYDRONIUM])
    Potential(Listens(1.0)).evaluate([HYDRONIUM])
    Potential(Listens(1.0)).evaluate([replace(HYDRONIUM, charge=-1), HYDRONIUM])
    assert seen == [((1, 0), (1, 0)), ((1, 0),), ((1, 0),), ((None, None),), ((-1, None), (None, None))]


def test_charges_of_an_atoms_object():
    """Charge and spin are in the info of frames, under our names or MACE's, whose spin is the multiplicity; what is no
    whole number is refused, and so are two names that contradict each other."""
    atoms = HYDRONIUM.to_atoms()
    for info, expected in (
        ({}, (None, None)),
        ({"charge": 1, "spin": 0}, (1, 0)),
        ({"total_charge": np.int64(-1), "total_spin": 3}, (-1, 2)),
        ({"charge": 1.0, "spin": None}, (1, None)),
        ({"charge": [0], "total_charge": 0, "spin": 2, "total_spin": 3, "multiplicity": 3}, (0, 2)),
    ):
        atoms.info = info
        frame = Frame.from_atoms(atoms)
        assert (frame.charge, frame.spin) == expected
        assert frame.to_atoms().info == {}  # to other programs spin is the multiplicity
    for info, said in (
        ({"charge": 1, "total_charge": 0}, "has charge=1 and total_charge=0: one of them is wrong"),
        ({"charge": 0.4, "total_charge": 1}, "charge is 0.4; it must be the total charge in e"),
        ({"spin": 1, "total_spin": 1}, "has spin=1 and total_spin=1: one of them is wrong"),
        ({"spin": "low"}, "spin is 'low'; it must be a number of unpaired electrons"),
        ({"charge": np.array([1, 2])}, "charge is '1 2'; it must be"),
        ({"spin": np.nan}, "spin is nan; it must be"),
        ({"charge": True}, "charge is 'True'; it must be"),
    ):
        atoms.info = info
        with pytest.raises(GeometryError, match=said):
            Frame.from_atoms(atoms)
