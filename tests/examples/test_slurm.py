"""The batch scripts that ship: what they start is what the command line takes. Slurm itself is not needed."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from beadwork import cli
from beadwork.examples.init import INPUTS, init

SCRIPTS = sorted((INPUTS / "slurm").glob("*.sh"))


def started(script: Path, folder: Path, **more: str) -> list[str]:
    """The words of the `beadwork` that a script ends in, where Slurm's variables are set as it sets them."""
    environment = folder / "environment" / "bin"
    environment.mkdir(parents=True, exist_ok=True)
    (environment / "activate").write_text(f"PATH={environment}:$PATH\n")
    (environment / "beadwork").write_text("#!/bin/bash\nprintf '%q ' beadwork \"$@\"; pwd\n")
    (environment / "beadwork").chmod(0o755)
    # Slurm sets ENVIRONMENT itself
    told = {"ENVIRONMENT": "BATCH", "SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}
    done = subprocess.run(
        ["bash", str(script)],
        cwd=folder,
        env=os.environ | told | {"BEADWORK_ENV": str(folder / "environment")} | more,
        text=True,
        capture_output=True,
        check=True,
    )
    assert not done.stderr
    return shlex.split(done.stdout)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_it_is_a_script(script: Path) -> None:
    """bash can read each."""
    assert len(SCRIPTS) >= 3
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_a_node_goes_on(tmp_path: Path) -> None:
    """The first job begins with run.toml, the next one, if there is a RESTART, with that, at sockets of its own."""
    init(tmp_path / "mine", "water")
    script = INPUTS / "slurm" / "node.sh"
    *words, _ = started(script, tmp_path / "mine")
    parsed = cli._parser().parse_args(words[1:])
    assert (parsed.simulation, parsed.device, parsed.sockets_prefix) == ("run.toml", "cuda", "/tmp/ipi_77-")
    assert not hasattr(parsed, "instead") or parsed.instead is None
    (tmp_path / "mine" / "RESTART").touch()
    *words, _ = started(script, tmp_path / "mine", DEVICE="--devices all")
    parsed = cli._parser().parse_args(words[1:])
    assert (parsed.instead, parsed.devices) == ("RESTART", ["all"])


def test_an_array_has_seeds_of_its_own(tmp_path: Path) -> None:
    """Each task has its own folder, seed and queue, and the same start; later it goes on from RESTART."""
    init(tmp_path / "mine", "water")
    script = INPUTS / "slurm" / "array.sh"
    *words, where = started(script, tmp_path / "mine")
    assert where == str(tmp_path / "mine" / "run-03")
    parsed = cli._parser().parse_args(words[1:])
    assert (parsed.simulation, parsed.instead, parsed.queue) == ("../run.toml", "input.xml", "queue.db")
    assert "<seed>31418</seed>" in (Path(where) / "input.xml").read_text()
    (Path(where) / "RESTART").touch()
    *words, _ = started(script, tmp_path / "mine")
    assert cli._parser().parse_args(words[1:]).instead == "RESTART"
