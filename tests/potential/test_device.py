"""A graph's way to a device: what arrives is the graph, in one copy, once for all models that want it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from beadwork.potential import device
from beadwork.potential.graph import build

CPU = torch.device("cpu")
DTYPES = (torch.float64, torch.float32)


@pytest.fixture
def graphs(shapes):
    """A graph of many kinds with atoms that have no edges, a larger one, and one without any edge."""
    return [
        build([shapes.structure(kind, 0) for kind in ("lone", "huge", "h2", "tiny")], 3.0),
        build(shapes.beads(4, 1), 4.0),
        build([shapes.structure("lone", 0)], 3.0),
    ]


@pytest.fixture
def copies(monkeypatch):
    """The sizes of all that is copied to a device."""
    sizes = []
    real = device.to_device
    monkeypatch.setattr(device, "to_device", lambda packed, there: sizes.append(len(packed)) or real(packed, there))
    return sizes


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_arrives_is_the_graph(graphs, dtype):
    """Every array on the device equals the one that NumPy makes, whatever was in the buffer before."""
    feed = device.Feed(dtype, CPU)
    for graph in (*graphs, *reversed(graphs)):
        got = feed.bring(graph)
        assert got.vectors.dtype == dtype
        assert np.array_equal(got.vectors.numpy(), -graph.vectors.astype(got.vectors.numpy().dtype))
        assert np.array_equal(got.edge_index.numpy(), np.stack((graph.neighbor, graph.center)))
        assert np.array_equal(got.batch.numpy(), graph.system)
        assert np.array_equal(got.ptr.numpy(), graph.ptr)
        assert np.array_equal(got.numbers.numpy(), graph.numbers)
        assert np.array_equal(got.cell.numpy(), np.tile(np.eye(3), (len(graph), 1)))
        assert got.edge_index.dtype == got.batch.dtype == torch.int64
        assert (graph.degree == 0).any() or graph is graphs[1]


def test_one_copy_a_graph(graphs, copies):
    """The same graph is copied once, another one again, and the copy holds no more than the device lacks."""
    feed = device.Feed(torch.float32, CPU)
    first, second, _ = graphs
    one = feed.bring(first)
    assert feed.bring(first) is one
    assert len(copies) == 1
    assert copies[0] == 16 * len(first.neighbor) + 8 * len(first.numbers) + 4 * len(first.ptr)
    feed.bring(second)
    feed.bring(first)
    assert len(copies) == 3
    # a graph that shares arrays with the last one is another graph all the same
    part = first.part(0, 2)
    feed.bring(part)
    feed.bring(first.part(0, 2))
    assert len(copies) == 5


def test_a_dead_graph_is_not_taken_for_a_new_one(shapes, copies):
    """Python gives a new graph the address of one that is gone: it is copied all the same."""
    feed = device.Feed(torch.float64, CPU)
    for seed in range(5):
        graph = build([shapes.structure("tiny", seed)], 3.0)
        assert np.array_equal(feed.bring(graph).vectors.numpy(), -graph.vectors)
        del graph
    assert len(copies) == 5


def test_the_buffer_is_kept_and_grows(graphs):
    """A smaller graph uses the buffer that is there; a larger one gets a larger one, with room for a few more edges."""
    feed = device.Feed(torch.float64, CPU)
    small, large, _ = graphs
    feed.bring(small)
    before = feed._buffer.data_ptr(), len(feed._buffer)
    feed.bring(large)
    needed = 28 * len(large.neighbor) + 8 * len(large.numbers) + 4 * len(large.ptr)
    assert needed > before[1]
    assert len(feed._buffer) == int(device.GROWTH_FACTOR * needed)
    grown = feed._buffer.data_ptr()
    feed.bring(small)
    feed.bring(large)
    assert feed._buffer.data_ptr() == grown


def test_models_share_a_feed_but_threads_do_not(graphs, copies):
    """Two models in one precision share a copy; a committee tried in another thread cannot touch it."""
    graph, other, _ = graphs
    one = device.bring(graph, torch.float64, CPU)
    assert device.bring(graph, torch.float64, CPU) is one
    assert device.bring(graph, torch.float32, CPU) is not one
    assert device.bring(graph, torch.float64, CPU) is one
    assert len(copies) == 2
    expected = one.vectors.clone()
    thread = threading.Thread(target=lambda: device.bring(other, torch.float64, CPU))
    thread.start()
    thread.join()
    assert len(copies) == 3
    assert torch.equal(one.vectors, expected)
    assert device.bring(graph, torch.float64, CPU) is one


def test_nothing_is_copied_on_the_cpu():
    """Where the device is the host, both ways hand on the same memory."""
    packed = torch.arange(8, dtype=torch.uint8)
    assert device.to_device(packed, CPU).data_ptr() == packed.data_ptr()
    answer = torch.ones(3, dtype=torch.float64)
    assert device.to_host(answer).__array_interface__["data"][0] == answer.data_ptr()
