"""Sizes of a described model against those of its weights: a lie is refused before anything of its size is made."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

#: shapes by name, as a model's state has them
Shapes = Mapping[str, tuple[int, ...]]
#: features of a kind: how many, degree, and the parity, 1 or -1
Terms = list[tuple[int, int, int]]


def check_sizes(name: str, given: Mapping[str, Any], shapes: Shapes, elements: int, *, symmetric: bool) -> None:
    """Compare what arguments make with the arrays that are there, for every size that an argument chooses freely.

    All other arrays are products of these sizes. name: of the class. given: the arguments, each of its type. symmetric:
    whether reduced couplings can be made here, which are fewer. Raises ValueError or KeyError for any difference.
    """
    layers, heads = given["num_interactions"], len(given.get("heads") or ["Default"])
    for part in ("interactions", "products"):
        if (there := _children(shapes, part)) != layers:
            raise ValueError(f"num_interactions is {layers}, and its weights have {there} {part}")
    hidden = terms(given["hidden_irreps"])
    channels = _scalars(hidden)
    _same(shapes, "node_embedding.linear.weight", elements * channels)
    if name not in ("AtomicDipolesMACE", "AtomicDielectricMACE"):
        _same(shapes, "atomic_energies_fn.atomic_energies", heads * elements)
    # the last layer has scalars alone, or what a dipole or a polarizability needs; a single layer of these has all
    needed = {"EnergyDipolesMACE": hidden[:2], "AtomicDipolesMACE": hidden[1:2], "AtomicDielectricMACE": hidden}
    dipoles, last = name in needed, needed.get(name, hidden[:1])
    polar = name == "PolarMACE"
    if polar or (given.get("keep_last_layer_irreps") if layers > 1 else dipoles):
        last = hidden
    edge = terms(given["edge_irreps"]) if given.get("edge_irreps") and not dipoles else None
    for i in range(layers):
        out = last if i == layers - 1 else hidden
        _same(shapes, f"products.{i}.linear.weight", _weights(out, out))
        _check_couplings(given, shapes, i, out, symmetric=symmetric)
        inward = hidden if i else [(channels, 0, 1)]
        onward = inward
        if edge and (i or given.get("use_edge_irreps_first")):
            onward = edge if i else [(_scalars(edge), 0, 1)]
        _same(shapes, f"interactions.{i}.linear_up.weight", _weights(inward, onward))
        if "Att" not in given["interaction_cls" if i else "interaction_cls_first"]:  # whose layers are always the same
            _check_radial(given, shapes, f"interactions.{i}.conv_tp_weights")
    if layers > 1 and given.get("readout_cls") != "LinearReadoutBlock":
        _check_readout(given, shapes, last, heads, dipoles=dipoles)
    _check_embedding(given.get("embedding_specs") or {}, shapes, channels)
    if polar:
        _check_polar(given, shapes, hidden, heads)


def terms(irreps: str) -> Terms:
    """The kinds of features in e3nn's notation, such as 128x0e+128x1o, as they stand there."""
    parts = [part.split("x") for part in irreps.split("+")]
    return [(int(count), int(kind[:-1]), 1 if kind[-1] == "e" else -1) for count, kind in parts]


def _scalars(some: Terms) -> int:
    return sum(count for count, *kind in some if kind == [0, 1])


def _weights(one: Terms, two: Terms) -> int:
    """How many weights a linear layer between the two has: only features of one kind mix."""
    return sum(n * m for n, *kind in one for m, *other in two if kind == other)


def _children(shapes: Shapes, part: str) -> int:
    depth = part.count(".") + 1
    return len({key.split(".")[depth] for key in shapes if key.startswith(f"{part}.")})


def _same(shapes: Shapes, key: str, *sizes: int) -> None:
    """Compare a shape, or where only one number is known, how many numbers there are."""
    found = shapes[key]
    if (math.prod(found),) != sizes if len(sizes) == 1 else found != sizes:
        raise ValueError(f"{key} has the shape {list(found)}, and its arguments make {list(sizes)}")


def _check_couplings(given: Mapping[str, Any], shapes: Shapes, layer: int, out: Terms, *, symmetric: bool) -> None:
    """The couplings of the features of several atoms, of which there are many and whose making takes most time."""
    correlation = given["correlation"]
    order = correlation[layer] if isinstance(correlation, list) else correlation
    degrees = range(given["max_ell"] + 1)
    kinds = [(degree, 1 if given.get("use_so3") else (-1) ** degree) for degree in degrees]
    if layer and any(kind == [0, -1] for _, *kind in terms(given["hidden_irreps"])):
        kinds = [(degree, parity) for degree in degrees for parity in (1, -1)]
    width = sum(2 * degree + 1 for degree, _ in kinds)
    part = f"products.{layer}.symmetric_contractions.contractions"
    if (there := _children(shapes, part)) != len(out):
        raise ValueError(f"{part} has {there} kinds of features, and its arguments make {len(out)}")
    for k, (_, degree, parity) in enumerate(out):
        if f"{part}.{k}.U_matrix_{order + 1}" in shapes:
            raise ValueError(f"correlation is {order}, and {part}.{k} has more")
        for nu in range(1, order + 1):
            key = f"{part}.{k}.U_matrix_{nu}"
            reduced = bool(given.get("use_reduced_cg"))
            # mace-torch: of four atoms only products of natural parity, unless the couplings are reduced
            most = max(1, _paths(kinds, (degree, parity), nu, natural=nu == 4 and not (symmetric and reduced)))
            count = min(most, shapes[key][-1]) if symmetric and reduced else most
            _same(shapes, key, *([2 * degree + 1] if degree else []), *[width] * nu, count)


def _paths(kinds: Sequence[tuple[int, int]], target: tuple[int, int], order: int, *, natural: bool) -> int:
    """In how many ways features of these kinds, (degree, parity), couple one after the other to the target."""
    found = Counter(kinds)
    for _ in range(order - 1):
        more: Counter[tuple[int, int]] = Counter()
        for (a, sign), count in found.items():
            for b, other in kinds:
                for degree in range(abs(a - b), a + b + 1):
                    if not natural or (sign * other == (-1) ** degree and degree < 12):
                        more[degree, sign * other] += count
        found = more
    return found[target]


def _check_radial(given: Mapping[str, Any], shapes: Shapes, part: str) -> None:
    """The radial network: its hidden layers are radial_MLP, what goes in begins with the radial basis."""
    weights = [key for key, shape in shapes.items() if key.startswith(f"{part}.") and len(shape) == 2]
    # by number: a file has them in the alphabet's order
    network = [shapes[key] for key in sorted(weights, key=lambda key: int(re.sub(r"\D", "", key.removeprefix(part))))]
    if f"{part}.net.0.weight" in shapes:  # (out, in), as torch has it; e3nn's own are (in, out)
        network = [shape[::-1] for shape in network]
    hidden = [shape[1] for shape in network[:-1]]
    wanted = given.get("radial_MLP") or [64, 64, 64]
    if not network or hidden != wanted or network[0][0] < given["num_bessel"]:
        raise ValueError(
            f"{part} has layers {[list(shape) for shape in network]}, and its arguments make {given['num_bessel']} "
            f"radial functions and hidden layers of {wanted}"
        )


def _check_readout(given: Mapping[str, Any], shapes: Shapes, last: Terms, heads: int, *, dipoles: bool) -> None:
    """The last readout, which has neurons of its own for every head."""
    neurons = [(count * heads, degree, parity) for count, degree, parity in terms(given["MLP_irreps"])]
    if dipoles:  # and a scalar as gate for each vector
        neurons.append((sum(count for count, degree, _ in neurons if degree), 0, 1))
    readout = f"readouts.{_children(shapes, 'readouts') - 1}"
    _same(shapes, f"{readout}.linear_1.weight", _weights(last, neurons))
    _same(shapes, f"{readout}.linear_1.output_mask", sum(count * (2 * degree + 1) for count, degree, _ in neurons))
    if given.get("readout_cls") == "NonLinearBiasReadoutBlock":
        _same(shapes, f"{readout}.linear_mid.weight", _weights(neurons, neurons))


def _check_embedding(specs: Mapping[str, Any], shapes: Shapes, channels: int) -> None:
    """The embedding of a charge, a spin or the like."""
    for key, spec in specs.items():
        embedder, width = f"joint_embedding.embedders.{key}", spec["emb_dim"]
        if spec["type"] == "categorical":
            _same(shapes, f"{embedder}.weight", spec["num_classes"], width)
        else:
            _same(shapes, f"{embedder}.0.weight", width, spec["in_dim"])
            _same(shapes, f"{embedder}.2.weight", width, width)
    if specs:
        _same(shapes, "joint_embedding.project.0.weight", channels, sum(spec["emb_dim"] for spec in specs.values()))


def _check_polar(given: Mapping[str, Any], shapes: Shapes, hidden: Terms, heads: int) -> None:
    """The multipoles of the atoms, the features of their field, and the steps between the two."""
    steps, widths = given["num_recursion_steps"], len(given["field_feature_widths"])
    if (there := _children(shapes, "field_dependent_charges_maps")) != steps:
        raise ValueError(f"num_recursion_steps is {steps}, and its weights have {there} steps")
    multipoles = [(2, degree, (-1) ** degree) for degree in range(given["atomic_multipoles_max_l"] + 1)]
    for layer in range(given["num_interactions"]):
        _same(shapes, f"lr_source_maps.{layer}.linear.weight", _weights(hidden, multipoles))
    _same(shapes, "field_feature_norms", widths * (given["field_feature_max_l"] + 1) ** 2)
    field = [(2 * widths, degree, (-1) ** degree) for degree in range(given["field_feature_max_l"] + 1)]
    for step in range(steps):
        part = f"field_dependent_charges_maps.{step}.potential_embedding.potential_linear.weight"
        _same(shapes, part, _weights(field, hidden))
    neurons = terms(given["MLP_irreps"])
    _same(shapes, "fukui_source_map.linear_1.weight", _weights(hidden, neurons))
    if (norms := given["field_feature_norms"]) and len(norms) != widths * (given["field_feature_max_l"] + 1):
        raise ValueError(f"field_feature_norms has {len(norms)} numbers, not one for each width and degree")
