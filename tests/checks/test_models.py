"""What the doctor says of the models is what a run makes of them: no more red than it, and no less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from beadwork.checks import models
from beadwork.checks.finding import AMBER, GREEN, RED
from beadwork.config import ServeConfig
from beadwork.doctor import examine
from beadwork.errors import ModelError
from beadwork.ipi.simulation import read
from beadwork.potential import engines
from beadwork.potential.bundle import load_card
from beadwork.potential.native import NativeEngine

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "water-revpbe0-d3"
INPUT = ROOT / "inputs" / "water" / "input.xml"
#: with a semicolon before what is to be done, as all of our sentences
REASON = "there is no compiler; use the engine 'torchscript'"


def asked(**settings: object) -> ServeConfig:
    """The shipped baseline alone, unless more is said."""
    return replace(ServeConfig(str(INPUT), str(MODELS / "baseline")), **settings)  # type: ignore[arg-type]


def without_native(precisions: tuple[str, ...]) -> Callable[..., NativeEngine]:
    """A NativeEngine that cannot be made in these precisions."""

    def make(bundle: Path, dtype: str, device: str) -> NativeEngine:
        if dtype in precisions:
            raise ModelError(REASON)
        return NativeEngine(bundle, dtype, device)

    return make


@pytest.mark.parametrize(
    ("engine", "dtype", "colour"),
    [
        ("auto", "float64", AMBER),
        ("torchscript", "float64", AMBER),
        ("native", "float32", AMBER),
        ("native", "float64", RED),
    ],
)
def test_native_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, engine: str, dtype: str, colour: str) -> None:
    """Without a compiler `auto` goes on and `torchscript` never tries: amber, with the reason, once for all models."""
    monkeypatch.setattr(models, "NativeEngine", without_native(("float64",)))
    cards = [load_card(MODELS / name) for name in ("baseline", "delta-0")]
    (found,) = models.engines(cards, read(INPUT).systems[0].frame(), asked(engine=engine, dtype=dtype))
    assert (found.colour, found.topic, found.code) == (colour, "engines", ModelError.exit_code)
    assert found.text.startswith("native cannot be run: there is no compiler")
    assert found.remedy == "use the engine 'torchscript'"
    assert ("torchscript is taken" in found.text) == (engine == "auto")


@pytest.mark.parametrize(
    ("dtype", "broken", "precision"),
    [("float64", "float32", AMBER), ("float32", "float64", GREEN)],
)
def test_native_in_the_other_precision(
    monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], dtype: str, broken: str, precision: str
) -> None:
    """A native model that is refused in a precision which the run does not use ends no visit, and is not red."""
    monkeypatch.setattr(engines, "NativeEngine", without_native((broken,)))
    monkeypatch.setattr(models, "NativeEngine", without_native((broken,)))
    found = {
        finding.topic: finding for finding in examine(asked(simulation=str(write()), engine="native", dtype=dtype))
    }
    assert not [finding for finding in found.values() if finding.colour == RED]
    assert found["forces"].colour == GREEN
    assert found["precision"].colour == precision
    if precision == AMBER:
        assert "there is no compiler" in found["precision"].text
