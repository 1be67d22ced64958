"""What i-PI printed of a system and of its atoms, divided by as many atoms as it is of."""

from __future__ import annotations

from pathlib import Path

import pytest

from beadwork.report.quantities import average, printed
from beadwork.report.run import read_run
from support.exact_runs import write_about


def test_of_hydrogen_and_deuterium_each_has_its_own(tmp_path: Path) -> None:
    """i-PI's kinetic_cv(H) is of the atoms called H alone, two in D2O and HDO; composition has all three as H."""
    counts = {"composition": {"O": 2, "H": 4}, "labels": {"O": 2, "H": 1, "D": 3}}
    write_about(tmp_path, beads=4, properties={"run.out": {"stride": 1, "columns": []}}, **counts)
    asked = ("step", "kinetic_cv{electronvolt}(H)", "kinetic_cv{electronvolt}(D)", "kinetic_cv{electronvolt}")
    head = [f"# column   {column}     --> {name} : words" for column, name in enumerate(asked, 1)]
    rows = [f"{step} 0.150 0.330 0.580" for step in range(40)]
    (tmp_path / "run.out").write_text("\n".join([*head, *rows]) + "\n")
    found = {one.label.rpartition(", ")[2]: average(one).mean for one in printed(read_run(tmp_path))}
    assert found.pop("H") == pytest.approx(150)
    assert found.pop("D") == pytest.approx(110)
    assert list(found.values()) == pytest.approx([580 / 6])
