"""Which of the energies that i-PI wrote are those of the committee that answered last."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from beadwork.report.committee import read_committee
from beadwork.report.run import read_run
from support.exact_runs import write_about, write_energies

FACTS = {
    "models": {"base": "sha256:1", "delta-0": "sha256:2"},
    "energy_alpha": 2.0,
    "plain_mean": True,
    "committee_share": 0.5,
    "first_step": 0,
}
ANSWERS = "# from step 0 on /tmp/ipi_x: sha256:aaaa in models\n"


def resumed(folder: Path, older: dict[str, object], tail: str = ANSWERS) -> Path:
    """A run that was begun at 0, and went on from 20 and from 40, its output in one file; older: of the first two."""
    write_energies(folder, range(0, 60, 10), np.random.default_rng(0).normal(size=(6, 3)))
    write_about(folder, "beadwork.out.1", tail, **FACTS | older)
    write_about(folder, "beadwork.out.2", ANSWERS, **FACTS | older | {"first_step": 20})
    write_about(folder, "beadwork.out", ANSWERS, **FACTS | {"first_step": 40})
    return folder


def known(folder: Path) -> list[int]:
    """The steps of which energies are taken."""
    found = read_committee(read_run(folder))
    assert not isinstance(found, str)
    return sorted(found.by_step)


def test_a_run_that_was_resumed_is_one_run(tmp_path: Path) -> None:
    """The same models, scaled alike, answered before and after: all steps count."""
    assert known(resumed(tmp_path, {})) == [0, 10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("older", "tail", "steps"),
    [
        ({"models": {"base": "sha256:1", "delta-0": "sha256:3"}}, ANSWERS, [40, 50]),
        ({"energy_alpha": 1.0}, ANSWERS, [40, 50]),
        ({"committee_share": 1.0}, ANSWERS, [40, 50]),
        ({"energy_alpha": None}, ANSWERS, [40, 50]),  # an older beadwork, which did not say
        ({}, ANSWERS + "# from step 10 on /tmp/ipi_x: sha256:bbbb in models\n", [20, 30, 40, 50]),
    ],
)
def test_what_another_committee_answered_is_left_out(
    tmp_path: Path, older: dict[str, object], tail: str, steps: list[int]
) -> None:
    """Other models or another scale before, or a committee that was taken up on the way: only what came after it."""
    assert known(resumed(tmp_path, older, tail)) == steps


def test_after_a_swap_in_this_run_only_the_newest_counts(tmp_path: Path) -> None:
    """By the summary of the run: steps of ours are counted from where it began."""
    swaps = [{"step": 0}, {"step": 10}]
    (resumed(tmp_path, {}) / "summary.json").write_text(json.dumps({"committees": swaps}))
    assert known(tmp_path) == [50]
