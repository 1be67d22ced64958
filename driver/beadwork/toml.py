"""TOML files: read on every Python, and made into the dataclasses that say what may stand in them."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from beadwork.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["build", "names", "read", "tomllib"]


def read(path: Path) -> dict[str, Any]:
    """Read a file. Raises ConfigError for one that is not there, or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def names(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same table with `_` for each `-` in its keys: options are typed with dashes, and fields have none.

    Raises ConfigError for a key that stands there in both spellings.
    """
    told: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name in told:
            raise ConfigError(f"{where} sets {name} in both spellings, with - and with _; keep one of them")
        told[name] = value
    return told


def build(
    make: Callable[..., Any], given: Mapping[str, Any], here: Path, where: str, told: Mapping[str, Any] | None = None
) -> Any:
    """Make a dataclass of a table of TOML: names and types are checked, tables become the dataclasses that they name.

    Names are taken with dashes and with underscores. A field of type Path counts from `here`. told: fields that are
    the caller's to set, and none of the table's. Raises ConfigError.
    """
    told = told or {}
    known = {f.name: f for f in fields(make) if f.name not in told}  # type: ignore[arg-type]
    hints = typing.get_type_hints(make)
    given = names(given, where)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"{where} sets {', '.join(unknown)}, which is no option; known are {', '.join(known)}")
    missing = [
        name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING and name not in given
    ]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    fitted = {name: _fitted(value, hints[name], here, f"{where}: {name}") for name, value in given.items()}
    return make(**fitted, **told)


def _fitted(value: Any, hint: Any, here: Path, where: str) -> Any:
    """The value as its field wants it."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        kind = typing.get_origin(option) or option
        if is_dataclass(kind) and isinstance(value, dict):
            return build(typing.cast(Callable[..., Any], kind), value, here, where)
        if kind is Path and isinstance(value, str):
            return here / Path(value).expanduser()
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if kind in (str, int, float, bool) and type(value) is kind:
            return value
        if kind is Sequence and isinstance(value, list):
            return tuple(value)
        if kind is Mapping and isinstance(value, dict):
            return value
    names = " or ".join(getattr(typing.get_origin(o) or o, "__name__", str(o)) for o in options if o is not type(None))
    raise ConfigError(f"{where} is {value!r}; it wants {names}")
