"""Evaluate as many structures at once as fit into memory: estimated at the start, halved after an error.

Where an allocation can fail (CUDA, `ulimit -v`), the error shows it, and half as many are tried. Where the process is
killed instead (the machine's own memory, the cgroup of a batch job), the limit must never be reached: so the memory per
edge is measured on the start structure, and at most half of the free memory is used.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from beadwork.errors import ModelError, ResourceError
from beadwork.frame import FloatArray
from beadwork.potential.engine import Answer, Evaluates, Weighted, join
from beadwork.potential.graph import Graph

#: fraction of the free memory that an evaluation may take: other processes, i-PI among them, grow too
FREE_MEMORY_FRACTION = 0.5
#: bytes; an edge is assumed to need at least this, whatever was measured: its neighbour, vector and length, as given
#: and as converted, and the force on it are 100 bytes in float64, a compiled model of 64 channels takes 600
MIN_EDGE_BYTES = 1000.0

#: texts of PyTorch's, Kokkos' and the C++ library's errors, where they have no exception class for it
OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "not enough memory",
    "t allocate memory",
    "failed to allocate",
    "bad_alloc",
    "alloc_failed",
)

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def evaluate(
    engine: Evaluates[Answer], graph: Graph, max_edges: int | None = None, weights: FloatArray | None = None
) -> tuple[Answer, int | None]:
    """Evaluate in pieces of max_edges at most, and in smaller ones where memory does not suffice.

    weights: (A,), of the atoms' energies; None for 1. Returns the result and the max_edges that worked, to begin with
    next time. Raises ResourceError where a single structure is too large, ModelError where the engine fails for any
    other reason.
    """
    while True:
        pieces = graph.pieces(max_edges)
        try:
            if weights is not None and isinstance(engine, Weighted):  # a protocol takes 0.1 ms to check
                parts: Any = [
                    engine.weighted(graph.part(a, b), weights[graph.ptr[a] : graph.ptr[b]]) for a, b in pieces
                ]
            else:
                parts = [engine.evaluate(graph.part(a, b)) for a, b in pieces]
            return join(parts), max_edges
        except (MemoryError, RuntimeError) as error:
            message = reason(error)[:200]
            if not _is_out_of_memory(error):
                raise ModelError(
                    f"the model {engine.name} failed ({message})", "is it made for this machine?"
                ) from error
        # outside the except block: the error's traceback keeps the tensors of the failed call alive
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        edges = graph.edge_ptr()
        largest = max(int(edges[b] - edges[a]) for a, b in pieces)
        if len(pieces) == len(graph) or largest == 0:
            raise ResourceError(
                f"the model {engine.name} does not get the memory for one structure of {graph.ptr[1]} atoms and "
                f"{edges[1]} edges ({message})",
                "take --dtype float32, the native engine, a smaller system or more memory",
            )
        max_edges = largest // 2  # of the largest piece, which is the one that failed or as large


def edges_that_fit(engines: Sequence[Evaluates[Any]], graph: Graph, device: str) -> int | None:
    """How many edges fit into the free memory, measured with this graph; None where the system does not report it."""
    free = free_memory(device)
    needed = None if free is None or not len(graph.neighbor) else _peak_bytes(engines, graph, device)
    if free is None or needed is None:
        return None
    return int(FREE_MEMORY_FRACTION * free / max(needed / len(graph.neighbor), MIN_EDGE_BYTES))


def free_memory(device: str) -> int | None:
    """Bytes that this process may still take without being killed; None where the system does not report it."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        fields = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
        free = [int(fields["MemAvailable"].split()[0]) * 1024, *_free_in_cgroups()]
    except (OSError, KeyError, ValueError):
        return None
    return min(free)


def _free_in_cgroups() -> list[int]:
    """Free bytes in each control group of this process and its parents, page cache not counted as used.

    Batch systems and containers limit memory by these groups, far below what /proc/meminfo shows.
    """
    free = []
    for line in (PROC / "self" / "cgroup").read_text().splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = CGROUPS / kinds  # version 1 has a hierarchy per controller, version 2 one for all
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        inner = root / name.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root) and (folder / limit).exists():
                most = (folder / limit).read_text().strip()
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                if most != "max":  # inactive page cache is dropped by the kernel before anything is killed
                    free.append(int(most) - int((folder / used).read_text()) + int(stat["inactive_file"]))
    return free


def _peak_bytes(engines: Sequence[Evaluates[Any]], graph: Graph, device: str) -> int | None:
    """Peak bytes of one evaluation by one engine after the other; None where the system does not report it."""
    # a first call compiles and fills caches, which would count as memory of every step
    for engine in engines:
        evaluate(engine, graph)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        for engine in engines:
            evaluate(engine, graph)
        return int(torch.cuda.max_memory_allocated(device) - before)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    try:
        if trim is not None:
            trim(0)  # else memory that was freed a moment ago is used again, and the peak does not rise
        (PROC / "self" / "clear_refs").write_text("5")  # Linux: resets the peak, VmHWM, to the present size
        before = _resident_bytes("VmRSS")
        for engine in engines:
            evaluate(engine, graph)
        return max(0, _resident_bytes("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _resident_bytes(name: str) -> int:
    fields = dict(line.split(":", 1) for line in (PROC / "self" / "status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in str(error).lower() for sign in OUT_OF_MEMORY_TEXTS
    )


def reason(error: BaseException) -> str:
    """The line of an error's text that says what is wrong; TorchScript puts an empty line or a trace before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in reversed(lines) if "Error:" in line), lines[0])
