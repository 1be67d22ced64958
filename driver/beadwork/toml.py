"""TOML files: read on every Python, and made into the dataclasses that say what may stand in them."""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Any

from beadwork.errors import ConfigError
from beadwork.settings import WORDS, Declared, declared, meant

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["build", "fit", "names", "read_toml", "tomllib"]


def read_toml(path: Path) -> dict[str, Any]:
    """Read a file. Raises ConfigError for one that is not there, or no TOML."""
    try:
        # TOML is UTF-8 whatever the locale is, and read_text would take the locale's encoding
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "name a TOML file that is there") from error
    except ValueError as error:  # one of Python's own: an integer of thousands of digits
        raise ConfigError(f"cannot read {path}: {error}") from error


def names(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The same table with `_` for each `-` in its keys: options are typed with dashes, and fields have none.

    Raises ConfigError for a key that stands there in both spellings.
    """
    told: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        # one of the two would win without a word
        if name in told:
            raise ConfigError(f"{where} sets {name} in both spellings, with - and with _", "keep one of them")
        told[name] = value
    return told


def fit(make: Callable[..., Any], given: Mapping[str, Any], here: Path, where: str) -> dict[str, Any]:
    """What a table of TOML sets of a class of settings, by field, each value as its field wants it.

    Names are taken with dashes and with underscores. Paths count from `here`; tables become the dataclasses that the
    fields name. where: the table, for messages. Raises ConfigError.
    """
    known = {entry.name: entry for entry in declared(make)}
    fitted = {}
    for name, value in names(given, where).items():
        entry = known.get(name)
        if entry is None:
            raise _unknown(name, value, where, list(known.values()))
        try:
            fitted[name] = _fitted(value, entry, entry.kind, here, f"{where}: {entry.key}")
        except _Unfit:
            raise ConfigError(f"{where}: {entry.key} is {value!r}", f"it wants {_wanted(entry)}") from None
    return fitted


def build(
    make: Callable[..., Any], given: Mapping[str, Any], here: Path, where: str, told: Mapping[str, Any] | None = None
) -> Any:
    """Make a class of settings of a table of TOML, as `fit` reads it.

    told: fields that are the caller's to set, and none of the table's. Raises ConfigError.
    """
    fitted = fit(make, given, here, where)
    told = told or {}
    # before the class is made, whose TypeError would name Python arguments
    missing = [e.name for e in declared(make) if e.value is MISSING and e.name not in fitted and e.name not in told]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    try:
        return make(**fitted, **told)
    except ConfigError as error:  # a rule of the class's own, which knows no file
        raise ConfigError(f"{where}: {error.what}", error.remedy) from error


def _unknown(name: str, value: Any, where: str, known: Sequence[Declared]) -> ConfigError:
    """What to say of a name that is no setting."""
    for entry in known:
        # `--not-periodic` is the option as it is typed; the setting has the word for what is true
        if entry.setting.negation.replace("-", "_") == name:
            turned = "true" if value is False else "false"
            return ConfigError(
                f"{where} sets {entry.setting.negation}, as it is typed", f"in a file it is {entry.key} = {turned}"
            )
    # spelled as the settings of this class are, whatever the user has typed
    key = name.replace("_", "-") if any("-" in entry.key for entry in known) else name
    return ConfigError(f"{where} sets {key!r}, which is no option", meant(key, [entry.key for entry in known]))


class _Unfit(Exception):
    """A value is not of the kind that its field wants."""


def _fitted(value: Any, entry: Declared, kind: Any, here: Path, where: str) -> Any:
    """The value as a field of this kind wants it. Raises _Unfit."""
    inside = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        for option in inside:
            # the first kind that fits: `str | int` takes a port with quotes and without
            with suppress(_Unfit):
                return _fitted(value, entry, option, here, where)
        raise _Unfit
    origin = typing.get_origin(kind) or kind
    if origin in (list, Sequence):
        several = [_fitted(part, entry, inside[0], here, where) for part in _parts(value, entry, kind)]
        return several if origin is list else tuple(several)
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _fitted(part, entry, inside[1], here, where) for key, part in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        return build(typing.cast(Callable[..., Any], kind), value, here, where)
    return _single(value, entry, kind, here)


def _parts(value: Any, entry: Declared, kind: Any) -> list[Any]:
    """The parts of a list. Raises _Unfit."""
    if isinstance(value, str) and kind == list[str]:  # one stands for itself
        return value.split(",") if entry.setting.commas else [value]
    if not isinstance(value, list):
        raise _Unfit
    return value


def _single(value: Any, entry: Declared, kind: Any, here: Path) -> Any:
    """The same of a value that is no list and no table. Raises _Unfit."""
    if kind is Any or (kind is type(None) and value is None):
        return value
    if kind is Path and isinstance(value, str):
        return _path(value, here)
    # 0 for 0.0 is no slip; true is one, though it is an int to Python
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # the URL of a queue has ://, and is no path
    if kind is str and isinstance(value, str) and entry.setting.path and value and "://" not in value:
        return str(_path(value, here))
    # the exact type: True is an int to Python, and `threads = true` is a slip
    if kind in (str, int, float, bool) and type(value) is kind:
        return value
    raise _Unfit


def _path(text: str, here: Path) -> Path:
    """A path as a shell takes it: ~ and ~user are homes, and ~data of no user's is a name like others."""
    try:
        return here / Path(text).expanduser()
    except RuntimeError:  # there is no such user
        return here / text


def _wanted(entry: Declared) -> str:
    """The kinds of value that a setting takes, in words."""
    kinds = typing.get_args(entry.kind) if isinstance(entry.kind, types.UnionType) else (entry.kind,)
    return " or ".join(_worded(kind) for kind in kinds if kind is not type(None))


def _worded(kind: Any) -> str:
    origin, inside = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is list and inside == (str,):
        return "a text, or several in a list"
    if origin in (list, Sequence):
        return f"a list of {WORDS[inside[0]][1]}"
    if origin in (dict, Mapping):
        return f"a table of {WORDS[inside[1]][1]}" if inside[1] in WORDS else "a table"
    return "a table" if is_dataclass(kind) else WORDS[kind][0]
