"""The table of faults can be read: what differs by a number is one row."""

from __future__ import annotations

from pathlib import Path

from conftest import Fault, FaultTable


def test_rows_that_differ_by_numbers_are_one(tmp_path: Path) -> None:
    """Twelve cuts of one file are a row with the range of their bytes and the longest time; another sentence, and a
    test that has failed, are rows of their own, and tests are counted, not rows."""
    table = FaultTable(tmp_path / "faults.md")
    for size in (9, 512, 100):
        happened = f"exit code 3: a cut at {size} bytes"
        table._rows[f"cut-{size}"] = Fault("a cut RESTART", f"{size} bytes of it", happened, size / 100)
    table._rows["other"] = Fault("a cut RESTART", "700 bytes of it", "it was read", 1.0)
    table._rows["failed"] = Fault("a cut RESTART", "5 bytes of it", "exit code 3: a cut at 5 bytes", 1.0, "failed")
    next(table.pytest_sessionfinish())
    lines = (tmp_path / "faults.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| a cut")] == [
        "| a cut RESTART | 5 bytes of it | exit code 3: a cut at 5 bytes | 1.0 | **FAILED** |",
        "| a cut RESTART | 9 to 512 bytes of it | exit code 3: a cut at 9 to 512 bytes | 5.1 | yes |",
        "| a cut RESTART | 700 bytes of it | it was read | 1.0 | yes |",
    ]
    assert any(line.startswith("4 of 5 passed") for line in lines)
