"""Files as a failing disk, a full one, a stranger or a mistake would leave them: valid ones with seeded damage."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from beadwork.toml import tomllib

#: what takes the place of a number in a text
NUMBERS = ("nan", "inf", "-inf", "1e308", "-1e400", "1e-320", "0", "-1", "-0", "9" * 400, "1" + "0" * 5000)
NUMBERS += ("2147483648", "18446744073709551616", "0.5", "true", "null", "[]", "{}", '""', "''", "0x10", "1e", "--", "")
#: what takes the place of a word
WORDS = (
    "",
    "x" * 5000,
    "../../../../etc/passwd",
    "\0",
    "\x1b[2J",
    "Å",
    "nan",
    "a\nb",
    "<b>",
    "{0}",
    "%s",
    "-1",
    ",",
    "/",
)
#: what takes the place of a value
VALUES = (
    None,
    True,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1.5,
    10**30,
    1e308,
    float("inf"),
    float("nan"),
    [[]],
    {"": None},
    "1",
    "a\0b",
)


#: what else reading what is damaged already ends in
_ELSE = (sqlite3.Error, MemoryError, RuntimeError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)


def damaged(chance: random.Random, data: bytes, name: str) -> bytes:
    """The content of a file of this name, damaged in one to three ways."""
    ways = list(_BYTES) if name.endswith((".db", ".npz", ".gz")) else [*_BYTES, *_TEXT, *_TEXT]
    for ending, structured in _STRUCTURED.items():
        if name.endswith(ending):
            ways += [structured] * len(ways)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        try:
            data = chance.choice(ways)(chance, data)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, *_ELSE):
            data = _flip(chance, data)  # what was damaged already cannot be damaged with thought
    return data


def _flip(chance: random.Random, data: bytes) -> bytes:
    """One to 32 bits."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 32)) if out else 0):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def _cut(chance: random.Random, data: bytes) -> bytes:
    """All from somewhere on, or everything."""
    return data[: chance.choice((0, 1, chance.randrange(len(data) + 1), max(0, len(data) - 1)))]


def _without(chance: random.Random, data: bytes) -> bytes:
    """A piece is missing, or is there twice."""
    a, b = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + chance.choice((1, 10, 1000, len(data))))
    return data[:a] + data[b:] if chance.random() < 0.5 else data[:b] + data[a:]


def _noise(chance: random.Random, data: bytes) -> bytes:
    """Bytes from nowhere, in between or in place of what was there; a crash leaves NULs."""
    a, size = chance.randrange(len(data) + 1), chance.choice((1, 16, 512, 4096))
    noise = bytes(size) if chance.random() < 0.5 else chance.randbytes(size)
    return data[:a] + noise + data[a + chance.choice((0, size)) :]


def _replaced(pattern: bytes, values: tuple[str, ...]) -> Callable[[random.Random, bytes], bytes]:
    def replace(chance: random.Random, data: bytes) -> bytes:
        found = list(re.finditer(pattern, data))
        if not found:
            return _flip(chance, data)
        one = chance.choice(found)
        return data[: one.start()] + chance.choice(values).encode() + data[one.end() :]

    return replace


def _lines(chance: random.Random, data: bytes) -> bytes:
    """A line is missing, twice, elsewhere, or has words of another one."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    a, b = chance.randrange(len(lines)), chance.randrange(len(lines))
    how = chance.randrange(4)
    if how == 0:
        del lines[a]
    elif how == 1:
        lines.insert(b, lines[a])
    elif how == 2:
        lines[a], lines[b] = lines[b], lines[a]
    else:
        lines[a] = lines[a][: len(lines[a]) // 2] + lines[b]
    return b"".join(lines)


def _deep(chance: random.Random, data: bytes) -> bytes:
    """Something that is nested more deeply than anybody reads."""
    depth = chance.choice((50, 2000, 100_000))
    opening, closing = chance.choice((("[", "]"), ('{"a":', "}"), ("<a>", "</a>"), ("(", ")"), ("[a.", "]")))
    nest = opening * depth + closing * (depth if chance.random() < 0.5 else 0)
    a = chance.choice((0, len(data), chance.randrange(len(data) + 1)))
    return data[:a] + nest.encode() + data[chance.choice((a, len(data))) :]


def _valued(chance: random.Random, tree: Any) -> Any:
    """A tree of which one value, at any depth, is another, is missing, or is nested deeply."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any, depth: int) -> None:
        keys = list(node) if isinstance(node, dict) else range(min(len(node), 50)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            if depth < 6:
                walk(node[key], depth + 1)

    walk(tree, 0)
    if not places:
        return chance.choice(VALUES)
    # the upper ones are few, and matter most
    node, key = chance.choice(places[:40] if chance.random() < 0.5 else places)
    how = chance.random()
    if how < 0.2:
        del node[key]
    elif how < 0.3 and isinstance(node[key], list):
        node[key] = node[key] * chance.choice((0, 2, 3))
    elif how < 0.4:
        other, there = chance.choice(places)
        node[key] = other[there] if isinstance(there, int) is isinstance(other, list) and there in _keys(other) else 7
    else:
        node[key] = chance.choice(VALUES)
    return tree


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def _json(chance: random.Random, data: bytes) -> bytes:
    """JSON still, of wrong values."""
    return json.dumps(_valued(chance, json.loads(data))).encode()


def _toml(chance: random.Random, data: bytes) -> bytes:
    """TOML still, of wrong values."""
    tree = _valued(chance, tomllib.loads(data.decode()))
    return tomli_w.dumps(json.loads(json.dumps(tree), object_pairs_hook=_without_none)).encode()


def _without_none(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: "none" if value is None else value for key, value in pairs}


def _npz(chance: random.Random, data: bytes) -> bytes:
    """Arrays still, of wrong shapes, kinds and values."""
    arrays = dict(np.load(io.BytesIO(data), allow_pickle=False))
    name = chance.choice(sorted(arrays))
    one = arrays[name]
    arrays[name] = chance.choice(
        (
            lambda: one * np.nan,
            lambda: one * -1e300,
            lambda: one.ravel()[:-1],
            lambda: one[None],
            lambda: np.zeros((0, 3)),
            lambda: one.astype(str),
            lambda: one.astype(complex),
            lambda: np.array(10**18),
            lambda: np.array("x"),
            lambda: one.astype(bool),
            lambda: np.zeros(one.shape),
        )
    )()
    if chance.random() < 0.1:
        del arrays[name]
    out = io.BytesIO()
    if chance.random() < 0.1:  # more is promised than there is, or any machine has
        with zipfile.ZipFile(out, "w") as archive:
            for key, one in arrays.items():
                with archive.open(f"{key}.npy", "w") as file:
                    shape = (2**40, *one.shape) if key == name else one.shape
                    about = {"descr": "<f8", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, about)
                    file.write(one.tobytes())
    else:
        np.savez(out, **arrays)
    return out.getvalue()


def _gz(chance: random.Random, data: bytes) -> bytes:
    """Compressed still, of damaged content."""
    return gzip.compress(damaged(chance, gzip.decompress(data), "content.txt"))


def _db(chance: random.Random, data: bytes) -> bytes:
    """A database still, of wrong values: one column of one row, or of all."""
    with sqlite3.connect(":memory:") as db:
        db.deserialize(data)
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = chance.choice(tables)
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        column = chance.choice(columns)
        value: Any = chance.choice(
            (None, -1, 2**62, 1e300, "x", "nan", "", "[" * 5000, b"\0" * 9, chance.randbytes(50))
        )
        where = "" if chance.random() < 0.3 else " WHERE rowid = (SELECT min(rowid) FROM " + table + ")"
        how = chance.random()
        if how < 0.1:
            db.execute(f"DELETE FROM {table}{where}")
        elif how < 0.15:
            db.execute(f"DROP TABLE {table}")
        else:
            db.execute(f"UPDATE OR IGNORE {table} SET {column} = ?{where}", (value,))
        db.commit()
        return db.serialize()


_BYTES = (_flip, _cut, _without, _noise)
_TEXT = (
    _replaced(rb"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", NUMBERS),
    _replaced(rb"[A-Za-z_]{2,}", WORDS),
    _replaced(rb"[\"'][^\"'\n]*[\"']", (*WORDS, "3", "[]", "true")),
    _lines,
    _deep,
)
_STRUCTURED = {".json": _json, ".toml": _toml, ".npz": _npz, ".db": _db, ".gz": _gz, "status.json": _json}


def damage(chance: random.Random, file: Path, whole: bytes) -> None:
    """Write the file anew, damaged."""
    file.write_bytes(damaged(chance, whole, file.name))
