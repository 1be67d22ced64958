"""A setting is declared once, and whoever names it takes it from there."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest

from beadwork.config import GROUPS, ServeConfig
from beadwork.errors import ConfigError
from beadwork.label.clusters import Cut
from beadwork.label.codes.command import Pattern
from beadwork.label.jobs import Jobs, Slurm
from beadwork.label.spec import LABELLERS, Spec
from beadwork.loop.loop import Loop
from beadwork.settings import NOT_NEGATIVE, Declared, at_least, check, declared, meant, setting
from beadwork.toml import build, fit
from beadwork.train.settings import TrainSettings

CLASSES = [*GROUPS, TrainSettings, Spec, Cut, Jobs, Slurm, Loop, Pattern, *(make for make, _ in LABELLERS.values())]
PAGES = Path(__file__).parents[1] / "docs"


def kinds(entry: Declared) -> set[type]:
    """All types that a setting's values, or what they hold, may be of."""
    found, left = set(), [entry.kind]
    while left:
        kind = left.pop()
        inside = typing.get_args(kind)
        left += inside
        found |= set() if inside else {kind}
    return found


@pytest.mark.parametrize("of", CLASSES, ids=lambda of: of.__name__)
def test_every_setting_says_what_it_is(of: type) -> None:
    """Each field is a setting (but two of Spec, which are the caller's) with a text and, where it holds numbers that
    measure something, a unit; a setting that is no number has none."""
    known = {entry.name: entry for entry in declared(of)}
    assert {field.name for field in dataclasses.fields(of)} - set(known) == (
        {"settings", "here"} if of is Spec else set()
    )
    for entry in known.values():
        assert entry.setting.text.strip(), entry.name
        assert (entry.setting.unit is not None) == bool(kinds(entry) & {int, float} and entry.name != "metrics") or (
            entry.name == "walltime"  # a text, in hours
        ), entry.name


def test_a_server_has_the_settings_of_its_groups() -> None:
    """No group is left out of ServeConfig or of the help, and no setting stands in two."""
    names = [entry.name for group in GROUPS for entry in declared(group)]
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(ServeConfig))


@pytest.mark.parametrize("of", CLASSES, ids=lambda of: of.__name__)
def test_pages_have_the_declared_text(of: type) -> None:
    """docs/configuration.md and docs/labellers.md have a row for every setting, with its text and its unit."""
    page = (PAGES / "configuration.md").read_text() + (PAGES / "labellers.md").read_text()
    for entry in declared(of):
        rows = [line for line in page.splitlines() if line.startswith(f"| {entry.key} |")]
        assert any(f"| {entry.setting.unit or ''} | {entry.setting.text}" in row for row in rows), entry.key


@dataclasses.dataclass(frozen=True)
class Inner:
    """A table within another."""

    depth: int = setting(1, "how deep", "m", rule=at_least(1))


@dataclasses.dataclass(frozen=True)
class Example:
    """One setting of every kind."""

    steps: int = setting(10, "steps", "steps", rule=NOT_NEGATIVE)
    width: float | None = setting(None, "width", "Å")
    words: list[str] = setting([], "words")
    parts: list[str] = setting([], "parts", commas=True)
    marks: list[float] = setting([], "marks", "eV")
    files: list[str] = setting([], "files", path=True)
    folder: Path = setting(Path(), "folder")
    where: str | int | None = setting(None, "where")
    inner: Inner = setting(Inner(), "inner")
    on: bool = setting(True, "on", negation="not-on")


def test_values_as_they_may_be_written() -> None:
    """A whole number for a number, one text for a list of them, paths from the file's folder."""
    given = {"steps": 3, "width": 2, "words": "one", "parts": "a,b", "marks": [1, 2.5], "files": "x", "folder": "y"}
    made = build(Example, {**given, "inner": {"depth": 2}}, Path("/here"), "a file")
    assert made == Example(3, 2.0, ["one"], ["a", "b"], [1.0, 2.5], ["/here/x"], Path("/here/y"), None, Inner(2))
    assert fit(Example, {"files": ["~/x", "sqlite://y"]}, Path("/here"), "f")["files"] == [
        str(Path("~/x").expanduser()),
        "sqlite://y",
    ]
    made = Example()
    made.words.append("of this one alone")
    assert Example().words == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps", True, "a file: steps is True; it wants a whole number"),
        ("steps", 1.0, "a file: steps is 1.0; it wants a whole number"),
        ("width", "1", "a file: width is '1'; it wants a number"),
        ("words", [1], r"a file: words is \[1\]; it wants a text, or several in a list"),
        ("marks", 1.0, "a file: marks is 1.0; it wants a list of numbers"),
        ("marks", [True], r"a file: marks is \[True\]; it wants a list of numbers"),
        ("where", True, "a file: where is True; it wants a text or a whole number"),
        ("folder", 1, "a file: folder is 1; it wants a path"),
        ("inner", 1, "a file: inner is 1; it wants a table"),
        ("inner", {"dept": 1}, "a file: inner sets 'dept', which is no option; did you mean depth?"),
        ("inner", {"depth": "1"}, "a file: inner: depth is '1'; it wants a whole number"),
        ("not_on", True, "a file sets not-on, as it is typed; in a file it is on = false"),
        ("not-on", False, "a file sets not-on, as it is typed; in a file it is on = true"),
        ("stepps", 1, "a file sets 'stepps', which is no option; did you mean steps?"),
        ("colour", 1, "a file sets 'colour', which is no option; known are steps, width, words, parts, marks, .*, on$"),
    ],
)
def test_a_slip_is_named(name: str, value: object, said: str) -> None:
    """Every wrong kind and name has its sentence, in whichever file it stands."""
    with pytest.raises(ConfigError, match=f"^{said.replace('?', '[?]')}$"):
        build(Example, {name: value}, Path(), "a file")


@dataclasses.dataclass(frozen=True)
class Limited:
    """Settings with limits."""

    steps: float = setting(10.0, "steps", "steps", rule=NOT_NEGATIVE)
    what: str = setting("a", "what", choices=("a", "b"))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Limited(steps=-1), "steps is -1; it cannot be negative"),
        (Limited(steps=float("nan")), "steps is nan; it cannot be negative"),
        (Limited(what="c"), "what is 'c'; choose from a, b"),
    ],
)
def test_a_value_out_of_its_limits(made: Limited, said: str) -> None:
    """The declared rule and choices are what a value is held to."""
    with pytest.raises(ConfigError, match=f"^{said}$"):
        check(made)


def test_what_was_meant() -> None:
    """The nearest name, or all of them where none is near."""
    assert meant("pateince", ["patience", "silence"]) == "did you mean patience?"
    assert meant("x", ["patience", "silence"]) == "known are patience, silence"
