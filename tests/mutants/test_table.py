"""The table of faults does not rot. That each is noticed is seen by `make mutants`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.meaning}")
def test_what_is_changed_is_there_once(mutant: Mutant) -> None:
    """A fault is of the code as it is today: its old text stands once in its file, the new one is Python that differs,
    and the tests that shall notice it exist."""
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.old!r} is {text.count(mutant.old)} times in {mutant.file}"
    changed = text.replace(mutant.old, mutant.new)
    assert changed != text
    if mutant.file.endswith(".py"):
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    for name in mutant.tests.split():
        file, _, test = name.partition("::")
        assert (ROOT / "tests" / file).exists(), name
        assert f"def {test}" in (ROOT / "tests" / file).read_text() if test else True


def test_enough_of_them_in_every_wing() -> None:
    """Forty at least, none twice, and some in each wing that a number goes through on its way."""
    assert len({(mutant.file, mutant.old) for mutant in MUTANTS}) == len(MUTANTS) >= 40
    wings = {mutant.file.split("/")[2] for mutant in MUTANTS if mutant.file.startswith("driver/")}
    assert {"ipi", "potential", "serve", "harvest", "train", "label", "report", "analyse", "observe"} <= wings
