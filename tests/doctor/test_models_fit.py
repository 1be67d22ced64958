"""The models: made for each other, true to their own energies, alike in every engine and precision."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beadwork.config import LimitSettings, SelectionSettings
from beadwork.doctor import models
from beadwork.doctor.finding import AMBER, GREEN, RED, Finding
from beadwork.doctor.report import examine
from beadwork.errors import ModelError
from beadwork.frame import Frame
from beadwork.ipi.simulation import read_simulation
from beadwork.potential import load as loading
from beadwork.potential.analytic import Harmonic
from beadwork.potential.bundle import amend_card, check, load_card
from beadwork.potential.engine import Energies
from beadwork.potential.graph import Graph
from beadwork.potential.potential import Potential
from beadwork.potential.torchscript import TorchScriptEngine
from support.doctor import MODELS, MONOMER, ROOT, colours, config, only
from support.doctor import input_writer as input_writer


class Broken:
    """An engine whose forces or virials are not quite what its energy says."""

    def __init__(self, engine: object, forces: Callable[[np.ndarray], np.ndarray], virial: float = 1.0) -> None:
        self._engine, self._forces, self._virial = engine, forces, virial
        self.name, self.cutoff, self.elements = "broken", engine.cutoff, engine.elements  # type: ignore[attr-defined]
        self.training_set = None

    def evaluate(self, graph: Graph) -> Energies:
        answer = self._engine.evaluate(graph)  # type: ignore[attr-defined]
        return Energies(answer.energies, self._forces(answer.forces.copy()), self._virial * answer.virials)


def one_wrong(forces: np.ndarray) -> np.ndarray:
    """The last atom's force is off by a hundredth."""
    forces[-1] *= 1.01
    return forces


SOME = Frame(
    np.array([8, 1, 1, 8, 1, 1]), np.random.default_rng(5).uniform(-3, 3, (6, 3)), np.eye(3) * 20, (False,) * 3
)


@pytest.mark.parametrize(
    ("forces", "virial", "expected"),
    [
        (lambda f: f, 1.0, [GREEN, GREEN]),
        (lambda f: 1.001 * f, 1.0, [RED, GREEN]),
        (one_wrong, 1.0, [RED, GREEN]),
        (lambda f: f, 1.01, [GREEN, RED]),
        (lambda f: f, -1.0, [GREEN, RED]),
    ],
)
def test_forces_and_virial_are_held_against_the_energy(
    forces: Callable[[np.ndarray], np.ndarray], virial: float, expected: list[str]
) -> None:
    """A spring is true to its energy; a force off by a thousandth, one atom's alone, a virial's sign are found."""
    potential = Potential(Broken(Harmonic(2.0), forces, virial))
    found = list(models.derivatives(potential, SOME))
    assert colours(iter(found)) == expected
    assert {finding.code for finding in found if finding.colour == RED} <= {ModelError.exit_code}


def test_derivatives_of_a_periodic_model() -> None:
    """The shipped baseline in a tilted cell: forces and virial are its energy's to 1e-6; broken ones are not."""
    engine = TorchScriptEngine(check(MODELS / "baseline"))
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid([0, 3.1], [0, 3.1], [0, 3.1], indexing="ij"), axis=-1).reshape(-1, 3)
    cell = np.array([[6.2, 0, 0], [0.7, 6.2, 0], [0.3, -0.5, 6.2]])
    frame = Frame(np.array([8, 1, 1, 8, 1, 1, 8, 1]), grid + rng.normal(0, 0.2, (8, 3)), cell)
    found = list(models.derivatives(Potential(engine), frame))
    assert colours(iter(found)) == [GREEN, GREEN]
    assert max(float(finding.text.split()[0]) for finding in found) < 1e-6
    assert colours(models.derivatives(Potential(Broken(engine, one_wrong)), frame)) == [RED, GREEN]


def test_a_broken_engine_in_a_whole_visit(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is slipped in where the doctor opens its models is found out."""
    real = loading.open_engine
    monkeypatch.setattr(loading, "open_engine", lambda *a: Broken(real(*a), lambda f: 1.002 * f))
    found = list(examine(config(write(start=MONOMER.format("7 7 7")))))
    assert only(found, "forces").colour == RED
    assert only(found, "virial").colour == GREEN


def bundle(tmp_path: Path, source: str, name: str, **about: object) -> str:
    """A copy of a shipped bundle with more in its card."""
    shutil.copytree(MODELS / source, tmp_path / name)
    amend_card(tmp_path / name, **about)
    return str(tmp_path / name)


def together(tmp_path: Path, delta: list[str], engines: list[Harmonic], offset: float = 0.0) -> list[Finding]:
    """What is said of the shipped baseline's card with these, where springs stand for the models."""
    cards = [load_card(MODELS / "baseline"), *(load_card(path) for path in delta)]
    base = Harmonic(2.0)
    potential = Potential(base, engines)
    answer = potential.evaluate([SOME])
    assert answer.delta is not None
    if offset:
        answer = replace(answer, delta=replace(answer.delta, energies=answer.delta.energies + offset))
    return list(models.together(cards, 1.0, potential, answer))


def test_models_made_for_each_other(tmp_path: Path) -> None:
    """Small differences are fine, and that the cards of the shipped members name their baseline is said."""
    deltas = [str(MODELS / "delta-0"), str(MODELS / "delta-1")]
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    small = [Harmonic(0.1, sites), Harmonic(0.101, sites)]
    found = only(together(tmp_path, deltas, small))
    assert found.colour == GREEN
    assert found.text.endswith(", and made for this baseline")


def test_a_card_that_names_no_baseline_is_amber(tmp_path: Path) -> None:
    """Nothing tells whose difference it is: amber, with the very line that would say it of this baseline."""
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    small = [Harmonic(0.1, sites), Harmonic(0.101, sites)]
    unnamed = bundle(tmp_path, "delta-1", "d1")
    card = Path(unnamed) / "card.toml"
    card.write_text("".join(line for line in card.read_text().splitlines(True) if not line.startswith("baseline = ")))
    fits, said = together(tmp_path, [str(MODELS / "delta-0"), unnamed], small)
    assert (fits.colour, said.colour) == (GREEN, AMBER)
    assert "made for this baseline" not in fits.text
    assert said.text.startswith(f"the card of {unnamed} does not say of which baseline it is the difference")
    card.write_text(
        card.read_text().replace("\n\n", f"\n{said.remedy.partition('write ')[2].partition(' below')[0]}\n\n", 1)
    )
    assert only(together(tmp_path, [str(MODELS / "delta-0"), unnamed], small)).colour == GREEN


def test_a_delta_worse_than_its_baseline_is_amber(tmp_path: Path) -> None:
    """By the errors in its committee.toml, where that is about these members."""
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    small = [Harmonic(0.1, sites), Harmonic(0.101, sites)]
    members = [bundle(tmp_path, f"delta-{k}", f"delta-{k}") for k in (0, 1)]
    (tmp_path / "committee.toml").write_text(
        'members = ["delta-0", "delta-1"]\n[held_out]\nframes = 2\nenergy_rmse_meV_per_atom = [351.0, 8.0]\n'
        "baseline_energy_rmse_meV_per_atom = [91.0, 12.0]\n"
    )
    fits, said = together(tmp_path, members, small)
    assert (fits.colour, said.colour) == (GREEN, AMBER)
    assert said.text.startswith("in energies this Δ is worse than its baseline alone: on 2 frames")
    assert said.remedy.startswith("label more frames")
    assert only(together(tmp_path, members[:1], small[:1])).colour == GREEN


def test_models_not_made_for_each_other(tmp_path: Path) -> None:
    """The baseline itself as Δ, whole models, foreign reference energies. Another baseline is refused by `load`."""
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    small = [Harmonic(0.1, sites), Harmonic(0.101, sites)]
    twice = together(tmp_path, [str(MODELS / "baseline"), str(MODELS / "delta-1")], small)
    assert only(twice).colour == RED
    assert "are the same model" in only(twice).text
    deltas = [str(MODELS / "delta-0"), str(MODELS / "delta-1")]
    whole = together(tmp_path, deltas, [Harmonic(2.1), Harmonic(1.9)])
    assert only(whole).colour == RED
    assert "whole models, no differences" in only(whole).text
    assert only(together(tmp_path, deltas, small, offset=-1e4)).colour == AMBER


def test_members_of_different_zero(tmp_path: Path) -> None:
    """Two members that agree about forces, but whose energies lie far apart."""

    class Raised(Harmonic):
        def evaluate(self, graph: Graph) -> Energies:
            answer = super().evaluate(graph)
            return replace(answer, energies=answer.energies + 5.0)

    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    found = only(
        together(
            tmp_path,
            [str(MODELS / "delta-0"), str(MODELS / "delta-1")],
            [Harmonic(0.1, sites), Raised(0.1, sites)],
        )
    )
    assert found.colour == AMBER
    assert "0.83 eV/atom apart" in found.text


def test_an_uncalibrated_spread_is_amber(tmp_path: Path) -> None:
    """Without alpha from the card or the user the spread is only a number."""
    sites = np.random.default_rng(2).uniform(-3, 3, (6, 3))
    potential = Potential(Harmonic(2.0), [Harmonic(0.1, sites), Harmonic(0.101, sites)])
    cards = [load_card(MODELS / name) for name in ("baseline", "delta-0", "delta-1")]
    found = list(models.together(cards, None, potential, potential.evaluate([SOME])))
    assert colours(iter(found)) == [GREEN, AMBER]
    assert "--alpha" in found[1].remedy


@pytest.mark.parametrize(
    ("keep_force", "colour"), [([10.0], GREEN), ([0.001, 10.0], AMBER), ([0.0001, 0.001], AMBER), ([], GREEN)]
)
def test_spread_at_the_start(keep_force: list[float], colour: str) -> None:
    """Below, in and above the band, as the queue will see it."""
    potential = Potential(None, [Harmonic(2.0), Harmonic(2.1)])
    answer = potential.evaluate([SOME])
    assert answer.spread is not None
    assert 0.001 < answer.spread.largest[0] < 10.0
    finding = only(models.spread(answer, SelectionSettings(keep_force=keep_force), LimitSettings()))
    assert (finding.colour, finding.code) == (colour, 0)


def test_a_native_engine_that_disagrees_is_red_or_amber(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native that disagrees is red where it was asked for and amber where it is only left out; so is none at all."""
    card = load_card(MODELS / "delta-0")
    frame = read_simulation(ROOT / "inputs" / "water" / "input.xml").systems[0].frame()
    asked = {name: config(Path("x"), engine=name) for name in ("auto", "native", "torchscript")}
    assert only(models.engines([card], frame, asked["auto"])).colour == GREEN
    bare = load_card(bundle(tmp_path, "delta-1", "bare"))
    bare = replace(bare, sha256={"model.pt": bare.sha256["model.pt"]}, about={"native": "max_ell is 2"})
    finding = only(models.engines([bare], frame, asked["auto"]))
    assert (finding.colour, "max_ell is 2" in finding.text) == (AMBER, True)
    # what the architecture rules out no import mends; what the importing machine lacked one does, as the card says
    assert finding.remedy == "nothing to mend: torchscript or eager serves every model"
    mendable = replace(bare, about={"native": "symmetrix-xl was not installed", "native_remedy": "import it again"})
    assert only(models.engines([mendable], frame, asked["auto"])).remedy == "import it again"
    real = models.NativeEngine
    monkeypatch.setattr(models, "NativeEngine", lambda *a: Broken(real(*a), lambda f: f + 1e-4))
    assert only(models.engines([card], frame, asked["auto"])).colour == AMBER
    finding = only(models.engines([card], frame, asked["native"]))
    assert (finding.colour, finding.code) == (RED, ModelError.exit_code)
    assert "does NOT agree with torchscript on the first structure" in finding.text
    assert "1.0e-04 eV/Å; allowed 1e-06 and 1e-05" in finding.text
    monkeypatch.setattr(models, "available", lambda: False)
    finding = only(models.engines([card], frame, asked["auto"]))
    assert (finding.colour, "pip install" in finding.remedy) == (AMBER, True)


def test_the_rounding_of_float32_has_its_size_said() -> None:
    """Rounding is green, more than that is amber where float32 was asked for, and always with its size; with float64 it
    is said whether to take float32."""
    exact = Potential(Harmonic(2.0)).evaluate([SOME])
    for error, colour, advice in ((1e-4, GREEN, "take it"), (1e-2, AMBER, "keep float64")):
        rough = replace(exact, forces=exact.forces + error)
        finding = only(models.precision(rough, exact, "float32"))
        assert finding.colour == colour
        assert f"{error:.1e} eV/Å" in finding.text
        finding = only(models.precision(rough, exact, "float64"))
        assert finding.colour == GREEN
        assert finding.text.endswith(advice)
