"""Novelty: what an atom's distance from training is, that every engine says the same, and what a file may hold."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from beadwork.errors import ModelError
from beadwork.events import NOVELTY_EDGE
from beadwork.frame import Frame
from beadwork.potential.auto_engine import open_engine
from beadwork.potential.bundle import MODEL, NOVELTY, check, write_card
from beadwork.potential.evaluation import Evaluation, Novelty
from beadwork.potential.features import features
from beadwork.potential.graph import build
from beadwork.potential.limits import format_novelty
from beadwork.potential.load import load
from beadwork.potential.native import available
from beadwork.potential.novelty import MAX_NOVELTY, load_training_set, nearest, read_features
from beadwork.potential.torchscript import load_module
from beadwork.toml import tomllib
from beadwork.train.fit_novelty import fit, fit_bundle


def liquid(seed: int, spacing: float = 1.7) -> Frame:
    """Eight O and nineteen H in no order on a jittered grid."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)
    numbers = rng.permutation(np.array([8] * 8 + [1] * 19))
    return Frame(numbers, (grid + rng.uniform(-0.12, 0.12, grid.shape)) * spacing, np.eye(3) * 3 * spacing)


TRAINED_ON = [liquid(seed) for seed in range(24)]
BLOCKS = [seed // 2 for seed in range(24)]


@pytest.fixture(scope="module")
def fitted(made, tmp_path_factory):
    """Copies of the two architectures' bundles that know what they were trained on."""
    root = tmp_path_factory.mktemp("novelty")
    for name, model in made.items():
        shutil.copytree(model.bundle, root / name)
        fit_bundle(root / name, TRAINED_ON, BLOCKS)
    return root


def test_one_gaussian_gives_the_mahalanobis_distance():
    """With one component novelty is the textbook's distance over its edge, here held against NumPy's inverse."""
    rng = np.random.default_rng(0)
    numbers = np.array([8])
    frames = [Frame(numbers, np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3) for _ in range(400)]
    vectors = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)) + [5.0, -3.0, 100.0]
    found = fit(frames, np.arange(400) // 20, vectors, 4.0)
    assert found.components == {8: 1}
    mixture = found.training_set.mixtures[8]
    away = rng.normal(size=(50, 3)) * 20 + [5.0, -3.0, 100.0]
    covariance = np.cov(vectors.T, bias=True)
    expected = np.sqrt(np.einsum("ai,ij,aj->a", d := away - vectors.mean(0), np.linalg.inv(covariance), d))
    # shrinkage towards a sphere and the floor of the variances are some per cent of so many atoms
    assert mixture.distance(torch.from_numpy(away)).numpy() * mixture.edge == pytest.approx(expected, rel=0.05)


def test_mixture_sees_the_gap_between_two_kinds():
    """An element in two environments has no atoms half way between them, where one Gaussian has its centre."""
    rng = np.random.default_rng(1)
    frames = [Frame(np.array([1]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3) for _ in range(1000)]
    side = np.where(rng.random(1000) < 0.5, -6.0, 6.0)
    vectors = rng.normal(size=(1000, 2)) + side[:, None]
    found = fit(frames, np.arange(1000) // 10, vectors, 4.0)
    assert found.components[1] > 1
    between, known = (
        found.training_set.mixtures[1].distance(torch.tensor([[0.0, 0.0], [6.0, 6.0]], dtype=torch.float64)).tolist()
    )
    assert between > NOVELTY_EDGE
    assert known < 0.5


def test_edge_is_where_one_atom_in_ten_thousand_is():
    """The edge is a quantile of atoms that were left out: of as many new ones of the same kind nearly none passes it,
    and with 20 % above it none."""
    rng = np.random.default_rng(2)
    line = np.arange(20)[:, None] * [1.5, 0.0, 0.0]
    frames = [Frame(np.full(20, 8), line, np.zeros((3, 3)), (False,) * 3) for _ in range(300)]
    mixture = fit(frames, np.arange(300), rng.normal(size=(6000, 6)), 4.0).training_set.mixtures[8]
    others = mixture.distance(torch.from_numpy(rng.normal(size=(200_000, 6))))
    assert 1e-6 < float((others > 1).double().mean()) < 1e-3
    assert float((others > 1.2).double().mean()) < 1e-5


def test_what_all_atoms_share_is_new(tmp_path):
    """A little that every atom of a frame has is new, though hardly one is by itself; one atom that is far away
    makes no other new, and neither does a frame of fewer or of more atoms than in training. It is kept in the file."""
    rng = np.random.default_rng(5)
    line = np.arange(200)[:, None] * [1.5, 0.0, 0.0]

    def frame(atoms):
        return Frame(np.full(atoms, 8), line[:atoms], np.zeros((3, 3)), (False,) * 3)

    learned = fit([frame(40)] * 40, np.arange(40), rng.normal(size=(1600, 24)), 4.0).training_set
    learned.save(tmp_path / NOVELTY)
    known = load_training_set(tmp_path / NOVELTY)

    def novelty(of, vectors, atoms=40):
        graph = build([frame(atoms)] * (len(vectors) // atoms), 4.0)
        return of.novelty(torch.from_numpy(vectors), graph).numpy().reshape(-1, atoms)

    fresh = rng.normal(size=(800, 24))
    assert novelty(known, fresh) == pytest.approx(novelty(learned, fresh), rel=1e-5)
    assert (novelty(known, fresh).max(axis=1) > NOVELTY_EDGE).mean() < 0.1
    assert (novelty(known, fresh + 0.4).max(axis=1) > NOVELTY_EDGE).all()
    assert (novelty(replace(known, averages={}), fresh + 0.4).max(axis=1) > NOVELTY_EDGE).mean() < 0.3
    fresh[3] += 50.0
    assert np.flatnonzero(novelty(known, fresh)[0] > NOVELTY_EDGE).tolist() == [3]
    for atoms in (4, 200):
        assert (novelty(known, rng.normal(size=(800, 24)), atoms) > NOVELTY_EDGE).mean() < 0.005


def test_the_average_that_is_new_is_named_as_such():
    """Where no atom of an element is less new than the newest, a message speaks of all of them; else of the atom."""
    frame = Frame(np.array([8, 1, 1]), np.eye(3), np.zeros((3, 3)), (False,) * 3)

    def said(*values):
        of = np.array(values)
        answer = Evaluation(np.zeros(1), np.zeros((3, 3)), np.zeros((1, 3, 3)), np.array([0, 3]))
        new = Novelty({"baseline": of}, of, of.max(keepdims=True), of.argmax(keepdims=True))
        return format_novelty(replace(answer, novelty=new), frame, int(of.argmax()))

    assert said(0.5, 1.3, 1.3) == "the novelty of all H together is 1.30 for the baseline"
    assert said(0.5, 1.3, 0.9) == "the novelty of atom 1 (H) is 1.30 for the baseline"
    assert said(1.5, 1.3, 0.9) == "the novelty of atom 0 (O) is 1.50 for the baseline"


@pytest.mark.parametrize("name", ["invariant", "vector"])
def test_features_are_maces_own(made, reference, name):
    """The second layer's are MACECalculator's descriptors, the first's those times the next layer's weights."""
    frame = liquid(100)
    found, _, _ = features([frame], check(made[name].bundle))
    mace = reference[name].get_descriptors(frame.to_atoms(), invariants_only=True)
    half = mace.shape[1] // 2
    (_, up), _ = read_features(load_module(made[name].bundle / MODEL).state_dict())
    scale = np.abs(mace).max()
    assert np.abs(found[:, half:] - mace[:, half:]).max() < 1e-8 * scale
    assert np.abs(found[:, :half] - mace[:, :half] @ up.numpy()).max() < 1e-8 * scale
    assert np.linalg.cond(up.numpy()) < 1e6  # so nothing is lost on the way


@pytest.mark.skipif(not available(), reason="symmetrix-xl is not installed")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["invariant", "vector"])
def test_both_engines_give_the_same_novelty(fitted, name, dtype):
    """Both engines say the same novelty in both precisions, of frames like those in training and of others, also when
    a smaller batch follows on a larger one."""
    engines = [open_engine(fitted / name, engine, dtype) for engine in ("torchscript", "native")]
    for frames in ([liquid(7), liquid(200), liquid(3, 1.4), liquid(5, 3.0)], [liquid(9)]):
        graph = build(frames, engines[0].cutoff)
        one, two = (engine.evaluate(graph).novelty for engine in engines)
        assert np.abs(one / two - 1).max() < {"float64": 5e-6, "float32": 2e-3}[dtype]
        assert one.max() > NOVELTY_EDGE or len(frames) == 1


def test_a_device_answers_what_the_host_does():
    """On the CPU NumPy answers, in float32, and on a GPU PyTorch, in float64: held to each other to a few of float32's
    last digits, far away and for a stranger too."""
    rng = np.random.default_rng(3)
    where = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [50, 0, 0]], dtype=float)
    frames = [Frame(np.array([1, 8, 8]), where[:3], np.zeros((3, 3)), (False,) * 3) for _ in range(300)]
    known = rng.normal(size=(900, 4))
    known[::2] = 0.1 * known[::2] + [9.0, 0.0, 0.0, 0.0]
    training_set = fit(frames, np.arange(300) // 10, known, 4.0).training_set
    assert len(training_set.mixtures[8].shift) > 1, "several components, or the sum over them is not tested"
    graph = build([Frame(np.array([1, 8, 8, 6]), where, np.zeros((3, 3)), (False,) * 3)] * 50, 4.0)
    away = torch.from_numpy(rng.normal(size=(200, 4)) * 10 ** rng.uniform(-2, 3, size=(200, 1)))
    on_host, on_device = training_set.novelty(away, graph), training_set._on_device(away, graph)
    assert on_host.dtype == on_device.dtype == torch.float64
    torch.testing.assert_close(on_host, on_device, rtol=1e-6, atol=1e-6)
    assert (on_host[3::4] == MAX_NOVELTY).all()
    assert (training_set.novelty(away * 1e200, graph) == MAX_NOVELTY).all(), "an explosion is new, and no NaN"
    assert 0 < on_host.min() < 1 < np.delete(on_host.numpy(), np.s_[3::4]).max() < MAX_NOVELTY


@pytest.mark.parametrize("engine", ["torchscript", "auto"])
def test_novelty_of_an_atom_does_not_depend_on_its_company(fitted, engine):
    """One structure alone, among others, or evaluated in pieces: each atom has the same novelty, and training frames
    are known."""
    frames = [liquid(seed) for seed in (0, 11, 50)] + [liquid(4, 1.5)]
    potential = load(fitted / "invariant", engine=engine)
    together = potential.evaluate(frames)
    assert together.novelty is not None
    assert together.novelty.largest[:2].max() < 1.0 + 1e-9 < together.novelty.largest[3]
    potential.max_edges = 1
    apart = potential.evaluate(frames)
    assert apart.novelty is not None
    assert np.abs(together.novelty.atoms - apart.novelty.atoms).max() < 1e-9
    for k, frame in enumerate(frames):
        alone = potential.evaluate([frame]).novelty
        assert alone is not None
        assert alone.atoms == pytest.approx(together.novelty.atoms[27 * k : 27 * (k + 1)], abs=1e-9)
        assert alone.atom[0] == together.novelty.atom[k] == alone.atoms.argmax()


def test_whose_it_is(fitted, tmp_path):
    """The part to which an atom is newest is named; a model that does not know what it was trained on has no say."""
    frame = liquid(4, 1.4)
    shutil.copytree(fitted / "invariant", tmp_path / "twin", dirs_exist_ok=True)
    fit_bundle(tmp_path / "twin", [liquid(seed, 1.4) for seed in range(24)], BLOCKS)
    members = [fitted / "invariant", tmp_path / "twin"]
    whole = load(fitted / "vector", members).evaluate([frame])
    assert whole.novelty is not None
    assert set(whole.novelty.of) == {"baseline", "delta"}
    alone = [load(member).evaluate([frame]).novelty for member in members]
    assert whole.novelty.of["delta"] == pytest.approx(np.maximum(*(one.atoms for one in alone if one is not None)))
    atom = int(whole.novelty.atom[0])
    whose = whole.novelty.whose(atom)
    assert whole.novelty.of[whose][atom] == whole.novelty.largest[0]


def test_model_that_does_not_know_serves_as_before(made, fitted):
    """Without a training set there is no novelty, and energies and forces are the same to the last bit."""
    frames = [liquid(1), liquid(60)]
    plain, knowing = (
        load(where / "invariant", engine="torchscript") for where in (made["invariant"].bundle.parent, fitted)
    )
    assert not plain.knows_novelty
    one, two = plain.evaluate(frames), knowing.evaluate(frames)
    assert one.novelty is None
    assert np.array_equal(one.energies, two.energies)
    assert np.array_equal(one.forces, two.forces)


def test_contacts_need_no_model():
    """The nearest atom of each element, against distances of all pairs and images; and a contact that training had
    never is far outside, whatever the features say."""
    frame = liquid(5)
    graph = build([frame], 2.5)
    shifts = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3) @ frame.cell
    apart = np.linalg.norm(frame.positions[None, :, None] + shifts - frame.positions[:, None, None], axis=-1)
    apart[apart < 1e-9] = np.inf
    expected = [apart[:, frame.numbers == z].min(axis=(1, 2)).clip(max=2.5) for z in (1, 8)]
    assert nearest(graph, (1, 8)) == pytest.approx(np.stack(expected, axis=1))
    flat = np.random.default_rng(3).normal(size=(27 * len(TRAINED_ON), 2))
    known = fit(TRAINED_ON, BLOCKS, flat, 2.5).training_set
    trained = [known.contact_novelty(build([frame], 2.5)) for frame in TRAINED_ON]
    assert 0.9 < max(float(s.max()) for s in trained) < 1.0
    pair = Frame(np.array([1, 1]), np.array([[0, 0, 0], [0.74, 0, 0]]), np.zeros((3, 3)), (False,) * 3)
    far = known.contact_novelty(build([pair], 2.5))
    assert far.min() > NOVELTY_EDGE
    usual = torch.from_numpy(np.repeat(flat.mean(axis=0)[None], 2, axis=0))
    for answered in (known.novelty, known._on_device):  # the second is for a GPU, and is the same
        assert np.asarray(answered(usual, build([pair], 2.5))) == pytest.approx(far.clip(max=MAX_NOVELTY))


def test_element_without_training_atoms_is_new(made, tmp_path):
    """A model may know an element that these frames did not have: whatever its atoms do is new."""
    shutil.copytree(made["invariant"].bundle, tmp_path / "m")
    hydrogen = [Frame(np.ones(27, dtype=np.int_), f.positions, f.cell, f.pbc) for f in TRAINED_ON]
    fit_bundle(tmp_path / "m", hydrogen, BLOCKS)
    novelty = load(tmp_path / "m", engine="torchscript").evaluate([liquid(0)]).novelty
    assert novelty is not None
    assert (novelty.atoms[liquid(0).numbers == 8] == MAX_NOVELTY).all()


def test_bundle_says_what_it_was_fitted_on(fitted, made):
    """The card has the frames' hash and how atoms fare that were left out; the model's own hash does not change."""
    card = check(fitted / "invariant")
    about = card.about["novelty"]
    assert about["frames"] == 24
    assert about["blocks"] == 12
    assert about["frames_hash"] == load_training_set(fitted / "invariant" / NOVELTY).frames
    assert about["atoms"] == {"H": 24 * 19, "O": 24 * 8}
    assert card.hash == check(made["invariant"].bundle).hash


def test_what_another_model_learned_is_refused(fitted, tmp_path):
    """Features of two models mean nothing to each other: novelty.npz names its model, and is refused beside others."""
    shutil.copytree(fitted / "invariant", tmp_path / "m")
    shutil.copy(fitted / "vector" / NOVELTY, tmp_path / "m" / NOVELTY)
    card = tomllib.loads((tmp_path / "m" / "card.toml").read_text())
    write_card(tmp_path / "m", {k: v for k, v in card.items() if k not in ("format", "units", "sha256")})
    for engine in ("torchscript", "native") if available() else ("torchscript",):
        with pytest.raises(ModelError, match=r"novelty\.npz says what the model sha256:\w+… was trained on, and this"):
            open_engine(tmp_path / "m", engine)


@pytest.mark.parametrize("damage", ["empty", "text", "shapes", "heights", "averages", "nan", "missing"])
def test_damaged_file_is_refused(fitted, tmp_path, damage):
    """A file that holds something else is refused by name before anything is computed with it."""
    file = tmp_path / NOVELTY
    good = dict(np.load(fitted / "invariant" / NOVELTY))
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "text":
        file.write_text("novelty")
    else:
        changes = {
            "shapes": {"shift-1": good["shift-1"][:, :-1]},
            "heights": {"height-1": np.append(good["height-1"], 0.0)},
            "averages": {"average-shift-1": good["average-shift-1"][1:]},
            "nan": {"projection-8": good["projection-8"] * np.nan},
            "missing": {},
        }
        kept = {name: array for name, array in good.items() if damage != "missing" or name != "shift-8"}
        np.savez(file, **(kept | changes[damage]))
    with pytest.raises(ModelError, match=f"{NOVELTY}.*beadwork models novelty"):
        load_training_set(file)


def test_too_little_to_fit_is_refused():
    """Frames of one block, or an element with a handful of atoms, do not say what is known."""
    vectors = np.random.default_rng(0).normal(size=(27 * 24, 2))
    with pytest.raises(ModelError, match="24 frames of one block"):
        fit(TRAINED_ON, [0] * 24, vectors, 2.5)
    few = [Frame(np.array([*[1] * 26, 8]), f.positions, f.cell, f.pbc) for f in TRAINED_ON[:6]]
    lone = [Frame(np.array([8]), np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3) for _ in range(6)]
    with pytest.raises(ModelError, match="fewer than 10 atoms of each element"):
        fit(lone, range(6), vectors[:6], 2.5)
    known = fit(few, range(6), vectors[: 27 * 6], 2.5).training_set
    assert list(known.mixtures) == [1]
    novelty = known.novelty(torch.zeros((27, 2)), build([few[0]], 2.5))
    assert novelty[26] < 1  # the oxygen by its contacts alone


def test_an_element_of_one_block_and_an_odd_block_set_no_edge():
    """An element that is in one stretch of one simulation has no atoms left out to set its edge by: those that there
    are do. Where a tenth of the blocks is like no other, what lies far from all of them is new all the same."""
    rng = np.random.default_rng(4)
    line = np.arange(20)[:, None] * [1.5, 0.0, 0.0]
    kinds = [np.array([11, *[8] * 19]) if k == 3 else np.full(20, 8) for k in range(40)]
    frames = [Frame(numbers, line, np.zeros((3, 3)), (False,) * 3) for numbers in kinds for _ in range(12)]
    block = np.repeat(np.arange(40), 12)
    vectors = rng.normal(size=(len(frames) * 20, 3))
    odd = np.repeat(block, 20) % 20 == 5
    vectors[odd] += [30.0, 0.0, 0.0]
    found = fit(frames, block, vectors, 4.0)
    assert np.isnan(found.new[11])
    sodium = found.training_set.mixtures[11].distance(torch.from_numpy(rng.normal(size=(50, 3))))
    assert (
        float(sodium.median()) < 1 < float(found.training_set.mixtures[11].distance(torch.full((1, 3), 9.0).double()))
    )
    away = torch.tensor([[0.0, 12.0, 0.0], [30.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    new, known, middle = found.training_set.mixtures[8].distance(away).tolist()
    assert new > 1 > max(known, middle)
