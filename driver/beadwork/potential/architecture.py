"""What a MACE model is, apart from its weights: its class in mace-torch and the arguments that make it again.

They are JSON: numbers, texts and names, each from a fixed list, so that a bundle which anyone may have made runs no
code of its own. The module that is made from them holds random weights until those of the bundle take their place.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from beadwork.errors import ModelError
from beadwork.packages import pip_install
from beadwork.potential.longrange import LONG_RANGE, check_package
from beadwork.potential.memory import reason
from beadwork.potential.sizes import check_sizes, terms

#: of mace-torch 0.3.16, and where they are
CLASSES = dict.fromkeys(
    ("MACE", "ScaleShiftMACE", "EnergyDipolesMACE", "AtomicDipolesMACE", "AtomicDielectricMACE"), "mace.modules.models"
) | dict.fromkeys(LONG_RANGE, "mace.modules.extensions")
#: what each class answers, of those that answer anything besides or in place of an energy
ANSWERS = {
    "EnergyDipolesMACE": ("energy", "dipole"),
    "AtomicDipolesMACE": ("dipole",),
    "AtomicDielectricMACE": ("dipole", "polarizability"),
    "PolarMACE": ("energy", "dipole"),
}
#: arguments of PolarMACE, which keeps them under the same names, and what each may be; a width is in Å
POLAR_SWITCHES = (
    "field_si",
    "include_electrostatic_self_interaction",
    "add_local_electron_energy",
    "quadrupole_feature_corrections",
    "return_electrostatic_potentials",
)
POLAR_DEGREES = ("atomic_multipoles_max_l", "field_feature_max_l")
POLAR_NUMBERS = {"kspace_cutoff_factor": (0.1, 10.0), "atomic_multipoles_smearing_width": (0.1, 100.0)}
POLAR = (
    *POLAR_SWITCHES,
    *POLAR_DEGREES,
    *POLAR_NUMBERS,
    "num_recursion_steps",
    "field_norm_factor",
    "field_feature_widths",
)
#: names of mace-torch's for the parts of PolarMACE, by the argument that chooses them; the first where none is named
POLAR_PARTS = {
    "fixedpoint_update_config": "AgnosticEmbeddedOneBodyVariableUpdate",
    "field_readout_config": "OneBodyMLPFieldReadout",
}
#: names of the functions between neurons
GATES = ("silu", "tanh", "abs")
ENERGIES = "atomic_energies_fn.atomic_energies"
#: of no model are they larger
MOST = {
    "num_bessel": 1024,
    "num_polynomial_cutoff": 100,
    "max_ell": 6,
    "num_interactions": 12,
    "num_recursion_steps": 12,
}
MOST_CORRELATION, MOST_L, MOST_HEADS, MOST_LAYERS, MOST_WIDTH = 6, 8, 1000, 16, 10**6
_IRREPS = re.compile(r"\d{1,5}x\d[eo](\+\d{1,5}x\d[eo])*")
#: e3nn's and torch's defaults are those of the whole process, and threads that build models change them
_defaults = threading.RLock()


@contextlib.contextmanager
def mace_imported() -> Iterator[None]:
    """Import mace, quietly, and undo its effect on the whole process: it switches off torch's weights_only guard.

    Raises ModelError where mace-torch is not installed.
    """
    guard = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(guard)
    # mace warns when its parts are imported about optional packages that nothing here uses; beadwork's own messages,
    # which have a level of their own, may come from other threads meanwhile
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                importlib.import_module("mace.modules")
            except ImportError as error:
                raise ModelError(
                    "an eager MACE model needs mace-torch, which is not installed",
                    pip_install("mace-torch", "scikit-learn"),
                ) from error
            yield
    finally:
        root.setLevel(level)
        if before is None:
            os.environ.pop(guard, None)
        else:
            os.environ[guard] = before


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make it torch's default for a while: e3nn and graph-longrange make constants in the default precision, not in the
    model's. Other threads that want this wait meanwhile."""
    with _defaults:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def class_of(module: Any) -> str:
    """The name of a module's class, scripted or not."""
    return str(getattr(module, "original_name", type(module).__name__))


def answers_of(module: Any) -> tuple[str, ...]:
    """What a module answers: 'energy', 'dipole' or 'polarizability', one or more."""
    return ANSWERS.get(class_of(module), ("energy",))


def describe(model: Any) -> dict[str, Any]:
    """The class of an eager MACE model and the arguments that make it again, but for what its weights tell.

    Raises ModelError for a model of another class, or one that was made with something that has no name in mace-torch.
    """
    name = type(model).__name__
    if CLASSES.get(name) != type(model).__module__:
        raise ModelError(f"a {type(model).__module__}.{name} is no class that can be made again ({', '.join(CLASSES)})")
    with mace_imported():
        try:
            found = _read(model, name)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"its {name} is not made as in mace-torch 0.3.16: {reason(error)}") from error
    accepted = _accepted(name)
    return {"class": name} | {key: value for key, value in found.items() if key in accepted}


def rebuild(description: Any, state: Mapping[str, torch.Tensor]) -> Any:
    """The eager model that `describe` described, with these weights, as they are: no rounding, no cast.

    Raises ModelError where the two do not go together, or a description is none.
    """
    try:
        name, arguments = _checked(description, state)
        if name in LONG_RANGE:
            check_package(f"a {name}")
        dtype = state["node_embedding.linear.weight"].dtype
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"it describes no model of mace-torch's ({type(error).__name__}: {error})") from error
    with mace_imported(), _defaults:
        import e3nn

        kept = e3nn.get_optimization_defaults()
        # left to itself e3nn compiles parts with TorchScript, which is deprecated, and is no faster for it
        e3nn.set_optimization_defaults(jit_script_fx=False)
        try:
            # the generator's state is the user's; and mace prints
            with default_dtype(dtype), torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
                model = _class(name)(**_made(name, arguments, state))
            for block, value in zip(model.interactions, arguments["avg_num_neighbors"], strict=True):
                block.avg_num_neighbors = value
            # older versions of mace-torch kept fewer constants among the weights; they are made anew
            own, learned = model.state_dict(), dict(model.named_parameters())
            # told here, because torch's own message has many lines
            if strange := sorted(set(state) - set(own)) or sorted(set(learned) - set(state)):
                raise ValueError(
                    f"the arrays {', '.join(strange)[:200]} are {'no part of it' if strange[0] in state else 'missing'}"
                )
            model.load_state_dict(
                {key: value for key, value in own.items() if key not in learned} | dict(state), strict=True, assign=True
            )
        except Exception as error:
            raise ModelError(
                f"a {name} of this description and these weights cannot be made: {reason(error)}"
            ) from error
        finally:
            e3nn.set_optimization_defaults(**kept)
    return model.eval()


def _reduces() -> bool:
    """Whether mace-torch makes reduced couplings here, for which it needs cuequivariance."""
    return bool(importlib.import_module("mace.tools.cg").CUET_AVAILABLE)


def _class(name: str) -> Any:
    return getattr(importlib.import_module(CLASSES[name]), name)


def _accepted(name: str) -> set[str]:
    """The arguments of a class, those that it hands to the class that it extends among them."""
    found: set[str] = set()
    for one in _class(name).__mro__:
        parameters = inspect.signature(one.__init__).parameters
        found |= set(parameters)
        if "kwargs" not in parameters:
            break
    return found - {"self", "kwargs"}


def _read(model: Any, name: str) -> dict[str, Any]:
    readout, radial = model.readouts[-1], model.radial_embedding
    heads = list(getattr(model, "heads", None) or ["Default"])
    hidden = str(model.products[0].linear.irreps_out)
    last = str(model.products[-1].linear.irreps_out)
    correlations = [_correlation(product) for product in model.products]
    one = name in ANSWERS and name not in LONG_RANGE
    found = {
        "r_max": _r_max(model),
        "num_bessel": int(radial.out_dim),
        "num_polynomial_cutoff": int(radial.cutoff_fn.p),
        "max_ell": int(model.spherical_harmonics._lmax),
        "interaction_cls": _named(model.interactions[-1], "interaction_classes"),
        "interaction_cls_first": _named(model.interactions[0], "interaction_classes"),
        "num_interactions": len(model.interactions),
        "hidden_irreps": hidden,
        "MLP_irreps": _per_head(getattr(readout, "hidden_irreps", "16x0e"), len(heads)),
        "avg_num_neighbors": [float(block.avg_num_neighbors) for block in model.interactions],
        "correlation": correlations[0] if one and len(set(correlations)) == 1 else correlations,
        "gate": _gate(readout),
        "pair_repulsion": hasattr(model, "pair_repulsion_fn"),
        "apply_cutoff": bool(getattr(model, "apply_cutoff", True)),
        # without cuequivariance they are not reduced whatever is asked for, and must not be where that is installed
        "use_reduced_cg": bool(getattr(model, "use_reduced_cg", False)) and _reduces(),
        "use_so3": bool(getattr(model, "use_so3", False)),
        "use_agnostic_product": bool(getattr(model, "use_agnostic_product", False)),
        "use_last_readout_only": bool(getattr(model, "use_last_readout_only", False)),
        "use_embedding_readout": hasattr(model, "embedding_readout"),
        "use_edge_irreps_first": bool(getattr(model, "use_edge_irreps_first", False)),
        "edge_irreps": None if getattr(model, "edge_irreps", None) is None else str(model.edge_irreps),
        "distance_transform": type(getattr(radial, "distance_transform", None)).__name__.removesuffix("Transform"),
        "radial_type": type(radial.bessel_fn).__name__.removesuffix("Basis").lower().replace("chebychev", "chebyshev"),
        "radial_MLP": _layers(model),
        "heads": heads,
        "embedding_specs": getattr(model, "embedding_specs", None),
        "readout_cls": "NonLinearReadoutBlock" if one else _named(readout, "readout_classes"),
        "keep_last_layer_irreps": last == hidden and len(model.products) > 1,
        "use_polarizability": bool(getattr(model, "use_polarizability", True)),
    }
    if len(model.interactions) == 1 or isinstance(readout, _class_of_linear()):
        found["readout_cls"] = "NonLinearReadoutBlock"
    if found["distance_transform"] == "NoneType":
        found["distance_transform"] = "None"
    if name in LONG_RANGE:
        found |= _read_polar(model)
    return found


def _read_polar(model: Any) -> dict[str, Any]:
    """The arguments that only PolarMACE has."""
    found = {key: getattr(model, key) for key in POLAR}
    norms = model._field_feature_norms
    found["field_feature_norms"] = None if norms is None else [float(x) for x in norms]
    for key, part in POLAR_PARTS.items():
        # a class, or its name; what else it may say chooses nothing in mace-torch 0.3.16
        said = getattr(model, f"_{key}")
        if unknown := set(said) - {"type", "potential_embedding_cls", "nonlinearity_cls"}:
            raise ModelError(f"its {key} has {', '.join(sorted(unknown))}, which beadwork does not know")
        kind = said.get("type", part)
        found[key] = {"type": kind if isinstance(kind, str) else kind.__name__}
    found["keep_last_layer_irreps"] = True
    return found


def _class_of_linear() -> Any:
    return importlib.import_module("mace.modules.blocks").LinearReadoutBlock


def _named(part: Any, table: str) -> str:
    """The name that mace-torch has for a part's class. Raises ModelError where it has none."""
    known = getattr(importlib.import_module("mace.modules"), table)
    name = type(part).__name__.removeprefix("Compile")
    if known.get(name) is not type(part):
        raise ModelError(f"its {type(part).__name__} is none of mace-torch's {table.replace('_', ' ')}")
    return name


def _r_max(model: Any) -> float:
    # the buffer may have been rounded to float32, and these two bases keep what they were given
    basis = model.radial_embedding.bessel_fn
    if isinstance(getattr(basis, "r_max", None), float):
        return float(basis.r_max)
    if hasattr(basis, "gaussian_weights"):
        return float((basis.gaussian_weights.numel() - 1) * math.sqrt(-0.5 / basis.coeff))
    return float(model.r_max)


def _correlation(product: Any) -> int:
    first = product.symmetric_contractions.contractions[0]
    return len(first.weights) + 1


def _layers(model: Any) -> list[int]:
    """The neurons of the radial network's hidden layers."""
    network = model.interactions[0].conv_tp_weights
    if hasattr(network, "hs"):
        return [int(n) for n in network.hs[1:-1]]
    return [int(part.normalized_shape[0]) for part in network.net if isinstance(part, torch.nn.LayerNorm)]


def _per_head(irreps: Any, heads: int) -> str:
    parts = [part.split("x") for part in str(irreps).split("+")]
    return "+".join(f"{int(count) // heads}x{irrep}" for count, irrep in parts)


def _gate(readout: Any) -> str | None:
    """The name of the function between the last readout's neurons; of a readout without neurons any will do."""
    for module in readout.modules():
        # e3nn's activation has a list, mace's own gated block a function for its scalars and one for its gates
        acts = [getattr(part, "f", part) for part in getattr(module, "acts", None) or []]
        acts += [module._act_scalar, module._act_gate] if hasattr(module, "_act_gate") else []
        for act in acts:
            for name, function in _gates().items():
                if act is function or (name == "silu" and isinstance(act, torch.nn.SiLU)):
                    return name
            if act is None and len(acts) == 1:
                return None
        if any(act is not None for act in acts):
            raise ModelError(f"the function between its neurons is none of mace-torch's ({', '.join(GATES)})")
    return "silu"


def _gates() -> dict[str, Callable[..., Any]]:
    return {"silu": torch.nn.functional.silu, "tanh": torch.tanh, "abs": torch.abs}


def _checked(description: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, Any]]:
    """The class and its arguments, each of its type and of the sizes that the weights have.

    A module is made before its weights are laid into it, so what it is made from must not fill the memory or take
    hours. Raises ValueError, KeyError or TypeError.
    """
    given = dict(description)
    name = given.pop("class")
    if name not in CLASSES:
        raise ValueError(f"its class is {name!r}, and known are {', '.join(CLASSES)}")
    elements = state["atomic_numbers"].tolist()
    if not 0 < len(elements) == len(set(elements)) <= 120 or not all(0 < z < 120 for z in elements):
        raise ValueError(f"its atomic numbers are {elements[:200]}")
    with mace_imported():
        if unknown := set(given) - _accepted(name):
            raise ValueError(f"it has {', '.join(sorted(unknown))}, which no {name} takes")
    for key in sorted(given, key=lambda key: key not in MOST):  # sizes first: others are lists of that size
        _check_argument(key, given[key], given)
    if len(given["avg_num_neighbors"]) != given["num_interactions"]:
        raise ValueError(f"avg_num_neighbors is {given['avg_num_neighbors']}, not one for each interaction")
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    check_sizes(name, given, shapes, len(elements), symmetric=_reduces())
    return name, given


def _listed(value: Any, length: int) -> list[int] | None:
    found = value if isinstance(value, list) else [value] * length
    return found if len(found) == length and all(_whole(n, 1, MOST_CORRELATION) for n in found) else None


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_argument(key: str, value: Any, given: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that is of another type, is no name of mace-torch's, or is larger than any."""
    modules = importlib.import_module("mace.modules")
    names = {
        "interaction_cls": modules.interaction_classes,
        "interaction_cls_first": modules.interaction_classes,
        "readout_cls": modules.readout_classes,
        "gate": (*GATES, None),
        "radial_type": ("bessel", "gaussian", "chebyshev"),
        "distance_transform": ("None", "Agnesi", "Soft"),
    }
    if key in names:
        good = (value is None or isinstance(value, str)) and value in names[key]
    elif key in MOST:
        good = _whole(value, 0, MOST[key])
    elif key in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        good = value is None and key == "edge_irreps"
        good = good or (isinstance(value, str) and len(value) < 200 and _sane_irreps(value))
    elif key == "correlation":
        good = _listed(value, given["num_interactions"]) is not None
    elif key == "radial_MLP":
        good = isinstance(value, list) and len(value) <= MOST_LAYERS and all(_whole(n, 1, MOST_WIDTH) for n in value)
    elif key == "heads":
        good = isinstance(value, list) and 0 < len(value) <= MOST_HEADS and all(isinstance(n, str) for n in value)
    elif key == "avg_num_neighbors":
        good = isinstance(value, list) and len(value) <= MOST["num_interactions"] and all(map(_number, value))
    elif key == "r_max":
        good = _number(value) and 0 <= value < 1000
    elif key in POLAR_DEGREES:
        good = _whole(value, 0, 1)
    elif key in POLAR_NUMBERS:
        good = _number(value) and POLAR_NUMBERS[key][0] <= value <= POLAR_NUMBERS[key][1]
    elif key == "field_norm_factor":
        good = _number(value)
    elif key in ("field_feature_widths", "field_feature_norms"):
        good = value is None and key.endswith("norms")
        good = good or (isinstance(value, list) and 0 < len(value) <= MOST["num_bessel"] and all(map(_number, value)))
        good = good and (key.endswith("norms") or all(0.1 <= width <= 100 for width in value))
    elif key in POLAR_PARTS:
        good = value == {"type": POLAR_PARTS[key]}
    elif key == "embedding_specs":
        good = value is None or (isinstance(value, dict) and all(map(_sane_spec, value.values())))
    else:
        good = type(value) is bool
    if not good:
        raise ValueError(f"{key} is {str(value)[:100]!r}")


def _sane_irreps(text: str) -> bool:
    if not _IRREPS.fullmatch(text):
        return False
    return all(count > 0 and degree <= MOST_L for count, degree, _ in terms(text))


def _sane_spec(spec: Any) -> bool:
    """Whether it is what mace-torch embeds a charge, a spin or the like by."""
    if not isinstance(spec, dict) or spec.get("type") not in ("categorical", "continuous"):
        return False
    sizes = ("emb_dim", "num_classes" if spec["type"] == "categorical" else "in_dim")
    known = {*sizes, "type", "per", "offset", "use_bias"}
    return (
        set(spec) <= known
        and spec.get("per") in ("graph", "atom", "node")
        and all(_whole(spec.get(key), 1, MOST_WIDTH) for key in sizes)
        and _whole(spec.get("offset", 0), -MOST_WIDTH, MOST_WIDTH)
        and type(spec.get("use_bias", True)) is bool
    )


def _made(name: str, arguments: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments as the class takes them, with those that the weights tell."""
    from e3nn import o3
    from mace import modules

    made = dict(arguments)
    for key in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        if made.get(key) is not None:
            made[key] = o3.Irreps(made[key])
    for key in ("interaction_cls", "interaction_cls_first"):
        made[key] = modules.interaction_classes[made[key]]
    if "readout_cls" in made:
        made["readout_cls"] = modules.readout_classes[made["readout_cls"]]
    made["gate"] = None if made["gate"] is None else _gates()[made["gate"]]
    made["avg_num_neighbors"] = made["avg_num_neighbors"][0]
    made["atomic_numbers"] = state["atomic_numbers"].tolist()
    made["num_elements"] = len(made["atomic_numbers"])
    made["atomic_energies"] = state[ENERGIES].double().numpy() if ENERGIES in state else None
    accepted = _accepted(name)
    if "atomic_inter_scale" in accepted:
        made |= {f"atomic_inter_{key}": state[f"scale_shift.{key}"].tolist() for key in ("scale", "shift")}
    return made
