"""What the README tells a newcomer to type is what works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import ase.io
import numpy as np
import pytest

from beadwork import cli
from beadwork.frame import Frame
from beadwork.harvest.queue import Queue
from beadwork.harvest.row import KeptFrame
from beadwork.ipi.advice import advice
from beadwork.ipi.simulation import read_simulation

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The few lines from Python, as they stand, on the shipped models and two frames where the demonstration's lie."""
    block = re.search(r"## From Python\n\n((?:    .*\n)+)", README)
    assert block is not None
    lines = [line[4:] for line in block[1].splitlines()]
    water = ase.io.read(ROOT / "inputs" / "water" / "init.xyz")
    water.set_cell([9.86, 9.86, 9.86])
    water.set_pbc(True)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "models").symlink_to(ROOT / "models")
    ase.io.write(tmp_path / "demo" / "frames.xyz", [water, water], format="extxyz")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    answer = names["answer"]
    assert answer.energies.shape == (2,)  # type: ignore[attr-defined]
    assert answer.force_spread.shape == (2 * 96,)  # type: ignore[attr-defined]
    assert names["frames"][0].get_potential_energy() == pytest.approx(answer.energies[0], abs=1e-9)  # type: ignore[attr-defined]
    # the mean of the frames that were trained on: -469.205 eV a molecule, and -0.170 eV of D3
    assert np.allclose(answer.energies / 32, -469.375, atol=0.3)  # type: ignore[attr-defined]


def code() -> list[str]:
    """Every line of the README's blocks of code, without what stands behind a #."""
    lines = [line[4:] for line in README.splitlines() if line.startswith("    ")]
    return [re.sub(r"(^|\s)#\s.*", "", line).strip() for line in lines]


def commands() -> list[str]:
    """Every command of ours, in blocks and in the text; what an ellipsis stands for is put in."""
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", README)]
    found = [line for line in code() + spans if re.match(r"beadwork [a-z]", line)]
    return [line.replace("…", "input.xml --baseline BUNDLE") for line in dict.fromkeys(found)]


def test_every_line_of_code_is_looked_at() -> None:
    """A new kind of line in a block is given a test here, or it stands in the README unheld."""
    python = re.search(r"## From Python\n\n((?:    .*\n)+)", README)
    assert python is not None
    known = [line for line in code() if line]
    known = [
        line for line in known if line not in [re.sub(r"\s#\s.*", "", row).strip() for row in python[1].splitlines()]
    ]
    known = [line for line in known if not line.startswith(("beadwork ", "make ", "<"))]
    assert known == [f"pip install ./beadwork-{version('beadwork')}-py3-none-any.whl"]


def test_commands_are_understood() -> None:
    """Each `beadwork` line is parsed by the real command line, options, files and all."""
    found = commands()
    assert len(found) >= 9
    for line in found:
        words = shlex.split(line)[1:]
        if "--help" in words:
            with pytest.raises(SystemExit, match=r"^0$"):
                cli._parser().parse_args(words)
        else:
            assert callable(cli._parser().parse_args(words).call), line


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_commands_of_the_reference_are_understood(page: Path) -> None:
    """Each line of code that is a command of ours is one that the command line takes."""
    for line in page.read_text().splitlines():
        if line.startswith("    beadwork "):
            words = shlex.split(re.sub(r"\s(#|\|\|?)\s.*", "", line).replace("…", "--baseline BUNDLE"))[1:]
            assert callable(cli._parser().parse_args(words).call), line


def test_make_has_what_is_asked_of_it() -> None:
    """Each `make` line, here and in CONTRIBUTING, is a target that does something; make itself says what, without
    doing it. A target of .PHONY without a recipe is none of an error to make, but does nothing."""
    asked = set(re.findall(r"^    make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    asked |= set(re.findall(r"`make ([a-z-]+)`", README))
    assert {"demo", "test", "test-full", "check"} <= asked
    for target in sorted(asked):
        # the environment is there, so that making it is not what is done; but where that is what is asked for
        there = ["-W", "pyproject.toml"] if target == "install" else ["-o", ".venv/installed"]
        command = ["make", "-n", *there, target]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip(), target
        assert "Nothing to be done" not in done.stdout, target


def test_the_queue_is_read_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines about the queue run as they stand, where a queue.db of three frames lies."""
    queue = Queue(tmp_path / "queue.db", create=True)
    for seed in range(3):
        frame = Frame(np.array([8, 1]), np.random.default_rng(seed).normal(size=(2, 3)), np.eye(3) * 9)
        queue.add(KeptFrame(frame, 1, 0.1, np.ones(2), np.zeros(2), ("a" * 64,), "b" * 64, 1))
    monkeypatch.chdir(tmp_path)
    lines = [line for line in commands() if line.startswith("beadwork queue") and "queue.db" in line]
    assert len(lines) >= 3
    for line in lines:
        assert cli.main(shlex.split(line)[1:]) == 0, line
    assert len(ase.io.read(tmp_path / "frames.xyz", ":")) == 3


def test_the_socket_is_one_without_advice(tmp_path: Path) -> None:
    """The <ffsocket> that README calls the fastest, put into the shipped input: read, and nothing to say against it."""
    socket = re.search(r"((?:    .*\n)*    <ffsocket(?:.*\n)+?    </ffsocket>)", README)
    assert socket is not None
    water = ROOT / "inputs" / "water"
    text, changed = re.subn(r"(?s)<ffsocket.*</ffsocket>", socket[1], (water / "input.xml").read_text())
    assert changed == 1
    (tmp_path / "input.xml").write_text(text)
    shutil.copy(water / "init.xyz", tmp_path)
    simulation = read_simulation(tmp_path / "input.xml")
    assert simulation.sockets[0].batch_size == simulation.nbeads
    assert advice(simulation) == []


def test_options_are_real() -> None:
    """Every option that README names is one of the command line."""
    parser = cli._parser()
    known = set()
    stack = [parser]
    while stack:
        for action in stack.pop()._actions:
            known |= set(action.option_strings)
            if isinstance(action.choices, dict):
                stack += action.choices.values()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known


def test_links_lead_somewhere() -> None:
    """Every file that README links to is there."""
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / target).exists(), target
