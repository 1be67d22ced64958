"""The file of weights: what is written is read, to the bit; a damaged or hostile one is a sentence."""

from __future__ import annotations

import json
import os

import pytest
import torch

from beadwork.errors import ModelError
from beadwork.potential.weights import read_weights, write_weights

ARRAYS = {
    "a weight": torch.linspace(0, 1, 6, dtype=torch.float64).reshape(2, 3),
    "a scalar": torch.tensor(2.5, dtype=torch.float32),
    "nothing": torch.empty((0, 3)),
    "numbers": torch.tensor([1, 8]),
    "power": torch.tensor(5, dtype=torch.int32),
    "whether": torch.tensor([True, False, True]),
    "half": torch.tensor([0.1], dtype=torch.bfloat16),
    "turned": torch.arange(6.0).reshape(2, 3).T,
}


def test_what_is_written_is_read(tmp_path):
    """Types, shapes and bits come back, those of no elements and of odd sizes too; the same arrays, the same bytes."""
    write_weights(tmp_path / "one", ARRAYS, {"class": "Δ", "n": [1, 2.5, None]})
    found, about = read_weights(tmp_path / "one")
    assert about == {"class": "Δ", "n": [1, 2.5, None]}
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert torch.equal(found[name], array)
    write_weights(tmp_path / "two", dict(reversed(ARRAYS.items())), {"n": [1, 2.5, None], "class": "Δ"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_format_is_that_of_others(tmp_path):
    """The package that defines the format reads the file, where it is installed."""
    official = pytest.importorskip("safetensors.torch")
    write_weights(tmp_path / "weights", ARRAYS, {})
    found = official.load_file(tmp_path / "weights")
    assert all(torch.equal(found[name], array) for name, array in ARRAYS.items())


def made(header: object, body: bytes = b"12345678") -> bytes:
    """A file of a header and numbers."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(**changes: object) -> dict[str, object]:
    """A header of one array, with something changed."""
    good = {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]} | changes
    return {"__metadata__": {"beadwork": "{}"}, "x": good}


ABOUT = {"__metadata__": {"beadwork": "{}"}}
HOSTILE = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a header longer than the file": (2**40).to_bytes(8, "little") + b"{}",
    "a negative length": b"\xff" * 8 + b"{}",
    "no JSON": made(b"{nothing"),
    "deep JSON": made(b"[" * 100_000),
    "no text": made(b"\xff\xfe\x00"),
    "a list": made([1, 2]),
    "no description": made({"x": entry()["x"]}),
    "a description that is none": made(ABOUT | {"__metadata__": {"beadwork": "{"}}),
    "an unknown type": made(entry(dtype="F8_E4M3")),
    "a type that is a list": made(entry(dtype=[])),
    "a huge shape": made(entry(shape=[2**62, 2**62])),
    "a negative shape": made(entry(shape=[-1, -1])),
    "a shape of texts": made(entry(shape=["1"])),
    "a shape of truth values": made(entry(shape=[True])),
    "no shape": made(ABOUT | {"x": {"dtype": "F64", "data_offsets": [0, 8]}}),
    "bytes before the first": made(entry(data_offsets=[-8, 0])),
    "bytes after the last": made(entry(data_offsets=[8, 16])),
    "three offsets": made(entry(data_offsets=[0, 8, 16])),
    "two arrays in one place": made(entry() | {"y": entry()["x"]}),
    "bytes that nobody owns": made(entry(), b"1234567812345678"),
    "cut": made(entry(), b"1234"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_a_sentence(tmp_path, case):
    """Sizes, shapes, types and places are checked before a byte is believed; the message has one line."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(HOSTILE[case])
    with pytest.raises(ModelError, match=r"model\.safetensors holds no weights that can be read \(\w+: .") as refused:
        read_weights(file)
    assert "\n" not in str(refused.value)


def test_a_file_of_terabytes_is_not_read(tmp_path):
    """A sparse file costs its maker nothing; its header says that it has no arrays, and nothing is allocated."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(made(ABOUT, b""))
    os.truncate(file, 4 * 10**12)
    with pytest.raises(ModelError, match="its arrays have 0 bytes of"):
        read_weights(file)
