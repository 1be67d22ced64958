"""Weights in a file of the safetensors format: a JSON header, then nothing but numbers; no code is run to read it.

The format (https://github.com/huggingface/safetensors): 8 bytes, the header's length N, little-endian; N bytes of JSON,
{name: {"dtype", "shape", "data_offsets": [begin, end]}} and, under `__metadata__`, texts by name; then the arrays, one
after the other, little-endian, in C order. What is read is checked against itself before a byte of it is believed.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from beadwork.errors import ModelError

#: bytes: no model has a longer header; one of a hundred thousand arrays is half as long
MAX_HEADER_BYTES = 2**24
#: the entry of `__metadata__` that says what the arrays are the weights of
ABOUT = "beadwork"
#: the format's names of the types that a model's arrays have
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_weights(file: Path, arrays: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """Write arrays by name, and `about` as JSON. The same arrays give the same bytes."""
    names = sorted(arrays)
    # contiguous copies on the CPU; a file of the format never shares memory between two names
    parts = [arrays[name].detach().cpu().contiguous() for name in names]
    header: dict[str, Any] = {"__metadata__": {"format": "pt", ABOUT: json.dumps(about, sort_keys=True)}}
    at = 0
    for name, part in zip(names, parts, strict=True):
        end = at + part.numel() * part.element_size()
        header[name] = {"dtype": _NAMES[part.dtype], "shape": list(part.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # readers that map the file want the arrays at a multiple of eight
    if len(text) > MAX_HEADER_BYTES:
        raise ModelError(f"{file} would have a header of {len(text)} bytes, more than any model")
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for part in parts:
            stream.write(part.reshape(-1).view(torch.uint8).numpy().tobytes() if part.numel() else b"")


def read_weights(file: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Return the arrays by name, and what `about` was. Raises ModelError for anything that is not such a file."""
    try:
        if sys.byteorder != "little":
            raise ValueError("this machine is big-endian")
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(stream.read(length))
            about = json.loads(header.pop("__metadata__")[ABOUT])
            places = _places(header, size - 8 - length)
            # one buffer for all, of the file's own size: no header makes it larger
            data = torch.frombuffer(bytearray(stream.read()), dtype=torch.uint8) if places else torch.empty(0)
        return {
            name: data[begin:end].clone().view(dtype).reshape(shape)  # a copy begins where its type may begin
            for name, (dtype, shape, begin, end) in places.items()
        }, about
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        RuntimeError,
        MemoryError,
    ) as error:
        what = " ".join(str(error).split()) or "no words"
        raise ModelError(
            f"{file} holds no weights that can be read ({type(error).__name__}: {what})",
            "copy it again or import the model again",
        ) from error


def _places(header: Mapping[str, Any], size: int) -> dict[str, tuple[torch.dtype, list[int], int, int]]:
    """Type, shape and bytes of each array. Raises ValueError where they do not fill the file exactly."""
    found = {}
    for name, entry in header.items():
        dtype, shape, (begin, end) = DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
            raise ValueError(f"{name} has the shape {shape} at bytes {begin} to {end}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} has {end - begin} bytes, which its shape {shape} does not need")
        found[name] = (dtype, shape, begin, end)
    at = 0
    for name, (_, _, begin, end) in sorted(found.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise ValueError(f"{name} begins at byte {begin}, not {at}")
        at = end
    if at != size:
        raise ValueError(f"its arrays have {at} bytes of {size}")
    return found
