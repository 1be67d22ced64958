"""Make a bundle from a model file: TorchScript as it is, an eager MACE model (a pickle) only when it is trusted."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beadwork.disk import reading, writing
from beadwork.errors import ModelError
from beadwork.frame import Frame
from beadwork.potential import reference_answer
from beadwork.potential.architecture import answers_of, class_of, default_dtype, describe, mace_imported, rebuild
from beadwork.potential.auto_engine import VIRIAL_ARM, Comparison, compare_dense, trial
from beadwork.potential.bundle import (
    CARD,
    FILES,
    HEADS,
    MADE_WITH,
    MODEL,
    NATIVE,
    REFERENCE_ANSWER,
    WEIGHTS,
    Card,
    check,
    load_card,
    write_card,
)
from beadwork.potential.eager import open_exact
from beadwork.potential.engine import Energies, Response
from beadwork.potential.first_run import announce, made_here
from beadwork.potential.graph import Graph, build
from beadwork.potential.heads import MEAN, Heads, join
from beadwork.potential.longrange import by_differences
from beadwork.potential.memory import reason
from beadwork.potential.native import NativeEngine, available
from beadwork.potential.response import (
    DIPOLE_UNIT,
    OWN_UNIT,
    OXIDATION,
    POLARIZABILITY_UNIT,
    POLARIZABILITY_UNITS,
    ResponseEvaluator,
)
from beadwork.potential.state import CHARGE, SPIN, check_trained_on, sample, wanted
from beadwork.potential.torchscript import ModuleEvaluator, load_module
from beadwork.potential.weights import read_weights, write_weights

#: entries of a card without a native model: why there is none, and what to do about it, where anything helps
NO_NATIVE_KEYS = ("native", "native_remedy")
#: why a model of dipoles alone runs in no other engine
NO_ENERGY = "it has no energy"
#: entry of a card: e Å, by how much the dipole of a small cluster fails to turn with it
UNTURNED = "dipole_unturned"
#: a rotation with a reflection, by which dipoles and polarizabilities must turn
TURN = np.array([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [-0.48, -0.64, -0.6]])
#: their values; both None where there is a native model
NoNative = tuple[str | None, str | None]
#: the command of mace-torch 0.3.16, which writes nothing without --return_model
CUEQ_CONVERSION = "mace_cueq_to_e3nn MODEL --return_model writes MODEL.e3nn_model.pt"
#: points of the splines through a model's radial functions, fewest first. Every edge reads its row of their table, and
#: with 64 channels and two elements 4096 points are 350 MB, which no cache holds: half of an evaluation's time
#: (docs/models.md).
SPLINE_POINTS = (512, 1024, 2048, 4096)
#: the fewest are taken whose doubling changes less than this share of what native may differ by from the exact engine
SPLINE_SHARE = 0.05


def import_model(
    file: str | Path,
    out: str | Path,
    head: str | None = None,
    trust_pickle: bool = False,
    name: str | None = None,
    committee: bool = False,
    **about: Any,
) -> Card:
    """Make the bundle `out` from a TorchScript or an eager MACE model, and return its card.

    head: which head to serve; needed where the model has several. committee: all of them together, as a committee on
    one trunk (`potential.heads`), which takes an eager model. trust_pickle: an eager model is a Python pickle and
    can run any code: it is read only with this. name: of the model in messages, by default that of the folder.
    about: further entries for the card (what it was trained on, command, errors).
    From an eager model are made: its weights with what makes the module again (engine eager), TorchScript, and a native
    model, each kept only where it agrees with the eager model. The card's entries `eager`, `torchscript` and `native`
    say why one is not there, `native_remedy` what to do, where anything helps.
    The folder appears with all its files, or stays as it was.
    Raises ModelError for a missing, damaged or foreign file, an untrusted pickle, a head that is missing or unknown, a
    folder that is in use, or a model that can neither be made again nor be compiled.
    """
    source, bundle = Path(file), Path(out)
    kind = kind_of(source)
    if bundle.exists() and (not bundle.is_dir() or any(bundle.iterdir())):
        raise ModelError(f"{bundle} exists and is not an empty folder", "choose another one or remove it")
    if kind == "pickle" and not trust_pickle:
        raise ModelError(
            f"{source} is a Python pickle, which can run any code when it is read",
            "if you trust its source, give --trust-pickle (in Python trust_pickle=True), else ask for a TorchScript "
            "model",
        )
    eager = _load_eager(source) if kind == "pickle" else None
    if eager is None:
        announce(source)
    model = load_module(source) if eager is None else eager
    heads = None
    about = _about_response(source, model, about)
    if committee:
        eager, heads = _join(source, eager, head)
        model, about = eager, {"heads": len(heads), **about}
    head = _choose_head(source, model, head)
    check_trained_on(model, about)
    elements = sorted(int(z) for z in model.atomic_numbers)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    cutoff = float(model.r_max)
    entries = {
        "name": name or bundle.resolve().name,
        "elements": elements,
        "cutoff": cutoff,
        "dtype": dtype,
        "head": head,
        **about,
    }
    # the bundle is made in a hidden folder on the same disk, so that moving it into place cannot fail half way
    there = next(path for path in (bundle, *bundle.absolute().parents) if path.exists())
    with writing(bundle), tempfile.TemporaryDirectory(prefix=f".{bundle.name}.", dir=there) as folder:
        part = Path(folder)
        if eager is None:
            (part / MODEL).write_bytes(source.read_bytes())
            entries["eager"] = "made from TorchScript, which does not say how to make the module again"
            why: NoNative = ("made from TorchScript, and a native model needs the eager one", "import the eager model")
        else:
            if heads is not None:
                heads.save(part / HEADS)
            if "energy" in answers_of(eager):
                entries |= _make_modules(source, eager, part, head, trial(elements, cutoff, eager))
                why = _make_native(source, eager, heads, part, entries)
            else:
                entries["torchscript"] = NO_ENERGY
                why = NO_ENERGY, None
            if "dipole" in answers_of(eager):
                _make_response(source, eager, part, entries)
        write_card(part, entries | dict(zip(NO_NATIVE_KEYS, why, strict=True)) | _held(model, head, heads, elements))
        bundle.mkdir(parents=True, exist_ok=True)
        for made in (*FILES.values(), HEADS, CARD):  # the card last: a folder without it is no bundle
            if (part / made).exists():
                os.replace(part / made, bundle / made)
    if eager is not None and (bundle / MODEL).exists():
        made_here(bundle / MODEL)
    return load_card(bundle)


def _held(model: Any, head: str | None, heads: Heads | None, elements: Sequence[int]) -> dict[str, Any]:
    """What holds the files to this model: its reference answer, and the versions with which it was given.

    A model without an energy has no answer there: its one file is what the card names it by. The model is changed: it
    is of no use after.
    """
    if "energy" not in answers_of(model):
        return {MADE_WITH: reference_answer.made_with()}
    with mace_imported(), default_dtype(torch.float64):
        evaluator = ModuleEvaluator(model, head, "float64", "cpu", heads=heads)
        answer = reference_answer.make(evaluator.evaluate, elements, float(model.r_max), model)
    return {REFERENCE_ANSWER: answer, MADE_WITH: reference_answer.made_with()}


def kind_of(file: Path) -> str:
    """'torchscript' or 'pickle', from the file's first bytes and its list of contents, without unpickling anything."""
    if not file.is_file():
        raise ModelError(f"the model file {file} does not exist or is no file")
    with file.open("rb") as stream:
        magic = stream.read(4)
    # both kinds are zip archives since PyTorch 1.6; older pickles begin with the protocol's byte
    if magic[:2] == b"PK":
        with reading(file, ModelError, "copy it again"), zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if any("/code/" in n for n in names):
            return "torchscript"
        if any(n.endswith("/data.pkl") for n in names):
            return "pickle"
    elif magic[:1] == b"\x80":
        return "pickle"
    raise ModelError(f"{file} is neither TorchScript nor a PyTorch model", "give a file that mace_run_train wrote")


def _load_eager(file: Path) -> Any:
    with mace_imported():
        try:
            model = torch.load(file, map_location="cpu", weights_only=False)
        except Exception as error:
            # a pickle names the classes that it needs: what is not installed is named, and what to do about it
            module = str(getattr(error, "name", None)).partition(".")[0]
            if isinstance(error, ModuleNotFoundError) and importlib.util.find_spec(module) is None:
                back = module.startswith("cuequivariance")
                remedy = "install it here"
                if back:
                    remedy = f"convert it back where {module} is ({CUEQ_CONVERSION}) and import that"
                raise ModelError(f"{file} needs the Python module {module}, which is not installed", remedy) from error
            raise ModelError(
                f"{file} cannot be unpickled ({_error_line(error)})",
                "is it truncated, or from another version of MACE?",
            ) from error
    for attribute in ("r_max", "atomic_numbers", *(["atomic_energies_fn"] if "energy" in answers_of(model) else [])):
        if not hasattr(model, attribute):
            raise ModelError(f"{file} holds a {type(model).__name__}, not a MACE model (no {attribute!r})")
    if any(type(module).__module__.startswith("cuequivariance") for module in model.modules()):
        raise ModelError(
            f"{file} was converted for cuequivariance, whose layers TorchScript does not take",
            f"convert it back ({CUEQ_CONVERSION}) and import that",
        )
    return model


def _choose_head(file: Path, model: Any, head: str | None) -> str | None:
    heads = list(getattr(model, "heads", None) or ["Default"])
    if head is None and len(heads) > 1:
        raise ModelError(
            f"{file} has several heads ({', '.join(heads)})",
            "name the one to serve (--head), or take all of them as a committee (--committee)",
        )
    if head is not None and head not in heads:
        raise ModelError(f"{file} has no head {head!r}", f"it has {', '.join(heads)}")
    return head if len(heads) > 1 else None


def _join(source: Path, eager: Any, head: str | None) -> tuple[Any, Heads]:
    """The mean of all heads as an eager model of one, and the heads, both held to the model that they come from."""
    if eager is None:
        raise ModelError(
            f"{source} is TorchScript, and a committee on one trunk is made from an eager model", "import that"
        )
    if head is not None:
        raise ModelError(f"of {source} the head {head!r} is asked for, and all heads as a committee", "choose one")
    with mace_imported(), default_dtype(torch.float64):
        try:
            mean, heads = join(copy.deepcopy(eager))
        except ModelError as error:
            raise ModelError(f"{source} is no committee on one trunk: {error}") from error
        graph = trial(tuple(int(z) for z in mean.atomic_numbers), float(mean.r_max))
        alone = np.array(
            [
                ModuleEvaluator(copy.deepcopy(eager).double(), name, "float64", "cpu").evaluate(graph).energies
                for name in eager.heads
            ]
        )
        joint = ModuleEvaluator(copy.deepcopy(mean), None, "float64", "cpu", heads=heads).evaluate(graph)
    apart = float(np.abs(joint.of_heads - alone).max() / max(1.0, np.abs(alone).max()))
    if not apart < 1e-10:
        raise ModelError(
            f"the heads of {source} on one trunk do not answer what they do alone ({apart:.1e} of an energy)",
            "please report this with the versions of mace-torch and e3nn",
        )
    return mean, heads


def _make_modules(source: Path, eager: Any, bundle: Path, head: str | None, graph: Graph) -> dict[str, str]:
    """Write the weights and the TorchScript model; return, by engine, why one of them is not there.

    Raises ModelError for a model that cannot be evaluated, or of which neither can be made.
    """
    if unknown := set(wanted(eager)) - {CHARGE, SPIN}:
        raise ModelError(
            f"{source} holds a {type(eager).__name__} that wants {', '.join(sorted(unknown))}",
            "beadwork gives it atoms, a cell, a charge and a spin, nothing else",
        )
    try:
        expected = _answer(_copy(eager), head, graph)
    except Exception as error:
        raise ModelError(
            f"{source} holds a {type(eager).__name__} that cannot be evaluated: {_error_line(error)}",
            "beadwork gives it atoms, a cell, a charge and a spin, nothing else",
        ) from error
    missing = {}
    for engine, make in (("eager", _write_eager), ("torchscript", _compile)):
        file = bundle / FILES[engine]
        try:
            found = _answer(make(eager, file), head, graph)
        except OSError:  # a full disk is not the model's fault
            raise
        except Exception as error:  # noqa: BLE001  (compilers, and models' own code, fail in any way)
            missing[engine] = _error_line(error)
        else:
            if difference := _difference(expected, found, graph):
                missing[engine] = difference
        if engine in missing:
            file.unlink(missing_ok=True)
    if len(missing) == 2:
        raise ModelError(
            f"{source} holds a {type(eager).__name__} that can neither be made again ({missing['eager']}) nor be "
            f"compiled ({missing['torchscript']})",
            "train without the part that is named",
        )
    return missing


def _about_response(source: Path, model: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a card with what the model answers, where that is more than an energy, and its units.

    Raises ModelError for entries that the model has no use for, or where a unit is not known.
    """
    answers, found = answers_of(model), dict(about)
    for key, needed in ((DIPOLE_UNIT, "dipole"), (OXIDATION, "dipole"), (POLARIZABILITY_UNIT, "polarizability")):
        if key in about and needed not in answers:
            raise ModelError(
                f"{source} holds a {class_of(model)}, which answers {' and '.join(answers)}: {key} means nothing to it",
                f"leave --{key.replace('_', '-')} out",
            )
    if answers == ("energy",):
        return found
    if not getattr(model, "use_polarizability", True):
        raise ModelError(
            f"{source} holds a {class_of(model)} made with use_polarizability=False, whose dipole mace-torch 0.3.16 "
            "takes from the columns of other quantities",
            "train it with polarizabilities, or an AtomicDipolesMACE",
        )
    found["answers"] = list(answers)
    found.setdefault(DIPOLE_UNIT, OWN_UNIT[class_of(model)])
    if "polarizability" in answers and POLARIZABILITY_UNIT not in found:
        raise ModelError(
            f"{source} is a model of polarizabilities, and in which unit is not in the file",
            f"give --polarizability-unit with that of its labels ({', '.join(POLARIZABILITY_UNITS)})",
        )
    return found


def _make_response(source: Path, eager: Any, bundle: Path, card: dict[str, Any]) -> None:
    """Write the weights, where they are not there, and hold what is made from them to the model's own dipoles.

    Of a model whose own dipole does not turn exactly with a cluster (`longrange.by_differences`), the card is told by
    how much. Raises ModelError where it cannot be made again, or does not turn with the atoms as a vector or a tensor
    does.
    """
    name, file = type(eager).__name__, bundle / WEIGHTS
    try:
        made = _write_eager(eager, file) if not file.exists() else rebuild(*read_weights(file)[::-1])
        one, two = (_responses(module, card) for module in (_copy(eager), made))
    except ModelError:
        raise
    except OSError:  # a full disk is not the model's fault
        raise
    except Exception as error:
        raise ModelError(f"{source} holds a {name} that cannot be evaluated: {_error_line(error)}") from error
    for what, unit, turned in (("dipole", "e Å", "ji,i->j"), ("polarizability", "e Å²/V", "ki,lj,ij->kl")):
        mine, other = getattr(one, what), getattr(two, what)
        if mine is None or other is None:
            continue
        size = max(1.0, float(np.abs(mine).max()))
        if not (apart := float(np.abs(mine - other).max())) < 1e-8 * size:
            raise ModelError(
                f"{source} holds a {name} that cannot be made again: its {what} is {apart:.1e} {unit} off",
                "please report this with the versions of mace-torch and e3nn",
            )
        # the second structure is the first, turned and reflected
        apart = float(np.abs(np.einsum(turned, *[TURN] * mine[0].ndim, mine[0]) - mine[1]).max())
        if by_differences(eager):
            card[UNTURNED] = apart
            continue
        # random weights have small ones, and rounding of float32 is relative
        if not apart < 1e-4 * max(1e-3, float(np.abs(mine).max())):
            raise ModelError(
                f"the {what} of {source} does not turn with the atoms ({apart:.1e} {unit} off)",
                "please report this with the versions of mace-torch and e3nn",
            )


def _responses(module: Any, card: Mapping[str, Any]) -> Response:
    """What it answers for a cluster of its elements, and the same turned and reflected."""
    box = trial(card["elements"], card["cutoff"]).part(0, 1)
    # charges that are no whole numbers have a dipole in a cluster alone
    charge, spin = sample(module, box.numbers.tolist())[0] if wanted(module) else (None, None)
    alone = Frame(box.numbers, box.positions, np.zeros((3, 3)), (False,) * 3, charge=charge, spin=spin)
    graph = build([alone, replace(alone, positions=alone.positions @ TURN.T)], card["cutoff"])
    with mace_imported(), default_dtype(torch.float64):
        return ResponseEvaluator(module, "float64", "cpu", card).evaluate(graph)


def _copy(eager: Any) -> Any:
    # e3nn copies a module through torch.jit, as it pickles one, and what that says of its end concerns e3nn alone
    with mace_imported():
        return copy.deepcopy(eager)


def _answer(module: Any, head: str | None, graph: Graph) -> Energies:
    with mace_imported(), default_dtype(torch.float64):
        return ModuleEvaluator(module, head, "float64", "cpu").evaluate(graph)


def _write_eager(eager: Any, file: Path) -> Any:
    """Write the weights and return the module that is made from them."""
    description = describe(eager)
    # copies: what is made from them is changed when it is evaluated
    made = rebuild(description, {key: value.clone() for key, value in eager.state_dict().items()})
    write_weights(file, made.state_dict(), description)
    return made


def _compile(eager: Any, file: Path) -> Any:
    """Write TorchScript and return the module that is read from it."""
    with mace_imported(), default_dtype(next(eager.parameters()).dtype):
        from e3nn.util import jit

        # a copy, because compiling changes the module, and others are still compared with it
        torch.jit.save(jit.compile(copy.deepcopy(eager).cpu().eval()), str(file))
    drop_source_lines(file)
    return load_module(file)


def drop_source_lines(file: Path) -> None:
    """Take from a TorchScript file where each of its operations stands in Python's sources.

    That is a tenth of it, serves error messages alone, and says in which folders it was made: of a home, of a user.
    """
    with zipfile.ZipFile(file) as archive:
        records = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for entry, record in records:
            if not entry.filename.endswith(".debug_pkl"):
                archive.writestr(entry.filename, record, entry.compress_type)


def _difference(one: Energies, two: Energies, graph: Graph) -> str:
    """How two answers differ; empty where it is rounding."""
    energy = float((np.abs(one.energies - two.energies) / np.diff(graph.ptr)).max())
    force = float(np.abs(one.forces - two.forces).max())
    virial = float((np.abs(one.virials - two.virials).max(axis=(1, 2)) / np.diff(graph.ptr)).max())
    allowed = 1e-7 * max(1.0, float(np.abs(one.forces).max()))
    if energy < 1e-8 and force < allowed and virial < VIRIAL_ARM * allowed:
        return ""
    return (
        f"it does not answer as the eager model does ({energy:.1e} eV/atom, {force:.1e} eV/Å, virial an atom "
        f"{virial:.1e} eV)"
    )


def _make_native(source: Path, eager: Any, heads: Heads | None, bundle: Path, card: dict[str, Any]) -> NoNative:
    """Write native.json and keep it if it agrees with the exact engine; else return why not, and what to do."""
    if not available():
        return (
            "symmetrix-xl was not installed when this was imported",
            "import it again where symmetrix-xl is installed",
        )
    if type(eager).__name__ not in ("MACE", "ScaleShiftMACE") or wanted(eager):
        what = " with " + " and ".join(wanted(eager)) if wanted(eager) else ""
        return f"Symmetrix-XL knows no {type(eager).__name__}{what}", None
    orders = {c.correlation for product in eager.products for c in product.symmetric_contractions.contractions}
    if orders != {3}:  # Symmetrix-XL does not check this, and takes ten gigabytes to extract correlation 4
        return f"Symmetrix-XL knows correlation 3, and this model has {', '.join(map(str, sorted(orders)))}", None
    with mace_imported(), default_dtype(torch.float64):
        from symmetrix.extract_mace_data import extract_mace_data

        if heads is not None:
            source = bundle / "mean.model"
            torch.save(eager, source)
        try:
            data = extract_mace_data(str(source), species=[], head=card["head"], num_spline_points=SPLINE_POINTS[-1])
        except Exception as error:  # noqa: BLE001  (it fails in any way on an architecture that it does not know)
            return f"not possible for this architecture: {_error_line(error)}", None
    if heads is not None:
        data |= {"prediction_heads": heads.native(data), "head": MEAN}

    def opened(points: int) -> NativeEngine:
        # without this entry it is of a kind that is refused when it is opened
        data.get("compact_radial", {})["num_spline_points"] = points
        (bundle / NATIVE).write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")
        write_card(bundle, card)  # both engines read the card and check the files against it
        return NativeEngine(check(bundle))

    try:
        # from few points on, because tables of many points and elements may not fit in memory
        found = converged(opened, bundle, card["elements"])
    except ModelError as error:
        cause = str(error).replace(f"{bundle}{os.sep}", "")  # a temporary folder, which will be gone
        why: NoNative = (
            f"it could not be compared with the exact engine: {cause}",
            "import it again where the cause is removed",
        )
    else:
        if found.agreed:
            return None, None
        why = (f"Symmetrix-XL does not support something in this model: {found}", None)
    (bundle / NATIVE).unlink()
    return why


def converged(opened: Callable[[int], NativeEngine], bundle: Path, elements: Sequence[int]) -> Comparison:
    """Leave a native model with the fewest points whose doubling changes nothing that counts; how exact it is.

    opened: writes the bundle's native model with so many points. Raises ModelError.
    """
    taken = SPLINE_POINTS[0]
    engine = opened(taken)
    for points in SPLINE_POINTS[1:]:
        finer = opened(points)
        if compare_dense(engine, finer, elements, "float64").within(SPLINE_SHARE):
            engine = opened(taken)
            break
        taken, engine = points, finer
    return compare_dense(engine, open_exact(check(bundle)), elements, "float64")


def _error_line(error: Exception) -> str:
    """An error's text in one line, with the place in the code that it names."""
    line = reason(error).rstrip(":.")
    place = re.search(r'File "[^"]*?([^"/]+)", line (\d+)', str(error))
    return f"{line} ({place[1]}, line {place[2]})" if place and place[0] not in line else line
