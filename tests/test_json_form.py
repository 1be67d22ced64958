"""The objects of --json: strict JSON, held to their schemas, errors among them, and keys that stay."""

from __future__ import annotations

import importlib.util
import json
import typing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from beadwork import json_form
from beadwork.cli import _parser, main
from beadwork.errors import ConfigError, QueueError
from beadwork.harvest.queue import Queue
from beadwork.json_form import Form, Part, as_json, keys, parts, schema
from support.json_forms import checked as held
from support.json_forms import closed
from support.queues import kept, water

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Inner(Part):
    at: Annotated[str | None, "a place"]


@dataclass(frozen=True)
class Outer(Form):
    KIND = "outer"
    numbers: Annotated[list[float | None], "some"]
    inner: Annotated[dict[str, Inner], "by name"]
    word: Annotated[Literal["a", "b"], "one of two"]


def test_what_python_has_and_json_has_not() -> None:
    """Arrays and NumPy's numbers become plain, NaN and infinity null; what breaks the schema is noticed."""
    form = Outer([np.float64(1.5), float("nan"), -np.inf], {"x": Inner("a/b"), "y": Inner(None)}, "b")  # type: ignore[list-item]
    data = json.loads(as_json(form), parse_constant=pytest.fail)
    assert data == {
        "kind": "outer",
        "version": 1,
        "numbers": [1.5, None, None],
        "inner": {"x": {"at": "a/b"}, "y": {"at": None}},
        "word": "b",
    }
    assert json.loads(as_json(replace(form, numbers=np.array([[1.0, np.nan]]))))["numbers"] == [[1.0, None]]  # type: ignore[arg-type]
    assert "\n" not in as_json(form, line=True)
    judge = Draft202012Validator(closed(schema(Outer)))
    assert judge.is_valid(data)
    for broken in ({"word": "c"}, {"numbers": ["1"]}, {"version": 2}, {"more": 1}):
        assert not judge.is_valid(data | broken)
    assert not judge.is_valid({key: value for key, value in data.items() if key != "word"})


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """Three waters, one added by hand, one claimed, one of a single Δ."""
    made = Queue(tmp_path / "queue.db", create=True)
    ion = replace(water(2), charge=1, spin=2)
    by_hand = replace(kept(ion, 2), models=(), force_spread=np.full(3, np.nan), energy_spread=float("nan"))
    made.add_all([kept(water(0), 0), replace(kept(water(1), 1), novelty={"delta": np.array([0.5, 2.5, 1.0])}), by_hand])
    made.claim("ann", 60)
    return tmp_path / "queue.db"


def test_a_queue_as_objects(queue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list has what the table has, in numbers; one frame has its structure and its arrays too."""
    assert main(["queue", "list", str(queue), "--json"]) == 0
    found = held(capsys.readouterr().out, "queue-list")
    assert found["counts"] == {"claimed": 1, "waiting": 2}
    first, second, third = found["frames"]
    assert (first["formula"], first["status"], first["attempts"]) == ("H2O", "claimed", 1)
    assert first["force_spread"] == kept(water(0), 0).max_force_spread
    assert (second["novelty"], second["novelty_atom"], second["new_to"]) == (2.5, 1, "delta")
    assert (third["force_spread"], third["kept_for"]) == (None, [])
    assert (first["charge"], first["spin"], third["charge"], third["spin"]) == (None, None, 1, 2)
    assert main(["queue", "list", str(queue), "--json", "--status", "failed"]) == 0
    assert held(capsys.readouterr().out, "queue-list")["frames"] == []
    assert main(["queue", "show", str(queue), "2", "--json"]) == 0
    found = held(capsys.readouterr().out, "queue-show")
    assert found["frame"] == second
    assert found["positions"] == water(1).positions.tolist()
    assert found["novelties"] == {"delta": [0.5, 2.5, 1.0]}
    Queue(queue).finish(1, "ann", {"energy": -1.5, "forces": np.zeros((3, 3)), "extra": {"cycles": 3}})
    assert main(["queue", "show", str(queue), "1", "--json"]) == 0
    label = held(capsys.readouterr().out, "queue-show")["label"]
    assert (label["energy"], label["forces"][2], label["extra"]) == (-1.5, [0, 0, 0], {"cycles": 3})


def test_an_error_is_an_object_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of ours, a path that Python refuses and a slip on the command line: class and code on stdout, where a script
    reads, the sentence on stderr as ever, the exit code as ever; without --json nothing is on stdout."""
    absent = tmp_path / "absent.db"
    for words, kind, code in (
        (["queue", "list", str(absent)], QueueError, 9),
        (["queue", "show", str(absent), "one"], ConfigError, 2),
        (["status", str(tmp_path)], ConfigError, 2),
        (["status", str(tmp_path), "--watch", "0"], ConfigError, 2),
        (["status", "x" * 5000], ConfigError, 2),
        (["status", str(tmp_path), "--wacht"], ConfigError, 2),
        (["validate", str(tmp_path / "none")], None, None),
        (["doctor", str(tmp_path / "no.xml"), "--delta"], ConfigError, 2),
        (["bench", str(tmp_path / "no.xml"), "--baseline", "x"], None, 3),
    ):
        codes = []
        for more in ([], ["--json"]):
            try:
                codes.append(main([*words, *more]))
            except SystemExit as end:
                codes.append(end.code)  # type: ignore[arg-type]
        out, err = capsys.readouterr()
        found = held(out, "error")
        assert codes == [found["exit_code"]] * 2
        assert code in (None, found["exit_code"])
        assert kind is None or found["error"] == kind.__name__
        assert found["what"] in err


def forms() -> list[type[Form]]:
    """All that docs/make.py describes."""
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.FORMS)


def promised(form: type[Form]) -> list[str]:
    """A line for each key of a form and of the objects inside: what may not change within its version."""
    lines = []
    for of in (form, *parts(form)):
        where = form.KIND if of is form else f"{form.KIND} {of.__name__}"
        lines += [f"{where}: {name}: {json_form.words_of(kind)}" for name, kind, _ in keys(of)]
    return lines


def test_a_key_stays_what_it_was() -> None:
    """tests/promised_keys.txt has every key that was released, by version. One that goes or changes its type needs a
    new version of its form; a new key is added to the file."""
    kept = (ROOT / "tests" / "promised_keys.txt").read_text().splitlines()
    now = [f"{form.KIND} {form.VERSION} | {line}" for form in forms() for line in promised(form)]
    versions = {f"{form.KIND} {form.VERSION}" for form in forms()}
    assert sorted(line for line in kept if line.split(" | ")[0] in versions) == sorted(now)


def test_every_command_with_json_is_described() -> None:
    """Each command that has the option prints one of the forms that the page describes, and each has a command."""

    def leaves(parser: Any) -> list[Any]:
        if parser._subparsers is None:
            return [parser]
        inner = [one for action in parser._subparsers._group_actions for one in action.choices.values()]
        return [leaf for one in inner for leaf in leaves(one)]

    having = {
        leaf.prog.removeprefix("beadwork ") for leaf in leaves(_parser()) if "--json" in leaf._option_string_actions
    }
    described = {form.KIND.replace("-", " ") for form in forms()} - {"error"}
    assert having == described
    for form in forms():
        for of in (form, *parts(form)):
            assert all(text for _, _, text in keys(of)), of
            assert not typing.get_type_hints(of).keys() - {name for name, _, _ in keys(of)} - {"KIND", "VERSION"}
