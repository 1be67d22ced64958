"""A setting is declared once: its text, unit, choices and limits stand in the class that holds it.

    cooldown: int = setting(10, "between two kept frames; 0 keeps all", "steps", rule=NOT_NEGATIVE)

From there TOML files (`toml.fit`), the command line (cli.py), the reference pages (docs/make.py) and messages take it.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

from beadwork.errors import ConfigError

T = TypeVar("T")
#: kinds in words, of one value and of several
WORDS: dict[type, tuple[str, str]] = {
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
    float: ("a number", "numbers"),
    int: ("a whole number", "whole numbers"),
    bool: ("true or false", "true or false"),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be beyond its type. holds: of the value. wants: what a message says that it wants."""

    holds: Callable[[Any], bool]
    wants: str


def at_least(number: float) -> Rule:
    """This or more; a value that is not a number (NaN) is refused."""
    return Rule(lambda value: value >= number, f"it must be at least {number}")


NOT_NEGATIVE = Rule(lambda value: value >= 0, "it cannot be negative")
POSITIVE = Rule(lambda value: value > 0, "it must be positive")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a user is told of one setting, and what it may be."""

    text: str  #: one line, without unit and default
    unit: str | None = None  #: of a number; "" of one without a dimension; None of what is no number
    choices: tuple[str, ...] = ()  #: all that it may be
    rule: Rule | None = None  #: for whatever is given; not asked about None
    unset: str = ""  #: what holds where it is not set, of a default that says nothing itself
    metavar: str | None = None  #: what stands for the value in the help of the command line
    path: bool = False  #: texts that name files or folders: in a TOML file, relative to its folder
    commas: bool = False  #: a list that may be typed as one text, with commas between its parts
    negation: str = ""  #: how the option is called that sets it to false, where it is true by default

    @property
    def choice(self) -> str:
        """The choices in brackets, where the text does not name them."""
        told = all(choice in self.text for choice in self.choices)
        return "" if told else f" ({', '.join(self.choices)})"


class Options:
    """A class of settings that are typed on the command line too: pages and messages spell them with dashes."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A setting with the field that holds it, `name`. key: as pages and messages spell it.

    kind: the field's type. value: its default, MISSING where it must be given.
    """

    name: str
    key: str
    kind: Any
    value: Any
    setting: Setting

    @property
    def shown(self) -> str:
        """The default as a user is told of it; "" where there is nothing to tell, or it must be given."""
        if self.setting.unset or self.value is MISSING or self.value in (None, "", [], {}):
            return self.setting.unset
        # as TOML writes it
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value)


def setting(default: T, text: str, unit: str | None = None, **more: Any) -> T:
    """A field of a class of settings, with its default; a list or a table is copied. more: those of `Setting`."""
    # in the metadata of a field: the class stays an ordinary dataclass, which can be made without a file
    told = required(text, unit, **more)
    # a dataclass refuses a default that its instances would share
    if isinstance(default, (list, dict)):
        # typed as its default, so that mypy sees a field of that type and not a Field
        return typing.cast(T, dataclasses.field(default_factory=default.copy, metadata=told))
    return dataclasses.field(default=default, metadata=told)


def required(text: str, unit: str | None = None, **more: Any) -> dict[str, Setting]:
    """Of a setting that must be given: `theory: str = field(metadata=required("level of theory"))`."""
    return {"setting": Setting(text, unit, **more)}


def declared(of: Callable[..., Any]) -> list[Declared]:
    """The settings of a class, in its order. Other fields are none of the user's."""
    # annotations are texts here (from __future__), and a type is wanted
    kinds = typing.get_type_hints(of)
    # settings that stand only in files (a labeller's, train.toml) keep their underscores
    dashes = isinstance(of, type) and issubclass(of, Options)
    return [
        Declared(
            entry.name,
            entry.name.replace("_", "-") if dashes else entry.name,
            kinds[entry.name],
            entry.default if entry.default_factory is MISSING else entry.default_factory(),
            entry.metadata["setting"],
        )
        for entry in dataclasses.fields(of)  # type: ignore[arg-type]
        # a field without one is the caller's to set, such as the folder in which a file lies
        if "setting" in entry.metadata
    ]


def title(of: type) -> str:
    """What a group of settings is called: the first line of its class's docstring, without the full stop."""
    return (of.__doc__ or "").splitlines()[0].rstrip(".")


def check(settings: Any) -> None:
    """Hold every setting to its choices and its rule. Raises ConfigError for the first that breaks them."""
    for entry in declared(type(settings)):
        value = getattr(settings, entry.name)
        # not set: what holds then says the setting's `unset`
        if value is None:
            continue
        setting = entry.setting
        if setting.choices:
            one_of(entry.key, value, setting.choices)
        if setting.rule is not None and not setting.rule.holds(value):
            raise ConfigError(f"{entry.key} is {value}", setting.rule.wants)


def one_of(name: str, got: str, choices: Iterable[str]) -> None:
    """Raise ConfigError where `got` is none of the choices."""
    if got not in choices:
        raise ConfigError(f"{name} is {got!r}", f"choose from {', '.join(choices)}")


def meant(got: str, known: Iterable[str]) -> str:
    """What to say of a name that nobody knows: the known one that is nearest to it, or else all of them."""
    known = list(known)
    # 0.7: a slip or two; with less, any name resembles some other
    near = difflib.get_close_matches(got, known, 1, 0.7)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
