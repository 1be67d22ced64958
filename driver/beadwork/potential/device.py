"""Graphs on a device: one copy to it, one copy back and one synchronisation per evaluation.

A copy and a wait cost time whatever their size, so all arrays travel in one packed buffer, and
what follows from them is computed on the device. The last graph stays there, for the other models in the same
precision.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from beadwork.frame import FloatArray
from beadwork.potential.graph import Graph

#: a new buffer is this much larger than needed: the number of edges changes from step to step, and pinned memory is
#: slow to allocate
GROWTH_FACTOR = 1.25


@dataclass(frozen=True, slots=True)
class DeviceGraph:
    """S systems of A atoms and E edges, as tensors that nothing may change.

    numbers: (A,) int32, atomic numbers. vectors: (E, 3) Å, from the neighbor to the center. edge_index: (2, E) int64,
    neighbor and center. batch: (A,) int64, the system of each atom. ptr: (S + 1,) int32. cell: (3 S, 3), unit cells.
    """

    numbers: torch.Tensor
    vectors: torch.Tensor
    edge_index: torch.Tensor
    batch: torch.Tensor
    ptr: torch.Tensor
    cell: torch.Tensor


def unused_gpu(device: str) -> list[str]:
    """A message where there is a GPU that these models do not use."""
    if device == "cpu" and torch.cuda.is_available():
        return ["PyTorch sees a GPU here, but the models run on the CPU; --device cuda takes it"]
    return []


class Feed:
    """Copies graphs to one device in one precision. The tensors of a graph are valid until the next graph is copied."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._eye = torch.eye(3, dtype=dtype, device=device)
        self._buffer = torch.empty(0, dtype=torch.uint8)
        # a Graph has no weak references, but its arrays have; all that travels must be the same
        self._of: tuple[weakref.ref[Any], ...] = ()
        self._last: DeviceGraph | None = None

    def bring(self, graph: Graph) -> DeviceGraph:
        """Return the graph's tensors; it is copied unless it is the one that was copied last."""
        # by identity, not by value: comparing edges would take as long as copying them
        arrays = (graph.vectors, graph.neighbor, graph.numbers, graph.degree, graph.ptr)
        if self._last is None or any(ref() is not array for ref, array in zip(self._of, arrays, strict=True)):
            self._last = None  # free its memory before more is allocated
            self._last = self._make(graph)
            self._of = tuple(weakref.ref(array) for array in arrays)
        return self._last

    def _make(self, graph: Graph) -> DeviceGraph:
        edges, atoms, systems = len(graph.neighbor), len(graph.numbers), len(graph)
        whole = (graph.neighbor, graph.numbers, graph.degree, graph.ptr)
        sizes = [len(array) for array in whole]
        reals = 3 * edges * self._eye.element_size()
        host = self._host_buffer(reals + 4 * sum(sizes))
        vectors = host[:reals].view(self._dtype).view(edges, 3)
        # MACE's edges point from the neighbor to the center; conversion to float32 happens in the same pass
        np.negative(graph.vectors, out=vectors.numpy(), casting="same_kind")
        np.concatenate(whole, out=host[reals:].view(torch.int32).numpy(), casting="same_kind")

        there = to_device(host, self._device)
        neighbor, numbers, degree, ptr = there[reals:].view(torch.int32).split(sizes)
        edge_index = torch.empty((2, edges), dtype=torch.int64, device=self._device)
        edge_index[0] = neighbor
        # output_size: without it PyTorch would wait for the device to learn the size of the result
        edge_index[1] = torch.repeat_interleave(degree, output_size=edges)
        batch = torch.repeat_interleave(ptr.diff(), output_size=atoms).long()
        vectors = there[:reals].view(self._dtype).view(edges, 3)
        return DeviceGraph(numbers, vectors, edge_index, batch, ptr, self._eye.repeat(systems, 1))

    def _host_buffer(self, size: int) -> torch.Tensor:
        """A host buffer of `size` bytes, the one of before where it is large enough."""
        if size > len(self._buffer):
            # Only from pinned memory is a copy asynchronous. Each evaluation waits for its answer, so the copy from
            # this buffer is over before it is filled again; where a model failed, what it was given is not used again.
            pinned = self._device.type == "cuda"
            self._buffer = torch.empty(int(GROWTH_FACTOR * size), dtype=torch.uint8, pin_memory=pinned)
        return self._buffer[:size]


class _Feeds(threading.local):
    """Each thread has its own feeds: a new committee is verified in a thread beside the one that serves."""

    def __init__(self) -> None:
        self.of: dict[tuple[torch.dtype, torch.device], Feed] = {}


_feeds = _Feeds()


def bring(graph: Graph, dtype: torch.dtype, device: torch.device) -> DeviceGraph:
    """Return the graph on the device: one copy for all models that use it in turn (in this thread)."""
    feed = _feeds.of.get((dtype, device))
    if feed is None:
        feed = _feeds.of[dtype, device] = Feed(dtype, device)
    return feed.bring(graph)


def to_device(packed: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device without waiting; on the CPU nothing is copied."""
    return packed.to(device, non_blocking=True)


def to_host(packed: torch.Tensor) -> FloatArray:
    """Copy from the device, float64, and wait for it; on the CPU nothing is copied."""
    host = packed.to("cpu", non_blocking=True)  # into new pinned memory, which the caller may keep
    if packed.is_cuda:
        torch.cuda.current_stream(packed.device).synchronize()
    array: FloatArray = host.numpy()
    return array
