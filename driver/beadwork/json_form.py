"""What `--json` prints: one object for a command, whose keys are declared once, with their meaning.

    @dataclass(frozen=True)
    class Plan(Form):
        \"\"\"`beadwork plan --json`: what a simulation will take.\"\"\"

        KIND = "plan"
        seconds_per_step: Annotated[float | None, "s; null where it was not measured"]

    print(as_json(Plan(0.2)))

The types give the JSON schema (`schema`), the texts the page docs/json.md. Each object begins with `kind` and
`version`. Within a version keys may be added; none is taken away, renamed, or given another meaning or unit.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from beadwork.errors import BeadworkError
from beadwork.signals import Interrupted

_SIMPLE: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


class Part:
    """Base of the objects inside a form: a frozen dataclass, every field `Annotated` with its text."""


class Form(Part):
    """Base of what a command prints. KIND: its name, VERSION: raised where a key is lost or changes its meaning."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1


@dataclass(frozen=True)
class Failure(Form):
    """What any command prints with `--json` in place of its object where it ends with an error. Its exit code is that
    of the error, and the sentence is on stderr too, as without `--json`. A finding (a red one of the doctor, a run that
    has ended) is no error of the command: there its own object is printed, whatever the exit code.
    """

    KIND = "error"
    error: Annotated[str, "the class of the error, as docs/exit-codes.md lists them; `Interrupted` for a signal"]
    exit_code: Annotated[int, "with which the command ends"]
    what: Annotated[str, "what is wrong, in words that no script should read"]
    remedy: Annotated[str, "what to do about it, in words; empty where `what` says all"]


def failure(error: BeadworkError | Interrupted) -> Failure:
    """An error as an object."""
    if isinstance(error, BeadworkError):
        return Failure(type(error).__name__, error.exit_code, error.what, error.remedy)
    return Failure("Interrupted", error.exit_code, str(error), "")


def as_json(form: Form, *, line: bool = False) -> str:
    """The object as text, in ASCII; NaN and infinity are null. line: without a line break, one of many in a stream."""
    # first, so that a script knows what it has before it reads on
    data = {"kind": form.KIND, "version": form.VERSION, **_plain(form)}
    return json.dumps(data, indent=None if line else 1, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        # NumPy's numbers are none to `json`
        value = value.item()
    # JSON has no NaN, and many readers refuse the one that Python would write
    return None if isinstance(value, float) and not math.isfinite(value) else value


def keys(of: type[Part]) -> Iterator[tuple[str, Any, str]]:
    """Each key of a form with its type and its text."""
    hints = typing.get_type_hints(of, include_extras=True)
    for field in dataclasses.fields(of):  # type: ignore[arg-type]
        # a field without a text fails here, in the tests of the page
        kind, text = typing.get_args(hints[field.name])
        yield field.name, kind, text


def parts(of: type[Part]) -> list[type[Part]]:
    """The objects inside a form, in the order in which they first occur."""
    found: list[type[Part]] = []

    def look(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, Part) and kind not in found:
            found.append(kind)
            for _, inner, _ in keys(kind):
                look(inner)
        for inner in typing.get_args(kind):
            look(inner)

    for _, kind, _ in keys(of):
        look(kind)
    return found


def schema(form: type[Form]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a form. A key that it does not name is one of a later beadwork."""
    # constants: an object of another kind or version is refused by the schema
    head = {"kind": {"const": form.KIND}, "version": {"const": form.VERSION}}
    body = _object(form)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"beadwork {form.KIND} {form.VERSION}",
        **body,
        "properties": {**head, **body["properties"]},
        "required": [*head, *body["required"]],
    }


def _object(of: type[Part]) -> dict[str, Any]:
    # all keys are required: what is not known is null and not absent
    properties = {name: {**_schema_of(kind), "description": text} for name, kind, text in keys(of)}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _schema_of(kind: Any) -> dict[str, Any]:
    if kind is Any:
        return {}
    if kind in _SIMPLE:
        return {"type": _SIMPLE[kind]}
    if isinstance(kind, type) and issubclass(kind, Part):
        return _object(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema_of(one) for one in inner]}
    if origin is list:
        return {"type": "array", "items": _schema_of(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(inner[1])}
    raise TypeError(f"{kind} has no JSON schema")  # a fault of the class that declares it


def words_of(kind: Any) -> str:
    """A type in words, for the page."""
    if kind is Any:
        return "any"
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if isinstance(kind, type):
        return kind.__name__
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(f'"{one}"' for one in inner)
    if origin is list:
        return f"array of {words_of(inner[0])}"
    if origin is dict:
        return f"object of {words_of(inner[1])}"
    return " or ".join(words_of(one) for one in inner)
