"""Making a bundle from a model file: TorchScript as it is, an eager MACE model (a pickle) only when it is trusted."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beadwork.errors import ModelError
from beadwork.frame import Frame
from beadwork.potential.bundle import MODEL, NATIVE, Card, write_card
from beadwork.potential.engine import Energies
from beadwork.potential.graph import build
from beadwork.potential.native import available
from beadwork.potential.torchscript import ModuleEvaluator, load_module

#: the default of 256 costs 1e-4 eV/Å on a trained model; these leave 3e-8 and cost no time
SPLINE_POINTS = 4096


def import_model(
    file: str | Path,
    out: str | Path,
    head: str | None = None,
    trust_pickle: bool = False,
    name: str | None = None,
    **about: Any,
) -> Card:
    """Make the bundle `out` from a TorchScript or an eager MACE model, and return its card.

    head: which head to serve; needed where the model has several. trust_pickle: an eager model is a Python pickle and
    can run any code: it is read only with this. name: of the model in messages, by default that of the folder.
    about: further entries for the card (what it was trained on, command, errors).
    Only an eager model can become a native one; where that does not work, the card's `native` entry says why.
    Raises ModelError for a missing, damaged or foreign file, an untrusted pickle, a head that is missing or unknown, a
    folder that is in use, or a compiled model that does not reproduce the eager one.
    """
    source, bundle = Path(file), Path(out)
    kind = _kind(source)
    if bundle.exists() and (not bundle.is_dir() or any(bundle.iterdir())):
        raise ModelError(f"{bundle} exists and is not an empty folder; choose another one or remove it")
    if kind == "pickle" and not trust_pickle:
        raise ModelError(
            f"{source} is a Python pickle, which can run any code when it is read; if you trust where it comes from, "
            "say so (--trust-pickle, or trust_pickle=True), else ask for a TorchScript model"
        )
    eager = _load_eager(source) if kind == "pickle" else None
    model = load_module(source) if eager is None else eager
    head = _choose_head(source, model, head)
    elements = sorted(int(z) for z in model.atomic_numbers)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    cutoff = float(model.r_max)
    bundle.mkdir(parents=True, exist_ok=True)
    if eager is None:
        (bundle / MODEL).write_bytes(source.read_bytes())
        reason: str | None = "made from TorchScript; a native model needs the eager one"
    else:
        _compile(eager, bundle / MODEL)
        _check_compiled(eager, bundle / MODEL, head, elements, cutoff)
        reason = _extract_native(source, head, bundle / NATIVE)
    return write_card(
        bundle,
        {
            "name": name or bundle.resolve().name,
            "elements": elements,
            "cutoff": cutoff,
            "dtype": dtype,
            "head": head,
            "native": reason,
            **about,
        },
    )


@contextlib.contextmanager
def mace_imported() -> Iterator[None]:
    """Import mace, quietly, and undo what it does to the whole process: it switches off torch's weights_only guard.

    Raises ModelError where mace-torch is not installed.
    """
    guard = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(guard)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                importlib.import_module("mace.modules")
            except ImportError as error:
                raise ModelError(
                    "reading an eager MACE model needs mace-torch: pip install 'beadwork[mace]'"
                ) from error
            yield
    finally:
        logging.disable(level)
        if before is None:
            os.environ.pop(guard, None)
        else:
            os.environ[guard] = before


def _kind(file: Path) -> str:
    """'torchscript' or 'pickle', by what is in the file and without unpickling anything."""
    if not file.is_file():
        raise ModelError(f"the model file {file} does not exist or is no file")
    with file.open("rb") as stream:
        magic = stream.read(4)
    if magic[:2] == b"PK":
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise ModelError(f"{file} is truncated or damaged ({error}); copy it again") from error
        if any("/code/" in n for n in names):
            return "torchscript"
        if any(n.endswith("/data.pkl") for n in names):
            return "pickle"
    elif magic[:1] == b"\x80":
        return "pickle"
    raise ModelError(f"{file} is neither TorchScript nor a PyTorch model; give a file that mace_run_train wrote")


def _load_eager(file: Path) -> Any:
    with mace_imported():
        try:
            model = torch.load(file, map_location="cpu", weights_only=False)
        except (RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, OSError) as error:
            raise ModelError(f"{file} cannot be unpickled ({error}); is it truncated, or from another MACE?") from error
    for attribute in ("r_max", "atomic_numbers", "atomic_energies_fn"):
        if not hasattr(model, attribute):
            raise ModelError(f"{file} holds a {type(model).__name__}, not a MACE energy model (no {attribute!r})")
    return model


def _choose_head(file: Path, model: Any, head: str | None) -> str | None:
    heads = list(getattr(model, "heads", None) or ["Default"])
    if head is None and len(heads) > 1:
        raise ModelError(f"{file} has several heads ({', '.join(heads)}); name the one to serve (--head)")
    if head is not None and head not in heads:
        raise ModelError(f"{file} has no head {head!r}; it has {', '.join(heads)}")
    return head if len(heads) > 1 else None


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _compile(eager: Any, file: Path) -> None:
    with mace_imported(), _default_dtype(next(eager.parameters()).dtype):
        from e3nn.util import jit

        try:
            torch.jit.save(jit.compile(copy.deepcopy(eager).cpu().eval()), str(file))
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            raise ModelError(f"the model cannot be compiled to TorchScript: {str(error).splitlines()[0]}") from error


def _check_compiled(eager: Any, file: Path, head: str | None, elements: list[int], cutoff: float) -> None:
    """Hold the compiled model to the eager one on a random cluster of its elements."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(2)] * 3), axis=-1).reshape(-1, 3) * min(1.6, 0.6 * cutoff)
    numbers = np.resize(elements, len(grid)).astype(np.int_)
    frame = Frame(numbers, grid + rng.uniform(-0.2, 0.2, grid.shape), np.zeros((3, 3)), (False, False, False))
    graph = build([frame], cutoff)
    answers: list[Energies] = []
    for module in (copy.deepcopy(eager), load_module(file)):
        with mace_imported(), _default_dtype(torch.float64):
            answers.append(ModuleEvaluator(module, head, "float64", "cpu").evaluate(graph))
    one, two = answers
    energy = float(np.abs(one.energies - two.energies).max()) / len(numbers)
    force = float(np.abs(one.forces - two.forces).max())
    if not (energy < 1e-8 and force < 1e-7 * max(1.0, float(np.abs(one.forces).max()))):
        raise ModelError(
            f"the compiled model does not reproduce the eager one ({energy:.1e} eV an atom, {force:.1e} eV/Å); "
            "please report this with the versions of mace-torch, e3nn and torch"
        )


def _extract_native(source: Path, head: str | None, file: Path) -> str | None:
    """Write native.json, or return the reason why not."""
    if not available():
        return "symmetrix-xl was not installed when this was imported"
    with mace_imported(), _default_dtype(torch.float64):
        from symmetrix.extract_mace_data import extract_mace_data

        try:
            data = extract_mace_data(str(source), species=[], head=head, num_spline_points=SPLINE_POINTS)
        except (
            RuntimeError,
            ValueError,
            AttributeError,
            TypeError,
            KeyError,
            IndexError,
            NotImplementedError,
        ) as error:
            return f"not possible for this architecture: {str(error).strip().splitlines()[0]}"
    file.write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")
    return None
