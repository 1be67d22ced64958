from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from beadwork.digits import with_bar
from beadwork.errors import LabelError
from beadwork.json_form import as_json
from beadwork.log import Alarm
from beadwork.potential.load import load
from beadwork.toml import tomllib
from beadwork.train.calibration import Errors, calibrate, format_calibration, residuals, scale
from beadwork.train.dataset import Dataset
from beadwork.train.label_file import from_file
from beadwork.train.plan import references
from beadwork.train.split import APART, split, unseen
from beadwork.train.validate import CURVE_FRACTIONS, Validation, _part, as_form, validate, write_page
from support import truth
from support.json_forms import checked as held

MEMBERS = [truth.BASELINE.parent / f"delta-{m}" for m in range(4)]


def drawn(alpha: float, noise: float, members: int = 4, frames: int = 4000, seed: int = 0) -> Errors:
    """Errors of committees whose members scatter round a mean with 1/alpha of the width that the truth has."""
    rng = np.random.default_rng(seed)
    width = rng.lognormal(sigma=0.7, size=frames)
    spread = rng.normal(scale=(width / alpha)[:, None], size=(frames, members)).std(axis=1, ddof=1)
    error = width * rng.normal(size=frames) + noise * rng.normal(size=frames)
    return Errors(error, np.full(frames, noise), spread, np.arange(frames), members - 1)


@pytest.mark.parametrize(("alpha", "noise"), [(3.0, 0.0), (0.5, 0.0), (3.0, 1.0), (1.0, 2.0)])
def test_alpha_of_known_committees(alpha, noise):
    """Committees too sure of themselves by a known factor, with labels of known noise: the factor is found."""
    assert drawn(alpha, noise).fit_alpha() == pytest.approx(alpha, rel=0.1)


def test_alpha_ignoring_the_noise_would_be_wrong():
    """The same committees with the labels' noise left out give a much larger alpha: noise is no model error."""
    errors = drawn(1.0, 2.0)
    assert replace(errors, noise=np.zeros_like(errors.noise)).fit_alpha() > 1.5


def test_alpha_of_many_members_is_the_likelihood_s():
    """With many members, equal widths and no outliers it is the maximum likelihood of Imbalzano 2021: mean of
    error^2 / spread^2."""
    rng = np.random.default_rng(1)
    spread = rng.normal(scale=0.5, size=(4000, 200)).std(axis=1, ddof=1)
    errors = Errors(rng.normal(size=4000), np.zeros(4000), spread, np.arange(4000), 199)
    likely = float(np.sqrt((errors.error**2 / errors.spread**2).mean()))
    assert errors.fit_alpha() == pytest.approx(likely, rel=0.02)
    assert likely == pytest.approx(2.0, rel=0.05)


def test_a_few_outliers_do_not_move_alpha():
    """Three frames in a hundred with errors ten times as large, as of a simulation that ran away: the ratio of the mean
    squares doubles, and alpha moves by as much as three in a hundred count, so that the others' coverage is right."""
    errors = drawn(2.0, 0.0)
    wrong = replace(errors, error=np.where(np.arange(4000) % 33, 1.0, 10.0) * errors.error)
    squares = float(np.sqrt((wrong.error**2).mean() / (wrong.spread**2).mean()))
    assert squares > 1.8 * 2.0
    alpha = wrong.fit_alpha()
    assert alpha == pytest.approx(2.0, rel=0.12)
    for sigmas in (1, 2):
        assert errors.inside(alpha, sigmas)[0] == pytest.approx(errors.expected(alpha, sigmas), abs=0.03)


def test_members_that_agree_to_the_last_digit_say_nothing():
    """Spreads of zero cannot be scaled to any error, and errors of zero want none: no alpha, not 0 or infinity."""
    errors = drawn(1.0, 0.0)
    assert replace(errors, spread=np.zeros_like(errors.error)).fit_alpha() is None
    assert replace(errors, spread=errors.spread * (np.arange(4000) % 5 == 0)).fit_alpha() is None
    assert replace(errors, error=np.zeros_like(errors.error)).fit_alpha() is None


def test_labels_noisier_than_errors_say_nothing():
    """Where the declared noise is larger than the errors, no alpha is made up."""
    errors = drawn(1.0, 0.0)
    assert replace(errors, noise=np.full_like(errors.noise, 100.0)).fit_alpha() is None


def test_inside_and_expected():
    """Four calibrated members have the shares of Student's t inside one and two sigma, not the Gaussian ones."""
    errors = drawn(1.0, 0.0)
    for sigmas in (1, 2):
        share, bar = errors.inside(1.0, sigmas)
        assert errors.expected(1.0, sigmas) == pytest.approx(1 - 2 * stats.t.sf(sigmas, 3), abs=0.01)
        assert abs(share - errors.expected(1.0, sigmas)) < 4 * bar
        assert abs(share - (1 - 2 * stats.norm.sf(sigmas))) > 4 * bar


def test_noise_makes_the_expected_shares_gaussian():
    """Where the labels' noise rules, errors are Gaussian whatever the members say."""
    errors = replace(drawn(1.0, 0.0), noise=np.full(4000, 50.0))
    assert errors.expected(1.0, 1) == pytest.approx(1 - 2 * stats.norm.sf(1), abs=0.005)


def test_error_bars_are_those_of_repeated_draws():
    """The bootstrap's error bar is the scatter of the same measurement done again on other frames."""
    again = [drawn(1.0, 0.0, frames=200, seed=s).rmse for s in range(200)]
    scatter = np.std([value for value, _ in again])
    assert np.mean([bar for _, bar in again]) == pytest.approx(scatter, rel=0.25)


def test_few_blocks_have_no_error_bar():
    """Two frames that happen to agree are no proof of a small error: from four blocks on there is a bar."""
    errors = drawn(1.0, 0.0, frames=12)
    whole = replace(errors, block=np.arange(12) // 4)
    assert np.isnan(whole.rmse[1])
    assert np.isnan(whole.inside(1.0, 1)[1])
    assert replace(errors, block=np.arange(12) // 3).rmse[1] > 0


def test_error_bars_count_frames_not_atoms():
    """A hundred copies of each frame's error make the bar no smaller."""
    errors = drawn(1.0, 0.0, frames=100)
    many = Errors(
        np.repeat(errors.error, 100), np.zeros(10000), None, np.repeat(errors.frame, 100), errors.freedom
    )  # fmt: skip
    assert many.rmse == pytest.approx(errors.rmse)


@pytest.fixture(scope="module")
def examples():
    """Labels that the shipped committee is right about but for 5 meV/Å and 1 meV/atom, some without forces."""
    frames = truth.clusters(40, 3)
    rng = np.random.default_rng(0)
    answer = load(None, MEMBERS).evaluate(frames)
    found = []
    for n, frame in enumerate(frames):
        a, b = answer.ptr[n : n + 2]
        forces = answer.forces[a:b] + rng.normal(scale=0.005, size=(b - a, 3))
        energy = float(answer.energies[n]) + 0.001 * (b - a) * rng.normal()
        e = truth.example(frame, n)
        label = replace(e.label, energy=energy, forces=None if n % 4 == 3 else forces)
        found.append(replace(e, label=label, energy=energy, forces=label.forces))
    return found


@pytest.fixture(scope="module")
def found(examples):
    """What the shipped committee is wrong by."""
    return residuals(examples, MEMBERS, {1: 0.5, 8: -1.0}, APART)


def test_residuals_are_errors_of_the_mean(examples, found):
    """Energies an atom and force components are those of the served committee, frame by frame, alpha left out."""
    assert found.energy.rmse[0] == pytest.approx(0.001, rel=0.3)
    assert found.forces is not None
    assert found.forces.rmse[0] == pytest.approx(0.005, rel=0.1)
    assert set(found.forces.frame) == {n for n in range(40) if n % 4 != 3}
    one = load(None, MEMBERS, alpha=1.0).evaluate([examples[4].frame])
    here = found.forces.frame == 4
    assert np.allclose(found.forces.spread[here], np.repeat(one.force_spread, 3))
    assert np.allclose(found.forces.error[here], (one.forces - examples[4].forces).ravel())
    assert found.baseline_forces is not None
    assert np.allclose(found.baseline_forces.error[here], -examples[4].forces.ravel())
    n = len(examples[4].frame.numbers)
    # 2 x 0.5 - 1.0 eV a molecule: nothing
    assert found.baseline_energy.error[4] == pytest.approx(-examples[4].energy / n)


def test_energies_alone_are_calibrated_on_energies(examples):
    """Labels without forces still calibrate, for both; three of them do not. With forces each has its own."""
    alone = [replace(e, label=replace(e.label, forces=None), forces=None) for e in examples]
    found = residuals(alone, MEMBERS, {1: 0.0, 8: 0.0}, APART)
    assert found.forces is None
    fitted = calibrate(found)
    assert {what: one.frames for what, one in fitted.items()} == {"energy": (20, 20)}
    assert "that of the forces could not be fitted, so the same alpha is used" in format_calibration(fitted)
    card = scale(found, fitted)
    assert card["alpha"] == card["energy_alpha"] == round(fitted["energy"].alpha, 4)
    assert calibrate(replace(found, energy=found.energy.take([0, 1, 2]))) == {}
    # one label with forces among forty is no calibration of forces; four are, and are counted as four
    whole = [n for n, e in enumerate(examples) if e.forces is not None]
    for count, said in ((1, {"energy": (20, 20)}), (4, {"forces": (2, 2), "energy": (20, 20)})):
        some = [e if n in whole[:count] else a for n, (e, a) in enumerate(zip(examples, alone, strict=True))]
        fitted = calibrate(residuals(some, MEMBERS, {1: 0.0, 8: 0.0}, APART))
        assert {what: one.frames for what, one in fitted.items()} == said
        assert "nan" not in format_calibration(fitted)
    assert calibrate(replace(found, energy=replace(found.energy, spread=None))) == {}
    assert scale(found, {})["alpha"] == 1.0


def test_forces_and_energies_have_an_alpha_each(found):
    """Energies wrong by three times what the forces say: each alpha is fitted on one half of its own frames, tested on
    the other, and covers that half as four members should. The card has both, and the quantiles of what a run shows."""
    rng = np.random.default_rng(1)
    forces, energy = found.forces, found.energy
    assert forces is not None

    def wrong(errors: Errors, alpha: float, members: int) -> Errors:
        """Errors for which this alpha is right, with a spread of so many members."""
        width = rng.uniform(0.5, 1.5, size=len(errors.error))
        spread = width * np.sqrt(rng.chisquare(members - 1, size=len(width)) / (members - 1)) / alpha
        return replace(errors, error=rng.normal(scale=width), noise=np.zeros_like(width), spread=spread)

    many = np.arange(400)
    energy = Errors(np.zeros(400), np.zeros(400), None, many, 3)
    frames = tuple(found.examples[n % 40] for n in range(400))
    largest = rng.uniform(0.0, 0.01, size=400)
    made = replace(found, examples=frames, energy=wrong(energy, 6.0, 4), forces=wrong(forces, 2.0, 10), largest=largest)
    fitted = calibrate(made)
    assert fitted["forces"].alpha == pytest.approx(2.0, rel=0.1)
    assert fitted["energy"].alpha == pytest.approx(6.0, rel=0.2)
    for one in fitted.values():
        for (share, bar), expected in zip(one.after, one.expected, strict=True):
            assert abs(share - expected) < max(4 * bar, 0.05)
        assert one.before[0][0] < one.after[0][0] - 0.1
    assert format_calibration(fitted).count("of the errors in the other") == 2
    card = scale(made, fitted)
    assert (card["alpha"], card["energy_alpha"]) == tuple(round(fitted[what].alpha, 4) for what in ("forces", "energy"))
    assert card["spread_held_out"]["shares"] == [0.5, 0.9, 0.99, 1.0]
    wanted = fitted["forces"].alpha * np.quantile(largest, [0.5, 0.9, 0.99, 1.0])
    assert np.allclose(card["spread_held_out"]["force_eV_per_angstrom"], wanted, rtol=1e-3)


def test_alpha_is_fitted_on_the_frames_that_are_named_and_tested_on_the_others(found):
    """Two simulations, one to fit and one to test, as models/water-revpbe0-d3/train.py has them: no frame of the second
    moves alpha, none of the first is counted in the coverage; frames without forces count for energies alone."""
    first = range(0, 40, 2)
    fitted = calibrate(found, first)
    assert {what: one.frames for what, one in fitted.items()} == {"forces": (20, 10), "energy": (20, 20)}
    for what, errors in (("forces", found.forces), ("energy", found.energy)):
        assert fitted[what].alpha == errors.take(first).fit_alpha()
        others = errors.take(range(1, 40, 2))
        assert fitted[what].after == tuple(others.inside(fitted[what].alpha, n) for n in (1, 2))


def test_page_stands_alone(examples, found, tmp_path: Path):
    """The page holds the numbers that the command prints, its pictures, and asks for nothing from elsewhere."""
    dataset = Dataset(tuple(examples), split(examples, 0.2, 0))
    v = Validation(tmp_path, dataset, found, calibrate(found), ((10, found), (32, found)))
    file = tmp_path / "page.html"
    write_page(v, file)
    page = file.read_text()
    assert page.count('<svg role="img"') == 6
    assert 'class="verdict green"' in page
    assert "http" not in re.sub(r"<svg.*?</svg>", "", page.replace("http-equiv", ""), flags=re.DOTALL)
    assert set(v.calibration) == {"forces", "energy"}
    assert format_calibration(v.calibration) in page
    assert "standard errors from a bootstrap over blocks" in page
    assert dataset.hash in page
    for row in v.rows():
        for cell in row:
            assert cell in page
    assert format_calibration(v.calibration) in str(v)
    assert "trained on 10 frames" in str(v)
    form = held(as_json(as_form(v, file)), "validate")
    assert (form["frames"], form["no_better"], form["worse"]) == (40, [], False)
    every = form["errors"][-1]
    assert (every["composition"], every["forces"]["value"]) == ("all", found.forces.rmse[0])
    assert [row["frames"] for row in form["errors"]] == [14, 13, 13, 40]
    assert form["calibration"]["energy"]["alpha"] == v.calibration["energy"].alpha
    assert [point["frames"] for point in form["curve"]] == [10, 32]
    assert [row[1] for row in v.rows()[2:]] == ["14", "13", "13", "40"]


def test_a_delta_worse_than_its_baseline_is_said(examples, found, tmp_path: Path):
    """Labels that say there is no difference: what Δ adds is error. Printed and on the page, with both numbers and
    their error bars; of a Δ that helps, and of a model of the labels themselves, nothing is said."""
    none = [replace(e, energy=0.0, forces=None if e.forces is None else 0.01 * e.forces) for e in examples]
    dataset = Dataset(tuple(none), (True,) * len(none))
    v = Validation(tmp_path, dataset, residuals(none, MEMBERS, {1: 0.0, 8: 0.0}, APART), {})
    with_, without = (1e3 * e.rmse[0] for e in (v.found.forces, v.found.baseline_forces))
    assert with_ > 50 * without
    assert v.worse.startswith(
        "in energies and forces this Δ is worse than its baseline alone: on 40 frames that no member saw"
    )
    bars = [1e3 * e.rmse[1] for e in (v.found.forces, v.found.baseline_forces)]
    assert f"forces are wrong by {with_bar(with_, bars[0])} meV/Å with Δ, {with_bar(without, bars[1])}" in v.worse
    assert [line for line in v.lines() if isinstance(line, Alarm)] == [v.worse]
    form = held(as_json(as_form(v, tmp_path / "page.html")), "validate")
    assert (form["no_better"], form["worse"]) == (["energy", "force"], True)
    write_page(v, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"{v.worse}." in page
    assert 'class="verdict red"><strong>This Δ is worse than its baseline alone in energies and forces' in page
    assert Validation(tmp_path, dataset, found, None).worse == ""
    own = Dataset(tuple(replace(e, baseline=None) for e in none), (True,) * len(none))
    assert replace(v, dataset=own).worse == ""


@pytest.mark.parametrize(("simulations", "gap"), [(1, 10), (1, None), (3, None), (40, 10)])
def test_points_of_a_learning_curve_have_their_share(examples, simulations, gap):
    """A quarter and half of the training frames, of whichever few blocks they are, each composition in proportion."""
    training = [
        replace(e, simulation=f"run {n % simulations}", step=None if gap is None else gap * n)
        for n, e in enumerate(examples)
    ]
    dataset = Dataset(tuple(training), (False,) * len(training))
    for share in CURVE_FRACTIONS[:-1]:
        part = _part(dataset, share)
        assert abs(len(part) - share * len(training)) < 1
        for name, count in Counter(e.composition for e in training).items():
            assert abs(sum(e.composition == name for e in part) - share * count) < 1.01, name


def test_members_are_those_of_the_committee_s_card(tmp_path: Path):
    """Measured are the members that committee.toml lists, others beside them not; a wrong folder has its sentence."""
    shipped = truth.ROOT / "models" / "water-highlevel"
    whole = Dataset.read(shipped)
    few = [e for e, out in zip(whole.examples, whole.held_out, strict=True) if out][:6]
    Dataset(tuple(few), (True,) * len(few)).write(tmp_path)
    for member in range(3):
        (tmp_path / f"delta-{member}").symlink_to(shipped / f"delta-{member}")
    (tmp_path / "committee.toml").write_text('members = ["delta-2", "delta-0"]\n')
    found = validate(tmp_path).found
    alone = residuals(few, [shipped / "delta-2", shipped / "delta-0"], references(shipped / "delta-2"), APART)
    assert np.array_equal(found.energy.error, alone.energy.error)
    assert found.energy.freedom == 1
    with pytest.raises(LabelError, match="not made by beadwork train"):
        validate(tmp_path / "nowhere")


def test_the_card_of_the_clusters_is_of_simulations_that_no_model_learned_from():
    """Errors and alphas in models/water-highlevel/committee.toml are what its labels of other simulations give: none of
    these was learned from, alpha was fitted on simulations that do not test it, and of all errors, each judged by the
    alpha that it had no part in, as many lie inside one and two sigma as should, within 5 points."""
    shipped = truth.ROOT / "models" / "water-highlevel"
    examples = from_file(shipped / "labels" / "mp2-unseen.extxyz", shipped / "baseline")
    assert len(unseen(examples, Dataset.read(shipped))) == len(examples) == 156
    members = [shipped / f"delta-{m}" for m in range(4)]
    found = residuals(examples, members, references(members[0]), APART)
    card = tomllib.loads((shipped / "committee.toml").read_text())
    for key, value in found.measured.items():
        assert card["held_out"][key] == pytest.approx(value, rel=1e-3), key
    fitted = calibrate(found)
    assert (card["alpha"], card["energy_alpha"]) == pytest.approx([fitted[q].alpha for q in ("forces", "energy")], 1e-3)
    fit, test = found.halves(found.forces)
    assert not {examples[n].simulation for n in fit} & {examples[n].simulation for n in test}
    crossed = calibrate(found, test)
    for quantity, one in fitted.items():
        other = crossed[quantity]
        assert one.frames == other.frames == (78, 78)
        for mine, theirs, expected in zip(one.after, other.after, one.expected, strict=True):
            assert abs((mine[0] + theirs[0]) / 2 - expected) < 0.05
