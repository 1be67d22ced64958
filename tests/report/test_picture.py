"""run.png: what is drawn of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beadwork.events import Evaluated
from beadwork.observe.record import Record
from beadwork.report.picture import draw


def test_a_spread_that_is_known_now_and_then_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members on one trunk have a force spread at every tenth evaluation: these are joined, at their steps."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    record = Record(tmp_path, ["O"], {"first_step": 0, "time_step_fs": None, "outputs": "none", "directory": "."})
    for step in range(30):
        record(Evaluated("a", step, 2, -1.0, 0.02, 0.1 + 0.01 * step if step % 10 == 0 else None, {"model": 0.01}))
    record.close(record.summary())
    assert "run.png" in draw(tmp_path)
    (figure,) = drawn
    force, energy = figure.axes[2].lines
    np.testing.assert_allclose(force.get_ydata(), [100, 200, 300])
    np.testing.assert_allclose(force.get_xdata(), energy.get_xdata()[::10])
    assert len(energy.get_ydata()) == 30
