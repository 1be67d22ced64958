"""How many threads the engines use: decided once, before PyTorch and Symmetrix are imported.

Each of the two brings its own OpenMP pool. Idle threads of one spin by default and take the cores from the other (four
times slower on a busy machine), so waiting threads are told to sleep. OpenMP reads these variables when it is loaded.
NumPy's OpenBLAS has threads of its own, which know no such variable (`one_blas_thread`).
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


def set_threads(threads: int) -> str:
    """Use so many threads in each engine, and return a sentence that says what was set.

    Call it before anything imports torch or symmetrix; where that is too late the sentence says so. Variables that the
    user has set win over the number given here.
    """
    late = [name for name in ("torch", "symmetrix") if name in sys.modules]
    wanted = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "OMP_PROC_BIND": "false",
    }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    _keep_memory()
    said = ", ".join(f"{name}={os.environ[name]}" for name in wanted)
    if late:
        return f"threads: {said} (too late for {' and '.join(late)}, already imported)"
    return f"threads: {said}"


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it NumPy's and SciPy's OpenBLAS work with one thread.

    After a product with several, the others spin for a tenth of a second in case that another one comes, on the cores
    that the engines want next: an evaluation with two threads was no faster than with one.
    """
    # OpenBLAS alone: PyTorch's MKL uses OpenMP
    limited: AbstractContextManager[object] = _openblas().limit(limits=1)
    return limited


@functools.cache
def _openblas() -> ThreadpoolController:
    # cached: it looks through all libraries of the process
    return ThreadpoolController().select(internal_api="openblas")


def _keep_memory() -> None:
    """Let glibc keep freed memory for the next step, up to a gigabyte a block.

    By default it returns every large array to the system and gets it back page by page: a third of the time of a graph
    that was kept, and of a TorchScript call on the CPU. Elsewhere than on glibc nothing is done.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # from malloc.h
        # a glibc that refuses a block of this size still changes its own rule, for the worse: then the most it takes
        mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)
        mallopt(trim_threshold, 2**31 - 1)
