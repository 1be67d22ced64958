"""As many structures at once as memory holds, fewer where it does not, and the same numbers either way."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from beadwork.errors import ModelError, ResourceError
from beadwork.potential import memory
from beadwork.potential.graph import build
from beadwork.potential.potential import Potential

WORDS = {
    "numpy": MemoryError("Unable to allocate 1.00 GiB for an array"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."
    ),
    "windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    "cuda": None,  # torch.OutOfMemoryError, made where torch is imported
    "script": RuntimeError(
        "The following operation failed in the TorchScript interpreter.\nTraceback ...\n"
        "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB."
    ),
    "kokkos": RuntimeError('Kokkos ERROR: Cuda memory space failed to allocate 2 GiB (label="A").'),
}


def small(pair, most: int, error: Exception):
    """A pair potential that has memory for `most` structures at once."""

    class Small(pair):
        def __init__(self) -> None:
            super().__init__(5.0, 3.0)
            self.calls: list[int] = []
            self.most = most

        def evaluate(self, graph):
            self.calls.append(len(graph))
            if len(graph) > self.most:
                raise error
            return super().evaluate(graph)

    return Small()


@pytest.fixture
def frames(shapes):
    """Eight beads of the same atoms."""
    return shapes.beads(8, 3, spread=0.02)


def test_more_is_tried_again(pair, frames, monkeypatch) -> None:
    """What refused memory for a while does not slow the run down for weeks: after some evaluations more is tried, later
    and later while that fails, and a new committee goes on from there."""
    monkeypatch.setattr("beadwork.potential.potential.RETRY_AFTER_EVALUATIONS", 3)
    engine = small(pair, 2, MemoryError("full"))
    potential = Potential(engine, [pair(1.0), pair(2.0)])
    exact = Potential(pair(5.0, 3.0), [pair(1.0), pair(2.0)]).evaluate(frames)

    def most() -> int:
        engine.calls.clear()
        answer = potential.evaluate(frames)
        np.testing.assert_allclose(answer.forces, exact.forces, atol=1e-11)
        return max(engine.calls)

    assert [k for k in range(12) if most() > 2] == [0, 3, 9]
    potential = potential.with_committee(potential)
    assert most() == 2
    engine.most = 8  # who had it gives it back
    sizes = [most() for _ in range(60)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (2, 8)


@pytest.mark.parametrize("word", WORDS)
def test_half_as_many_until_they_fit(pair, frames, word) -> None:
    """Every way to say 'no memory' ends in the same numbers; the size that fits is kept, and told once."""
    import torch

    engine = small(pair, 2, WORDS[word] or torch.OutOfMemoryError("CUDA out of memory."))
    potential = Potential(engine)
    expected = Potential(pair(5.0, 3.0)).evaluate(frames)
    first = potential.evaluate(frames)
    tried = len(engine.calls)
    second = potential.evaluate(frames)
    for answer in (first, second):
        np.testing.assert_array_equal(answer.energies, expected.energies)
        np.testing.assert_array_equal(answer.forces, expected.forces)
        np.testing.assert_array_equal(answer.virials, expected.virials)
    assert "do not fit into memory" in " ".join(first.notes)
    assert second.notes == ()
    assert engine.calls[0] == 8
    assert max(engine.calls[tried:]) <= 2


def test_single_structure_that_does_not_fit(pair, frames) -> None:
    """Nothing is left to halve: ResourceError, exit code 12, with the model, the size and what to do."""
    with pytest.raises(ResourceError, match=r"pair 5.*one structure of \d+ atoms.*float32") as error:
        Potential(small(pair, 0, MemoryError("no"))).evaluate(frames)
    assert error.value.exit_code == 12


def test_other_failures_are_named(pair, frames) -> None:
    """What is no lack of memory is not tried again: ModelError with the engine's last word."""
    engine = small(pair, 0, RuntimeError("traced\nRuntimeError: CUDA error: device-side assert triggered"))
    with pytest.raises(ModelError, match=r"pair 5.*device-side assert"):
        Potential(engine).evaluate(frames)
    assert engine.calls == [8]


def test_memory_for_the_graph(pair, frames, monkeypatch) -> None:
    """The pairs of atoms themselves do not fit."""

    def refuse(*args, **kwargs):
        raise MemoryError("Unable to allocate 3.1 GiB")

    potential = Potential(pair(5.0, 3.0))
    monkeypatch.setattr(potential.builder, "build", refuse)
    with pytest.raises(ResourceError, match=r"pairs of atoms of 8 structures \(Unable to allocate 3.1 GiB\)"):
        potential.evaluate(frames)


def test_free_memory_is_the_least_of_all_limits(tmp_path, monkeypatch) -> None:
    """The machine's, and those of the control groups around this process; a page cache can be taken back."""
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    (tmp_path / "self" / "cgroup").write_text("0::/slurm/job_1/step_0\n")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    assert memory.free_memory("cpu") == 5000 * 1024
    job = tmp_path / "cgroup" / "slurm" / "job_1"
    for folder, limit in ((job, "4000000"), (job / "step_0", "max")):
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("3000000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 250000\n")
    assert memory.free_memory("cpu") == 1250000
    (tmp_path / "self" / "cgroup").write_text("3:cpu,cpuacct:/x\n2:memory:/job\n")
    old = tmp_path / "cgroup" / "memory" / "job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("1000000\n")
    (old / "memory.usage_in_bytes").write_text("600000\n")
    (old / "memory.stat").write_text("inactive_file 0\n")
    assert memory.free_memory("cpu") == 400000
    (tmp_path / "meminfo").unlink()
    assert memory.free_memory("cpu") is None


def test_what_fits_is_chosen_beforehand(pair, frames, monkeypatch) -> None:
    """By what one structure takes: an engine that takes 50 MB for a structure, and 400 MB that are free."""

    class Greedy(pair):
        def evaluate(self, graph):
            self.taken = np.ones(50_000_000 // 8 * len(graph))
            self.taken = None
            return super().evaluate(graph)

    monkeypatch.setattr(memory, "free_memory", lambda device: 400_000_000)
    potential = Potential(Greedy(5.0, 3.0))
    notes = potential.fit(frames[0], "cpu", 8)
    edges = len(build(frames[:1], 3.0).neighbor)
    assert 3 <= potential.max_edges / edges <= 4.2  # half of 400 MB
    assert "3 of 8" in notes[0] or "4 of 8" in notes[0]
    assert potential.fit(frames[0], "cpu", 3) == []


def test_heads_on_one_trunk_count(pair, frames, monkeypatch) -> None:
    """A trunk's mean takes little, and each of its heads 50 MB for a structure: what fits is what fits of them."""

    class Greedy(pair):
        def evaluate(self, graph):
            self.taken = np.ones(50_000_000 // 8 * len(graph))
            self.taken = None
            return super().evaluate(graph)

    class Shared(pair):
        heads = 2

        def open_head(self, number, *, weighing):
            return Greedy(5.0, 3.0)

    monkeypatch.setattr(memory, "free_memory", lambda device: 400_000_000)
    potential = Potential(None, [Shared(5.0, 3.0)])
    assert len(potential.members) == 2
    notes = potential.fit(frames[0], "cpu", 8)
    assert 3 <= potential.max_edges / len(build(frames[:1], 3.0).neighbor) <= 4.2
    assert "of 8" in notes[0]


#: evaluates eight structures at once, then with so little address space left that they cannot be held at once
LIMITED = textwrap.dedent(
    """
    import json, resource, sys
    import numpy as np
    import torch
    from beadwork.frame import Frame
    from beadwork.potential.bundle import check
    from beadwork.potential.potential import Potential
    from beadwork.potential.torchscript import TorchScriptEngine
    torch.set_num_threads(1)
    engine = TorchScriptEngine(check(sys.argv[1]))
    engine._piece = None  # all at once, as on a GPU
    potential = Potential(engine)
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), -1).reshape(-1, 3) * 1.6
    frames = [Frame(np.resize([8, 1, 1], 216), grid + rng.normal(0, 0.1, (216, 3)), 9.6 * np.eye(3)) for _ in range(8)]
    potential.evaluate(frames[:1])  # whatever is made once
    def held():
        return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    room = int(sys.argv[2])
    if room:
        most = held() + room
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    answer = potential.evaluate(frames)
    print(json.dumps({"energies": answer.energies.tolist(), "forces": answer.forces.tolist(), "notes": answer.notes}))
    """
)


def limited(bundle, room: int) -> subprocess.CompletedProcess[str]:
    """Run it with so many bytes of room, 0 for no limit."""
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(bundle), str(room)], capture_output=True, text=True, timeout=200
    )


@pytest.mark.slow
@pytest.mark.fault("out of memory", "RLIMIT_AS in a process with a real TorchScript model and eight structures")
def test_real_model_under_a_real_limit(made, fault) -> None:
    """PyTorch's own allocator refuses; with fewer at once the numbers are the same to 1e-10."""
    bundle = made["invariant"].bundle
    free = json.loads(limited(bundle, 0).stdout)
    assert free["notes"] == []
    ended = limited(bundle, 250_000_000)
    assert ended.returncode == 0, ended.stderr
    tight = json.loads(ended.stdout)
    assert "do not fit into memory" in tight["notes"][0]
    off = np.abs(np.array(tight["forces"]) - np.array(free["forces"])).max()
    assert off < 1e-10
    np.testing.assert_allclose(tight["energies"], free["energies"], rtol=0, atol=1e-10 * 216)
    fault(f"'{tight['notes'][0]}'; largest difference of a force {off:.0e} eV/Å")
