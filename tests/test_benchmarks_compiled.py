"""The comparison of compilers with TorchScript: what does not agree is not timed, and what fails is recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, which imports others from its own folder."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compiled

    yield compiled
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.mark.slow
def test_only_what_agrees_is_timed(compiled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager model is timed; one with another weight, and one that cannot be made, are named with the reason."""
    from system import Size, models

    bundle = models(tmp_path, 4, 3.0, 1)[0]

    def wrong() -> Any:
        model = compiled.eager(bundle.with_suffix(".model"))
        model.scale_shift.scale *= 1.0001
        return model

    def missing() -> Any:
        raise ImportError("no such compiler\nin this place")

    real = compiled.variants
    made = {"wrong": wrong, "missing": missing}
    monkeypatch.setattr(compiled, "variants", lambda *what: real(*what) | made)
    saved: list[str] = []
    data = compiled.compare(
        Size(beads=2, waters=2, channels=4, cutoff=3.0),
        bundle,
        2,
        ["eager", "wrong", "missing"],
        lambda result: saved.append(json.dumps(result)),
    )
    found = data["variants"]
    assert len(saved) == 3
    assert list(found) == ["eager", "wrong", "missing"]
    assert len(found["eager"]["seconds"]) == len(found["eager"]["torchscript_s"]) == 2
    assert found["eager"]["range"][0] <= found["eager"]["times_faster"] <= found["eager"]["range"][1]
    assert "does not agree with TorchScript" in found["wrong"]["failed"]
    assert "seconds" not in found["wrong"]
    assert found["missing"]["failed"] == "ImportError: no such compiler"
    text = compiled.table(data | {"date": "today", "machine": "this one", "rounds": 2})
    assert "| wrong | | failed |" in text
    assert "- missing: ImportError: no such compiler" in text
