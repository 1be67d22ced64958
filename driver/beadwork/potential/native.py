"""The fast engine: MACE compiled by Symmetrix-XL, where the platform has it. Never a must."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from beadwork.errors import ModelError
from beadwork.frame import FloatArray
from beadwork.packages import pip_install
from beadwork.potential.bundle import NATIVE, Checked, check, reopen
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph
from beadwork.potential.heads import load_heads, said
from beadwork.potential.memory import reason
from beadwork.potential.native_file import check_native
from beadwork.potential.novelty import load_training_set
from beadwork.potential.reference_answer import hold


def available() -> bool:
    """Whether symmetrix-xl is installed."""
    return importlib.util.find_spec("symmetrix") is not None


class NativeEngine:
    """A bundle's native.json.

    The first time, it compiles kernels for the model with the system's C++ compiler (seconds) and keeps them in
    SYMMETRIX_JIT_CACHE (by default beadwork/kernels in the user's cache folder, readable by the user alone).
    device: 'cpu', or 'cuda' where one of Symmetrix-XL's GPU packages is installed for the device that is there.
    head, heads: as in `TorchScriptEngine`.
    Raises ModelError where the bundle has no native model, symmetrix-xl is missing, or the kernels cannot be made.
    """

    def __init__(self, card: Checked, dtype: str = "float64", device: str = "cpu", head: int | None = None) -> None:
        if not card.native:
            why = card.about.get("native", "it was not extracted")
            raise ModelError(f"{card.path} has no native model ({why})", "use the engine 'torchscript'")
        self._opened = (card.path.absolute(), card.sha256, dtype, device, head)
        self.name = f"{card.name}{said(head)} (native, {dtype})"
        self.cutoff = card.cutoff
        self.elements = card.elements
        self._heads = load_heads(card.heads, card.elements) if card.heads and head is None else None
        self.heads = 0 if self._heads is None else len(self._heads)
        chosen = card.head if head is None else str(head)
        self._evaluator = load_evaluator(card.path / NATIVE, chosen, dtype, device)
        numbers = np.array(self._evaluator.atomic_numbers)
        # a table by atomic number: looked up for all atoms at once at every step
        self._type_of = np.full(int(numbers.max()) + 1, -1, dtype=np.int32)
        self._type_of[numbers] = np.arange(len(numbers), dtype=np.int32)
        self.training_set = load_training_set(card.novelty, card.hash) if card.novelty and head is None else None
        self._retaining = False
        model = json.loads((card.path / NATIVE).read_text(encoding="utf-8"))
        self._channels, self._layers = int(model["num_channels"]), int(model["num_interactions"])
        hold(self, card, NATIVE, dtype, head)

    def features(self, graph: Graph) -> FloatArray:
        """(A, F): the scalars of both layers, as `potential.novelty` has them. Raises ModelError for other than two."""
        self._compute(graph.within(self.cutoff))
        return self._features(len(graph.numbers))

    def evaluate(self, graph: Graph) -> Energies:
        """Evaluate every system of the graph in one call."""
        graph = graph.within(self.cutoff)
        known, heads = self.training_set, self._heads
        self._compute(graph, retaining=known is not None or heads is not None)
        answer = self._reduce(graph)
        if known is None and heads is None:
            return answer
        features = torch.from_numpy(self._features(len(graph.numbers)))
        if known is not None:
            answer = replace(answer, novelty=known.novelty(features, graph).numpy())
        if heads is not None:
            # about the mean, which the model itself has given
            away = heads.deviations(features, graph.numbers).numpy()
            answer = replace(answer, of_heads=answer.energies + np.add.reduceat(away, graph.ptr[:-1], axis=1))
        return answer

    def open_head(self, number: int, *, weighing: bool) -> NativeEngine:
        """One of the heads; none of them can weigh."""
        bundle, _, dtype, device, _ = self._opened
        return NativeEngine(check(bundle), dtype, device, number)

    def _compute(self, graph: Graph, retaining: bool = True) -> None:
        """One call of the kernels. retaining: the features are kept, which the evaluator else writes gradients over."""
        if retaining and not self._retaining:
            self._evaluator._set_mh0_state_policy("full-retention-v1")
            self._retaining = True
        types = self._type_of[graph.numbers]
        neighbor = graph.neighbor
        self._evaluator.compute_node_energies_forces(
            len(types),
            types,
            graph.degree.astype(np.int32),
            neighbor,
            types[neighbor],
            graph.vectors.reshape(-1),
            graph.lengths,
        )

    def _features(self, atoms: int) -> FloatArray:
        if self._layers != 2:
            raise ModelError(
                f"{self.name} has {self._layers} layers, and features are read of two", "use 'torchscript'"
            )
        # H1, as the second layer receives it, has (L + 1)^2 components an atom and channel, the scalars first; H2 has
        # scalars alone. Both come as lists, and their buffers stay as large as they once were: fromiter stops at what
        # is of these atoms, without a copy of the list.
        c, components = self._channels, (self._evaluator.L_max + 1) ** 2
        first = np.fromiter(self._evaluator.H1, np.float64, atoms * components * c).reshape(atoms, components * c)
        second = np.fromiter(self._evaluator.H2, np.float64, atoms * c).reshape(atoms, c)
        return np.concatenate((first[:, :c], second), axis=1)

    def _reduce(self, graph: Graph) -> Energies:
        types, center, neighbor = graph.numbers, graph.center, graph.neighbor
        # Summed by the evaluator, on its device: the edges' own forces would come as a list of Python's numbers.
        images = len(graph.images)
        forces = self._sum(len(types), center, neighbor)
        on_images = self._sum(images + len(types), center + np.int32(images), graph.image)[:images]
        of_atoms = np.array(self._evaluator.node_energies, dtype=np.float64)[: len(types)]
        energies = np.add.reduceat(of_atoms, graph.ptr[:-1])
        return Energies(energies, forces, virials(graph, forces, on_images), of_atoms)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled by opening the bundle again: what is compiled can be neither."""
        return reopen, (type(self), *self._opened)

    def _sum(self, rows: int, minus: NDArray[np.int32], plus: NDArray[np.int32]) -> FloatArray:
        """(rows, 3): each edge's force on its neighbor, added to the row `plus` (E,) and taken from the row `minus`."""
        summed = self._evaluator._reduce_atom_forces(rows, minus, plus)
        return np.asarray(summed, dtype=np.float64).reshape(rows, 3)


def virials(graph: Graph, forces: FloatArray, on_images: FloatArray) -> FloatArray:
    """(S, 3, 3) eV, symmetric: the sum of f_e v_e over the edges e of a system, from sums that know no single edge.

    An edge's vector is v_e = r_neighbor - r_center + t_image, so the sum is that of F_a r_a over atoms and of G_k t_k
    over images. forces: (A, 3) eV/Å, F. on_images: (K, 3) eV/Å, G_k: the sum of the forces on neighbors in image k.
    """
    found = np.empty((len(graph), 3, 3))
    for s in range(len(graph)):
        a, b = graph.ptr[s : s + 2]
        k, m = graph.image_ptr[s : s + 2]
        near = graph.positions[a:b] - graph.positions[a]  # the forces' sum is zero, but for rounding
        found[s] = forces[a:b].T @ near + on_images[k:m].T @ graph.images[k:m]
    return np.asarray(0.5 * (found + found.transpose(0, 2, 1)))


def kernel_cache() -> Path:
    """Make the folder of compiled kernels, for this user alone, and return it.

    Kernels are machine code that is run as it is found: a folder that another user may write to, or replace, is
    refused. Raises ModelError.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beadwork" / "kernels"
    folder = Path(os.environ.get("SYMMETRIX_JIT_CACHE") or cache).absolute()
    remedy = "name a folder of your own with SYMMETRIX_JIT_CACHE, or use the engine 'torchscript'"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = folder.resolve()
        mine = folder.stat().st_uid == os.geteuid()
        if mine and folder.stat().st_mode & 0o022:
            folder.chmod(0o700)
        for path in (folder, *folder.parents):
            there = path.stat()
            others = there.st_mode & stat.S_IWOTH and not there.st_mode & stat.S_ISVTX
            if there.st_uid not in (os.geteuid(), 0) or others:
                raise ModelError(
                    f"compiled kernels would lie in {folder}, but {path} belongs to another user or can be written by "
                    "any",
                    remedy,
                )
    except OSError as error:
        raise ModelError(f"the folder of compiled kernels, {folder}, cannot be made ({error})", remedy) from error
    return folder


def load_evaluator(file: Path, head: str | None, dtype: str, device: str = "cpu") -> Any:
    """Load a native model and make its kernels. Raises ModelError.

    Symmetrix-XL binds one backend for the whole process when it is imported; left to itself it takes a GPU where it
    finds one, whatever was asked for.
    """
    if not available():
        raise ModelError(
            "the native engine needs symmetrix-xl, which is not installed",
            f"{pip_install('symmetrix-xl')}, or use torchscript",
        )
    check_native(file)
    os.environ["SYMMETRIX_JIT_CACHE"] = str(kernel_cache())
    # Left to itself Symmetrix-XL searches the process for a BLAS at each product of matrices, which is most of what a
    # small system costs, and is no faster with what it finds (benchmarks/results/blas.md). It reads this once.
    os.environ.setdefault("SYMMETRIX_HOST_WORKER_BLAS", "off")
    from symmetrix import load_backend, selected_backend

    try:
        free = selected_backend() is None and "SYMMETRIX_BACKEND" not in os.environ
        load_backend("cpu" if free and device == "cpu" else None)
        from symmetrix import Symmetrix  # which binds a backend by itself where there is none yet

        bound = str((selected_backend() or {}).get("backend"))
        if device != "cpu" and not device.startswith(bound):
            raise ModelError(
                f"device {device!r} was asked for, but the native engine is bound to {bound!r}: install the package of "
                "Symmetrix-XL for this GPU (symmetrix backend install), or use the engine 'torchscript'"
            )
        calculator = Symmetrix(str(file), dtype=dtype, streamed_edges="direct", execution_profile="speed", head=head)
    except ModelError:
        raise
    except Exception as error:  # ImportError: no backend for this machine; and whatever Symmetrix-XL stumbles over
        raise ModelError(
            f"{file} cannot be run natively ({reason(error)})",
            "is there a C++ compiler? use the engine 'torchscript' meanwhile",
        ) from error
    evaluator = calculator.evaluator
    if not hasattr(evaluator, "_reduce_atom_forces"):
        raise ModelError(
            f"{file} is of an architecture that the native engine cannot sum", "use the engine 'torchscript'"
        )
    return evaluator
