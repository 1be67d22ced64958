"""The compiled engine, where nothing needs to be compiled."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from beadwork.potential.bundle import NATIVE
from beadwork.potential.native import load_evaluator

BASELINE = Path(__file__).resolve().parents[2] / "models" / "water-highlevel" / "baseline"


@pytest.mark.parametrize("users", [None, "automatic"])
def test_blas_is_off_before_symmetrix_is_loaded(
    users: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opens a native model, also from Python, has the search for a BLAS off in time; a user's word stays."""
    for name in ("SYMMETRIX_JIT_CACHE", "SYMMETRIX_HOST_WORKER_BLAS"):
        monkeypatch.setenv(name, "")  # so that it is put back after what load_evaluator sets
    monkeypatch.delenv("SYMMETRIX_JIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if users is None:
        monkeypatch.delenv("SYMMETRIX_HOST_WORKER_BLAS")
    else:
        monkeypatch.setenv("SYMMETRIX_HOST_WORKER_BLAS", users)
    fake = tmp_path / "symmetrix" / "__init__.py"
    fake.parent.mkdir()
    fake.write_text("import os\nseen = os.environ.get('SYMMETRIX_HOST_WORKER_BLAS')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "symmetrix", None)
    del sys.modules["symmetrix"]
    with pytest.raises(ImportError, match="load_backend"):  # the fake has none
        load_evaluator(BASELINE / NATIVE, None, "float64")
    assert sys.modules["symmetrix"].seen == (users or "off")
    assert os.environ["SYMMETRIX_HOST_WORKER_BLAS"] == (users or "off")
