"""What the doctor says of the models is what a run makes of them: no more red than it, and no less."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.config import ServeConfig
from beadwork.doctor import models
from beadwork.doctor.finding import AMBER, GREEN, RED
from beadwork.doctor.report import examine
from beadwork.errors import ModelError, ThresholdError
from beadwork.frame import Frame
from beadwork.ipi.simulation import read_simulation
from beadwork.potential import auto_engine as engines
from beadwork.potential.analytic import Harmonic
from beadwork.potential.bundle import CARD, NOVELTY, Checked, load_card
from beadwork.potential.evaluation import Evaluation
from beadwork.potential.limits import Thresholds
from beadwork.potential.load import load
from beadwork.potential.native import NativeEngine
from beadwork.potential.potential import Potential

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models" / "water-revpbe0-d3"
INPUT = ROOT / "inputs" / "water" / "input.xml"
#: with a semicolon before what is to be done, as all of our sentences
REASON = ("there is no compiler", "use the engine 'torchscript'")


def asked(**settings: object) -> ServeConfig:
    """The shipped baseline alone, unless more is said."""
    return replace(ServeConfig(simulation=str(INPUT), baseline=str(MODELS / "baseline")), **settings)  # type: ignore[arg-type]


def without_native(precisions: tuple[str, ...]) -> Callable[..., NativeEngine]:
    """A NativeEngine that cannot be made in these precisions."""

    def make(card: Checked, dtype: str, device: str) -> NativeEngine:
        if dtype in precisions:
            raise ModelError(*REASON)
        return NativeEngine(card, dtype, device)

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
    (found,) = models.engines(cards, read_simulation(INPUT).systems[0].frame(), asked(engine=engine, dtype=dtype))
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
#: eV/Å and eV/atom, of SOME with the springs below
FORCE, ENERGY = 0.16, 0.37


@pytest.mark.parametrize(
    ("settings", "colour", "said"),
    [
        ({"keep_force": [1.0]}, GREEN, "below the selection window of --keep-force, 1 eV/Å"),
        (
            {"keep_force": [0.1, 1.0]},
            AMBER,
            "in the selection window of --keep-force, 0.1 to 1 eV/Å: without --queue no frame",
        ),
        ({"keep_force": [0.1, 1.0], "queue": "q"}, AMBER, "frames will be kept from the first step on"),
        ({"keep_force": [0.01, 0.1]}, AMBER, "above the selection window of --keep-force, 0.01 to 0.1 eV/Å"),
        ({"keep_force": [0.01, 0.1]}, AMBER, "without --queue the run does not look"),
        ({"keep_force": [0.01, 0.1], "queue": "q"}, AMBER, "the queue keeps no such frame"),
        ({"keep_force": [1.0], "keep_energy": [0.1]}, AMBER, "in the selection window of --keep-energy, 0.1 eV/atom"),
        ({"keep_energy": [0.001, 0.01]}, AMBER, "above the selection window of --keep-energy, 0.001 to 0.01 eV/atom"),
        ({"keep_force": []}, GREEN, "at most at the start"),
        ({"mark_spread": 0.1}, RED, "above the threshold of 0.1 eV/Å (--mark-spread): the run would end"),
        ({"mark_spread": 0.1, "on_mark": "count"}, AMBER, "the run goes on"),
    ],
)
def test_only_the_mark_ends_a_run(settings: dict[str, object], colour: str, said: str) -> None:
    """A spread above the queue's band ends no run, so it is amber; the band is named with its own unit and number."""
    answer = Potential(None, [Harmonic(2.0), Harmonic(2.1)]).evaluate([SOME])
    assert answer.spread is not None
    assert answer.spread.largest[0] == pytest.approx(FORCE, rel=0.1)
    assert answer.spread.energy[0] / 6 == pytest.approx(ENERGY, rel=0.1)
    (found,) = models.spread(answer, *(asked(**settings),) * 2)
    assert (found.colour, found.code) == (colour, ThresholdError.exit_code if colour == RED else 0)
    assert said in found.text
    assert ("eV/atom" in found.text) == ("--keep-energy" in found.text)
    assert bool(found.remedy) == (colour != GREEN)


def test_the_mark_is_the_guards() -> None:
    """Red where the guard would stop the run, and nowhere else."""
    answer = Potential(None, [Harmonic(2.0), Harmonic(2.1)]).evaluate([SOME])
    assert answer.spread is not None
    for mark in (0.999 * answer.spread.largest[0], 1.001 * answer.spread.largest[0]):
        (found,) = models.spread(answer, *(asked(mark_spread=mark),) * 2)
        assert (found.colour == RED) == bool(Thresholds(spread=mark).breaches(answer))


def start(name: str) -> Frame:
    """The start structure of a shipped input."""
    return read_simulation(ROOT / "inputs" / name / "input.xml").systems[0].frame()


@pytest.fixture(scope="module")
def shipped() -> Potential:
    """The shipped baseline and one Δ model, which know what they were trained on."""
    return load(MODELS / "baseline", [MODELS / "delta-0"], "torchscript")


@pytest.fixture(scope="module")
def proton(shipped: Potential) -> Evaluation:
    """The excess proton's start structure, evaluated."""
    return shipped.evaluate([start("zundel-water")])


def test_water_is_known_and_a_proton_is_not(shipped: Potential, proton: Evaluation) -> None:
    """The shipped start of liquid water is green. The proton's is amber, and says of which atom, of which element and
    for whom: the oxygen of the hydronium ion, which is atom 0, for both; and what is to be done for either.
    """
    (found,) = models.novelty(shipped.evaluate([start("water")]), shipped, [start("water")], *(asked(),) * 2)
    assert (found.colour, found.remedy) == (GREEN, "")
    (found,) = models.novelty(proton, shipped, [start("zundel-water")], *(asked(queue="q"),) * 2)
    assert (found.colour, found.topic, found.code) == (AMBER, "novelty", 0)
    assert re.match(r"the novelty of atom 0 \(O\) is 2\.\d\d for Δ and 1\.\d\d for the baseline, the larg", found.text)
    assert "no model here has seen such an atom (new atoms: 1 O)" in found.text
    assert "frames will be kept from the first step on" in found.text
    assert "train the baseline on labels" in found.remedy
    assert "label such frames" in found.remedy


@pytest.mark.parametrize(
    ("settings", "colour", "said"),
    [
        ({}, AMBER, "without --queue no frame is kept"),
        ({"queue": "q", "keep_novelty": 4.0}, AMBER, "--keep-novelty 4 of both keeps no such frame"),
        ({"queue": "q", "keep_novelty": 2.0}, AMBER, "frames will be kept from the first step on"),
        (
            {"queue": "q", "keep_novelty": 2.0, "keep_novelty_of": "baseline"},
            AMBER,
            "2 of baseline keeps no such frame",
        ),
        ({"mark_novelty": 4.0}, AMBER, "without --queue no frame is kept"),
        ({"mark_novelty": 2.0}, RED, "above the threshold of 2 (--mark-novelty): the run would end at its first step"),
        ({"mark_novelty": 2.0, "on_mark": "count"}, AMBER, "the run goes on, as --on-mark says"),
    ],
)
def test_novelty_is_looked_at_as_the_run_does(
    shipped: Potential, proton: Evaluation, settings: dict[str, object], colour: str, said: str
) -> None:
    """Red where the guard would stop the run, and nowhere else; what the queue would do is said."""
    (found,) = models.novelty(proton, shipped, [start("zundel-water")], *(asked(**settings),) * 2)
    assert (found.colour, found.code) == (colour, ThresholdError.exit_code if colour == RED else 0)
    assert said in found.text
    assert (colour == RED) == bool(
        asked(**settings).on_mark == "stop"
        and Thresholds(
            novelty=float(settings.get("mark_novelty", np.inf))  # type: ignore[arg-type]
        ).breaches(proton)
    )


def test_a_low_mark_keeps_what_is_known(shipped: Potential) -> None:
    """--keep-novelty below 1 keeps frames of water from the first step on: amber, as the spread's band is."""
    frame = start("water")
    (found,) = models.novelty(shipped.evaluate([frame]), shipped, [frame], *(asked(keep_novelty=0.3, queue="q"),) * 2)
    assert (found.colour, "has seen" in found.text) == (AMBER, False)
    assert "frames will be kept from the first step on" in found.text
    assert "--keep-novelty 1" in found.remedy


def test_new_to_one_part_alone(shipped: Potential, proton: Evaluation) -> None:
    """Whose novelty it is decides what is to be done: the other part's remedy is not there."""
    assert proton.novelty is not None
    known = replace(proton.novelty, of={**proton.novelty.of, "delta": np.full(97, 0.5)})
    (found,) = models.novelty(replace(proton, novelty=known), shipped, [start("zundel-water")], *(asked(),) * 2)
    assert "the baseline has not seen such an atom" in found.text
    assert "train the baseline on labels" in found.remedy
    assert "label such frames" not in found.remedy


def test_models_that_do_not_know_what_they_learned_from(tmp_path: Path, shipped: Potential) -> None:
    """One amber line names them, with the command; a part that does know still speaks."""
    bundle = tmp_path / "bundle"
    shutil.copytree(MODELS / "delta-0", bundle)
    (bundle / NOVELTY).unlink()
    card = re.sub(r'(?m)^"novelty.npz" = .*\n', "", (bundle / CARD).read_text())
    (bundle / CARD).write_text(card)
    potential = load(MODELS / "baseline", [bundle], "torchscript")
    assert "the bundle of delta-0 does not say what it was trained on" in potential.notes[-1]
    frame = start("water")
    lacking, found = models.novelty(potential.evaluate([frame]), potential, [frame], *(asked(),) * 2)
    assert (lacking.colour, found.colour) == (AMBER, GREEN)
    assert lacking.text.startswith("what delta-0 was trained on is not known")
    assert lacking.remedy.startswith(f"beadwork models novelty {bundle} --frames FILE")
    assert "Δ" not in found.text


@pytest.mark.parametrize(("name", "alone"), [("water-revpbe0-d3", True), ("water-highlevel", False)])
def test_of_what_the_spread_speaks(name: str, alone: bool) -> None:
    """D3 was learned as the difference of two levels, so what the baseline misses of revPBE0 is in no spread; MP2 as
    label minus the baseline's own answer, so it is.
    """
    cards = [load_card(ROOT / "models" / name / bundle) for bundle in ("baseline", "delta-0", "delta-1")]
    potential = Potential(Harmonic(1.0), [Harmonic(1.0), Harmonic(2.0)])
    potential.cards = tuple(cards)
    assert potential.spread_of_delta_alone == alone
    one = Potential(Harmonic(1.0), [Harmonic(1.0)])
    one.cards = tuple(cards[:2])
    assert not one.spread_of_delta_alone  # there is no spread
