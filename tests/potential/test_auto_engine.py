"""Every engine keeps the contract, and the MACE engines answer what MACE's own calculator answers."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.errors import ModelError
from beadwork.potential.analytic import FreeParticle, Harmonic
from beadwork.potential.auto_engine import AutoEngine, compare, compare_dense, open_engine
from beadwork.potential.bundle import check
from beadwork.potential.engine import Energies
from beadwork.potential.graph import build
from beadwork.potential.importer import SPLINE_POINTS, SPLINE_SHARE
from beadwork.potential.native import NativeEngine, virials

MODELS = ("invariant", "vector")
#: all 200 structures for the kind of model that is shipped, every fifth for the other
STRIDE = {"invariant": 1, "vector": 5}
KINDS = ("triclinic", "tiny", "huge", "cluster", "slab", "wire", "unwrapped", "lone", "h2", "liquid")


@pytest.fixture(scope="module")
def frames(shapes):
    """200 random structures, 20 of each kind."""
    return [shapes.structure(kind, seed) for kind in KINDS for seed in range(20)]


@pytest.fixture(scope="module")
def expected(frames, reference):
    """What MACECalculator says of each of them: energy, forces, and the virial where there is a cell."""
    answers = {}
    for name, calculator in reference.items():
        rows = []
        for frame in frames[:: STRIDE[name]]:
            atoms = frame.to_atoms()
            atoms.calc = calculator
            virial = -atoms.get_stress(voigt=False) * atoms.get_volume() if all(frame.pbc) else None
            rows.append((atoms.get_potential_energy(), atoms.get_forces(), virial))
        answers[name] = rows
    return answers


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("engine", "dtype", "energy", "force"),
    [
        ("torchscript", "float64", 1e-9, 1e-8),
        ("native", "float64", 1e-9, 1e-6),
        # the printed cost of single precision, for forces of some eV/Å; native sums in float64
        ("torchscript", "float32", 1e-5, 5e-4),
        ("native", "float32", 1e-6, 1e-5),
    ],
)
def test_equals_mace_calculator(made, frames, expected, model, engine, dtype, energy, force):
    """One call on 200 structures of all shapes gives what 200 calls of MACECalculator give, same weights."""
    if engine == "native":
        pytest.importorskip("symmetrix")
    if (model, engine, dtype) == ("vector", "native", "float32"):
        pytest.skip("four seconds of compilation for what the other three combinations show")
    opened = open_engine(made[model].bundle, engine, dtype)
    some = frames[:: STRIDE[model]]
    graph = build(some, 5.0)  # longer than any of the models' cutoffs: the engine must filter
    got = opened.evaluate(graph)
    largest = 0.0
    for s, (e, f, v) in enumerate(expected[model]):
        n = len(f)
        part = got.forces[graph.ptr[s] : graph.ptr[s + 1]]
        largest = max(largest, float(np.abs(f).max()))
        kind = KINDS[s * STRIDE[model] // 20]
        assert abs(got.energies[s] - e) / n < energy, kind
        assert np.abs(part - f).max() < force, kind
        if v is not None:
            assert np.abs(got.virials[s] - v).max() < force * 10 * n, kind
    assert largest > 1  # eV/Å: forces like those of a real system


def test_mace_engines_keep_the_contract(made, shapes, check_contract):
    """Forces and virials are derivatives, a batch is its members, nothing is mutated: for TorchScript and native."""
    frames = [shapes.structure(kind, 3) for kind in ("triclinic", "tiny", "cluster", "lone")]
    check_contract(open_engine(made["vector"].bundle, "torchscript"), frames[:2])
    check_contract(open_engine(made["invariant"].bundle, "torchscript"), frames[2:])
    pytest.importorskip("symmetrix")
    for model in MODELS:
        check_contract(open_engine(made[model].bundle, "native"), frames, tolerance=2e-5)


def test_toys_keep_the_contract(shapes, pair, check_contract):
    """The toys that other tests stand on are right themselves."""
    frames = [shapes.structure(kind, 3) for kind in ("triclinic", "tiny", "cluster", "wire", "lone", "h2")]
    check_contract(FreeParticle(), frames)
    check_contract(Harmonic(1.7), frames, invariant=False, tolerance=1e-5)
    check_contract(pair(3.0), frames)
    rng = np.random.default_rng(0)
    liquid = [shapes.structure("liquid", 1)]
    check_contract(Harmonic(0.4, rng.normal(size=(27, 3))), liquid, invariant=False, tolerance=1e-5)


def test_contract_notices_a_wrong_force(shapes, pair, check_contract):
    """The contract check can fail: it finds forces that are off by one part in ten thousand, and a changed input."""

    class Wrong(pair):
        def evaluate(self, graph):
            answer = super().evaluate(graph)
            return replace(answer, forces=answer.forces * 1.0001)

    class Meddler(pair):
        def evaluate(self, graph):
            graph.vectors[:] += 1e-3
            return super().evaluate(graph)

    frames = [shapes.structure("triclinic", 3)]
    with pytest.raises(AssertionError, match="force on atom"):
        check_contract(Wrong(30.0), frames)
    with pytest.raises(AssertionError, match="changed vectors"):
        check_contract(Meddler(3.0, offset=0.0), frames)


def test_virials_against_a_loop(shapes):
    """Sums over atoms and images give what the sum over edges gives: unwrapped atoms, atoms without edges, parts."""
    rng = np.random.default_rng(0)
    kinds = ("lone", "unwrapped", "huge", "triclinic", "h2", "tiny", "wire", "slab", "cluster")
    whole = build([shapes.structure(kind, 0) for kind in kinds], 3.0)
    assert (whole.degree == 0).sum() > 2
    for graph in (whole, whole.part(1, 6), whole.within(2.0)):
        edge = rng.normal(size=(len(graph.center), 3))
        forces, on_images = np.zeros((len(graph.numbers), 3)), np.zeros((len(graph.images), 3))
        expected = np.zeros((len(graph), 3, 3))
        for e, (c, n) in enumerate(zip(graph.center, graph.neighbor, strict=True)):
            forces[n] += edge[e]
            forces[c] -= edge[e]
            on_images[graph.image[e]] += edge[e]
            expected[graph.system[c]] += np.outer(edge[e], graph.vectors[e])
        expected = (expected + expected.transpose(0, 2, 1)) / 2
        scale = np.abs(expected).max()
        assert np.allclose(virials(graph, forces, on_images), expected, rtol=0, atol=1e-12 * scale)


def test_native_sums_what_its_edges_say(made, shapes, pair):
    """Forces and virials summed by the compiled evaluator are sums over the edge forces that it holds."""
    pytest.importorskip("symmetrix")
    for dtype in ("float64", "float32"):
        engine = NativeEngine(check(made["invariant"].bundle), dtype)
        graph = build([shapes.structure(kind, 1) for kind in ("triclinic", "lone", "unwrapped", "tiny")], engine.cutoff)
        answer = engine.evaluate(graph)
        edge = np.array(engine._evaluator.node_forces)[: 3 * len(graph.neighbor)].reshape(-1, 3)
        expected = pair.sum_edges(graph, np.zeros(len(graph.numbers)), edge)
        assert np.abs(expected.forces).max() > 0.1
        assert np.allclose(answer.forces, expected.forces, rtol=0, atol=1e-10)
        assert np.allclose(answer.virials, expected.virials, rtol=0, atol=1e-9)


def test_auto_takes_native_where_it_agrees(made, shapes):
    """'auto' decides on the first structure, says so, and answers with the engine that it took."""
    pytest.importorskip("symmetrix")
    engine = open_engine(made["invariant"].bundle, "auto")
    assert isinstance(engine, AutoEngine)
    assert engine.choice == ""
    graph = build([shapes.structure("liquid", 0)], 4.5)
    choice = engine.select_backend(graph)
    assert "native agrees with torchscript on the first structure" in choice
    assert "native" in engine.name
    native = open_engine(made["invariant"].bundle, "native").evaluate(graph)
    assert np.array_equal(engine.evaluate(graph).forces, native.forces)
    assert engine.select_backend(graph) == choice


def test_auto_falls_back_and_says_why(made, shapes, pair, monkeypatch, tmp_path):
    """No native model, no symmetrix, or a native model that disagrees: torchscript, and the reason; else an error."""
    graph = build([shapes.structure("liquid", 0)], 4.5)
    expected = open_engine(made["invariant"].bundle, "torchscript").evaluate(graph)
    monkeypatch.setattr("beadwork.potential.auto_engine.NativeEngine", lambda bundle, dtype, device: pair(1.0))
    monkeypatch.setattr("beadwork.potential.auto_engine.available", lambda: True)
    liar = open_engine(made["invariant"].bundle, "auto")
    assert np.array_equal(liar.evaluate(graph).forces, expected.forces)
    assert "does NOT agree" in liar.choice
    assert "torchscript" in liar.name
    required = open_engine(made["invariant"].bundle, "native")  # nor is it served where nothing else is allowed
    with pytest.raises(ModelError, match=r"does NOT agree.*import the model again"):
        required.evaluate(graph)
    monkeypatch.setattr("beadwork.potential.auto_engine.available", lambda: False)
    without = open_engine(made["invariant"].bundle, "auto")
    assert "symmetrix-xl is not installed" in without.select_backend(graph)
    assert np.array_equal(without.evaluate(graph).forces, expected.forces)


def test_admission_refuses_nan(shapes, pair):
    """A native engine that answers NaN is never admitted."""

    class Broken(pair):
        def evaluate(self, graph):
            answer = super().evaluate(graph)
            return Energies(answer.energies * np.nan, answer.forces * np.nan, answer.virials)

    graph = build([shapes.structure("liquid", 0)], 4.5)
    assert compare(pair(1.0), pair(1.0), graph, "float64").agreed
    assert not compare(Broken(1.0), pair(1.0), graph, "float64").agreed


def test_unknown_engine_precision_or_device(made):
    """Each wrong word is named with those that are right."""
    bundle = made["vector"].bundle
    with pytest.raises(ModelError, match="engine 'fast' is unknown; take one of auto, native, torchscript"):
        open_engine(bundle, "fast")
    with pytest.raises(ModelError, match="dtype 'float16' is unknown; take one of float64, float32"):
        open_engine(bundle, "torchscript", "float16")
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="finds no CUDA device"):
            open_engine(bundle, "torchscript", device="cuda")
        # Symmetrix-XL would answer from the CPU, or from a GPU that was not asked for, without a word
        with pytest.raises(ModelError, match="native engine is bound to 'cpu'"):
            open_engine(bundle, "native", device="cuda")


def test_far_from_the_origin_in_float32(made, shapes):
    """Unwrapped coordinates of 10 µm cost single precision nothing: only edge vectors reach the model."""
    engine = open_engine(made["invariant"].bundle, "torchscript", "float32")
    frame = shapes.structure("liquid", 2)
    far = replace(frame, positions=frame.positions + 99_999.0)
    near, away = (engine.evaluate(build([f], 4.5)) for f in (frame, far))
    assert np.abs(near.forces - away.forces).max() < 1e-4
    assert abs(near.energies - away.energies)[0] < 1e-5


def with_points(bundle: Path, points: int, to: Path) -> NativeEngine:
    """The native model of a bundle with another number of points in its splines."""
    shutil.copytree(bundle, to)
    before = (to / "native.json").read_text(encoding="utf-8")
    native = json.loads(before)
    native["compact_radial"]["num_spline_points"] = points
    (to / "native.json").write_text(json.dumps(native), encoding="utf-8")
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in (before, json.dumps(native))]
    card = (to / "card.toml").read_text(encoding="utf-8")
    assert hashes[0] in card
    (to / "card.toml").write_text(card.replace(*hashes), encoding="utf-8")
    return NativeEngine(check(to))


def test_splines_have_the_fewest_points_that_are_exact_enough(made, tmp_path):
    """Each halving saves memory that every edge reads, and costs an order of magnitude: the import stops in time."""
    pytest.importorskip("symmetrix")
    bundle = made["invariant"].bundle
    points = json.loads((bundle / "native.json").read_text(encoding="utf-8"))["compact_radial"]["num_spline_points"]
    assert points == 1024
    finest = with_points(bundle, SPLINE_POINTS[-1], tmp_path / "finest")
    taken = compare_dense(NativeEngine(check(bundle)), finest, (1, 8), "float64")
    assert taken.within(SPLINE_SHARE)
    assert taken.force > 1e-8  # eV/Å: the comparison sees splines, not rounding
    coarser = compare_dense(with_points(bundle, points // 2, tmp_path / "coarser"), finest, (1, 8), "float64")
    assert coarser.agreed
    assert not coarser.within(SPLINE_SHARE)
    assert 4 < coarser.force / taken.force < 20  # a cubic spline's slope: the third power of the distance of its points
