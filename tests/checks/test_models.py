"""What the doctor says of the models is what a run makes of them: no more red than it, and no less."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.checks import models
from beadwork.checks.finding import AMBER, GREEN, RED
from beadwork.config import ServeConfig
from beadwork.doctor import examine
from beadwork.errors import GuardError, ModelError
from beadwork.frame import Frame
from beadwork.ipi.simulation import read
from beadwork.potential import engines
from beadwork.potential.analytic import Harmonic
from beadwork.potential.bundle import load_card
from beadwork.potential.delta import Potential
from beadwork.potential.marks import Marks
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


SOME = Frame(
    np.array([8, 1, 1, 8, 1, 1]), np.random.default_rng(5).uniform(-3, 3, (6, 3)), np.eye(3) * 20, (False,) * 3
)
#: eV/Å and eV an atom, of SOME with the springs below
FORCE, ENERGY = 0.16, 0.37


@pytest.mark.parametrize(
    ("settings", "colour", "said"),
    [
        ({"keep_force": [1.0]}, GREEN, "below the band of --keep-force, 1 eV/Å"),
        ({"keep_force": [0.1, 1.0]}, AMBER, "in the band of --keep-force, 0.1 to 1 eV/Å: without --queue no frame"),
        ({"keep_force": [0.1, 1.0], "queue": "q"}, AMBER, "frames will be kept from the first step on"),
        ({"keep_force": [0.01, 0.1]}, AMBER, "above the band of --keep-force, 0.01 to 0.1 eV/Å"),
        ({"keep_force": [0.01, 0.1]}, AMBER, "without --queue the run does not look"),
        ({"keep_force": [0.01, 0.1], "queue": "q"}, AMBER, "the queue keeps no such frame"),
        ({"keep_force": [1.0], "keep_energy": [0.1]}, AMBER, "in the band of --keep-energy, 0.1 eV an atom"),
        ({"keep_energy": [0.001, 0.01]}, AMBER, "above the band of --keep-energy, 0.001 to 0.01 eV an atom"),
        ({"keep_force": []}, GREEN, "at most at the start"),
        ({"mark_spread": 0.1}, RED, "above the mark of 0.1 eV/Å (--mark-spread): the run would end"),
        ({"mark_spread": 0.1, "on_mark": "count"}, AMBER, "the run goes on"),
    ],
)
def test_only_the_mark_ends_a_run(settings: dict[str, object], colour: str, said: str) -> None:
    """A spread above the queue's band ends no run, so it is amber; the band is named with its own unit and number."""
    answer = Potential(None, [Harmonic(2.0), Harmonic(2.1)]).evaluate([SOME])
    assert answer.spread is not None
    assert answer.spread.largest[0] == pytest.approx(FORCE, rel=0.1)
    assert answer.spread.energy[0] / 6 == pytest.approx(ENERGY, rel=0.1)
    (found,) = models.spread(answer, asked(**settings))
    assert (found.colour, found.code) == (colour, GuardError.exit_code if colour == RED else 0)
    assert said in found.text
    assert ("eV an atom" in found.text) == ("--keep-energy" in found.text)
    assert bool(found.remedy) == (colour != GREEN)


def test_the_mark_is_the_guards() -> None:
    """Red where the guard would stop the run, and nowhere else."""
    answer = Potential(None, [Harmonic(2.0), Harmonic(2.1)]).evaluate([SOME])
    assert answer.spread is not None
    for mark in (0.999 * answer.spread.largest[0], 1.001 * answer.spread.largest[0]):
        (found,) = models.spread(answer, asked(mark_spread=mark))
        assert (found.colour == RED) == bool(Marks(spread=mark).breaches(answer))
