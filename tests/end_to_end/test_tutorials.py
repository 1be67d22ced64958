"""Each tutorial's commands run one after the other as they are printed, in a short form."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
#: what makes it short: fewer steps, frames, epochs and members; and what makes it alone: an address of its own
STEPS = 12
SHORT = {"--most 60": "--most 10", "--every 20": "", "epochs = 60": "epochs = 2\\nmembers = 2"}
EDIT = (
    "sed -i 's#<total_steps>.*</total_steps>#<total_steps>{steps}</total_steps>#; s#>beadwork-#>t{alone}-#' input.xml"
)


def commands(page: Path) -> list[str]:
    """The lines of its blocks of shell, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def shortened(lines: list[str], alone: int) -> list[str]:
    """The same, where every folder that has been made gets a short input. Raises AssertionError for a stale SHORT."""
    found = []
    for line in lines:
        for long, short in SHORT.items():
            line = line.replace(long, short)
        found.append(line)
        if line.startswith("cd ") and line != "cd ..":
            found.append(EDIT.format(steps=STEPS, alone=alone))
    return found


@pytest.mark.parametrize("page", sorted(DOCS.glob("tutorial-*.md")), ids=lambda page: page.stem)
def test_every_line_is_a_command(page: Path) -> None:
    """A tutorial has lines to type, of programs that are there after it: beadwork's own and the shell's."""
    lines = commands(page)
    assert len(lines) >= 4
    assert {shlex.split(line, comments=True)[0] for line in lines} <= {"beadwork", "cd", "sed", "printf"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", sorted(DOCS.glob("tutorial-*.md")), ids=lambda page: page.stem)
def test_a_tutorial_works(page: Path, models, tmp_path: Path) -> None:
    """From an empty folder, with the reader's own model where the page wants one; every command ends well."""
    shutil.copy(models.file(models.baseline), tmp_path / "my.model")
    script = "\n".join(["set -ex", *shortened(commands(page), os.getpid())])
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
