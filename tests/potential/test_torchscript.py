"""What the reference engine does with a device: one copy in, one out, and nothing in between that waits."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from beadwork.errors import ModelError
from beadwork.potential import device, torchscript
from beadwork.potential.bundle import MODEL, check
from beadwork.potential.graph import build
from beadwork.potential.torchscript import ModuleEvaluator, TorchScriptEngine, load_module

#: what makes the host wait for a GPU: it must know a value, or how many values there are
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "equal.default", "is_nonzero", "item")


class Watch(TorchDispatchMode):
    """Counts operations, and keeps those that would wait for the device and those between two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.waits: list[str] = []
        self.crossings: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = str(func)
        self.count += 1
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        masked = "aten.index" in name and any(x.dtype in (torch.bool, torch.uint8) for x in given)
        unsized = "repeat_interleave" in name and kwargs.get("output_size") is None
        if masked or unsized or any(word in name for word in WAITS):
            self.waits.append(name)
        if len({x.device for x in (*given, *tree_leaves(out)) if isinstance(x, torch.Tensor)}) > 1:
            self.crossings.append(name)
        return out


@pytest.fixture
def graph(shapes):
    """Structures of several kinds; the cutoff is longer than that of the models."""
    return build([shapes.structure(kind, 1) for kind in ("lone", "liquid", "cluster", "h2", "tiny")], 5.0)


@pytest.mark.parametrize("model", ["invariant", "vector"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_packed_way_is_the_plain_way(made, graph, model, dtype):
    """Forces and virials are bit for bit those of a call with every input made in NumPy and copied by itself."""
    engine = TorchScriptEngine(check(made[model].bundle), dtype)
    got = engine.evaluate(graph)
    graph = graph.within(engine.cutoff)
    real = getattr(torch, dtype)
    module = load_module(made[model].bundle / MODEL).eval()
    reference = np.atleast_2d(module.atomic_energies_fn.atomic_energies.detach().double().numpy())[0].copy()
    module.to(real)
    with torch.no_grad():
        module.atomic_energies_fn.atomic_energies.zero_()
    types = np.searchsorted([1, 8], graph.numbers)
    shifts = torch.from_numpy(-graph.vectors).to(real)
    with torch.jit.optimized_execution(False):
        out = module(
            {
                "positions": torch.zeros((len(types), 3), dtype=real),
                "unit_shifts": shifts,
                "shifts": shifts,
                "cell": torch.eye(3, dtype=real).repeat(len(graph), 1),
                "edge_index": torch.from_numpy(np.stack((graph.neighbor, graph.center), dtype=np.int64)),
                "node_attrs": torch.eye(2, dtype=real)[torch.from_numpy(types)],
                "batch": torch.from_numpy(graph.system),
                "ptr": torch.from_numpy(graph.ptr),
                "head": torch.zeros(len(graph), dtype=torch.long),
            },
            training=False,
            compute_force=True,
            compute_virials=True,
            compute_displacement=True,
        )
    node = out["node_energy"].detach().double().numpy() + reference[types]
    virials = out["virials"].double().numpy()
    assert np.array_equal(got.forces, out["forces"].double().numpy())
    assert np.array_equal(got.virials, (virials + virials.transpose(0, 2, 1)) / 2)
    exact = [float(np.sum(node[graph.system == s].astype(np.longdouble))) for s in range(len(graph))]
    assert np.abs(got.energies - exact).max() < 1e-9  # eV, of about 10^4: a sum in float64
    assert np.abs(got.forces).max() > 1


def test_one_copy_in_for_a_committee_and_one_out_a_model(made, graph, monkeypatch):
    """Three models of one cutoff share the copy of a graph; each answers with one copy; two steps are two graphs."""
    ways = []
    real_in, real_out = device.to_device, torchscript.to_host
    monkeypatch.setattr(device, "to_device", lambda *what: ways.append("in") or real_in(*what))
    monkeypatch.setattr(torchscript, "to_host", lambda what: ways.append(("out", len(what))) or real_out(what))
    committee = [TorchScriptEngine(check(made["vector"].bundle)) for _ in range(3)]
    out = ("out", 10 * len(graph) + 4 * len(graph.numbers))
    for step in (graph.within(4.0), graph.within(4.0)):
        ways.clear()
        answers = [engine.evaluate(step) for engine in committee]
        assert ways == ["in", out, out, out]
        assert np.array_equal(answers[0].forces, answers[2].forces)
        assert not np.shares_memory(answers[0].forces, answers[2].forces)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nothing_between_the_copies_waits(made, graph, dtype):
    """No operation of TorchScript's forward and backward pass, or of ours, needs a value from the device."""
    engine = TorchScriptEngine(check(made["invariant"].bundle), dtype)
    graph = graph.within(engine.cutoff)
    with Watch() as watch:
        engine.evaluate(graph)
    assert watch.count > 500  # the script's own operations are seen
    assert watch.waits == []


def test_nothing_else_crosses(mace_model, graph, monkeypatch):
    """On PyTorch's device without data no value can be read: MACE runs through, and there is the one copy in."""
    evaluator = ModuleEvaluator(mace_model(4, 1, True, 1, "float64"), None, "float32", "meta")
    there = []
    monkeypatch.setattr(torchscript, "to_host", lambda packed: there.append(packed) or np.zeros(packed.shape))
    graph = graph.within(4.5)
    evaluator.evaluate(graph)  # some of MACE's modules make constants at their first call
    fresh = graph.part(0, len(graph) - 1)
    with Watch() as watch:
        evaluator.evaluate(fresh)
    assert watch.waits == []
    assert watch.crossings == ["aten._to_copy.default"]
    assert [(packed.device.type, packed.dtype) for packed in there] == [("meta", torch.float64)] * 2


def test_the_watch_sees_what_it_is_for():
    """A value that is read, a size that is asked for, and a tensor that goes elsewhere are noticed."""
    some = torch.tensor([1, 0, 2])
    with Watch() as watch:
        some.sum().item()
        some[some > 0]
        torch.repeat_interleave(some)
        torch.repeat_interleave(some, output_size=3)
        some.to("meta")
        torch.empty(3, device="meta") * torch.tensor(2.0)
    assert watch.count > 5
    assert len(watch.waits) == 3
    assert len(watch.crossings) == 2


def test_an_unknown_element_answers_nan(made, shapes):
    """What a model does not know has no energy, instead of that of the element which happens to stand last."""
    engine = TorchScriptEngine(check(made["invariant"].bundle))
    frames = [shapes.structure("tiny", 0), shapes.structure("tiny", 0, elements=(1, 6))]
    assert 6 in frames[1].numbers
    energies = engine.evaluate(build(frames, engine.cutoff)).energies
    assert np.isnan(energies).tolist() == [False, True]


class Segments(torch.nn.Module):
    """A module with the attributes of a MACE model."""

    def __init__(self) -> None:
        super().__init__()
        self.r_max, self.atomic_numbers, self.atomic_energies_fn = 4.0, [1, 8], torch.nn.Identity()

    def forward(self, x: torch.Tensor, pointers: torch.Tensor) -> torch.Tensor:
        return torch.remainder(x, pointers)


def naming(operator, file):
    """TorchScript that sums with an operator of torch-scatter's, made where there is no torch-scatter."""
    if importlib.util.find_spec("torch_scatter"):
        pytest.skip("torch-scatter is here")
    torch.jit.save(torch.jit.script(Segments()), str(file.with_suffix(".plain")))
    with zipfile.ZipFile(file.with_suffix(".plain")) as plain, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as made:
        for part in plain.infolist():
            text = plain.read(part)
            made.writestr(part.filename, text.replace(b"torch.remainder", f"ops.torch_scatter.{operator}".encode()))
    return file


def test_operators_of_a_package_that_is_missing_are_a_sentence(tmp_path):
    """What PyTorch calls an unknown builtin op is a package with a name, and a command that installs it."""
    with pytest.raises(
        ModelError, match=r"model\.pt uses operators of torch-scatter, .*No module named .*pip install .?torch-scatter"
    ):
        load_module(naming("segment_sum_csr", tmp_path / "model.pt"))


def test_operators_of_a_package_that_is_there_are_loaded(tmp_path, monkeypatch):
    """The package is imported when a file names its operators, and the file then computes with them."""
    # an operator of its own name: PyTorch cannot forget one again
    (tmp_path / "torch_scatter.py").write_text(
        "import torch\n"
        "library = torch.library.Library('torch_scatter', 'DEF')\n"
        "library.define('sum_of_the_test(Tensor src, Tensor indptr) -> Tensor')\n"
        "library.impl('sum_of_the_test', lambda a, b: torch.segment_reduce(a, 'sum', offsets=b), 'CPU')\n"
    )
    file = naming("sum_of_the_test", tmp_path / "model.pt")
    monkeypatch.syspath_prepend(tmp_path)
    found = load_module(file)(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 3]))
    assert found.tolist() == [3.0, 4.0]


@pytest.mark.skipif(not importlib.util.find_spec("torch_scatter"), reason="needs torch-scatter")
def test_torch_scatter_itself(tmp_path):
    """A file of the real package's operators opens in a process that has not imported it."""
    program = (
        "import sys, torch; from pathlib import Path; from beadwork.potential.torchscript import load_module\n"
        "found = load_module(Path(sys.argv[1]))(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 3]))\n"
        "assert found.tolist() == [3.0, 4.0]\n"
    )

    class Real(Segments):
        def forward(self, x: torch.Tensor, pointers: torch.Tensor) -> torch.Tensor:
            return torch.ops.torch_scatter.segment_sum_csr(x, pointers, None)

    importlib.import_module("torch_scatter")
    torch.jit.save(torch.jit.script(Real()), str(tmp_path / "model.pt"))
    subprocess.run([sys.executable, "-c", program, tmp_path / "model.pt"], check=True, timeout=300)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cuda_answers_what_the_cpu_answers(made, graph, dtype):
    """On a GPU nothing synchronises before the answer is fetched, and the answer is the CPU's."""
    expected = TorchScriptEngine(check(made["invariant"].bundle), dtype).evaluate(graph)
    engine = TorchScriptEngine(check(made["invariant"].bundle), dtype, "cuda")
    engine.evaluate(graph)  # warm
    short = graph.within(engine.cutoff)
    evaluator = engine._evaluator
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = device.bring(short, getattr(torch, dtype), torch.device("cuda"))
        packed = evaluator._reduce(evaluator.outputs(short), there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(packed) == 10 * len(short) + 4 * len(short.numbers)
    got = engine.evaluate(graph)
    tolerance = 1e-9 if dtype == "float64" else 1e-3
    assert np.abs(got.energies - expected.energies).max() < tolerance * 10
    assert np.abs(got.forces - expected.forces).max() < tolerance
    assert np.abs(got.virials - expected.virials).max() < tolerance * 100
