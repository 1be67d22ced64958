"""As many structures at once as memory holds: chosen beforehand from what is free, and halved where that was too many.

Where memory is asked for and refused (CUDA, `ulimit -v`), the error tells, and half as many are tried. A limit that
kills instead of refusing (a machine's own memory, a batch job's cgroup) must not be met at all: so what an edge takes
is measured on the start structure, and half of what is free is filled at most.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from beadwork.errors import ModelError, ResourceError
from beadwork.frame import FloatArray
from beadwork.potential.engine import Energies, Engine, Weighted, join
from beadwork.potential.graph import Graph

#: the part of free memory that an evaluation may take
SHARE = 0.5
#: bytes; the least that an edge is taken to need: its neighbour, vector and length, as given and as converted, and the
#: force on it are 100 bytes in float64, a compiled model of 64 channels takes 600
LEAST = 1000.0

#: how PyTorch, Kokkos and the C++ library say it, where they have no class of their own for it
SIGNS = ("out of memory", "not enough memory", "t allocate memory", "failed to allocate", "bad_alloc", "alloc_failed")

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def evaluate(
    engine: Engine, graph: Graph, max_edges: int | None = None, weights: FloatArray | None = None
) -> tuple[Energies, int | None]:
    """Evaluate in pieces of max_edges at most, and in smaller ones where memory does not suffice.

    weights: (A,), of the atoms' energies; None for 1. Returns the answer and the max_edges with which it was found, to
    begin with the next time. Raises ResourceError where a single structure is too large, ModelError where the engine
    fails for any other reason.
    """
    while True:
        pieces = graph.pieces(max_edges)
        try:
            if isinstance(engine, Weighted) and weights is not None:
                parts = [engine.weighted(graph.part(a, b), weights[graph.ptr[a] : graph.ptr[b]]) for a, b in pieces]
            else:
                parts = [engine.evaluate(graph.part(a, b)) for a, b in pieces]
            return join(parts), max_edges
        except (MemoryError, RuntimeError) as error:
            said = reason(error)[:200]
            if not _refused(error):
                raise ModelError(f"the model {engine.name} failed ({said})", "is it made for this machine?") from error
        # only here, without the error, is that freed which it kept alive
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        edges = graph.edge_ptr()
        largest = max(int(edges[b] - edges[a]) for a, b in pieces)
        if len(pieces) == len(graph) or largest == 0:
            raise ResourceError(
                f"the model {engine.name} does not get the memory for one structure of {graph.ptr[1]} atoms and "
                f"{edges[1]} edges ({said})",
                "take --dtype float32, the native engine, a smaller system or more memory",
            )
        max_edges = largest // 2


def fitting(engines: Sequence[Engine], graph: Graph, device: str) -> int | None:
    """How many edges fit into the free memory, by what this graph takes; None where the system does not tell."""
    free = available(device)
    needed = None if free is None or not len(graph.neighbor) else _peak(engines, graph, device)
    if free is None or needed is None:
        return None
    return int(SHARE * free / max(needed / len(graph.neighbor), LEAST))


def available(device: str) -> int | None:
    """Bytes that this process may still take without being killed; None where the system does not tell."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        fields = dict(line.split(":", 1) for line in (PROC / "meminfo").read_text().splitlines())
        free = [int(fields["MemAvailable"].split()[0]) * 1024, *_cgroups()]
    except (OSError, KeyError, ValueError):
        return None
    return min(free)


def _cgroups() -> list[int]:
    """What the control groups of this process and those around them leave, page cache not counted."""
    free = []
    for line in (PROC / "self" / "cgroup").read_text().splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = CGROUPS / kinds
        limit, used = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        inner = root / name.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root) and (folder / limit).exists():
                most = (folder / limit).read_text().strip()
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                if most != "max":
                    free.append(int(most) - int((folder / used).read_text()) + int(stat["inactive_file"]))
    return free


def _peak(engines: Sequence[Engine], graph: Graph, device: str) -> int | None:
    """Bytes that one evaluation by one engine after the other takes at most, once all are warm."""
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
            trim(0)  # else what was freed a moment ago is taken again, and not seen
        (PROC / "self" / "clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
        for engine in engines:
            evaluate(engine, graph)
        return max(0, _resident("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _resident(name: str) -> int:
    fields = dict(line.split(":", 1) for line in (PROC / "self" / "status").read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def _refused(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in str(error).lower() for sign in SIGNS)


def reason(error: BaseException) -> str:
    """What an error says in a line; TorchScript puts an empty line, or a trace of its own, before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in reversed(lines) if "Error:" in line), lines[0])
