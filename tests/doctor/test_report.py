"""The whole visit: every part is looked at, and what is red stops what needs it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from beadwork.cli import main
from beadwork.doctor import machine
from beadwork.doctor.finding import AMBER, GREEN, RED, Finding
from beadwork.doctor.report import doctor, examine
from beadwork.errors import ModelError, SimulationError
from support.doctor import MODELS, WATER, config, only
from support.doctor import input_writer as input_writer
from support.json_forms import checked as held


def test_the_shipped_models_are_well(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Baseline, two Δ models and the shipped water, everything looked at: all green, exit code 0, plain words."""
    monkeypatch.setattr(machine, "BUSY_FRACTION", 0.0)  # what else runs here is no matter
    path = write(address="well")
    options = ["--baseline", MODELS / "baseline", "--delta", MODELS / "delta-0", MODELS / "delta-1", "--alpha", "1"]
    code = main(["doctor", str(path), *map(str, options), "--keep-force", "0.01", "0.5"])
    said = capsys.readouterr().out
    lines = said.splitlines()
    seen = {line.split()[1]: line.split()[0] for line in lines[:-1]}
    topics = "input cell distances periodicity cutoff elements time memory models spread novelty forces virial engines"
    assert seen == dict.fromkeys([*topics.split(), "precision", "i-PI", "address", "disk"], GREEN)
    assert lines[-1] == f"{len(lines) - 1} green, 0 amber, 0 red: it can be started"
    assert code == 0
    assert "\033" not in said
    assert "H64O32, 2 beads" in said
    # 9.86 Å and 32 waters of 18.015 dalton
    assert float(re.search(r"([\d.]+) g/cm3", said)[1]) == pytest.approx(0.998, abs=0.003)  # type: ignore[index]
    assert "native agrees with torchscript for 3 models" in said
    assert "the spread is that of Δ alone: the baseline's error against its own reference is not in it" in said


def test_a_refusal_of_the_server_is_the_doctors_too(write: Callable[..., Path], tmp_path: Path) -> None:
    """An element that no model knows is red with ModelError's code, and the rest is looked at all the same."""
    path = write(start=WATER.replace("O ", "N ", 1))
    found = list(examine(config(path)))
    models_found = only(found, "models")
    assert (models_found.colour, models_found.code) == (RED, ModelError.exit_code)
    assert "has N (atomic number 7)" in models_found.text
    assert models_found.remedy.startswith("use models trained with N")
    assert {"i-PI", "address", "disk"} <= {finding.topic for finding in found}
    assert doctor(config(path)) == ModelError.exit_code


def test_no_input_is_all_there_is_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not there: SimulationError's code, and no traceback."""
    assert main(["doctor", str(tmp_path / "no.xml"), "--baseline", "x"]) == SimulationError.exit_code
    said = capsys.readouterr().out.splitlines()
    assert main(["doctor", str(tmp_path / "no.xml"), "--baseline", "x", "--json"]) == SimulationError.exit_code
    found = held(capsys.readouterr().out, "doctor")
    assert found["counts"] == {"green": 0, "amber": 0, "red": 1}
    assert [one["exit_code"] for one in found["findings"]] == [SimulationError.exit_code] == [found["exit_code"]]
    assert found["findings"][0]["told"] in said[0]
    assert said[0].startswith("red    input       cannot read the i-PI input")
    assert said[-1] == "0 green, 0 amber, 1 red: do not start it like this"


def test_damaged_models_are_red(write: Callable[..., Path], tmp_path: Path) -> None:
    """A truncated model file: the hash in its card says so."""
    bundle = tmp_path / "damaged"
    shutil.copytree(MODELS / "baseline", bundle)
    os.truncate(bundle / "model.pt", 1000)
    found = only(list(examine(config(write(), baseline=str(bundle)))), "models")
    assert (found.colour, found.code) == (RED, ModelError.exit_code)
    assert "truncated or changed" in found.text


def test_colours_on_a_terminal_alone() -> None:
    """Colours are for terminals; files get the word, and a remedy stands below its finding."""
    from beadwork.doctor.report import line

    finding = Finding(AMBER, "i-PI", "it is slow", "set this")
    assert line(finding, False) == "amber  i-PI        it is slow\n                   -> set this"
    assert line(finding, True).startswith("\033[33mamber ")
    long = replace(finding, text="word " * 30)
    folded = line(long, width=60).splitlines()
    assert max(map(len, folded)) <= 60
    assert " ".join(" ".join(folded).split()) == " ".join(line(long).split())
