"""Threads are set before anything spins, and what the user set wins."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from beadwork.potential.novelty import Mixture

CODE = """
import sys
from beadwork.potential.threads import set_threads
print(set_threads(1), "torch" in sys.modules)
import os, torch
print(torch.get_num_threads(), os.environ["OMP_WAIT_POLICY"])
print(set_threads(5))
"""


def run(**environment):
    """What the code above prints in a fresh process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "MKL_"))}
    out = subprocess.run(
        [sys.executable, "-c", CODE], env=clean | environment, capture_output=True, text=True, check=True
    )
    return out.stdout.splitlines()


def test_threads_are_set_before_torch_is_there():
    """The helper does not import torch, torch then uses what was set, and a later call says that it is late."""
    first, second, third = run()
    assert first.startswith("threads: OMP_NUM_THREADS=1, MKL_NUM_THREADS=1, OMP_WAIT_POLICY=passive")
    assert first.endswith("False")
    assert second == "1 passive"
    assert "too late for torch, already imported" in third
    assert "OMP_NUM_THREADS=1" in third


def test_what_the_user_set_wins():
    """A variable in the environment is not overruled, and the sentence says what holds."""
    assert "OMP_NUM_THREADS=2" in run(OMP_NUM_THREADS="2")[0]


def test_novelty_leaves_no_thread_that_spins():
    """What OpenBLAS's threads would take of the cores after a product, the engines have: they sleep already."""
    if os.cpu_count() == 1 or not any(pool["internal_api"] == "openblas" for pool in threadpool_info()):
        pytest.skip("NumPy has no OpenBLAS here, or no second thread")
    rng = np.random.default_rng(0)
    f, k = 32, 4
    mixture = Mixture(rng.normal(size=(f, k * f)), rng.normal(size=(k, f)), np.zeros(k), 1.0)
    features = rng.normal(size=(2000, f))
    spent = []
    with threadpool_limits(limits=2, user_api="blas"):
        mixture.distance_on_host(features)  # the first time it prepares the operands, with several threads
        time.sleep(0.2)
        for _ in range(3):
            mixture.distance_on_host(features)
            begin = time.process_time()
            time.sleep(0.02)
            spent.append(time.process_time() - begin)
    assert min(spent) < 0.005  # seconds; 0.02 with a thread that spins
