"""Check a native.json before compiled code reads it: that code trusts every size and would read beyond an array's end.

A bundle may come from anyone, so its sizes are checked against each other before they become memory accesses. The
layout is that of Symmetrix-XL 0.1.1, format 2, for a MACE of two interactions: C channels, n elements, features of
degree L at most, spherical harmonics of degree 3. It was read off `symmetrix.extract_mace_data`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from beadwork.errors import ModelError

#: more than any model has; larger numbers would be memory requests: channels, neurons of a layer, points of a spline
MAX_SIZES = {"num_channels": 4096, "readout_2_hidden_size": 65_536, "num_spline_points": 1_000_000}
#: components of the spherical harmonics up to degree 3
HARMONIC_COMPONENTS = 16


def check_native(file: Path) -> None:
    """Raise ModelError for a native.json whose arrays do not have the lengths that its own sizes require."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        _check(data)
    except RecursionError as error:  # Python's JSON reader recurses into brackets, a hundred thousand of them too
        raise ModelError(f"{file} is nested too deeply", "import the model again") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        fault = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{file} cannot be run natively ({fault})", "import the model again") from error


def _check(data: Mapping[str, Any]) -> None:
    # first: the layout of another kind would be judged by the wrong rules
    _kind(data)
    c, degree = _whole(data, "num_channels", 1, MAX_SIZES["num_channels"]), _whole(data, "L_max", 0, 3)
    elements = _elements(data)
    # sizes first, then the arrays that must fit them
    lengths = _lengths(data, c, degree, elements)
    for key, length in lengths.items():
        _numbers(data[key], length, key)
    paths = _paths(data, degree)
    _by_element(data, c, len(elements), (degree + 1) ** 2)
    for level in range(4):
        _numbers(data["A1_weights"][level], paths.count(level) * c * c, f"A1_weights {level}")
    if len(data["A1_weights"]) != 4:
        raise ValueError("A1_weights have more than they should")
    _radial(data["compact_radial"], data, c, len(paths))
    for name in ("M0", "R0", "R1"):
        if data["execution_contracts"][name]["channels"] != c:
            raise ValueError(f"the contract of {name} is for other channels")
    _heads(data, lengths)


def _kind(data: Mapping[str, Any]) -> None:
    """Refuse models whose layout is not the one that is checked here."""
    kind = [data[key] for key in ("model_type", "num_interactions", "l_max", "radial_representation")]
    if kind != ["MACE", 2, 3, "compact"] or data["symmetrix_format_version"] != 2:
        raise ValueError(f"it is of a kind that beadwork does not make: {kind}")
    # beadwork sends atoms and a cell, no external field
    if data["has_field_coupling"] or data["field_couplings"]:
        raise ValueError("it is coupled to a field")
    if not 0 < float(data["r_cut"]) <= 100:
        raise ValueError(f"r_cut is {data['r_cut']}")


def _elements(data: Mapping[str, Any]) -> list[int]:
    """The atomic numbers, in ascending order."""
    elements = _indices(data, "atomic_numbers", 1, 118)
    if not elements or sorted(set(elements)) != elements or data["num_elements"] != len(elements):
        raise ValueError(f"atomic_numbers are {elements[:9]}, num_elements {data['num_elements']}")
    return elements


def _lengths(data: Mapping[str, Any], c: int, degree: int, elements: Sequence[int]) -> dict[str, int]:
    """How many numbers each plain array must hold."""
    hidden = _whole(data, "readout_2_hidden_size", 1, MAX_SIZES["readout_2_hidden_size"])
    n, components = len(elements), (degree + 1) ** 2
    lengths = {
        "atomic_energies": n,
        "H0_weights": n * c,
        "H1_weights": (degree + 1) * c * c,
        "H2_weights_for_M1": c * c,
        "readout_1_weights": c,
        "readout_2_weights_1": hidden * c,
        "readout_2_weights_2": hidden,
    }
    if data["first_interaction_residual"]:
        lengths |= {
            "H1_product_weights": (degree + 1) * c * c,
            "H1_linear_up_weights": (degree + 1) * c * c,
            "H1_first_residual_weights": n * components * c,
        }
    if data["has_zbl"]:  # radii are indexed by atomic number, up to the heaviest element
        lengths |= {"zbl_c": 4, "zbl_covalent_radii": max(119, elements[-1] + 1)}
    return lengths


def _by_element(data: Mapping[str, Any], c: int, n: int, components: int) -> None:
    """Weights that each of the n elements has for itself: of levels, and of products of components (monomials)."""
    # every list is walked below as the kernels walk it
    monomials = [_monomials(data["M0_monomials"][str(lm)], f"M0_monomials {lm}") for lm in range(components)]
    last = _monomials(data["M1_monomials"], "M1_monomials")
    # dictionaries and lists are walked by the indices that the kernels use, so that a missing key is found here
    for a in range(n):
        for level in range(4):
            _numbers(data["A0_weights"][a][level], c * c, f"A0_weights {a} {level}")
        _numbers(data["H2_weights_for_H1"][a], c * c, f"H2_weights_for_H1 {a}")
        for k in range(c):
            for lm, terms in enumerate(monomials):
                _numbers(data["M0_weights"][str(a)][str(lm)][str(k)], terms, f"M0_weights {a} {lm} {k}")
            _numbers(data["M1_weights"][str(a)][str(k)], last, f"M1_weights {a} {k}")
    if {len(data["A0_weights"]), len(data["H2_weights_for_H1"])} != {n}:
        raise ValueError("A0_weights or H2_weights_for_H1 have more than they should")


def _paths(data: Mapping[str, Any], degree: int) -> list[int]:
    """Check the couplings of the second interaction; return the degree of each path's output."""
    out, edge, source = (
        _indices(data, key, 0, most) for key, most in (("Phi1_l", 3), ("Phi1_l1", 3), ("Phi1_l2", degree))
    )
    terms = len(data["Phi1_clebsch_gordan"])
    _numbers(data["Phi1_clebsch_gordan"], terms, "Phi1_clebsch_gordan")
    outputs = sum(2 * level + 1 for level in out)
    inputs = sum((2 * one + 1) * (2 * two + 1) for one, two in zip(edge, source, strict=True))
    found = _indices(data, "Phi1_lme", 0, outputs - 1), _indices(data, "Phi1_lelm1lm2", 0, inputs - 1)
    if len(out) != len(edge) or any(len(indices) != terms for indices in found):
        raise ValueError("the parts of Phi1 are not of one length")
    return out


def _radial(radial: Mapping[str, Any], data: Mapping[str, Any], c: int, paths: int) -> None:
    _whole(radial, "num_spline_points", 4, MAX_SIZES["num_spline_points"])
    basis = radial["basis"]["weights"]
    _numbers(basis, len(basis), "the radial basis")
    outputs = {"R0": 4 * c, "R1": paths * c}
    outputs |= {f"A{i}": 1 for i in (0, 1) if data[f"A{i}_scaled"]}
    for name, output in outputs.items():
        shape = [
            _whole({name: size}, name, 1, MAX_SIZES["readout_2_hidden_size"])
            for size in radial["networks"][name]["shape"]
        ]
        weights = radial["networks"][name]["weights"]
        if shape[0] != len(basis) or shape[-1] != output or len(weights) != len(shape) - 1:
            raise ValueError(f"the network {name} has the shape {shape}")
        for (before, after), layer in zip(pairwise(shape), weights, strict=True):
            _numbers(layer, before * after, f"the network {name}")
    radii = radial["distance_transform"].get("covalent_radii")
    if radii is not None:
        _numbers(radii, data["num_elements"], "the radii of the distance transform")


def _heads(data: Mapping[str, Any], lengths: Mapping[str, int]) -> None:
    """The parameters of each head are as long as those of the one that stands in front."""
    heads = data.get("prediction_heads")
    if heads is None:
        return
    for name in heads["names"]:
        for key, values in heads["parameters"][name].items():
            _numbers(values, lengths[key], f"{key} of head {name}")


def _whole(data: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = data[key]
    # type() and not isinstance: True is an int to Python, and 1 to compiled code
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is {str(value)[:30]}, and may be {least} to {most}")
    return value


def _indices(data: Mapping[str, Any], key: str, least: int, most: int) -> list[int]:
    values = data[key]
    if not isinstance(values, list) or not all(type(v) is int and least <= v <= most for v in values):
        raise ValueError(f"{key} holds {str(values)[:30]}, and may hold {least} to {most}")
    return values


def _numbers(values: Any, length: int, name: str) -> None:
    if not isinstance(values, list) or len(values) != length or not set(map(type, values)) <= {float, int}:
        found = f"{len(values)} of" if isinstance(values, Sequence) else "no list of"
        raise ValueError(f"{name} holds {found} {length} numbers")


def _monomials(terms: Any, name: str) -> int:
    """The number of monomials, each a product of one to three components (correlation 3)."""
    if not all(
        1 <= len(term) <= 3 and all(type(lm) is int and 0 <= lm < HARMONIC_COMPONENTS for lm in term) for term in terms
    ):
        raise ValueError(f"{name} holds what is no product of one to three components")
    return len(terms)
