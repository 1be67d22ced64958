"""A native.json is refused with a sentence before compiled code reads it, where a part has not its size."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from beadwork.errors import ModelError
from beadwork.potential import bundle
from beadwork.potential.native import NativeEngine
from beadwork.potential.native_file import check_native

GONE = object()


@pytest.fixture(scope="module")
def good(made) -> dict[str, Any]:
    """What a bundle of vectors has in it."""
    pytest.importorskip("symmetrix")
    return json.loads((made["vector"].bundle / "native.json").read_text())


@pytest.fixture
def check(tmp_path):
    """Check what is written to a file."""

    def call(data: Any) -> None:
        (tmp_path / "native.json").write_text(data if isinstance(data, str) else json.dumps(data))
        check_native(tmp_path / "native.json")

    return call


def changed(data: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A copy with one thing changed, or left out."""
    data = copy.deepcopy(data)
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return data


def test_what_the_importer_writes_passes(made, good, check):
    """Models with scalars, with vectors and with repulsion are as the check says that they are."""
    check(good)
    check_native(made["invariant"].bundle / "native.json")


#: Symmetrix-XL 0.1.1 was aborted by num_channels -1, had not ended after 40 seconds with l_max 3000, and answered with
#: half of atomic_energies, and with L_max 2**40, from memory that is not the model's
ABSURD = {
    ("num_channels",): (-1, "num_channels is -1, and may be 1 to 4096"),
    ("l_max",): (3000, "it is of a kind that beadwork does not make"),
    ("L_max",): (2**40, "L_max is 1099511627776, and may be 0 to 3"),
    ("atomic_numbers",): ([-5, 8], r"atomic_numbers holds \[-5, 8\], and may hold 1 to 118"),
    ("atomic_energies",): ([0.07], "atomic_energies holds 1 of 2 numbers"),
    ("readout_2_hidden_size",): (10**9, "readout_2_hidden_size is 1000000000, and may be"),
    ("Phi1_lme", 0): (10**6, "Phi1_lme holds .*, and may hold 0 to"),
    ("M0_monomials", "0", 0): ([99], "M0_monomials 0 holds what is no product"),
    ("compact_radial", "num_spline_points"): (10**12, "num_spline_points is 1000000000000, and may be 4 to"),
    ("compact_radial", "networks", "R1", "shape", 1): (10**5, "R1 is 100000, and may be"),
    ("H0_weights",): ("H0", "H0_weights holds 2 of 8 numbers"),
    ("r_cut",): (float("nan"), "r_cut is nan"),
    ("model_type",): (GONE, "lacks 'model_type'"),
}


@pytest.mark.parametrize("path", ABSURD, ids=lambda path: " ".join(map(str, path)))
def test_absurd_sizes_are_refused(good, check, path):
    """Each has its sentence, which names the part, and nothing is compiled."""
    value, sentence = ABSURD[path]
    with pytest.raises(ModelError, match=rf"native\.json cannot be run natively \({sentence}.*import the model again"):
        check(changed(good, path, value))


def lists(data: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], list[Any]]]:
    """Every list of numbers that compiled code reads, the first of each kind."""
    if isinstance(data, dict):
        for key in data if not path else list(data)[:3]:
            if key not in ("execution_contracts", "field_couplings", "shape"):  # fingerprinted, empty, checked above
                yield from lists(data[key], (*path, key))
    elif isinstance(data, list):
        if data and isinstance(data[0], list) and path[-1] != "M1_monomials" and "M0_monomials" not in path:
            yield from lists(data[0], (*path, 0))
        else:
            yield path, data


def test_no_list_may_be_shorter_or_longer_than_the_model(good, check):
    """Compiled code takes a length for granted and reads beyond the end: half a list, none and twice as much."""
    tried = 0
    for path, values in lists(good):
        for wrong in (values[: len(values) // 2], [], values + values):
            if wrong != values:
                with pytest.raises(ModelError, match="cannot be run natively"):
                    check(changed(good, path, wrong))
                tried += 1
    assert tried > 60


@pytest.mark.parametrize("text", ["", "null", "[]", "7", '"x"', "{", "[" * 100_000, '{"model_type": 1e999}'])
def test_what_is_no_model_at_all(check, text):
    """Whatever JSON can be, deep nesting too, is one ModelError."""
    with pytest.raises(ModelError, match=r"native\.json"):
        check(text)


def test_the_engine_looks_first(made, tmp_path, monkeypatch):
    """The check stands before the compiled code, which is not reached."""
    pytest.importorskip("symmetrix")
    monkeypatch.setattr("beadwork.potential.native.kernel_cache", lambda: pytest.fail("the model was to be compiled"))

    def refuse(file):
        raise ModelError("looked at")

    monkeypatch.setattr("beadwork.potential.native.check_native", refuse)
    with pytest.raises(ModelError, match="looked at"):
        NativeEngine(bundle.check(made["vector"].bundle))
